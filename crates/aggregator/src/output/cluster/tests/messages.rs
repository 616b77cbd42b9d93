//! Notifications where some can't be written.

use std::time::Duration;

use procscan_core::plan::{Notice, NoticePhase, Summary};

use super::*;
use crate::config::Config;

/// What the API server does with messages of a namespace.
#[derive(Clone, Copy, Debug)]
enum Does {
    Refuses(u16, &'static str),
    Hangs,
}

/// An API server that stores the objects that it is sent, except in the namespaces that a test names.
#[derive(Clone, Default)]
struct Messages(Arc<Mutex<Stored>>);

#[derive(Default)]
struct Stored {
    objects: BTreeMap<String, Value>,
    does: BTreeMap<String, Does>,
    /// What it does in every namespace.
    all: Option<Does>,
    /// The namespaces of all requests about messages, in order.
    asked: Vec<String>,
}

impl Messages {
    fn output(&self) -> ClusterOutput {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move { Ok::<_, std::io::Error>(server.answer(request).await) }
        });
        ClusterOutput {
            permit: WritePermit::always(),
            ..ClusterOutput::new(Cluster::with_client(Client::new(service, "x")))
        }
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let body = body.collect_bytes().await.unwrap();
        let path = head.uri.path().to_owned();
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let (namespace, plural) = (parts[4].to_owned(), parts[5]);
        if plural == "notifications" {
            let does = {
                let mut stored = self.0.lock().unwrap();
                stored.asked.push(namespace.clone());
                stored.all.or_else(|| stored.does.get(&namespace).copied())
            };
            match does {
                // A tenant's object can be read, but not written.
                Some(Does::Refuses(500, text))
                    if text.contains("too large") && head.method == Method::GET => {}
                Some(Does::Refuses(code, message)) => return answer(code, &status(code, message)),
                Some(Does::Hangs) => std::future::pending().await,
                None => {}
            }
        }
        let mut stored = self.0.lock().unwrap();
        let version = (stored.objects.len() + 1).to_string();
        if head.method == Method::GET {
            if parts.len() == 6 {
                let list = json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": "1"}, "items": []});
                return answer(200, &list);
            }
            return match stored.objects.get(&path) {
                Some(object) => answer(200, object),
                None => answer(404, &status(404, "notifications.notification.sealos.io \"x\" not found")),
            };
        }
        let mut object: Value = serde_json::from_slice(&body).unwrap();
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        object["metadata"]["resourceVersion"] = version.into();
        let path = if parts.len() == 6 { format!("{path}/{name}") } else { path };
        stored.objects.insert(path, object.clone());
        answer(200, &object)
    }

    /// The namespaces that have a message.
    fn notified(&self) -> BTreeSet<String> {
        let stored = self.0.lock().unwrap();
        let paths = stored.objects.keys().filter(|path| path.contains("/notifications/"));
        paths.map(|path| path.split('/').nth(5).unwrap().to_owned()).collect()
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap().asked)
    }
}

fn status(code: u16, message: &str) -> Value {
    let reason = if code == 404 { "NotFound" } else { "" };
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code, "reason": reason,
           "message": message})
}

/// One notice for each App, `namespace/name`, and the administrators' summary.
fn notices(apps: &[&str]) -> Plan {
    let mut plan = Plan::empty(Mode::Enforce, Timestamp::UNIX_EPOCH);
    let sent_at: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
    plan.notices = apps
        .iter()
        .map(|app| {
            let (namespace, name) = app.split_once('/').unwrap();
            let app = App::new(namespace, "app", name);
            let phase = NoticePhase::Grace { until: sent_at };
            Arc::new(Notice {
                app,
                sent_at,
                inherited: false,
                phase,
                processes: ["xmrig".into()].into(),
                others: None,
            })
        })
        .collect();
    plan.summary = Summary { blocked: 0, in_grace: apps.len(), held: 0, changed: sent_at };
    plan
}

const APPS: [&str; 4] = ["ns-a/web", "ns-b/web", "ns-c/web", "ns-d/web"];

fn all_but(left: &[&str]) -> BTreeSet<String> {
    let all = ["default", "ns-a", "ns-b", "ns-c", "ns-d"];
    all.iter().filter(|name| !left.contains(name)).map(|name| (*name).to_owned()).collect()
}

async fn write(output: &mut ClusterOutput, plan: &Plan) -> Outcome {
    output.write(plan, &Config::default().settings(), &WritePermit::always(), || true).await
}

#[tokio::test(start_paused = true)]
async fn a_message_that_can_not_be_written_is_set_aside_and_all_others_are_written() {
    for does in [
        Does::Refuses(500, "etcdserver: request is too large"),
        Does::Refuses(413, "Request entity too large: limit is 3145728"),
        Does::Refuses(422, "Notification.notification.sealos.io \"x\" is invalid"),
        Does::Refuses(400, "not like this"),
        Does::Refuses(409, "the object has been modified"),
        Does::Refuses(403, "notifications.notification.sealos.io is forbidden"),
        Does::Refuses(500, "Internal error occurred: failed calling webhook \"x.y\""),
        Does::Refuses(404, "admission webhook \"x.y\" denied the request"),
        Does::Hangs,
    ] {
        let server = Messages::default();
        let mut output = server.output();
        // The first one in alphabetical order, and two of one tenant.
        for namespace in ["ns-a", "ns-c"] {
            server.0.lock().unwrap().does.insert(namespace.to_owned(), does);
        }
        let plan = notices(&APPS);
        let outcome = write(&mut output, &plan).await;
        assert_eq!(server.notified(), all_but(&["ns-a", "ns-c"]), "{does:?}");
        assert_eq!((outcome.problems, outcome.deferred.count), (Vec::new(), 2), "{does:?}");
        assert!(
            !output.has_sent(&plan.notices[0], &Config::default().settings())
                && output.has_sent(&plan.notices[1], &Config::default().settings()),
            "{does:?}"
        );

        // It is not tried again at once, and then less and less often.
        server.asked();
        let is_slow = matches!(does, Does::Hangs);
        assert_eq!(write(&mut output, &plan).await.deferred.count, 2);
        assert!(is_slow || !server.asked().iter().any(|namespace| namespace == "ns-a"), "{does:?}");
        let mut tries = 0;
        for _ in 0..60 {
            tokio::time::advance(Duration::from_secs(5)).await;
            write(&mut output, &plan).await;
            tries += usize::from(server.asked().iter().any(|namespace| namespace == "ns-a"));
        }
        assert!(is_slow || (4..=7).contains(&tries), "{does:?}: {tries} in five minutes");

        server.0.lock().unwrap().does.clear();
        tokio::time::advance(Duration::from_mins(5)).await;
        let outcome = write(&mut output, &plan).await;
        assert_eq!((server.notified(), outcome.deferred.count), (all_but(&[]), 0), "{does:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn in_a_namespace_that_is_being_deleted_no_message_is_written() {
    let server = Messages::default();
    let going = "unable to create new content in namespace ns-a because it is being terminated";
    server.0.lock().unwrap().does.insert("ns-a".to_owned(), Does::Refuses(403, going));
    let outcome = write(&mut server.output(), &notices(&APPS)).await;
    assert_eq!((server.notified(), outcome.deferred.count), (all_but(&["ns-a"]), 0));
}

#[tokio::test(start_paused = true)]
async fn a_pass_ends_only_when_three_namespaces_in_a_row_have_no_answer() {
    let server = Messages::default();
    let mut output = server.output();
    let plan = notices(&["ns-a/1", "ns-a/2", "ns-a/3", "ns-b/1", "ns-c/1", "ns-d/1", "ns-e/1"]);
    for does in [
        Does::Refuses(503, "shutting down"),
        Does::Refuses(500, "etcdserver: leader changed"),
        Does::Refuses(429, "too many requests"),
        Does::Refuses(401, "Unauthorized"),
        Does::Hangs,
    ] {
        server.0.lock().unwrap().all = Some(does);
        tokio::time::advance(Duration::from_secs(6)).await;
        let outcome = write(&mut output, &plan).await;
        // Each namespace is asked once, so that one tenant's many Apps neither take the time nor look like an outage.
        assert_eq!(server.asked(), ["ns-a", "ns-b", "ns-c"], "{does:?}");
        assert_eq!(outcome.problems.len(), 1, "{does:?}: {:?}", outcome.problems);
    }
    // Once the server answers again, all are notified soon.
    server.0.lock().unwrap().all = None;
    tokio::time::advance(Duration::from_secs(6)).await;
    let outcome = write(&mut output, &plan).await;
    assert_eq!((outcome.problems.len(), outcome.deferred.count), (0, 0));
    assert_eq!(server.notified().len(), 6);

    // Two without an answer, one with an answer, and two without: no outage.
    let server = Messages::default();
    for namespace in ["ns-a", "ns-b", "ns-d"] {
        server
            .0
            .lock()
            .unwrap()
            .does
            .insert(namespace.to_owned(), Does::Refuses(500, "failed calling webhook"));
    }
    let outcome = write(&mut server.output(), &notices(&APPS)).await;
    assert_eq!((server.notified(), outcome.problems), (all_but(&["ns-a", "ns-b", "ns-d"]), Vec::new()));
}

#[tokio::test(start_paused = true)]
async fn what_is_set_aside_does_not_keep_old_messages_from_being_put_right() {
    let server = Messages::default();
    let mut output = server.output();
    let plan = notices(&APPS);
    write(&mut output, &plan).await;
    {
        let mut stored = server.0.lock().unwrap();
        for object in stored.objects.values_mut() {
            object["spec"]["title"] = "changed".into();
        }
        stored.does.insert("ns-b".to_owned(), Does::Refuses(500, "etcdserver: request is too large"));
    }
    let outcome = write(&mut output, &plan).await;
    assert_eq!((outcome.problems, outcome.deferred.count), (Vec::new(), 1));
    assert!(outcome.deferred.why[0].contains("request is too large"), "{:?}", outcome.deferred);
    let stored = server.0.lock().unwrap();
    let changed: Vec<&String> = stored
        .objects
        .iter()
        .filter(|(_, object)| object["spec"]["title"] == "changed")
        .map(|(path, _)| path)
        .collect();
    assert!(changed.len() == 1 && changed[0].contains("ns-b"), "{changed:?}");
}

#[tokio::test]
async fn the_status_shows_how_many_messages_are_set_aside_and_why() {
    let (status, now) = tokio::sync::watch::channel(crate::output::OutputStatus::default());
    let output = crate::output::Output::Cluster(Box::new(Messages::default().output()));
    let deferred = crate::output::DeferredSummary { count: 7, why: vec!["too large".to_owned()], next: None };
    crate::output::report(&output, Outcome { deferred, ..Outcome::default() }, &status);
    let shown = now.borrow().clone();
    assert!(shown.has_written && shown.error.is_none(), "{shown:?}");
    assert_eq!(shown.deferred.as_deref(), Some("set aside and tried again later: 7 messages: too large"));
    crate::output::report(&output, Outcome::default(), &status);
    assert_eq!(now.borrow().deferred, None);
}

#[tokio::test]
async fn what_the_program_before_has_left_behind_is_named_and_ours_is_not() {
    let server = Messages::default();
    let output = server.output();
    let settings = Config::default().settings();
    let named = async |settings: &Settings| {
        let left = output.left_behind(settings).await.unwrap();
        left.iter()
            .map(|left| format!("{} {}/{}", left.kind.resource(), left.namespace, left.name))
            .collect::<Vec<_>>()
    };
    assert_eq!(named(&settings).await, Vec::<String>::new());
    let put = |path: &str, object: Value| {
        server.0.lock().unwrap().objects.insert(path.to_owned(), object);
    };
    let plugin = json!({"apiVersion": wasm_plugin::KIND.api_version(), "kind": "WasmPlugin", "metadata": {"name": "x"}, "spec": {}});
    put("/apis/extensions.higress.io/v1alpha1/namespaces/default/wasmplugins/procscan-violations", plugin);
    let message = |annotations: Value| {
        json!({"apiVersion": notification::KIND.api_version(), "kind": "Notification",
               "metadata": {"name": "x", "annotations": annotations}})
    };
    let path = "/apis/notification.sealos.io/v1/namespaces/default/notifications/procscan-notification";
    put(path, message(json!({})));
    let both = [
        "wasmplugins.extensions.higress.io default/procscan-violations",
        "notifications.notification.sealos.io default/procscan-notification",
    ];
    assert_eq!(named(&settings).await, both);
    // The summary has the same name, and the gateway's namespace may be this one.
    put(path, message(json!({notification::CHANGE_ANNOTATION: "x"})));
    assert_eq!(named(&settings).await, both[..1]);
    let mut there = settings.clone();
    there.gateway.namespace = "default".into();
    assert_eq!(named(&there).await, Vec::<String>::new());
}
