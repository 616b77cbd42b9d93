//! One replica's policy task over objects that a test holds. The test acts as the output, the agents and the watch.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use procscan_core::decision::Mode;
use procscan_core::ledger::{Detection, Ledger};
use procscan_core::names::{App, NodeName};
use procscan_core::plan::Plan;
use procscan_core::policy::{ClusterFacts, InheritedBlock, LookupRequests, Policy};
use procscan_core::report::{Answer, Limits, Outcome, Report, Target, decode};
use procscan_core::state::incident;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::collector::{Observation, Round, Share};
use crate::config::Config;
use crate::counters::Counters;
use crate::decided::{Decided, TakeOver, WrittenNotifications};
use crate::discovery::TargetSet;
use crate::kubernetes::Cluster;
use crate::kubernetes::WritePermit;
use crate::leader::Leadership;
use crate::ledger_task;
use crate::policy_task::{Channels, Journal, PolicyTask};
use crate::state::cluster::fake::{Network, Server};
use crate::state::cluster::{Objects, Watching};
use crate::state::{ClusterStore, FileStore, PersistedState, Store};

pub(super) const INCIDENTS: &str = "incidents";

/// A replica that leads until the test drops it.
pub(super) struct Replica {
    pub(super) persisted: watch::Sender<Arc<PersistedState>>,
    pub(super) leadership: watch::Sender<Leadership>,
    pub(super) decided: watch::Receiver<Arc<Decided>>,
    pub(super) error: watch::Receiver<Option<String>>,
    pub(super) watching: watch::Receiver<Option<String>>,
    pub(super) observations: mpsc::Sender<Observation>,
    pub(super) lookups: watch::Receiver<Arc<LookupRequests>>,
    /// The notices that the output has written.
    pub(super) written: watch::Sender<Arc<WrittenNotifications>>,
    /// Whether the leader that took over last may write to the objects, and whether all incidents could be read.
    pub(super) took_over: watch::Receiver<Option<(bool, bool)>>,
    pub(super) ledger: ledger_task::Snapshots,
    /// The rules of the configuration.
    pub(super) policy: watch::Sender<Arc<Policy>>,
    clock: Clock,
    /// The store's connection to the API server.
    cluster: Option<Cluster>,
    cancel: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

pub(super) struct Setup {
    pub(super) term: u64,
    pub(super) network: Network,
    /// Whether the objects are watched; otherwise the test calls `show_objects`.
    pub(super) is_watched: bool,
    /// The Apps that the gateway's objects block.
    pub(super) blocked: Vec<InheritedBlock>,
    /// The cluster facts of an earlier term.
    pub(super) facts: ClusterFacts,
    /// How far the API server's clock is ahead of this replica's.
    pub(super) server_ahead: SignedDuration,
    /// How many tenants are newly notified per round.
    pub(super) max_notices: usize,
    /// Whether a round over all targets was done before the start.
    pub(super) has_round: bool,
    /// Whether there is an agent for [`Replica::accuse`].
    pub(super) has_agent: bool,
}

impl Setup {
    pub(super) fn new(term: u64, network: Network) -> Self {
        Self {
            term,
            network,
            is_watched: false,
            blocked: Vec::new(),
            facts: ClusterFacts::default(),
            server_ahead: SignedDuration::ZERO,
            max_notices: policy().max_notices_per_round,
            has_round: true,
            has_agent: false,
        }
    }
}

impl Replica {
    pub(super) fn start(server: &Server, setup: Setup) -> Self {
        let Setup { term, network, is_watched, blocked, facts, server_ahead, max_notices, .. } = setup;
        let cluster = server.cluster_over(network);
        let objects = Objects::new(cluster.clone(), "ours".to_owned());
        let (persisted_tx, persisted) = watch::channel(Arc::new(PersistedState::default()));
        let (watching, relist) = Watching::new(objects.clone());
        let relist = Some(relist).filter(|_| is_watched);
        let store = Store::Cluster(Box::new(ClusterStore::new(objects, relist)));
        let policy = Policy { max_notices_per_round: max_notices, ..policy() };
        let mut replica = Self::over(
            store,
            (persisted_tx, persisted),
            term,
            (blocked, facts),
            (policy, setup.has_round, setup.has_agent),
        );
        replica.cluster = Some(cluster);
        replica.set_server_time(server_ahead);
        if is_watched {
            let (error_tx, error) = watch::channel(None);
            replica.watching = error;
            let task = watching.run(replica.persisted.clone(), error_tx, replica.cancel.clone());
            replica.tasks.push(tokio::spawn(task));
        }
        replica
    }

    /// A service that persists its decisions in a file. With `has_agent` there is an agent for [`Replica::accuse`].
    pub(super) fn with_file(store: FileStore, blocked: Vec<InheritedBlock>, has_agent: bool) -> Self {
        let (persisted_tx, _) = watch::channel(Arc::default());
        let persisted = store.shown();
        Self::over(
            Store::File(store),
            (persisted_tx, persisted),
            1,
            (blocked, ClusterFacts::default()),
            (policy(), true, has_agent),
        )
    }

    fn over(
        store: Store,
        (persisted_tx, persisted): (watch::Sender<Arc<PersistedState>>, watch::Receiver<Arc<PersistedState>>),
        term: u64,
        (blocked, facts): (Vec<InheritedBlock>, ClusterFacts),
        (policy, has_round, has_agent): (Policy, bool, bool),
    ) -> Self {
        let clock = Clock::start();
        let mut ledger = ledger(clock, has_round, has_agent);
        let (publisher, snapshots) = ledger_task::snapshots(ledger.snapshot(clock.now()), clock);
        let (observations, observations_rx) = mpsc::channel(8);
        let (reminders_tx, reminders) = mpsc::channel(1);
        let (_, targets) = watch::channel(Arc::new(TargetSet::default()));
        let (_, gone) = mpsc::channel(1);
        let inbox = ledger_task::Inbox { observations: observations_rx, targets, gone, reminders };
        let ledger_task = tokio::spawn(ledger_task::run(ledger, clock, inbox, publisher));
        let (take_over, take_overs) = mpsc::channel(1);
        let (took_over_tx, took_over) = watch::channel(None);
        let output_task = tokio::spawn(answer(take_overs, blocked, took_over_tx));
        let permit = WritePermit::of_term(term, &format!("replica-{term}"));
        let (leadership_tx, leadership) = watch::channel(Leadership::Leading(permit));
        let (decided_tx, decided) =
            watch::channel(Arc::new(Decided::nothing(Plan::empty(Mode::Enforce, Timestamp::UNIX_EPOCH))));
        let (error_tx, error) = watch::channel(None);
        let (lookups_tx, lookups) =
            watch::channel(Arc::new(LookupRequests { epoch: 1, ..LookupRequests::default() }));
        let (written_tx, written) = watch::channel(Arc::default());
        let cancel = CancellationToken::new();
        let channels = Channels {
            leadership,
            persisted,
            take_over,
            reminders: reminders_tx,
            snapshots: snapshots.published(),
            progress: snapshots.progress(),
            ledger: snapshots.clone(),
            facts: watch::channel(Arc::new(facts)).1,
            written,
            lookups: lookups_tx,
            decided: decided_tx,
            error: error_tx,
        };
        let (policy, policy_rx) = watch::channel(Arc::new(policy));
        let task = PolicyTask {
            policy: policy_rx,
            retention: Duration::from_hours(24 * 30),
            store,
            clock,
            journal: Journal::default(),
            counters: Counters::default(),
            channels,
        };
        Self {
            persisted: persisted_tx,
            leadership: leadership_tx,
            decided,
            error,
            watching: watch::channel(None).1,
            observations,
            lookups,
            written: written_tx,
            took_over,
            ledger: snapshots,
            policy,
            clock,
            cluster: None,
            cancel,
            tasks: vec![ledger_task, output_task, tokio::spawn(task.run())],
        }
    }

    /// Sets the API server's clock this far ahead of the replica's.
    pub(super) fn set_server_time(&self, server_ahead: SignedDuration) {
        if let Some(cluster) = &self.cluster {
            cluster.set_server_time(Timestamp::now() + server_ahead);
        }
    }

    /// A node's agent accuses App `app` of namespace `ns-a` with a record that is new.
    pub(super) async fn accuse(&self, app: &str) {
        let (clock, now) = (self.clock.now(), Timestamp::now());
        let record = json!([{
            "pod": format!("{app}-0"), "namespace": "ns-a", "process": "xmrig", "regex": "^xmrig$", "type": "app",
            "name": app, "timestamp": now.to_string(),
        }]);
        let (answer, _) = decode(record.to_string().as_bytes(), &Limits::default());
        let outcome = Outcome::Complete(Answer { date: Some(now), ..answer });
        let report = Report { target: agent(), at: clock, outcome };
        self.observations.send(Observation::Report(report, Share::default())).await.unwrap();
        self.round_done().await;
    }

    /// Reports a round in which every target was asked and nothing is new.
    pub(super) async fn round_done(&self) {
        self.observations.send(Observation::RoundDone(Round::default())).await.unwrap();
    }

    /// Stops the service: the collector sends no more observations. Returns when the policy task has ended.
    pub(super) async fn end(mut self) {
        self.observations = mpsc::channel(1).0;
        while self.decided.changed().await.is_ok() {}
    }

    /// Passes the Lease to another replica.
    pub(super) fn follow(&self) {
        self.leadership.send_modify(|leadership| {
            if let Leadership::Leading(permit) = leadership {
                permit.give_up();
            }
            *leadership = Leadership::Following { leader: None };
        });
    }

    /// Shows the server's objects to the replica.
    pub(super) async fn show_objects(&self, server: &Server) {
        self.persisted.send_replace(Arc::new(server.objects().read().await.unwrap()));
    }

    /// The names of the blocked Apps.
    pub(super) fn blocked(&self) -> Vec<String> {
        self.decided.borrow().plan.blocks.iter().map(|block| block.app.name.to_string()).collect()
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.cancel.cancel();
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

fn ledger(clock: Clock, has_round: bool, has_agent: bool) -> Ledger {
    let mut ledger = Ledger::new(Detection::default(), clock.now());
    if has_agent {
        ledger.expect([agent()], 0);
    }
    if has_round {
        ledger.round_done();
    }
    ledger
}

/// Plays the output: answers each leader that takes over with the blocks of the gateway's objects.
async fn answer(
    mut take_overs: mpsc::Receiver<TakeOver>,
    blocked: Vec<InheritedBlock>,
    took_over: watch::Sender<Option<(bool, bool)>>,
) {
    while let Some(request) = take_overs.recv().await {
        took_over.send_replace(Some((request.may_touch, request.persisted.is_some())));
        let _ = request.blocked.send(blocked.clone());
    }
}

fn agent() -> Target {
    Target { address: "n1:9090".into(), node: NodeName::new("n1") }
}

pub(super) fn policy() -> Policy {
    let mut policy = Config::default().policy();
    policy.verify_pods = false;
    policy
}

pub(super) fn opened() -> Timestamp {
    "2026-11-01T08:00:00Z".parse().unwrap()
}

pub(super) fn name_of(app: &str) -> String {
    incident::name(&App::new("ns-a", "app", app), opened())
}

/// An Incident of App `app` in namespace `ns-a`, with one accusation.
pub(super) fn body(app: &str, state: &str) -> Value {
    let at = opened();
    let mut status = json!({
        "state": state, "opened": at, "since": at, "reason": "process `xmrig`", "approved": false,
        "evidence": [{
            "pod": format!("{app}-0"), "process": "xmrig", "node": "n1", "regex": "^xmrig$", "type": "app", "name": app,
            "firstSeen": at, "freshAt": at, "timestamp": "2026-11-01T08:00:00Z", "observations": 1,
        }],
        "processes": ["xmrig"], "exposure": {"services": [format!("{app}.ns-a.svc")], "ingresses": []},
        "decisions": [{"at": at, "decision": "held", "actor": "policy", "reason": "too many"}],
        "decided": 1, "observed": 0, "writer": "replica-0 in term 0",
    });
    if state == "Held" {
        status["brake"] = json!({"since": at, "brake": "NewApps"});
    }
    json!({
        "metadata": {}, "status": status,
        "spec": {"app": {"namespace": "ns-a", "type": "app", "name": app}},
    })
}

pub(super) fn decisions(incident: &Value) -> Vec<String> {
    let all = incident["status"]["decisions"].as_array().unwrap();
    all.iter().map(|entry| format!("{} by {}", entry["decision"], entry["actor"]).replace('"', "")).collect()
}
