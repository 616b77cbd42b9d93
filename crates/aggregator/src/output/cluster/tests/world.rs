//! An API server that keeps `WasmPlugins` and Notifications, with the rules of the real one that our reads and writes
//! rely on: resourceVersions, server-side apply that leaves others' fields alone, merge patches, pages, `managedFields`.

use super::*;

/// One request that writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Write {
    pub(super) verb: Method,
    /// Kind, namespace and name, as a text for people.
    pub(super) object: String,
    pub(super) manager: Option<String>,
}

/// What happens before a request is carried out: it may be refused, with a status and a message.
type Before = Box<dyn FnMut(&mut World, &Asked) -> Option<(u16, String)> + Send>;

/// One request.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) method: Method,
    pub(super) plural: String,
    pub(super) namespace: Option<String>,
    pub(super) name: Option<String>,
}

#[derive(Default)]
pub(super) struct World {
    version: u64,
    /// By plural, namespace and name.
    pub(super) objects: BTreeMap<(String, String, String), Value>,
    pub(super) writes: Vec<Write>,
    /// Every request, in order.
    pub(super) asked: Vec<Asked>,
    /// The plurals whose CRD is not installed.
    pub(super) unserved: BTreeSet<String>,
}

#[derive(Clone, Default)]
pub(super) struct ApiServer {
    world: Arc<Mutex<World>>,
    before: Arc<Mutex<Option<Before>>>,
}

pub(super) const PLUGINS: &str = "wasmplugins";
pub(super) const MESSAGES: &str = "notifications";
pub(super) const POLICIES: &str = "configmaps";
pub(super) const MAILS: &str = "mails";

impl ApiServer {
    pub(super) fn world(&self) -> std::sync::MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    pub(super) fn output(&self) -> ClusterOutput {
        self.output_of(&WritePermit::always())
    }

    /// The output of a process that may write as long as `pen` holds.
    pub(super) fn output_of(&self, permit: &WritePermit) -> ClusterOutput {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move { Ok::<_, std::io::Error>(server.answer(request).await) }
        });
        ClusterOutput {
            permit: permit.clone(),
            ..ClusterOutput::new(Cluster::with_client(Client::new(service, "x")))
        }
    }

    /// From now on `before` decides of each request whether it is refused.
    pub(super) fn before(
        &self,
        before: impl FnMut(&mut World, &Asked) -> Option<(u16, String)> + Send + 'static,
    ) {
        *self.before.lock().unwrap() = Some(Box::new(before));
    }

    pub(super) fn well(&self) {
        *self.before.lock().unwrap() = None;
    }

    pub(super) fn get(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        self.world().objects.get(&(plural.to_owned(), namespace.to_owned(), name.to_owned())).cloned()
    }

    pub(super) fn writes(&self) -> Vec<String> {
        let writes = std::mem::take(&mut self.world().writes);
        writes.into_iter().map(|write| format!("{} {}", write.verb, write.object)).collect()
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let body = body.collect_bytes().await.unwrap();
        let asked = asked(head.method, head.uri.path());
        let query = head.uri.query().unwrap_or_default().to_owned();
        let kind = head.headers.get("content-type").map(|kind| kind.to_str().unwrap().to_owned());
        let mut world = self.world();
        world.asked.push(asked.clone());
        let refusal = self.before.lock().unwrap().as_mut().and_then(|before| before(&mut world, &asked));
        let (code, answered) = match refusal {
            Some((code, message)) => (code, refused(code, &message)),
            None if world.unserved.contains(&asked.plural) => {
                (404, refused(404, "the server could not find the requested resource"))
            }
            None => world.carry_out(&asked, &query, kind.as_deref().unwrap_or_default(), &body),
        };
        answer(code, &answered)
    }
}

fn asked(method: Method, path: &str) -> Asked {
    // The core group is `api/v1`, and any other one `apis/GROUP/VERSION`.
    let prefix = if path.starts_with("/api/") { 2 } else { 3 };
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').skip(prefix).collect();
    let (namespace, rest) = match &parts[..] {
        ["namespaces", namespace, rest @ ..] => (Some((*namespace).to_owned()), rest),
        rest => (None, rest),
    };
    let name = rest.get(1).map(|name| (*name).to_owned());
    Asked { method, plural: rest[0].to_owned(), namespace, name }
}

fn refused(code: u16, message: &str) -> Value {
    let reason = if code == 404 { "NotFound" } else { "" };
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code, "reason": reason,
           "message": message})
}

fn parameter(query: &str, name: &str) -> Option<String> {
    let mut all = query.split('&').filter_map(|pair| pair.split_once('='));
    all.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
}

impl World {
    /// Puts an object there, whatever was there before.
    pub(super) fn put(&mut self, plural: &str, namespace: &str, name: &str, mut object: Value) {
        self.version += 1;
        let (api_version, kind) = match plural {
            PLUGINS => (wasm_plugin::KIND.api_version(), wasm_plugin::KIND.name()),
            POLICIES => ("v1", "ConfigMap"),
            MAILS => ("test.procscan.io/v1", "Mail"),
            _ => (notification::KIND.api_version(), notification::KIND.name()),
        };
        object["apiVersion"] = api_version.into();
        object["kind"] = kind.into();
        object["metadata"]["name"] = name.into();
        object["metadata"]["namespace"] = namespace.into();
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = format!("uid-{}", self.version).into();
        }
        self.objects.insert((plural.to_owned(), namespace.to_owned(), name.to_owned()), object);
    }

    /// Changes an object as `kubectl edit` would.
    pub(super) fn edit(&mut self, plural: &str, namespace: &str, name: &str, edit: impl FnOnce(&mut Value)) {
        let mut object = self.objects[&(plural.to_owned(), namespace.to_owned(), name.to_owned())].clone();
        edit(&mut object);
        self.put(plural, namespace, name, object);
    }

    pub(super) fn remove(&mut self, plural: &str, namespace: &str, name: &str) {
        self.objects.remove(&(plural.to_owned(), namespace.to_owned(), name.to_owned()));
    }

    fn carry_out(&mut self, asked: &Asked, query: &str, kind: &str, body: &[u8]) -> (u16, Value) {
        let Asked { method, plural, namespace, name } = asked;
        let namespace = namespace.clone();
        if *method == Method::GET && name.is_none() {
            return self.list(plural, namespace.as_deref(), query);
        }
        let namespace = namespace.unwrap();
        let mut wanted: Value = serde_json::from_slice(body).unwrap_or_default();
        let name = name.clone().unwrap_or_else(|| wanted["metadata"]["name"].as_str().unwrap().to_owned());
        let live = self.objects.get(&(plural.clone(), namespace.clone(), name.clone())).cloned();
        if *method == Method::POST {
            if live.is_some() {
                return (409, refused(409, "already exists"));
            }
        } else if live.is_none() {
            return (404, refused(404, &format!("{plural} \"{name}\" not found")));
        }
        if *method == Method::GET {
            return (200, live.unwrap());
        }
        let manager = parameter(query, "fieldManager");
        let object = format!("{plural} {namespace}/{name}");
        let write = Write { verb: method.clone(), object, manager: manager.clone() };
        if *method == Method::DELETE {
            let live = live.unwrap_or_default();
            let is_as_wanted = |field: &str| {
                let wanted = &wanted["preconditions"][field];
                wanted.is_null() || *wanted == live["metadata"][field]
            };
            if !is_as_wanted("uid") || !is_as_wanted("resourceVersion") {
                return (409, refused(409, "the object has been modified"));
            }
            self.writes.push(write);
            self.remove(plural, &namespace, &name);
            return (200, json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}));
        }
        let live = live.unwrap_or(json!({}));
        let version = &wanted["metadata"]["resourceVersion"];
        if version.is_string() && *version != live["metadata"]["resourceVersion"] {
            return (409, refused(409, "the object has been modified"));
        }
        if kind.contains("apply-patch") && parameter(query, "force").as_deref() != Some("true") {
            return (409, refused(409, "Apply failed with 1 conflict"));
        }
        self.writes.push(write);
        let mut managers = live["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
        managers.push(json!({"manager": manager.unwrap_or("unknown".to_owned()), "operation": "Update"}));
        let _ = wanted.as_object_mut().unwrap().remove("managedFields");
        let mut now = merged(live, &wanted, !kind.contains("apply-patch"));
        now["metadata"]["managedFields"] = managers.into();
        self.put(plural, &namespace, &name, now);
        (200, self.objects[&(plural.clone(), namespace, name)].clone())
    }

    fn list(&self, plural: &str, namespace: Option<&str>, query: &str) -> (u16, Value) {
        let limit = parameter(query, "limit").and_then(|limit| limit.parse().ok()).unwrap_or(usize::MAX);
        let from: usize = parameter(query, "continue").and_then(|from| from.parse().ok()).unwrap_or(0);
        let is_asked_for =
            |of: &str, place: &str| of == plural && namespace.is_none_or(|wanted| wanted == place);
        let has_label = |object: &Value| {
            let Some(selector) = parameter(query, "labelSelector") else { return true };
            let selector = selector.replace("%2F", "/").replace("%3D", "=");
            let (label, value) = selector.split_once('=').unwrap();
            object["metadata"]["labels"][label] == value
        };
        let all: Vec<&Value> = self
            .objects
            .iter()
            .filter(|((of, place, _), object)| is_asked_for(of, place) && has_label(object))
            .map(|(_, object)| object)
            .collect();
        let page: Vec<&&Value> = all.iter().skip(from).take(limit).collect();
        let end = from + page.len();
        let more = if end < all.len() { end.to_string() } else { String::new() };
        let list = json!({"apiVersion": "v1", "kind": "List", "items": page,
                          "metadata": {"resourceVersion": "1", "continue": more}});
        (200, list)
    }
}

/// Field by field; a list is replaced whole. In a merge patch null removes a field, and apply has none.
fn merged(mut into: Value, patch: &Value, is_merge_patch: bool) -> Value {
    let (Some(fields), Some(patch)) = (into.as_object_mut(), patch.as_object()) else { return patch.clone() };
    for (name, value) in patch {
        if value.is_null() && is_merge_patch {
            fields.remove(name);
        } else {
            let before = fields.remove(name).unwrap_or(json!({}));
            let before = if value.is_object() { before } else { Value::Null };
            fields.insert(name.clone(), merged(before, value, is_merge_patch));
        }
    }
    into
}
