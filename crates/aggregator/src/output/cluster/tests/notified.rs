//! Messages that tenants have read, deleted or edited, and messages of an earlier leader.

use procscan_core::plan::{Notice, NoticePhase, Summary};

use super::world::{ApiServer, MESSAGES};
use super::*;

const NAMESPACE: &str = "ns-a";

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn notice(phase: NoticePhase) -> Notice {
    Notice {
        app: App::new(NAMESPACE, "app", "web"),
        sent_at: at("2026-01-02T03:04:05Z"),
        inherited: false,
        phase,
        processes: ["xmrig".into()].into(),
        others: None,
    }
}

fn grace() -> Notice {
    notice(NoticePhase::Grace { until: at("2026-01-02T04:00:00Z") })
}

fn plan_of(notices: Vec<Notice>) -> Plan {
    let mut plan = Plan::empty(Mode::Enforce, Timestamp::UNIX_EPOCH);
    plan.notices = notices.into_iter().map(Arc::new).collect();
    plan
}

async fn write(output: &mut ClusterOutput, plan: &Plan) -> Outcome {
    let outcome = output.write(plan, &Config::default().settings(), &WritePermit::always(), || true).await;
    assert_eq!(outcome.problems, Vec::<String>::new());
    outcome
}

fn name() -> String {
    notification::name(&App::new(NAMESPACE, "app", "web"))
}

fn message(server: &ApiServer) -> Option<Value> {
    server.get(MESSAGES, NAMESPACE, &name())
}

fn edit(server: &ApiServer, edit: impl FnOnce(&mut Value)) {
    server.world().edit(MESSAGES, NAMESPACE, &name(), edit);
}

/// As the desktop marks a message as read: it replaces all labels.
fn read(message: &mut Value) {
    message["metadata"]["labels"] = json!({"isRead": "true"});
}

/// A server with the gateway's object, which closes nothing.
async fn open() -> ApiServer {
    let server = ApiServer::default();
    write(&mut server.output(), &plan_of(Vec::new())).await;
    server.writes();
    server
}

/// A server on which the tenant has been notified, and the output that has notified it.
async fn notified() -> (ApiServer, ClusterOutput, Plan) {
    let (server, plan) = (open().await, plan_of(vec![grace()]));
    let mut output = server.output();
    write(&mut output, &plan).await;
    assert!(output.has_sent(&plan.notices[0], &Config::default().settings()) && message(&server).is_some());
    server.writes();
    (server, output, plan)
}

#[tokio::test]
async fn what_its_tenant_has_read_stays_read_and_an_edited_text_is_put_right() {
    let (server, mut output, plan) = notified().await;
    let before = message(&server).unwrap();
    edit(&server, read);
    assert_eq!(write(&mut output, &plan).await.written, 0);
    assert_eq!(server.writes(), Vec::<String>::new());
    edit(&server, |message| message["spec"]["title"] = "You have won".into());
    assert_eq!(write(&mut output, &plan).await.written, 1);
    let now = message(&server).unwrap();
    assert_eq!((&now["spec"], &now["metadata"]["labels"]["isRead"]), (&before["spec"], &json!("true")));
    assert_eq!(server.world().writes[0].manager.as_deref(), Some(FIELD_MANAGER));
}

#[tokio::test]
async fn a_message_that_its_tenant_has_deleted_stays_deleted_until_there_is_a_new_notice() {
    let (server, mut output, mut plan) = notified().await;
    server.world().remove(MESSAGES, NAMESPACE, &name());
    write(&mut output, &plan).await;
    assert!(message(&server).is_none() && output.has_sent(&plan.notices[0], &Config::default().settings()));
    // It is not looked for again.
    server.world().asked.clear();
    write(&mut output, &plan).await;
    assert!(!server.world().asked.iter().any(|asked| asked.namespace.as_deref() == Some(NAMESPACE)));
    assert!(message(&server).is_none() && output.has_sent(&plan.notices[0], &Config::default().settings()));
    // Another text of the same notice is no new notice either.
    Arc::make_mut(&mut plan.notices[0]).processes = ["other".into(), "xmrig".into()].into();
    write(&mut output, &plan).await;
    assert!(message(&server).is_none());
    let new = Notice { sent_at: at("2026-01-03T00:00:00Z"), ..grace() };
    let plan = plan_of(vec![new]);
    assert!(!output.has_sent(&plan.notices[0], &Config::default().settings()));
    write(&mut output, &plan).await;
    assert!(message(&server).is_some() && output.has_sent(&plan.notices[0], &Config::default().settings()));
}

#[tokio::test]
async fn another_text_of_the_same_notice_is_written_and_stays_read_and_a_new_notice_is_unread() {
    let (server, mut output, mut plan) = notified().await;
    edit(&server, read);
    Arc::make_mut(&mut plan.notices[0]).processes = ["other".into(), "xmrig".into()].into();
    assert_eq!(write(&mut output, &plan).await.written, 1);
    let now = message(&server).unwrap();
    assert!(now["spec"].to_string().contains("other"), "{now:#}");
    assert_eq!(now["metadata"]["labels"]["isRead"], "true");
    let plan = plan_of(vec![Notice { sent_at: at("2026-01-03T00:00:00Z"), ..grace() }]);
    assert_eq!(write(&mut output, &plan).await.written, 1);
    assert_eq!(message(&server).unwrap()["metadata"]["labels"]["isRead"], "false");
}

#[tokio::test]
async fn another_leader_sends_no_notice_again_that_the_one_before_has_sent() {
    let (server, _, mut plan) = notified().await;
    edit(&server, read);
    let mut next = server.output();
    assert_eq!(write(&mut next, &plan).await.written, 0);
    assert!(next.has_sent(&plan.notices[0], &Config::default().settings()));
    assert_eq!(server.writes(), Vec::<String>::new());
    // It has another text for it, such as that of a newer version, and puts its own right from then on.
    Arc::make_mut(&mut plan.notices[0]).processes = ["other".into(), "xmrig".into()].into();
    let mut next = server.output();
    for title in ["Blocked", "You have won"] {
        edit(&server, |message| message["spec"]["title"] = title.into());
        assert_eq!(write(&mut next, &plan).await.written, 1);
        let now = message(&server).unwrap();
        assert!(now["spec"].to_string().contains("other") && now["spec"]["title"] != title, "{now:#}");
        assert_eq!(now["metadata"]["labels"]["isRead"], "true");
    }
    // What is there is of an earlier block.
    let plan = plan_of(vec![Notice { sent_at: at("2026-01-03T00:00:00Z"), ..grace() }]);
    let mut next = server.output();
    assert_eq!(write(&mut next, &plan).await.written, 1);
    assert_eq!(message(&server).unwrap()["metadata"]["labels"]["isRead"], "false");
}

/// Without the annotation it is not known which notice the message is of.
#[tokio::test]
async fn a_message_without_the_time_of_its_notice_is_written_anew() {
    let (server, _, plan) = notified().await;
    edit(&server, |message| {
        read(message);
        message["metadata"]["annotations"] = json!({});
    });
    assert_eq!(write(&mut server.output(), &plan).await.written, 1);
    assert_eq!(message(&server).unwrap()["metadata"]["labels"]["isRead"], "false");
}

#[tokio::test]
async fn a_message_that_was_sent_before_the_start_is_neither_read_nor_written() {
    let server = open().await;
    let plan = plan_of(vec![Notice { inherited: true, ..notice(NoticePhase::Blocked) }]);
    let mut output = server.output();
    assert_eq!(write(&mut output, &plan).await.written, 0);
    assert!(output.has_sent(&plan.notices[0], &Config::default().settings()) && message(&server).is_none());
    assert!(!server.world().asked.iter().any(|asked| asked.namespace.as_deref() == Some(NAMESPACE)));
}

#[tokio::test]
async fn a_message_whose_cause_is_over_is_marked_as_read_and_nothing_is_made_for_it() {
    let recovered = plan_of(vec![notice(NoticePhase::Recovered)]);
    let (server, mut output, _) = notified().await;
    assert_eq!(write(&mut output, &recovered).await.written, 1);
    assert_eq!(message(&server).unwrap()["metadata"]["labels"]["isRead"], "true");
    assert_eq!(server.world().writes[0].manager.as_deref(), Some(FIELD_MANAGER));
    server.writes();
    // It is so already; and it stays as its reader leaves it.
    assert_eq!(write(&mut server.output(), &recovered).await.written, 0);
    edit(&server, |message| message["spec"]["title"] = "x".into());
    assert_eq!(write(&mut output, &recovered).await.written, 0);
    assert_eq!(server.writes(), Vec::<String>::new());
    // Deleted long ago, or at the same moment.
    server.world().remove(MESSAGES, NAMESPACE, &name());
    assert_eq!(write(&mut server.output(), &recovered).await.written, 0);
    let (server, mut output, _) = notified().await;
    server.before(|world, asked| {
        if asked.method == Method::PATCH {
            world.remove(MESSAGES, NAMESPACE, &name());
        }
        None
    });
    let outcome = write(&mut output, &recovered).await;
    assert_eq!((outcome.written, outcome.deferred.count), (0, 0));
    // Any other refusal is tried again later.
    let (server, mut output, _) = notified().await;
    server.before(|_, asked| (asked.method == Method::PATCH).then(|| (403, "not today".to_owned())));
    assert_eq!(write(&mut output, &recovered).await.deferred.count, 1);
}

/// A namespace that is being deleted takes no message, whichever request finds that out.
#[tokio::test]
async fn where_the_namespace_is_gone_the_tenant_counts_as_notified() {
    for method in [Method::GET, Method::POST] {
        let (server, plan, refused) = (open().await, plan_of(vec![grace()]), method.clone());
        server.before(move |_, asked| {
            let is_there = asked.plural == MESSAGES && asked.namespace.as_deref() == Some(NAMESPACE);
            let gone = "because it is being terminated".to_owned();
            (is_there && asked.method == refused).then_some((403, gone))
        });
        let mut output = server.output();
        let outcome = write(&mut output, &plan).await;
        assert_eq!((outcome.written, outcome.deferred.count), (0, 0));
        assert!(output.has_sent(&plan.notices[0], &Config::default().settings()));
        let of_tenant = |asked: &&world::Asked| asked.namespace.as_deref() == Some(NAMESPACE);
        let tried = server.world().asked.iter().filter(of_tenant).count();
        assert_eq!(tried, if method == Method::GET { 1 } else { 2 });
        let asked = server.world().asked.len();
        write(&mut output, &plan).await;
        let again = server.world().asked[asked..].to_vec();
        assert!(again.iter().all(|asked| asked.plural != MESSAGES), "{again:?}");
    }
}

/// A summary of `blocked` Apps.
fn summed(blocked: usize) -> Plan {
    let changed =
        at("2026-01-02T03:04:05Z") + jiff::SignedDuration::from_secs(i64::try_from(blocked).unwrap());
    let mut plan = plan_of(Vec::new());
    plan.summary = Summary { blocked, in_grace: 0, held: 0, changed };
    plan
}

#[tokio::test]
async fn the_summary_is_unread_only_after_its_text_changes_and_stays_where_it_is_when_all_is_over() {
    let server = ApiServer::default();
    let summary = || {
        let now = server.get(MESSAGES, "default", notification::SUMMARY_NAME)?;
        Some((now["spec"].to_string(), now["metadata"]["labels"]["isRead"].clone()))
    };
    let mut output = server.output();
    write(&mut output, &summed(0)).await;
    assert_eq!(summary(), None, "there is nothing to report");
    write(&mut output, &summed(2)).await;
    let (text, is_read) = summary().unwrap();
    assert!(text.contains("2 blocked") && is_read == "false", "{text}");
    server.world().edit(MESSAGES, "default", notification::SUMMARY_NAME, read);
    // Another leader, which knows another time for the same.
    let mut again = summed(2);
    again.summary.changed += jiff::SignedDuration::from_hours(1);
    assert_eq!(write(&mut server.output(), &again).await.written, 0);
    assert_eq!(summary().unwrap().1, "true");
    assert_eq!(write(&mut output, &summed(3)).await.written, 1);
    let (text, is_read) = summary().unwrap();
    assert!(text.contains("3 blocked") && is_read == "false", "{text}");
    write(&mut output, &summed(0)).await;
    let (text, is_read) = summary().unwrap();
    assert!(text.contains("0 blocked") && is_read == "true", "{text}");
}

/// Drift in old messages is no emergency: each pass compares the next twenty.
#[tokio::test]
async fn edited_messages_are_put_right_in_turn_twenty_in_each_pass() {
    let server = ApiServer::default();
    let notices = (0..45).map(|n| Notice { app: App::new(format!("ns-{n:02}"), "app", "web"), ..grace() });
    let plan = plan_of(notices.collect());
    let mut output = server.output();
    write(&mut output, &plan).await;
    let keys: Vec<_> = server.world().objects.keys().filter(|(of, ..)| of == MESSAGES).cloned().collect();
    assert_eq!(keys.len(), 45);
    for (plural, namespace, name) in &keys {
        server.world().edit(plural, namespace, name, |message| message["spec"]["title"] = "x".into());
    }
    server.world().remove(&keys[3].0, &keys[3].1, &keys[3].2);
    server.writes();
    let mut written = Vec::new();
    for _ in 0..4 {
        written.push(write(&mut output, &plan).await.written);
    }
    // The first twenty were compared when they had just been written, and one is deleted.
    assert_eq!((written.iter().sum::<usize>(), written.iter().max()), (44, Some(&20)), "{written:?}");
    assert_eq!(server.writes().len(), 44);
    let is_right = |message: &Value| message["spec"]["title"] != "x";
    assert!(server.world().objects.values().filter(|it| it["kind"] == "Notification").all(is_right));
    assert!(server.get(MESSAGES, &keys[3].1, &keys[3].2).is_none());
}

#[tokio::test]
async fn without_the_crd_of_messages_the_gateway_is_closed_and_one_problem_says_so() {
    let server = ApiServer::default();
    server.world().unserved.insert(MESSAGES.to_owned());
    let mut plan = plan(2);
    let of = |n: usize| Arc::new(Notice { app: App::new(format!("ns-{n}"), "app", "web"), ..grace() });
    plan.notices = (0..3).map(of).collect();
    let settings = Config::default().settings();
    let outcome = server.output().write(&plan, &settings, &WritePermit::always(), || true).await;
    let [problem] = &outcome.problems[..] else { panic!("{outcome:?}") };
    assert!(problem.contains("notifications.notification.sealos.io: is its CRD installed?"), "{problem}");
    assert_eq!((outcome.written, outcome.deferred.count), (1, 0));
}

/// What `plan` says would happen.
#[tokio::test]
async fn a_preview_names_what_would_be_written_and_writes_nothing() {
    let server = ApiServer::default();
    let settings = Config::default().settings();
    let mut all = plan(1);
    all.notices = vec![Arc::new(grace())];
    all.summary = summed(1).summary;
    let preview = async |plan: &Plan| {
        let all = server.output().preview(plan, &settings).await.unwrap();
        let actions = all.iter().map(|of| format!("{} {}", of.action, of.object.split(' ').next().unwrap()));
        actions.collect::<Vec<_>>()
    };
    let create = ["create WasmPlugin", "create Notification", "create Notification"];
    assert_eq!(preview(&all).await, create);
    assert!(server.world().objects.is_empty() && server.writes().is_empty());
    server.output().write(&all, &settings, &WritePermit::always(), || true).await;
    assert_eq!(preview(&all).await, Vec::<String>::new());
    // The same text at another time is no difference.
    let mut later = all.clone();
    later.summary.changed += jiff::SignedDuration::from_hours(1);
    assert_eq!(preview(&later).await, Vec::<String>::new());
    let mut more = plan(2);
    more.notices = vec![Arc::new(Notice { sent_at: at("2026-01-03T00:00:00Z"), ..grace() })];
    more.summary = summed(2).summary;
    let change = ["change WasmPlugin", "change Notification", "change Notification"];
    assert_eq!(preview(&more).await, change);
    let mut over = plan(1);
    over.notices = vec![Arc::new(notice(NoticePhase::Recovered))];
    over.summary = all.summary;
    assert_eq!(preview(&over).await, ["mark as read Notification"]);
    edit(&server, read);
    assert_eq!(preview(&over).await, Vec::<String>::new());
    over.notices = vec![Arc::new(Notice { inherited: true, ..notice(NoticePhase::Blocked) })];
    assert_eq!(preview(&over).await, Vec::<String>::new());

    server.world().unserved.insert("wasmplugins".to_owned());
    assert_eq!(preview(&over).await, ["create WasmPlugin"]);
    server.before(|_, asked| (asked.plural == "wasmplugins").then(|| (403, "not today".to_owned())));
    assert!(server.output().preview(&over, &settings).await.is_err());
}
