//! An API server that holds our own objects in memory, with those rules of the real one that our writes rely on.
//! These are resourceVersions, generations, UIDs, the status as a subresource, JSON patches with tests, pages and
//! watches.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper::{Method, Request, Response};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::kubernetes::Cluster;
use crate::state::cluster::Objects;

pub(crate) const NAMESPACE: &str = "ours";
/// How long a client waits for an answer.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// The fault of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The request is carried out and answered.
    None,
    /// The server never receives the request.
    Lost,
    /// The request is carried out, but its answer is lost.
    Unanswered,
    /// The server refuses the request with this status.
    Refused(u16),
}

/// Decides the fault of each request of one client, and may change the objects before it.
pub(crate) type Network = Box<dyn FnMut(&mut Store, &Call) -> Fault + Send>;

type Answer = Response<UnsyncBoxBody<Bytes, std::io::Error>>;

/// One request.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) method: Method,
    /// The plural of the kind, such as `incidents`.
    pub(crate) plural: String,
    pub(crate) name: Option<String>,
    pub(crate) is_status: bool,
    /// The client's name for itself, for the object's `managedFields`.
    pub(crate) manager: Option<String>,
}

#[derive(Clone)]
pub(crate) struct Server {
    store: Arc<Mutex<Store>>,
    changed: watch::Sender<u64>,
}

#[derive(Default)]
pub(crate) struct Store {
    version: u64,
    uids: u64,
    pub(crate) objects: BTreeMap<(String, String), Value>,
    log: Vec<(u64, String, &'static str, Value)>,
    /// Watches from before this version have to list again.
    compacted: u64,
    /// How many watches were opened.
    watches: u64,
    /// Up to which watch, by plural, the connections are half open: they bring nothing more, and no end.
    hung: BTreeMap<String, u64>,
    /// Every write that was carried out, in order.
    pub(crate) writes: Vec<Call>,
    /// The Events that were written, with the managers of their writers.
    pub(crate) events: Vec<(Option<String>, Value)>,
    /// How many lists were answered with whole objects.
    pub(crate) lists: usize,
    /// How many lists were answered with metadata only.
    pub(crate) metadata_lists: usize,
}

impl Default for Server {
    fn default() -> Self {
        Self { store: Arc::default(), changed: watch::channel(0).0 }
    }
}

impl Server {
    pub(crate) fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap()
    }

    /// A connection over `network`.
    pub(crate) fn cluster_over(&self, network: Network) -> Cluster {
        let (server, network) = (self.clone(), Arc::new(Mutex::new(network)));
        let service = tower::service_fn(move |request: Request<Body>| {
            let (server, network) = (server.clone(), network.clone());
            async move { Ok::<_, std::io::Error>(server.over(network, request).await) }
        });
        Cluster::of(Client::new(service, NAMESPACE), REQUEST_TIMEOUT)
    }

    pub(crate) fn cluster(&self) -> Cluster {
        self.cluster_over(Box::new(|_, _| Fault::None))
    }

    pub(crate) fn objects(&self) -> Objects {
        Objects::new(self.cluster(), NAMESPACE.to_owned())
    }

    /// Changes an object as `kubectl` would, without any check.
    pub(crate) fn edit(&self, plural: &str, name: &str, edit: impl FnOnce(&mut Value)) {
        self.store().edit(plural, name, edit);
        self.notify_watches();
    }

    pub(crate) fn put(&self, plural: &str, name: &str, body: Value) {
        self.store().put(plural, name, body);
        self.notify_watches();
    }

    pub(crate) fn remove(&self, plural: &str, name: &str) {
        self.store().remove(plural, name);
        self.notify_watches();
    }

    /// Makes the present watches of a kind hang, as when a firewall has forgotten their connections.
    pub(crate) fn hang(&self, plural: &str) {
        let mut store = self.store();
        let watches = store.watches;
        store.hung.insert(plural.to_owned(), watches);
    }

    pub(crate) fn get(&self, plural: &str, name: &str) -> Option<Value> {
        self.store().objects.get(&(plural.to_owned(), name.to_owned())).cloned()
    }

    /// All objects, for [`Server::restore`].
    pub(crate) fn backup(&self) -> (u64, BTreeMap<(String, String), Value>) {
        let store = self.store();
        (store.version, store.objects.clone())
    }

    /// Starts the server again from a backup, as etcd does: versions go back, and watches have to list again.
    pub(crate) fn restore(&self, (version, objects): (u64, BTreeMap<(String, String), Value>)) {
        {
            let mut store = self.store();
            (store.version, store.objects) = (version, objects);
            store.log.clear();
            store.compacted = u64::MAX;
        }
        self.notify_watches();
        self.store().compacted = 0;
    }

    fn notify_watches(&self) {
        self.changed.send_modify(|n| *n += 1);
    }

    async fn over(&self, network: Arc<Mutex<Network>>, request: Request<Body>) -> Answer {
        let (head, body) = request.into_parts();
        let body = body.collect_bytes().await.unwrap();
        let (path, query) = (head.uri.path().to_owned(), head.uri.query().unwrap_or_default().to_owned());
        let kind = head.headers.get("content-type").map(|kind| kind.to_str().unwrap().to_owned());
        let accepts = head.headers.get("accept").map(|accept| accept.to_str().unwrap().to_owned());
        let query = match accepts.filter(|accepts| accepts.contains("as=PartialObjectMetadataList")) {
            Some(_) => format!("{query}&metadata=only"),
            None => query,
        };
        let manager = parameter(&query, "fieldManager");
        let call = Call { manager, ..call(head.method, &path) };
        if query.contains("watch=true") || query.contains("watch=1") {
            return self.watch(call.plural, &query);
        }
        let (fault, answer) = {
            let mut store = self.store();
            let fault = network.lock().unwrap()(&mut store, &call);
            let answer = match fault {
                Fault::Lost => None,
                Fault::Refused(code) => Some(status(code, "not today")),
                Fault::None | Fault::Unanswered => {
                    Some(store.answer(&call, &query, kind.as_deref().unwrap_or_default(), &body))
                }
            };
            (fault, answer)
        };
        self.notify_watches();
        let Some((code, answer)) = answer.filter(|_| fault != Fault::Unanswered) else {
            return std::future::pending().await;
        };
        let body = Full::new(Bytes::from(answer.to_string())).map_err(|never| match never {});
        Response::builder().status(code).body(body.boxed_unsync()).unwrap()
    }

    fn watch(&self, plural: String, query: &str) -> Answer {
        let since: u64 = parameter(query, "resourceVersion").and_then(|v| v.parse().ok()).unwrap_or(0);
        let changes = self.changed.subscribe();
        let number = {
            let mut store = self.store();
            store.watches += 1;
            store.watches
        };
        let state = (self.clone(), changes, since, false);
        let events = stream::unfold(state, move |(server, mut changes, since, is_over)| {
            let plural = plural.clone();
            async move {
                if is_over {
                    return None;
                }
                loop {
                    changes.borrow_and_update();
                    if server.store().hung.get(&plural).is_some_and(|hung| number <= *hung) {
                        return std::future::pending().await;
                    }
                    let (lines, latest, is_gone) = server.store().since(&plural, since);
                    if is_gone {
                        let gone = json!({"type": "ERROR", "object": status(410, "too old").1});
                        return Some((gone.to_string() + "\n", (server, changes, since, true)));
                    }
                    if !lines.is_empty() {
                        return Some((lines, (server, changes, latest, false)));
                    }
                    if changes.changed().await.is_err() {
                        return None;
                    }
                }
            }
        });
        let frames = events.map(|lines| Ok::<_, std::io::Error>(Frame::data(Bytes::from(lines))));
        Response::builder().status(200).body(StreamBody::new(frames).boxed_unsync()).unwrap()
    }
}

fn call(method: Method, path: &str) -> Call {
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let at = parts.iter().position(|part| *part == "namespaces").unwrap() + 2;
    Call {
        method,
        plural: parts[at].to_owned(),
        name: parts.get(at + 1).map(|name| (*name).to_owned()),
        is_status: parts.get(at + 2) == Some(&"status"),
        manager: None,
    }
}

fn parameter(query: &str, name: &str) -> Option<String> {
    let mut all = query.split('&').filter_map(|pair| pair.split_once('='));
    all.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
}

impl Store {
    fn next(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    fn since(&self, plural: &str, since: u64) -> (String, u64, bool) {
        if self.compacted == u64::MAX || since > self.version {
            return (String::new(), since, true);
        }
        let mut lines = String::new();
        let mut latest = since;
        for (version, _, kind, object) in self.log.iter().filter(|(v, of, ..)| *v > since && of == plural) {
            latest = *version;
            lines += &(json!({"type": kind, "object": object}).to_string() + "\n");
        }
        (lines, latest, false)
    }

    fn store(&mut self, plural: &str, name: &str, mut object: Value, kind: &'static str) -> Value {
        let version = self.next();
        object["metadata"]["resourceVersion"] = version.to_string().into();
        self.log.push((version, plural.to_owned(), kind, object.clone()));
        self.objects.insert((plural.to_owned(), name.to_owned()), object.clone());
        object
    }

    /// Creates an object, with its status.
    pub(crate) fn put(&mut self, plural: &str, name: &str, mut body: Value) -> Value {
        self.uids += 1;
        body["apiVersion"] = "procscan.sealos.io/v1alpha1".into();
        let kind = match plural {
            "incidents" => "Incident",
            "exemptions" => "Exemption",
            _ => "Enforcement",
        };
        body["kind"] = kind.into();
        body["metadata"]["name"] = name.into();
        body["metadata"]["namespace"] = NAMESPACE.into();
        body["metadata"]["uid"] = format!("uid-{}", self.uids).into();
        body["metadata"]["generation"] = 1.into();
        self.store(plural, name, body, "ADDED")
    }

    pub(crate) fn edit(&mut self, plural: &str, name: &str, edit: impl FnOnce(&mut Value)) -> Value {
        let mut object = self.objects[&(plural.to_owned(), name.to_owned())].clone();
        let spec = object["spec"].clone();
        edit(&mut object);
        if object["spec"] != spec {
            let generation = object["metadata"]["generation"].as_i64().unwrap();
            object["metadata"]["generation"] = (generation + 1).into();
        }
        self.store(plural, name, object, "MODIFIED")
    }

    pub(crate) fn remove(&mut self, plural: &str, name: &str) {
        if let Some(mut object) = self.objects.remove(&(plural.to_owned(), name.to_owned())) {
            let version = self.next();
            object["metadata"]["resourceVersion"] = version.to_string().into();
            self.log.push((version, plural.to_owned(), "DELETED", object));
        }
    }

    fn answer(&mut self, call: &Call, query: &str, kind: &str, body: &[u8]) -> (u16, Value) {
        let Call { method, plural, name, is_status, .. } = call;
        if plural == "events" {
            let event: Value = serde_json::from_slice(body).unwrap();
            self.events.push((call.manager.clone(), event.clone()));
            return (201, event);
        }
        let Some(name) = name else {
            return match *method {
                Method::GET => self.list(plural, query),
                _ => self.create(call, serde_json::from_slice(body).unwrap()),
            };
        };
        let Some(live) = self.objects.get(&(plural.clone(), name.clone())).cloned() else {
            return status(404, &format!("{plural}.procscan.sealos.io \"{name}\" not found"));
        };
        if *method == Method::GET {
            return (200, live);
        }
        let version = live["metadata"]["resourceVersion"].clone();
        if *method == Method::DELETE {
            let options: Value = serde_json::from_slice(body).unwrap_or_default();
            let expected = &options["preconditions"]["resourceVersion"];
            if expected.is_string() && *expected != version {
                return status(409, "the object has been modified");
            }
            self.writes.push(call.clone());
            self.remove(plural, name);
            return (200, json!({"kind": "Status", "status": "Success"}));
        }
        let body: Value = serde_json::from_slice(body).unwrap();
        let patched = match *method {
            Method::PUT => body,
            _ if kind.contains("json-patch") => match json_patched(&live, &body) {
                Ok(patched) => patched,
                Err(why) => return status(422, &why),
            },
            _ => merged(live.clone(), &body),
        };
        let expected = &patched["metadata"]["resourceVersion"];
        if expected.is_string() && *expected != version {
            return status(409, "the object has been modified");
        }
        self.writes.push(call.clone());
        let part = if *is_status { "status" } else { "spec" };
        let annotations = patched["metadata"]["annotations"].clone();
        let now = self.edit(plural, name, |object| {
            object[part] = patched[part].clone();
            if !is_status && !annotations.is_null() {
                object["metadata"]["annotations"] = annotations;
            }
        });
        (200, now)
    }

    fn list(&mut self, plural: &str, query: &str) -> (u16, Value) {
        let is_metadata = query.ends_with("&metadata=only");
        let count = if is_metadata { &mut self.metadata_lists } else { &mut self.lists };
        *count += 1;
        let limit = parameter(query, "limit").and_then(|limit| limit.parse().ok()).unwrap_or(usize::MAX);
        let from: usize = parameter(query, "continue").and_then(|from| from.parse().ok()).unwrap_or(0);
        let all: Vec<&Value> =
            self.objects.iter().filter(|((of, _), _)| of == plural).map(|(_, object)| object).collect();
        let page: Vec<&&Value> = all.iter().skip(from).take(limit).collect();
        let end = from + page.len();
        let page: Vec<Value> = page
            .into_iter()
            .map(
                |object| {
                    if is_metadata { json!({"metadata": object["metadata"]}) } else { (*object).clone() }
                },
            )
            .collect();
        let more = if end < all.len() { end.to_string() } else { String::new() };
        let list = json!({
            "apiVersion": "procscan.sealos.io/v1alpha1", "kind": "List", "items": page,
            "metadata": {"resourceVersion": self.version.to_string(), "continue": more},
        });
        (200, list)
    }

    fn create(&mut self, call: &Call, mut body: Value) -> (u16, Value) {
        let plural = &*call.plural;
        let name = body["metadata"]["name"].as_str().unwrap().to_owned();
        if self.objects.contains_key(&(plural.to_owned(), name.clone())) {
            return status(409, "already exists");
        }
        self.writes.push(Call { name: Some(name.clone()), ..call.clone() });
        if let Some(body) = body.as_object_mut() {
            body.remove("status");
        }
        (201, self.put(plural, &name, body))
    }
}

fn status(code: u16, message: &str) -> (u16, Value) {
    let reason = if code == 404 { "NotFound" } else { "" };
    (code, json!({"kind": "Status", "status": "Failure", "message": message, "reason": reason, "code": code}))
}

fn merged(mut into: Value, patch: &Value) -> Value {
    let (Some(fields), Some(patch)) = (into.as_object_mut(), patch.as_object()) else { return patch.clone() };
    for (name, value) in patch {
        if value.is_null() {
            fields.remove(name);
        } else {
            let before = fields.remove(name).unwrap_or(json!({}));
            let before = if value.is_object() { before } else { Value::Null };
            fields.insert(name.clone(), merged(before, value));
        }
    }
    into
}

/// Supports the two operations that we use.
fn json_patched(live: &Value, patch: &Value) -> Result<Value, String> {
    let mut now = live.clone();
    for operation in patch.as_array().unwrap() {
        let place = operation["path"].as_str().unwrap();
        match operation["op"].as_str().unwrap() {
            "test" if now.pointer(place) == Some(&operation["value"]) => {}
            "test" => return Err(format!("testing value {place} failed")),
            "remove" => {
                let (parent, name) = place.rsplit_once('/').unwrap();
                let fields = now.pointer_mut(parent).and_then(Value::as_object_mut);
                if fields.and_then(|fields| fields.remove(name)).is_none() {
                    return Err(format!("unable to remove nonexistent key: {place}"));
                }
            }
            other => panic!("{other}"),
        }
    }
    Ok(now)
}
