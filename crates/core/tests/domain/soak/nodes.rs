//! Nodes and their agents: their lists, and their answers.

use procscan_core::names::NodeName;
use procscan_core::report::{Answer, Failure, FailureReason, Outcome, Record, Target};

use super::random::Random;
use super::tenants::{Pod, Reported, Running, Tenant, namespace, tenant_in};
use super::{BEGIN, DAY, MAX_AGE, MINUTE, NODES, Soak, TENANTS};
use crate::common::agent::{Process, RealAgent};
use crate::common::{HOUR, complete, failed, record_of, target};

/// How old records are by an agent whose ages are wrong, in seconds. It is no multiple of a scan interval, so that no
/// record looks like one that really was found then.
const STALE: i64 = 5 * 3600 + 7;
/// The replicas, as indexes of [`super::tenants::Pod::reported`].
pub(super) const LEADER: usize = 0;
pub(super) const OTHER: usize = 1;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fault {
    None,
    Silent,
    Refused,
    /// A part of the list, and then an invalid part.
    BrokenOff,
    /// A list of other nodes' Pods.
    Lies,
    /// Pods that do not exist, others each time.
    Floods,
    /// The list, without the agent's clock.
    NoDate,
    /// The list, with ages of hours.
    Stale,
}

impl Fault {
    fn is_silence(self) -> bool {
        matches!(self, Self::Silent | Self::Refused)
    }
}

/// A result in a node's list: the tenant, the Pod, the process, and when it was found, by a right clock.
#[derive(Clone, Debug)]
pub(super) struct Listed {
    pub(super) tenant: usize,
    pub(super) pod: usize,
    process: String,
    pub(super) found: u64,
}

/// Times are in seconds, by a clock that is never set.
pub(super) struct Node {
    pub(super) name: String,
    /// The real agent, which lists one of several; others list all that they find.
    real: Option<RealAgent>,
    /// It has lied about several at once, so it counts as an agent that lists all that it finds.
    pub(super) has_lied: bool,
    pub(super) interval: u64,
    next_scan: u64,
    pub(super) listed: Vec<Listed>,
    /// How far its clock is ahead.
    skew: i64,
    /// Set if it has two addresses. Its agent listens at one of them, or at both.
    addresses: Option<Listens>,
    /// It has accused so many Pods that there may be no room for another.
    pub(super) is_full: bool,
    pub(super) fault: Fault,
    pub(super) ends: u64,
    /// When it was last anything but healthy.
    pub(super) disturbed: u64,
    /// Whole answers.
    pub(super) answered: u64,
    /// When the last sign of an answer came.
    pub(super) last_sign: u64,
}

#[derive(Clone, Copy, Debug)]
enum Listens {
    At(usize),
    AtBoth,
}

impl Node {
    pub(super) fn new(number: usize, random: &mut Random) -> Self {
        let interval = if random.once_in(4) { 1000 } else { random.seconds(MINUTE, 5 * MINUTE) };
        let skew = random.once_in(3).then(|| i64::try_from(random.seconds(0, DAY)).unwrap() - 43_200);
        Self {
            name: format!("n{number:02}"),
            real: random.once_in(2).then(|| RealAgent::new(interval, BEGIN)),
            has_lied: false,
            interval,
            next_scan: BEGIN + random.seconds(0, 5 * MINUTE),
            listed: Vec::new(),
            skew: skew.unwrap_or_default(),
            addresses: match random.below(6) {
                0 | 1 => Some(Listens::At(random.below(2))),
                2 => Some(Listens::AtBoth),
                _ => None,
            },
            is_full: false,
            fault: Fault::None,
            ends: 0,
            disturbed: BEGIN,
            answered: 0,
            last_sign: BEGIN,
        }
    }

    pub(super) fn targets(&self) -> Vec<Target> {
        let second = Target {
            address: format!("[fd00::{}]:9090", self.name).into(),
            node: NodeName::new(self.name.as_str()),
        };
        std::iter::once(target(&self.name)).chain(self.addresses.map(|_| second)).collect()
    }

    /// The agent restarts: its list is in memory only.
    pub(super) fn restart(&mut self, now: u64) {
        self.listed.clear();
        self.next_scan = now + self.interval;
        if let Some(real) = &mut self.real {
            real.restart(now);
        }
    }

    fn is_due(&self, at: u64) -> bool {
        self.real.as_ref().map_or(self.next_scan <= at, |real| real.is_due(at))
    }

    /// Whether its agent lists one of several.
    pub(super) fn is_real(&self) -> bool {
        self.real.is_some()
    }
}

impl Soak {
    /// Makes nodes fail in this minute.
    pub(super) fn faults(&mut self) {
        let now = self.now();
        for node in 0..NODES {
            let most = [10 * MINUTE, 2 * HOUR, 8 * HOUR][self.random_length()];
            let ends = now + self.random.seconds(MINUTE, most);
            if self.random.once_in(200) {
                let faults = [
                    Fault::Silent,
                    Fault::Refused,
                    Fault::BrokenOff,
                    Fault::Lies,
                    Fault::Floods,
                    Fault::NoDate,
                    Fault::Stale,
                ];
                let fault = faults[self.random.below(faults.len())];
                // Only one node floods. Its accusations of its own Pods affect only itself.
                let fault = if fault == Fault::Floods && node > 0 { Fault::Lies } else { fault };
                self.nodes[node].fault = fault;
                self.nodes[node].is_full |= fault == Fault::Floods;
                self.nodes[node].ends = ends;
                self.counts.faults += 1;
            }
            if self.random.once_in(500) {
                self.nodes[node].restart(now);
                self.nodes[node].disturbed = now;
                // Perhaps it listens at the other address from now on.
                let other = Listens::At(self.random.below(2));
                self.nodes[node].addresses = self.nodes[node].addresses.map(|_| other);
            }
        }
        for node in &mut self.nodes {
            if node.ends <= now && node.fault != Fault::None {
                node.fault = Fault::None;
                node.disturbed = now;
            }
            if node.fault != Fault::None {
                node.disturbed = now;
            }
        }
    }

    /// Every agent scans until `at`, with the processes that run now.
    pub(super) fn scan(&mut self, at: u64) {
        for number in 0..NODES {
            if !self.nodes[number].is_due(at) {
                continue;
            }
            let all = self.tenants.iter().enumerate();
            let running = all
                .flat_map(|(tenant, it)| it.running().map(move |(pod, running)| (tenant, it, pod, running)));
            let here = running.filter(|(_, _, pod, _)| pod.node == number);
            let node = &mut self.nodes[number];
            let listed: Vec<Listed> = if let Some(real) = &mut node.real {
                real.processes.clear();
                for (tenant, it, pod, running) in here {
                    let process = Process {
                        pod: pod.name.clone(),
                        name: it.process_name(at),
                        is_slow: running.is_slow,
                        ..Process::of(&namespace(tenant))
                    };
                    real.run(running.pid, process);
                }
                real.advance(at);
                let found = real.found().map(|(found, process)| {
                    let tenant = tenant_in(&process.namespace);
                    let pod = self.tenants[tenant].pod_of(&process.pod, found);
                    Listed { tenant, pod, process: process.name.clone(), found }
                });
                found.into_iter().collect()
            } else {
                // Nothing has changed since the scans before the last one.
                let missed = (at - node.next_scan) / node.interval;
                let found = node.next_scan + missed * node.interval;
                node.next_scan = found + node.interval;
                let found_in = |(tenant, it, pod, _): (usize, &Tenant, &Pod, &Running)| {
                    let (pod, process) = (it.pod_of(&pod.name, found), it.process_name(found));
                    Listed { tenant, pod, process, found }
                };
                here.map(found_in).collect()
            };
            for listed in &listed {
                let pod = &mut self.tenants[listed.tenant].pods[listed.pod];
                pod.last_found = pod.last_found.max(Some(listed.found));
            }
            node.listed = listed;
        }
    }

    /// Asks a node and applies its answer.
    pub(super) fn answer(&mut self, number: usize) {
        let now = self.now();
        let fault = self.nodes[number].fault;
        let outcome = self.outcome(number);
        let node = &mut self.nodes[number];
        if matches!(outcome, Outcome::Complete(_)) {
            node.answered += 1;
        }
        if !fault.is_silence() {
            node.last_sign = now;
        }
        node.has_lied |= matches!(fault, Fault::Lies | Fault::Floods);
        let targets = node.targets();
        let addresses = node.addresses;
        let is_first = self.random.once_in(2);
        let mut reports: Vec<(Target, Outcome)> = (0..)
            .zip(targets)
            .map(|(place, target)| match addresses {
                // Nothing listens there.
                Some(Listens::At(other)) if other != place => (target, failed(FailureReason::Refused)),
                _ => (target, outcome.clone()),
            })
            .collect();
        if is_first {
            reports.reverse();
        }
        for (target, outcome) in reports {
            self.world.report_at(target, outcome);
        }
        if !fault.is_silence() {
            let is_certain = matches!(fault, Fault::None | Fault::Lies) && !self.nodes[number].is_full;
            self.note_reports(number, is_certain);
        }
    }

    fn outcome(&mut self, number: usize) -> Outcome {
        let skew = self.nodes[number].skew;
        let date = i64::try_from(self.now()).unwrap() + skew;
        let mut flood = Vec::new();
        if self.nodes[number].fault == Fault::Floods {
            for _ in 0..20 {
                self.flood += 1;
                let victim = self.random.below(TENANTS);
                flood.push(record_of(&namespace(victim), &format!("made-up-{}", self.flood), "xmrig", date));
            }
        }
        let node = &self.nodes[number];
        let record = |it: &Listed, ago: i64| {
            let stamp = i64::try_from(it.found).unwrap() + skew - ago;
            let pod = &self.tenants[it.tenant].pods[it.pod].name;
            record_of(&namespace(it.tenant), pod, &it.process, stamp)
        };
        let list = |ago: i64| -> Vec<Record> { node.listed.iter().map(|it| record(it, ago)).collect() };
        match node.fault {
            Fault::Silent => failed(FailureReason::Timeout),
            Fault::Refused => failed(FailureReason::Refused),
            Fault::BrokenOff => {
                let records = list(0).into_iter().take(1).collect();
                let failure = Failure { reason: FailureReason::Malformed, detail: "by the test".into() };
                Outcome::Partial(Answer { records, ..Answer::default() }, failure)
            }
            Fault::Lies => {
                let all = self.tenants.iter().enumerate();
                let pods = all.flat_map(|(tenant, it)| it.living().map(move |pod| (tenant, pod)));
                let others = pods.filter(|(_, pod)| pod.node != number);
                let lies =
                    others.map(|(tenant, pod)| record_of(&namespace(tenant), &pod.name, "xmrig", date));
                let lies: Vec<Record> = lies.collect();
                complete(list(0).into_iter().chain(lies).collect(), date)
            }
            Fault::Floods => complete(list(0).into_iter().chain(flood).collect(), date),
            Fault::NoDate => {
                Outcome::Complete(Answer { records: list(0).into_iter().collect(), ..Answer::default() })
            }
            Fault::Stale => complete(list(STALE), date),
            Fault::None => complete(list(0), date),
        }
    }

    fn other_listens(&self) -> bool {
        matches!(self.world.follower, Some((_, true)))
    }

    /// Notes which records were certainly fresh in the answer of a node. Other records may have been believed, but are
    /// no evidence here.
    fn note_reports(&mut self, number: usize, is_certain: bool) {
        let (at, node) = (self.now(), &self.nodes[number]);
        let is_deaf = at < self.cluster.deaf_until;
        let listening = if self.other_listens() { OTHER } else { LEADER };
        for listed in &node.listed {
            let ago = if node.fault == Fault::Stale { STALE } else { 0 };
            let stamp = i64::try_from(listed.found).unwrap() - ago;
            let pod = &mut self.tenants[listed.tenant].pods[listed.pod];
            // A replica that receives the record only later may know it from the persisted state.
            let is_new = pod.reported_all.insert((listed.process.clone(), stamp));
            if !pod.is_alive() || !is_new {
                continue;
            }
            pod.is_dateless = matches!(node.fault, Fault::NoDate | Fault::BrokenOff);
            pod.is_unjudged = is_deaf;
            let age = i64::try_from(at).unwrap() - stamp;
            if !is_certain || age > i64::try_from(MAX_AGE).unwrap() {
                continue;
            }
            pod.accused_at = Some(at);
            if is_deaf {
                continue;
            }
            for replica in LEADER..=listening {
                pod.reported[replica] = Some(Reported { at, answered: node.answered });
            }
        }
    }
}
