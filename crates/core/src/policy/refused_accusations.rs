//! Accusations that lead to nothing: in namespaces that may not be touched, and disputed ones. They are counted by node
//! and namespace, and logged once, when they begin.
//!
//! The accusing node chooses all names in them. If each were logged, a node that varies them would push everything else
//! out of the log. So what is remembered is bounded, whatever the names.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use super::cluster_facts::claimed_app;
use super::evaluate::EvaluationContext;
use crate::Moment;
use crate::decision::DecisionKind;
use crate::names::{App, NodeName, Text};
use crate::report::Record;

/// How many namespaces of one node are remembered, and so logged one by one.
const MAX_NAMESPACES: usize = 16;

/// What has been logged, by node.
#[derive(Clone, Debug, Default)]
pub(super) struct LoggedAccusations(BTreeMap<NodeName, Namespaces>);

/// When a node last accused each namespace.
#[derive(Clone, Debug, Default)]
struct Namespaces {
    known: BTreeMap<Text, Moment>,
    /// When it last accused any namespace beyond the limit.
    beyond: Option<Moment>,
}

/// What one node says of one namespace in one evaluation.
struct Accused<'a> {
    first: &'a Record,
    why: Cow<'a, str>,
    count: usize,
}

/// All refused accusations of one evaluation.
#[derive(Default)]
pub(super) struct RefusedAccusations<'a>(BTreeMap<(&'a NodeName, &'a Text), Accused<'a>>);

impl<'a> RefusedAccusations<'a> {
    pub(super) fn count(
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
    /// Logs new accusations as decisions of that `kind`, and forgets those that no node has made for
    /// `policy.same_incident`.
    pub(super) fn log(
        &mut self,
        now: RefusedAccusations<'_>,
        kind: DecisionKind,
        context: &mut EvaluationContext<'_>,
    ) {
        for ((node, namespace), accused) in now.0 {
            let logged = self.0.entry(node.clone()).or_default();
            let (reason, app) = match logged.begins(namespace, context.now) {
                None => continue,
                Some(Begins::Namespace) => (accused.reason(node, namespace), claimed_app(accused.first)),
                Some(Begins::Beyond) => (
                    format!(
                        "node {} {} more than {MAX_NAMESPACES} namespaces{}; no more of them are logged",
                        node.0.escape_debug(),
                        if kind == DecisionKind::Disputed {
                            "makes disputed accusations in"
                        } else {
                            "accuses processes in"
                        },
                        if kind == DecisionKind::Disputed { "" } else { " that may not be touched" },
                    ),
                    claimed_app(accused.first),
                ),
            };
            context.decide(&app, kind, reason);
        }
        self.forget(context.now, context.policy.same_incident);
    }

    fn forget(&mut self, now: Moment, after: Duration) {
        let is_kept = |at: &Moment| now.since(*at) <= after;
        self.0.retain(|_, logged| {
            logged.known.retain(|_, at| is_kept(at));
            logged.beyond = logged.beyond.filter(is_kept);
            !logged.known.is_empty() || logged.beyond.is_some()
        });
    }
}

/// What has begun with an accusation.
enum Begins {
    Namespace,
    Beyond,
}

impl Namespaces {
    /// Notes that a namespace is accused now. Returns what has begun with that.
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
pub(super) fn is_known<T>(incidents: &BTreeMap<App, T>, record: &Record) -> bool {
    incidents.contains_key(&claimed_app(record))
}
