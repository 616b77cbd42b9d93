//! The policy's state: the incidents and what else it remembers between two evaluations, and the operator commands
//! that change them.

pub(in crate::policy) mod admissions;
pub(in crate::policy) mod commands;
pub(in crate::policy) mod inherited;
pub(in crate::policy) mod persist;
pub(in crate::policy) mod refused_accusations;
pub(in crate::policy) mod unreadable;

use std::collections::BTreeMap;
use std::hash::RandomState;
use std::sync::Arc;

use jiff::Timestamp;

use super::{Brake, Policy};
use crate::Moment;
use crate::names::{App, Key, NodeName, Text};
use crate::ordered_lookups::OrderedLookups;
use crate::plan::{Block, HeldApp, Notice};
use crate::policy::dates::Dates;
use crate::policy::incident::{EvidenceId, Incident, Phase};
use crate::policy::incidents::admissions::Admissions;
use crate::policy::incidents::inherited::BlockedBefore;
use crate::policy::incidents::persist::{ClockWritten, Committed};
use crate::policy::incidents::refused_accusations::LoggedAccusations;
use crate::policy::incidents::unreadable::UnreadableIncidents;
use crate::policy::leader_clock::LeaderClock;
use crate::policy::window::Window;
use crate::snapshot::EvidenceView;
use crate::time::CompactTimestamp;

/// The policy's state. Owned by one task.
#[derive(Clone, Debug, Default)]
pub struct Incidents {
    pub(in crate::policy) by_app: BTreeMap<App, Incident>,
    pub(in crate::policy) window: Window,
    pub(in crate::policy) clock: LeaderClock,
    pub(in crate::policy) dates: Dates,
    /// What is persisted of the two clocks.
    pub(in crate::policy) written_clocks: ClockWritten,
    pub(in crate::policy) admissions: Admissions,
    /// The committed part of each incident: what was persisted of it last, or what it was found with (see
    /// [`Incidents::dirty`]).
    pub(in crate::policy) committed: BTreeMap<App, Committed>,
    /// The Apps whose persisted incidents can't be read.
    pub(in crate::policy) unreadable: UnreadableIncidents,
    /// The Apps that were blocked before this term.
    pub(in crate::policy) blocked_before: BlockedBefore,
    /// The first evidence whose Pod has not been looked up since, and when it was fresh.
    pub(in crate::policy) unjudged: BTreeMap<EvidenceId, (Moment, EvidenceView)>,
    /// Disputed evidence, with the reason.
    pub(in crate::policy) disputes: BTreeMap<(Key, NodeName), String>,
    /// The accusations in namespaces that may not be blocked which are already logged.
    pub(in crate::policy) logged_refusals: LoggedAccusations,
    /// The disputed accusations which are already logged.
    pub(in crate::policy) logged_disputes: LoggedAccusations,
    /// New notices in the current round: the round's number and how many.
    pub(in crate::policy) notices: (u64, usize),
    pub(in crate::policy) last_plan: LastPlan,
}

/// The last plan. Parts that stay the same are shared with the next one.
#[derive(Clone, Debug, Default)]
pub(in crate::policy) struct LastPlan {
    pub(in crate::policy) blocks: Vec<Arc<Block>>,
    pub(in crate::policy) notices: Vec<Arc<Notice>>,
    /// A hash of the phases of the Apps in its summary, and when that hash last changed.
    pub(in crate::policy) summary_hash: (RandomState, Option<(u64, Timestamp)>),
}

/// How many ended incidents are remembered at most, and how many of one namespace, because a tenant can make any
/// number of Apps.
const MAX_ENDED: usize = 20_000;
const MAX_ENDED_PER_NAMESPACE: usize = 200;

impl Incidents {
    /// Marks Apps whose persisted incidents can't be read. Until they can be read, the Apps are neither blocked nor
    /// released, and their tenants are not notified. What the gateway's objects close of them stays closed.
    pub fn mark_unreadable(&mut self, apps: impl IntoIterator<Item = App>) {
        for app in apps {
            self.by_app.remove(&app);
            self.committed.remove(&app);
            self.unreadable.insert(app);
        }
    }

    /// Notes that there is an incident whose App can't be read. It may be of any App that the objects block.
    pub fn mark_unknown_unreadable(&mut self) {
        self.unreadable.has_unknown = true;
    }

    /// Notes that the notifications of these Apps, each with that `sent_at`, have been written by `now`. Returns
    /// whether a decision may follow, because a grace counts from when its warning is written.
    pub fn note_written(&mut self, written: &BTreeMap<App, CompactTimestamp>, now: Moment) -> bool {
        let mut written = OrderedLookups::new(written);
        let mut may_decide = false;
        for (app, incident) in &mut self.by_app {
            may_decide |= written.get(app).is_some_and(|at| incident.note_written(*at, now));
        }
        may_decide
    }

    /// The incidents, ended ones included, by App.
    pub fn incidents(&self) -> impl Iterator<Item = (&App, &Incident)> {
        self.by_app.iter()
    }

    /// The reading of the clock that runs only while a replica leads.
    pub fn leader_time(&self, now: Moment) -> Timestamp {
        self.clock.at(now.uptime()).get()
    }

    /// The incident of `app`, ended or not.
    pub fn incident(&self, app: &App) -> Option<&Incident> {
        self.by_app.get(app)
    }

    /// The name under which the incident of `app` is persisted.
    pub fn name_of(&self, app: &App) -> Option<String> {
        self.incident(app).map(|incident| incident.name(app))
    }

    /// The Apps that brakes hold, blocks and releases.
    pub fn held(&self, policy: &Policy) -> Vec<HeldApp> {
        self.by_app
            .iter()
            .filter_map(|(app, incident)| {
                match (incident.phase(), incident.persisted.hold.brake()) {
                    (Phase::Blocked { release_held: Some(since), .. }, _) => {
                        let brake = incident.persisted.holds_release().unwrap_or(Brake::Releases);
                        Some((app, since, brake.reason(&policy.brake), true))
                    }
                    // A blocked App counts as held for a Service that is left open.
                    (Phase::Held | Phase::Blocked { .. }, Some((since, brake))) => {
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

    /// Forgets incidents that ended long ago, and the oldest ended ones beyond a bound. The bound exists because a
    /// node that accuses ever new Apps must not fill the memory. An incident that is forgotten and comes back is a
    /// new one, and all brakes apply to it.
    pub(in crate::policy) fn forget(&mut self, policy: &Policy, now: Moment) {
        let ended = |incident: &Incident| match incident.phase() {
            Phase::Ended { at }
                if incident.accepted.is_empty() && incident.persisted.rare().releases.is_empty() =>
            {
                Some(at)
            }
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
