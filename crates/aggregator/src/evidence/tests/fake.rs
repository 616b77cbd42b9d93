//! An API server in memory: lists by pages and single objects, and what it was asked.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::StreamBody;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Frame;
use hyper::{Request, Response};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

/// A chunk of an answer, in bytes.
const CHUNK: usize = 8 << 10;

type Answer = Response<UnsyncBoxBody<Bytes, std::io::Error>>;

/// The server.
#[derive(Clone)]
pub(in crate::evidence) struct Server {
    store: Arc<Mutex<Store>>,
}

#[derive(Default)]
pub(in crate::evidence) struct Store {
    version: u64,
    /// By resource, namespace and name.
    objects: BTreeMap<(String, String, String), Value>,
    /// Paths, with their queries, in the order in which they were asked for.
    pub(in crate::evidence) requests: Vec<String>,
    /// Requests whose paths with queries contain one of these are refused with that status.
    pub(in crate::evidence) refused: BTreeMap<String, u16>,
}

impl Server {
    pub(in crate::evidence) fn new() -> Self {
        Self { store: Arc::default() }
    }

    pub(in crate::evidence) fn client(&self) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move { Ok::<_, std::io::Error>(server.answer(&request)) }
        });
        Client::new(service, "x")
    }

    pub(in crate::evidence) fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap()
    }

    /// Creates or changes an object, by its plural, namespace (empty for none) and name.
    pub(in crate::evidence) fn put(&self, resource: &str, namespace: &str, name: &str, mut object: Value) {
        let mut store = self.store();
        store.version += 1;
        let version = store.version;
        object["metadata"]["name"] = name.into();
        if !namespace.is_empty() {
            object["metadata"]["namespace"] = namespace.into();
        }
        object["metadata"]["resourceVersion"] = version.to_string().into();
        let key = (resource.to_owned(), namespace.to_owned(), name.to_owned());
        store.objects.insert(key, object);
    }

    pub(in crate::evidence) fn remove(&self, resource: &str, namespace: &str, name: &str) {
        let mut store = self.store();
        let key = (resource.to_owned(), namespace.to_owned(), name.to_owned());
        if store.objects.remove(&key).is_some() {
            store.version += 1;
        }
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
            return status(*code, "Forbidden", "refused by the test");
        }
        let Place { resource, namespace, name } = Place::of(&path);
        if let Some(name) = name {
            let found = store.objects.get(&(resource.clone(), namespace.unwrap_or_default(), name.clone()));
            return match found {
                Some(object) => whole(200, object),
                None => status(404, "NotFound", &format!("{resource} \"{name}\" not found")),
            };
        }
        let limit = query.get("limit").and_then(|limit| limit.parse().ok()).unwrap_or(usize::MAX);
        store.list(&resource, namespace.as_deref(), limit, query.get("continue"))
    }
}

impl Store {
    fn list(&self, resource: &str, namespace: Option<&str>, limit: usize, after: Option<&String>) -> Answer {
        let all: Vec<(String, &Value)> = self
            .objects
            .iter()
            .filter(|((of, within, _), _)| of == resource && namespace.is_none_or(|name| name == within))
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

    /// How many requests there were whose paths with queries contain that.
    pub(in crate::evidence) fn asked_for(&self, part: &str) -> usize {
        self.requests.iter().filter(|request| request.contains(part)).count()
    }
}

/// What a path names.
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

/// In chunks, as answers come.
fn whole(code: u16, value: &Value) -> Answer {
    let text = Bytes::from(value.to_string());
    let chunks: Vec<_> = (0..text.len())
        .step_by(CHUNK)
        .map(|at| Ok(Frame::data(text.slice(at..text.len().min(at + CHUNK)))))
        .collect();
    let body = StreamBody::new(stream::iter(chunks)).boxed_unsync();
    Response::builder().status(code).body(body).unwrap()
}

fn status(code: u16, reason: &str, message: &str) -> Answer {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "code": code, "reason": reason, "message": message});
    let body = Full::new(Bytes::from(status.to_string())).map_err(|never| match never {}).boxed_unsync();
    Response::builder().status(code).body(body).unwrap()
}

/// A Pod of that App.
pub(in crate::evidence) fn pod(uid: &str, app: &str, node: &str) -> Value {
    json!({
        "metadata": {"uid": uid, "labels": {"app": app}, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"nodeName": node, "containers": []},
        "status": {"phase": "Running", "hostIP": "10.0.0.1"},
    })
}

/// A Service that selects the Pods of that App.
pub(in crate::evidence) fn service(app: &str) -> Value {
    json!({"metadata": {}, "spec": {"selector": {"app": app}, "ports": []}, "status": {"loadBalancer": {}}})
}
