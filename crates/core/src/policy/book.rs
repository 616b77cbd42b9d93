//! The book of incidents: what the policy remembers between two evaluations, and what operators do to it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::brake::Window;
use super::decision::{Actor, Decision, DecisionKind};
use super::{Brake, Mode, Policy};
use crate::Moment;
use crate::ledger::Cleared;
use crate::names::{App, Key, NodeName, Text};
use crate::plan::{Exposure, HeldApp};
use crate::report::Record;

/// Everything that the policy remembers. Owned by one task.
#[derive(Clone, Debug, Default)]
pub struct Book {
    pub(super) incidents: BTreeMap<App, Incident>,
    pub(super) window: Window,
    pub(super) releases: Vec<StickyRelease>,
    /// Disputed evidence, with the reason. It is in the log already.
    pub(super) disputes: BTreeMap<(Key, NodeName), String>,
    /// Apps of namespaces that may not be touched, accused and in the log already.
    pub(super) refused: BTreeSet<App>,
    /// New notices in the current round: the round's number and how many.
    pub(super) notices: (u64, usize),
    /// The Apps behind the last summary, by what is happening to them, and when that last changed.
    pub(super) summary: Option<(BTreeMap<App, u8>, Timestamp)>,
}

/// One App, from its first accepted evidence to its clearing.
#[derive(Clone, Debug)]
pub struct Incident {
    /// When it opened.
    pub opened: Moment,
    /// What has come of it.
    pub standing: Standing,
    /// What it rests on. Each ground clears by the clock of its own node.
    pub(super) grounds: BTreeMap<(Key, NodeName), Ground>,
    /// The names of its processes. They only grow, so that what the tenant is told does not change back and forth.
    pub(super) processes: BTreeSet<Text>,
    /// The brake that holds its block. Stays through the end of the incident: coming back does not free it.
    pub(super) held: Option<(Moment, Brake)>,
    /// Why it is blocked, as of when that was decided.
    pub(super) reason: String,
    /// It was blocked before the start for this, and nothing has been heard of it since: not knowing its node, only the whole
    /// fleet's answers can prove that its processes are gone.
    pub(super) inherited: Option<BTreeSet<Key>>,
    /// The brake's hold on its release.
    pub(super) release_held: Option<Moment>,
    /// An operator has approved its block.
    pub(super) approved: bool,
    /// What its tenant has been told last.
    pub(super) told: Option<Told>,
    /// How it is reached, as last known: not knowing it for a while is no reason to open or close anything.
    pub(super) exposure: Exposure,
    /// What covers it, as last logged.
    pub(super) exempted: Option<String>,
    /// By which rule its last ground cleared.
    pub(super) cleared: Option<ClearedGround>,
}

/// What a tenant has been told, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) at: Timestamp,
    pub(super) what: Telling,
    /// Before the start.
    pub(super) inherited: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Telling {
    Grace,
    Blocked,
    Recovered,
}

/// What has come of an incident.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing yet: not due, or exempt.
    Watched,
    /// The tenant is told, and will be blocked.
    Grace {
        /// When.
        until: Moment,
    },
    /// A brake holds the block: only an approval blocks it.
    Held,
    /// Blocked.
    Blocked {
        /// Since when.
        since: Moment,
        /// Decided in dry-run, and so without effect.
        dry_run: bool,
    },
    /// Over. Kept for a while, because offending again continues it.
    Ended {
        /// Since when.
        at: Moment,
    },
}

/// One node's accepted evidence of one violation.
///
/// Has a clearing clock of its own beside the ledger's, started at the last evidence that was *accepted*: a node that goes on
/// accusing a Pod which has moved away resets the ledger's clock, but not this one.
#[derive(Clone, Debug)]
pub(super) struct Ground {
    pub(super) record: Arc<Record>,
    pub(super) fresh_at: Moment,
    pub(super) mark: Duration,
    /// Fresh, and accepted, as of the last evaluation.
    pub(super) active: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClearedGround {
    By(Cleared),
    AppGone,
}

/// An operator's release: sticks to the App, the process and the rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StickyRelease {
    pub(super) app: App,
    pub(super) process: Text,
    pub(super) rule: Text,
    pub(super) until: Timestamp,
    pub(super) actor: Text,
}

/// Something that an operator does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Approves what a brake holds: the App's block, or its release.
    Approve {
        /// The App.
        app: App,
    },
    /// Releases the App, and keeps these accusations from blocking it again until a date.
    Release {
        /// The App.
        app: App,
        /// Until when, by wall clock.
        until: Timestamp,
    },
}

/// Why an operator's act has no effect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ActError {
    /// There is no open incident of that App.
    #[error("{0} has no open incident")]
    NoIncident(App),
    /// No brake holds that App.
    #[error("{0} is not held, so there is nothing to approve")]
    NotHeld(App),
}

/// How many process names of an incident its tenant is told: a tenant can start processes of any number of names.
const MAX_PROCESSES: usize = 8;

/// How many ended incidents are remembered at most.
const MAX_ENDED: usize = 20_000;

impl Incident {
    pub(super) fn new(opened: Moment) -> Self {
        Self {
            opened,
            standing: Standing::Watched,
            grounds: BTreeMap::new(),
            processes: BTreeSet::new(),
            held: None,
            reason: String::new(),
            inherited: None,
            release_held: None,
            approved: false,
            told: None,
            exposure: Exposure::default(),
            exempted: None,
            cleared: None,
        }
    }

    /// Why, for people: its first ground, and how many more there are.
    pub(super) fn accusation(&self) -> String {
        let Some(((key, node), ground)) = self.grounds.iter().min_by_key(|(_, ground)| !ground.active) else {
            return "no accusation is left".to_owned();
        };
        let record = &ground.record;
        let by = if record.regex.is_empty() {
            "a keyword of its command line".to_owned()
        } else {
            format!("rule `{}`", record.regex.escape_debug())
        };
        let more = match self.grounds.len() {
            1 => String::new(),
            n => format!(" (and {} more)", n - 1),
        };
        format!(
            "process `{}` in Pod {} matches {by} on node {}, as of {}{more}",
            key.process.escape_debug(),
            key.pod,
            node.0.escape_debug(),
            record.timestamp.escape_debug(),
        )
    }

    pub(super) fn note_process(&mut self, process: &Text) {
        if self.processes.len() < MAX_PROCESSES {
            self.processes.insert(process.clone());
        }
    }

    pub(super) fn end(&mut self, now: Moment) {
        self.standing = Standing::Ended { at: now };
        self.release_held = None;
        self.exempted = None;
    }
}

/// An App that was blocked before the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inherited {
    /// The App.
    pub app: App,
    /// When its tenant was told, if that is known.
    pub told: Option<Timestamp>,
    /// Its violations, as far as known.
    pub accused: BTreeSet<Key>,
    /// The Services that are closed, as `service.namespace.svc`: they stay closed until others are known.
    pub services: Vec<Text>,
}

impl Book {
    /// A book in which what was blocked before the start is still blocked. Our own restart is evidence of nothing.
    pub fn inherit(blocked: impl IntoIterator<Item = Inherited>, now: Moment) -> Self {
        let mut book = Self::default();
        for Inherited { app, told, accused, services } in blocked {
            let told = told.unwrap_or(now.wall);
            let mut incident = Incident::new(Moment { wall: told, ..now });
            incident.standing = Standing::Blocked { since: now, dry_run: false };
            incident.told = Some(Told { at: told, what: Telling::Blocked, inherited: true });
            incident.exposure = Exposure::plain(services);
            "it was blocked before the start".clone_into(&mut incident.reason);
            for key in &accused {
                incident.note_process(&key.process);
            }
            incident.inherited = Some(accused);
            book.incidents.insert(app, incident);
        }
        book
    }

    /// The incidents, ended ones included, by App.
    pub fn incidents(&self) -> impl Iterator<Item = (&App, &Incident)> {
        self.incidents.iter()
    }

    /// The Apps that brakes hold, blocks and releases.
    pub fn held(&self, policy: &Policy) -> Vec<HeldApp> {
        self.incidents
            .iter()
            .filter_map(|(app, incident)| match (&incident.standing, &incident.held, incident.release_held) {
                (Standing::Held, Some((since, brake)), _) => {
                    Some((app, *since, brake.reason(&policy.brake), false))
                }
                (Standing::Blocked { .. }, _, Some(since)) => {
                    Some((app, since, Brake::Releases.reason(&policy.brake), true))
                }
                _ => None,
            })
            .map(|(app, since, reason, release)| HeldApp {
                app: app.clone(),
                since: since.wall,
                reason,
                release,
            })
            .collect()
    }

    /// Does what an operator asks for. Takes effect in the next evaluation, and in paused mode too.
    pub fn act(
        &mut self,
        act: &Act,
        actor: &str,
        policy: &Policy,
        now: Moment,
    ) -> Result<Decision, ActError> {
        let (app, kind, reason) = match act {
            Act::Approve { app } => (app, DecisionKind::Approved, self.approve(app, policy, now)?),
            Act::Release { app, until } => {
                (app, DecisionKind::Released, self.release(app, *until, actor, now)?)
            }
        };
        Ok(Decision {
            at: now.wall,
            app: app.clone(),
            kind,
            actor: Actor::Operator(actor.into()),
            reason,
            dry_run: policy.mode == Mode::DryRun,
        })
    }

    fn open(&mut self, app: &App) -> Result<&mut Incident, ActError> {
        match self.incidents.get_mut(app) {
            Some(incident) if !matches!(incident.standing, Standing::Ended { .. }) => Ok(incident),
            _ => Err(ActError::NoIncident(app.clone())),
        }
    }

    fn approve(&mut self, app: &App, policy: &Policy, now: Moment) -> Result<String, ActError> {
        let incident = self.open(app)?;
        match incident.standing {
            Standing::Held => {
                incident.held = None;
                incident.approved = true;
                incident.standing = Standing::Blocked { since: now, dry_run: policy.mode == Mode::DryRun };
                incident.reason =
                    format!("the block that a brake held is approved: {}", incident.accusation());
                Ok(incident.reason.clone())
            }
            Standing::Blocked { .. } if incident.release_held.is_some() => {
                incident.end(now);
                Ok("the release that a brake held is approved".to_owned())
            }
            _ => Err(ActError::NotHeld(app.clone())),
        }
    }

    fn release(&mut self, app: &App, until: Timestamp, actor: &str, now: Moment) -> Result<String, ActError> {
        let incident = self.open(app)?;
        let sticky: BTreeSet<(Text, Text)> = incident
            .grounds
            .iter()
            .map(|((key, _), ground)| (key.process.clone(), ground.record.rule().clone()))
            .collect();
        // A hold stays below the release: when the release runs out, time alone does not block either.
        incident.approved = false;
        if incident.grounds.is_empty() {
            incident.end(now);
        } else {
            incident.standing = Standing::Watched;
            incident.release_held = None;
            // The release itself is in the log; what covers the App from now on need not be logged once more.
            incident.exempted = Some(released_by(actor, until));
        }
        self.releases
            .retain(|old| !(old.app == *app && sticky.contains(&(old.process.clone(), old.rule.clone()))));
        self.releases.extend(sticky.into_iter().map(|(process, rule)| StickyRelease {
            app: app.clone(),
            process,
            rule,
            until,
            actor: actor.into(),
        }));
        Ok(format!("released by hand; the same accusations do not block it until {until}"))
    }

    /// Forgets incidents that ended long ago, and the oldest ended ones beyond a bound: a node that accuses ever new Apps must
    /// not fill the memory. One that is forgotten and comes back is a new incident, with all brakes before it.
    pub(super) fn forget(&mut self, policy: &Policy, now: Moment) {
        let ended = |incident: &Incident| match incident.standing {
            Standing::Ended { at } if incident.grounds.is_empty() => Some(at),
            _ => None,
        };
        self.incidents
            .retain(|_, incident| ended(incident).is_none_or(|at| now.since(at) <= policy.same_incident));
        let mut oldest: Vec<Moment> = self.incidents.values().filter_map(ended).collect();
        let Some(surplus) = oldest.len().checked_sub(MAX_ENDED).filter(|surplus| *surplus > 0) else {
            return;
        };
        let (_, last, _) = oldest.select_nth_unstable(surplus - 1);
        let last = *last;
        self.incidents.retain(|_, incident| ended(incident).is_none_or(|at| at > last));
    }

    /// What covers an accusation, if anything does.
    pub(super) fn excuse(
        &self,
        app: &App,
        record: &Record,
        policy: &Policy,
        now: Timestamp,
    ) -> Option<String> {
        let exemption = policy.exemptions.iter().find(|exemption| exemption.covers(app, record, now));
        if let Some(exemption) = exemption {
            return Some(format!("exempted: {}", exemption.reason));
        }
        let release = self.releases.iter().find(|release| {
            release.app == *app
                && release.process == record.key.process
                && release.rule == *record.rule()
                && now < release.until
        })?;
        Some(released_by(&release.actor, release.until))
    }
}

fn released_by(actor: &str, until: Timestamp) -> String {
    format!("released by {} until {until}", actor.escape_debug())
}
