//! Keys that have no effect because of what other keys say.

use procscan_core::report::Target;

use super::{Config, DaemonSet, DiscoveryMode, Problems};

/// Finds keys that are written down and have no effect. A key with its default is no mistake: `config.yaml` has all keys.
pub(super) fn warn(config: &Config, is_written: &dyn Fn(&str) -> bool, found: &mut Problems) {
    let (collector, daemonset, mode) = (&config.collector, &config.daemonset, config.discovery.mode);
    let mut without_effect = |holds: bool, path: &str, why: &str| {
        if holds && is_written(path) {
            found.say(path, format!("has no effect: {why}"));
        }
    };
    let interval = config.aggregator.scan_interval;
    let shown = humantime::format_duration(interval);
    for (path, timeout) in
        [("collector.timeout", collector.timeout), ("collector.connect_timeout", collector.connect_timeout)]
    {
        let why = format!("an answer may take no longer than a round (aggregator.scan_interval, {shown})");
        without_effect(timeout > interval, path, &why);
    }

    let held = bytesize::ByteSize(collector.max_body as u64).display().iec();
    without_effect(
        collector.max_read < collector.max_body,
        "collector.max_read",
        &format!("each answer is read up to {held} (collector.max_body), which is more"),
    );

    let by_service = matches!(mode, DiscoveryMode::Kubernetes | DiscoveryMode::Dns);
    let defaults = DaemonSet::default();
    let why = "with discovery.mode static or file no Service is asked";
    without_effect(
        !by_service && daemonset.service_name != defaults.service_name,
        "daemonset.service_name",
        why,
    );
    without_effect(!by_service && daemonset.namespace != defaults.namespace, "daemonset.namespace", why);
    let why = if mode == DiscoveryMode::Kubernetes {
        "daemonset.api_port counts instead"
    } else {
        "it names a port only with discovery.mode kubernetes"
    };
    without_effect(
        mode != DiscoveryMode::Kubernetes || daemonset.api_port.is_some(),
        "daemonset.api_port_name",
        why,
    );
    let is_default = config.discovery.cluster_domain == super::Discovery::default().cluster_domain;
    without_effect(
        mode != DiscoveryMode::Dns && !is_default,
        "discovery.cluster_domain",
        "it is used with discovery.mode dns only",
    );
    let why = "nothing in this configuration needs a cluster; only unblock-all and uninstall use it";
    without_effect(!config.needs_cluster(), "kubernetes.context", why);
    without_effect(!config.needs_cluster(), "kubernetes.kubeconfig", why);
    let why = "enforcement.grace is 0s, so no tenant is warned";
    without_effect(config.enforcement.grace.is_zero(), "notification.grace", why);
    listed_twice(config, found);
}

/// Finds targets that are listed twice.
fn listed_twice(config: &Config, found: &mut Problems) {
    let port = config.daemonset.api_port();
    let mut known: Vec<(usize, Target)> = Vec::new();
    for (index, entry) in config.discovery.targets.iter().enumerate() {
        let Some(target) = super::targets::parse([&**entry], port).ok().and_then(|mut target| target.pop())
        else {
            continue;
        };
        match known.iter().find(|(_, other)| *other == target) {
            Some((first, _)) => {
                let problem = format!("has no effect: discovery.targets[{first}] is the same target");
                found.say(format!("discovery.targets[{index}]"), problem);
            }
            None => known.push((index, target)),
        }
    }
}
