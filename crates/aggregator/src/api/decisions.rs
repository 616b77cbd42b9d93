//! `/api/v1/decisions`: the log of decisions.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};
use std::hash::{BuildHasher, DefaultHasher, Hash, Hasher, RandomState};

use axum::extract::State;
use axum::response::Response;
use jiff::{SignedDuration, Timestamp};
use procscan_core::decision;
use procscan_core::names::{App, Text};
use procscan_core::state::Declaration;
use procscan_core::state::incident::{IncidentDecision, LoggedKind};
use serde::Deserialize;

use super::Api;
use super::page::{Page, Paging};
use super::problem::Problem;
use super::query::{
    EXPECTED_LABEL, EXPECTED_TEXT, Parameters, TIME, label, set, set_name, text, time, unknown,
};
use super::types::Decision as DecisionEntry;
use crate::state::{DecisionFilter, LoggedDecision, PersistedState};
use crate::wire_names::DECISIONS;

/// The parameters, as they are named in the refusal of another one.
const PARAMETERS: &str = "namespace, name, decision, actor, since, until, limit, cursor";
/// How many are shown without a `limit`.
const DEFAULT_LIMIT: usize = 100;
/// How many rows of the log are in memory at once.
const ENTRIES_PER_READ: usize = 10_000;
/// How many times so many are read for one page: more than the log can have.
const MAX_CHUNKS: usize = 20;

/// The filters of a query. All that are given must hold.
#[derive(Default)]
struct Filter {
    namespace: Option<String>,
    name: Option<String>,
    /// One of [`DECISIONS`].
    decision: Option<&'static str>,
    actor: Option<String>,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    paging: Paging<Place>,
}

/// The place of a decision in the list: the latest first. Several decisions of one kind may be made of an App at one time, so
/// the place has the actor and a fingerprint of the rest too.
type Place = Reverse<(Timestamp, Option<App>, LoggedKind, bool, Text, u64)>;

/// An entry of the log beside the incidents.
#[derive(Deserialize)]
#[serde(untagged)]
enum Logged {
    OfApp { incident: String, app: App, decision: IncidentDecision },
    OfAll(Declaration),
}

fn place(entry: &DecisionEntry) -> Place {
    // The same in every replica of this version.
    let mut hasher = DefaultHasher::new();
    (&entry.reason, &entry.mode, &entry.exemption).hash(&mut hasher);
    let (app, kind, actor) = (entry.app.clone(), entry.kind.clone(), entry.actor.clone());
    Reverse((entry.at, app, kind, entry.dry_run, actor, hasher.finish()))
}

/// The latest first.
///
/// One request at a time reads the log, so that waiting requests have none of it in memory. Other lists must not wait for the
/// disk, so this request takes its turn to make a page only after each read.
pub(super) async fn decisions(
    State(api): State<Api>,
    Parameters(query): Parameters,
) -> Result<Response, Problem> {
    let filter = Filter::of(query)?;
    let _reader = api.reading_turn().await?;
    let mut log = filter.of_log();
    // Taken before the log is read: a decision that an incident drops meanwhile is in the log.
    let mut persisted = Some(api.views.persisted.borrow().clone());
    let (mut latest, mut chunks) = (Latest::new(filter), 0);
    loop {
        chunks += 1;
        let rows = api.operators.commands.logged(log.clone()).await.unwrap_or_else(|error| {
            // The decisions of the incidents are shown all the same. The task that writes the file reports its errors.
            tracing::warn!(%error, "the log of decisions can't be read");
            Vec::new()
        });
        // Rows that are written from now on must not move those that are counted.
        log.before = log.before.or_else(|| rows.first().and_then(|row| just_after(row.at)));
        log.skip += rows.len();
        let oldest = rows.last().filter(|_| rows.len() == ENTRIES_PER_READ).map(|row| row.at);
        let (persisted, turn) = (persisted.take(), api.turn().await?);
        let add = move || {
            if let Some(persisted) = persisted {
                latest.add_persisted(&persisted);
            }
            latest.add_logged(rows);
            latest
        };
        let (turn, added) = api.work(turn, add).await?;
        latest = added;
        if chunks == MAX_CHUNKS || oldest.is_none_or(|oldest| latest.is_full_before(oldest)) {
            let journal = api.views.journal.last();
            let page = move || {
                latest.add_journal(journal);
                latest.page()
            };
            return Ok(api.make(turn, page).await);
        }
    }
}

/// The next later time; `None` if there is none.
fn just_after(at: Timestamp) -> Option<Timestamp> {
    at.checked_add(SignedDuration::from_nanos(1)).ok()
}

/// The entries of one page, and how many there are beyond. No more are in memory at any time: incidents may have had a hundred
/// thousand decisions.
struct Latest {
    filter: Filter,
    limit: usize,
    entries: BTreeMap<Place, DecisionEntry>,
    /// Fingerprints of the decisions that were seen, the page or not: the log has those of the incidents, too.
    known: HashSet<u64>,
    hasher: RandomState,
    /// How many match, from the beginning of this page on.
    count: usize,
}

impl Latest {
    fn new(filter: Filter) -> Self {
        let limit = filter.paging.limit_or(DEFAULT_LIMIT);
        let (known, hasher) = (HashSet::new(), RandomState::new());
        Self { filter, limit, entries: BTreeMap::new(), known, hasher, count: 0 }
    }

    fn add_persisted(&mut self, persisted: &PersistedState) {
        for (name, incident) in &persisted.incidents {
            // Checked first, because decompressing the incident takes most of the time.
            if !self.filter.wants_app(&incident.app.namespace, &incident.app.name) {
                continue;
            }
            let Some(incident) = incident.readable_document(name) else { continue };
            let app = App::from(&incident.spec.app);
            for decision in incident.status.decisions {
                let entry = DecisionEntry::of_incident(name.to_string(), app.clone(), decision);
                self.learn(&entry);
                self.add(entry);
            }
        }
        for declaration in persisted.declared.all() {
            self.add(DecisionEntry::of_declaration(declaration.clone()));
        }
    }

    /// Adds rows of the log, after the decisions of the persisted incidents, which are in the log too.
    fn add_logged(&mut self, logged: Vec<LoggedDecision>) {
        for logged in logged {
            match serde_json::from_str(&logged.body) {
                Ok(Logged::OfApp { incident, app, decision }) => {
                    let entry = DecisionEntry::of_incident(incident, app, decision);
                    if self.learn(&entry) {
                        self.add(entry);
                    }
                }
                Ok(Logged::OfAll(declaration)) => self.add(DecisionEntry::of_declaration(declaration)),
                // Another version wrote it.
                Err(_) => {}
            }
        }
    }

    /// Adds decisions of no incident, decisions in dry-run, and earlier decisions that their incident no longer has. They
    /// come last: a decision belongs to no incident if neither the incidents nor the log have it.
    fn add_journal(&mut self, journal: Vec<decision::Decision>) {
        for decision in journal {
            let entry = DecisionEntry::from(decision);
            if entry.dry_run || !self.known.contains(&self.fingerprint(&entry)) {
                self.add(entry);
            }
        }
    }

    /// Whether the decision was not known.
    fn learn(&mut self, entry: &DecisionEntry) -> bool {
        self.known.insert(self.fingerprint(entry))
    }

    fn fingerprint(&self, entry: &DecisionEntry) -> u64 {
        self.hasher.hash_one((entry.at, &entry.app, entry.kind.as_str()))
    }

    fn add(&mut self, entry: DecisionEntry) {
        let place = place(&entry);
        if !self.filter.wants(&entry) || self.filter.paging.after.as_ref().is_some_and(|last| place <= *last)
        {
            return;
        }
        if self.entries.insert(place, entry).is_none() {
            self.count += 1;
        }
        if self.entries.len() > self.limit {
            self.entries.pop_last();
        }
    }

    /// Whether the page is full, and no decision from `oldest` or before can be on it.
    fn is_full_before(&self, oldest: Timestamp) -> bool {
        let last = self.entries.last_key_value();
        self.count > self.limit && last.is_some_and(|(_, entry)| entry.at > oldest)
    }

    fn page(self) -> serde_json::Result<Vec<u8>> {
        let mut page = Page::new(self.limit);
        let shown = page.list("decisions", self.entries.into_values(), place)?;
        let more = self.count.saturating_sub(shown);
        page.more(more > 0);
        page.member("more", &more)?;
        page.end()
    }
}

impl Filter {
    fn of(query: Vec<(String, String)>) -> Result<Self, Problem> {
        let mut filter = Self::default();
        for (parameter, value) in query {
            let (name, value) = (parameter.as_str(), value.as_str());
            match name {
                "namespace" => set(&mut filter.namespace, name, value, EXPECTED_LABEL, label),
                "name" => set(&mut filter.name, name, value, EXPECTED_TEXT, text),
                "decision" => set_name(&mut filter.decision, name, value, &DECISIONS),
                "actor" => set(&mut filter.actor, name, value, EXPECTED_TEXT, text),
                "since" => set(&mut filter.since, name, value, TIME, time),
                "until" => set(&mut filter.until, name, value, TIME, time),
                _ => {
                    let paged = filter.paging.take(name, value);
                    paged.unwrap_or_else(|| Err(unknown(name, value, PARAMETERS)))
                }
            }?;
        }
        Ok(filter)
    }

    /// The first chunk of the log that may have something of this page. Many decisions have the time of the cursor, and some of
    /// them may be behind it.
    fn of_log(&self) -> DecisionFilter {
        let shown = self.paging.after.as_ref().and_then(|Reverse((at, ..))| just_after(*at));
        DecisionFilter {
            namespace: self.namespace.clone(),
            since: self.since,
            before: self.until.into_iter().chain(shown).min(),
            skip: 0,
            limit: ENTRIES_PER_READ,
        }
    }

    fn wants_app(&self, namespace: &str, name: &str) -> bool {
        self.namespace.as_ref().is_none_or(|wanted| wanted == namespace)
            && self.name.as_ref().is_none_or(|wanted| wanted == name)
    }

    fn wants(&self, entry: &DecisionEntry) -> bool {
        // A declaration for more than one App has no namespace.
        let is_wanted = match &entry.app {
            Some(app) => self.wants_app(&app.namespace, &app.name),
            None => self.namespace.is_none() && self.name.is_none(),
        };
        is_wanted
            && self.decision.is_none_or(|wanted| entry.kind.as_str() == wanted)
            && self.actor.as_ref().is_none_or(|wanted| **wanted == *entry.actor)
            && self.since.is_none_or(|since| entry.at >= since)
            && self.until.is_none_or(|until| entry.at < until)
    }
}
