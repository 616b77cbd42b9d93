//! The output as it runs: how often it compares, what it tries again and when, and what it says.

use std::time::Duration;

use procscan_core::plan::{Notice, NoticePhase};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::sleep;

use super::world::{ApiServer, MESSAGES, PLUGINS};
use super::*;
use crate::clock::Clock;
use crate::counters::Counters;
use crate::decided::{Decided, TakeOver, WrittenNotifications};
use crate::output::{BlockDelays, Channels, Output, OutputStatus, run};

const REPAIR: Duration = Duration::from_mins(1);

struct Running {
    decide: watch::Sender<Arc<Decided>>,
    take_over: mpsc::Sender<TakeOver>,
    delivered: watch::Receiver<Arc<WrittenNotifications>>,
    status: watch::Receiver<OutputStatus>,
    permit: WritePermit,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    fn start(server: &ApiServer, decided: Plan) -> Self {
        let permit = WritePermit::of_term(1, "a");
        let (decide, decided) = watch::channel(Arc::new(of(decided, &permit)));
        let (take_over, asked) = mpsc::channel(1);
        let (delivered_tx, delivered) = watch::channel(Arc::default());
        let (status_tx, status) = watch::channel(OutputStatus::default());
        let settings = watch::channel(Arc::new(Config::default().settings())).1;
        let delays = BlockDelays::new(Clock::start(), Counters::default());
        let channels = Channels {
            take_over: asked,
            decided,
            delivered: delivered_tx,
            status: status_tx,
            settings,
            delays,
        };
        let output = Output::Cluster(Box::new(server.output_of(&permit)));
        let task = tokio::spawn(run(output, REPAIR, channels));
        Self { decide, take_over, delivered, status, permit, task }
    }

    fn decides(&self, plan: Plan) {
        self.decide.send_replace(Arc::new(of(plan, &self.permit)));
    }

    fn error(&self) -> Option<String> {
        self.status.borrow().error.clone()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn of(plan: Plan, permit: &WritePermit) -> Decided {
    Decided { rounds: 1, permit: Some(permit.clone()), ..Decided::nothing(plan) }
}

fn looks(server: &ApiServer) -> usize {
    let asked = std::mem::take(&mut server.world().asked);
    asked.iter().filter(|asked| asked.plural == PLUGINS && asked.method == Method::GET).count()
}

fn notice(namespace: &str, phase: NoticePhase) -> Arc<Notice> {
    Arc::new(Notice {
        app: App::new(namespace, "app", "web"),
        sent_at: "2026-01-02T03:04:05Z".parse().unwrap(),
        inherited: false,
        phase,
        processes: ["xmrig".into()].into(),
        others: None,
    })
}

fn closed(server: &ApiServer) -> usize {
    let world = server.world();
    let plugins = world.objects.iter().filter(|((plural, ..), _)| plural == PLUGINS);
    let hosts: BTreeSet<&str> = plugins.flat_map(|(_, plugin)| hosts(&plugin["spec"])).collect();
    hosts.into_iter().filter(|host| *host != wasm_plugin::SENTINEL).count()
}

#[tokio::test(start_paused = true)]
async fn each_change_is_written_at_once_and_everything_is_compared_again_in_each_round() {
    let server = ApiServer::default();
    let running = Running::start(&server, plan(1));
    sleep(Duration::from_secs(2)).await;
    assert_eq!(closed(&server), 1);
    assert!(running.status.borrow().has_written);
    looks(&server);
    sleep(Duration::from_mins(10)).await;
    let compared = looks(&server);
    assert!((9..=11).contains(&compared), "{compared} times in ten rounds");
    running.decides(plan(3));
    sleep(Duration::from_secs(2)).await;
    assert_eq!((closed(&server), looks(&server)), (3, 1));
    // The same again is no change.
    running.decides(plan(3));
    sleep(Duration::from_secs(2)).await;
    assert_eq!(looks(&server), 0);
    // An operator opens it.
    server.world().edit(PLUGINS, "higress-system", "procscan-violations", |plugin| {
        plugin["spec"]["matchRules"] = json!([]);
    });
    sleep(REPAIR).await;
    assert_eq!(closed(&server), 3);
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_is_tried_again_after_a_second_and_less_and_less_often() {
    let server = ApiServer::default();
    let refuse =
        || server.before(|_, asked| (asked.method != Method::GET).then(|| (403, "not today".to_owned())));
    refuse();
    let running = Running::start(&server, plan(1));
    let mut tried = Vec::new();
    for _ in 0..5 {
        sleep(Duration::from_secs(10)).await;
        tried.push(looks(&server));
    }
    // At 0, 1, 3, 7, 15, 31 s.
    assert_eq!(tried, [4, 1, 0, 1, 0]);
    assert!(running.error().unwrap().contains("not today (403)"));
    server.well();
    sleep(REPAIR).await;
    assert_eq!((closed(&server), running.error()), (1, None));
    // The next trouble begins with a second again.
    refuse();
    running.decides(plan(2));
    looks(&server);
    sleep(Duration::from_secs(10)).await;
    assert_eq!(looks(&server), 4);
    // A change does not wait for the end of the pause.
    sleep(Duration::from_mins(5)).await;
    looks(&server);
    running.decides(plan(3));
    sleep(Duration::from_millis(10)).await;
    assert_eq!(looks(&server), 1);
}

/// Another replica leads now: it writes what this one could not write, and reports its own errors.
#[tokio::test(start_paused = true)]
async fn a_right_that_is_lost_while_it_writes_leaves_no_error_and_no_further_writes() {
    let server = ApiServer::default();
    let running = Running::start(&server, plan(1));
    sleep(Duration::from_secs(2)).await;
    server.writes();
    let permit = running.permit.clone();
    server.before(move |_, asked| {
        if asked.method != Method::GET {
            permit.give_up();
        }
        (asked.method != Method::GET).then(|| (403, "not today".to_owned()))
    });
    running.decides(plan(2));
    sleep(Duration::from_secs(2)).await;
    assert!(!running.permit.holds());
    assert_eq!(running.error(), None);
    server.well();
    looks(&server);
    sleep(REPAIR * 3).await;
    assert_eq!((looks(&server), server.writes().len()), (0, 0));
    assert!(running.status.borrow().has_written);
}

/// The gateway goes before the messages of an earlier decision.
#[tokio::test(start_paused = true)]
async fn what_is_decided_while_messages_are_written_is_closed_before_the_next_message() {
    let server = ApiServer::default();
    let grace = NoticePhase::Grace { until: Timestamp::UNIX_EPOCH };
    let notices: Vec<_> = (0..5).map(|n| notice(&format!("ns-{n}"), grace)).collect();
    let with = |apps: usize| Plan { notices: notices.clone(), ..plan(apps) };
    let running = Running::start(&server, plan(1));
    sleep(Duration::from_secs(2)).await;
    server.writes();
    let (decide, changed) = (running.decide.clone(), Arc::new(of(with(3), &running.permit)));
    let mut is_first = true;
    server.before(move |_, asked| {
        if asked.plural == MESSAGES && asked.method == Method::POST && is_first {
            is_first = false;
            decide.send_replace(changed.clone());
        }
        None
    });
    running.decides(with(2));
    sleep(Duration::from_secs(5)).await;
    let kinds: Vec<String> =
        server.writes().iter().map(|it| it.split(' ').nth(1).unwrap().to_owned()).collect();
    let first: Vec<_> = kinds.iter().take(4).map(String::as_str).collect();
    assert_eq!(first, [PLUGINS, MESSAGES, PLUGINS, MESSAGES], "{kinds:?}");
    assert_eq!(kinds.iter().filter(|kind| *kind == MESSAGES).count(), 5, "{kinds:?}");
}

#[tokio::test(start_paused = true)]
async fn only_notices_that_are_written_count_as_delivered() {
    let server = ApiServer::default();
    server.before(|_, asked| {
        let is_refused = asked.method == Method::POST && asked.namespace.as_deref() == Some("ns-b");
        is_refused.then(|| (422, "is invalid".to_owned()))
    });
    let grace = NoticePhase::Grace { until: Timestamp::UNIX_EPOCH };
    let mut all = plan(0);
    all.notices = vec![
        notice("ns-a", grace),
        notice("ns-b", grace),
        notice("ns-c", NoticePhase::Recovered),
        Arc::new(Notice { inherited: true, ..Notice::clone(&notice("ns-d", NoticePhase::Blocked)) }),
    ];
    let running = Running::start(&server, all);
    let delivered =
        || running.delivered.borrow().keys().map(|app| app.namespace.to_string()).collect::<Vec<_>>();
    sleep(Duration::from_secs(2)).await;
    assert_eq!(delivered(), ["ns-a"]);
    assert_eq!(running.error(), None);
    let aside = running.status.borrow().deferred.clone().unwrap();
    assert!(aside.contains("1 messages") && aside.contains("is invalid"), "{aside}");
    // It is tried again before the round is over.
    server.well();
    sleep(Duration::from_secs(6)).await;
    assert_eq!(delivered(), ["ns-a", "ns-b"]);
    assert_eq!(running.status.borrow().deferred, None);
}

#[tokio::test(start_paused = true)]
async fn a_new_leader_is_answered_as_soon_as_the_api_server_says_what_is_blocked() {
    let server = ApiServer::default();
    let settings = Config::default().settings();
    server.output().write(&plan(2), &settings, &WritePermit::always(), || true).await;
    server.before(|_, _| Some((403, "not today".to_owned())));
    let running = Running::start(&server, Plan::empty(Mode::DryRun, Timestamp::UNIX_EPOCH));
    let (answer, blocked) = oneshot::channel();
    let permit = WritePermit::of_term(2, "b");
    let question = TakeOver { permit: permit.clone(), may_touch: true, persisted: None, blocked: answer };
    assert!(running.take_over.send(question).await.is_ok());
    looks(&server);
    sleep(Duration::from_secs(10)).await;
    // At 0, 1, 3, 7 s.
    assert_eq!(looks(&server), 4);
    assert!(running.error().unwrap().contains("not today (403)"));
    server.well();
    assert_eq!(blocked.await.unwrap().len(), 2);
    assert_eq!(running.error(), None);
    // A question of a leader whose term has ended is not answered.
    let (answer, blocked) = oneshot::channel();
    server.before(|_, _| Some((403, "not today".to_owned())));
    assert!(
        running
            .take_over
            .send(TakeOver { permit: permit.clone(), may_touch: true, persisted: None, blocked: answer })
            .await
            .is_ok()
    );
    sleep(Duration::from_secs(2)).await;
    permit.give_up();
    assert!(blocked.await.is_err());
}
