//! Operator commands for one incident: approve what a brake holds, or release the App.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;

use super::Incidents;
use crate::Moment;
use crate::decision::{Actor, Decision, DecisionKind, Mode};
use crate::exemption::is_too_far;
use crate::names::{App, Text};
use crate::policy::Policy;
use crate::policy::incident::{Hold, Incident, Phase, StickyRelease, released_by};

/// A command of an operator for one App.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IncidentCommand {
    /// Approves what a brake holds: the App's block, or its release.
    Approve {
        /// The App.
        app: App,
    },
    /// Releases the App, and prevents that these accusations block it again until a date.
    Release {
        /// The App.
        app: App,
        /// Until when, by wall clock.
        until: Timestamp,
    },
}

/// The operator who issued a command, and the reason.
#[derive(Clone, Copy, Debug)]
pub struct IssuedBy<'a> {
    /// The operator's name.
    pub name: &'a str,
    /// The operator's reason.
    pub reason: Option<&'a str>,
}

impl<'a> From<&'a str> for IssuedBy<'a> {
    fn from(name: &'a str) -> Self {
        Self { name, reason: None }
    }
}

impl IncidentCommand {
    /// The App that it is about.
    pub fn app(&self) -> &App {
        match self {
            Self::Approve { app } | Self::Release { app, .. } => app,
        }
    }
}

/// Why an operator's command has no effect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IncidentCommandError {
    /// The App has no open incident.
    #[error("{0} has no open incident")]
    NoIncident(App),
    /// No brake holds that App.
    #[error("{0} is not held, so there is nothing to approve")]
    NotHeld(App),
    /// The release would have ended before it began.
    #[error("the release is refused: its `until`, {0}, is over already")]
    Over(Timestamp),
    /// The release would last longer than ten years, which can only be a mistake.
    #[error("until: invalid value {0}: expected a time at most ten years ahead")]
    TooFar(Timestamp),
}

/// How many accusations a release covers one by one. Beyond, it covers the whole App, because an operator who
/// releases an App does not want it blocked for the rest.
const MAX_RELEASES: usize = 64;

/// The text of an operator's release in the log, before its date.
const RELEASED_UNTIL: &str = "released by hand; the same accusations do not block it until ";

/// The date in the text of an operator's release in the log. The operator's reason comes after it.
pub(in crate::policy) fn released_until(reason: &str) -> Option<Timestamp> {
    let date = reason.strip_prefix(RELEASED_UNTIL)?;
    date.split_once(' ').map_or(date, |(date, _)| date).parse().ok()
}

impl Incidents {
    /// Executes an operator's command. It takes effect in the next evaluation, and in paused mode too.
    ///
    /// A command that has no effect is in the incident's log all the same, if there is an incident.
    pub fn execute<'a>(
        &mut self,
        command: &IncidentCommand,
        by: impl Into<IssuedBy<'a>>,
        policy: &Policy,
        now: Moment,
    ) -> Result<Decision, IncidentCommandError> {
        let IssuedBy { name, reason: operator_reason } = by.into();
        // An operator who has the name of the policy must not be taken for it.
        let own = Actor::Policy.name();
        let actor = if *name == *own { format!("{name} (an operator)") } else { name.to_owned() };
        let actor = &*actor;
        let app = command.app().clone();
        let done = match command {
            IncidentCommand::Approve { app } => {
                self.approve(app, policy, now).map(|why| (DecisionKind::Approved, why))
            }
            IncidentCommand::Release { app, until } => {
                let done = self.release(app, *until, actor, now);
                if done.is_ok() {
                    // The block that passed the brakes was wrong, so the next one has to pass them again.
                    self.window.revoke_pass(app);
                }
                done.map(|why| (DecisionKind::Released, why))
            }
        };
        let (kind, reason) = match &done {
            Ok((kind, reason)) => (*kind, reason.clone()),
            Err(error) => (DecisionKind::Refused, error.to_string()),
        };
        let reason = match operator_reason.map(str::trim).filter(|text| !text.is_empty()) {
            Some(text) => format!("{reason} («{}»)", text.escape_debug()),
            None => reason,
        };
        let decision = Decision {
            at: now.wall(),
            app: app.clone(),
            kind,
            actor: Actor::Operator(actor.into()),
            reason: reason.into(),
            dry_run: policy.mode == Mode::DryRun,
        };
        if let Some(incident) = self.by_app.get_mut(&app) {
            incident.log_decision(&decision);
        }
        done.map(|_| decision)
    }

    /// Notes that all operator commands for the incident of `app` up to `number` have been done.
    pub fn note_done_up_to(&mut self, app: &App, number: i64) {
        if let Some(incident) = self.by_app.get_mut(app) {
            let persisted = incident.persisted_mut();
            persisted.observed = persisted.observed.max(number);
        }
    }

    /// Restarts the numbering of operator commands for the incident of `app`: commands up to `number` have been done.
    pub fn restart_numbering(&mut self, app: &App, number: i64) {
        if let Some(incident) = self.by_app.get_mut(app).filter(|incident| incident.observed() != number) {
            incident.persisted_mut().observed = number;
        }
    }

    fn open(&mut self, app: &App) -> Result<&mut Incident, IncidentCommandError> {
        match self.by_app.get_mut(app) {
            Some(incident) if !matches!(incident.phase(), Phase::Ended { .. }) => Ok(incident),
            _ => Err(IncidentCommandError::NoIncident(app.clone())),
        }
    }

    fn approve(&mut self, app: &App, policy: &Policy, now: Moment) -> Result<String, IncidentCommandError> {
        let incident = self.open(app)?;
        match incident.phase() {
            Phase::Held => {
                let reason = format!("the block that a brake held is approved: {}", incident.accusation());
                let persisted = incident.persisted_mut();
                persisted.hold = Hold::Approved;
                persisted.phase =
                    Phase::Blocked { since: now, dry_run: policy.mode == Mode::DryRun, release_held: None };
                persisted.reason = reason.clone().into();
                Ok(reason)
            }
            Phase::Blocked { release_held: Some(_), .. } => {
                incident.end(now);
                Ok("the release that a brake held is approved".to_owned())
            }
            Phase::Blocked { .. } if incident.persisted.hold.brake().is_some() => {
                let persisted = incident.persisted_mut();
                persisted.hold = Hold::Approved;
                Ok("closing all its Services, and other Apps with them, is approved".to_owned())
            }
            _ => Err(IncidentCommandError::NotHeld(app.clone())),
        }
    }

    fn release(
        &mut self,
        app: &App,
        until: Timestamp,
        actor: &str,
        now: Moment,
    ) -> Result<String, IncidentCommandError> {
        if is_too_far(until, now.wall()) {
            return Err(IncidentCommandError::TooFar(until));
        }
        let until_by_clock = self.clock.at_date(until, now);
        let incident = self.open(app)?;
        if until <= now.wall() {
            return Err(IncidentCommandError::Over(until));
        }
        let mut sticky: BTreeSet<(Option<Text>, Option<Text>)> = incident
            .accepted
            .iter()
            .map(|((key, _), accepted)| (Some(key.process.clone()), Some(accepted.record.rule().clone())))
            .collect();
        if incident.accepted.is_empty() || incident.omitted > 0 {
            // Some accusations are not known, so the release covers the whole App.
            sticky = [(None, None)].into();
        }
        if sticky.len() > MAX_RELEASES {
            sticky = [(None, None)].into();
        }
        // A new release of the same accusation replaces the old one.
        let persisted = incident.persisted_mut();
        let releases = &mut persisted.rare_mut().releases;
        releases.retain(|old| !sticky.contains(&(old.process.clone(), old.rule.clone())));
        releases.extend(sticky.into_iter().map(|(process, rule)| StickyRelease {
            process,
            rule,
            until,
            until_by_clock: Some(until_by_clock),
            actor: actor.into(),
        }));
        if let Some(due) = &mut persisted.due {
            Arc::make_mut(due).passed = false;
        }
        // A hold stays while the App is released, so that time alone does not block it when the release runs out.
        persisted.hold.end_approval();
        if incident.accepted.is_empty() {
            incident.end(now);
        } else {
            let persisted = incident.persisted_mut();
            persisted.phase = Phase::Watched;
            // The release itself is in the log, so its cover need not be logged once more.
            persisted.rare_mut().exempted = Some(released_by(actor, until).into());
        }
        self.revoke_grace(app);
        Ok(format!("{RELEASED_UNTIL}{until}"))
    }
}
