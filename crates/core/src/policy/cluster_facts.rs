//! The cluster facts: what the API server says of accused Pods, their Apps and namespaces. The caller gathers them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::Policy;
use crate::Moment;
use crate::names::{App, NodeName, PodRef, Text};
use crate::plan::{Exposure, SharedService, SharedServices, human};
use crate::report::Record;
use crate::snapshot::EvidenceView;
use crate::time::CompactDuration;

/// How much older than its Pod a record may seem, because agents and API servers round times to seconds, and clocks
/// drift. A true record that seems older than that is believed with the next scan.
pub const AGE_TOLERANCE: Duration = Duration::from_secs(3);

/// What is known of the accused Pods, Apps and namespaces. A missing entry is unknown, never absent.
#[derive(Clone, Debug, Default)]
pub struct ClusterFacts {
    /// The epoch of the lookup requests that they answer ([`super::LookupRequests::epoch`]). Every look-up was sent
    /// in that epoch or later.
    pub epoch: u64,
    /// The accused Pods.
    pub pods: BTreeMap<PodRef, PodFact>,
    /// When Pods were last read directly, for those of `pods` whose fact is newer than that read. Their facts are
    /// newer because the watches have reported no change since.
    pub carried: BTreeMap<PodRef, Moment>,
    /// The Apps that they belong to.
    pub apps: BTreeMap<App, AppFact>,
    /// Namespaces that are being deleted.
    pub terminating: BTreeSet<Text>,
}

/// What is known of a Pod, and since when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFact {
    /// When the look-up was sent. Evidence that came later can't be judged by its answer.
    pub asked: Moment,
    /// The answer.
    pub state: PodState,
}

/// What the cluster says of a Pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodState {
    /// The Pod exists and has not ended.
    Present {
        /// `metadata.uid`: Pods that follow one another can have the same name.
        uid: Text,
        /// When the Pod was created, by our clock: the time of the look-up minus the Pod's age by the API server's
        /// own clock. `None` if that is not known. Then no new accusation of the Pod is believed.
        created: Option<Moment>,
        /// `spec.nodeName`.
        node: NodeName,
        /// `status.hostIPs`. Static targets have no node names, so they are recognised by these addresses.
        host_ips: Vec<Text>,
        /// The App that it belongs to, by its own labels and owners.
        app: App,
        /// What links it with earlier names of its App.
        lineage: Lineage,
    },
    /// Proven gone: a direct look-up found no such Pod, or the Pod has ended.
    Gone,
    /// The Pod could not be read, and why.
    Unreadable(String),
}

/// What links a Pod with earlier names of its App, so that operators' commands for those names apply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lineage {
    /// What made the Pod, as `Kind/name` (see [`crate::identity::origin_of`]); `None` if that is not known.
    pub origin: Option<Text>,
    /// The App that earlier versions of this program assigned it to, if it is another one.
    pub earlier: Option<App>,
}

/// What is known of an App.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppFact {
    /// It is proven that no Pod of the App remains, nor any of the Pods that were accused as its own.
    pub gone: bool,
    /// How the App is reached; `None` if that is not known at the moment.
    pub exposure: Option<Exposure>,
    /// Those of its Services that expose other Apps of the namespace too, ordered.
    pub shared: Vec<SharedService>,
    /// The Services of its namespace that select no running Pod, as `service.namespace.svc`, ordered. The tenant may
    /// have removed the selector, and may route their traffic to any Pod by endpoints of its own.
    pub selecting_none: Arc<[Text]>,
}

/// Whether an accusation may count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It may count, against this Pod and its App.
    Accepted(AcceptedPod),
    /// It may not count: the accused Pod does not run on the accusing node, or is younger than the record.
    Disputed(String),
    /// Not known: neither a new block nor a release may follow from it.
    Unverified(String),
}

/// The Pod that an accusation is accepted against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AcceptedPod {
    /// The App that it belongs to.
    pub(crate) app: App,
    /// Its UID; `None` without a cluster.
    pub(crate) uid: Option<Text>,
    /// When it was created; `None` if that is not known.
    pub(crate) created: Option<Moment>,
    /// What links it with earlier names of its App.
    pub(crate) lineage: Lineage,
}

impl PodState {
    /// Whether the Pod exists and runs on `node`, which may be a node's name or a static target's address.
    pub fn runs_on(&self, node: &NodeName) -> bool {
        let Self::Present { node: actual, host_ips, .. } = self else { return false };
        actual == node || host_ips.iter().any(|ip| is_host_of(ip, &node.0))
    }
}

impl ClusterFacts {
    /// When the Pod was last read directly; `None` if it never was.
    pub(super) fn read_at(&self, pod: &PodRef) -> Option<Moment> {
        self.carried.get(pod).copied().or_else(|| Some(self.pods.get(pod)?.asked))
    }

    /// Judges `evidence`, fresh at `fresh_at`, by what is known of its Pod. `accepted` is the App that this evidence
    /// was accepted against before, with the UID of the Pod if that is known. It is `None` if the evidence was not
    /// accepted before. Without `verify` that App is returned again.
    pub(super) fn judge(
        &self,
        evidence: &EvidenceView,
        fresh_at: Moment,
        accepted: Option<(&App, Option<&Text>)>,
        verify: bool,
    ) -> Verdict {
        let (node, record) = (&evidence.node, &evidence.record);
        if !verify {
            let app = accepted.map_or_else(|| claimed_app(record), |(app, _)| app.clone());
            let lineage = Lineage::default();
            return Verdict::Accepted(AcceptedPod { app, uid: None, created: None, lineage });
        }
        let Some(fact) = self.pods.get(&record.key.pod_ref()) else {
            return Verdict::Unverified("the Pod has not been looked up yet".to_owned());
        };
        match &fact.state {
            PodState::Unreadable(why) => Verdict::Unverified(why.clone()),
            _ if fact.asked.uptime() < fresh_at.uptime() => {
                Verdict::Unverified("the Pod has not been looked up since".to_owned())
            }
            PodState::Present { node: actual, .. } if !fact.state.runs_on(node) => {
                Verdict::Disputed(format!("the Pod runs on node {actual}"))
            }
            PodState::Present { uid, created, app, lineage, .. } => {
                // Evidence that was accepted against this Pod is not doubted again: its age has been checked.
                let is_same_pod = accepted.is_some_and(|(_, known)| known == Some(uid));
                let doubt = if is_same_pod { None } else { age_mismatch(evidence.age, fresh_at, *created) };
                doubt.unwrap_or_else(|| {
                    let (app, uid, lineage) = (app.clone(), Some(uid.clone()), lineage.clone());
                    Verdict::Accepted(AcceptedPod { app, uid, created: *created, lineage })
                })
            }
            PodState::Gone => Verdict::Disputed("there is no such Pod".to_owned()),
        }
    }

    /// Whether it is proven that no Pod of `app` remains.
    pub(super) fn is_gone(&self, app: &App) -> bool {
        self.apps.get(app).is_some_and(|fact| fact.gone)
    }

    /// Whether nothing is known of the Pods of `namespace`: the last look-up failed, or there was none yet.
    pub(super) fn is_unreadable(&self, namespace: &Text) -> bool {
        let first = PodRef { namespace: namespace.clone(), pod: Text::from("") };
        let pods = self.pods.range(first..).take_while(|(pod, _)| pod.namespace == *namespace);
        let mut pods = pods.map(|(_, fact)| fact).peekable();
        pods.peek().is_none() || pods.any(|fact| matches!(fact.state, PodState::Unreadable(_)))
    }

    /// The first Service of `app` that exposes other Apps too, if the App is to be held for that reason.
    pub(super) fn held_for(&self, app: &App, policy: &Policy, is_approved: bool) -> Option<&SharedService> {
        if is_approved || policy.shared_services != SharedServices::Hold {
            return None;
        }
        self.apps.get(app)?.shared.first()
    }
}

/// Why a record of that `age` at `fresh_at` can't be assigned to the Pod that was `created` then. The record may be
/// about an earlier Pod of the same name.
fn age_mismatch(age: Option<CompactDuration>, fresh_at: Moment, created: Option<Moment>) -> Option<Verdict> {
    let Some(created) = created else {
        return Some(Verdict::Unverified("the age of the Pod is not known".to_owned()));
    };
    let Some(age) = age else {
        return Some(Verdict::Unverified("the age of the record is not known".to_owned()));
    };
    let found = fresh_at.uptime().saturating_sub(age.get());
    let older_by = created.uptime().saturating_sub(found);
    (older_by > AGE_TOLERANCE)
        .then(|| Verdict::Disputed(format!("the record is {} older than the Pod", human(older_by))))
}

/// The App that a record names. It is used only where no Pod can be looked up, because an agent can't know the App.
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
