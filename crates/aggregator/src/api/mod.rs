//! The HTTP API: reads snapshots, never the collector or an output.

mod auth;
mod health;
mod nodes;
mod plan;
mod problem;
mod seed;
mod server;
#[cfg(test)]
mod tests;
mod violations;

use std::sync::Arc;

use axum::Router;
use axum::routing::get;
use procscan_core::snapshot::Snapshot;
use tokio::sync::watch;

pub use self::auth::{AuthError, Authenticator, Caller, Right};
pub use self::problem::Problem;
pub use self::server::{MAX_CONNECTIONS, serve};

use crate::clock::Clock;
use crate::discovery::TargetSet;
use crate::output::OutputStatus;
use crate::policy_task::Decided;

/// What the API reads.
#[derive(Clone, Debug)]
pub struct Views {
    /// The ledger.
    pub snapshot: watch::Receiver<Arc<Snapshot>>,
    /// The policy.
    pub decided: watch::Receiver<Arc<Decided>>,
    /// The targets.
    pub targets: watch::Receiver<Arc<TargetSet>>,
    /// Why the cluster can't be asked about accusations, if so.
    pub evidence: watch::Receiver<Option<String>>,
    /// The output.
    pub output: watch::Receiver<OutputStatus>,
    /// What time it is.
    pub clock: Clock,
}

/// Every route. Anything else is answered with a problem (RFC 9457).
pub fn router(views: Views) -> Router {
    Router::new()
        .route("/api/violations", get(seed::violations))
        .route("/health", get(seed::health))
        .route("/livez", get(health::livez))
        .route("/readyz", get(health::readyz))
        .route("/api/v1/violations", get(violations::violations))
        .route("/api/v1/nodes", get(nodes::nodes))
        .route("/api/v1/plan", get(plan::plan))
        .fallback(problem::not_found)
        .method_not_allowed_fallback(problem::method_not_allowed)
        .with_state(Api { views, list: Arc::default() })
}

#[derive(Clone)]
struct Api {
    views: Views,
    list: Arc<seed::ListCache>,
}
