//! A rule that matches everything on the whole fleet, and a node that lies about all its Pods: for hours, and over
//! restarts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::common::{HOUR, MINUTE, World, record_of};
use procscan_core::decision::{Decision, DecisionKind};
use procscan_core::names::App;
use procscan_core::plan::NoticePhase;
use procscan_core::policy::{Alert, Brake, ClusterFacts, Evaluation, IncidentCommand};
use procscan_core::report::Record;

/// How many hours nothing may change.
const HOURS: u64 = 6;

/// A Pod as its node runs it.
struct Pod {
    namespace: String,
    name: String,
    app: String,
}

impl Pod {
    fn new(namespace: String, app: String, node: &str) -> Self {
        Self { name: format!("{app}-{node}"), namespace, app }
    }

    fn app(&self) -> App {
        App::new(self.namespace.as_str(), "app", self.app.as_str())
    }

    fn accused(&self, process: &str, rule: &str, now: i64) -> Record {
        let mut record = record_of(&self.namespace, &self.name, process, now);
        Arc::make_mut(&mut record.claim).regex = rule.into();
        record
    }
}

/// The world with its decisions.
struct Story {
    world: World,
    /// The cluster facts. The world forgets them with each restart.
    facts: ClusterFacts,
    decisions: Vec<Decision>,
    alerts: Vec<Alert>,
}

/// The blocked, notified and held Apps. They stay the same as long as nothing happens.
#[derive(Debug, PartialEq)]
struct Effects {
    blocked: BTreeSet<App>,
    notified: BTreeSet<App>,
    held: BTreeSet<App>,
}

impl From<&Evaluation> for Effects {
    fn from(evaluation: &Evaluation) -> Self {
        let notified = evaluation.plan.notices.iter().filter(|notice| notice.phase != NoticePhase::Recovered);
        Self {
            blocked: evaluation.plan.blocks.iter().map(|block| block.app.clone()).collect(),
            notified: notified.map(|notice| notice.app.clone()).collect(),
            held: evaluation.held.iter().map(|held| held.app.clone()).collect(),
        }
    }
}

impl Story {
    fn new<'a>(nodes: &[String], pods: impl IntoIterator<Item = (&'a str, &'a Pod)>) -> Self {
        let mut world = World::new(&nodes.iter().map(String::as_str).collect::<Vec<_>>());
        world.policy.verify_pods = true;
        for (node, pod) in pods {
            world.pod_on(&pod.namespace, &pod.name, node, &pod.app);
        }
        let facts = world.facts.clone();
        Self { world, facts, decisions: Vec::new(), alerts: Vec::new() }
    }

    fn evaluate(&mut self) -> Effects {
        let evaluation = self.world.evaluate();
        let effects = Effects::from(&evaluation);
        // Disputes are not persisted, so they are logged anew after a start.
        let believed = evaluation.decisions.into_iter().filter(|d| d.kind != DecisionKind::Disputed);
        self.decisions.extend(believed);
        self.alerts.extend(evaluation.alerts);
        effects
    }

    /// How often a kind of decision was made, and for how many Apps.
    fn counts(&self, kind: DecisionKind) -> (usize, usize) {
        let all = self.decisions.iter().filter(|decision| decision.kind == kind);
        (all.clone().count(), all.map(|decision| &decision.app).collect::<BTreeSet<_>>().len())
    }

    /// Starts again with the persisted state. Neither a node nor the cluster has answered yet.
    fn restart(&mut self) {
        self.world.restart();
        self.world.facts = ClusterFacts::default();
    }

    /// Decides, and is killed when only so many of the documents are persisted. No tenant has been notified.
    fn is_killed_after_persisting(&mut self, documents: usize) {
        let snapshot = self.world.snapshot();
        self.world.incidents.evaluate(&snapshot, &self.world.policy, &self.facts, self.world.now);
        for app in self.world.incidents.dirty().into_iter().take(documents) {
            let incident = self.world.incidents.document(&app).unwrap();
            self.world.persisted.insert(incident.name.clone(), incident);
        }
        self.restart();
    }

    /// An operator approves the block or the release of the App, which a brake holds.
    fn approve(&mut self, app: App) {
        let command = IncidentCommand::Approve { app };
        self.world.incidents.execute(&command, "ops", &self.world.policy, self.world.now).unwrap();
    }

    /// Restarts twice before any node has answered, and receives all reports bit by bit. Nothing is decided at any of
    /// these moments.
    fn restarts_and_stays(&mut self, effects: &Effects, parts: &[&dyn Fn(&mut World)]) {
        let decided = self.decisions.len();
        self.restart();
        assert_eq!(self.evaluate(), *effects, "no node has answered");
        self.world.rounds(2, |_| ());
        assert_eq!(self.evaluate(), *effects, "no node has answered for two rounds");
        self.restart();
        for part in parts {
            self.world.wait(MINUTE / 4);
            part(&mut self.world);
            assert_eq!(self.evaluate(), *effects, "the cluster has not been read");
        }
        self.world.facts = self.facts.clone();
        assert_eq!(self.evaluate(), *effects, "everything is reported again");
        assert_eq!(self.decisions[decided..], []);
    }
}

/// The logs of the persisted incidents: how many Apps have so many decisions of a kind.
fn logged(world: &World, kind: DecisionKind) -> BTreeMap<usize, usize> {
    let mut apps = BTreeMap::new();
    for incident in world.persisted.values() {
        let times = incident.status.decisions.iter().filter(|decision| decision.decision == kind).count();
        *apps.entry(times).or_default() += 1;
    }
    apps.remove(&0);
    apps
}

const NODES: usize = 500;
const APPS: usize = 750;
const PODS_PER_NODE: usize = 3;

/// Each App has two Pods, on two nodes.
struct Fleet {
    nodes: Vec<String>,
    pods: Vec<Vec<Pod>>,
    /// A real miner, and its node.
    miner: (usize, Pod),
}

impl Fleet {
    fn new(apps_per_namespace: usize) -> Self {
        let nodes: Vec<String> = (0..NODES).map(|i| format!("node-{i:03}")).collect();
        let pod = |node: usize, i: usize| {
            let app = (node * PODS_PER_NODE + i) % APPS;
            Pod::new(format!("ns-{:03}", app / apps_per_namespace), format!("web-{app}"), &nodes[node])
        };
        let pods = (0..NODES).map(|node| (0..PODS_PER_NODE).map(|i| pod(node, i)).collect()).collect();
        let miner = (7, Pod::new("ns-miner".into(), "miner".into(), &nodes[7]));
        Self { nodes, pods, miner }
    }

    fn story(&self) -> Story {
        let pods = (0..NODES).flat_map(|node| self.pods[node].iter().map(move |pod| (node, pod)));
        let all = pods.chain([(self.miner.0, &self.miner.1)]);
        Story::new(&self.nodes, all.map(|(node, pod)| (self.nodes[node].as_str(), pod)))
    }

    /// Those nodes list the processes that the real rule finds and, with the bad rule, every process that they run.
    fn answer(&self, world: &mut World, nodes: std::ops::Range<usize>, is_bad: bool) {
        let now = world.clock();
        for node in nodes {
            let pods = self.pods[node].iter().filter(|_| is_bad);
            let mut records: Vec<Record> = pods.map(|pod| pod.accused("nginx", ".*", now)).collect();
            // The node lists two processes, so the policy knows that it does not list one at a time.
            if node == self.miner.0 {
                records.extend(["xmrig", "xmrigd"].map(|name| self.miner.1.accused(name, "^xmrig", now)));
            }
            world.answer(&self.nodes[node], records);
        }
    }
}

/// A bad rule on the whole fleet, beside a real miner.
struct BadRule<'a> {
    fleet: &'a Fleet,
    story: Story,
    brake: &'a Brake,
    /// How many Apps the rule may block before the brake holds further ones.
    blocked: usize,
    /// How many of them may be released at once when the rule is gone.
    released: usize,
}

impl<'a> BadRule<'a> {
    fn new(fleet: &'a Fleet, brake: &'a Brake, blocked: usize, released: usize) -> Self {
        let mut story = fleet.story();
        if *brake == Brake::NewTenants {
            story.world.policy.brake.max_tenants_per_rule = 1000;
            story.world.policy.brake.max_releases = 19;
        }
        Self { fleet, story, brake, blocked, released }
    }

    fn miner(&self) -> BTreeSet<App> {
        BTreeSet::from([self.fleet.miner.1.app()])
    }

    fn rounds(&mut self, rounds: u64, is_bad: bool) {
        let fleet = self.fleet;
        self.story.world.rounds(rounds, |w| fleet.answer(w, 0..NODES, is_bad));
    }

    fn only_the_miner_is_blocked(&mut self) -> Effects {
        let fleet = self.fleet;
        self.story.world.rounds(20, |w| {
            fleet.answer(w, 0..NODES, false);
            w.evaluate();
        });
        let before = self.story.evaluate();
        assert_eq!((&before.blocked, before.held.len()), (&self.miner(), 0));
        before
    }

    /// Not all nodes answer at once, and the leader is killed before all decisions are persisted. First no decision is
    /// persisted, then some of the blocks, then all blocks and no hold.
    fn spreads_while_the_leader_is_killed(&mut self) -> Effects {
        let Self { fleet, story, blocked, .. } = self;
        let blocked = *blocked;
        story.world.wait(MINUTE);
        for written in [0, blocked / 2, blocked] {
            fleet.answer(&mut story.world, 0..NODES / 2, true);
            let already = story.world.persisted.len() - 1;
            story.is_killed_after_persisting(written - already);
            let effects = story.evaluate();
            assert_eq!((effects.blocked.len(), effects.held.len()), (1 + written, 0));
            story.world.facts = story.facts.clone();
        }
        for quarter in 0..4 {
            let size = NODES / 4;
            fleet.answer(&mut story.world, quarter * size..(quarter + 1) * size, true);
            assert_eq!(story.evaluate().blocked.len(), 1 + blocked, "at most the brake's number");
        }
        let flooded = story.evaluate();
        assert_eq!(flooded.held.len(), APPS - blocked);
        assert!(
            flooded.blocked.is_disjoint(&flooded.held) && flooded.notified == flooded.blocked,
            "{flooded:?}"
        );
        assert!(flooded.blocked.is_superset(&self.miner()));
        flooded
    }

    fn changes_nothing_for_hours(&mut self, flooded: &Effects) {
        let Self { fleet, story, brake, blocked, .. } = self;
        let (fleet, blocked) = (*fleet, *blocked);
        for _ in 0..HOURS {
            let restarted = story.world.clock();
            let half =
                |range: std::ops::Range<usize>| move |w: &mut World| fleet.answer(w, range.clone(), true);
            story.restarts_and_stays(flooded, &[&half(0..NODES / 2), &half(NODES / 2..NODES)]);
            while story.world.clock() - restarted < i64::try_from(HOUR).unwrap() {
                story.world.rounds(1, |w| fleet.answer(w, 0..NODES, true));
                assert_eq!(story.evaluate(), *flooded);
            }
        }
        assert!(story.alerts.len() == 1 && is_of(&story.alerts[0], brake), "{:?}", story.alerts);
        assert_eq!(story.counts(DecisionKind::Held), (APPS - blocked, APPS - blocked));
        assert_eq!(logged(&story.world, DecisionKind::Held), [(1, APPS - blocked)].into());
        assert_eq!(logged(&story.world, DecisionKind::Blocked), [(1, 1 + blocked)].into());
    }

    fn an_approval_is_for_one_app(&mut self, flooded: Effects) -> Effects {
        let approved = flooded.held.iter().nth(flooded.held.len() / 2).unwrap().clone();
        self.story.approve(approved.clone());
        let mut after = flooded;
        after.held.remove(&approved);
        after.blocked.insert(approved.clone());
        after.notified.insert(approved);
        assert_eq!(self.story.evaluate(), after);
        let fleet = self.fleet;
        self.story.restarts_and_stays(&after, &[&|w| fleet.answer(w, 0..NODES, true)]);
        self.rounds(15, true);
        assert_eq!(self.story.evaluate(), after);
        after
    }

    /// The rule is gone. Nothing changes before the clearing time is over. The clearing time begins anew with a
    /// restart.
    fn is_gone(&mut self, after: &Effects) -> Effects {
        let fleet = self.fleet;
        self.rounds(20, false);
        self.story.restarts_and_stays(after, &[&|w| fleet.answer(w, 0..NODES, false)]);
        self.rounds(25, false);
        assert_eq!(self.story.evaluate(), *after);
        self.rounds(15, false);
        let calm = self.story.evaluate();
        let (miner, released) = (self.miner(), self.released);
        let left = after.blocked.len() - miner.len() - released;
        assert_eq!((calm.blocked.len(), calm.held.len()), (1 + left, left));
        assert!(calm.blocked.is_subset(&after.blocked) && calm.blocked.is_superset(&miner));
        assert_eq!(self.story.counts(DecisionKind::Closed), (after.held.len(), after.held.len()));
        assert_eq!(self.story.counts(DecisionKind::Released), (released, released));
        assert_eq!(self.story.counts(DecisionKind::ReleaseHeld), (left, left));
        for _ in 0..2 {
            self.story.restarts_and_stays(&calm, &[&|w| fleet.answer(w, 0..NODES, false)]);
            self.rounds(60, false);
            assert_eq!(self.story.evaluate(), calm);
        }
        let alerts = &self.story.alerts;
        let about_releases = alerts.iter().filter(|alert| is_of(alert, &Brake::Releases)).count();
        assert_eq!((alerts.len(), about_releases), (1 + left.min(1), left.min(1)), "{alerts:?}");
        calm
    }
}

fn is_of(alert: &Alert, wanted: &Brake) -> bool {
    matches!(alert, Alert::Brake { brake, .. } if brake == wanted)
}

/// How many Apps a bad rule may block before the brake holds, and how many its end may release at once.
fn a_bad_rule(apps_per_namespace: usize, brake: &Brake, blocked: usize, released: usize) {
    let fleet = Fleet::new(apps_per_namespace);
    let mut rule = BadRule::new(&fleet, brake, blocked, released);
    let before = rule.only_the_miner_is_blocked();
    let flooded = rule.spreads_while_the_leader_is_killed();
    rule.changes_nothing_for_hours(&flooded);
    let after = rule.an_approval_is_for_one_app(flooded);
    let calm = rule.is_gone(&after);
    for app in calm.held {
        rule.story.approve(app);
    }
    assert_eq!(rule.story.evaluate(), before, "as it was before the rule");
}

#[test]
fn a_bad_rule_on_500_nodes_blocks_no_more_tenants_than_the_window_takes_for_hours_and_over_restarts() {
    // The miner has one of the twenty places, because a new leader does not know how long ago it was blocked. The
    // others have four Apps each. At the end one tenant exceeds the limit.
    a_bad_rule(4, &Brake::NewTenants, 76, 76);
}

#[test]
fn a_bad_rule_on_500_nodes_hits_no_more_tenants_than_one_rule_may_for_hours_and_over_restarts() {
    a_bad_rule(1, &Brake::Rule(".*".into()), 10, 11);
}

/// A node on which each of many tenants has a Pod, and one on which all of them have another.
struct Liar {
    nodes: [String; 2],
    pods: [Vec<Pod>; 2],
}

const LIES: usize = 30;
const MAX_PER_NODE: usize = 5;

impl Liar {
    fn new() -> Self {
        let nodes = ["liar".to_owned(), "honest".to_owned()];
        let pods_on = |node| {
            (0..LIES).map(|i| Pod::new(format!("ns-{i:03}"), format!("web-{i}"), node)).collect::<Vec<_>>()
        };
        let pods = [pods_on("liar"), pods_on("honest")];
        Self { nodes, pods }
    }

    fn story(&self) -> Story {
        let pods = self.nodes.iter().zip(&self.pods);
        let mut story = Story::new(
            &self.nodes,
            pods.flat_map(|(node, pods)| pods.iter().map(|pod| (node.as_str(), pod))),
        );
        // Only the node's limit has to hold, not the others.
        story.world.policy.brake.max_new_tenants = 1000;
        story.world.policy.brake.max_tenants_per_rule = 1000;
        assert_eq!(story.world.policy.brake.max_tenants_per_node, MAX_PER_NODE);
        story
    }

    /// The liar accuses those Pods of its own, and as many of the other node. The other node answers, and finds
    /// nothing.
    fn lies(&self, world: &mut World, lies: impl IntoIterator<Item = usize>) {
        let now = world.clock();
        // The accusation changes each hour, because the test shows that another offence does not free a held App.
        let process = format!("miner{}", now / i64::try_from(HOUR).unwrap() % 2);
        let accused = lies.into_iter().flat_map(|i| [&self.pods[0][i], &self.pods[1][i]]);
        let records = accused.map(|pod| pod.accused(&process, &format!("^{process}$"), now)).collect();
        world.answer(&self.nodes[0], records);
        world.answer(&self.nodes[1], vec![]);
    }
}

#[test]
fn a_node_that_accuses_all_its_pods_at_once_gets_five_apps_blocked_for_hours_and_over_restarts() {
    let liar = Liar::new();
    let mut story = liar.story();
    story.world.wait(MINUTE);
    liar.lies(&mut story.world, 0..LIES);
    let first = story.evaluate();
    assert_eq!((first.blocked.len(), first.held.len()), (MAX_PER_NODE, LIES - MAX_PER_NODE));
    for _ in 0..HOURS {
        story.restarts_and_stays(&first, &[&|w| liar.lies(w, 0..LIES)]);
        for _ in 0..60 {
            story.world.rounds(1, |w| liar.lies(w, 0..LIES));
            assert_eq!(story.evaluate(), first);
        }
    }
    assert_eq!(story.counts(DecisionKind::Blocked), (MAX_PER_NODE, MAX_PER_NODE));
    assert_eq!(story.counts(DecisionKind::Held), (LIES - MAX_PER_NODE, LIES - MAX_PER_NODE));

    // The node pretends to be clean until all incidents have ended, and begins again. Held Apps are still held.
    story.world.rounds(20, |w| liar.lies(w, []));
    assert_eq!(story.evaluate(), first);
    // The more a node has accused, the longer it has to answer without evidence.
    story.world.rounds(12 * 60, |w| liar.lies(w, []));
    let clean = story.evaluate();
    assert_eq!((clean.blocked.len(), clean.held.len()), (0, 0));
    story.restarts_and_stays(&clean, &[&|w| liar.lies(w, [])]);
    story.world.rounds(1, |w| liar.lies(w, 0..LIES));
    assert_eq!(story.evaluate(), first);
    story.restarts_and_stays(&first, &[&|w| liar.lies(w, 0..LIES)]);
    assert_eq!(story.counts(DecisionKind::Held), (2 * (LIES - MAX_PER_NODE), LIES - MAX_PER_NODE));
    assert_eq!(story.alerts.len(), 1, "{:?}", story.alerts);
}

/// The agent lists one of its Pods with each scan, as the upstream agent does.
#[test]
fn a_node_that_accuses_one_pod_after_the_other_gets_no_more_blocked_whenever_it_is_restarted() {
    let liar = Liar::new();
    for minutes_between_restarts in [1, 3, 7, 11, 60] {
        let mut story = liar.story();
        let mut blocked = BTreeSet::new();
        for minute in 0..HOURS * 60 {
            if minute % minutes_between_restarts == 0 {
                story.restart();
                assert_eq!(story.evaluate().blocked, blocked, "no node has answered");
                story.world.facts = story.facts.clone();
            }
            let which = usize::try_from(minute).unwrap() % LIES;
            story.world.rounds(1, |w| liar.lies(w, [which]));
            blocked = story.evaluate().blocked;
            assert!(blocked.len() <= MAX_PER_NODE, "minute {minute}: {blocked:?}");
        }
        assert_eq!(blocked.len(), MAX_PER_NODE);
        assert_eq!(story.counts(DecisionKind::Held).1, LIES - MAX_PER_NODE);
        assert_eq!(story.alerts.len(), 1, "{:?}", story.alerts);
    }
}

/// A node that names one rule has one place among the brakes, however many names of processes match it.
#[test]
fn more_names_than_are_matched_at_a_time_count_under_their_rule() {
    let mut world = World::new(&["n1", "n2", "n3", "n4"]);
    for node in 0..4 {
        let records = (0..5).flat_map(|tenant| (0..30).map(move |n| (tenant, n))).map(|(tenant, n)| {
            let namespace = format!("ns-{}", 5 * node + tenant);
            let mut record = record_of(&namespace, "web", &format!("p{}", 1000 * (5 * node + tenant) + n), 0);
            Arc::make_mut(&mut record.claim).regex = "^p".into();
            record
        });
        world.answer(&format!("n{}", node + 1), records.collect());
    }
    assert_eq!(world.blocked().len(), 10);
}
