//! The book of incidents: what the policy remembers between two evaluations, and what operators do to it.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::RandomState;
use std::sync::Arc;

use jiff::Timestamp;

use super::admissions::Admissions;
use super::dates::Dates;
use super::incident::{EvidenceId, Incident, Phase, StickyRelease};
use super::inherited::BlockedBefore;
use super::leader_clock::LeaderClock;
use super::persist::{ClockWritten, Committed};
use super::refused_accusations::LoggedAccusations;
use super::unreadable::UnreadableIncidents;
use super::window::Window;
use super::{Brake, Policy};
use crate::Moment;
use crate::decision::Mode;
use crate::decision::{Actor, Decision, DecisionKind};
use crate::dense::Dense;
use crate::exemption::is_too_far;
use crate::names::{App, Key, NodeName, Text};
use crate::ordered_lookups::OrderedLookups;
use crate::plan::{Block, HeldApp, Notice};
use crate::snapshot::EvidenceView;
use crate::time::CompactTimestamp;

/// Everything that the policy remembers. Owned by one task.
#[derive(Clone, Debug, Default)]
pub struct Incidents {
    pub(super) by_app: BTreeMap<App, Incident>,
    pub(super) window: Window,
    pub(super) clock: LeaderClock,
    pub(super) dates: Dates,
    /// What is persisted of the two clocks.
    pub(super) written_clocks: ClockWritten,
    pub(super) admissions: Admissions,
    /// What is in effect of each incident: what was kept of it last, or what it was found with (see [`Book::unsaved`]).
    pub(super) committed: BTreeMap<App, Committed>,
    /// The Apps whose persisted incidents can't be read.
    pub(super) unreadable: UnreadableIncidents,
    /// The Apps that were blocked before this term.
    pub(super) blocked_before: BlockedBefore,
    /// The first evidence whose Pod has not been looked up since, and when it was fresh.
    pub(super) unjudged: BTreeMap<EvidenceId, (Moment, EvidenceView)>,
    /// Disputed evidence, with the reason.
    pub(super) disputes: BTreeMap<(Key, NodeName), String>,
    /// The accusations in namespaces that may not be touched which are already logged.
    pub(super) logged_refusals: LoggedAccusations,
    /// The disputed accusations which are already logged.
    pub(super) logged_disputes: LoggedAccusations,
    /// New notices in the current round: the round's number and how many.
    pub(super) notices: (u64, usize),
    pub(super) last_plan: LastPlan,
    /// Of `incidents`, and of `effective`.
    pub(super) dense: [Dense; 2],
}

/// What the last plan came to. What stays the same is shared with the next one, and not made anew.
#[derive(Clone, Debug, Default)]
pub(super) struct LastPlan {
    pub(super) blocks: Vec<Arc<Block>>,
    pub(super) notices: Vec<Arc<Notice>>,
    /// A hash of the Apps behind its summary, and of what is happening to each; and when that last changed.
    pub(super) standing: (RandomState, Option<(u64, Timestamp)>),
}

/// Something that an operator does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IncidentCommand {
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

/// Who does it, and why.
#[derive(Clone, Copy, Debug)]
pub struct IssuedBy<'a> {
    /// The operator's name.
    pub name: &'a str,
    /// In the operator's own words.
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

/// Why an operator's act has no effect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IncidentCommandError {
    /// There is no open incident of that App.
    #[error("{0} has no open incident")]
    NoIncident(App),
    /// No brake holds that App.
    #[error("{0} is not held, so there is nothing to approve")]
    NotHeld(App),
    /// The release would have ended before it began.
    #[error("the release is refused: its `until`, {0}, is over already")]
    Over(Timestamp),
    /// The release would last longer than ten years, which can only be a mistake.
    #[error("until: {0} is more than ten years ahead; allowed is up to ten years")]
    TooFar(Timestamp),
}

/// How many ended incidents are remembered at most, and how many of one namespace: a tenant can make any number of Apps.
const MAX_ENDED: usize = 20_000;
const MAX_ENDED_PER_NAMESPACE: usize = 200;

/// How many accusations a release sticks to one by one. Beyond, it covers the App as a whole: an operator who releases an
/// App does not want it blocked for the rest.
const MAX_RELEASES: usize = 64;

impl Incidents {
    /// Sets aside Apps whose persisted incidents can't be read: they are neither blocked nor released nor told until
    /// their incidents can be read, and what the objects close of them stays closed.
    pub fn mark_unreadable(&mut self, apps: impl IntoIterator<Item = App>) {
        for app in apps {
            self.by_app.remove(&app);
            self.committed.remove(&app);
            self.unreadable.insert(app);
        }
    }

    /// Notes that there is an incident of which not even the App can be read: it may be of any App that the objects block.
    pub fn mark_unknown_unreadable(&mut self) {
        self.unreadable.has_unknown = true;
    }

    /// The Notifications that tell the tenants of these Apps something, each as of that time, have been written by `now`. Returns
    /// whether something may be decided now: a grace counts from when its tenant could know of it.
    pub fn note_written(&mut self, told: &BTreeMap<App, CompactTimestamp>, now: Moment) -> bool {
        let mut told = OrderedLookups::new(told);
        let mut is_news = false;
        for (app, incident) in &mut self.by_app {
            is_news |= told.get(app).is_some_and(|at| incident.note_written(*at, now));
        }
        is_news
    }

    /// The incidents, ended ones included, by App.
    pub fn incidents(&self) -> impl Iterator<Item = (&App, &Incident)> {
        self.by_app.iter()
    }

    /// The reading of the clock that runs only while a replica leads.
    pub fn leader_time(&self, now: Moment) -> Timestamp {
        self.clock.at(now.uptime()).get()
    }

    /// The incident of `app`, over or not.
    pub fn incident(&self, app: &App) -> Option<&Incident> {
        self.by_app.get(app)
    }

    /// The name under which the incident of `app` is kept.
    pub fn name_of(&self, app: &App) -> Option<String> {
        self.incident(app).map(|incident| incident.name(app))
    }

    /// The Apps that brakes hold, blocks and releases.
    pub fn held(&self, policy: &Policy) -> Vec<HeldApp> {
        self.by_app
            .iter()
            .filter_map(|(app, incident)| {
                match (&incident.phase, incident.held.as_ref(), incident.release_held) {
                    (Phase::Blocked { .. }, _, Some(since)) => {
                        let brake = incident.holds_release().unwrap_or(Brake::Releases);
                        Some((app, since, brake.reason(&policy.brake), true))
                    }
                    // A blocked App counts as held for a Service that is left open.
                    (Phase::Held | Phase::Blocked { .. }, Some((since, brake)), _) => {
                        Some((app, *since, brake.reason(&policy.brake), false))
                    }
                    _ => None,
                }
            })
            .map(|(app, since, reason, release)| HeldApp {
                app: app.clone(),
                since: since.wall(),
                reason,
                release,
            })
            .collect()
    }

    /// Does what an operator asks for. Takes effect in the next evaluation, and in paused mode too.
    ///
    /// An act that has no effect is in the incident's log all the same, if there is an incident.
    pub fn execute<'a>(
        &mut self,
        act: &IncidentCommand,
        by: impl Into<IssuedBy<'a>>,
        policy: &Policy,
        now: Moment,
    ) -> Result<Decision, IncidentCommandError> {
        let IssuedBy { name, reason: words } = by.into();
        // Nobody's word is to be taken for the rules' own.
        let own = Actor::Policy.name();
        let actor = if *name == *own { format!("{name} (an operator)") } else { name.to_owned() };
        let actor = &*actor;
        let app = act.app().clone();
        let done = match act {
            IncidentCommand::Approve { app } => {
                self.approve(app, policy, now).map(|why| (DecisionKind::Approved, why))
            }
            IncidentCommand::Release { app, until } => {
                let done = self.release(app, *until, actor, now);
                if done.is_ok() {
                    // What has passed a brake was wrong: the next accusation is asked about again.
                    self.window.ask_again(app);
                }
                done.map(|why| (DecisionKind::Released, why))
            }
        };
        let (kind, reason) = match &done {
            Ok((kind, reason)) => (*kind, reason.clone()),
            Err(error) => (DecisionKind::Refused, error.to_string()),
        };
        let reason = match words.map(str::trim).filter(|words| !words.is_empty()) {
            Some(words) => format!("{reason} («{}»)", words.escape_debug()),
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

    /// Notes that everything which operators wanted of `app`'s incident up to `number` has been done.
    pub fn note_done_up_to(&mut self, app: &App, number: i64) {
        if let Some(incident) = self.by_app.get_mut(app) {
            let file = incident.persisted_mut();
            file.observed = file.observed.max(number);
        }
    }

    /// Restarts the numbering of operators' acts for the incident of `app`: acts up to `number` have been done.
    pub fn restart_numbering(&mut self, app: &App, number: i64) {
        if let Some(incident) = self.by_app.get_mut(app).filter(|incident| incident.observed != number) {
            incident.persisted_mut().observed = number;
        }
    }

    fn open(&mut self, app: &App) -> Result<&mut Incident, IncidentCommandError> {
        match self.by_app.get_mut(app) {
            Some(incident) if !matches!(incident.phase, Phase::Ended { .. }) => Ok(incident),
            _ => Err(IncidentCommandError::NoIncident(app.clone())),
        }
    }

    fn approve(&mut self, app: &App, policy: &Policy, now: Moment) -> Result<String, IncidentCommandError> {
        let incident = self.open(app)?;
        match incident.phase {
            Phase::Held => {
                let reason = format!("the block that a brake held is approved: {}", incident.accusation());
                let file = incident.persisted_mut();
                file.reset_rare(|rare| rare.held = None);
                file.approved = true;
                file.phase = Phase::Blocked { since: now, dry_run: policy.mode == Mode::DryRun };
                file.reason = reason.clone().into();
                Ok(reason)
            }
            Phase::Blocked { .. } if incident.release_held.is_some() => {
                incident.end(now);
                Ok("the release that a brake held is approved".to_owned())
            }
            Phase::Blocked { .. } if incident.held.is_some() => {
                let file = incident.persisted_mut();
                file.reset_rare(|rare| rare.held = None);
                file.approved = true;
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
            // What it was blocked for is not all known, so it is the App that is released.
            sticky = [(None, None)].into();
        }
        if sticky.len() > MAX_RELEASES {
            sticky = [(None, None)].into();
        }
        // What an operator has released once more is released by the new word only.
        let file = incident.persisted_mut();
        let releases = &mut file.rare_mut().releases;
        releases.retain(|old| !sticky.contains(&(old.process.clone(), old.rule.clone())));
        releases.extend(sticky.into_iter().map(|(process, rule)| StickyRelease {
            process,
            rule,
            until,
            until_by_clock: Some(until_by_clock),
            actor: actor.into(),
        }));
        if let Some(due) = &mut file.due {
            Arc::make_mut(due).passed = false;
        }
        // A hold stays below the release: when the release runs out, time alone does not block either.
        file.approved = false;
        if incident.accepted.is_empty() {
            incident.end(now);
        } else {
            let file = incident.persisted_mut();
            file.phase = Phase::Watched;
            // The release itself is in the log; what covers the App from now on need not be logged once more.
            let rare = file.rare_mut();
            (rare.release_held, rare.exempted) = (None, Some(released_by(actor, until).into()));
        }
        self.take_grace_back(app);
        Ok(format!("{RELEASED_UNTIL}{until}"))
    }

    /// Forgets incidents that ended long ago, and the oldest ended ones beyond a bound: a node that accuses ever new Apps must
    /// not fill the memory. One that is forgotten and comes back is a new incident, with all brakes before it.
    pub(super) fn forget(&mut self, policy: &Policy, now: Moment) {
        let ended = |incident: &Incident| match incident.phase {
            Phase::Ended { at } if incident.accepted.is_empty() && incident.releases.is_empty() => Some(at),
            _ => None,
        };
        let mut count = 0;
        self.by_app.retain(|_, incident| match ended(incident) {
            Some(at) if now.since(at) > policy.same_incident => false,
            over => {
                count += usize::from(over.is_some());
                true
            }
        });
        if count <= MAX_ENDED_PER_NAMESPACE {
            return;
        }
        let mut by_age: Vec<(Moment, App)> =
            self.by_app.iter().filter_map(|(app, incident)| Some((ended(incident)?, app.clone()))).collect();
        by_age.sort_unstable_by(|a, b| b.cmp(a));
        let mut per_namespace: BTreeMap<Text, usize> = BTreeMap::new();
        for (rank, (_, app)) in by_age.into_iter().enumerate() {
            let of_namespace = per_namespace.entry(app.namespace.clone()).or_default();
            *of_namespace += 1;
            if rank >= MAX_ENDED || *of_namespace > MAX_ENDED_PER_NAMESPACE {
                self.by_app.remove(&app);
            }
        }
    }
}

/// What the log says of an operator's release, before its date.
const RELEASED_UNTIL: &str = "released by hand; the same accusations do not block it until ";

/// The date in what the log says of an operator's release. The operator's own words come after it.
pub(super) fn released_until(reason: &str) -> Option<Timestamp> {
    let date = reason.strip_prefix(RELEASED_UNTIL)?;
    date.split_once(' ').map_or(date, |(date, _)| date).parse().ok()
}

pub(super) fn released_by(actor: &str, until: Timestamp) -> String {
    format!("released by {} until {until}", actor.escape_debug())
}
