//! The HTTP API: reads snapshots and what is kept, never the collector or an output; what operators say goes to the desk.

mod auth;
mod body;
mod budget;
mod compat;
mod cursor;
mod decisions;
mod filter;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod health;
mod incidents;
mod list;
mod negotiation;
mod nodes;
mod operator_commands;
mod page;
mod pieces;
mod plan;
mod problem;
mod query;
mod server;
#[cfg(test)]
mod tests;
mod violations;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{delete, get, post};
use procscan_core::decision::Mode;
use procscan_core::policy::BrakeRules;
use procscan_core::snapshot::Snapshot;
use tokio::sync::{Semaphore, watch};

pub use self::auth::{AuthError, Authenticator, Caller, Right};
pub use self::problem::Problem;
pub use self::server::{MAX_CONNECTIONS, Routers, serve};

use crate::clock::Clock;
use crate::cluster_facts::ClusterFactsStatus;
use crate::discovery::TargetSet;
use crate::kubernetes::Reach;
use crate::leader::Leadership;
use crate::ledger_task::Snapshots;
use crate::output::OutputStatus;
use crate::policy_task::{Decided, Journal};
use crate::state::{OperatorCommands, PersistedState};
use crate::worker::Worker;

/// What the API reads.
#[derive(Clone, Debug)]
pub struct Views {
    /// The ledger.
    pub snapshots: Snapshots,
    /// The policy.
    pub decided: watch::Receiver<Arc<Decided>>,
    /// The targets.
    pub targets: watch::Receiver<Arc<TargetSet>>,
    /// Whether the cluster can be asked about accusations, and how long they wait for it.
    pub cluster_facts: watch::Receiver<ClusterFactsStatus>,
    /// The output.
    pub output: watch::Receiver<OutputStatus>,
    /// The API server, where there is a cluster.
    pub api_server: Option<ApiServer>,
    /// What is kept, and what operators want.
    pub persisted: watch::Receiver<Arc<PersistedState>>,
    /// Why decisions can't be kept, if so.
    pub policy_error: watch::Receiver<Option<String>>,
    /// Why what is kept can't be watched, if so.
    pub state_error: watch::Receiver<Option<String>>,
    /// Why no leader can be elected, if so.
    pub lease_error: watch::Receiver<Option<String>>,
    /// Whether this replica leads.
    pub leadership: watch::Receiver<Leadership>,
    /// The last decisions of this replica.
    pub journal: Journal,
    /// Where operators' words go.
    pub operator_commands: OperatorCommands,
    /// Who asks, and whether they may.
    pub auth: Authenticator,
    /// The namespace of what is kept, where it has one.
    pub own_namespace: Option<String>,
    /// What the configuration says of all decisions.
    pub configured_mode: Mode,
    /// How much may happen at once.
    pub brake: BrakeRules,
    /// How many bytes the answers in flight may take together that are kept in memory as a whole.
    pub max_in_flight: usize,
    /// What time it is.
    pub clock: Clock,
}

/// Whether the API server can be reached, and what can't be done without it.
#[derive(Clone, Debug)]
pub struct ApiServer {
    /// Whether it can be reached.
    pub reach: Reach,
    /// It is asked about accusations.
    pub has_evidence: bool,
    /// The objects are written to it.
    pub has_output: bool,
}

/// How many pages are made at the same time: they cost as much as there are entries, and the collector needs the cores too.
const PAGES: usize = 1;

/// Every route, and those of the reserve. Anything else is answered with a problem (RFC 9457).
pub fn routers(views: Views) -> Routers {
    let api = Api::new(views);
    Routers { all: routes(api.clone()), reserve: probes().fallback(all_taken).with_state(api) }
}

/// What operators' probes and those of the cluster ask for. These answers need little, and wait for no other request.
fn probes() -> Router<Api> {
    Router::new()
        .route("/health", get(compat::health))
        .route("/livez", get(health::livez))
        .route("/readyz", get(health::readyz))
        .method_not_allowed_fallback(problem::method_not_allowed)
}

async fn all_taken() -> Problem {
    let detail =
        format!("all {MAX_CONNECTIONS} places for connections are taken; only probes are answered now");
    budget::busy(1, detail)
}

fn routes(api: Api) -> Router {
    Router::new()
        .route("/api/violations", get(compat::violations))
        .route("/api/v1/violations", get(violations::violations))
        .route("/api/v1/nodes", get(nodes::nodes))
        .route("/api/v1/plan", get(plan::plan))
        .route("/api/v1/decisions", get(decisions::decisions))
        .route("/api/v1/incidents", get(incidents::incidents))
        .route("/api/v1/incidents/{name}", get(incidents::incident))
        .route("/api/v1/incidents/{name}/approve", post(operator_commands::approve))
        .route("/api/v1/incidents/{name}/release", post(operator_commands::release))
        .route("/api/v1/exemptions", get(incidents::exemptions).post(operator_commands::exempt))
        .route("/api/v1/exemptions/{name}", delete(operator_commands::withdraw))
        .route("/api/v1/enforcement", get(incidents::enforcement).put(operator_commands::enforce))
        .merge(probes())
        .layer(DefaultBodyLimit::max(body::MAX_BODY))
        .fallback(problem::not_found)
        .method_not_allowed_fallback(problem::method_not_allowed)
        .with_state(api)
}

#[derive(Clone)]
struct Api {
    /// Shared, because every request has its own clone, and each receiver in it would be counted up and down.
    views: Arc<Views>,
    lists: Arc<list::Lists>,
    budget: Arc<budget::Budget>,
    /// One permit for each page that may be made at the same time.
    pages: Arc<Semaphore>,
    /// Where pages and lists are written.
    writer: Arc<Worker>,
    /// The one permit to read the log of decisions.
    reading: Arc<Semaphore>,
}

impl Api {
    fn new(views: Views) -> Self {
        let budget = budget::Budget::new(views.max_in_flight);
        let writer = Arc::new(Worker::new("api-writer"));
        let lists = Arc::new(list::Lists::new(budget.clone(), writer.clone()));
        let [pages, reading] = [PAGES, 1].map(|turns| Arc::new(Semaphore::new(turns)));
        Self { views: Arc::new(views), lists, budget, pages, writer, reading }
    }

    /// The ledger as it is read now: the one way for all handlers.
    async fn snapshot(&self) -> Arc<Snapshot> {
        self.views.snapshots.fresh().await
    }
}
