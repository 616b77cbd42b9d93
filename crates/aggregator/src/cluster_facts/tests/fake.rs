//! An API server in memory: lists in pages, single objects and watches; it records the requests.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt};
use http_body_util::StreamBody;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Frame;
use hyper::{Request, Response};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

/// How often a watch sends a bookmark.
const BOOKMARKS: Duration = Duration::from_mins(1);
/// How often a watch that is late looks for events that it has to send.
const POLL: Duration = Duration::from_secs(1);
/// A chunk of an answer, in bytes.
const CHUNK: usize = 8 << 10;

type Answer = Response<UnsyncBoxBody<Bytes, std::io::Error>>;

/// The server.
#[derive(Clone)]
pub(in crate::cluster_facts) struct Server {
    store: Arc<Mutex<Store>>,
    changed: Arc<watch::Sender<u64>>,
}

#[derive(Default)]
pub(in crate::cluster_facts) struct Store {
    version: u64,
    /// By resource, namespace and name.
    objects: BTreeMap<(String, String, String), Value>,
    /// The events: version, resource, type and object.
    events: Vec<(u64, String, &'static str, Value)>,
    /// Paths, with their queries, in the order in which they were asked for.
    pub(in crate::cluster_facts) requests: Vec<String>,
    /// Requests whose paths with queries contain one of these are refused with that status.
    pub(in crate::cluster_facts) refused: BTreeMap<String, u16>,
    /// Requests whose paths with queries contain one of these are answered later by that time.
    pub(in crate::cluster_facts) slow: BTreeMap<String, Duration>,
    /// Watches can't begin before this version.
    compacted: u64,
    /// Watches of an earlier generation have ended.
    generation: u64,
    /// Watches send nothing, not even bookmarks.
    pub(in crate::cluster_facts) is_stuck: bool,
    /// Watches send only the events from before this time, and repeat bookmarks.
    stalled: Option<u64>,
    /// Watches send everything later by that time.
    pub(in crate::cluster_facts) lag: Duration,
    /// When each version was made.
    made: BTreeMap<u64, Instant>,
    /// Watches send events only.
    pub(in crate::cluster_facts) has_no_bookmarks: bool,
}

impl Server {
    pub(in crate::cluster_facts) fn new() -> Self {
        Self { store: Arc::default(), changed: Arc::new(watch::Sender::new(0)) }
    }

    pub(in crate::cluster_facts) fn client(&self) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move {
                tokio::time::sleep(server.delay(&request)).await;
                Ok::<_, std::io::Error>(server.answer(&request))
            }
        });
        Client::new(service, "x")
    }

    pub(in crate::cluster_facts) fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap()
    }

    /// Creates or changes an object, by its plural, namespace (empty for none) and name.
    pub(in crate::cluster_facts) fn put(
        &self,
        resource: &str,
        namespace: &str,
        name: &str,
        mut object: Value,
    ) {
        let mut store = self.store();
        store.version += 1;
        let version = store.version;
        object["metadata"]["name"] = name.into();
        if !namespace.is_empty() {
            object["metadata"]["namespace"] = namespace.into();
        }
        object["metadata"]["resourceVersion"] = version.to_string().into();
        let key = (resource.to_owned(), namespace.to_owned(), name.to_owned());
        let before = store.objects.insert(key, object.clone());
        let kind = if before.is_some() { "MODIFIED" } else { "ADDED" };
        store.events.push((version, resource.to_owned(), kind, object));
        store.made.insert(version, Instant::now());
        drop(store);
        self.changed.send_modify(|changes| *changes += 1);
    }

    pub(in crate::cluster_facts) fn remove(&self, resource: &str, namespace: &str, name: &str) {
        let mut store = self.store();
        let key = (resource.to_owned(), namespace.to_owned(), name.to_owned());
        if let Some(mut object) = store.objects.remove(&key) {
            store.version += 1;
            let version = store.version;
            object["metadata"]["resourceVersion"] = version.to_string().into();
            store.events.push((version, resource.to_owned(), "DELETED", object));
            store.made.insert(version, Instant::now());
        }
        drop(store);
        self.changed.send_modify(|changes| *changes += 1);
    }

    /// No watch can begin before the current version.
    pub(in crate::cluster_facts) fn compact(&self) {
        let mut store = self.store();
        store.compacted = store.version;
    }

    /// Ends all watches. With `compacts`, none can be resumed.
    pub(in crate::cluster_facts) fn cut(&self, compacts: bool) {
        let mut store = self.store();
        store.generation += 1;
        if compacts {
            store.version += 1;
            store.compacted = store.version;
        }
        drop(store);
        self.changed.send_modify(|changes| *changes += 1);
    }

    fn delay(&self, request: &Request<Body>) -> Duration {
        let asked = request.uri().to_string();
        let store = self.store();
        let slow = store.slow.iter().find(|(part, _)| asked.contains(*part));
        slow.map_or(Duration::ZERO, |(_, delay)| *delay)
    }

    fn answer(&self, request: &Request<Body>) -> Answer {
        let path = request.uri().path().to_owned();
        let query: BTreeMap<String, String> = request
            .uri()
            .query()
            .into_iter()
            .flat_map(|query| query.split('&'))
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let mut store = self.store();
        let asked = request.uri().to_string();
        store.requests.push(asked.clone());
        if let Some((_, code)) = store.refused.iter().find(|(part, _)| asked.contains(*part)) {
            let message = match code {
                404 => "the server could not find the requested resource",
                _ => "refused by the test",
            };
            return status(*code, "", message);
        }
        let Place { resource, namespace, name } = Place::of(&path);
        if let Some(name) = name {
            let found = store.objects.get(&(resource.clone(), namespace.unwrap_or_default(), name.clone()));
            return match found {
                Some(object) => whole(200, object),
                None => status(404, "NotFound", &format!("{resource} \"{name}\" not found")),
            };
        }
        if query.contains_key("watch") {
            let version = query.get("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
            if version < store.compacted {
                return status(410, "Expired", "too old resource version");
            }
            let generation = store.generation;
            drop(store);
            return self.watch(resource, namespace, version, generation);
        }
        let limit = query.get("limit").and_then(|limit| limit.parse().ok()).unwrap_or(usize::MAX);
        let selector = query.get("fieldSelector").map(String::as_str).unwrap_or_default();
        let selector = selector.replace("%21", "!").replace("%3D", "=").replace("%2C", ",");
        let without =
            selector.split(',').filter_map(|part| part.split_once("!=")).map(|(_, value)| value.to_owned());
        let without: Vec<String> = without.collect();
        store.list(&resource, namespace.as_deref(), limit, query.get("continue"), &without)
    }

    fn watch(&self, resource: String, namespace: Option<String>, version: u64, generation: u64) -> Answer {
        let server = self.clone();
        let changes = self.changed.subscribe();
        let begin = (version, changes, Instant::now() + BOOKMARKS);
        let lines = stream::unfold(begin, move |(mut version, mut changes, mut bookmark)| {
            let (server, resource, namespace) = (server.clone(), resource.clone(), namespace.clone());
            async move {
                loop {
                    changes.borrow_and_update();
                    let line = {
                        let store = server.store();
                        if store.generation != generation {
                            return None;
                        }
                        let last = store.last_sent();
                        let next = store.events.iter().find(|(at, of, _, object)| {
                            let is_in =
                                namespace.as_deref().is_none_or(|n| object["metadata"]["namespace"] == n);
                            *at > version && *at <= last && *of == resource && is_in && !store.is_stuck
                        });
                        next.map(|(at, _, kind, object)| (*at, json!({"type": kind, "object": object})))
                    };
                    if let Some((at, line)) = line {
                        version = at;
                        return Some((pieces(&line, "\n"), (version, changes, bookmark)));
                    }
                    tokio::select! {
                        more = changes.changed() => if more.is_err() { return None },
                        () = tokio::time::sleep(POLL), if server.store().lag > Duration::ZERO => {}
                        () = tokio::time::sleep_until(bookmark) => {
                            bookmark += BOOKMARKS;
                            let store = server.store();
                            if !store.is_stuck && !store.has_no_bookmarks {
                                version = store.last_sent();
                                drop(store);
                                let object = json!({"kind": "x", "apiVersion": "v1", "metadata": {"resourceVersion": version.to_string()}});
                                let line = json!({"type": "BOOKMARK", "object": object});
                                return Some((pieces(&line, "\n"), (version, changes, bookmark)));
                            }
                        }
                    }
                }
            }
        });
        Response::new(StreamBody::new(lines.flatten()).boxed_unsync())
    }
}

impl Store {
    /// The last version that watches may have sent.
    fn last_sent(&self) -> u64 {
        let in_time = |made: &Instant| made.elapsed() >= self.lag;
        let late = self.made.iter().find(|(_, made)| !in_time(made)).map(|(version, _)| version - 1);
        late.unwrap_or(self.version).min(self.stalled.unwrap_or(u64::MAX))
    }

    /// Watches get no more changes, but go on sending bookmarks.
    pub(in crate::cluster_facts) fn stall(&mut self) {
        self.stalled = Some(self.version);
    }

    /// `without`: namespaces that a field selector leaves out.
    fn list(
        &self,
        resource: &str,
        namespace: Option<&str>,
        limit: usize,
        after: Option<&String>,
        without: &[String],
    ) -> Answer {
        let first = (resource.to_owned(), namespace.unwrap_or_default().to_owned(), String::new());
        let all: Vec<(String, &Value)> = self
            .objects
            .range(first..)
            .take_while(|((of, within, _), _)| of == resource && namespace.is_none_or(|name| name == within))
            .filter(|((_, within, name), _)| !without.contains(if within.is_empty() { name } else { within }))
            .map(|((_, within, name), object)| (format!("{within}.{name}"), object))
            .filter(|(key, _)| after.is_none_or(|after| key > after))
            .collect();
        let items: Vec<&Value> = all.iter().take(limit).map(|(_, object)| *object).collect();
        let mut metadata = json!({"resourceVersion": self.version.to_string()});
        if all.len() > limit {
            metadata["continue"] = all[limit - 1].0.as_str().into();
            metadata["remainingItemCount"] = (all.len() - limit).into();
        }
        whole(200, &json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items}))
    }

    /// Changes an object, which no watch reports.
    pub(in crate::cluster_facts) fn omit(
        &mut self,
        resource: &str,
        namespace: &str,
        name: &str,
        mut object: Value,
    ) {
        object["metadata"]["name"] = name.into();
        object["metadata"]["namespace"] = namespace.into();
        self.objects.insert((resource.to_owned(), namespace.to_owned(), name.to_owned()), object);
    }

    /// How many requests there were whose paths with queries contain that.
    pub(in crate::cluster_facts) fn asked_for(&self, part: &str) -> usize {
        self.requests.iter().filter(|request| request.contains(part)).count()
    }
}

/// The kind and the object that a path names.
struct Place {
    resource: String,
    namespace: Option<String>,
    name: Option<String>,
}

impl Place {
    fn of(path: &str) -> Self {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let rest = if parts[0] == "api" { &parts[2..] } else { &parts[3..] };
        let text = |part: Option<&&str>| part.map(|part| (*part).to_owned());
        if rest[0] == "namespaces" && rest.len() > 2 {
            return Self {
                resource: rest[2].to_owned(),
                namespace: text(rest.get(1)),
                name: text(rest.get(3)),
            };
        }
        Self { resource: rest[0].to_owned(), namespace: None, name: text(rest.get(1)) }
    }
}

/// A text in chunks, as they come over a network.
fn pieces(value: &Value, end: &str) -> impl Stream<Item = Result<Frame<Bytes>, std::io::Error>> + use<> {
    let text = Bytes::from(format!("{value}{end}"));
    let chunks: Vec<_> = (0..text.len())
        .step_by(CHUNK)
        .map(|at| Ok(Frame::data(text.slice(at..text.len().min(at + CHUNK)))))
        .collect();
    stream::iter(chunks)
}

fn whole(code: u16, value: &Value) -> Answer {
    let body = StreamBody::new(pieces(value, "")).boxed_unsync();
    Response::builder().status(code).body(body).unwrap()
}

fn status(code: u16, reason: &str, message: &str) -> Answer {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "code": code, "reason": reason, "message": message});
    let body = Full::new(Bytes::from(status.to_string())).map_err(|never| match never {}).boxed_unsync();
    Response::builder().status(code).body(body).unwrap()
}

/// A Pod of that App.
pub(in crate::cluster_facts) fn pod(uid: &str, app: &str, node: &str) -> Value {
    json!({
        "metadata": {"uid": uid, "labels": {"app": app}, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"nodeName": node, "containers": []},
        "status": {"phase": "Running", "hostIP": "10.0.0.1"},
    })
}

/// A Service that selects the Pods of that App.
pub(in crate::cluster_facts) fn service(app: &str) -> Value {
    json!({"metadata": {}, "spec": {"selector": {"app": app}, "ports": []}, "status": {"loadBalancer": {}}})
}
