//! The part of an incident that a decision changes and that is persisted, with what is known of its App.

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};

use super::grace::Grace;
use super::notification::SentNotification;
use super::phase::{Hold, Phase};
use super::release::StickyRelease;
use crate::Moment;
use crate::decision::Decision;
use crate::names::{App, Key, Text};
use crate::plan::Exposure;
use crate::policy::Brake;
use crate::policy::window::{Due, ReleaseDue};
use crate::sorted_vec::SortedVecSet;
use crate::state;

/// How many Services that were closed once are remembered, because a tenant can make any number.
const MAX_ONCE_CLOSED: usize = 1000;
/// How many earlier names of an App are remembered, and how many origins of its Pods.
pub(in crate::policy) const MAX_NAMES: usize = 8;

/// The decisions about an incident, and what is known of its App. Fields that few incidents need are boxed.
#[derive(Clone, Debug)]
pub(in crate::policy) struct PersistedIncident {
    /// When it opened.
    pub(in crate::policy) opened: Moment,
    /// The phase of the incident.
    pub(in crate::policy) phase: Phase,
    /// The names of its processes. They only grow, so that the tenant's notification does not change back and forth.
    pub(in crate::policy) processes: SortedVecSet<Text>,
    /// Why it is blocked, as of when that was decided.
    pub(in crate::policy) reason: Text,
    /// Whether a brake holds its block, or an operator has approved it.
    pub(in crate::policy) hold: Hold,
    /// The last notification of its tenant.
    pub(in crate::policy) notification: Option<SentNotification>,
    /// The last grace that has begun. Stays when its accusations clear, and when the App is blocked.
    pub(in crate::policy) grace: Option<Box<Grace>>,
    /// How the App is reached, as last known. If that is not known for a while, nothing is opened or closed for that
    /// reason.
    pub(in crate::policy) exposure: Arc<Exposure>,
    /// What made its accused Pods, as `Kind/name`.
    pub(in crate::policy) origins: SortedVecSet<Text>,
    /// The entry of this App in the brakes' window.
    pub(in crate::policy) due: Option<Arc<Due>>,
    /// The last decisions, the latest last.
    pub(in crate::policy) decisions: Vec<Arc<Decision>>,
    /// How many decisions there have been.
    pub(in crate::policy) decided: u32,
    /// The number of the last operator command that has been done.
    pub(in crate::policy) observed: i64,
    /// `None` if all its fields have their defaults.
    pub(in crate::policy) rare: Option<Box<RareFields>>,
}

/// The fields of a [`PersistedIncident`] that have their defaults in most incidents. Allocated separately, so that
/// those incidents take less memory.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::policy) struct RareFields {
    /// The violations of an inherited block, while no agent has reported any of them since. Its nodes are not known,
    /// so only the answers of the whole fleet can prove that its processes are gone.
    pub(in crate::policy) inherited: Option<BTreeSet<Key>>,
    /// Services that were closed once and are not closed at the moment, ordered. They are closed again if they are
    /// made again, or select no Pod any more.
    pub(in crate::policy) once_closed: Vec<Text>,
    /// Earlier names of the App, as far as known. Operators' commands for these names apply.
    pub(in crate::policy) formerly: SortedVecSet<App>,
    /// What covers it, as last logged.
    pub(in crate::policy) exempted: Option<Box<str>>,
    /// Fingerprints of withheld exemptions. Each would open this App and those of too many other tenants.
    pub(in crate::policy) withheld: Vec<Text>,
    /// The entry of this App in the window of the brake on releases.
    pub(in crate::policy) release_due: Option<ReleaseDue>,
    /// What operators' releases cover.
    pub(in crate::policy) releases: Vec<StickyRelease>,
    /// Entries of the log whose kinds only another version knows.
    pub(in crate::policy) foreign: Vec<state::incident::IncidentDecision>,
}

/// The rare fields of a [`PersistedIncident`] that has none.
static DEFAULT_RARE: LazyLock<RareFields> = LazyLock::new(RareFields::default);

impl PersistedIncident {
    /// The rare fields, to read.
    pub(in crate::policy) fn rare(&self) -> &RareFields {
        self.rare.as_deref().unwrap_or(&DEFAULT_RARE)
    }

    /// Replaces the rare fields. Allocates nothing if all have their defaults.
    pub(in crate::policy) fn set_rare(&mut self, rare: RareFields) {
        self.rare = (rare != *DEFAULT_RARE).then(|| Box::new(rare));
    }

    /// Returns the rare fields, to set one. Allocates them if there are none.
    pub(in crate::policy) fn rare_mut(&mut self) -> &mut RareFields {
        self.rare.get_or_insert_default()
    }

    /// Resets rare fields to their defaults by `reset`, which is not called if all have them already.
    pub(in crate::policy) fn reset_rare(&mut self, reset: impl FnOnce(&mut RareFields)) {
        if let Some(mut rare) = self.rare.take() {
            reset(&mut rare);
            self.rare = Some(rare).filter(|rare| **rare != *DEFAULT_RARE);
        }
    }

    /// Sets the entries of this App in the brakes' window.
    pub(in crate::policy) fn set_window_entries(
        &mut self,
        (due, release): (Option<Arc<Due>>, Option<ReleaseDue>),
    ) {
        self.due = due;
        if self.rare().release_due != release {
            self.rare_mut().release_due = release;
        }
    }

    /// Whether `service` is closed or was closed once.
    pub(in crate::policy) fn has_closed(&self, service: &Text) -> bool {
        let is_in = |services: &[Text]| services.binary_search(service).is_ok();
        is_in(&self.exposure.services) || is_in(&self.rare().once_closed)
    }

    /// Sets what is closed from now on.
    pub(in crate::policy) fn close(&mut self, exposure: Exposure) {
        let is_in = |services: &[Text], service: &Text| services.binary_search(service).is_ok();
        // This includes a Service that is left open because it is shared. It is closed again when it selects no Pod
        // any more.
        let goes = |service: &&Text| !is_in(&exposure.services, service);
        // The first ones stay, so that a tenant can't push them out by making other Services.
        let closed = self.rare().once_closed.iter().chain(&self.exposure.services).filter(goes);
        let mut closed: Vec<Text> = closed.take(MAX_ONCE_CLOSED).cloned().collect();
        closed.sort_unstable();
        closed.dedup();
        if *closed != *self.rare().once_closed {
            self.rare_mut().once_closed = closed;
        }
        self.exposure = Arc::new(exposure);
    }

    /// Takes over what outlasts the incident `before` of the same App: operators' releases and a brake's hold.
    pub(in crate::policy) fn take_over_from(&mut self, before: &Self) {
        if !before.rare().releases.is_empty() {
            self.rare_mut().releases.clone_from(&before.rare().releases);
        }
        if before.hold.brake().is_some() {
            self.hold = before.hold.clone();
        }
    }

    /// Notes an earlier name of the App.
    pub(in crate::policy) fn note_name(&mut self, name: App) {
        if self.rare().formerly.len() < MAX_NAMES {
            self.rare_mut().formerly.insert(name);
        }
    }

    /// The brake that holds its release.
    pub(in crate::policy) fn holds_release(&self) -> Option<Brake> {
        let Phase::Blocked { release_held: Some(_), .. } = self.phase else { return None };
        let is_gone = self.rare().release_due.as_ref().is_some_and(|due| due.proven && !due.passed);
        Some(if is_gone { Brake::Gone } else { Brake::Releases })
    }

    /// The name under which the incident of `app` is persisted.
    pub(in crate::policy) fn name(&self, app: &App) -> String {
        state::incident::name(app, self.opened.wall())
    }

    pub(in crate::policy) fn new(opened: Moment) -> Self {
        Self {
            opened,
            phase: Phase::Watched,
            processes: SortedVecSet::default(),
            reason: Text::from(""),
            hold: Hold::Free,
            notification: None,
            grace: None,
            exposure: Arc::default(),
            origins: SortedVecSet::default(),
            due: None,
            decisions: Vec::new(),
            decided: 0,
            observed: 0,
            rare: None,
        }
    }
}
