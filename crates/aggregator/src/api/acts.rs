//! What operators do: approve, release, exempt, pause. Kept before it is answered, and done by whoever leads; any replica takes
//! it.

use std::time::Duration;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use procscan_core::policy::{DecisionKind, Mode, is_too_far};
use procscan_core::state::incident::{Approval, Release};
use procscan_core::state::{EnforcementSpec, ExemptionSpec, Match};
use serde::Deserialize;
use serde_json::json;

use super::Api;
use super::auth::Right;
use super::incidents::Shown;
use super::problem::Problem;
use crate::state::{Desk, DeskError};

/// How long an answer waits until what was said has been done. It is kept already.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ApproveBody {
    reason: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReleaseBody {
    reason: Option<String>,
    until: Option<Timestamp>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ExemptBody {
    /// A name for it; made from the time if there is none.
    id: Option<String>,
    namespace: Option<Match>,
    app: Option<Match>,
    process: Option<Match>,
    rule: Option<Match>,
    reason: String,
    until: Option<Timestamp>,
    /// How many tenants with blocked Apps it may open.
    confirm: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EnforceBody {
    /// `null`: what the configuration says. To be said: forgetting it must not lift a pause.
    #[serde(deserialize_with = "Option::deserialize")]
    mode: Option<Mode>,
    reason: Option<String>,
}

pub(super) async fn approve(
    State(api): State<Api>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Result<Json<ApproveBody>, JsonRejection>,
) -> Result<Response, Problem> {
    let (desk, by) = api.admit(&headers, "patch", "incidents", Some(&name)).await?;
    let ApproveBody { reason } = body.map_err(|rejection| refused(&rejection))?.0;
    let decided = api.find_open(&name)?;
    let number = desk.approve(&name, Approval { by: Some(by.clone()), reason }).await?;
    api.until_done(&name, number, DecisionKind::Approved, &by, decided).await
}

pub(super) async fn release(
    State(api): State<Api>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Result<Json<ReleaseBody>, JsonRejection>,
) -> Result<Response, Problem> {
    let (desk, by) = api.admit(&headers, "patch", "incidents", Some(&name)).await?;
    let ReleaseBody { reason, until } = body.map_err(|rejection| refused(&rejection))?.0;
    if until.is_some_and(|until| until <= desk.wall_time()) {
        return Err(Problem::new(StatusCode::BAD_REQUEST, "until: a time to come"));
    }
    if let Some(until) = until.filter(|until| is_too_far(*until, desk.wall_time())) {
        let detail = format!("until: {until} is more than ten years ahead; allowed is up to ten years");
        return Err(Problem::new(StatusCode::BAD_REQUEST, detail));
    }
    let decided = api.find_open(&name)?;
    let number = desk.release(&name, Release { by: Some(by.clone()), reason, until }).await?;
    api.until_done(&name, number, DecisionKind::Released, &by, decided).await
}

pub(super) async fn exempt(
    State(api): State<Api>,
    headers: HeaderMap,
    body: Result<Json<ExemptBody>, JsonRejection>,
) -> Result<Response, Problem> {
    let (desk, by) = api.admit(&headers, "create", "exemptions", None).await?;
    let ExemptBody { id, namespace, app, process, rule, reason, until, confirm } =
        body.map_err(|rejection| refused(&rejection))?.0;
    let id = id.unwrap_or_else(|| format!("exemption-{:x}", Timestamp::now().as_microsecond()));
    if !procscan_core::names::is_dns_subdomain(&id) {
        return Err(Problem::new(
            StatusCode::BAD_REQUEST,
            "id: letters, digits, hyphens and dots, as in a host name",
        ));
    }
    if until.is_some_and(|until| until <= desk.wall_time()) {
        return Err(Problem::new(StatusCode::BAD_REQUEST, "until: a time to come"));
    }
    let exemption = ExemptionSpec { namespace, app, process, rule, reason, until, confirm, by: Some(by) };
    api.check_opening(&exemption)?;
    desk.exempt(&id, &exemption).await?;
    Ok((StatusCode::CREATED, Json(json!({"name": id, "exemption": exemption}))).into_response())
}

pub(super) async fn withdraw(
    State(api): State<Api>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let (desk, by) = api.admit(&headers, "delete", "exemptions", Some(&name)).await?;
    desk.withdraw(&name).await?;
    tracing::info!(exemption = name, actor = by, "an exemption is taken back");
    Ok(StatusCode::NO_CONTENT.into_response())
}

pub(super) async fn enforce(
    State(api): State<Api>,
    headers: HeaderMap,
    body: Result<Json<EnforceBody>, JsonRejection>,
) -> Result<Response, Problem> {
    let (desk, by) = api.admit(&headers, "patch", "enforcements", None).await?;
    let EnforceBody { mode, reason } = body.map_err(|rejection| refused(&rejection))?.0;
    let spec = EnforcementSpec { mode, reason, by: Some(by) };
    desk.enforce(&spec).await?;
    let said = json!(mode);
    let said = said.as_str().unwrap_or("as configured");
    tracing::warn!(mode = said, actor = spec.by, reason = spec.reason, "the mode of enforcement is changed");
    Ok(Json(json!({"mode": mode, "reason": spec.reason, "by": spec.by})).into_response())
}

fn refused(rejection: &JsonRejection) -> Problem {
    Problem::new(rejection.status(), rejection.body_text())
}

impl From<DeskError> for Problem {
    fn from(error: DeskError) -> Self {
        let status = match &error {
            DeskError::Unknown(..) => StatusCode::NOT_FOUND,
            DeskError::Exists(..) | DeskError::Busy(_) => StatusCode::CONFLICT,
            DeskError::Invalid(_) => StatusCode::BAD_REQUEST,
            DeskError::Unkept(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, error.to_string())
    }
}

impl Api {
    /// Who asks, if they may, and where their word goes.
    async fn admit(
        &self,
        headers: &HeaderMap,
        verb: &'static str,
        resource: &'static str,
        name: Option<&str>,
    ) -> Result<(Desk, String), Problem> {
        let caller = self.views.auth.authenticate(headers).await?;
        let right = Right {
            verb,
            resource,
            namespace: self.views.own_namespace.clone(),
            name: name.map(str::to_owned),
        };
        self.views.auth.authorize(&caller, right).await?;
        Ok((self.views.desk.clone(), caller.name))
    }

    /// Refuses an exemption that would open many tenants at once, unless it confirms their number.
    pub(super) fn check_opening(&self, exemption: &ExemptionSpec) -> Result<(), Problem> {
        let rule = exemption.rule().map_err(|error| DeskError::Invalid(error.to_string()))?;
        let (tenants, may) =
            (rule.opens(&self.views.decided.borrow().plan), rule.may_open(&self.views.brake));
        if tenants <= may {
            return Ok(());
        }
        let detail = format!(
            "it would open the gateway to {tenants} tenants at once, more than {may}; if that is meant, confirm it with \
             `\"confirm\": {tenants}` (on the command line --confirm {tenants})"
        );
        Err(Problem::new(StatusCode::CONFLICT, detail).with(&json!({"tenants": tenants})))
    }

    /// An incident that is over is history, and nothing is done to it any more. How much has been decided of it.
    fn find_open(&self, name: &str) -> Result<u64, Problem> {
        let kept = self.views.kept.borrow().clone();
        let brief = kept.incidents.get(name).and_then(|incident| incident.brief());
        // What is not seen here yet may be there all the same.
        if brief.is_some_and(|brief| brief.state == procscan_core::state::IncidentState::Ended) {
            return Err(Problem::new(StatusCode::CONFLICT, "the incident is over"));
        }
        Ok(brief.map_or(0, |brief| brief.decided.into()))
    }

    /// Waits until everything up to `number` has been done, and says what has come of it: whether, after the first `decided`
    /// decisions, there is what was `wanted`.
    async fn until_done(
        &self,
        name: &str,
        number: i64,
        wanted: DecisionKind,
        by: &str,
        decided: u64,
    ) -> Result<Response, Problem> {
        let mut kept = self.views.kept.clone();
        let is_done = |kept: &std::sync::Arc<crate::state::Kept>| {
            let brief = kept.incidents.get(name).and_then(|incident| incident.brief());
            brief.is_some_and(|brief| brief.observed >= number)
        };
        let done = tokio::time::timeout(PATIENCE, kept.wait_for(is_done)).await;
        let incident = match done {
            Ok(Ok(kept)) => kept.incidents.get(name).and_then(|incident| incident.legible(name)),
            _ => None,
        };
        let Some(incident) = incident else {
            let detail = "it is kept, and will be done as soon as a replica leads and decisions can be kept; in \
                          dry-run nothing is";
            return Ok(
                (StatusCode::ACCEPTED, Json(json!({"status": "kept", "detail": detail}))).into_response()
            );
        };
        let status = &incident.status;
        let new = usize::try_from(status.decided.saturating_sub(decided)).unwrap_or(usize::MAX);
        let ours = || status.decisions.iter().rev().take(new).filter(|decision| *decision.actor == *by);
        if !ours().any(|decision| decision.decision == wanted)
            && let Some(refused) = ours().find(|decision| decision.decision == DecisionKind::Refused)
        {
            return Err(Problem::new(StatusCode::CONFLICT, refused.reason.to_string()));
        }
        Ok(Json(Shown::from(incident)).into_response())
    }
}
