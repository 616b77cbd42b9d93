//! The whole task beside an API server in memory.

use serde_json::json;

use super::fake::{Server, pod, service};
use super::*;
use crate::kubernetes::Cluster;

/// The whole task, with requests from the test.
pub(super) struct Stage {
    pub(super) server: Server,
    pub(super) clock: Clock,
    pub(super) requests: watch::Sender<Arc<LookupRequests>>,
    pub(super) facts: watch::Receiver<Arc<ClusterFacts>>,
    pub(super) gone: mpsc::Receiver<PodGone>,
    pub(super) status: watch::Receiver<ClusterFactsStatus>,
    pub(super) names: Vec<Text>,
}

impl Stage {
    /// Namespaces with one Pod each, of UID 1, on node n1, and a Service.
    pub(super) fn new(namespaces: usize, per_second: u32) -> Self {
        Self::with_entries(namespaces, per_second, 1_000_000)
    }

    pub(super) fn with_entries(namespaces: usize, per_second: u32, max_service_entries: usize) -> Self {
        let server = Server::new();
        let names: Vec<Text> = (0..namespaces).map(|n| format!("ns-{n:05}").into()).collect();
        for name in &names {
            server.put("namespaces", "", name, json!({}));
            server.put("pods", name, "web", pod("1", "web", "n1"));
            server.put("services", name, "web", service("web"));
        }
        let clock = Clock::start();
        let (requests, asked) = watch::channel(Arc::default());
        let (facts_tx, facts) = watch::channel(Arc::default());
        let (gone_tx, gone) = mpsc::channel(1000);
        let (status_tx, status) = watch::channel(ClusterFactsStatus::default());
        let task = ClusterFactsTask {
            cluster: Cluster::paced(server.client(), per_second),
            interval: ROUND,
            max_service_entries,
            clock,
            large: Semaphore::new(1),
        };
        tokio::spawn(task.run(asked, facts_tx, gone_tx, status_tx, CancellationToken::new()));
        Self { server, clock, requests, facts, gone, status, names }
    }

    /// Accuses every Pod now; with `is_accepted`, it was accepted before.
    pub(super) fn accuse(&self, is_accepted: bool) {
        let now = self.clock.now();
        let mut requests = LookupRequests::default();
        for namespace in &self.names {
            let pod = PodRef { namespace: namespace.clone(), pod: "web".into() };
            requests.pods.insert(pod.clone(), AccusingNodes::one(NodeName::new("n1"), now));
            if is_accepted {
                let accused = AccusedPod { pod, which: PodIdentity::Uid("1".into()) };
                requests.apps.insert(App::new(namespace.clone(), "app", "web"), vec![accused]);
            }
        }
        self.requests.send_replace(Arc::new(requests));
    }

    pub(super) fn fact(&self, namespace: &str) -> PodFact {
        self.facts.borrow().pods[&PodRef { namespace: namespace.into(), pod: "web".into() }].clone()
    }

    /// Whether the accused Pod has been looked up and is there.
    pub(super) fn knows(&self, namespace: &Text) -> bool {
        let pod = PodRef { namespace: namespace.clone(), pod: "web".into() };
        let facts = self.facts.borrow();
        matches!(facts.pods.get(&pod), Some(PodFact { state: PodState::Present { .. }, .. }))
    }

    /// How many requests were sent while `act` ran.
    pub(super) async fn requests(&self, act: impl Future<Output = ()>) -> usize {
        let before = self.server.store().requests.len();
        act.await;
        let after = self.server.store().requests.len();
        after - before
    }

    /// Accused, judged, accepted and watched.
    pub(super) async fn settled(namespaces: usize) -> Self {
        Self::settled_at(namespaces, 1000).await
    }

    pub(super) async fn settled_at(namespaces: usize, per_second: u32) -> Self {
        let stage = Self::new(namespaces, per_second);
        stage.accuse(false);
        wait(120).await;
        stage.accuse(true);
        wait(120).await;
        let status = stage.status.borrow().clone();
        assert!(status.is_watched && status.waiting == 0, "{status:?}");
        stage
    }

    pub(super) fn services(&self, namespace: &str) -> usize {
        let app = App::new(namespace, "app", "web");
        self.facts.borrow().apps[&app].exposure.as_ref().unwrap().services.len()
    }
}

pub(super) async fn wait(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}
