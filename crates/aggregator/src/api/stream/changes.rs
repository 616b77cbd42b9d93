//! Finds what has changed since the last look: between two snapshots, and between two persisted states.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};

use procscan_core::clearing::Cleared;
use procscan_core::decision::{Decision, DecisionKind};
use procscan_core::names::{App, Key, Text};
use procscan_core::snapshot::{Coverage, Snapshot, TargetView, Violation};
use procscan_core::state::Declaration;
use procscan_core::state::incident::AppRef;
use procscan_core::time::CompactTimestamp;
use serde::Serialize;
use serde_json::json;

use super::log::Kind;
use crate::api::types::{self, ListedApp};
use crate::state::persisted_state::{Declared, IncidentSummary};
use crate::state::{IncidentEntry, PersistedState};

/// An event without its number.
pub(super) type Change = (Kind, Option<Text>, Vec<u8>);

/// What an entry of a list has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum What {
    Added,
    Changed,
    Removed,
}

/// What was there at the last look, as hashes: the entries themselves would be in memory twice.
#[derive(Debug, Default)]
pub(super) struct Seen {
    hasher: RandomState,
    /// Ordered by key.
    violations: Vec<(Key, u64)>,
    /// By address.
    nodes: BTreeMap<Text, u64>,
    coverage: Option<Coverage>,
    incidents: HashMap<Text, IncidentSummary>,
    declared: Declared,
    /// How many decisions the journal had.
    journal: u64,
    has_begun: bool,
}

impl Seen {
    /// What is there now. It is no change.
    pub(super) fn begin(&mut self, snapshot: &Snapshot, persisted: &PersistedState, journal: u64) {
        drop(self.snapshot(snapshot));
        drop(self.persisted(persisted));
        self.journal = journal;
        self.has_begun = true;
    }

    /// How many decisions the journal had.
    pub(super) fn decided(&self) -> u64 {
        self.journal
    }

    /// Whether there was a look.
    pub(super) fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// The changes since the last snapshot. A renewed time alone is no change.
    pub(super) fn snapshot(&mut self, snapshot: &Snapshot) -> Vec<Change> {
        let mut changes = Vec::new();
        self.compare_violations(snapshot, &mut changes);
        self.compare_nodes(snapshot, &mut changes);
        if self.coverage.replace(snapshot.coverage) != Some(snapshot.coverage) {
            let data = json!({"coverage": snapshot.coverage, "rounds": snapshot.rounds});
            changes.push((Kind::Coverage, None, data.to_string().into_bytes()));
        }
        changes
    }

    fn compare_violations(&mut self, snapshot: &Snapshot, changes: &mut Vec<Change>) {
        let now: Vec<(Key, u64)> = snapshot
            .violations
            .iter()
            .map(|violation| (violation.key.clone(), self.hasher.hash_one(shown(violation))))
            .collect();
        let before = std::mem::take(&mut self.violations);
        let mut old = before.into_iter().peekable();
        for (violation, (key, hash)) in snapshot.violations.iter().zip(&now) {
            while let Some((gone, _)) = old.next_if(|(other, _)| other < key) {
                changes.push(removed(&gone));
            }
            let known = old.next_if(|(other, _)| other == key);
            let what = match known {
                None => What::Added,
                Some((_, before)) if before != *hash => What::Changed,
                Some(_) => continue,
            };
            let namespace = &violation.key.namespace;
            // The key of another tenant's process is not for the readers of this namespace.
            let violation = types::Violation::of(violation, |other| *other == **namespace);
            let data = json!({"change": what, "violation": violation});
            changes.push((Kind::Violation, Some(namespace.clone()), data.to_string().into_bytes()));
        }
        changes.extend(old.map(|(gone, _)| removed(&gone)));
        self.violations = now;
    }

    fn compare_nodes(&mut self, snapshot: &Snapshot, changes: &mut Vec<Change>) {
        let mut before = std::mem::take(&mut self.nodes);
        for target in &snapshot.targets {
            let hash = self.hasher.hash_one(state_of(target));
            let change = match before.remove(&target.address) {
                None => Some(What::Added),
                Some(known) => (known != hash).then_some(What::Changed),
            };
            self.nodes.insert(target.address.clone(), hash);
            if let Some(change) = change {
                let data = json!({"change": change, "node": types::Node::of(target, snapshot)});
                changes.push((Kind::Node, None, data.to_string().into_bytes()));
            }
        }
        for address in before.into_keys() {
            let data = json!({"change": What::Removed, "node": {"address": address}});
            changes.push((Kind::Node, None, data.to_string().into_bytes()));
        }
    }

    /// The changes since the last persisted state: Apps in another state, and what was decided and declared.
    pub(super) fn persisted(&mut self, persisted: &PersistedState) -> Vec<Change> {
        let mut changes = Vec::new();
        let before = std::mem::take(&mut self.incidents);
        let mut differing = Vec::new();
        for (name, incident) in &persisted.incidents {
            let Some(summary) = incident.summary().copied() else { continue };
            let known = before.get(name);
            if known != Some(&summary) && self.has_begun {
                differing.push((name, incident, known.map_or(0, |known| known.decided)));
            }
            self.incidents.insert(name.clone(), summary);
        }
        let last = if differing.is_empty() { BTreeMap::new() } else { last_of_apps(persisted) };
        for (name, incident, decided) in differing {
            of_incident(name, incident, decided, last.get(&incident.app), &mut changes);
        }
        if persisted.declared != self.declared {
            let before = std::mem::replace(&mut self.declared, persisted.declared.clone());
            let new = persisted.declared.all().filter(|declaration| is_new(declaration, &before));
            changes.extend(new.filter(|_| self.has_begun).map(declared_change));
        }
        changes
    }

    /// The decisions of the journal that no incident has: `count` is how many it has had in all, and `last` has the latest first.
    pub(super) fn journal(&mut self, count: u64, last: &[Decision]) -> Vec<Change> {
        let new = usize::try_from(count.saturating_sub(self.journal)).unwrap_or(usize::MAX);
        self.journal = count;
        let new = last.iter().take(new).rev();
        let of_none = new.filter(|decision| decision.kind == DecisionKind::Disputed || decision.dry_run);
        of_none
            .map(|decision| {
                let namespace = decision.app.namespace.clone();
                let data = json!(types::Decision::from(decision.clone())).to_string();
                (Kind::Decision, Some(namespace), data.into_bytes())
            })
            .collect()
    }
}

/// Whether a declaration was not known before. One that only an object showed may have been logged since, at another time.
fn is_new(declaration: &Declaration, before: &Declared) -> bool {
    let is_logged_now = |shown: &Declaration| !before.log.contains(shown) && shown.is_like(declaration);
    !before.all().any(|known| known == declaration || is_logged_now(known))
}

/// The parts of a violation whose change is an event.
fn shown(violation: &Violation) -> impl std::hash::Hash + use<> {
    let record = violation.record();
    // Which process hides another one changes with each answer of an agent that lists one of several.
    let evidence: Vec<_> = violation
        .evidence()
        .map(|evidence| {
            let cleared = evidence.cleared.map(Cleared::as_str);
            (evidence.node.clone(), evidence.presence as u8, cleared)
        })
        .collect();
    (violation.state as u8, record.rule().clone(), record.kind.clone(), record.name.clone(), evidence)
}

/// The parts of a target whose change is an event.
fn state_of(target: &TargetView) -> impl std::hash::Hash + use<> {
    let failing = target.consecutive_failures > 0;
    let reason = target.last_failure.as_ref().map(|failure| failure.1.reason).filter(|_| failing);
    (target.state as u8, reason, target.node.clone(), target.unusable_since.is_some())
}

fn removed(key: &Key) -> Change {
    let data = json!({"change": What::Removed, "violation": key});
    (Kind::Violation, Some(key.namespace.clone()), data.to_string().into_bytes())
}

/// When the last incident of each App opened, and how many it has.
fn last_of_apps(persisted: &PersistedState) -> BTreeMap<&AppRef, (CompactTimestamp, usize)> {
    let mut last: BTreeMap<&AppRef, (CompactTimestamp, usize)> = BTreeMap::new();
    for incident in persisted.incidents.values() {
        let Some(summary) = incident.summary() else { continue };
        let known = last.entry(&incident.app).or_insert((summary.opened, 0));
        *known = (known.0.max(summary.opened), known.1 + 1);
    }
    last
}

/// The new decisions about an incident, which had so many decisions before, and its App, if this is its last one.
fn of_incident(
    name: &Text,
    incident: &IncidentEntry,
    decided: u32,
    last: Option<&(CompactTimestamp, usize)>,
    changes: &mut Vec<Change>,
) {
    let Some(document) = incident.readable_document(name) else { return };
    let app = App::from(&incident.app);
    let namespace = Some(app.namespace.clone());
    let new = usize::try_from(document.status.decided.saturating_sub(decided.into())).unwrap_or(usize::MAX);
    let skip = document.status.decisions.len().saturating_sub(new);
    for decision in document.status.decisions.iter().skip(skip) {
        let decision = types::Decision::of_incident(name.to_string(), app.clone(), decision.clone());
        changes.push((Kind::Decision, namespace.clone(), json!(decision).to_string().into_bytes()));
    }
    let opened = incident.summary().map(|summary| summary.opened);
    if let Some((_, count)) = last.filter(|(last, _)| Some(*last) == opened) {
        let listed = ListedApp::of(app, *count, document);
        changes.push((Kind::App, namespace, json!({"app": listed}).to_string().into_bytes()));
    }
}

/// A declaration for more than one App.
pub(super) fn declared_change(declaration: &Declaration) -> Change {
    let decision = types::Decision::of_declaration(declaration.clone());
    (Kind::Decision, None, json!(decision).to_string().into_bytes())
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use procscan_core::decision::Mode;
    use procscan_core::state::EnforcementSpec;

    use super::*;

    /// An operator pauses at this second.
    fn pause(second: i64) -> Declaration {
        let spec = EnforcementSpec { mode: Some(Mode::Paused), ..EnforcementSpec::default() };
        Declaration::of_mode(&spec, Timestamp::from_second(second).unwrap())
    }

    #[test]
    fn each_declaration_is_one_event_although_the_log_is_bounded() {
        let mut seen = Seen { has_begun: true, ..Seen::default() };
        let mut persisted = PersistedState::default();
        for second in 1..150 {
            persisted.declared.log.push(pause(second));
            if second > 50 {
                persisted.declared.log.remove(0);
            }
            assert_eq!(seen.persisted(&persisted), [declared_change(&pause(second))], "{second}");
            assert_eq!(seen.persisted(&persisted), []);
        }
        // Another program writes the object, and the leader adds the declaration to the log after it.
        let resumed = Declaration::of_mode(&EnforcementSpec::default(), Timestamp::from_second(200).unwrap());
        persisted.declared.mode = Some(resumed.clone());
        assert_eq!(seen.persisted(&persisted), [declared_change(&resumed)]);
        let logged = Declaration { at: Timestamp::from_second(203).unwrap(), ..resumed };
        persisted.declared.log.push(logged);
        assert_eq!(seen.persisted(&persisted), []);
    }
}
