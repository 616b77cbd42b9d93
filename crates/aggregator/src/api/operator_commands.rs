//! What operators do: approve, release, exempt, pause. Kept before it is answered, and done by whoever leads; any replica takes
//! it.

use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use procscan_core::decision::{DecisionKind, Mode};
use procscan_core::exemption::is_too_far;
use procscan_core::names::{SUBDOMAIN, is_dns_subdomain};
use procscan_core::state::incident::{Approval, Release};
use procscan_core::state::{EnforcementSpec, ExemptionSpec, IncidentState, Match};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Api;
use super::auth::Right;
use super::body::{Body, Part, Reason, Time, exemption_mistake};
use super::incidents::Shown;
use super::problem::Problem;
use super::query::{NoParameters, refused, repeated};
use crate::state::{OperatorCommandError, OperatorCommands};
use crate::wire_names::mode_name;

/// How long an answer waits until what was said has been done. It is kept already.
const MAX_WAIT_FOR_LEADER: Duration = Duration::from_secs(10);

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ApproveBody {
    reason: Option<Reason>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReleaseBody {
    reason: Option<Reason>,
    until: Option<Time>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ExemptBody {
    /// A name for it; made from the time if there is none.
    id: Option<String>,
    namespace: Option<Part>,
    app: Option<Part>,
    process: Option<Part>,
    rule: Option<Part>,
    reason: Reason,
    until: Option<Time>,
    /// How many tenants with blocked Apps it may open.
    confirm: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EnforceBody {
    /// `null`: what the configuration says. To be said: forgetting it must not lift a pause.
    #[serde(deserialize_with = "Option::deserialize")]
    mode: Option<Mode>,
    reason: Option<Reason>,
}

/// What there was before an act.
#[derive(Clone, Copy)]
struct Before {
    /// How many decisions the incident had.
    decided: u64,
    /// The incident's state, if this replica knew it.
    state: Option<IncidentState>,
}

/// The incident after an act, and what the act has changed.
#[derive(Serialize)]
struct Done {
    #[serde(flatten)]
    incident: Shown,
    act: CommandResult,
}

#[derive(Serialize)]
struct CommandResult {
    decision: DecisionKind,
    /// The incident's state before.
    #[serde(skip_serializing_if = "Option::is_none")]
    was: Option<IncidentState>,
    /// The end of a release.
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<Timestamp>,
}

pub(super) async fn approve(
    State(api): State<Api>,
    Path(name): Path<String>,
    headers: HeaderMap,
    _: NoParameters,
    body: Body,
) -> Result<Response, Problem> {
    let (operator_commands, by) = api.admit(&headers, "patch", "incidents", Some(&name)).await?;
    let ApproveBody { reason } = body.read().await?;
    let before = api.find_open(&name)?;
    let number = operator_commands
        .approve(&name, Approval { by: Some(by.clone()), reason: reason.map(String::from) })
        .await?;
    api.until_done(&name, number, DecisionKind::Approved, &by, before).await
}

pub(super) async fn release(
    State(api): State<Api>,
    Path(name): Path<String>,
    headers: HeaderMap,
    _: NoParameters,
    body: Body,
) -> Result<Response, Problem> {
    let (operator_commands, by) = api.admit(&headers, "patch", "incidents", Some(&name)).await?;
    let ReleaseBody { reason, until } = body.read().await?;
    let until = check_until(until, operator_commands.wall_time())?;
    let before = api.find_open(&name)?;
    let reason = reason.map(String::from);
    let number = operator_commands.release(&name, Release { by: Some(by.clone()), reason, until }).await?;
    api.until_done(&name, number, DecisionKind::Released, &by, before).await
}

pub(super) async fn exempt(
    State(api): State<Api>,
    headers: HeaderMap,
    _: NoParameters,
    body: Body,
) -> Result<Response, Problem> {
    let (operator_commands, by) = api.admit(&headers, "create", "exemptions", None).await?;
    let ExemptBody { id, namespace, app, process, rule, reason, until, confirm } = body.read().await?;
    let id = id.unwrap_or_else(|| format!("exemption-{:x}", Timestamp::now().as_microsecond()));
    if !is_dns_subdomain(&id) {
        let allowed = "small letters, digits, hyphens and dots, as in a host name";
        return Err(refused("id", &id, allowed, format!("id: {:?} is not {allowed}", repeated(&id))));
    }
    let until = check_until(until, operator_commands.wall_time())?;
    let [namespace, app, process, rule] = [namespace, app, process, rule].map(|part| part.map(Match::from));
    let exemption =
        ExemptionSpec { namespace, app, process, rule, reason: reason.into(), until, confirm, by: Some(by) };
    api.check_opening(&exemption)?;
    operator_commands.add_exemption(&id, &exemption).await?;
    Ok((StatusCode::CREATED, Json(json!({"name": id, "exemption": exemption}))).into_response())
}

pub(super) async fn withdraw(
    State(api): State<Api>,
    Path(name): Path<String>,
    headers: HeaderMap,
    _: NoParameters,
) -> Result<Response, Problem> {
    let (operator_commands, by) = api.admit(&headers, "delete", "exemptions", Some(&name)).await?;
    // What it covers is known only as long as it is there.
    let seen = api.views.persisted.borrow().exemptions.get(&name).cloned();
    operator_commands.remove_exemption(&name, &by, seen.as_ref()).await?;
    tracing::info!(exemption = name, actor = by, "an exemption is taken back");
    Ok(StatusCode::NO_CONTENT.into_response())
}

pub(super) async fn enforce(
    State(api): State<Api>,
    headers: HeaderMap,
    _: NoParameters,
    body: Body,
) -> Result<Response, Problem> {
    let (operator_commands, by) = api.admit(&headers, "patch", "enforcements", None).await?;
    let EnforceBody { mode, reason } = body.read().await?;
    let spec = EnforcementSpec { mode, reason: reason.map(String::from), by: Some(by) };
    operator_commands.set_enforcement(&spec).await?;
    let said = mode.map_or("as configured", mode_name);
    tracing::warn!(mode = said, actor = spec.by, reason = spec.reason, "the mode of enforcement is changed");
    let in_force = mode.unwrap_or(api.views.configured_mode);
    let answer = json!({"mode": mode, "in_force": in_force, "reason": spec.reason, "by": spec.by});
    Ok(Json(answer).into_response())
}

/// Refuses a name that no object of Kubernetes has: it becomes part of the path of a request to the API server.
fn check_name(name: &str) -> Result<(), Problem> {
    if is_dns_subdomain(name) {
        return Ok(());
    }
    let detail = format!("name: {:?} is not allowed; allowed is {SUBDOMAIN}", repeated(name));
    Err(refused("name", name, SUBDOMAIN, detail))
}

/// `until`, if it is after `now` and at most ten years ahead.
fn check_until(until: Option<Time>, now: Timestamp) -> Result<Option<Timestamp>, Problem> {
    let Some(Time(until)) = until else { return Ok(None) };
    let allowed = if until <= now {
        "a time to come"
    } else if is_too_far(until, now) {
        "a time at most ten years ahead"
    } else {
        return Ok(Some(until));
    };
    Err(refused("until", &until.to_string(), allowed, format!("until: {until} is not {allowed}")))
}

impl From<OperatorCommandError> for Problem {
    fn from(error: OperatorCommandError) -> Self {
        let status = match &error {
            OperatorCommandError::Unknown(..) => StatusCode::NOT_FOUND,
            OperatorCommandError::Exists(..) | OperatorCommandError::Busy(_) => StatusCode::CONFLICT,
            OperatorCommandError::Invalid(why) => {
                let allowed = "what the API server or the state file accepts";
                return refused("body", "", allowed, format!("body: {why}"));
            }
            OperatorCommandError::NotPersisted(_) => StatusCode::SERVICE_UNAVAILABLE,
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
    ) -> Result<(OperatorCommands, String), Problem> {
        let caller = self.operators.auth.authenticate(headers).await?;
        name.map_or(Ok(()), check_name)?;
        let right = Right {
            verb,
            resource,
            namespace: self.operators.namespace.clone(),
            name: name.map(str::to_owned),
        };
        self.operators.auth.authorize(&caller, right).await?;
        Ok((self.operators.commands.clone(), caller.name))
    }

    /// Refuses an exemption that would open many tenants at once, unless it confirms their number.
    pub(super) fn check_opening(&self, exemption: &ExemptionSpec) -> Result<(), Problem> {
        let rule = exemption.rule().map_err(|error| exemption_mistake(&error, exemption))?;
        let (tenants, may) =
            (rule.opens(&self.views.decided.borrow().plan), rule.may_open(self.operators.brake.max_releases));
        if tenants <= may {
            return Ok(());
        }
        let detail = format!(
            "it would open the gateway to {tenants} tenants at once, more than {may}; if that is meant, confirm it with \
             `\"confirm\": {tenants}` (on the command line --confirm {tenants})"
        );
        let given = exemption.confirm.map(|confirm| confirm.to_string()).unwrap_or_default();
        let more = json!({"tenants": tenants, "parameter": "confirm", "value": given, "allowed": format!("{tenants} or more")});
        Err(Problem::new(StatusCode::CONFLICT, detail).with(&more))
    }

    /// An incident that is over is history, and nothing is done to it any more.
    fn find_open(&self, name: &str) -> Result<Before, Problem> {
        let kept = self.views.persisted.borrow().clone();
        let brief = kept.incidents.get(name).and_then(|incident| incident.summary());
        // What is not seen here yet may be there all the same.
        if brief.is_some_and(|brief| brief.state == IncidentState::Ended) {
            let detail = "the incident is over: its App is not blocked, and nothing of it is held";
            return Err(Problem::new(StatusCode::CONFLICT, detail));
        }
        Ok(Before {
            decided: brief.map_or(0, |brief| brief.decided.into()),
            state: brief.map(|brief| brief.state),
        })
    }

    /// Waits until everything up to `number` has been done, and says what has come of it: whether, after the decisions `before`, there
    /// is what was `wanted`.
    async fn until_done(
        &self,
        name: &str,
        number: i64,
        wanted: DecisionKind,
        by: &str,
        before: Before,
    ) -> Result<Response, Problem> {
        let mut kept = self.views.persisted.clone();
        let is_done = |kept: &std::sync::Arc<crate::state::PersistedState>| {
            let brief = kept.incidents.get(name).and_then(|incident| incident.summary());
            brief.is_some_and(|brief| brief.observed >= number)
        };
        let done = tokio::time::timeout(MAX_WAIT_FOR_LEADER, kept.wait_for(is_done)).await;
        let incident = match done {
            Ok(Ok(kept)) => kept.incidents.get(name).and_then(|incident| incident.readable_document(name)),
            _ => None,
        };
        let Some(incident) = incident else {
            let detail = match self.views.mode() {
                Mode::DryRun => {
                    "dry-run carries out no approval and no release; as soon as the mode is `enforce` (`mode enforce`), it \
                     is done"
                }
                Mode::Enforce | Mode::Paused => {
                    "it is done as soon as a replica leads and decisions can be kept"
                }
            };
            return Ok(
                (StatusCode::ACCEPTED, Json(json!({"status": "kept", "detail": detail}))).into_response()
            );
        };
        let status = &incident.status;
        let new = usize::try_from(status.decided.saturating_sub(before.decided)).unwrap_or(usize::MAX);
        let ours = || status.decisions.iter().rev().take(new).filter(|decision| *decision.actor == *by);
        if !ours().any(|decision| decision.decision == wanted)
            && let Some(refused) = ours().find(|decision| decision.decision == DecisionKind::Refused)
        {
            return Err(Problem::new(StatusCode::CONFLICT, refused.reason.to_string()));
        }
        let until = (wanted == DecisionKind::Released).then(|| {
            status.releases.iter().filter(|release| *release.by == *by).map(|release| release.until).max()
        });
        let act = CommandResult { decision: wanted, was: before.state, until: until.flatten() };
        Ok(Json(Done { incident: Shown::from(incident), act }).into_response())
    }
}
