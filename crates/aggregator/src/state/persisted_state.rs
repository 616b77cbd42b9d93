//! What is kept, as everybody reads it: the documents, and what operators want done.

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

/// How long a release lasts if nothing is said.
pub const DEFAULT_RELEASE: SignedDuration = SignedDuration::from_hours(24 * 30);

/// Everything that is kept. Immutable: each change makes another one, which shares with it what is the same.
#[derive(Debug, Default)]
pub struct PersistedState {
    /// The incidents, by name.
    pub incidents: BTreeMap<Text, Arc<IncidentEntry>>,
    /// The exemptions, by name.
    pub exemptions: BTreeMap<String, ExemptionSpec>,
    /// What operators say of all decisions.
    pub enforcement: EnforcementSpec,
    /// The log of what operators declare for more than one App. Empty in a file, which has a log of its own.
    pub declared: Declared,
    /// The objects that can't be read. What was read of them before stays in the other fields.
    pub unread: Unread,
    /// Everything has been read at least once.
    pub is_complete: bool,
    /// The number of the last request to list anew that this answers (see [`super::cluster::Relist`]). 0 in a file.
    pub as_of: u64,
}

/// What operators have declared for more than one App, as the objects show it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Declared {
    /// The entries of the log, the latest last.
    pub log: Vec<Declaration>,
    /// The mode that the Enforcement says now.
    pub mode: Option<Declaration>,
    /// The Exemptions that there are now, by name.
    pub exemptions: BTreeMap<String, Declaration>,
}

impl Declared {
    /// The log, and what the objects show and the log lacks: an operator has written the object by another program.
    pub fn all(&self) -> impl Iterator<Item = &Declaration> {
        let is_new = |shown: &&Declaration| {
            let mut about = self.log.iter().rev().filter(|entry| entry.exemption == shown.exemption);
            !about.next().is_some_and(|last| last.is_like(shown))
        };
        self.log.iter().chain(self.mode.iter().chain(self.exemptions.values()).filter(is_new))
    }
}

/// Objects that can't be read, by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Unread {
    /// Incidents, with the errors.
    pub incidents: BTreeMap<Text, String>,
    /// Exemptions, with the errors.
    pub exemptions: BTreeMap<String, UnreadExemption>,
}

/// An exemption that can't be read.
#[derive(Clone, Debug, PartialEq)]
pub struct UnreadExemption {
    /// What is wrong with it.
    pub error: String,
    /// Its spec, unchanged.
    pub spec: Value,
}

impl Clone for PersistedState {
    fn clone(&self) -> Self {
        let Self { incidents, exemptions, enforcement, declared, unread, is_complete, as_of } = self;
        let declared = declared.clone();
        let (exemptions, enforcement) = (exemptions.clone(), enforcement.clone());
        let (unread, is_complete, as_of) = (unread.clone(), *is_complete, *as_of);
        // Made anew: a tree that has grown is half empty, and so would be its clone.
        let incidents = incidents.iter().map(|(name, incident)| (name.clone(), incident.clone())).collect();
        Self { incidents, exemptions, enforcement, declared, unread, is_complete, as_of }
    }
}

/// One incident as it is kept. There are many and most are never looked at, so most of it is packed.
#[derive(Clone, Debug, PartialEq)]
pub struct IncidentEntry {
    /// Which App it is about.
    pub app: AppRef,
    /// The acts that operators request; `None` if they request none.
    pub requested: Option<Box<RequestedCommands>>,
    /// Grows with each change of what operators want.
    pub generation: i64,
    /// The version of the object that was read.
    pub version: ObjectVersion,
    /// What was decided of it; nothing if that has not been written yet.
    status: Option<(IncidentSummary, CompressedJson)>,
}

/// The acts that operators request for an incident: an approval, a release, or both.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RequestedCommands {
    /// Approves what a brake holds.
    pub approve: Option<Approval>,
    /// Releases the App.
    pub release: Option<Release>,
    /// The program that last wrote these acts, for acts without `by`; `None` if it is not known.
    pub manager: Option<Box<str>>,
}

/// Tells apart the versions of an object and whether their statuses are equal. All zero in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ObjectVersion {
    /// A hash of the object's UID.
    pub uid: u64,
    /// Its resourceVersion: later ones are greater, unless the API server's data were restored from a backup.
    pub version: u64,
    /// A hash of its status.
    pub status: u64,
}

impl ObjectVersion {
    /// Whether `kept` shows the object with this name in this version or a later one.
    pub fn is_in(self, kept: &PersistedState, name: &str) -> bool {
        let is_it = |shown: Self| shown.uid == self.uid && shown.version >= self.version;
        kept.incidents.get(name).is_some_and(|incident| is_it(incident.version))
    }
}

/// What is often asked of an incident: see [`IncidentStatus`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IncidentSummary {
    /// What has come of it.
    pub state: IncidentState,
    /// When it was opened.
    pub opened: CompactTimestamp,
    /// Since when it is in its state.
    pub since: Option<CompactTimestamp>,
    /// When it was written, by the clock that runs only while a replica leads.
    pub clock: Option<CompactTimestamp>,
    /// Until when operators' releases cover something of it.
    pub released_until: Option<CompactTimestamp>,
    /// How many decisions there have been.
    pub decided: u32,
    /// Up to which of the operators' acts everything has been done.
    pub observed: i64,
}

/// What has to be known of what was kept before, to see whether there is news in what is kept now. Holds much less than a [`Kept`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StateDigest {
    requesting: Vec<(Text, Arc<IncidentEntry>)>,
    exemptions: BTreeMap<String, ExemptionSpec>,
    enforcement: EnforcementSpec,
    unread: Unread,
    /// Ordered.
    names: Vec<Text>,
}

impl StateDigest {
    /// Whether operators want the same as `before`, and nothing of it has just been done.
    pub fn requests_the_same(&self, before: &Self) -> bool {
        self.exemptions == before.exemptions
            && self.enforcement == before.enforcement
            && self.unread == before.unread
            && self.requesting == before.requesting
    }

    /// The incidents that were there `before` and are there no longer.
    pub fn lacks(&self, before: &Self) -> BTreeSet<Text> {
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

/// Something that operators want done, and where it says so.
#[derive(Clone, Debug, PartialEq)]
pub struct PendingCommand {
    /// The incident's name.
    pub incident: String,
    /// What.
    pub command: IncidentCommand,
    /// Whose word it is.
    pub actor: String,
    /// Why, in the operator's words.
    pub reason: Option<String>,
    /// The number up to which everything has been done once this has been.
    pub number: i64,
}

impl IncidentEntry {
    /// An incident as it is read. The error says why its status has no form in which it could be kept.
    pub fn new(
        spec: IncidentSpec,
        status: Option<&IncidentStatus>,
        generation: i64,
        manager: Option<String>,
    ) -> Result<Self, String> {
        let IncidentSpec { app, approve, release } = spec;
        let wants_something = approve.is_some() || release.is_some();
        let wanted = wants_something.then(|| {
            Box::new(RequestedCommands { approve, release, manager: manager.map(String::into_boxed_str) })
        });
        let pack = |status| Ok::<_, String>((IncidentSummary::of(status), CompressedJson::of(status)?));
        let mut status = status.map(pack).transpose()?;
        if let Some((brief, _)) = status.as_mut().filter(|(brief, _)| brief.observed > generation) {
            // The number belongs to another object of that name, or to a time that a restored backup has undone.
            brief.observed = 0;
        }
        Ok(Self { app, requested: wanted, generation, version: ObjectVersion::default(), status })
    }

    /// With the version of the object that was read.
    #[must_use]
    pub fn with_version(self, stamp: ObjectVersion) -> Self {
        Self { version: stamp, ..self }
    }

    /// What operators say of it.
    pub fn spec(&self) -> IncidentSpec {
        let RequestedCommands { approve, release, .. } =
            self.requested.as_deref().cloned().unwrap_or_default();
        IncidentSpec { app: self.app.clone(), approve, release }
    }

    /// What was decided of it, in brief; nothing if that has not been written yet.
    pub fn summary(&self) -> Option<&IncidentSummary> {
        self.status.as_ref().map(|(brief, _)| brief)
    }

    /// Whether something was decided of it, and it has not ended.
    pub fn is_open(&self) -> bool {
        self.summary().is_some_and(|brief| brief.state != IncidentState::Ended)
    }

    /// What was decided of it; nothing if that has not been written yet.
    pub fn status(&self) -> Result<Option<IncidentStatus>, String> {
        self.status.as_ref().map(|(_, packed)| packed.decompress()).transpose()
    }

    /// Up to which of operators' acts everything has been done, by its own status.
    pub fn observed(&self) -> i64 {
        self.summary().map_or(0, |brief| brief.observed)
    }

    /// What operators want done if acts up to the number `done` have been done. An approval comes before a release, so
    /// that the release prevails.
    fn pending_commands(&self, name: &str, done: i64, now: Timestamp) -> Vec<PendingCommand> {
        let Some(RequestedCommands { approve, release, manager }) =
            self.requested.as_deref().filter(|_| self.generation > done)
        else {
            return Vec::new();
        };
        let app = App::from(&self.app);
        let order = |act, by: &Option<String>, reason: &Option<String>| PendingCommand {
            incident: name.to_owned(),
            command: act,
            actor: actor(by.as_deref(), manager.as_deref()),
            reason: reason.clone(),
            number: self.generation,
        };
        let approve = approve
            .as_ref()
            .map(|Approval { by, reason }| order(IncidentCommand::Approve { app: app.clone() }, by, reason));
        let release = release.as_ref().map(|Release { by, reason, until }| {
            let until = until.unwrap_or_else(|| now.saturating_add(DEFAULT_RELEASE).unwrap_or(now));
            order(IncidentCommand::Release { app: app.clone(), until }, by, reason)
        });
        approve.into_iter().chain(release).collect()
    }

    /// Whether everything that `spec` asks for has been done, so that it can be taken away.
    pub fn is_done(&self) -> bool {
        self.requested.is_some() && self.generation <= self.observed()
    }

    /// As the policy reads it; nothing if nothing has been decided of it yet.
    pub fn document(&self, name: &str) -> Result<Option<Incident>, String> {
        let incident = |status| Incident { name: name.to_owned(), spec: self.spec(), status };
        Ok(self.status()?.map(incident))
    }

    /// The same for those who only show it: what can't be unpacked is left out, and said in the log.
    pub fn readable_document(&self, name: &str) -> Option<Incident> {
        let said = |error: &String| {
            tracing::error!(alert = "state", incident = name, error, "an incident can't be unpacked");
        };
        self.document(name).inspect_err(said).ok().flatten()
    }
}

/// The actor to report for an act: `by` if it is not blank, or else a text that names the program `manager`, if that is known.
fn actor(by: Option<&str>, manager: Option<&str>) -> String {
    match (by.map(str::trim).filter(|by| !by.is_empty()), manager) {
        (Some(by), _) => by.to_owned(),
        (None, Some(manager)) => format!("{UNNAMED_ACTOR} ({manager})"),
        (None, None) => UNNAMED_ACTOR.to_owned(),
    }
}

impl PersistedState {
    /// What operators want done and has not been done yet. `known` returns the number up to which acts have been done,
    /// if it knows better than the status: a write that had no answer may have changed that, and the next write may
    /// undo it.
    pub fn pending_commands(
        &self,
        now: Timestamp,
        known: impl Fn(&str, &IncidentEntry) -> Option<i64>,
    ) -> Vec<PendingCommand> {
        let wanting = self.incidents.iter().filter(|(_, incident)| incident.requested.is_some());
        let orders = |(name, incident): (&Text, &Arc<IncidentEntry>)| {
            let done = known(name, incident).unwrap_or_else(|| incident.observed());
            incident.pending_commands(name, done, now)
        };
        wanting.flat_map(orders).collect()
    }

    /// What operators want, and which incidents there are.
    pub fn digest(&self) -> StateDigest {
        let wanting = self.incidents.iter().filter(|(_, incident)| incident.requested.is_some());
        StateDigest {
            requesting: wanting.map(|(name, incident)| (name.clone(), incident.clone())).collect(),
            exemptions: self.exemptions.clone(),
            enforcement: self.enforcement.clone(),
            unread: self.unread.clone(),
            names: self.incidents.keys().cloned().collect(),
        }
    }

    /// The exemptions as rules; and, for exemptions that can't be read and never could, the parts that can be read (see
    /// [`policy::Policy::unread_exemptions`]).
    pub fn rules(&self) -> (Vec<Exemption>, Vec<Exemption>) {
        let (mut rules, mut unread) = (Vec::new(), Vec::new());
        for (name, exemption) in &self.exemptions {
            match exemption.rule() {
                Ok(mut rule) => {
                    // Whose word it is belongs to what follows from it.
                    let by =
                        exemption.by.as_deref().filter(|by| !by.trim().is_empty()).unwrap_or(UNNAMED_ACTOR);
                    rule.place = format!("Exemption {name}");
                    rule.reason = format!("{} (Exemption {name}, by {})", rule.reason, by.escape_debug());
                    rules.push(rule);
                }
                // It says nothing that could be read, so it may cover anything.
                Err(_) => unread.push(readable(&serde_json::to_value(exemption).unwrap_or_default())),
            }
        }
        let is_unknown = |(name, _): &(&String, &UnreadExemption)| !self.exemptions.contains_key(*name);
        unread.extend(
            self.unread.exemptions.iter().filter(is_unknown).map(|(_, unread)| readable(&unread.spec)),
        );
        (rules, unread)
    }

    /// The objects that can't be read, and what follows from that.
    pub fn unreadable(&self) -> BTreeMap<String, String> {
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

    /// The incidents as the policy reads them.
    pub fn documents(&self) -> Result<Vec<Incident>, String> {
        self.incidents.iter().filter_map(|(name, incident)| incident.document(name).transpose()).collect()
    }
}
