//! Lookup requests: what the policy has to know of the cluster before the next decisions.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::incident::Phase;
use super::incidents::Incidents;
use super::namespace_refusals::NamespaceRefusals;
use super::{ClusterFacts, Policy};
use crate::Moment;
use crate::clearing::Presence;
use crate::names::{App, Key, NodeName, PodRef, Text};
use crate::snapshot::{Snapshot, State};

/// What has to be known before the next decisions. The caller looks it up and answers with [`ClusterFacts`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LookupRequests {
    /// Changes when earlier answers must not count any more, because another replica may have decided meanwhile. See
    /// [`ClusterFacts::epoch`].
    pub epoch: u64,
    /// The accused Pods.
    pub pods: BTreeMap<PodRef, AccusingNodes>,
    /// The Apps with an open incident, and the Pods that were accused as theirs, ordered, each once.
    pub apps: BTreeMap<App, Vec<AccusedPod>>,
    /// The Pods that have to be read directly, each not before that moment, because a new block waits for the read.
    pub direct: BTreeMap<PodRef, Moment>,
    /// How many Services are closed, as far as known. If there are many, their routes have to be looked up.
    pub services: usize,
}

/// A Pod that was accused, so that it belongs to an App with an open incident.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AccusedPod {
    /// Its name.
    pub pod: PodRef,
    /// Which Pod of that name.
    pub which: PodIdentity,
}

/// Which of several Pods that had the same name one after the other.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PodIdentity {
    /// The Pod with this UID.
    Uid(Text),
    /// One of them, but it is not known which. An earlier version persisted no UID, and neither do the objects of a
    /// block that no incident explains.
    Unknown,
    /// Any of them. Accusations are not verified, so an agent's report applies to the Pod that has the name now.
    Any,
}

/// The nodes that accuse a Pod, and when each did so last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccusingNodes {
    /// When the freshest evidence came. Only a later look-up can judge it.
    pub since: Moment,
    /// Every accusing node with the time of its own freshest evidence, ordered by node, each once. Look-ups take
    /// turns by node, so every node is listed. Otherwise a Pod that two nodes accuse could wait behind the thousands
    /// that only one of them accuses.
    pub nodes: Vec<(NodeName, Moment)>,
}

impl AccusingNodes {
    /// The accusation of one node.
    pub fn one(node: NodeName, since: Moment) -> Self {
        Self { since, nodes: vec![(node, since)] }
    }

    /// Adds the accusation of `node` at `since`.
    pub fn add(&mut self, node: &NodeName, since: Moment) {
        self.since = self.since.max(since);
        match self.nodes.binary_search_by(|(other, _)| other.cmp(node)) {
            Ok(at) => {
                if let Some((_, before)) = self.nodes.get_mut(at) {
                    *before = since.max(*before);
                }
            }
            Err(at) => self.nodes.insert(at, (node.clone(), since)),
        }
    }
}

impl LookupRequests {
    /// Whether `facts` are recent enough to judge every accusation, and know every App.
    pub fn are_answered_by(&self, facts: &ClusterFacts) -> bool {
        let is_judged = |(pod, accusers): (&PodRef, &AccusingNodes)| {
            facts.pods.get(pod).is_some_and(|fact| fact.asked.uptime() >= accusers.since.uptime())
        };
        self.pods.iter().all(is_judged) && self.apps.keys().all(|app| facts.apps.contains_key(app))
    }
}

impl Incidents {
    /// The lookup requests as of the last evaluation. Pods of namespaces that may not be blocked are not looked up.
    pub fn lookup_requests(&self, snapshot: &Snapshot, policy: &Policy) -> LookupRequests {
        let mut requests = LookupRequests::default();
        let refusals = NamespaceRefusals::new(policy);
        for violation in &snapshot.violations {
            if violation.state == State::Cleared || refusals.of(&violation.key.namespace).is_some() {
                continue;
            }
            let believable = violation.evidence().filter(|e| e.presence != Presence::Cleared);
            for (node, since) in believable.filter_map(|e| Some((&e.node, e.fresh_at?))) {
                match requests.pods.entry(violation.key.pod_ref()) {
                    Entry::Vacant(place) => drop(place.insert(AccusingNodes::one(node.clone(), since))),
                    Entry::Occupied(mut accusers) => accusers.get_mut().add(node, since),
                }
            }
        }
        for (app, incident) in &self.by_app {
            if matches!(incident.phase(), Phase::Ended { .. }) {
                continue;
            }
            if matches!(incident.phase(), Phase::Blocked { .. }) {
                requests.services += incident.persisted.exposure.services.len();
            }
            if let Some(since) = incident.read_wanted_since.as_deref().copied() {
                requests.direct.extend(incident.accepted.iter().map(|((key, _), _)| (key.pod_ref(), since)));
            }
            let accused = |key: &Key, uid: Option<&Text>| {
                let known = uid.cloned().map_or(PodIdentity::Unknown, PodIdentity::Uid);
                let which = if policy.verify_pods { known } else { PodIdentity::Any };
                AccusedPod { pod: key.pod_ref(), which }
            };
            let accepted = incident.accepted.iter();
            let reported = accepted.map(|((key, _), accepted)| accused(key, accepted.pod_uid.as_ref()));
            let inherited = incident.persisted.rare().inherited.iter().flat_map(|keys| keys.iter());
            let mut pods: Vec<AccusedPod> = reported.chain(inherited.map(|key| accused(key, None))).collect();
            pods.sort_unstable();
            pods.dedup();
            pods.shrink_to_fit();
            requests.apps.insert(app.clone(), pods);
        }
        requests
    }
}
