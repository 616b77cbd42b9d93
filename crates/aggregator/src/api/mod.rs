//! The HTTP API: answers from the read model ([`crate::views`]), and passes operator commands on to the persisted state.

mod auth;
mod body;
mod budget;
mod compat;
mod cursor;
mod decisions;
mod exemptions;
mod filter;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod health;
mod incidents;
mod list;
mod metrics;
mod namespace_list;
mod negotiation;
mod nodes;
mod openapi;
mod operator_commands;
mod page;
mod parameters;
mod path;
mod pieces;
mod plan;
mod problem;
mod reader;
mod redact;
mod refusal;
mod route;
mod routes;
mod server;
mod sort;
mod stream;
#[cfg(test)]
mod tests;
pub(crate) mod types;
mod violations;

use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use procscan_core::snapshot::Snapshot;
use tokio::sync::Semaphore;

pub(crate) use self::auth::Authenticator;
use self::list::{Compressor, Lists};
use self::namespace_list::NamespaceLists;
use self::parameters::NoParameters;
use self::pieces::Cmdlines;
pub(crate) use self::problem::Problem;
use self::route::{Access, Route};
pub(crate) use self::server::{Endpoint, MAX_CONNECTIONS, Routers, serve};
pub(crate) use self::stream::{MAX_CLIENTS as MAX_STREAMS, Stream};

use crate::metrics::Metrics;
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
    /// Whether `GET /api/violations` answers without a token.
    pub(crate) anonymous_violations: bool,
    /// Whether secrets in command lines are hidden from callers without the right to whole command lines.
    pub(crate) redacts: bool,
    /// The metrics.
    pub(crate) metrics: Metrics,
    /// The stream of changes.
    pub(crate) stream: Stream,
}

/// How many pages are made at the same time: they cost as much as there are entries, and the collector needs the cores too.
const PAGES: usize = 1;

/// Every route, and those of the reserve. Any other request is answered with a problem (RFC 9457). `max_in_flight` is how
/// many bytes the answers in flight may take together that are in memory as a whole.
pub(crate) fn routers(views: Views, operators: Operators, max_in_flight: usize) -> Routers {
    let api = Api::new(views, operators, max_in_flight);
    // These answers need little, and wait for no other request: the readiness without its details.
    let reserve = router(routes::probes())
        .route("/readyz", get(health::readyz_status))
        .method_not_allowed_fallback(problem::method_not_allowed)
        .fallback(all_taken);
    let uncertified = router(routes::probes())
        .route("/readyz", get(health::readyz_status))
        .fallback(certificate_needed)
        .with_state(api.clone());
    Routers { all: routes(api.clone()), reserve: reserve.with_state(api), uncertified }
}

fn router(routes: Vec<Route>) -> Router<Api> {
    routes.into_iter().fold(Router::new(), |router, route| router.route(route.path, route.handler))
}

async fn all_taken() -> Problem {
    let detail =
        format!("all {MAX_CONNECTIONS} places for connections are taken; only probes are answered now");
    budget::busy(1, detail)
}

async fn certificate_needed() -> Problem {
    let detail = "a client certificate is needed for everything but probes (api.tls_client_ca)";
    Problem::new(StatusCode::FORBIDDEN, detail)
}

/// Every route, including `/openapi.json`.
fn all_routes() -> Vec<Route> {
    let mut all = routes::all();
    let document = Route::get("/openapi.json", "openapi", openapi_document);
    all.push(
        document
            .summary("This document.")
            .access(Access::Authenticated)
            .answers::<serde_json::Value>(200, "An OpenAPI 3.1 document."),
    );
    all
}

async fn openapi_document(
    State(api): State<Api>,
    headers: HeaderMap,
    _: NoParameters,
) -> Result<Response, Problem> {
    static DOCUMENT: OnceLock<Bytes> = OnceLock::new();
    api.operators.auth.authenticate(&headers).await?;
    let document = DOCUMENT.get_or_init(|| Bytes::from(openapi::document(&all_routes()).to_string())).clone();
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], document).into_response())
}

fn routes(api: Api) -> Router {
    router(all_routes())
        .layer(DefaultBodyLimit::max(body::MAX_BODY))
        .fallback(problem::not_found)
        .method_not_allowed_fallback(problem::method_not_allowed)
        .with_state(api)
}

/// The list of `GET /api/violations` in both forms of its command lines.
struct ListForms {
    whole: Lists,
    redacted: Lists,
}

impl ListForms {
    fn new(budget: Arc<budget::Budget>, writer: Arc<Worker>) -> Self {
        let compressor = Arc::new(Compressor::new(budget, writer));
        let of = |cmdlines| Lists::new(cmdlines, compressor.clone());
        Self { whole: of(Cmdlines::Whole), redacted: of(Cmdlines::Redacted) }
    }

    fn of(&self, cmdlines: Cmdlines) -> &Lists {
        match cmdlines {
            Cmdlines::Whole => &self.whole,
            Cmdlines::Redacted => &self.redacted,
        }
    }

    /// How many bytes of the budget the current lists take.
    fn size(&self) -> usize {
        self.whole.size() + self.redacted.size()
    }
}

#[derive(Clone)]
struct Api {
    /// Shared, because every request has its own clone, and each receiver in it would be counted up and down.
    views: Arc<Views>,
    operators: Arc<Operators>,
    lists: Arc<ListForms>,
    namespace_lists: Arc<NamespaceLists>,
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
        let lists = Arc::new(ListForms::new(budget.clone(), writer.clone()));
        let namespace_lists = Arc::default();
        let [pages, reading] = [PAGES, 1].map(|turns| Arc::new(Semaphore::new(turns)));
        let (views, operators) = (Arc::new(views), Arc::new(operators));
        Self { views, operators, lists, namespace_lists, budget, pages, writer, reading }
    }

    /// The ledger as it is read now: the one way for all handlers.
    async fn snapshot(&self) -> Arc<Snapshot> {
        self.views.snapshots.fresh().await
    }
}
