//! An API server that holds one Lease in memory, and candidates whose networks and processes fail when a test demands
//! it.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Poll, Waker};
use std::time::Duration;

use hyper::{Method, Request, Response};
use k8s_openapi::api::coordination::v1::Lease;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::kubernetes::Cluster;
use crate::kubernetes::WritePermit;
use crate::leader::{Election, Leadership, Timing};

const NAME: &str = "procscan-aggregator";

/// The API server.
#[derive(Clone, Default)]
pub(super) struct Server(Arc<Mutex<Store>>);

#[derive(Default)]
pub(super) struct Store {
    version: u64,
    lease: Option<Value>,
    /// How often it was written.
    pub(super) writes: usize,
    /// Every permit that has existed.
    pub(super) permits: Vec<WritePermit>,
    /// The candidates that got the Lease while another one could still write.
    pub(super) overlaps: Vec<String>,
}

/// The effects of one candidate's network on its requests.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Network {
    /// Until the server sees it.
    pub(super) there: Duration,
    /// Until the answer is back.
    pub(super) back: Duration,
    /// The server never sees it.
    pub(super) loses_requests: bool,
    /// The server carries the request out, and the answer is lost.
    pub(super) loses_answers: bool,
    /// The server answers writes with this status.
    pub(super) refuses_writes: Option<u16>,
}

/// A candidate, from outside.
pub(super) struct Replica {
    pub(super) identity: String,
    pub(super) leadership: watch::Receiver<Leadership>,
    pub(super) error: watch::Receiver<Option<String>>,
    pub(super) network: watch::Sender<Network>,
    pub(super) cancel: CancellationToken,
    pub(super) task: JoinHandle<()>,
    freeze_state: Arc<Freeze>,
}

/// Stops a process in the middle of its work.
#[derive(Default)]
struct Freeze {
    is_frozen: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl Server {
    pub(super) fn store(&self) -> MutexGuard<'_, Store> {
        self.0.lock().unwrap()
    }

    pub(super) fn lease(&self) -> Option<Lease> {
        self.store().lease.clone().map(|lease| serde_json::from_value(lease).unwrap())
    }

    /// Changes the Lease as a person or another program would.
    pub(super) fn edit(&self, edit: impl FnOnce(&mut Value)) {
        let mut store = self.store();
        store.version += 1;
        let version = store.version.to_string();
        let unheld = || json!({ "metadata": { "name": NAME, "namespace": "ours" }, "spec": {} });
        let lease = store.lease.get_or_insert_with(unheld);
        edit(lease);
        lease["metadata"]["resourceVersion"] = version.into();
    }

    pub(super) fn remove(&self) {
        self.store().lease = None;
    }

    /// A connection of its own, over a network of its own.
    pub(super) fn client(&self, network: watch::Receiver<Network>) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            // A request arrives even if its client has stopped waiting.
            let answer = tokio::spawn(over(server.clone(), *network.borrow(), request));
            async move { answer.await.map_err(std::io::Error::other) }
        });
        Client::new(service, "ours")
    }
}

async fn over(server: Server, network: Network, request: Request<Body>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let body = body.collect_bytes().await.unwrap();
    sleep(network.there).await;
    if network.loses_requests {
        std::future::pending::<()>().await;
    }
    let is_write = head.method != Method::GET;
    let (code, answer) = match network.refuses_writes.filter(|_| is_write) {
        Some(code) => status(code, "not today"),
        None => server.store().answer(&head.method, &body),
    };
    sleep(network.back).await;
    if network.loses_answers {
        std::future::pending::<()>().await;
    }
    Response::builder().status(code).body(Body::from(answer.to_string().into_bytes())).unwrap()
}

impl Store {
    fn answer(&mut self, method: &Method, body: &[u8]) -> (u16, Value) {
        if method == Method::GET {
            let missing = || status(404, &format!("leases.coordination.k8s.io \"{NAME}\" not found"));
            return self.lease.clone().map_or_else(missing, |lease| (200, lease));
        }
        let mut written: Value = serde_json::from_slice(body).unwrap();
        if method == Method::DELETE {
            let Some(lease) = &self.lease else { return status(404, "not found") };
            if written["preconditions"]["resourceVersion"] != lease["metadata"]["resourceVersion"] {
                return status(409, "the ResourceVersion in the precondition does not match");
            }
            self.lease = None;
            return (200, json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}));
        }
        let version = &written["metadata"]["resourceVersion"];
        match &self.lease {
            Some(_) if method == Method::POST => return status(409, "already exists"),
            Some(_) if !version.is_string() => return status(422, "must be specified for an update"),
            Some(lease) if lease["metadata"]["resourceVersion"] != *version => {
                return status(409, "the object has been modified");
            }
            None if method == Method::PUT => return status(404, "not found"),
            _ => {}
        }
        let holder = written["spec"]["holderIdentity"].as_str().unwrap_or_default();
        if let Some(permit) = self.permits.iter().find(|permit| permit.holds() && permit.identity() != holder)
        {
            self.overlaps.push(format!("{holder:?} has the Lease while {permit:?} holds"));
        }
        self.version += 1;
        self.writes += 1;
        written["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.lease = Some(written.clone());
        (200, written)
    }
}

fn status(code: u16, message: &str) -> (u16, Value) {
    let reason = if code == 404 { "NotFound" } else { "" };
    (code, json!({"kind": "Status", "status": "Failure", "message": message, "reason": reason, "code": code}))
}

impl Replica {
    pub(super) fn start(server: &Server, identity: &str) -> Self {
        let (network, networks) = watch::channel(Network::default());
        let (leadership_tx, leadership) = watch::channel(Leadership::Following { leader: None });
        let (error_tx, error) = watch::channel(None);
        let (cancel, freeze_state) = (CancellationToken::new(), Arc::new(Freeze::default()));
        let election = Election {
            cluster: Cluster::of(server.client(networks), Duration::from_secs(30)),
            namespace: "ours".to_owned(),
            name: NAME.to_owned(),
            identity: identity.to_owned(),
            lease: Timing::default(),
        };
        let task = tokio::spawn(freezable(
            election.run(leadership_tx, error_tx, cancel.clone()),
            freeze_state.clone(),
        ));
        tokio::spawn(record_permits(server.clone(), leadership.clone()));
        let identity = identity.to_owned();
        Self { identity, leadership, error, network, cancel, task, freeze_state }
    }

    /// Waits until it leads.
    pub(super) async fn leads(&mut self) -> WritePermit {
        self.comes_to(|leadership| leadership.permit().is_some()).await.permit().unwrap().clone()
    }

    /// Waits until it no longer leads.
    pub(super) async fn steps_down(&mut self) {
        self.comes_to(|leadership| leadership.permit().is_none()).await;
    }

    /// Waits until it follows this one.
    pub(super) async fn follows(&mut self, other: &str) {
        let is_so = |leadership: &Leadership| matches!(leadership, Leadership::Following { leader: Some(leader) } if leader == other);
        self.comes_to(is_so).await;
    }

    async fn comes_to(&mut self, is_so: impl FnMut(&Leadership) -> bool) -> Leadership {
        let wait = self.leadership.wait_for(is_so);
        timeout(Duration::from_mins(10), wait).await.expect("the leadership changes in time").unwrap().clone()
    }

    pub(super) fn freeze(&self) {
        self.freeze_state.is_frozen.store(true, Ordering::SeqCst);
    }

    pub(super) fn thaw(&self) {
        self.freeze_state.is_frozen.store(false, Ordering::SeqCst);
        if let Some(waker) = self.freeze_state.waker.lock().unwrap().take() {
            waker.wake();
        }
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn freezable(process: impl Future<Output = ()>, freeze_state: Arc<Freeze>) {
    let mut process = pin!(process);
    std::future::poll_fn(move |context| {
        if freeze_state.is_frozen.load(Ordering::SeqCst) {
            *freeze_state.waker.lock().unwrap() = Some(context.waker().clone());
            return Poll::Pending;
        }
        process.as_mut().poll(context)
    })
    .await;
}

async fn record_permits(server: Server, mut leadership: watch::Receiver<Leadership>) {
    while leadership.changed().await.is_ok() {
        if let Some(permit) = leadership.borrow_and_update().permit() {
            server.store().permits.push(permit.clone());
        }
    }
}
