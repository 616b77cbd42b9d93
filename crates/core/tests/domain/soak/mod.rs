//! Days of a cluster in which everything goes wrong again and again, told in seconds: nodes fall silent, answer garbage, lie and
//! restart, Pods move, clocks jump, nothing can be kept or told for a while, and the aggregator restarts in the middle of it.
//!
//! Unlike in the property tests it is known what really runs where, so that what is decided can be held against the truth.
//! `make soak` runs it for longer; `PROCSCAN_SOAK_SEED` and `PROCSCAN_SOAK_DAYS` tell the same story again.

mod laws;
mod random;

use std::collections::BTreeSet;
use std::time::Duration;

use random::Random;

use crate::common::agent::{Process, RealAgent};
use crate::common::{HOUR, MINUTE, World, app, complete, failed, record_of};
use jiff::SignedDuration;
use procscan_core::Moment;
use procscan_core::ledger::Detection;
use procscan_core::names::{App, PodRef};
use procscan_core::policy::{Actor, DecisionKind, Evaluation, PodState, Standing};
use procscan_core::report::{Answer, Failure, FailureReason, Outcome, Record};
use procscan_core::snapshot::Violation;

const NODES: usize = 12;
/// The first ones offend now and then, the others never do.
const TENANTS: usize = 30;
const OFFENDERS: usize = 20;
const DAY: u64 = 24 * HOUR;
/// Violations that one node may have in the ledger: fewer than a flood brings.
const MAX_KEYS: usize = 60;
const CLEAR_AFTER: u64 = 30 * MINUTE;
const UNREACHABLE: u64 = 6 * HOUR;
/// What is older may have been heard before by another replica, in seconds.
const MAX_AGE: i64 = 30 * 60;
/// How old records are by the word of an agent that is wrong about it, in seconds. No multiple of a scan interval, so that none is
/// taken for one that really was found then.
const STALE: i64 = 5 * 3600 + 7;
/// Whose word it is.
const LEADER: usize = 0;
const OTHER: usize = 1;
/// How far our own wall clock jumps back or ahead at most.
const MOST_BACK: u64 = 3 * HOUR;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    Silent,
    Refused,
    /// A part of the list, and then something that is none.
    BrokenOff,
    /// A list of somebody else's Pods.
    Lies,
    /// Ever new Pods that nobody knows.
    Floods,
    /// The list, without the agent's clock.
    NoDate,
    /// What is listed was found hours ago, it says.
    Stale,
}

/// Times are in seconds since the beginning, by a clock that nobody sets.
struct Node {
    name: String,
    /// The real agent, which lists one of several; others list all that they find.
    real: Option<RealAgent>,
    /// It has lied of several at once, and so is taken for one that lists all that it finds.
    has_lied: bool,
    interval: u64,
    next_scan: u64,
    listed: Vec<(usize, String, i64)>,
    skew: i64,
    /// It has accused so many that there may be no room for another.
    is_full: bool,
    fault: Fault,
    ends: u64,
    /// When it was last anything but healthy.
    disturbed: u64,
    /// Whole answers, and when the last one was.
    answered: u64,
    /// When anything of an answer came last.
    last_sign: u64,
}

struct Tenant {
    node: usize,
    generation: u64,
    running_since: Option<u64>,
    pid: u32,
    /// When its last process ended, and on which node.
    ended: Option<(u64, usize)>,
    /// By the leader, and by the other replica.
    heard: [Option<Heard>; 2],
    /// By anybody: the node and its agent's timestamp.
    last_heard: Option<(usize, i64)>,
    /// That was without the agent's clock, so nobody knows how old it was.
    is_dateless: bool,
    /// All that have been heard: what is listed once more is no news.
    all_heard: BTreeSet<(usize, i64)>,
    /// The last that had been heard when it was last released.
    released_after: Option<(usize, i64)>,
    /// When something other than its node last stood in the way of a block.
    disturbed: u64,
    is_gone: bool,
}

/// The last fresh evidence of a tenant's process that has been taken in.
#[derive(Clone, Copy, Debug)]
struct Heard {
    at: u64,
    node: usize,
    /// How many answers the node had given by then.
    answered: u64,
}

struct Soak {
    seed: u64,
    random: Random,
    world: World,
    nodes: Vec<Node>,
    tenants: Vec<Tenant>,
    blocked: BTreeSet<App>,
    mute_until: u64,
    unwritable_until: u64,
    flood: u64,
    /// How often what is told of happened.
    told: Told,
}

#[derive(Debug, Default)]
struct Told {
    rounds: u64,
    restarts: u64,
    jumps: u64,
    faults: u64,
    moves: u64,
    blocks: u64,
    releases: u64,
    /// For how long somebody offended in peace until the block, at most.
    late: u64,
    most_violations: usize,
}

fn namespace(tenant: usize) -> String {
    format!("ns-t{tenant:02}")
}

fn tenant_of(app: &App) -> usize {
    tenant_in(&app.namespace)
}

fn tenant_in(namespace: &str) -> usize {
    namespace.strip_prefix("ns-t").unwrap().parse().unwrap()
}

impl Tenant {
    fn pod(&self) -> String {
        format!("web-{}", self.generation)
    }
}

impl Soak {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let nodes: Vec<Node> = (0..NODES)
            .map(|n| (n, if random.once_in(4) { 1000 } else { random.seconds(MINUTE, 5 * MINUTE) }))
            .collect::<Vec<_>>()
            .into_iter()
            .map(|(n, interval)| Node {
                name: format!("n{n:02}"),
                real: random.once_in(2).then(|| RealAgent::new(interval, 0)),
                has_lied: false,
                interval,
                next_scan: random.seconds(0, 5 * MINUTE),
                listed: Vec::new(),
                skew: if random.once_in(3) {
                    i64::try_from(random.seconds(0, DAY)).unwrap() - 43_200
                } else {
                    0
                },
                is_full: false,
                fault: Fault::None,
                ends: 0,
                disturbed: 0,
                answered: 0,
                last_sign: 0,
            })
            .collect();
        let rules = Detection {
            clear_after: Duration::from_secs(CLEAR_AFTER),
            unreachable_limit: Duration::from_secs(UNREACHABLE),
            max_keys_per_node: MAX_KEYS,
            ..Detection::default()
        };
        let names: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
        let mut world = World::with(&names, rules);
        world.policy.verify_pods = true;
        world.policy.unreachable_limit = Duration::from_secs(UNREACHABLE);
        world.policy.grace = Duration::from_secs([0, 5 * MINUTE][random.below(2)]);
        // What brakes hold waits for people; they have tests of their own.
        let brake = &mut world.policy.brake;
        brake.max_new_tenants = 1000;
        brake.max_tenants_per_node = 1000;
        brake.max_apps_per_node = 1000;
        brake.max_tenants_per_rule = 1000;
        brake.max_releases = 1000;
        let follower = world.new_ledger();
        world.follower = Some((follower, true));
        let tenants = (0..TENANTS)
            .map(|_| Tenant {
                node: random.below(NODES),
                generation: 0,
                running_since: None,
                pid: 0,
                ended: None,
                heard: [None; 2],
                last_heard: None,
                is_dateless: false,
                all_heard: BTreeSet::new(),
                released_after: None,
                disturbed: 0,
                is_gone: false,
            })
            .collect();
        let mut soak = Self {
            seed,
            random,
            world,
            nodes,
            tenants,
            blocked: BTreeSet::new(),
            mute_until: 0,
            unwritable_until: 0,
            flood: 0,
            told: Told::default(),
        };
        (0..TENANTS).for_each(|tenant| soak.place(tenant));
        soak
    }

    fn now(&self) -> u64 {
        self.world.now.uptime().as_secs()
    }

    fn fail(&self, what: &str) -> ! {
        panic!("seed {}, minute {}: {what}\n{:?}", self.seed, self.now() / 60, self.told)
    }

    /// Tells the cluster's truth about a tenant's Pod.
    fn place(&mut self, tenant: usize) {
        let (namespace, it) = (namespace(tenant), &self.tenants[tenant]);
        let node = self.nodes[it.node].name.clone();
        self.world.pod_on(&namespace, &it.pod(), &node, "web");
        if let Some(fact) = self.world.facts.apps.get_mut(&app(&namespace)) {
            fact.gone = it.is_gone;
        }
    }

    fn stop(&mut self, tenant: usize) {
        let now = self.now();
        let it = &mut self.tenants[tenant];
        if it.running_since.take().is_some() {
            it.ended = Some((now, it.node));
        }
    }

    fn remove_pod(&mut self, tenant: usize) {
        self.stop(tenant);
        let (namespace, pod) = (namespace(tenant), self.tenants[tenant].pod());
        self.world.pod_is(&namespace, &pod, PodState::Gone);
        let pod = PodRef { namespace: namespace.as_str().into(), pod: pod.into() };
        let at = self.world.now;
        self.world.ledger.pod_gone(&pod, at);
    }

    /// A minute in which things happen.
    fn minute(&mut self, is_quiet: bool) {
        let now = self.world.now;
        self.world.now = Moment::new(
            now.uptime() + Duration::from_secs(MINUTE),
            now.wall() + SignedDuration::from_secs(60),
        );
        if !is_quiet {
            self.trouble();
        }
        self.processes(is_quiet);
        self.scans();
        let at = self.world.now;
        if let Some((follower, true)) = &mut self.world.follower {
            follower.advance(at);
        }
        self.world.ledger.advance(at);
        (0..NODES).for_each(|node| self.answer(node));
        self.world.ledger.round_done();
        self.told.rounds += 1;
        let evaluation = self.world.evaluate();
        self.judge(&evaluation);
        if !is_quiet && self.random.once_in(90) {
            self.restart();
        }
    }

    fn trouble(&mut self) {
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
                // One floods; what it says of itself is its own trouble.
                let fault = if fault == Fault::Floods && node > 0 { Fault::Lies } else { fault };
                self.nodes[node].fault = fault;
                self.nodes[node].is_full |= fault == Fault::Floods;
                self.nodes[node].ends = ends;
                self.told.faults += 1;
            }
            if self.random.once_in(500) {
                // The agent restarts.
                self.nodes[node].listed.clear();
                self.nodes[node].next_scan = now + self.nodes[node].interval;
                if let Some(real) = &mut self.nodes[node].real {
                    real.restart(now);
                }
                self.nodes[node].disturbed = now;
            }
        }
        if self.random.once_in(300) {
            // Ours jumps; no agent's does.
            let by = i64::try_from(self.random.seconds(0, 2 * MOST_BACK)).unwrap()
                - i64::try_from(MOST_BACK).unwrap();
            let now = self.world.now;
            self.world.now = Moment::new(now.uptime(), now.wall() + SignedDuration::from_secs(by));
            self.told.jumps += 1;
        }
        if self.random.once_in(400) {
            self.mute_until = now + self.random.seconds(MINUTE, 30 * MINUTE);
        }
        if self.random.once_in(400) {
            let unlucky = (0..TENANTS).filter(|tenant| (tenant + self.random.below(2)).is_multiple_of(3));
            self.world.unwritable = unlucky.map(namespace).collect();
            self.unwritable_until = now + self.random.seconds(MINUTE, 30 * MINUTE);
        }
        if self.random.once_in(150)
            && let Some((_, hears)) = &mut self.world.follower
        {
            *hears = !*hears;
        }
    }

    /// Most troubles are short.
    fn random_length(&mut self) -> usize {
        match self.random.below(10) {
            0 => 2,
            1 | 2 => 1,
            _ => 0,
        }
    }

    fn processes(&mut self, is_quiet: bool) {
        let now = self.now();
        for tenant in 0..TENANTS {
            if is_quiet {
                self.stop(tenant);
                continue;
            }
            if self.random.once_in(400) {
                // Its Pod is deleted, and made anew elsewhere.
                self.remove_pod(tenant);
                let node = self.random.below(NODES);
                let it = &mut self.tenants[tenant];
                (it.node, it.generation, it.is_gone) = (node, it.generation + 1, false);
                self.told.moves += 1;
                self.place(tenant);
            } else if self.random.once_in(1500) {
                // The App is deleted.
                self.tenants[tenant].is_gone = true;
                // That is proof, also where the release that follows can't be kept before there is a Pod again.
                self.tenants[tenant].heard = [None; 2];
                self.place(tenant);
                self.remove_pod(tenant);
            }
            if tenant >= OFFENDERS || self.tenants[tenant].is_gone {
                continue;
            }
            let is_running = self.tenants[tenant].running_since.is_some();
            if !is_running && self.random.once_in(120) {
                self.tenants[tenant].running_since = Some(now);
                self.tenants[tenant].pid = u32::try_from(2 + self.random.below(60_000)).unwrap();
            } else if is_running && self.random.once_in(150) {
                self.stop(tenant);
            }
        }
    }

    fn scans(&mut self) {
        let now = self.now();
        for (number, node) in self.nodes.iter_mut().enumerate() {
            if node.ends <= now && node.fault != Fault::None {
                node.fault = Fault::None;
                node.disturbed = now;
            }
            if node.fault != Fault::None {
                node.disturbed = now;
            }
            if let Some(real) = &mut node.real {
                real.processes.clear();
                let running = self.tenants.iter().enumerate();
                for (index, tenant) in running.filter(|(_, tenant)| tenant.node == number) {
                    if tenant.running_since.is_some() {
                        let process = Process { pod: tenant.pod(), ..Process::of(&namespace(index)) };
                        real.run(tenant.pid, process);
                    }
                }
                real.advance(now);
                let listed = real.found().map(|(at, process)| {
                    let tenant = tenant_in(&process.namespace);
                    (tenant, process.pod.clone(), i64::try_from(at).unwrap() + node.skew)
                });
                node.listed = listed.into_iter().collect();
                continue;
            }
            while node.next_scan <= now {
                let scanned = i64::try_from(node.next_scan).unwrap() + node.skew;
                node.next_scan += node.interval;
                let running: Vec<_> = self
                    .tenants
                    .iter()
                    .enumerate()
                    .filter(|(_, tenant)| tenant.node == number && tenant.running_since.is_some())
                    .map(|(index, tenant)| (index, tenant.pod(), scanned))
                    .collect();
                node.listed = running;
            }
        }
    }

    fn answer(&mut self, number: usize) {
        let now = self.now();
        let (name, fault) = (self.nodes[number].name.clone(), self.nodes[number].fault);
        let date = i64::try_from(now).unwrap() + self.nodes[number].skew;
        let record =
            |tenant: usize, pod: &str, stamp: i64| record_of(&namespace(tenant), pod, "xmrig", stamp);
        let mut records: Vec<Record> = self.nodes[number]
            .listed
            .iter()
            .map(|(tenant, pod, stamp)| record(*tenant, pod, *stamp))
            .collect();
        let outcome = match fault {
            Fault::Silent => failed(FailureReason::Timeout),
            Fault::Refused => failed(FailureReason::Refused),
            Fault::BrokenOff => {
                records.truncate(1);
                let answer = Answer { records: records.into_iter().collect(), ..Answer::default() };
                Outcome::Partial(
                    answer,
                    Failure { reason: FailureReason::Malformed, detail: "as told".into() },
                )
            }
            Fault::Lies => {
                let others = self.tenants.iter().enumerate().filter(|(_, tenant)| tenant.node != number);
                records.extend(others.map(|(index, tenant)| record(index, &tenant.pod(), date)));
                complete(records, date)
            }
            Fault::Floods => {
                for _ in 0..20 {
                    self.flood += 1;
                    let victim = self.random.below(TENANTS);
                    records.push(record(victim, &format!("made-up-{}", self.flood), date));
                }
                complete(records, date)
            }
            Fault::NoDate => {
                Outcome::Complete(Answer { records: records.into_iter().collect(), ..Answer::default() })
            }
            Fault::Stale => {
                let old = self.nodes[number].listed.iter();
                complete(old.map(|(tenant, pod, stamp)| record(*tenant, pod, stamp - STALE)).collect(), date)
            }
            Fault::None => complete(records, date),
        };
        if matches!(outcome, Outcome::Complete(_)) {
            self.nodes[number].answered += 1;
        }
        if !matches!(fault, Fault::Silent | Fault::Refused) {
            self.nodes[number].last_sign = now;
        }
        self.nodes[number].has_lied |= matches!(fault, Fault::Lies | Fault::Floods);
        self.world.report(&name, outcome);
        if !matches!(fault, Fault::Silent | Fault::Refused) {
            let is_certain = matches!(fault, Fault::None | Fault::Lies) && !self.nodes[number].is_full;
            self.hear(number, is_certain);
        }
        self.world.is_mute = now < self.mute_until;
        if now >= self.unwritable_until {
            self.world.unwritable.clear();
        }
    }

    fn other_listens(&self) -> bool {
        matches!(self.world.follower, Some((_, true)))
    }

    /// Notes what was certainly fresh in the answer of a node; what may have been believed is heard, but it is no evidence here.
    fn hear(&mut self, number: usize, is_certain: bool) {
        let (at, node) = (self.now(), &self.nodes[number]);
        let listening = if self.other_listens() { OTHER } else { LEADER };
        for (tenant, pod, stamp) in &node.listed {
            let stamp = if node.fault == Fault::Stale { *stamp - STALE } else { *stamp };
            let it = &mut self.tenants[*tenant];
            // Whoever hears it later only may know it from what is kept.
            if it.node != number || *pod != it.pod() || !it.all_heard.insert((number, stamp)) {
                continue;
            }
            it.last_heard = Some((number, stamp));
            it.is_dateless = node.fault == Fault::NoDate;
            let age = i64::try_from(at).unwrap() + node.skew - stamp;
            if !is_certain || age > MAX_AGE {
                continue;
            }
            for replica in LEADER..=listening {
                it.heard[replica] = Some(Heard { at, node: number, answered: node.answered });
            }
        }
    }

    /// Everything is forgotten but what is kept, or another replica goes on.
    fn restart(&mut self) {
        if self.random.once_in(2) {
            self.world.restart();
        } else {
            self.world.fail_over();
            // What it has not heard itself is no evidence to it, but for what is kept.
            for tenant in &mut self.tenants {
                tenant.heard = [tenant.heard[OTHER], None];
            }
        }
        self.told.restarts += 1;
        let evaluation = self.world.evaluate();
        let lost: Vec<_> = self.blocked.difference(&apps(&evaluation)).cloned().collect();
        if !lost.is_empty() {
            self.fail(&format!("released by a restart: {lost:?}"));
        }
        self.judge(&evaluation);
    }
}

fn apps(evaluation: &Evaluation) -> BTreeSet<App> {
    evaluation.plan.blocks.iter().map(|block| block.app.clone()).collect()
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect(variable))
}

fn story(seed: u64, days: u64) {
    let mut soak = Soak::new(seed);
    (0..days * 24 * 60).for_each(|_| soak.minute(false));
    soak.finish();
    println!("seed {seed}, {days} days: {:?}", soak.told);
    assert!(soak.told.blocks > 0 && soak.told.releases > 0, "nothing has happened");
}

#[test]
fn days_of_trouble_end_well() {
    if let Some(seed) = number("PROCSCAN_SOAK_SEED") {
        return story(seed, number("PROCSCAN_SOAK_DAYS").unwrap_or(1));
    }
    (1..=3).for_each(|seed| story(seed, 1));
}

/// Run by `make soak`: another story each time.
#[test]
#[ignore = "takes as long as it is told to"]
fn weeks_of_trouble_end_well() {
    let seconds = number("PROCSCAN_SOAK_SECONDS").unwrap_or(60);
    let days = number("PROCSCAN_SOAK_DAYS").unwrap_or(14);
    let begun = std::time::Instant::now();
    let mut seed = number("PROCSCAN_SOAK_SEED").unwrap_or_else(|| u64::from(std::process::id()) << 16);
    while begun.elapsed() < Duration::from_secs(seconds) {
        // Said before, so that it is known even if it never ends.
        println!("seed {seed}");
        story(seed, days);
        seed += 1;
    }
}
