//! The requests about each namespace, and which of its accusations have not been judged. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use procscan_core::Moment;
use procscan_core::names::{NodeName, Text};
use procscan_core::policy::{AccusingNodes, LookupRequests, PodIdentity, PodState};

use super::namespace_facts::{NamespaceFacts, RequestedFacts};

/// How long an accusation may wait for the look-up that judges it, before that is reported in the log and in `/readyz`.
pub(super) const LATE_AFTER: Duration = Duration::from_mins(2);

/// The requests about one namespace.
#[derive(Debug, Default)]
pub(super) struct NamespaceLookup {
    /// The facts that the policy wants.
    pub(super) requested: RequestedFacts,
    /// The accused Pods with accusations that have not been judged.
    pub(super) unjudged: BTreeMap<Text, Unjudged>,
}

/// An accused Pod whose last look-up is older than an accusation.
#[derive(Clone, Debug)]
pub(super) struct Unjudged {
    /// When the first accusation came that is not judged. The same look-up judges later ones, so they do not start the
    /// wait anew.
    first: Moment,
    /// When the first of these requests came. Evidence may be much older than the request, for example after a restart.
    asked: Moment,
    accusers: AccusingNodes,
    /// The Pod has to be read directly, not before that moment: a new block waits for it.
    direct: Option<Moment>,
}

/// The state of the look-ups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ClusterFactsStatus {
    /// Why the cluster can't be asked.
    pub(crate) error: Option<String>,
    /// The error of one of the namespaces that are too large to be looked up.
    pub(crate) too_large: Option<String>,
    /// The accused namespaces are watched; otherwise each is looked up every round.
    pub(crate) is_watched: bool,
    /// How many namespaces have an accusation that has not been judged.
    pub(crate) waiting: usize,
    /// How many namespaces have an accusation that has waited too long.
    pub(crate) late: usize,
    /// The longest wait of an accusation.
    pub(crate) longest_wait: Duration,
    /// How many namespaces are looked up one by one, in turn, because they hold too much to be looked up together.
    pub(crate) heavy: usize,
    /// Sweeps have read as many bytes in the last minute as they may, and wait.
    pub(crate) is_limited: bool,
}

impl NamespaceLookup {
    /// The accusations that wait for a look-up: all that are not judged or, if the cluster is watched, only those that
    /// need a direct read.
    fn pressing<'a>(
        &'a self,
        facts: Option<&'a NamespaceFacts>,
        is_watched: bool,
    ) -> impl Iterator<Item = (&'a Text, &'a Unjudged)> {
        let is_settled = move |pod: &Text, unjudged: &Unjudged| {
            is_watched && facts.is_some_and(|facts| self.is_settled(facts, pod, unjudged))
        };
        self.unjudged.iter().filter(move |(pod, unjudged)| !is_settled(pod, unjudged))
    }

    /// Whether an accusation can be judged by an earlier read, once it is known that nothing has changed since. No new
    /// block waits for such an accusation.
    ///
    /// Either the accusation only continues: a direct read has shown that the Pod with that UID belongs to an App with
    /// an open incident. Or the accusation is not believed in any case, because the Pod does not exist or runs on
    /// another node. A watch that lags behind may mistake a Pod for the one that it has replaced. Then an open incident
    /// lasts longer by the lag, or an accusation is believed later: a late release or a late block, never a wrong one.
    fn is_settled(&self, facts: &NamespaceFacts, pod: &Text, unjudged: &Unjudged) -> bool {
        match facts.pods.get(pod).filter(|_| facts.is_seen(pod)).map(|fact| &fact.state) {
            _ if unjudged.direct.is_some() => false,
            None | Some(PodState::Unreadable(_)) => false,
            Some(PodState::Gone) => true,
            Some(state @ PodState::Present { uid, .. }) => {
                let accepted = (pod.clone(), PodIdentity::Uid(uid.clone()));
                let is_accepted = || self.requested.apps.values().any(|pods| pods.contains(&accepted));
                unjudged.accusers.nodes.iter().all(|(accuser, _)| !state.runs_on(accuser)) || is_accepted()
            }
        }
    }

    /// The time of the first accusation in it that waits for a look-up.
    pub(super) fn since(&self, facts: Option<&NamespaceFacts>, is_watched: bool) -> Option<Moment> {
        self.pressing(facts, is_watched).map(|(_, pod)| pod.first).min()
    }

    /// Whether nothing is known of an App with an open incident.
    pub(super) fn has_new_app(&self, facts: Option<&NamespaceFacts>) -> bool {
        self.requested.apps.keys().any(|app| facts.is_none_or(|facts| !facts.apps.contains_key(app)))
    }

    /// Whether an accusation that waits for a look-up is newer than `than`.
    pub(super) fn is_newer(&self, facts: Option<&NamespaceFacts>, is_watched: bool, than: Moment) -> bool {
        self.pressing(facts, is_watched).any(|(_, pod)| pod.first.uptime() > than.uptime())
    }

    /// When the first of its requests came that have no answer.
    fn asked(&self, facts: Option<&NamespaceFacts>, is_watched: bool) -> Option<Moment> {
        self.pressing(facts, is_watched).map(|(_, pod)| pod.asked).min()
    }

    /// The nodes whose accusations wait for a look-up.
    pub(super) fn nodes<'a>(
        &'a self,
        facts: Option<&'a NamespaceFacts>,
        is_watched: bool,
    ) -> BTreeSet<&'a NodeName> {
        let mut nodes = BTreeSet::new();
        for (pod, unjudged) in self.pressing(facts, is_watched) {
            let known = facts.and_then(|facts| facts.pods.get(pod)).map(|fact| fact.asked.uptime());
            let is_judged =
                |since: &Moment| unjudged.direct.is_none() && known.is_some_and(|at| at >= since.uptime());
            let waiting = unjudged.accusers.nodes.iter().filter(|(_, since)| !is_judged(since));
            nodes.extend(waiting.map(|(node, _)| node));
        }
        nodes
    }

    /// Judges accusations after the watches have reported that nothing changed until `until`. Returns whether any was
    /// judged.
    pub(super) fn confirm(&mut self, facts: &mut NamespaceFacts, until: Moment, now: Moment) -> bool {
        let is_due = |(pod, unjudged): &(&Text, &Unjudged)| {
            unjudged.first.uptime() <= until.uptime() && self.is_settled(facts, pod, unjudged)
        };
        let settled: Vec<Text> = self.unjudged.iter().filter(is_due).map(|(pod, _)| pod.clone()).collect();
        for pod in &settled {
            facts.confirm(pod, until);
        }
        self.judge(facts, now);
        !settled.is_empty()
    }

    /// Forgets the accusations that the facts have judged.
    pub(super) fn judge(&mut self, facts: &NamespaceFacts, now: Moment) {
        self.unjudged.retain(|pod, unjudged| {
            let Some(fact) = facts.pods.get(pod) else { return true };
            unjudged.direct = unjudged.direct.filter(|at| facts.needs_read(pod, *at));
            let known = fact.asked.uptime();
            let is_judged = known >= unjudged.accusers.since.uptime();
            if !is_judged && known >= unjudged.first.uptime() {
                // Accusations that came after the look-up began wait for the next one.
                (unjudged.first, unjudged.asked) = (unjudged.accusers.since, now);
            }
            !is_judged || unjudged.direct.is_some()
        });
    }
}

/// The current requests by namespace. Namespaces that waited before go on waiting.
pub(super) fn by_namespace(
    requests: &LookupRequests,
    namespace_facts: &BTreeMap<Text, NamespaceFacts>,
    before: &BTreeMap<Text, NamespaceLookup>,
    now: Moment,
) -> BTreeMap<Text, NamespaceLookup> {
    let mut lookups: BTreeMap<Text, NamespaceLookup> = BTreeMap::new();
    for (pod, accusers) in &requests.pods {
        let lookup = lookups.entry(pod.namespace.clone()).or_default();
        lookup.requested.pods.insert(pod.pod.clone());
        let facts = namespace_facts.get(&pod.namespace);
        let known = facts.and_then(|facts| facts.pods.get(&pod.pod)).map(|fact| fact.asked.uptime());
        let direct = requests.direct.get(pod).copied();
        let direct = direct.filter(|at| facts.is_none_or(|facts| facts.needs_read(&pod.pod, *at)));
        let is_judged = known.is_some_and(|at| at >= accusers.since.uptime());
        let since = match direct {
            Some(at) if is_judged => at,
            None if is_judged => continue,
            _ => accusers.since,
        };
        let waited = before.get(&pod.namespace).and_then(|lookup| lookup.unjudged.get(&pod.pod));
        let waited = waited.filter(|waited| {
            let is_same = waited.direct.is_some() && waited.direct == direct;
            is_same || known.is_none_or(|at| at < waited.first.uptime())
        });
        let (first, asked) = waited.map_or((since, now), |waited| (waited.first, waited.asked));
        let unjudged = Unjudged { first, asked, accusers: accusers.clone(), direct };
        lookup.unjudged.insert(pod.pod.clone(), unjudged);
    }
    for (app, pods) in &requests.apps {
        let lookup = lookups.entry(app.namespace.clone()).or_default();
        let own = pods.iter().filter(|accused| accused.pod.namespace == app.namespace);
        let pods = own.map(|accused| (accused.pod.pod.clone(), accused.which.clone()));
        lookup.requested.apps.insert(app.clone(), pods.collect());
    }
    lookups
}

/// How long the namespaces have been waiting.
pub(super) fn status(
    lookups: &BTreeMap<Text, NamespaceLookup>,
    namespace_facts: &BTreeMap<Text, NamespaceFacts>,
    is_watched: bool,
    now: Moment,
) -> ClusterFactsStatus {
    let asked = |(namespace, lookup): (&Text, &NamespaceLookup)| {
        lookup.asked(namespace_facts.get(namespace), is_watched)
    };
    let waits: Vec<Duration> = lookups.iter().filter_map(asked).map(|asked| now.since(asked)).collect();
    ClusterFactsStatus {
        is_watched,
        waiting: waits.len(),
        late: waits.iter().filter(|wait| **wait > LATE_AFTER).count(),
        longest_wait: Duration::from_secs(waits.into_iter().max().unwrap_or_default().as_secs()),
        ..ClusterFactsStatus::default()
    }
}

impl ClusterFactsStatus {
    /// All problems, in one text.
    pub(crate) fn problem(&self) -> Option<String> {
        let late = (self.late > 0).then(|| {
            format!(
                "{} namespaces have waited for more than {} to be looked up, the longest for {}: nothing new is blocked in them \
                 meanwhile (kubernetes.requests_per_second)",
                self.late,
                humantime::format_duration(LATE_AFTER),
                humantime::format_duration(self.longest_wait)
            )
        });
        let limited = self.is_limited.then(|| {
            "lists of the whole cluster have read 1 GiB within a minute, which is the limit: the next pages wait".to_owned()
        });
        let all = self.error.iter().chain(&self.too_large).cloned().chain(late).chain(limited);
        let all: Vec<String> = all.collect();
        (!all.is_empty()).then(|| all.join("; "))
    }
}
