use std::collections::BTreeMap;
use std::sync::Mutex;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use hyper::{Request, Response};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use super::*;

const SLICES_PATH: &str = "/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices";
const ENDPOINTS_PATH: &str = "/api/v1/namespaces/kube-system/endpoints";
const SERVICE_PATH: &str = "/api/v1/namespaces/kube-system/services/procscan";
const SETS_PATH: &str = "/apis/apps/v1/namespaces/kube-system/daemonsets";

type Answer = Response<UnsyncBoxBody<Bytes, std::io::Error>>;

/// An API server that gives each path the answer that a test sets. A change ends every watch, and no watch can be
/// resumed.
#[derive(Clone)]
struct Server(Arc<Mutex<BTreeMap<String, Reply>>>, watch::Sender<u64>);

#[derive(Clone, Debug)]
enum Reply {
    Body(Value),
    Refusal(u16, &'static str),
    /// The connection fails, for example in TLS.
    Broken,
    /// No answer comes.
    Missing,
}

impl Server {
    /// A server with agents in these slices, and a DaemonSet that wants so many of them.
    fn new(slices: &[Value], wanted: usize) -> Self {
        let server = Self(Arc::default(), watch::Sender::new(0));
        server.set(SLICES_PATH, list("discovery.k8s.io/v1", "EndpointSlice", slices));
        let labels = json!({"app": "procscan"});
        server.set(
            SERVICE_PATH,
            Reply::Body(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "procscan"},
                              "spec": {"selector": labels}})),
        );
        server.wants(wanted);
        server
    }

    fn wants(&self, wanted: usize) {
        let set = json!({
            "metadata": {"name": "procscan"},
            "spec": {"selector": {}, "template": {"metadata": {"labels": {"app": "procscan"}}}},
            "status": {"desiredNumberScheduled": wanted, "currentNumberScheduled": wanted, "numberMisscheduled": 0,
                       "numberReady": wanted},
        });
        self.set(SETS_PATH, list("apps/v1", "DaemonSet", &[set]));
    }

    fn set(&self, path: &str, reply: Reply) {
        self.0.lock().unwrap().insert(path.to_owned(), reply);
        self.1.send_modify(|changes| *changes += 1);
    }

    async fn answer(&self, request: Request<Body>) -> std::io::Result<Answer> {
        let mut reply = self.0.lock().unwrap().get(request.uri().path()).cloned();
        let query = request.uri().query().unwrap_or_default();
        let is_watch = query.contains("watch=true");
        let version = format!("resourceVersion={}", *self.1.borrow());
        if is_watch && matches!(reply, Some(Reply::Body(_))) && query.split('&').all(|part| part != version) {
            reply = Some(Reply::Refusal(410, "too old resource version"));
        }
        let refused = |code: u16, reason: &str, message: &str| {
            let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code,
                                "reason": reason, "message": message});
            (code, status)
        };
        let (code, body) = match reply {
            None => refused(404, "NotFound", "the server could not find the requested resource"),
            Some(Reply::Refusal(code, message)) => {
                refused(code, if code == 404 { "NotFound" } else { "" }, message)
            }
            Some(Reply::Broken) => return Err(std::io::Error::other("invalid peer certificate: Expired")),
            Some(Reply::Missing) => {
                // For as long as the client waits for a byte of a watch.
                tokio::time::sleep(Duration::from_secs(295)).await;
                return Err(std::io::ErrorKind::TimedOut.into());
            }
            Some(Reply::Body(_)) if is_watch => {
                let mut changes = self.1.subscribe();
                let silence = stream::once(async move {
                    drop(changes.changed().await);
                    Ok(Frame::data(Bytes::new()))
                });
                return Ok(Response::new(StreamBody::new(silence).boxed_unsync()));
            }
            Some(Reply::Body(mut body)) => {
                body["metadata"]["resourceVersion"] = self.1.borrow().to_string().into();
                (200, body)
            }
        };
        let body = Full::from(serde_json::to_vec(&body).unwrap()).map_err(|never| match never {});
        Ok(Response::builder().status(code).body(body.boxed_unsync()).unwrap())
    }

    /// The targets that are found from now on.
    fn found(&self) -> watch::Receiver<Arc<TargetSet>> {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move { server.answer(request).await }
        });
        let source = Kubernetes {
            cluster: Cluster::with_client(Client::new(service, "x")),
            namespace: "kube-system".into(),
            service: "procscan".into(),
            port: Port::Number(9090),
        };
        let (targets, found) = watch::channel(Arc::default());
        tokio::spawn(source.run(Duration::from_secs(10), targets, CancellationToken::new()));
        found
    }
}

fn list(version: &str, kind: &str, items: &[Value]) -> Reply {
    let kind = format!("{kind}List");
    Reply::Body(json!({"apiVersion": version, "kind": kind, "metadata": {}, "items": items}))
}

fn slice(name: &str, addresses: &[(&str, &str)]) -> Value {
    let endpoints: Vec<Value> = addresses
        .iter()
        .map(|(address, node)| json!({"addresses": [address], "nodeName": node, "conditions": {"ready": true}}))
        .collect();
    json!({"metadata": {"name": name}, "addressType": "IPv4", "endpoints": endpoints})
}

fn two_agents() -> [Value; 1] {
    [slice("a", &[("10.0.0.1", "n1"), ("10.0.0.2", "n2")])]
}

/// Waits until the targets are as expected.
async fn until(
    found: &mut watch::Receiver<Arc<TargetSet>>,
    is_so: impl FnMut(&Arc<TargetSet>) -> bool,
) -> Arc<TargetSet> {
    let limit = Duration::from_mins(10);
    timeout(limit, found.wait_for(is_so)).await.expect("timed out").unwrap().clone()
}

#[tokio::test(start_paused = true)]
async fn a_node_with_two_addresses_does_not_hide_a_node_without_any() {
    let six = json!({"metadata": {"name": "b"}, "addressType": "IPv6", "endpoints": [
        {"addresses": ["fd00::1"], "nodeName": "n1"}, {"addresses": ["fd00::2"], "nodeName": "n2"}]});
    let [four] = two_agents();
    let mut found = Server::new(&[four, six], 4).found();
    let set = until(&mut found, |set| set.targets.len() == 4).await;
    assert_eq!(set.unlisted, 2, "two of four nodes have no agent");

    // Without a name, the address is all that is known of a node.
    let nameless = json!({"metadata": {"name": "a"}, "addressType": "IPv4", "endpoints": [
        {"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0.2"]}]});
    let mut found = Server::new(&[nameless], 3).found();
    assert_eq!(until(&mut found, |set| set.targets.len() == 2).await.unlisted, 1);
}

#[tokio::test(start_paused = true)]
async fn after_a_temporary_error_the_agents_stay_and_endpoints_are_not_read() {
    for reply in [
        Reply::Refusal(401, "Unauthorized"),
        Reply::Refusal(400, "bad request"),
        Reply::Refusal(410, "too old resource version"),
        Reply::Refusal(422, "not like this"),
        Reply::Refusal(429, "too many requests"),
        Reply::Refusal(500, "etcdserver: leader changed"),
        Reply::Refusal(503, "shutting down"),
        Reply::Broken,
        Reply::Missing,
    ] {
        let server = Server::new(&two_agents(), 2);
        // An Endpoints object that no controller has filled.
        server.set(ENDPOINTS_PATH, list("v1", "Endpoints", &[]));
        let mut found = server.found();
        let before = until(&mut found, |set| set.targets.len() == 2).await;
        // The whole API refuses, as it does with an expired token.
        for path in [SERVICE_PATH, SETS_PATH, SLICES_PATH] {
            server.set(path, reply.clone());
        }
        let end = Instant::now() + Duration::from_mins(3);
        while let Ok(Ok(())) = tokio::time::timeout_at(end, found.changed()).await {
            assert_eq!(found.borrow_and_update().targets, before.targets, "{reply:?}");
        }
        if !matches!(reply, Reply::Missing) {
            assert!(found.borrow().error.is_some(), "{reply:?} is reported");
        }
        assert_eq!(found.borrow().unlisted, 0, "{reply:?}");
        server.wants(3);
        server.set(SERVICE_PATH, Server::new(&[], 0).0.lock().unwrap()[SERVICE_PATH].clone());
        let three = slice("a", &[("10.0.0.1", "n1"), ("10.0.0.2", "n2"), ("10.0.0.3", "n3")]);
        server.set(SLICES_PATH, list("discovery.k8s.io/v1", "EndpointSlice", &[three]));
        until(&mut found, |set| set.targets.len() == 3 && set.error.is_none()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn endpoints_are_read_only_where_slices_are_refused() {
    for reply in [
        Reply::Refusal(403, "endpointslices.discovery.k8s.io is forbidden"),
        Reply::Refusal(404, "the server could not find the requested resource"),
    ] {
        let server = Server::new(&[], 1);
        server.set(SLICES_PATH, reply.clone());
        let endpoints = json!({"metadata": {"name": "procscan"}, "subsets": [
            {"addresses": [{"ip": "10.0.0.7", "nodeName": "n7"}], "ports": [{"port": 1}]}]});
        server.set(ENDPOINTS_PATH, list("v1", "Endpoints", &[endpoints]));
        let mut found = server.found();
        let set = until(&mut found, |set| set.targets.len() == 1).await;
        assert_eq!(&*set.targets[0].address, "10.0.0.7:9090", "{reply:?}");

        // Known agents stay although slices are refused now.
        let server = Server::new(&two_agents(), 2);
        let mut found = server.found();
        until(&mut found, |set| set.targets.len() == 2).await;
        server.set(ENDPOINTS_PATH, list("v1", "Endpoints", &[]));
        server.set(SLICES_PATH, reply.clone());
        let set =
            until(&mut found, |set| set.error.as_ref().is_some_and(|e| e.contains("no endpoints any more")))
                .await;
        assert_eq!(set.targets.len(), 2, "{reply:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_list_without_agents_counts_only_when_none_are_wanted() {
    let server = Server::new(&two_agents(), 2);
    let mut found = server.found();
    until(&mut found, |set| set.targets.len() == 2).await;
    // The watch is lost, and the new list is empty.
    server.set(SLICES_PATH, list("discovery.k8s.io/v1", "EndpointSlice", &[slice("a", &[])]));
    let is_in_doubt = |set: &Arc<TargetSet>| {
        set.error.as_ref().is_some_and(|error| {
            error.starts_with("the Service kube-system/procscan has no endpoints any more")
        })
    };
    let set = until(&mut found, is_in_doubt).await;
    assert_eq!((set.targets.len(), set.unlisted), (2, 0));
    // How many agents are wanted is not known now, which is no confirmation.
    server.set(SETS_PATH, Reply::Refusal(503, "shutting down"));
    let set = until(&mut found, |set| set.error.as_ref().is_some_and(|e| e.contains("shutting down"))).await;
    assert_eq!(set.targets.len(), 2);
    server.wants(0);
    until(&mut found, |set| set.targets.is_empty()).await;

    // A later list with agents counts, even if the list before it was not confirmed.
    let server = Server::new(&two_agents(), 2);
    let mut found = server.found();
    until(&mut found, |set| set.targets.len() == 2).await;
    server.set(SLICES_PATH, list("discovery.k8s.io/v1", "EndpointSlice", &[]));
    until(&mut found, |set| set.error.is_some()).await;
    server
        .set(SLICES_PATH, list("discovery.k8s.io/v1", "EndpointSlice", &[slice("b", &[("10.0.0.9", "n9")])]));
    let set = until(&mut found, |set| set.error.is_none()).await;
    assert_eq!((set.targets.len(), set.unlisted), (1, 1));
}
