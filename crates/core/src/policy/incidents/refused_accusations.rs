//! Accusations without effect: those in namespaces that may not be blocked, and disputed ones. They are counted by
//! node and namespace, and logged once, when they begin.
//!
//! The accusing node chooses all names in them. If each were logged, a node that varies them would push all other
//! entries out of the log. So the memory for them is bounded, whatever the names.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use crate::Moment;
use crate::decision::DecisionKind;
use crate::names::{App, NodeName, Text};
use crate::policy::cluster_facts::claimed_app;
use crate::report::Record;

/// How many namespaces of one node are remembered and logged one by one.
const MAX_NAMESPACES: usize = 16;

/// The logged accusations, by node.
#[derive(Clone, Debug, Default)]
pub(in crate::policy) struct LoggedAccusations(BTreeMap<NodeName, Namespaces>);

/// When a node last accused each namespace.
#[derive(Clone, Debug, Default)]
struct Namespaces {
    known: BTreeMap<Text, Moment>,
    /// When it last accused any namespace beyond the limit.
    beyond: Option<Moment>,
}

/// The accusations of one namespace by one node in one evaluation.
struct Accused<'a> {
    first: &'a Record,
    why: Cow<'a, str>,
    count: usize,
}

/// The accusations without effect of one evaluation: refused or disputed.
#[derive(Default)]
pub(in crate::policy) struct IneffectiveAccusations<'a>(BTreeMap<(&'a NodeName, &'a Text), Accused<'a>>);

impl<'a> IneffectiveAccusations<'a> {
    pub(in crate::policy) fn count(
        &mut self,
        node: &'a NodeName,
        record: &'a Record,
        why: impl FnOnce() -> Cow<'a, str>,
    ) {
        let new = || Accused { first: record, why: why(), count: 0 };
        self.0.entry((node, &record.key.namespace)).or_insert_with(new).count += 1;
    }
}

impl LoggedAccusations {
    /// Notes the accusations of one evaluation. Returns those that have begun, to be logged as decisions of that
    /// `kind`: the App that each names, and the reason. Forgets those that no node has made for `forget_after`.
    pub(in crate::policy) fn note(
        &mut self,
        accusations: IneffectiveAccusations<'_>,
        kind: DecisionKind,
        now: Moment,
        forget_after: Duration,
    ) -> Vec<(App, String)> {
        let mut begun = Vec::new();
        for ((node, namespace), accused) in accusations.0 {
            let logged = self.0.entry(node.clone()).or_default();
            let reason = match logged.begins(namespace, now) {
                None => continue,
                Some(Begins::Namespace) => accused.reason(node, namespace),
                Some(Begins::Beyond) => reason_beyond(node, kind),
            };
            begun.push((claimed_app(accused.first), reason));
        }
        self.forget(now, forget_after);
        begun
    }

    fn forget(&mut self, now: Moment, after: Duration) {
        let is_recent = |at: &Moment| now.since(*at) <= after;
        self.0.retain(|_, logged| {
            logged.known.retain(|_, at| is_recent(at));
            logged.beyond = logged.beyond.filter(is_recent);
            !logged.known.is_empty() || logged.beyond.is_some()
        });
    }
}

/// Which logged series an accusation begins.
enum Begins {
    Namespace,
    Beyond,
}

impl Namespaces {
    /// Notes that a namespace is accused now. Returns which series has begun with that.
    fn begins(&mut self, namespace: &Text, now: Moment) -> Option<Begins> {
        if let Some(at) = self.known.get_mut(namespace) {
            *at = now;
            return None;
        }
        if self.known.len() < MAX_NAMESPACES {
            self.known.insert(namespace.clone(), now);
            return Some(Begins::Namespace);
        }
        self.beyond.replace(now).is_none().then_some(Begins::Beyond)
    }
}

impl Accused<'_> {
    fn reason(&self, node: &NodeName, namespace: &Text) -> String {
        let key = &self.first.key;
        let others = match self.count - 1 {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        format!(
            "{}: node {} accuses process `{}` of Pod {}{others} in namespace {}",
            self.why,
            node.0.escape_debug(),
            key.process.escape_debug(),
            key.pod.escape_debug(),
            namespace.escape_debug()
        )
    }
}

/// Whether `record` names an App with an incident, whose decisions are logged there.
pub(in crate::policy) fn is_known<T>(incidents: &BTreeMap<App, T>, record: &Record) -> bool {
    incidents.contains_key(&claimed_app(record))
}

/// The reason of the one decision that stands for all further namespaces of a node.
fn reason_beyond(node: &NodeName, kind: DecisionKind) -> String {
    let (accuses, which) = if kind == DecisionKind::Disputed {
        ("makes disputed accusations in", "")
    } else {
        ("accuses processes in", " that may not be touched")
    };
    let node = node.0.escape_debug();
    format!("node {node} {accuses} more than {MAX_NAMESPACES} namespaces{which}; no more of them are logged")
}
