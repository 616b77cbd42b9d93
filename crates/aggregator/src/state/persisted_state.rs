//! The persisted state as all tasks read it: the documents, and the operator commands.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use procscan_core::exemption::Exemption;
use procscan_core::names::{App, Text};
use procscan_core::policy::IncidentCommand;
use procscan_core::state::declaration::UNNAMED_ACTOR;
use procscan_core::state::exemption::readable;
use procscan_core::state::incident::{AppRef, Approval, Release};
use procscan_core::state::{
    Declaration, EnforcementSpec, ExemptionSpec, Incident, IncidentSpec, IncidentState, IncidentStatus,
};
use procscan_core::time::CompactTimestamp;

use serde_json::Value;

use super::compressed_json::CompressedJson;

/// How long a release without a date lasts.
pub(crate) const DEFAULT_RELEASE_DURATION: SignedDuration = SignedDuration::from_hours(24 * 30);

/// The persisted state. Immutable: each change makes another value, which shares the unchanged parts.
#[derive(Debug, Default)]
pub struct PersistedState {
    /// The incidents, by name.
    pub(crate) incidents: BTreeMap<Text, Arc<IncidentEntry>>,
    /// The exemptions, by name.
    pub(crate) exemptions: BTreeMap<String, ExemptionSpec>,
    /// The mode that operators have declared.
    pub enforcement: EnforcementSpec,
    /// The log of declarations for more than one App. Empty in a file, which has a log of its own.
    pub(crate) declared: Declared,
    /// The objects that can't be read. Their last readable versions stay in the other fields.
    pub(crate) unread: Unread,
    /// Whether everything has been read at least once.
    pub(crate) is_complete: bool,
    /// The number of the last request for new lists that this state answers (see [`super::cluster::Relist`]). 0 in a
    /// file.
    pub(crate) as_of: u64,
}

/// The declarations of operators for more than one App, as the objects show them.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Declared {
    /// The entries of the log, the latest last.
    pub(crate) log: Vec<Declaration>,
    /// The current mode in the Enforcement.
    pub(crate) mode: Option<Declaration>,
    /// The current Exemptions, by name.
    pub(crate) exemptions: BTreeMap<String, Declaration>,
}

impl Declared {
    /// The entries of the log, and the declarations in objects that the log lacks. An operator has written those
    /// objects by another program.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Declaration> {
        let is_new = |shown: &&Declaration| {
            let mut about = self.log.iter().rev().filter(|entry| entry.exemption == shown.exemption);
            !about.next().is_some_and(|last| last.is_like(shown))
        };
        self.log.iter().chain(self.mode.iter().chain(self.exemptions.values()).filter(is_new))
    }
}

/// Objects that can't be read, by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Unread {
    /// Incidents, with the errors.
    pub(crate) incidents: BTreeMap<Text, String>,
    /// Exemptions, with the errors.
    pub(crate) exemptions: BTreeMap<String, UnreadExemption>,
}

/// An exemption that can't be read.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct UnreadExemption {
    /// The error.
    pub(crate) error: String,
    /// Its spec, unchanged.
    pub(crate) spec: Value,
}

impl Clone for PersistedState {
    fn clone(&self) -> Self {
        let Self { incidents, exemptions, enforcement, declared, unread, is_complete, as_of } = self;
        let declared = declared.clone();
        let (exemptions, enforcement) = (exemptions.clone(), enforcement.clone());
        let (unread, is_complete, as_of) = (unread.clone(), *is_complete, *as_of);
        // Rebuilt, because a tree that has grown is half empty, and so would be its clone.
        let incidents = incidents.iter().map(|(name, incident)| (name.clone(), incident.clone())).collect();
        Self { incidents, exemptions, enforcement, declared, unread, is_complete, as_of }
    }
}

/// One persisted incident. Most of it is compressed, because there are many incidents, and most are never read.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct IncidentEntry {
    /// Which App it is about.
    pub(crate) app: AppRef,
    /// The commands that operators request; `None` if they request none.
    pub(crate) requested: Option<Box<RequestedCommands>>,
    /// Grows with each command.
    pub(crate) generation: i64,
    /// The version of the object that was read.
    pub(crate) version: ObjectVersion,
    /// The decisions about it; `None` if none have been written yet.
    status: Option<(IncidentSummary, CompressedJson)>,
}

/// The commands that operators request for an incident: an approval, a release, or both.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct RequestedCommands {
    /// Approves a decision that a brake holds.
    pub(crate) approve: Option<Approval>,
    /// Releases the App.
    pub(crate) release: Option<Release>,
    /// The program that last wrote these commands, for commands without `by`; `None` if it is not known.
    pub(crate) manager: Option<Box<str>>,
}

/// Identifies the version of an object, and shows whether two statuses are equal. All zero in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ObjectVersion {
    /// A hash of the object's UID.
    pub(crate) uid: u64,
    /// Its resourceVersion: later ones are greater, unless the API server's data were restored from a backup.
    pub(crate) version: u64,
    /// A hash of its status.
    pub(crate) status: u64,
}

impl ObjectVersion {
    /// Whether `state` shows the object with this name in this version or a later one.
    pub(crate) fn is_in(self, state: &PersistedState, name: &str) -> bool {
        let is_it = |shown: Self| shown.uid == self.uid && shown.version >= self.version;
        state.incidents.get(name).is_some_and(|incident| is_it(incident.version))
    }
}

/// The fields of an incident that are often read: see [`IncidentStatus`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IncidentSummary {
    /// The state of the incident.
    pub(crate) state: IncidentState,
    /// When it was opened.
    pub(crate) opened: CompactTimestamp,
    /// Since when it is in its state.
    pub(crate) since: Option<CompactTimestamp>,
    /// When it was written, by the clock that runs only while a replica leads.
    pub(crate) clock: Option<CompactTimestamp>,
    /// The latest end of the operators' releases that cover any of it.
    pub(crate) released_until: Option<CompactTimestamp>,
    /// How many decisions there have been.
    pub(crate) decided: u32,
    /// The number up to which all commands are done.
    pub(crate) observed: i64,
}

/// A digest of the persisted state, by which changes of a later state are found. Holds much less than a
/// [`PersistedState`].
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct StateDigest {
    requesting: Vec<(Text, Arc<IncidentEntry>)>,
    exemptions: BTreeMap<String, ExemptionSpec>,
    enforcement: EnforcementSpec,
    unread: Unread,
    /// Ordered.
    names: Vec<Text>,
}

impl StateDigest {
    /// Whether operators request and declare the same as `before`, and no command has just been done.
    pub(crate) fn requests_the_same(&self, before: &Self) -> bool {
        self.exemptions == before.exemptions
            && self.enforcement == before.enforcement
            && self.unread == before.unread
            && self.requesting == before.requesting
    }

    /// The incidents that existed `before` and no longer exist.
    pub(crate) fn lacks(&self, before: &Self) -> BTreeSet<Text> {
        before.names.iter().filter(|name| self.names.binary_search(name).is_err()).cloned().collect()
    }
}

impl IncidentSummary {
    fn of(status: &IncidentStatus) -> Self {
        Self {
            state: status.state,
            opened: status.opened.into(),
            since: status.since.map(CompactTimestamp::from),
            clock: status.clock.map(CompactTimestamp::from),
            released_until: status.releases.iter().map(|release| release.until.into()).max(),
            decided: u32::try_from(status.decided).unwrap_or(u32::MAX),
            observed: status.observed,
        }
    }
}

/// An operator command that has not been carried out, and its incident.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PendingCommand {
    /// The incident's name.
    pub(crate) incident: String,
    /// The command.
    pub(crate) command: IncidentCommand,
    /// The operator.
    pub(crate) actor: String,
    /// The operator's reason.
    pub(crate) reason: Option<String>,
    /// The number up to which all commands are done once this one is.
    pub(crate) number: i64,
}

impl IncidentEntry {
    /// An incident as it was read. Fails if its status can't be compressed.
    pub(crate) fn new(
        spec: IncidentSpec,
        status: Option<&IncidentStatus>,
        generation: i64,
        manager: Option<String>,
    ) -> Result<Self, String> {
        let IncidentSpec { app, approve, release } = spec;
        let has_command = approve.is_some() || release.is_some();
        let requested = has_command.then(|| {
            Box::new(RequestedCommands { approve, release, manager: manager.map(String::into_boxed_str) })
        });
        let compress = |status| Ok::<_, String>((IncidentSummary::of(status), CompressedJson::of(status)?));
        let mut status = status.map(compress).transpose()?;
        if let Some((summary, _)) = status.as_mut().filter(|(summary, _)| summary.observed > generation) {
            // The number belongs to another object of that name, or to the time after a backup that was restored.
            summary.observed = 0;
        }
        Ok(Self { app, requested, generation, version: ObjectVersion::default(), status })
    }

    /// With the version of the object that was read.
    #[must_use]
    pub(crate) fn with_version(self, version: ObjectVersion) -> Self {
        Self { version, ..self }
    }

    /// The spec, which operators write.
    pub(crate) fn spec(&self) -> IncidentSpec {
        let RequestedCommands { approve, release, .. } =
            self.requested.as_deref().cloned().unwrap_or_default();
        IncidentSpec { app: self.app.clone(), approve, release }
    }

    /// The summary of the decisions about it; `None` if none have been written yet.
    pub(crate) fn summary(&self) -> Option<&IncidentSummary> {
        self.status.as_ref().map(|(summary, _)| summary)
    }

    /// Whether a decision about it has been written, and it has not ended.
    pub(crate) fn is_open(&self) -> bool {
        self.summary().is_some_and(|summary| summary.state != IncidentState::Ended)
    }

    /// The decisions about it; `None` if none have been written yet.
    pub(crate) fn status(&self) -> Result<Option<IncidentStatus>, String> {
        self.status.as_ref().map(|(_, compressed)| compressed.decompress()).transpose()
    }

    /// The number up to which all commands are done, by its own status.
    pub(crate) fn observed(&self) -> i64 {
        self.summary().map_or(0, |summary| summary.observed)
    }

    /// The pending commands if those up to the number `done` have been carried out. An approval comes before a
    /// release, so that the release prevails.
    fn pending_commands(&self, name: &str, done: i64, now: Timestamp) -> Vec<PendingCommand> {
        let Some(RequestedCommands { approve, release, manager }) =
            self.requested.as_deref().filter(|_| self.generation > done)
        else {
            return Vec::new();
        };
        let app = App::from(&self.app);
        let pending = |command, by: &Option<String>, reason: &Option<String>| PendingCommand {
            incident: name.to_owned(),
            command,
            actor: actor(by.as_deref(), manager.as_deref()),
            reason: reason.clone(),
            number: self.generation,
        };
        let approve = approve.as_ref().map(|Approval { by, reason }| {
            pending(IncidentCommand::Approve { app: app.clone() }, by, reason)
        });
        let release = release.as_ref().map(|Release { by, reason, until }| {
            let until = until.unwrap_or_else(|| now.saturating_add(DEFAULT_RELEASE_DURATION).unwrap_or(now));
            pending(IncidentCommand::Release { app: app.clone(), until }, by, reason)
        });
        approve.into_iter().chain(release).collect()
    }

    /// Whether all commands in the spec have been carried out, so that they can be removed.
    pub(crate) fn is_done(&self) -> bool {
        self.requested.is_some() && self.generation <= self.observed()
    }

    /// The document for the policy; `None` if no decision about it has been written yet.
    pub(crate) fn document(&self, name: &str) -> Result<Option<Incident>, String> {
        let incident = |status| Incident { name: name.to_owned(), spec: self.spec(), status };
        Ok(self.status()?.map(incident))
    }

    /// The same for readers that only show it. An incident that can't be decompressed is left out, and logged.
    pub(crate) fn readable_document(&self, name: &str) -> Option<Incident> {
        let log = |error: &String| {
            tracing::error!(alert = "state", incident = name, error, "an incident can't be decompressed");
        };
        self.document(name).inspect_err(log).ok().flatten()
    }
}

/// The actor to report for a command: `by` if it is not blank. Otherwise a text that names the program `manager`, if
/// that is known.
fn actor(by: Option<&str>, manager: Option<&str>) -> String {
    match (by.map(str::trim).filter(|by| !by.is_empty()), manager) {
        (Some(by), _) => by.to_owned(),
        (None, Some(manager)) => format!("{UNNAMED_ACTOR} ({manager})"),
        (None, None) => UNNAMED_ACTOR.to_owned(),
    }
}

impl PersistedState {
    /// The operator commands that have not been carried out. `known` returns the number up to which commands are
    /// done, if that is more certain than the status. A write without an answer may have changed the status, and the
    /// next write may undo that.
    pub(crate) fn pending_commands(
        &self,
        now: Timestamp,
        known: impl Fn(&str, &IncidentEntry) -> Option<i64>,
    ) -> Vec<PendingCommand> {
        let requesting = self.incidents.iter().filter(|(_, incident)| incident.requested.is_some());
        let pending = |(name, incident): (&Text, &Arc<IncidentEntry>)| {
            let done = known(name, incident).unwrap_or_else(|| incident.observed());
            incident.pending_commands(name, done, now)
        };
        requesting.flat_map(pending).collect()
    }

    /// The digest of this state.
    pub(crate) fn digest(&self) -> StateDigest {
        let requesting = self.incidents.iter().filter(|(_, incident)| incident.requested.is_some());
        StateDigest {
            requesting: requesting.map(|(name, incident)| (name.clone(), incident.clone())).collect(),
            exemptions: self.exemptions.clone(),
            enforcement: self.enforcement.clone(),
            unread: self.unread.clone(),
            names: self.incidents.keys().cloned().collect(),
        }
    }

    /// The exemptions as rules. The second list has the readable parts of exemptions that can't be read and never
    /// could (see [`procscan_core::policy::Policy::unread_exemptions`]).
    pub(crate) fn rules(&self) -> (Vec<Exemption>, Vec<Exemption>) {
        let (mut rules, mut unread) = (Vec::new(), Vec::new());
        for (name, exemption) in &self.exemptions {
            match exemption.rule() {
                Ok(mut rule) => {
                    // The reason names the operator that declared the exemption.
                    let by =
                        exemption.by.as_deref().filter(|by| !by.trim().is_empty()).unwrap_or(UNNAMED_ACTOR);
                    rule.place = format!("Exemption {name}");
                    rule.reason = format!("{} (Exemption {name}, by {})", rule.reason, by.escape_debug());
                    rules.push(rule);
                }
                // No part of it can be read, so it may cover any App.
                Err(_) => unread.push(readable(&serde_json::to_value(exemption).unwrap_or_default())),
            }
        }
        let is_unknown = |(name, _): &(&String, &UnreadExemption)| !self.exemptions.contains_key(*name);
        unread.extend(
            self.unread.exemptions.iter().filter(is_unknown).map(|(_, unread)| readable(&unread.spec)),
        );
        (rules, unread)
    }

    /// The objects that can't be read, each with a text for people: the error, and its consequence.
    pub(crate) fn unreadable(&self) -> BTreeMap<String, String> {
        let Unread { incidents, exemptions } = &self.unread;
        let mut all = BTreeMap::new();
        for (name, error) in incidents {
            let text = format!("Incident {name} can't be read: {error}; mend it, or delete it");
            all.insert(format!("Incident {name}"), text);
        }
        for (name, UnreadExemption { error, .. }) in exemptions {
            let then = if self.exemptions.contains_key(name) {
                "the last version that could be read counts"
            } else {
                "nothing new is blocked that it may cover"
            };
            let text =
                format!("Exemption {name} can't be read: {error}; until it is mended or deleted, {then}");
            all.insert(format!("Exemption {name}"), text);
        }
        all
    }

    /// The documents of all incidents, for the policy.
    pub(crate) fn documents(&self) -> Result<Vec<Incident>, String> {
        self.incidents.iter().filter_map(|(name, incident)| incident.document(name).transpose()).collect()
    }
}
