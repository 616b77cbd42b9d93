//! What the cluster itself says of an accusation. Gathered elsewhere and passed in.

use std::collections::{BTreeMap, BTreeSet};

use crate::Moment;
use crate::names::{App, NodeName, PodRef, Text};
use crate::plan::Exposure;
use crate::report::Record;

/// What is known of the accused Pods, Apps and namespaces. What is missing is unknown, never absent.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The accused Pods.
    pub pods: BTreeMap<PodRef, PodFact>,
    /// The Apps that they belong to.
    pub apps: BTreeMap<App, AppFact>,
    /// Namespaces that are being deleted.
    pub terminating: BTreeSet<Text>,
}

/// What is known of a Pod, and since when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFact {
    /// When the cluster was asked, before it answered: evidence that came later can't be judged by it.
    pub asked: Moment,
    /// What it said.
    pub state: PodState,
}

/// What the cluster says of a Pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodState {
    /// It exists, and has not ended.
    Present {
        /// `spec.nodeName`.
        node: NodeName,
        /// `status.hostIPs`: how static targets are recognised, which have no node names.
        host_ips: Vec<Text>,
        /// The App that it belongs to, by its own labels and owners.
        app: App,
    },
    /// Proven gone: a direct look-up found none, or it has ended.
    Gone,
    /// Could not be read, and why.
    Unreadable(String),
}

/// What is known of an App.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppFact {
    /// It is proven that no Pod of it remains, nor any of the Pods that were accused as its own.
    pub gone: bool,
    /// How it is reached; `None` if that is not known at the moment.
    pub exposure: Option<Exposure>,
}

/// Whether an accusation may count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may, against this App.
    Accepted(App),
    /// It may not: the node accuses a Pod that does not run on it.
    Disputed(String),
    /// Not known: no new block may follow from it, and no release.
    Unverified(String),
}

impl Facts {
    /// Judges what `node` says of `record`'s Pod.
    pub(super) fn judge(&self, node: &NodeName, record: &Record, fresh_at: Moment, verify: bool) -> Verdict {
        if !verify {
            return Verdict::Accepted(claimed_app(record));
        }
        let Some(fact) = self.pods.get(&record.key.pod_ref()) else {
            return Verdict::Unverified("the Pod has not been looked up yet".to_owned());
        };
        match &fact.state {
            PodState::Unreadable(why) => Verdict::Unverified(why.clone()),
            _ if fact.asked.uptime() < fresh_at.uptime() => {
                Verdict::Unverified("the Pod has not been looked up since".to_owned())
            }
            PodState::Present { node: actual, host_ips, app } => {
                if actual == node || host_ips.iter().any(|ip| is_host_of(ip, &node.0)) {
                    Verdict::Accepted(app.clone())
                } else {
                    Verdict::Disputed(format!("the Pod runs on node {actual}"))
                }
            }
            PodState::Gone => Verdict::Disputed("there is no such Pod".to_owned()),
        }
    }

    /// Whether it is proven that no Pod of `app` remains.
    pub(super) fn is_gone(&self, app: &App) -> bool {
        self.apps.get(app).is_some_and(|fact| fact.gone)
    }

    /// How `app` is reached; `None` if that is not known at the moment.
    ///
    /// Without a cluster to ask, the only guess that can't hit anybody else is a Service of the App's own name in its own
    /// namespace.
    pub(super) fn exposure(&self, app: &App, verify: bool) -> Option<Exposure> {
        match self.apps.get(app) {
            Some(fact) => fact.exposure.clone(),
            None if !verify && crate::names::is_dns_label(&app.name) => {
                Some(Exposure::plain([format!("{}.{}.svc", app.name, app.namespace).into()]))
            }
            None => None,
        }
    }
}

/// The App that a record names. Wrong in practice (an agent can't know better), so only used where no Pod can be asked.
pub(super) fn claimed_app(record: &Record) -> App {
    let or = |text: &Text, fallback: &Text| {
        if text.is_empty() { fallback.clone() } else { text.clone() }
    };
    let kind: Text = if record.kind.is_empty() { "app".into() } else { record.kind.clone() };
    App::new(record.key.namespace.clone(), kind, or(&record.name, &record.key.pod))
}

/// Whether `node`, a static target's `host:port`, names the host address `ip`.
fn is_host_of(ip: &str, node: &str) -> bool {
    let host = node.rsplit_once(':').map_or(node, |(host, _)| host);
    host.trim_matches(['[', ']']) == ip
}
