//! Days of a cluster with repeated faults of all parts, simulated in seconds.
//!
//! * [`nodes`]: agents that list one of several, stop answering, answer garbage, lie and restart; nodes with two
//!   addresses.
//! * [`tenants`]: the processes that really run, with their Pods.
//! * [`events`]: tenants rename processes, relabel and recreate Pods, share Services, delete Apps and namespaces.
//! * [`services`]: tenants remove selectors or change them, and closed Services stay closed.
//! * [`cluster`]: the API server, with its delays.
//! * [`leaders`]: restarts, other leaders whose clocks differ, writes that fail or are answered too late, restored
//!   backups.
//! * [`operators`]: releases, and approvals of held Apps.
//! * [`graces`]: the graces of which tenants have been notified.
//! * [`laws`]: the laws that must hold. They compare with [`tenants`], and not with the state of the policy.
//!
//! `make soak` runs it for longer. `PROCSCAN_SOAK_SEED` and `PROCSCAN_SOAK_DAYS` repeat a sequence.

mod cluster;
mod events;
mod graces;
mod laws;
mod leaders;
mod nodes;
mod operators;
mod random;
mod services;
mod tenants;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use random::Random;

use self::cluster::Cluster;
use self::events::Event;
use self::leaders::Leaders;
use self::nodes::{Fault, Node};
use self::operators::Operators;
use self::tenants::Tenant;
use crate::common::{HOUR, MINUTE, World};
use jiff::SignedDuration;
use procscan_core::Moment;
use procscan_core::ledger::Detection;
use procscan_core::names::App;
use procscan_core::plan::SharedServices;
use procscan_core::policy::Evaluation;

const NODES: usize = 12;
/// The tenants. The first [`OFFENDERS`] of them offend now and then, and the others never do.
const TENANTS: usize = 30;
const OFFENDERS: usize = 20;
const DAY: u64 = 24 * HOUR;
/// When the simulation begins. Earlier events have a time too, however wrong a wall clock is.
const BEGIN: u64 = 400 * DAY;
/// Violations that one node may have in the ledger: fewer than a flood brings, and more than a process of ever new names.
const MAX_KEYS: usize = 400;
const CLEAR_AFTER: u64 = 30 * MINUTE;
const UNREACHABLE: u64 = 6 * HOUR;
const SAME_INCIDENT: u64 = 6 * HOUR;
/// The age in seconds up to which evidence is a reason for a new block. Another replica may have received older
/// evidence.
const MAX_AGE: u64 = 30 * MINUTE;
/// How far our own wall clock jumps back or ahead at most.
const MOST_BACK: u64 = 3 * HOUR;
/// The resolution of the times of events, in seconds.
const TICK: u64 = 5;

struct Soak {
    seed: u64,
    random: Random,
    world: World,
    nodes: Vec<Node>,
    tenants: Vec<Tenant>,
    /// The planned events, by time.
    coming: BTreeMap<u64, Vec<Event>>,
    cluster: Cluster,
    leaders: Leaders,
    operators: Operators,
    blocked: BTreeSet<App>,
    /// When the tenant of an App was notified of the grace, and when the App offended last since.
    warned: BTreeMap<App, (u64, u64)>,
    flood: u64,
    /// How many Pods there have been.
    pods: u64,
    /// How often each kind of event happened.
    counts: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    rounds: u64,
    restarts: u64,
    /// The restarts after which another replica leads.
    failovers: u64,
    other_clocks: u64,
    jumps: u64,
    faults: u64,
    moves: u64,
    /// The moves in which the new Pod has the name of the old one.
    recreated: u64,
    relabelled: u64,
    shared: u64,
    selectors: u64,
    /// How often a Service was seen closed that selected no running Pod.
    stayed: u64,
    deleted: u64,
    /// Decisions that were persisted although the answer was an error.
    late_answers: u64,
    backups: u64,
    /// Incidents that have ended and were open in a restored backup.
    reopened: u64,
    outages: u64,
    blocks: u64,
    releases: u64,
    /// The approvals by operators, and their other commands.
    approvals: u64,
    commands: u64,
    /// The longest time for which a process offended undisturbed until the block, in seconds.
    late: u64,
    most_violations: usize,
}

impl Soak {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let nodes: Vec<Node> = (0..NODES).map(|number| Node::new(number, &mut random)).collect();
        let rules = Detection {
            clear_after: Duration::from_secs(CLEAR_AFTER),
            unreachable_limit: Duration::from_secs(UNREACHABLE),
            same_incident: Duration::from_secs(SAME_INCIDENT),
            max_keys_per_node: MAX_KEYS,
            ..Detection::default()
        };
        let mut world = World::with(&[], rules);
        let begin = world.now;
        world.now = Moment::new(Duration::from_secs(BEGIN), begin.wall() + Duration::from_secs(BEGIN));
        world.targets = nodes.iter().flat_map(Node::targets).collect();
        world.ledger = world.new_ledger();
        world.policy.verify_pods = true;
        world.policy.same_incident = Duration::from_secs(SAME_INCIDENT);
        world.policy.unreachable_limit = Duration::from_secs(UNREACHABLE);
        world.policy.grace = Duration::from_secs([0, 30 * MINUTE][random.below(2)]);
        world.policy.shared_services =
            [SharedServices::Block, SharedServices::Skip, SharedServices::Hold][random.below(3)];
        // Held Apps wait for operators, and the brakes have tests of their own.
        let brake = &mut world.policy.brake;
        brake.max_new_tenants = 1000;
        brake.max_tenants_per_node = 1000;
        brake.max_apps_per_node = 1000;
        brake.max_tenants_per_rule = 1000;
        brake.max_apps_per_tenant = 1000;
        brake.max_releases = 1000;
        let follower = world.new_ledger();
        world.follower = Some((follower, true));
        let leaders = Leaders::new(&mut random);
        world.follower_ahead = Leaders::difference(&mut random);
        let tenants = (0..TENANTS).map(|_| Tenant::new(&mut random)).collect();
        let mut soak = Self {
            seed,
            random,
            world,
            nodes,
            tenants,
            coming: BTreeMap::new(),
            cluster: Cluster::default(),
            leaders,
            operators: Operators::default(),
            blocked: BTreeSet::new(),
            warned: BTreeMap::new(),
            flood: 0,
            pods: 0,
            counts: Counts::default(),
        };
        (0..TENANTS).for_each(|tenant| soak.settle(tenant));
        soak
    }

    /// In seconds, by a clock that is never set.
    fn now(&self) -> u64 {
        self.world.now.uptime().as_secs()
    }

    fn fail(&self, what: &str) -> ! {
        panic!("seed {}, minute {}: {what}\n{:?}", self.seed, (self.now() - BEGIN) / MINUTE, self.counts)
    }

    /// Simulates a minute.
    fn minute(&mut self, is_quiet: bool) {
        let before = self.world.now;
        self.world.now = Moment::new(
            before.uptime() + Duration::from_secs(MINUTE),
            before.wall() + SignedDuration::from_secs(60),
        );
        if is_quiet {
            self.calm();
        } else {
            self.trouble();
            self.events();
        }
        self.pass(before.uptime().as_secs());
        let (at, follower_at) = (self.world.now, self.world.follower_now());
        if let Some((follower, true)) = &mut self.world.follower {
            follower.advance(follower_at);
        }
        self.world.ledger.advance(at);
        (0..NODES).for_each(|node| self.answer(node));
        self.look();
        self.world.ledger.round_done();
        self.counts.rounds += 1;
        let evaluation = self.world.evaluate();
        self.judge(&evaluation);
        if !is_quiet {
            self.lead();
        }
    }

    /// Runs the events of this minute, which began at `from`, in their order. Agents scan in between.
    fn pass(&mut self, from: u64) {
        let now = self.now();
        while let Some((at, events)) = self.coming.first_key_value().map(|(at, _)| *at).and_then(|at| {
            let is_due = at <= now;
            is_due.then(|| self.coming.remove_entry(&at)).flatten()
        }) {
            self.scan(at.max(from));
            for event in events {
                self.take(event, at);
            }
        }
        self.scan(now);
    }

    /// Makes nodes and the cluster fail.
    fn trouble(&mut self) {
        self.faults();
        let now = self.now();
        if self.random.once_in(500) {
            self.cluster.deaf_until = now + self.random.seconds(MINUTE, 30 * MINUTE);
            self.counts.outages += 1;
        }
        self.trouble_of_leaders();
        self.operate();
    }

    /// Most faults are short.
    fn random_length(&mut self) -> usize {
        match self.random.below(10) {
            0 => 2,
            1 | 2 => 1,
            _ => 0,
        }
    }

    /// From now on no process runs, and no part fails.
    fn calm(&mut self) {
        for tenant in 0..TENANTS {
            self.stop_all(tenant);
        }
        self.coming.retain(|_, events| {
            events.retain(|event| !matches!(event, Event::Start(..)));
            !events.is_empty()
        });
        self.nodes.iter_mut().for_each(|node| node.fault = Fault::None);
        self.cluster.deaf_until = 0;
        self.calm_leaders();
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
    println!("seed {seed}, {days} days: {:?}", soak.counts);
    assert!(soak.counts.blocks > 0 && soak.counts.releases > 0, "nothing has happened");
    assert!(soak.counts.stayed > 0, "nothing without a running Pod has been closed");
}

#[test]
fn days_of_trouble_end_well() {
    if let Some(seed) = number("PROCSCAN_SOAK_SEED") {
        return story(seed, number("PROCSCAN_SOAK_DAYS").unwrap_or(1));
    }
    (1..=3).for_each(|seed| story(seed, 1));
}

/// Run by `make soak`: other sequences each time, for so many seconds, or so many of them.
#[test]
#[ignore = "takes as long as its variables set"]
fn weeks_of_trouble_end_well() {
    let stories = number("PROCSCAN_SOAK_STORIES");
    let seconds = number("PROCSCAN_SOAK_SECONDS").unwrap_or(if stories.is_some() { u64::MAX } else { 60 });
    let days = number("PROCSCAN_SOAK_DAYS").unwrap_or(14);
    let begun = std::time::Instant::now();
    let first = number("PROCSCAN_SOAK_SEED").unwrap_or_else(|| u64::from(std::process::id()) << 16);
    let seeds = (first..).take(stories.map_or(usize::MAX, |stories| usize::try_from(stories).unwrap()));
    for seed in seeds.take_while(|_| begun.elapsed().as_secs() < seconds) {
        // Printed before, so that the seed is known even if the run never ends.
        println!("seed {seed}");
        story(seed, days);
    }
}
