//! What is asked of each namespace, and which of its accusations have not been judged yet. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use procscan_core::Moment;
use procscan_core::names::{NodeName, Text};
use procscan_core::policy::{Accusers, Questions};

use super::room::{Room, Wanted};

/// How long an accusation may wait for the look that judges it. Whatever waits longer is said: in the log, and in `/readyz`.
pub(super) const LATE: Duration = Duration::from_mins(2);

/// What is asked of one namespace.
#[derive(Debug, Default)]
pub(super) struct Inquiry {
    /// What has to be known.
    pub(super) wanted: Wanted,
    /// The accused Pods that have not been judged since they were accused.
    pub(super) unjudged: BTreeMap<Text, Unjudged>,
}

/// An accused Pod of which what is known is older than an accusation.
#[derive(Clone, Debug)]
pub(super) struct Unjudged {
    /// When the first accusation came that is not judged. Later ones are judged by the same look, and do not begin the wait anew.
    first: Moment,
    /// When it was asked first. Evidence may be much older than the question: after a restart, for example.
    asked: Moment,
    accusers: Accusers,
}

/// How the looking up goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EvidenceStatus {
    /// Why the cluster can't be asked, if so.
    pub error: Option<String>,
    /// What is wrong with one of the namespaces that hold too much to be looked at, if there are any.
    pub too_large: Option<String>,
    /// How many namespaces have an accusation that is not judged yet.
    pub waiting: usize,
    /// How many of them have had one for longer than they should.
    pub late: usize,
    /// How long the one has waited that waits longest.
    pub longest_wait: Duration,
}

impl Inquiry {
    /// Since when it waits, if it does: the first accusation in it that is not judged.
    pub(super) fn since(&self) -> Option<Moment> {
        self.unjudged.values().map(|pod| pod.first).min()
    }

    /// Since when it has been asked without an answer.
    fn asked(&self) -> Option<Moment> {
        self.unjudged.values().map(|pod| pod.asked).min()
    }

    /// The nodes whose accusations are not judged.
    pub(super) fn nodes(&self, room: Option<&Room>) -> BTreeSet<&NodeName> {
        let mut nodes = BTreeSet::new();
        for (pod, unjudged) in &self.unjudged {
            let known = room.and_then(|room| room.pods.get(pod)).map(|fact| fact.asked.uptime());
            let is_judged = |since: &Moment| known.is_some_and(|at| at >= since.uptime());
            let waiting = unjudged.accusers.nodes.iter().filter(|(_, since)| !is_judged(since));
            nodes.extend(waiting.map(|(node, _)| node));
        }
        nodes
    }

    /// Forgets what has been judged by what is known now.
    pub(super) fn judge(&mut self, room: &Room, now: Moment) {
        self.unjudged.retain(|pod, unjudged| {
            let Some(fact) = room.pods.get(pod) else { return true };
            let known = fact.asked.uptime();
            if known >= unjudged.first.uptime() {
                // What came after the look began waits for the next.
                (unjudged.first, unjudged.asked) = (unjudged.accusers.since, now);
            }
            known < unjudged.accusers.since.uptime()
        });
    }
}

/// What is asked now, by namespace. What waited before waits on.
pub(super) fn inquiries(
    questions: &Questions,
    rooms: &BTreeMap<Text, Room>,
    before: &BTreeMap<Text, Inquiry>,
    now: Moment,
) -> BTreeMap<Text, Inquiry> {
    let mut inquiries: BTreeMap<Text, Inquiry> = BTreeMap::new();
    for (pod, accusers) in &questions.pods {
        let inquiry = inquiries.entry(pod.namespace.clone()).or_default();
        inquiry.wanted.pods.insert(pod.pod.clone());
        let known = rooms.get(&pod.namespace).and_then(|room| room.pods.get(&pod.pod));
        let known = known.map(|fact| fact.asked.uptime());
        if known.is_some_and(|at| at >= accusers.since.uptime()) {
            continue;
        }
        let waited = before.get(&pod.namespace).and_then(|inquiry| inquiry.unjudged.get(&pod.pod));
        let waited = waited.filter(|waited| known.is_none_or(|at| at < waited.first.uptime()));
        let (first, asked) = waited.map_or((accusers.since, now), |waited| (waited.first, waited.asked));
        inquiry.unjudged.insert(pod.pod.clone(), Unjudged { first, asked, accusers: accusers.clone() });
    }
    for (app, pods) in &questions.apps {
        let inquiry = inquiries.entry(app.namespace.clone()).or_default();
        let own = pods.iter().filter(|accused| accused.pod.namespace == app.namespace);
        let pods = own.map(|accused| (accused.pod.pod.clone(), accused.which.clone()));
        inquiry.wanted.apps.insert(app.clone(), pods.collect());
    }
    inquiries
}

/// How long the namespaces wait.
pub(super) fn status(
    inquiries: &BTreeMap<Text, Inquiry>,
    error: Option<String>,
    now: Moment,
) -> EvidenceStatus {
    let waits: Vec<Duration> =
        inquiries.values().filter_map(Inquiry::asked).map(|asked| now.since(asked)).collect();
    EvidenceStatus {
        error,
        too_large: None,
        waiting: waits.len(),
        late: waits.iter().filter(|wait| **wait > LATE).count(),
        longest_wait: Duration::from_secs(waits.into_iter().max().unwrap_or_default().as_secs()),
    }
}

impl EvidenceStatus {
    /// Everything that is wrong, for people.
    pub fn trouble(&self) -> Option<String> {
        let late = (self.late > 0).then(|| {
            format!(
                "{} namespaces have waited for more than {} to be looked at, the longest for {}: nothing new is blocked in them \
                 meanwhile (kubernetes.requests_per_second)",
                self.late,
                humantime::format_duration(LATE),
                humantime::format_duration(self.longest_wait)
            )
        });
        let all: Vec<String> = self.error.iter().chain(&self.too_large).cloned().chain(late).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }
}
