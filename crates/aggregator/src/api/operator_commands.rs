//! Operator commands: approve, release, exempt, remove an exemption, set the mode. Any replica takes a command and persists
//! it before it answers; the leader carries it out.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use procscan_core::decision::{DecisionKind, Mode};
use procscan_core::exemption::is_too_far;
use procscan_core::names::{SUBDOMAIN, is_dns_subdomain};
use procscan_core::state::incident::{Approval, Release};
use procscan_core::state::{self, EnforcementSpec, ExemptionSpec, IncidentState};
use serde_json::json;

use super::Api;
use super::auth::{Caller, Right};
use super::body::{Body, exemption_mistake};
use super::parameters::NoParameters;
use super::path::Name;
use super::problem::Problem;
use super::refusal::{invalid, refused};
use super::types::{
    self, ApproveRequest, CommandEffect, CommandResult, EnforceRequest, EnforcementChange, ExemptRequest,
    Incident, NewExemption, Pending, ReleaseRequest, Time,
};
use crate::state::{OperatorCommandError, OperatorCommands, PersistedState};
use crate::wire_names::mode_name;

/// How long an answer waits until the leader has carried out the command, which is persisted already.
const MAX_WAIT_FOR_LEADER: Duration = Duration::from_secs(10);

/// The incident before a command is carried out.
#[derive(Clone, Copy)]
struct Before {
    /// How many decisions the incident had.
    decided: u64,
    /// The incident's state, if this replica knew it.
    state: Option<IncidentState>,
}

pub(super) async fn approve(
    State(api): State<Api>,
    Name(name): Name,
    headers: HeaderMap,
    _: NoParameters,
    body: Body,
) -> Result<Response, Problem> {
    let (operator_commands, caller) = api.authorized(&headers, "patch", "incidents", Some(&name)).await?;
    let ApproveRequest { reason } = body.read().await?;
    let before = api.before(&name, &caller)?;
    let (by, reason) = (&caller.name, reason.map(String::from));
    let number = operator_commands.approve(&name, Approval { by: Some(by.clone()), reason }).await?;
    let command = Command { incident: &name, decision: DecisionKind::Approved, by, before };
    api.outcome(number, command).await
}

pub(super) async fn release(
    State(api): State<Api>,
    Name(name): Name,
    headers: HeaderMap,
    _: NoParameters,
    body: Body,
) -> Result<Response, Problem> {
    let (operator_commands, caller) = api.authorized(&headers, "patch", "incidents", Some(&name)).await?;
    let ReleaseRequest { reason, until } = body.read().await?;
    let until = check_until(until, operator_commands.wall_time())?;
    let before = api.before(&name, &caller)?;
    let (by, reason) = (&caller.name, reason.map(String::from));
    let number = operator_commands.release(&name, Release { by: Some(by.clone()), reason, until }).await?;
    let command = Command { incident: &name, decision: DecisionKind::Released, by, before };
    api.outcome(number, command).await
}

pub(super) async fn exempt(
    State(api): State<Api>,
    headers: HeaderMap,
    _: NoParameters,
    body: Body,
) -> Result<Response, Problem> {
    let (operator_commands, caller) = api.authorized(&headers, "create", "exemptions", None).await?;
    let request: ExemptRequest = body.read().await?;
    let id = request.id.clone();
    let id = id.unwrap_or_else(|| format!("exemption-{:x}", Timestamp::now().as_microsecond()));
    if !is_dns_subdomain(&id) {
        return Err(invalid("id", &id, "small letters, digits, hyphens and dots, as in a host name"));
    }
    check_until(request.until, operator_commands.wall_time())?;
    let exemption = request.spec(Some(caller.name.clone()));
    if !reaches(&caller, &exemption) {
        let detail =
            "the scopes of this token reach some namespaces only, so `namespace.exact` must be one of them";
        return Err(Problem::new(StatusCode::FORBIDDEN, detail));
    }
    api.check_opening(&exemption)?;
    operator_commands.add_exemption(&id, &exemption).await?;
    let location = HeaderValue::from_str(&format!("/api/v1/exemptions/{id}")).ok();
    let answer = NewExemption { name: id, exemption: types::ExemptionSpec::from(&exemption) };
    let mut response = (StatusCode::CREATED, Json(answer)).into_response();
    response.headers_mut().extend(location.map(|location| (header::LOCATION, location)));
    Ok(response)
}

pub(super) async fn remove_exemption(
    State(api): State<Api>,
    Name(name): Name,
    headers: HeaderMap,
    _: NoParameters,
) -> Result<Response, Problem> {
    let (operator_commands, caller) = api.authorized(&headers, "delete", "exemptions", Some(&name)).await?;
    // Read before, because what it covers is known only while it exists.
    let (removed, is_unread) = {
        let persisted = api.views.persisted.borrow();
        (persisted.exemptions.get(&name).cloned(), persisted.unread.exemptions.contains_key(&name))
    };
    // The last readable version of an unread one may have covered other namespaces.
    let known = removed.as_ref().filter(|_| !is_unread);
    if !known.map_or(caller.scopes.reach(None), |removed| reaches(&caller, removed)) {
        return Err(OperatorCommandError::Unknown("exemption", name).into());
    }
    operator_commands.remove_exemption(&name, &caller.name, removed.as_ref()).await?;
    tracing::info!(exemption = name, actor = caller.name, "an exemption is removed");
    Ok(StatusCode::NO_CONTENT.into_response())
}

pub(super) async fn enforce(
    State(api): State<Api>,
    headers: HeaderMap,
    _: NoParameters,
    body: Body,
) -> Result<Response, Problem> {
    let (operator_commands, caller) = api.authorized(&headers, "patch", "enforcements", None).await?;
    if !caller.scopes.reach(None) {
        let detail =
            "the mode is that of all namespaces, and the scopes of this token reach some of them only";
        return Err(Problem::new(StatusCode::FORBIDDEN, detail));
    }
    let EnforceRequest { mode, reason } = body.read().await?;
    let declared = mode.map(Mode::from);
    let spec =
        EnforcementSpec { mode: declared, reason: reason.map(String::from), by: Some(caller.name.clone()) };
    operator_commands.set_enforcement(&spec).await?;
    let name = declared.map_or("as configured", mode_name);
    tracing::warn!(mode = name, actor = spec.by, reason = spec.reason, "the mode of enforcement is changed");
    let in_force = declared.unwrap_or_else(|| api.views.configured_mode()).into();
    Ok(Json(EnforcementChange { mode, in_force, reason: spec.reason, by: spec.by }).into_response())
}

/// Whether the scopes of `caller` reach all that an exemption covers.
fn reaches(caller: &Caller, exemption: &ExemptionSpec) -> bool {
    let namespace = exemption.namespace.as_ref().and_then(|namespace| namespace.exact.as_deref());
    caller.scopes.reach(namespace)
}

/// Refuses a name that no object of Kubernetes has: it becomes part of the path of a request to the API server.
fn check_name(name: &str) -> Result<(), Problem> {
    if is_dns_subdomain(name) {
        return Ok(());
    }
    Err(invalid("name", name, SUBDOMAIN))
}

/// `until`, if it is after `now` and at most ten years ahead. The problem is 400 otherwise.
fn check_until(until: Option<Time>, now: Timestamp) -> Result<Option<Timestamp>, Problem> {
    let Some(Time(until)) = until else { return Ok(None) };
    let expected = if until <= now {
        "a time to come"
    } else if is_too_far(until, now) {
        "a time at most ten years ahead"
    } else {
        return Ok(Some(until));
    };
    Err(invalid("until", &until.to_string(), expected))
}

impl From<OperatorCommandError> for Problem {
    fn from(error: OperatorCommandError) -> Self {
        let status = match &error {
            OperatorCommandError::Unknown(..) => StatusCode::NOT_FOUND,
            OperatorCommandError::Exists(..) | OperatorCommandError::Busy(_) => StatusCode::CONFLICT,
            OperatorCommandError::Invalid(why) => {
                let expected = "what the API server or the state file accepts";
                return refused("body", "", expected, format!("body: {why}"));
            }
            OperatorCommandError::NotPersisted(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, error.to_string())
    }
}

impl Api {
    /// Authenticates and authorizes a request. Returns where its command goes, and the operator.
    async fn authorized(
        &self,
        headers: &HeaderMap,
        verb: &'static str,
        resource: &'static str,
        name: Option<&str>,
    ) -> Result<(OperatorCommands, Arc<Caller>), Problem> {
        let caller = self.operators.auth.authenticate(headers).await?;
        name.map_or(Ok(()), check_name)?;
        let right = Right::Object {
            verb,
            resource,
            namespace: self.operators.namespace.clone(),
            name: name.map(str::to_owned),
        };
        self.operators.auth.authorize(&caller, &right).await?;
        Ok((self.operators.commands.clone(), caller))
    }

    /// Refuses an exemption that would open many tenants at once, unless it confirms their number.
    pub(super) fn check_opening(&self, exemption: &ExemptionSpec) -> Result<(), Problem> {
        let rule = exemption.rule().map_err(|error| exemption_mistake(&error, exemption))?;
        let (tenants, may) = (
            rule.opens(&self.views.decided.borrow().plan),
            rule.may_open(self.views.policy.borrow().brake.max_releases),
        );
        if tenants <= may {
            return Ok(());
        }
        let detail = format!(
            "the exemption would open the gateway to {tenants} tenants at once, more than {may}; to confirm it, add \
             `\"confirm\": {tenants}` (on the command line --confirm {tenants})"
        );
        let given = exemption.confirm.map(|confirm| confirm.to_string()).unwrap_or_default();
        let more = json!({"tenants": tenants, "parameter": "confirm", "value": given, "expected": format!("{tenants} or more")});
        Err(Problem::new(StatusCode::CONFLICT, detail).with(&more))
    }

    /// The state of an incident before a command. Refuses commands for an incident that has ended, and for one that the
    /// scopes of `caller` do not reach.
    fn before(&self, name: &str, caller: &Caller) -> Result<Before, Problem> {
        let persisted = self.views.persisted.borrow().clone();
        let incident = persisted.incidents.get(name);
        if !caller.scopes.reach(incident.map(|incident| &*incident.app.namespace)) {
            return Err(OperatorCommandError::Unknown("incident", name.to_owned()).into());
        }
        let summary = incident.and_then(|incident| incident.summary());
        // An incident that this replica has not seen yet may exist all the same.
        if summary.is_some_and(|summary| summary.state == IncidentState::Ended) {
            let detail = "the incident has ended: its App is not blocked, and nothing of it is held";
            return Err(Problem::new(StatusCode::CONFLICT, detail));
        }
        Ok(Before {
            decided: summary.map_or(0, |summary| summary.decided.into()),
            state: summary.map(|summary| summary.state),
        })
    }

    /// Waits until the leader has carried out the commands up to `number`, and answers with what `command` has changed.
    async fn outcome(&self, number: i64, command: Command<'_>) -> Result<Response, Problem> {
        let name = command.incident;
        let mut persisted = self.views.persisted.clone();
        let is_carried_out = |persisted: &Arc<PersistedState>| {
            let summary = persisted.incidents.get(name).and_then(|incident| incident.summary());
            summary.is_some_and(|summary| summary.observed >= number)
        };
        let waited = tokio::time::timeout(MAX_WAIT_FOR_LEADER, persisted.wait_for(is_carried_out)).await;
        let incident = match waited {
            Ok(Ok(persisted)) => {
                persisted.incidents.get(name).and_then(|incident| incident.readable_document(name))
            }
            _ => None,
        };
        match incident {
            Some(incident) => Ok(Json(command.result(incident)?).into_response()),
            None => Ok((StatusCode::ACCEPTED, Json(self.pending())).into_response()),
        }
    }

    /// The answer to a command that is not carried out yet.
    fn pending(&self) -> Pending {
        Pending::new(match self.views.mode() {
            Mode::DryRun => {
                "dry-run carries out no approval and no release; the command will be carried out as soon as the mode is \
                 `enforce` (`mode enforce`)"
            }
            Mode::Enforce | Mode::Paused => {
                "the command will be carried out as soon as a replica leads and decisions can be persisted"
            }
        })
    }
}

/// An approval or a release that was persisted.
struct Command<'a> {
    /// The name of the incident.
    incident: &'a str,
    /// The decision that the leader makes of the command.
    decision: DecisionKind,
    /// The operator.
    by: &'a str,
    before: Before,
}

impl Command<'_> {
    /// What the command has changed, by the incident after it. The problem is 409 if the leader has refused the command.
    fn result(&self, incident: state::Incident) -> Result<CommandResult, Problem> {
        let state::IncidentStatus { decided, decisions, releases, .. } = &incident.status;
        let new = usize::try_from(decided.saturating_sub(self.before.decided)).unwrap_or(usize::MAX);
        let ours = || decisions.iter().rev().take(new).filter(|decision| *decision.actor == *self.by);
        if !ours().any(|decision| decision.decision == self.decision)
            && let Some(refused) = ours().find(|decision| decision.decision == DecisionKind::Refused)
        {
            return Err(Problem::new(StatusCode::CONFLICT, refused.reason.to_string()));
        }
        let until = (self.decision == DecisionKind::Released)
            .then(|| {
                releases.iter().filter(|release| *release.by == *self.by).map(|release| release.until).max()
            })
            .flatten();
        let command = CommandEffect {
            decision: self.decision.into(),
            was: self.before.state.map(types::IncidentState::from),
            until,
        };
        Ok(CommandResult { incident: Incident::from(incident), command })
    }
}
