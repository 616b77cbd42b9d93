//! Judges the processes of one Pod, within its share of a scan.

use std::collections::HashSet;

use super::{
    Finding, Limits, Omitted, Scanner, Seen,
    names::Owner,
    process::{Process, started},
    turns::Round,
};
use crate::record;

/// The state of a Pod that the next scan continues from.
#[derive(Clone, Debug, Default)]
pub(super) struct Turn {
    /// Where the scan stopped, if the Pod has more than its share.
    round: Round,
    /// The findings so far. Their processes are listed as long as they run, because the aggregator would clear a record that is
    /// missing between two turns of its process.
    findings: Vec<Finding>,
}

/// One scan of one Pod.
pub(super) struct PodScan<'a> {
    scanner: &'a Scanner,
    owner: &'a Owner,
    /// In ascending order.
    pids: &'a [u32],
    /// Bytes that may be read.
    share: u64,
    seen: &'a mut Seen,
    /// Processes that this scan has judged by their whole command lines, for which a rule matched, or that have ended.
    settled: HashSet<u32>,
    omitted: Omitted,
}

impl<'a> PodScan<'a> {
    pub(super) fn new(
        scanner: &'a Scanner,
        owner: &'a Owner,
        pids: &'a [u32],
        share: u64,
        seen: &'a mut Seen,
    ) -> Self {
        Self { scanner, owner, pids, share, seen, settled: HashSet::new(), omitted: Omitted::default() }
    }

    /// Continues where the last scan stopped. Returns how many bytes were read, and the state for the next scan, if it needs one.
    /// The bytes may be a little more than the share.
    ///
    /// If half of the share is enough for the beginnings of all command lines, they are read first. So a short command
    /// line is judged in each scan, for any number of long ones.
    pub(super) fn run(mut self, before: Turn) -> (u64, Option<Turn>) {
        let head = self.scanner.limits.head;
        let of_heads = head.saturating_mul(self.pids.len() as u64);
        let mut round = before.round;
        let used = if of_heads > self.share / 2 {
            self.read_in_turn(self.pids, self.share, false, &mut round)
        } else {
            let long = self.read_heads();
            of_heads + self.read_in_turn(&long, self.share - of_heads, true, &mut round)
        };
        for finding in before.findings {
            let is_here = self.pids.binary_search(&finding.pid).is_ok();
            if is_here && !self.settled.contains(&finding.pid) && self.started(finding.pid) == finding.started
            {
                self.seen.listing.add(finding);
            }
        }
        self.seen.left_out.add(self.owner.tenant(), self.omitted);
        let findings = self.seen.listing.of(self.owner);
        // The next scan may not reach the end, so it needs the findings of this one.
        let is_needed = self.omitted != Omitted::default() || !findings.is_empty();
        (used, is_needed.then_some(Turn { round, findings }))
    }

    /// Judges the processes for which the beginning of the command line is enough. Returns the others.
    fn read_heads(&mut self) -> Vec<u32> {
        let mut long = Vec::new();
        for pid in self.pids {
            match self.read(*pid, self.scanner.limits.head) {
                Some(process) if process.is_whole => self.judge(*pid, &process),
                Some(_) => long.push(*pid),
                None => {}
            }
        }
        long
    }

    /// Judges processes by their whole command lines, each in its turn, until `share` is used up. If the beginnings were read
    /// before (`heads_are_read`), the others are judged by those. `round` goes on to the last one that had its turn.
    fn read_in_turn(&mut self, pids: &[u32], share: u64, heads_are_read: bool, round: &mut Round) -> u64 {
        let Limits { head, cmdline, .. } = self.scanner.limits;
        let most = cmdline.max(head);
        let mut used = 0;
        for (index, (pid, now)) in round.go_on(pids).enumerate() {
            let left = share.saturating_sub(used);
            if left < head && !heads_are_read && index > 0 {
                self.omitted.processes = pids.len() - index;
                break;
            }
            let limit = left.clamp(head, most);
            let Some(process) = self.read(pid, limit) else { continue };
            // A command line may be cut because earlier ones used up the share. Then the next scan reads it first, and reads as
            // much of it as any scan can. That scan judges the process, because a line beyond the share must not hide it.
            let has_had_turn = process.is_whole || limit == most || index == 0;
            // The rest may contain the text that exempts the process.
            if has_had_turn || !self.scanner.rules.exempts_commands() {
                self.judge(pid, &process);
            }
            if limit > head || !heads_are_read {
                used += process.bytes.max(head);
            }
            if !process.is_whole {
                self.omitted.command_lines += 1;
            }
            if has_had_turn {
                *round = now;
            }
        }
        used
    }

    fn read(&mut self, pid: u32, limit: u64) -> Option<Process> {
        let read = Process::read(&self.scanner.directory(pid), limit, &mut self.seen.unseen);
        if read.is_none() {
            // It has ended. Its directory may stay until its parent has waited for it.
            self.settled.insert(pid);
        }
        read
    }

    fn started(&self, pid: u32) -> u64 {
        started(&self.scanner.directory(pid))
    }

    fn judge(&mut self, pid: u32, process: &Process) {
        if process.is_whole {
            self.settled.insert(pid);
        }
        let Some(hit) = self.scanner.rules.judge(&process.names, &process.cmdline) else { return };
        self.settled.insert(pid);
        let Owner::Named { namespace, pod } = self.owner else {
            self.seen.unseen.is_of_unknown_pod(pid);
            return;
        };
        let name = process.names.get(hit.name.unwrap_or(0)).map_or("", String::as_str);
        self.seen.listing.add(Finding {
            namespace: namespace.clone(),
            pod: pod.clone(),
            process: record::cut(name, record::MOST_PROCESS).to_owned(),
            cmdline: record::excerpt(&process.cmdline, hit.at, record::MOST_CMDLINE),
            regex: record::cut(&hit.regex, record::MOST_REGEX).to_owned(),
            pid,
            started: self.started(pid),
        });
    }
}
