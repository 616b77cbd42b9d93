//! Limits for the violations of all nodes together: their number, and the bytes of their long command lines.
//!
//! Each node has limits of its own ([`super::quota`]). Their sum has no useful bound, so all nodes together have
//! limits too. Beyond them each node still has a reserve, so that floods of other nodes take nothing from a node with
//! few violations.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::Detection;
use super::node::Node;
use crate::names::NodeName;
use crate::report::clip;

/// How many violations a node may have whatever other nodes have, within `max_keys_per_node`. It is more than twice
/// the 110 Pods that Kubernetes recommends at most on a node.
const RESERVED_KEYS: usize = 256;
/// To how many bytes a command line is cut when there is no room for all of it. Command lines of up to so many bytes
/// do not count.
pub(crate) const SHORT_CMDLINE: usize = 256;
/// How many bytes the long command lines of a node may take, whatever those of other nodes take.
const RESERVED_CMDLINE_BYTES: usize = 32 << 10;
/// One node may take one in so many bytes of the budget for command lines.
const NODE_SHARE: usize = 16;

/// The present totals of all nodes.
#[derive(Debug, Default)]
pub(super) struct Totals {
    /// The number of violations, one that several nodes list counted once for each.
    pub(super) keys: usize,
    /// The bytes of their command lines of more than [`SHORT_CMDLINE`] bytes. Command lines that were dropped or
    /// replaced after the last [`Totals::count_cmdlines`] still count.
    cmdline_bytes: usize,
    /// How many command lines were cut since [`super::Ledger::take_cut_cmdlines`] was last called. One that stays cut
    /// counts once.
    pub(super) cut_cmdlines: usize,
}

impl Totals {
    /// How many violations `node` may have at present. Never fewer than it has, unless that is more than one node may
    /// have.
    pub(super) fn limit_of(&self, node: &Node, rules: &Detection) -> usize {
        let free = rules.max_keys.saturating_sub(self.keys);
        let shared = node.evidence.len().saturating_add(free);
        shared.max(RESERVED_KEYS).min(rules.max_keys_per_node)
    }

    /// Notes that a node that had `before` violations has `after`.
    pub(super) fn note(&mut self, before: usize, after: usize) {
        self.keys = (self.keys + after).saturating_sub(before);
    }

    /// Returns a listed command line as it is stored: whole if there is room for it, otherwise cut. Counts a new one.
    /// `known` is the stored one, and `of_node` is [`Node::cmdline_bytes`].
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
        // The bytes of a replaced command line are free only after the round. Otherwise the same answer, applied
        // twice, would have room the second time for a command line that had none the first time.
        let has_room = |taken: usize, most: usize| taken.saturating_add(bytes) <= most;
        let is_shared = has_room(self.cmdline_bytes, rules.cmdline_budget)
            && has_room(*of_node, rules.cmdline_budget / NODE_SHARE);
        if !is_shared && !has_room(*of_node, RESERVED_CMDLINE_BYTES) {
            let cut = clip(seen, SHORT_CMDLINE);
            self.cut_cmdlines += usize::from(known != Some(&*cut));
            return cut;
        }
        *of_node += bytes;
        self.cmdline_bytes += bytes;
        Cow::Borrowed(seen)
    }

    /// Counts the bytes of the command lines again, so that the bytes of dropped and replaced ones are free.
    pub(super) fn count_cmdlines(&mut self, nodes: &mut BTreeMap<NodeName, Box<Node>>) {
        self.cmdline_bytes = 0;
        // A node whose count is zero has no long command line, and most nodes have none.
        for node in nodes.values_mut().filter(|node| node.cmdline_bytes > 0) {
            let lengths = node.evidence.values().map(|evidence| evidence.cmdline().len());
            node.cmdline_bytes = lengths.filter(|bytes| *bytes > SHORT_CMDLINE).sum();
            self.cmdline_bytes += node.cmdline_bytes;
        }
    }
}

#[cfg(test)]
mod tests;
