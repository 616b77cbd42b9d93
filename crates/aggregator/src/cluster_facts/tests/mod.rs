//! The order of look-ups in simulated time, under the default pace.

mod bounds;
mod confirming;
pub(super) mod fake;
mod missed;
mod routes;
mod slow;
mod stage;
mod sweeping;
mod tenants;
mod watching;

use std::collections::BTreeMap;

use jiff::Timestamp;
use procscan_core::names::{App, NodeName};
use procscan_core::policy::{AccusedPod, AccusingNodes, Lineage, PodFact, PodIdentity, PodState};

use super::due::MIN_LOOKUP_PAUSE;
use super::lookup::{NamespaceContents, Pod};
use super::state::MAX_UNKNOWN_PODS;
use super::*;

fn at(seconds: u64) -> Moment {
    Moment::new(Duration::from_secs(seconds), Timestamp::UNIX_EPOCH)
}

fn accusation(namespace: &str, node: &str, since: u64) -> (PodRef, AccusingNodes) {
    let pod = PodRef { namespace: namespace.into(), pod: "web".into() };
    (pod, AccusingNodes::one(NodeName::new(node), at(since)))
}

fn state(accusations: &[(&str, &str, u64)]) -> State {
    let mut state = State::default();
    let pods = accusations.iter().map(|(namespace, node, since)| accusation(namespace, node, *since));
    state.set_requests(&LookupRequests { pods: pods.collect(), ..LookupRequests::default() }, at(0));
    state
}

const ROUND: Duration = Duration::from_mins(1);

fn due(state: &mut State, now: u64) -> Vec<String> {
    state.due(at(now), ROUND).lookups.iter().map(ToString::to_string).collect()
}

#[test]
fn a_namespace_is_looked_up_once_a_second_while_accusations_wait_and_otherwise_once_a_round() {
    let requests = |since| LookupRequests {
        pods: [accusation("ns-a", "n1", since)].into(),
        ..LookupRequests::default()
    };
    let mut state = state(&[("ns-a", "n1", 5)]);
    let facts = state.namespace_facts.entry("ns-a".into()).or_default();
    facts.asked = Some(at(10));
    facts.pods.insert("web".into(), PodFact { asked: at(10), state: PodState::Gone });
    state.set_requests(&requests(5), at(10));
    assert_eq!((due(&mut state, 11), due(&mut state, 70).len()), (vec![], 1));
    assert_eq!(state.due(at(40), ROUND).next, Duration::from_secs(30));
    state.set_requests(&requests(10), at(10));
    assert!(due(&mut state, 11).is_empty(), "judged by a look-up that began after it came");
    state.set_requests(&requests(11), at(11));
    assert_eq!(due(&mut state, 11), ["ns-a"]);
    assert_eq!(state.due(at(10), ROUND).next, MIN_LOOKUP_PAUSE);
    // An App that nothing is known of yet does not wait for the next round either.
    let app = App::new("ns-a", "app", "web");
    state.set_requests(&LookupRequests { apps: [(app, Vec::new())].into(), ..requests(5) }, at(11));
    assert_eq!(due(&mut state, 11), ["ns-a"]);
}

#[test]
fn facts_that_are_not_requested_any_more_are_forgotten() {
    let mut state = state(&[("ns-a", "n1", 5)]);
    state.namespace_facts.entry("ns-a".into()).or_default().is_terminating = true;
    assert!(state.facts().terminating.contains("ns-a"));
    state.set_requests(&LookupRequests::default(), at(6));
    assert!(state.facts().terminating.is_empty() && due(&mut state, 100).is_empty());
}

/// Agents that renew all their evidence each minute, and an API server that is asked at the pace as shipped.
struct World {
    state: State,
    /// In milliseconds.
    now: u64,
    /// The accused namespaces, with the nodes that accuse.
    accused: Vec<(Text, Vec<NodeName>)>,
    /// How often the policy has sent requests.
    asked: u64,
    /// When each namespace was first judged, in milliseconds.
    judged: BTreeMap<Text, u64>,
}

/// The pause between two requests by `kubernetes.requests_per_second`, in milliseconds.
const PER_REQUEST: u64 = 1000 / 20;
/// The requests of one look-up: the namespace, its Pods, its Services.
const REQUESTS: u64 = 3;
const SCAN: u64 = 60_000;
const ASKED: u64 = 10_000;

impl World {
    fn new(accused: Vec<(Text, Vec<NodeName>)>) -> Self {
        let (mut state, judged) = (State::default(), BTreeMap::new());
        // One by one, as in a cluster that is too large for a sweep.
        state.sweeps.not_before = Some(at(1_000_000));
        Self { state, now: 0, accused, asked: 0, judged }
    }

    fn moment(&self) -> Moment {
        Moment::new(Duration::from_millis(self.now), Timestamp::UNIX_EPOCH)
    }

    /// Each node's scans come at a time of their own.
    fn requests(&self) -> LookupRequests {
        let mut requests = LookupRequests::default();
        for (namespace, nodes) in &self.accused {
            let mut nodes = nodes.iter().map(|node| {
                let offset = node.0.bytes().map(u64::from).sum::<u64>() * 997 % SCAN;
                let scans = (self.now.saturating_sub(offset)) / SCAN;
                (
                    node,
                    Moment::new(
                        Duration::from_millis(scans * SCAN + offset.min(self.now)),
                        Timestamp::UNIX_EPOCH,
                    ),
                )
            });
            let Some((node, since)) = nodes.next() else { continue };
            let mut accusers = AccusingNodes::one(node.clone(), since);
            nodes.for_each(|(node, since)| accusers.add(node, since));
            requests.pods.insert(PodRef { namespace: namespace.clone(), pod: "web".into() }, accusers);
        }
        requests
    }

    /// Goes on for `seconds`, or until every namespace has been judged.
    fn run(&mut self, seconds: u64) {
        let end = self.now + seconds * 1000;
        while self.now < end && self.judged.len() < self.accused.len() {
            // The requests of the policy follow the scans.
            if self.now / ASKED >= self.asked {
                self.asked = self.now / ASKED + 1;
                self.state.set_requests(&self.requests(), self.moment());
            }
            let asked = self.moment();
            let due = self.state.due(asked, ROUND).lookups;
            if due.is_empty() {
                self.now += 1000;
                continue;
            }
            assert!(due.len() <= MAX_CONCURRENT_LOOKUPS);
            self.now += due.len() as u64 * REQUESTS * PER_REQUEST;
            for namespace in &due {
                self.judged.entry(namespace.clone()).or_insert(self.now);
            }
            for namespace in &due {
                let result =
                    LookupResult { namespace: namespace.clone(), asked, seen: Ok(Some(seen(namespace))) };
                self.state.apply_lookup(result, ROUND).unwrap();
            }
        }
    }

    fn last_judged(&self) -> u64 {
        assert_eq!(self.judged.len(), self.accused.len(), "not all namespaces have been judged");
        self.judged.values().max().copied().unwrap() / 1000
    }
}

fn seen(namespace: &Text) -> NamespaceContents {
    let pod = Pod {
        uid: "1".into(),
        created: Some(at(0)),
        node: Some("n1".into()),
        host_ips: Vec::new(),
        labels: BTreeMap::new(),
        app: App::new(namespace.clone(), "app", "web"),
        lineage: Lineage::default(),
        has_ended: false,
        is_pending: false,
    };
    NamespaceContents { pods: [("web".into(), pod)].into(), ..NamespaceContents::default() }
}

fn nodes(names: impl IntoIterator<Item = usize>) -> Vec<NodeName> {
    names.into_iter().map(|n| NodeName::new(format!("node-{n:03}"))).collect()
}

#[test]
fn two_thousand_accused_namespaces_are_all_judged_in_the_time_that_the_pace_allows() {
    let accused = (0..2000).map(|n| (format!("ns-{n:05}").into(), nodes([n % 100]))).collect();
    let mut world = World::new(accused);
    // 2,000 look-ups of three requests at 20 requests/s are 300 s; up to a quarter of them may be for namespaces that nothing waits in.
    world.run(400);
    assert!(world.last_judged() <= 400, "{}", world.last_judged());
    // All that wait are looked up in turn, although all evidence is renewed each minute.
    world.judged.clear();
    world.run(400);
    assert_eq!(world.judged.len(), 2000);
}

#[test]
fn a_node_that_accuses_thousands_of_namespaces_delays_no_other() {
    let lies = (0..5000).map(|n| (format!("ns-{n:05}").into(), nodes([999])));
    // Ten honest nodes with ten namespaces each. The lying node accuses five of each, too.
    let honest = (0..100).map(|n| {
        let lies = (n % 10 < 5).then_some(999);
        (format!("ns-honest-{n:03}").into(), nodes([n / 10].into_iter().chain(lies)))
    });
    let mut world = World::new(lies.chain(honest).collect());
    let is_honest = |namespace: &Text| namespace.starts_with("ns-honest");
    // 100 look-ups of their own, an eleventh for the lying node, and a quarter that is reserved. That makes 147
    // look-ups of three requests, which take 22 s at 20 requests/s.
    world.run(22);
    let judged = world.judged.keys().filter(|namespace| is_honest(namespace)).count();
    assert_eq!(judged, 100);
    // 400 look-ups a minute, less a quarter that is reserved, and less 100 namespaces whose evidence is renewed: at
    // least 200.
    world.run(1500);
    assert!(world.last_judged() <= 1500, "{}", world.last_judged());
}

#[test]
fn accusations_that_wait_too_long_are_reported_until_none_does() {
    let accused = (0..1000).map(|n| (format!("ns-{n:05}").into(), nodes([n % 10]))).collect();
    let mut world = World::new(accused);
    let (status, shown) = watch::channel(ClusterFactsStatus::default());
    let show = |world: &mut World| {
        let now = world.moment();
        world.state.publish_status(&status, now);
        shown.borrow().clone()
    };
    world.run(119);
    let early = show(&mut world);
    assert!(early.late == 0 && early.waiting > 500 && early.problem().is_none(), "{early:?}");
    world.run(4);
    let late = show(&mut world);
    assert!(late.late > 100 && late.longest_wait > Duration::from_mins(2), "{late:?}");
    assert!(late.problem().unwrap().contains("namespaces have waited for more than 2m"));
    assert!(world.state.is_late);
    world.state.set_requests(&LookupRequests::default(), at(200));
    assert_eq!((show(&mut world), world.state.is_late), (ClusterFactsStatus::default(), false));
}

#[test]
fn each_lookup_reads_only_some_of_the_pods_without_a_known_app() {
    let pods = (0..100).map(|n| {
        let pod = PodRef { namespace: "ns-a".into(), pod: format!("web-{n:03}").into() };
        (pod, AccusingNodes::one(NodeName::new("n1"), at(1)))
    });
    let own = (90..100).map(|n| PodRef { namespace: "ns-a".into(), pod: format!("web-{n:03}").into() });
    let own: Vec<AccusedPod> = own.map(|pod| AccusedPod { pod, which: PodIdentity::Unknown }).collect();
    let apps = [(App::new("ns-a", "app", "web"), own)].into();
    let mut state = State::default();
    state.set_requests(&LookupRequests { pods: pods.collect(), apps, ..LookupRequests::default() }, at(1));
    assert_eq!(state.urgent(&"ns-a".into()).len(), MAX_UNKNOWN_PODS + 10);
}
