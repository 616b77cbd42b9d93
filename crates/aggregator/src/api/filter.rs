//! Which violations are asked for, and which part of them.

use procscan_core::names::NodeName;
use procscan_core::snapshot::{State, Violation};
use regex::Regex;

use super::parameters::{CURSOR, Given, LIMIT, NAMESPACE, Order, Parameter, name, sort, sought, text};
use super::problem::Problem;
use super::sort::{Paging, Place, SortValue};

/// The parameters of the list of violations.
pub(super) const PARAMETERS: &[Parameter] = &[
    NAMESPACE,
    text("name", "Only violations of Apps with this name, as the agents give it."),
    text("type", "Only violations of Apps of this type, as the agents give it."),
    text("process", "Only violations by processes of this name."),
    text("node", "Only violations of which this node has given evidence."),
    name("state", &["active", "unconfirmed", "cleared"], "Only violations in this state."),
    sought(
        "Only violations with this text in the namespace, the Pod, the process, the rule or a node, in upper or lower case.",
    ),
    sort(&["key", "first_seen", "last_seen"]),
    LIMIT,
    CURSOR,
];
/// The order of a list without a `sort`: by namespace, Pod and process.
const BY_KEY: Order = Order::of("key", false);

/// The filters of a query. All that are given must hold.
#[derive(Debug)]
pub(super) struct Filter {
    namespace: Option<String>,
    name: Option<String>,
    kind: Option<String>,
    process: Option<String>,
    node: Option<String>,
    state: Option<State>,
    sought: Option<Regex>,
    /// Which page.
    pub(super) paging: Paging,
}

impl Filter {
    pub(super) fn of(given: &Given) -> Result<Self, Problem> {
        Ok(Self {
            namespace: given.text("namespace"),
            name: given.text("name"),
            kind: given.text("type"),
            process: given.text("process"),
            node: given.text("node"),
            state: given.name("state").and_then(state),
            sought: given.sought(),
            paging: Paging::of(given, BY_KEY)?,
        })
    }

    /// Whether the list has the order of the snapshot.
    pub(super) fn is_by_key(&self) -> bool {
        self.paging.order == BY_KEY
    }

    /// The place of a violation in the list.
    pub(super) fn place(&self, violation: &Violation) -> Place {
        let key = &violation.key;
        let key = [&key.namespace, &key.pod, &key.process].map(SortValue::from);
        let value = match self.paging.order.by {
            "first_seen" => Some(violation.first_seen().into()),
            "last_seen" => Some(violation.last_seen().into()),
            _ => None,
        };
        Place(value.into_iter().chain(key).collect())
    }

    /// Whether a violation is asked for. Called for each one, so it allocates nothing.
    pub(super) fn wants(&self, violation: &Violation) -> bool {
        let (key, record) = (&violation.key, violation.record());
        let mut nodes = violation.evidence().map(|evidence| &evidence.node);
        let is = |wanted: &Option<String>, text: &str| wanted.as_ref().is_none_or(|wanted| wanted == text);
        is(&self.namespace, &key.namespace)
            && is(&self.name, &record.name)
            && is(&self.kind, &record.kind)
            && is(&self.process, &key.process)
            && self.state.is_none_or(|wanted| wanted == violation.state)
            && self.node.as_ref().is_none_or(|wanted| nodes.clone().any(|NodeName(node)| **wanted == **node))
            && self.sought.as_ref().is_none_or(|sought| {
                [&key.namespace, &key.pod, &key.process, record.rule()]
                    .into_iter()
                    .any(|text| sought.is_match(text))
                    || nodes.any(|NodeName(node)| sought.is_match(node))
            })
    }
}

fn state(value: &str) -> Option<State> {
    match value {
        "active" => Some(State::Active),
        "unconfirmed" => Some(State::Unconfirmed),
        "cleared" => Some(State::Cleared),
        _ => None,
    }
}
