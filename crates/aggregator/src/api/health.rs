//! Probes: whether the service is alive, and whether it is ready.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;

use super::Api;
use super::parameters::NoParameters;
use super::problem::Problem;
use super::types::Status;
use crate::cluster_facts::ClusterFactsStatus;
use crate::kubernetes::Reach;
use crate::leader::Leadership;
use crate::ledger_task::{ALL_REFUSE, Progress};

/// The ledger looks at the clock every second. If it has not for much longer, it hangs.
const ALIVE: Duration = Duration::from_secs(30);

pub(super) async fn livez(State(api): State<Api>, _: NoParameters) -> Response {
    let age = api.views.clock.now().since(api.views.snapshots.last_advanced());
    if age <= ALIVE {
        return Json(Status { status: "ok" }).into_response();
    }
    let detail = format!("no progress for {}s", age.as_secs());
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail).into_response()
}

/// Whether the service is ready. The members beside `status` are for callers that may read violations in all namespaces.
#[derive(Serialize, JsonSchema)]
pub(super) struct Readiness {
    /// `ready` once the first round is done.
    status: &'static str,
    #[serde(flatten)]
    details: Option<Details>,
}

/// How each part of the service is.
#[derive(Serialize, JsonSchema)]
struct Details {
    /// How many rounds are done.
    rounds: u64,
    targets: Targets,
    discovery: Part,
    /// Where there is a cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    api_server: Option<Server>,
    evidence: ClusterFactsHealth,
    output: Part,
    state: Part,
    /// Whether operators' tokens can be checked.
    auth: Part,
    leader: Leader,
    config: ConfigHealth,
    /// With TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate: Option<CertificateHealth>,
}

/// The configuration in force.
#[derive(Serialize, JsonSchema)]
struct ConfigHealth {
    #[serde(flatten)]
    part: Part,
    /// Equal configurations have the same.
    hash: String,
    /// When it was read.
    loaded: Timestamp,
}

/// The certificate of the HTTP API.
#[derive(Serialize, JsonSchema)]
struct CertificateHealth {
    #[serde(flatten)]
    part: Part,
    /// When it expires.
    expires: Timestamp,
}

/// Whether the API server can be reached.
#[derive(Serialize, JsonSchema)]
struct Server {
    ok: bool,
    /// `host:port`.
    address: String,
    /// Since when it can't be reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl From<&Reach> for Server {
    fn from(reach: &Reach) -> Self {
        let since = reach.lost().map(|lost| lost.since);
        let error = reach.trouble();
        Self { ok: error.is_none(), address: reach.address().to_owned(), since, error }
    }
}

/// The leader, which decides and writes. Every replica collects and serves.
#[derive(Serialize, JsonSchema)]
struct Leader {
    /// Whether this replica leads.
    leading: bool,
    /// The name of the leader, as far as it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// Why no leader can be elected; `None` if one can.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Serialize, JsonSchema)]
struct Targets {
    expected: usize,
    fresh: usize,
    stale: usize,
    never_seen: usize,
    /// What to look at if every agent refuses the connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'static str>,
}

/// A part that may fail without taking the whole out of service.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "PartOfService")]
struct Part {
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// Objects that an operator has suspended: they are not written.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    suspended: Vec<String>,
}

/// Whether the cluster can be asked about accusations, and how long they wait for it.
#[derive(Serialize, JsonSchema)]
struct ClusterFactsHealth {
    #[serde(flatten)]
    part: Part,
    /// The cluster is watched; otherwise each accused namespace is looked up in every round.
    watched: bool,
    /// Namespaces with an accusation that has not been judged.
    waiting: usize,
    /// Namespaces with an accusation that has waited too long.
    late: usize,
    /// The longest wait of an accusation.
    longest_wait_seconds: u64,
    /// Namespaces that are too large to be looked up together with others.
    heavy: usize,
}

impl From<ClusterFactsStatus> for ClusterFactsHealth {
    fn from(status: ClusterFactsStatus) -> Self {
        Self {
            part: status.problem().into(),
            watched: status.is_watched,
            waiting: status.waiting,
            late: status.late,
            longest_wait_seconds: status.longest_wait.as_secs(),
            heavy: status.heavy,
        }
    }
}

impl From<Option<String>> for Part {
    fn from(error: Option<String>) -> Self {
        Self { ok: error.is_none(), error, suspended: Vec::new() }
    }
}

/// Ready once the first round is done. A failed part is named and takes no replica out of service, because the replica serves
/// what it knows.
pub(super) async fn readyz(State(api): State<Api>, headers: HeaderMap, _: NoParameters) -> Response {
    let details = if api.may_read_all(&headers).await { Some(details(&api).await) } else { None };
    readiness(&api, details)
}

/// The same without the details.
pub(super) async fn readyz_status(State(api): State<Api>, _: NoParameters) -> Response {
    readiness(&api, None)
}

fn readiness(api: &Api, details: Option<Details>) -> Response {
    // As of the last change, because a probe is no reason to make a snapshot.
    if api.views.snapshots.progress().borrow().rounds > 0 {
        return Json(Readiness { status: "ready", details }).into_response();
    }
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the first round is not done yet")
        .with(&details)
        .into_response()
}

async fn details(api: &Api) -> Details {
    let views = &api.views;
    let auth = api.operators.auth.trouble().await.into();
    let Progress { rounds, coverage, all_refuse } = *views.snapshots.progress().borrow();
    let evidence = views.cluster_facts.borrow().clone();
    let suspended = views.output.borrow().suspended.clone();
    Details {
        rounds,
        targets: Targets {
            expected: coverage.expected(),
            fresh: coverage.fresh,
            stale: coverage.stale,
            never_seen: coverage.never_seen,
            error: all_refuse.then_some(ALL_REFUSE),
        },
        discovery: views.targets.borrow().error.clone().into(),
        api_server: views.api_server.as_ref().map(|api_server| Server::from(&api_server.reach)),
        evidence: ClusterFactsHealth { part: views.evidence_trouble().into(), ..evidence.into() },
        output: Part { suspended, ..views.output_trouble().into() },
        state: views.state_trouble().into(),
        auth,
        leader: {
            let error = views.lease_error.borrow().clone();
            match &*views.leadership.borrow() {
                Leadership::Leading(permit) => {
                    Leader { leading: permit.holds(), name: Some(permit.identity().to_owned()), error }
                }
                Leadership::Following { leader } => Leader { leading: false, name: leader.clone(), error },
            }
        },
        config: {
            let config = views.config.borrow().clone();
            ConfigHealth { part: config.trouble().into(), hash: config.hash, loaded: config.loaded }
        },
        certificate: {
            let tls = views.tls.borrow().clone();
            tls.expires.map(|expires| CertificateHealth { part: tls.error.into(), expires })
        },
    }
}
