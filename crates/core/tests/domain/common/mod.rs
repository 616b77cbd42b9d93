//! A small world for the domain's tests: the test sets the time and the answers of each node.
#![allow(dead_code, unreachable_pub)]

pub mod agent;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use procscan_core::Moment;
use procscan_core::decision::{Decision, Mode};
use procscan_core::exemption::Exemption;
use procscan_core::ledger::{Change, Detection, Ledger};
use procscan_core::names::{App, Key, NodeName, PodRef};
use procscan_core::plan::{Exposure, OtherApps, SharedService, SharedServices};
use procscan_core::policy::{
    AppFact, BrakeRules, ClusterFacts, Decided, Evaluation, Incidents, InheritedBlock, Lineage, PodFact,
    PodState, Policy, remembered,
};
use procscan_core::report::{Answer, Claim, Failure, FailureReason, Outcome, Record, Report, Target};
use procscan_core::resources::template::Template;
use procscan_core::resources::{Settings, notification, wasm_plugin};
use procscan_core::snapshot::{Snapshot, State, Violation};
use procscan_core::state::Incident;
use proptest::prelude::ProptestConfig;

pub const START: i64 = 1_766_399_400;
pub const MINUTE: u64 = 60;
pub const HOUR: u64 = 3600;

/// A moment later than any other, for cluster facts that count as recent.
pub fn always() -> Moment {
    Moment::new(Duration::MAX, Timestamp::UNIX_EPOCH)
}

/// The configuration of a property test: `usual` cases, unless `PROPTEST_CASES` sets their number.
pub fn cases(usual: u32) -> ProptestConfig {
    let config = ProptestConfig::default();
    let is_set = std::env::var_os("PROPTEST_CASES").is_some();
    if is_set { config } else { ProptestConfig { cases: usual, ..config } }
}

pub struct World {
    pub ledger: Ledger,
    pub incidents: Incidents,
    pub policy: Policy,
    pub facts: ClusterFacts,
    pub now: Moment,
    pub rules: Detection,
    /// The persisted incidents, by name.
    pub persisted: BTreeMap<String, Incident>,
    /// The namespaces whose incidents can't be persisted.
    pub unwritable: BTreeSet<String>,
    /// The namespaces whose incidents are persisted, although the answer to the write is an error.
    pub late: BTreeSet<String>,
    /// The last decisions that were persisted in that way.
    pub decided_late: Vec<Decision>,
    /// The blocks of the gateway, for the next leader.
    pub closed: Vec<InheritedBlock>,
    /// Notifications can't be written.
    pub is_mute: bool,
    /// Another replica's ledger, and whether it receives the same reports.
    pub follower: Option<(Ledger, bool)>,
    /// How many seconds the other replica's wall clock is ahead.
    pub follower_ahead: i64,
    /// The targets.
    pub targets: Vec<Target>,
}

pub fn at(seconds: u64) -> Moment {
    Moment::new(
        Duration::from_secs(seconds),
        Timestamp::from_second(START + i64::try_from(seconds).unwrap()).unwrap(),
    )
}

pub fn policy() -> Policy {
    Policy {
        mode: Mode::Enforce,
        namespaces: regex::Regex::new("^ns-").unwrap(),
        protected: vec!["kube-*".into(), "ns-admin".into()],
        verify_pods: false,
        shared_services: SharedServices::default(),
        has_plain_list: true,
        grace: Duration::ZERO,
        brake: BrakeRules::default(),
        exemptions: Vec::new(),
        unread_exemptions: Vec::new(),
        same_incident: Duration::from_secs(24 * HOUR),
        max_age: Duration::from_secs(30 * MINUTE),
        unreachable_limit: Duration::from_secs(24 * HOUR),
        max_notices_per_round: 1000,
    }
}

pub fn target(node: &str) -> Target {
    Target { address: Arc::from(format!("{node}:9090")), node: NodeName::new(node) }
}

/// A record of `process` in Pod `web` of `namespace`, detected `stamp` seconds after the start by the agent's own clock.
pub fn record_of(namespace: &str, pod: &str, process: &str, stamp: i64) -> Record {
    let detected_at = Timestamp::from_second(START + stamp).unwrap();
    let claim = Claim {
        cmdline: Arc::from(format!("./{process} -o pool.example.com")),
        regex: Arc::from(format!("^{process}$")),
        status: Arc::from("active"),
        kind: Arc::from("app"),
        name: Arc::from(pod),
    };
    let timestamp = Arc::from(detected_at.to_string());
    Record { key: Key::new(namespace, pod, process), claim: Arc::new(claim), timestamp, detected_at }
}

pub fn record(namespace: &str, stamp: i64) -> Record {
    record_of(namespace, "web", "xmrig", stamp)
}

pub fn app(namespace: &str) -> App {
    App::new(namespace, "app", "web")
}

pub fn complete(records: Vec<Record>, date: i64) -> Outcome {
    let date = Some(Timestamp::from_second(START + date).unwrap());
    Outcome::Complete(Answer { records: records.into_iter().collect(), date, ..Answer::default() })
}

pub fn exemption(set: impl Fn(&mut Exemption), until: Option<Timestamp>) -> Exemption {
    let mut exemption = Exemption {
        place: "Exemption a".into(),
        confirm: None,
        namespace: None,
        app: None,
        process: None,
        rule: None,
        reason: "a contract".into(),
        until,
    };
    set(&mut exemption);
    exemption
}

pub fn namespaces(n: usize) -> Vec<String> {
    (0..n).map(|i| format!("ns-{i:03}")).collect()
}

/// A world with one node, in which twenty-five tenants are blocked.
pub fn many_blocked() -> World {
    let mut world = World::new(&["n1"]);
    let brake = &mut world.policy.brake;
    (brake.max_new_tenants, brake.max_tenants_per_node, brake.max_apps_per_node) = (100, 100, 200);
    brake.max_tenants_per_rule = 100;
    world.answer("n1", namespaces(25).iter().map(|namespace| record(namespace, 0)).collect());
    assert_eq!(world.blocked().len(), 25);
    world
}

pub fn failed(reason: FailureReason) -> Outcome {
    Outcome::Failed(Failure { reason, detail: "by the test".into() })
}

impl World {
    pub fn new(nodes: &[&str]) -> Self {
        Self::with(nodes, Detection::default())
    }

    pub fn with(nodes: &[&str], rules: Detection) -> Self {
        let mut ledger = Ledger::new(rules.clone(), at(0));
        let targets: Vec<Target> = nodes.iter().map(|node| target(node)).collect();
        ledger.expect(targets.clone(), 0);
        Self {
            ledger,
            incidents: Incidents::default(),
            policy: policy(),
            facts: ClusterFacts::default(),
            now: at(0),
            rules,
            persisted: BTreeMap::new(),
            unwritable: BTreeSet::new(),
            late: BTreeSet::new(),
            decided_late: Vec::new(),
            closed: Vec::new(),
            is_mute: false,
            follower: None,
            follower_ahead: 0,
            targets,
        }
    }

    /// A ledger without any report.
    pub fn new_ledger(&self) -> Ledger {
        let mut ledger = Ledger::new(self.rules.clone(), self.now);
        ledger.expect(self.targets.clone(), 0);
        ledger
    }

    /// Persists dirty incidents, as the service does before anything follows from a decision. In dry-run nothing is
    /// persisted. Returns the Apps whose incidents could not be persisted.
    pub fn persist(&mut self) -> BTreeSet<App> {
        if self.policy.mode == Mode::DryRun {
            return BTreeSet::new();
        }
        let is_in =
            |namespaces: &BTreeSet<String>, app: &App| namespaces.contains(&app.namespace.to_string());
        let (mut failed, written): (Vec<_>, Vec<_>) =
            self.incidents.dirty().into_iter().partition(|app| is_in(&self.unwritable, app));
        // The incident goes through its persisted form.
        for incident in written.iter().filter_map(|app| self.incidents.document(app)) {
            let spec = serde_json::from_str(&serde_json::to_string(&incident.spec).unwrap()).unwrap();
            let status = serde_json::from_str(&serde_json::to_string(&incident.status).unwrap()).unwrap();
            self.persisted.insert(incident.name.clone(), Incident { name: incident.name, spec, status });
        }
        let (late, persisted): (Vec<_>, Vec<_>) = written.into_iter().partition(|app| is_in(&self.late, app));
        self.incidents.commit(&persisted);
        failed.extend(late);
        self.incidents.roll_back(&failed);
        failed.into_iter().collect()
    }

    /// Restarts: only the persisted state is left.
    pub fn restart(&mut self) {
        let ledger = self.new_ledger();
        self.take_over(ledger);
    }

    /// Another replica leads. It has received reports itself, but knows nothing of the cluster.
    pub fn fail_over(&mut self) {
        let (ledger, _) = self.follower.take().unwrap_or_else(|| (self.new_ledger(), true));
        self.jump(self.follower_ahead);
        self.follower_ahead = -self.follower_ahead;
        self.take_over(ledger);
        self.follower = Some((self.new_ledger(), true));
    }

    fn take_over(&mut self, ledger: Ledger) {
        self.ledger = ledger;
        self.read_again();
    }

    /// Reads the persisted state again, and inherits the blocks of the gateway.
    pub fn read_again(&mut self) {
        let persisted: Vec<Incident> = self.persisted.values().cloned().collect();
        self.ledger.remember(remembered(&persisted), self.now);
        self.incidents = Incidents::restore(&persisted, &self.ledger.snapshot(self.now), self.now);
        self.incidents.inherit(std::mem::take(&mut self.closed), &self.policy, self.now);
    }

    /// The time by the other replica's clock.
    pub fn follower_now(&self) -> Moment {
        let wall = self.now.wall() + jiff::SignedDuration::from_secs(self.follower_ahead);
        Moment::new(self.now.uptime(), wall)
    }

    pub fn wait(&mut self, seconds: u64) -> Vec<Change> {
        self.now = Moment::new(
            self.now.uptime() + Duration::from_secs(seconds),
            self.now.wall() + Duration::from_secs(seconds),
        );
        let follower_now = self.follower_now();
        if let Some((follower, true)) = &mut self.follower {
            follower.advance(follower_now);
        }
        self.ledger.advance(self.now)
    }

    /// Our own wall clock jumps by `seconds`. Agents' clocks do not.
    pub fn jump(&mut self, seconds: i64) {
        let wall = self.now.wall() + jiff::SignedDuration::from_secs(seconds);
        self.now = Moment::new(self.now.uptime(), wall);
    }

    pub fn clock(&self) -> i64 {
        i64::try_from(self.now.uptime().as_secs()).unwrap()
    }

    pub fn report(&mut self, node: &str, outcome: Outcome) -> Vec<Change> {
        self.report_at(target(node), outcome)
    }

    pub fn report_at(&mut self, target: Target, outcome: Outcome) -> Vec<Change> {
        let report = Report { target, at: self.now, outcome };
        let follower_now = self.follower_now();
        if let Some((follower, true)) = &mut self.follower {
            follower.absorb(&Report { at: follower_now, ..report.clone() });
        }
        self.ledger.absorb(&report)
    }

    /// A whole answer, by an agent whose clock is right.
    pub fn answer(&mut self, node: &str, records: Vec<Record>) -> Vec<Change> {
        let date = self.clock();
        self.report(node, complete(records, date))
    }

    pub fn fail(&mut self, node: &str) -> Vec<Change> {
        self.report(node, failed(FailureReason::Timeout))
    }

    /// `rounds` rounds, a minute apart, each after its minute.
    pub fn rounds(&mut self, rounds: u64, mut each: impl FnMut(&mut Self)) {
        for _ in 0..rounds {
            self.wait(MINUTE);
            each(self);
            self.ledger.round_done();
        }
    }

    pub fn snapshot(&mut self) -> Snapshot {
        self.ledger.advance(self.now);
        self.ledger.snapshot(self.now)
    }

    pub fn violation(&mut self, namespace: &str) -> Violation {
        let mut all = self.snapshot().violations.into_iter().filter(|v| *v.key.namespace == *namespace);
        let one = all.next().unwrap_or_else(|| panic!("there is no violation in {namespace}"));
        assert!(all.next().is_none(), "more than one violation in {namespace}");
        one
    }

    pub fn state(&mut self, namespace: &str) -> State {
        self.violation(namespace).state
    }

    pub fn evaluate(&mut self) -> Evaluation {
        let snapshot = self.snapshot();
        let mut decided = self.incidents.decide(&snapshot, &self.policy, &self.facts, self.now);
        let failed = self.persist();
        let is_late = |app: &App| self.late.contains(&app.namespace.to_string());
        let decisions = std::mem::take(&mut decided.decisions);
        let (lost, committed): (Vec<_>, Vec<_>) =
            decisions.into_iter().partition(|it| failed.contains(&it.app));
        decided.decisions = committed;
        self.decided_late = lost.into_iter().filter(|it| is_late(&it.app)).collect();
        let plan = self.incidents.plan(&self.policy, &self.facts, self.now);
        if !self.is_mute {
            let written = plan.notices.iter().map(|notice| (notice.app.clone(), notice.sent_at.into()));
            self.incidents.note_written(&written.collect(), self.now);
            self.persist();
        }
        let held = self.incidents.held(&self.policy);
        let Decided { decisions, alerts, disputes, unverified } = decided;
        Evaluation { plan, held, decisions, alerts, disputes, unverified }
    }

    /// The namespaces of the blocked Apps.
    pub fn blocked(&mut self) -> Vec<String> {
        self.evaluate().plan.blocks.iter().map(|block| block.app.namespace.to_string()).collect()
    }

    pub fn held(&mut self) -> Vec<String> {
        self.evaluate().held.iter().map(|held| held.app.namespace.to_string()).collect()
    }

    pub fn pod_on(&mut self, namespace: &str, pod: &str, node: &str, app: &str) {
        let pod = PodRef { namespace: namespace.into(), pod: pod.into() };
        let app = App::new(namespace, "app", app);
        self.facts.apps.entry(app.clone()).or_insert_with(|| AppFact {
            exposure: Some(Exposure::plain([Arc::from(format!("{}-x7k2.{namespace}.svc", app.name))])),
            ..AppFact::default()
        });
        let state = PodState::Present {
            uid: format!("uid of {}", pod.pod).into(),
            created: Some(at(0)),
            node: NodeName::new(node),
            host_ips: Vec::new(),
            app,
            lineage: Lineage::default(),
        };
        self.facts.pods.insert(pod, PodFact { asked: always(), state });
    }

    /// From now on a Service of that name exposes exactly these `apps` of the namespace.
    pub fn service(&mut self, namespace: &str, service: &str, apps: &[&str]) {
        let host: Arc<str> = format!("{service}.{namespace}.svc").into();
        let exposed: BTreeSet<App> = apps.iter().map(|app| App::new(namespace, "app", *app)).collect();
        for app in &exposed {
            self.facts.apps.entry(app.clone()).or_default().exposure.get_or_insert_default();
        }
        for (app, fact) in self.facts.apps.iter_mut().filter(|(app, _)| *app.namespace == *namespace) {
            let exposure = fact.exposure.get_or_insert_default();
            let names = exposure.services.iter().filter(|known| **known != host).cloned();
            let names: Vec<Arc<str>> = names.chain(exposed.contains(app).then(|| host.clone())).collect();
            *exposure = Exposure::plain(names);
            let others: BTreeSet<&App> = exposed.iter().filter(|other| *other != app).collect();
            fact.shared.retain(|shared| shared.service != host);
            if exposed.contains(app) && !others.is_empty() {
                fact.shared.push(SharedService { service: host.clone(), others: OtherApps::of(others) });
                fact.shared.sort_by_key(|shared| shared.service.clone());
            }
        }
    }

    /// Replaces the Pod by another one of the same name, on `node` and of `app`.
    pub fn recreate(&mut self, namespace: &str, pod: &str, node: &str, app: &str) {
        self.pod_on(namespace, pod, node, app);
        let now = self.now;
        let pod = PodRef { namespace: namespace.into(), pod: pod.into() };
        if let Some(PodFact { state: PodState::Present { uid, created, .. }, .. }) =
            self.facts.pods.get_mut(&pod)
        {
            *uid = format!("uid of {} of {}", pod.pod, now.uptime().as_secs()).into();
            *created = Some(now);
        }
    }

    /// Sets the lineage of the Pod, which links it with earlier names of its App.
    pub fn comes_of(&mut self, namespace: &str, pod: &str, of: Lineage) {
        let pod = PodRef { namespace: namespace.into(), pod: pod.into() };
        let Some(PodFact { state: PodState::Present { lineage, .. }, .. }) = self.facts.pods.get_mut(&pod)
        else {
            panic!("no Pod")
        };
        *lineage = of;
    }

    pub fn pod_is(&mut self, namespace: &str, pod: &str, state: PodState) {
        let pod = PodRef { namespace: namespace.into(), pod: pod.into() };
        self.facts.pods.insert(pod, PodFact { asked: always(), state });
    }
}

/// Settings of the objects, as the configuration's defaults make them.
pub fn settings() -> Settings {
    let template = |text| Template::parse(text, notification::PLACEHOLDERS).unwrap();
    let message = |title, text| notification::Message {
        title: template(title),
        message: template(text),
        title_zh: template(title),
        message_zh: template(text),
    };
    Settings {
        kinds: procscan_core::resources::KINDS,
        gateway: wasm_plugin::Gateway {
            url: "oci://registry.example/plugins/request-block:2.0.0".into(),
            message: "blocked".into(),
            ..wasm_plugin::Gateway::default()
        },
        notification: notification::Texts {
            summary_namespace: "default".into(),
            contact: "ops".into(),
            appeal: String::new(),
            blocked: message("{app} is blocked", "Found {processes} in {namespace}. Ask {contact}."),
            grace: message("{app} will be blocked", "Found {processes}. Stop it before {until}."),
            ..notification::Texts::default()
        },
        max_bytes: 512 * 1024,
    }
}
