//! What the violations of all nodes together may take here.
//!
//! The limits of one node ([`super::room`]) say what a node that floods may cost. Many that flood at once must not take memory without
//! bound either. So all nodes together have a limit, and beyond it each node still has a reserve. A node with few violations loses
//! nothing by the floods of others: with as many Pods as Kubernetes recommends, each Pod keeps a violation.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::Detection;
use super::node::Node;
use crate::names::NodeName;
use crate::report::clip;

/// How many violations a node may have whatever the others have, if `max_keys_per_node` allows it: more than the 110 Pods of a node
/// that Kubernetes recommends as the most.
const KEYS_OF_ANY_NODE: usize = 128;
/// The bytes to which a command line is cut when there is no room for all of it. One that is no longer counts in no limit.
const SHORT_CMDLINE: usize = 256;
/// The bytes that the longer command lines of a node may take, whatever the others take.
const CMDLINES_OF_ANY_NODE: usize = 32 << 10;

/// What all nodes together have.
#[derive(Debug, Default)]
pub(super) struct Totals {
    /// How many violations.
    pub(super) keys: usize,
    /// The bytes of their command lines that are longer than [`SHORT_CMDLINE`]. Those that were dropped since they were last counted are
    /// included.
    cmdlines: usize,
}

impl Totals {
    /// How many violations `node` may have at present. Never fewer than it has, unless that is more than one node may have.
    pub(super) fn limit_of(&self, node: &Node, rules: &Detection) -> usize {
        let free = rules.max_keys.saturating_sub(self.keys);
        let shared = node.evidence.len().saturating_add(free);
        shared.max(KEYS_OF_ANY_NODE).min(rules.max_keys_per_node)
    }

    /// Notes that a node that had `before` violations has `after`.
    pub(super) fn note(&mut self, before: usize, after: usize) {
        self.keys = (self.keys + after).saturating_sub(before);
    }

    /// The command line as it is to be held: whole if there is room for it. `known` is how it is held already, and `of_node` is
    /// [`Node::cmdlines`].
    pub(super) fn cmdline<'a>(
        &mut self,
        of_node: &mut usize,
        seen: &'a str,
        known: Option<&str>,
        rules: &Detection,
    ) -> Cow<'a, str> {
        let bytes = seen.len();
        if bytes <= SHORT_CMDLINE || known == Some(seen) {
            return Cow::Borrowed(seen);
        }
        if of_node.saturating_add(bytes) > CMDLINES_OF_ANY_NODE
            && self.cmdlines.saturating_add(bytes) > rules.max_cmdlines
        {
            return clip(seen, SHORT_CMDLINE);
        }
        *of_node += bytes;
        self.cmdlines += bytes;
        Cow::Borrowed(seen)
    }

    /// Counts the command lines anew.
    pub(super) fn count_cmdlines(&mut self, nodes: &mut BTreeMap<NodeName, Box<Node>>) {
        self.cmdlines = 0;
        // Few have one.
        for node in nodes.values_mut().filter(|node| node.cmdlines > 0) {
            let lengths = node.evidence.values().map(|evidence| evidence.cmdline().len());
            node.cmdlines = lengths.filter(|bytes| *bytes > SHORT_CMDLINE).sum();
            self.cmdlines += node.cmdlines;
        }
    }
}

#[cfg(test)]
mod tests;
