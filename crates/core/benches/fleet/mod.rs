//! A fleet in memory, and each stage of a round over it. Nothing changes but the timestamps of the agents' scans, as
//! in nearly every round of a real platform.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use procscan_core::Moment;
use procscan_core::decision::Mode;
use procscan_core::ledger::{Change, Detection, Ledger};
use procscan_core::names::NodeName;
use procscan_core::plan::{Plan, SharedServices};
use procscan_core::policy::{BrakeRules, ClusterFacts, Decided, Incidents, Policy};
use procscan_core::report::{Answer, Limits, Outcome, Report, Target, decode};
use procscan_core::snapshot::Snapshot;

/// Offenders on each node.
pub(super) const PER_NODE: usize = 2;
/// The number of namespaces that the offenders are spread over.
const TENANTS: usize = 2_000;
const START: i64 = 1_766_399_400;
const ROUND: Duration = Duration::from_mins(1);

pub(super) struct Fleet {
    targets: Vec<Target>,
    bodies: Vec<String>,
    pub(super) ledger: Ledger,
    pub(super) incidents: Incidents,
    pub(super) policy: Policy,
    pub(super) facts: ClusterFacts,
    pub(super) now: Moment,
}

impl Fleet {
    /// A fleet with so many violations, all of them known and blocked.
    pub(super) fn new(violations: usize) -> Self {
        let nodes = violations / PER_NODE;
        let name = |node: usize| format!("node-{node:05}");
        let targets: Vec<Target> = (0..nodes)
            .map(|node| Target {
                address: format!("10.{}.{}.{}:9090", node >> 16, node >> 8 & 255, node & 255).into(),
                node: NodeName::new(name(node)),
            })
            .collect();
        let wall = Timestamp::from_second(START).unwrap();
        let now = Moment::new(Duration::from_hours(1), wall);
        let any = usize::MAX;
        let policy = Policy {
            mode: Mode::Enforce,
            namespaces: regex::Regex::new("^ns-").unwrap(),
            protected: vec!["kube-*".into(), "higress-system".into()],
            verify_pods: false,
            shared_services: SharedServices::default(),
            has_plain_list: true,
            grace: Duration::ZERO,
            brake: BrakeRules {
                max_new_tenants: any,
                max_tenants_per_node: any,
                max_apps_per_node: any,
                max_apps_per_tenant: any,
                max_tenants_per_rule: any,
                max_releases: any,
                ..BrakeRules::default()
            },
            exemptions: Vec::new(),
            unread_exemptions: Vec::new(),
            same_incident: Duration::from_hours(24),
            max_age: Duration::from_mins(30),
            unreachable_limit: Duration::from_hours(24),
            max_notices_per_round: any,
        };
        let mut ledger = Ledger::new(Detection::default(), now);
        ledger.expect(targets.clone(), 0);
        let (incidents, facts) = (Incidents::default(), ClusterFacts::default());
        let mut fleet = Self { targets, bodies: Vec::new(), ledger, incidents, policy, facts, now };
        for _ in 0..2 {
            fleet.scan();
            let reports = fleet.reports();
            fleet.absorb(&reports);
            fleet.ledger.round_done();
            let snapshot = fleet.ledger.snapshot(fleet.now);
            fleet.decide(&snapshot);
        }
        fleet.scan();
        fleet
    }

    /// Lets a round pass in which every agent scans.
    pub(super) fn scan(&mut self) {
        self.now = Moment::new(self.now.uptime() + ROUND, self.now.wall() + ROUND);
        let timestamp = self.now.wall();
        self.bodies = (0..self.targets.len())
            .map(|node| {
                let mut body = String::from("[");
                for which in 0..PER_NODE {
                    let (pod, tenant) = (format!("web-{node}-{which}-7d4f9c"), (node + which) % TENANTS);
                    let _ = write!(
                        body,
                        r#"{}{{"pod":"{pod}","namespace":"ns-{tenant:04}","process":"xmrig","cmdline":"xmrig -o stratum+tcp://pool.example.com:3333 -u 4Ad7 \u003e /dev/null","regex":"^xmrig$","status":"active","type":"app","name":"{pod}","timestamp":"{timestamp}"}}"#,
                        if which == 0 { "" } else { "," },
                    );
                }
                body + "]\n"
            })
            .collect();
    }

    /// The answers as they come from the wire.
    pub(super) fn decode(&self) -> Vec<Answer> {
        let limits = Limits::default();
        self.bodies.iter().map(|body| decode(body.as_bytes(), &limits).0).collect()
    }

    pub(super) fn reports(&self) -> Vec<Report> {
        let report = |(target, mut answer): (&Target, Answer)| {
            answer.date = Some(self.now.wall());
            Report { target: target.clone(), at: self.now, outcome: Outcome::Complete(answer) }
        };
        self.targets.iter().zip(self.decode()).map(report).collect()
    }

    pub(super) fn absorb(&mut self, reports: &[Report]) -> Vec<Change> {
        let changes = reports.iter().flat_map(|report| self.ledger.absorb(report)).collect();
        self.ledger.advance(self.now);
        changes
    }

    pub(super) fn decide(&mut self, snapshot: &Snapshot) -> (Decided, Plan) {
        let decided = self.incidents.decide(snapshot, &self.policy, &self.facts, self.now);
        let dirty = self.incidents.dirty();
        self.incidents.commit(&dirty);
        (decided, self.incidents.plan(&self.policy, &self.facts, self.now))
    }
}

/// The list that the API serves.
pub(super) fn serialise(snapshot: &Snapshot) -> Vec<u8> {
    let list: &[Arc<_>] = &snapshot.list;
    serde_json::to_vec(list).unwrap()
}
