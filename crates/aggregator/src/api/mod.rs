//! The HTTP API: answers from the read model ([`crate::views`]), and passes operator commands on to the persisted state.

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
pub(crate) mod types;
mod violations;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{delete, get, post};
use procscan_core::policy::BrakeRules;
use procscan_core::snapshot::Snapshot;
use tokio::sync::Semaphore;

pub(crate) use self::auth::Authenticator;
pub(crate) use self::problem::Problem;
pub(crate) use self::server::{MAX_CONNECTIONS, Routers, serve};

use crate::state::OperatorCommands;
use crate::views::Views;
use crate::worker::Worker;

/// What the API needs beside the [`Views`] to answer operators.
#[derive(Clone, Debug)]
pub(crate) struct Operators {
    /// Where operator commands go.
    pub(crate) commands: OperatorCommands,
    /// Authenticates and authorizes requests.
    pub(crate) auth: Authenticator,
    /// The namespace of the persisted state; `None` without a cluster.
    pub(crate) namespace: Option<String>,
    /// How many tenants an exemption may open without a confirmation.
    pub(crate) brake: BrakeRules,
}

/// How many pages are made at the same time: they cost as much as there are entries, and the collector needs the cores too.
const PAGES: usize = 1;

/// Every route, and those of the reserve. Any other request is answered with a problem (RFC 9457). `max_in_flight` is how
/// many bytes the answers in flight may take together that are in memory as a whole.
pub(crate) fn routers(views: Views, operators: Operators, max_in_flight: usize) -> Routers {
    let api = Api::new(views, operators, max_in_flight);
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
        .route("/api/v1/exemptions/{name}", delete(operator_commands::remove_exemption))
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
    operators: Arc<Operators>,
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
    fn new(views: Views, operators: Operators, max_in_flight: usize) -> Self {
        let budget = budget::Budget::new(max_in_flight);
        let writer = Arc::new(Worker::new("api-writer"));
        let lists = Arc::new(list::Lists::new(budget.clone(), writer.clone()));
        let [pages, reading] = [PAGES, 1].map(|turns| Arc::new(Semaphore::new(turns)));
        let (views, operators) = (Arc::new(views), Arc::new(operators));
        Self { views, operators, lists, budget, pages, writer, reading }
    }

    /// The ledger as it is read now: the one way for all handlers.
    async fn snapshot(&self) -> Arc<Snapshot> {
        self.views.snapshots.fresh().await
    }
}
