//! Which violations are asked for, and which part of them.

use procscan_core::names::{Key, NodeName};
use procscan_core::snapshot::{State, Violation};
use regex::{Regex, RegexBuilder};

use super::page::Paging;
use super::problem::Problem;
use super::query::{EXPECTED_LABEL, EXPECTED_TEXT, label, set, text, unknown};

/// The parameters, as they are named in the refusal of another one.
const PARAMETERS: &str = "namespace, name, type, process, node, state, q, limit, cursor";
/// The longest text to look for, in bytes. Names of Pods and of nodes have 253 at most.
const MAX_SOUGHT: usize = 256;

/// The filters of a query. All that are given must hold.
#[derive(Debug, Default)]
pub(super) struct Filter {
    namespace: Option<String>,
    name: Option<String>,
    kind: Option<String>,
    process: Option<String>,
    node: Option<String>,
    state: Option<State>,
    sought: Option<Regex>,
    /// Which page, by the last violation that was shown.
    pub(super) paging: Paging<Key>,
}

impl Filter {
    /// From the parameters of a query.
    pub(super) fn of(query: Vec<(String, String)>) -> Result<Self, Problem> {
        let mut filter = Self::default();
        for (parameter, value) in query {
            let value = value.as_str();
            match parameter.as_str() {
                "namespace" => set(&mut filter.namespace, &parameter, value, EXPECTED_LABEL, label),
                "name" => set(&mut filter.name, &parameter, value, EXPECTED_TEXT, text),
                "type" => set(&mut filter.kind, &parameter, value, EXPECTED_TEXT, text),
                "process" => set(&mut filter.process, &parameter, value, EXPECTED_TEXT, text),
                "node" => set(&mut filter.node, &parameter, value, EXPECTED_TEXT, text),
                "state" => set(&mut filter.state, &parameter, value, "active, unconfirmed or cleared", state),
                "q" => set(&mut filter.sought, &parameter, value, "a text of 1 to 256 bytes", sought),
                name => {
                    let paged = filter.paging.take(name, value);
                    paged.unwrap_or_else(|| Err(unknown(name, value, PARAMETERS)))
                }
            }?;
        }
        Ok(filter)
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

/// A regex, because it compares without regard to case in time that grows with the text only, whatever is sought in it.
fn sought(value: &str) -> Option<Regex> {
    let is_right = (1..=MAX_SOUGHT).contains(&value.len());
    is_right.then(|| RegexBuilder::new(&regex::escape(value)).case_insensitive(true).build().ok())?
}
