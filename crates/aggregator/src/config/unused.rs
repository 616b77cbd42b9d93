//! Keys that have no effect because of the values of other keys.

use procscan_core::report::Target;
use procscan_core::size;

use super::checks::Problem;
use super::values::duration_text;
use super::{Config, DaemonSet, Discovery, DiscoveryMode, targets};

/// Finds keys that are written and have no effect. A key with its default is no mistake: `config.yaml` has all keys.
pub(super) fn warn(config: &Config, is_written: &dyn Fn(&str) -> bool, found: &mut Vec<Problem>) {
    let mut without_effect = |holds: bool, path: &str, why: &str| {
        if holds && is_written(path) {
            found.push(Problem::new(path, format!("has no effect: {why}")));
        }
    };
    of_collector(config, &mut without_effect);
    of_discovery(config, &mut without_effect);
    let why = "nothing in this configuration needs a cluster; only unblock-all and uninstall use it";
    without_effect(!config.needs_cluster(), "kubernetes.context", why);
    without_effect(!config.needs_cluster(), "kubernetes.kubeconfig", why);
    let why = "enforcement.grace is 0s, so no tenant is warned";
    without_effect(config.enforcement.grace.is_zero(), "notification.grace", why);
    listed_twice(config, found);
}

fn of_collector(config: &Config, without_effect: &mut dyn FnMut(bool, &str, &str)) {
    let collector = &config.collector;
    let interval = config.aggregator.scan_interval;
    let shown = duration_text(interval);
    let why = format!("an answer may take no longer than a round (aggregator.scan_interval, {shown})");
    without_effect(collector.timeout > interval, "collector.timeout", &why);
    without_effect(collector.connect_timeout > interval, "collector.connect_timeout", &why);
    let body = size::text(collector.max_body);
    without_effect(
        collector.max_read < collector.max_body,
        "collector.max_read",
        &format!("each answer is read up to {body} (collector.max_body), which is more"),
    );
}

fn of_discovery(config: &Config, without_effect: &mut dyn FnMut(bool, &str, &str)) {
    let (daemonset, mode) = (&config.daemonset, config.discovery.mode);
    let by_service = matches!(mode, DiscoveryMode::Kubernetes | DiscoveryMode::Dns);
    let defaults = DaemonSet::default();
    let has_other_name = daemonset.service_name != defaults.service_name;
    let has_other_namespace = daemonset.namespace != defaults.namespace;
    let why = "with discovery.mode static or file no Service is asked";
    without_effect(!by_service && has_other_name, "daemonset.service_name", why);
    without_effect(!by_service && has_other_namespace, "daemonset.namespace", why);
    let why = if mode == DiscoveryMode::Kubernetes {
        "daemonset.api_port counts instead"
    } else {
        "it names a port only with discovery.mode kubernetes"
    };
    let is_unused = mode != DiscoveryMode::Kubernetes || daemonset.api_port.is_some();
    without_effect(is_unused, "daemonset.api_port_name", why);
    let is_default = config.discovery.cluster_domain == Discovery::default().cluster_domain;
    let why = "it is used with discovery.mode dns only";
    without_effect(mode != DiscoveryMode::Dns && !is_default, "discovery.cluster_domain", why);
}

/// Finds targets that are listed twice.
fn listed_twice(config: &Config, found: &mut Vec<Problem>) {
    let port = config.daemonset.api_port();
    let mut known: Vec<(usize, Target)> = Vec::new();
    for (index, entry) in config.discovery.targets.iter().enumerate() {
        let Some(target) = targets::parse([&**entry], port).ok().and_then(|mut target| target.pop()) else {
            continue;
        };
        match known.iter().find(|(_, other)| *other == target) {
            Some((first, _)) => {
                let problem = format!("has no effect: discovery.targets[{first}] is the same target");
                found.push(Problem::new(format!("discovery.targets[{index}]"), problem));
            }
            None => known.push((index, target)),
        }
    }
}
