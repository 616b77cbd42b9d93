//! Shares the bytes that a scan may read among the tenants of a node.
//!
//! Reading a command line and judging it takes time, and a tenant may have any number of processes with command lines of
//! megabytes. So a scan reads a limited number of bytes. Each namespace gets the same part of them, and in it each Pod.
//! An unused part goes to the others. If a Pod has more than its share, the next scan continues where this one
//! stopped, so that each process has its turn.

use std::collections::HashMap;

use super::names::Owner;

/// The most that a scan reads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Bytes of command lines in a scan.
    pub(crate) scan: u64,
    /// Bytes of one command line. The kernel starts no program with more than 6 MiB of arguments.
    pub(crate) cmdline: u64,
    /// Bytes of each command line that are read before any is read further. Each process counts as at least that many, because
    /// other files of it are read too.
    pub(crate) head: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { scan: 64 << 20, cmdline: 8 << 20, head: 4 << 10 }
    }
}

/// For each namespace its Pods, with their process IDs in ascending order.
pub(super) type Tenants = HashMap<String, HashMap<Owner, Vec<u32>>>;

/// Where the processes of a Pod are in their round. New processes wait for the next round: a tenant may start more of them
/// between two scans than one scan reads, and the round would never come back to the old ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Round {
    /// The last process that had its turn.
    last: u32,
    /// The last process of this round.
    until: u32,
}

impl Round {
    /// `ids`, which are in ascending order, in the order of their turns: the rest of this round, and then the next one, which
    /// begins with the lowest. Each with where the round is after it.
    pub(super) fn go_on(self, ids: &[u32]) -> impl Iterator<Item = (u32, Self)> {
        let behind = |id: u32| ids.partition_point(move |other| *other <= id);
        let (last, until) = (behind(self.last), behind(self.until));
        let (before, rest) = ids.split_at(last);
        let (rest, new) = rest.split_at(until.saturating_sub(last));
        let next = ids.last().copied().unwrap_or_default();
        let at = |until: u32| move |id: &u32| (*id, Self { last: *id, until });
        rest.iter().map(at(self.until)).chain(before.iter().chain(new).map(at(next)))
    }
}

/// Calls `read` for each Pod with the number of bytes that it may read. `read` returns the number of bytes that it has read, which
/// may be a few more.
pub(super) fn share(tenants: Tenants, bytes: u64, mut read: impl FnMut(Owner, &[u32], u64) -> u64) {
    let mut left = bytes;
    // Namespaces with few processes come first: the bytes that they leave are for those with many.
    let mut tenants: Vec<(usize, HashMap<Owner, Vec<u32>>)> =
        tenants.into_values().map(|pods| (pods.values().map(Vec::len).sum(), pods)).collect();
    tenants.sort_unstable_by_key(|(processes, _)| *processes);
    let mut waiting = tenants.len() as u64;
    for (_, pods) in tenants {
        let share = left / waiting.max(1);
        let mut left_of_share = share;
        let mut pods: Vec<(Owner, Vec<u32>)> = pods.into_iter().collect();
        pods.sort_unstable_by(|(a, of_a), (b, of_b)| of_a.len().cmp(&of_b.len()).then_with(|| a.cmp(b)));
        let mut waiting_pods = pods.len() as u64;
        for (pod, processes) in pods {
            let used = read(pod, &processes, left_of_share / waiting_pods.max(1));
            left_of_share = left_of_share.saturating_sub(used);
            waiting_pods -= 1;
        }
        left = left.saturating_sub(share - left_of_share);
        waiting -= 1;
    }
}
