//! `/api/v1/decisions`: who decided what, when, why, and on what evidence.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};
use std::hash::{BuildHasher, DefaultHasher, Hash, Hasher, RandomState};

use axum::extract::State;
use axum::response::Response;
use jiff::{SignedDuration, Timestamp};
use procscan_core::decision;
use procscan_core::names::Text;
use procscan_core::state::Declaration;
use procscan_core::state::incident::{AppRef, IncidentDecision, LoggedKind};
use serde::{Deserialize, Serialize};

use super::Api;
use super::page::{Page, Paging};
use super::problem::Problem;
use super::query::{
    EXPECTED_LABEL, EXPECTED_TEXT, Parameters, TIME, label, set, set_word, text, time, unknown,
};
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

/// What the query says. Everything that is given must hold.
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

/// Where a decision is in the list: the latest first. Several of one kind may be made of an App at one time, so the place has the
/// actor and a fingerprint of the rest too.
type Place = Reverse<(Timestamp, Option<AppRef>, LoggedKind, bool, Text, u64)>;

#[derive(Debug, Serialize)]
struct DecisionEntry {
    at: Timestamp,
    /// `None` if an operator has declared something for more than one App.
    #[serde(skip_serializing_if = "Option::is_none")]
    app: Option<AppRef>,
    decision: LoggedKind,
    actor: Text,
    reason: Text,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    dry_run: bool,
    /// The incident that it is kept with; nothing if it belongs to none, and then only the leader knows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    incident: Option<String>,
    /// The mode that was declared, if one was.
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<Text>,
    /// The name of the exemption that was made or taken back.
    #[serde(skip_serializing_if = "Option::is_none")]
    exemption: Option<Text>,
}

/// An entry of the log beside the incidents.
#[derive(Deserialize)]
#[serde(untagged)]
enum Logged {
    OfApp { incident: String, app: AppRef, decision: IncidentDecision },
    OfAll(Declaration),
}

impl DecisionEntry {
    fn kept(
        incident: String,
        app: AppRef,
        IncidentDecision { at, decision, actor, reason }: IncidentDecision,
    ) -> Self {
        let (app, incident) = (Some(app), Some(incident));
        Self { at, app, decision, actor, reason, dry_run: false, incident, mode: None, exemption: None }
    }

    fn declared(Declaration { at, decision, mode, exemption, actor, reason }: Declaration) -> Self {
        let decision = LoggedKind::Other(decision.as_str().into());
        Self { at, app: None, decision, actor, reason, dry_run: false, incident: None, mode, exemption }
    }

    fn place(&self) -> Place {
        // The same in every replica of this version.
        let mut hasher = DefaultHasher::new();
        (&self.reason, &self.mode, &self.exemption).hash(&mut hasher);
        let (app, decision, actor) = (self.app.clone(), self.decision.clone(), self.actor.clone());
        Reverse((self.at, app, decision, self.dry_run, actor, hasher.finish()))
    }
}

/// The latest first.
///
/// The log is read by one request at a time, so that requests which wait keep none of it in memory. Other lists must not wait for
/// the disk, so this request takes its turn to make a page only after each read.
pub(super) async fn decisions(
    State(api): State<Api>,
    Parameters(query): Parameters,
) -> Result<Response, Problem> {
    let filter = Filter::of(query)?;
    let _reader = api.reading_turn().await?;
    let mut log = filter.of_log();
    // Before the log is read: what an incident drops meanwhile is in the log.
    let mut kept = Some(api.views.persisted.borrow().clone());
    let (mut latest, mut chunks) = (Latest::new(filter), 0);
    loop {
        chunks += 1;
        let rows = api.operators.commands.logged(log.clone()).await.unwrap_or_else(|error| {
            // What the incidents have is shown all the same; what is wrong with the file is told where it is written.
            tracing::warn!(%error, "the log of decisions can't be read");
            Vec::new()
        });
        // Rows that are written from now on must not move those that are counted.
        log.before = log.before.or_else(|| rows.first().and_then(|row| just_after(row.at)));
        log.skip += rows.len();
        let oldest = rows.last().filter(|_| rows.len() == ENTRIES_PER_READ).map(|row| row.at);
        let (kept, turn) = (kept.take(), api.turn().await?);
        let add = move || {
            if let Some(kept) = kept {
                latest.add_kept(&kept);
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

/// The first time that is later; nothing if there is none.
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
    /// How many were asked for, from where this page begins.
    count: usize,
}

impl Latest {
    fn new(filter: Filter) -> Self {
        let limit = filter.paging.limit_or(DEFAULT_LIMIT);
        let (known, hasher) = (HashSet::new(), RandomState::new());
        Self { filter, limit, entries: BTreeMap::new(), known, hasher, count: 0 }
    }

    fn add_kept(&mut self, kept: &PersistedState) {
        for (name, incident) in &kept.incidents {
            // To unpack an incident is what takes most of the time.
            if !self.filter.wants_app(&incident.app) {
                continue;
            }
            let Some(incident) = incident.readable_document(name) else { continue };
            for decision in incident.status.decisions {
                let entry = DecisionEntry::kept(name.to_string(), incident.spec.app.clone(), decision);
                self.learn(&entry);
                self.add(entry);
            }
        }
        for declaration in kept.declared.all() {
            self.add(DecisionEntry::declared(declaration.clone()));
        }
    }

    /// Adds rows of the log. They come after what is kept, which has some of the same decisions.
    fn add_logged(&mut self, logged: Vec<LoggedDecision>) {
        for logged in logged {
            match serde_json::from_str(&logged.body) {
                Ok(Logged::OfApp { incident, app, decision }) => {
                    let entry = DecisionEntry::kept(incident, app, decision);
                    if self.learn(&entry) {
                        self.add(entry);
                    }
                }
                Ok(Logged::OfAll(declaration)) => self.add(DecisionEntry::declared(declaration)),
                // Another version wrote it.
                Err(_) => {}
            }
        }
    }

    /// Adds decisions of no incident, decisions in dry-run, and earlier decisions that their incident no longer holds. They come
    /// last: only those that are known from nowhere else belong to no incident.
    fn add_journal(&mut self, journal: Vec<decision::Decision>) {
        for decision in journal {
            let entry = DecisionEntry {
                at: decision.at,
                app: Some(AppRef::from(&decision.app)),
                decision: decision.kind.into(),
                actor: decision.actor.name(),
                reason: decision.reason,
                dry_run: decision.dry_run,
                incident: None,
                mode: None,
                exemption: None,
            };
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
        let app = entry.app.as_ref().map(|AppRef { namespace, kind, name }| (namespace, kind, name));
        self.hasher.hash_one((entry.at, app, entry.decision.as_str()))
    }

    fn add(&mut self, entry: DecisionEntry) {
        let place = entry.place();
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
        let shown = page.list("decisions", self.entries.into_values(), DecisionEntry::place)?;
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
                "decision" => set_word(&mut filter.decision, name, value, &DECISIONS),
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

    fn wants_app(&self, AppRef { namespace, name, .. }: &AppRef) -> bool {
        self.namespace.as_ref().is_none_or(|wanted| **wanted == **namespace)
            && self.name.as_ref().is_none_or(|wanted| **wanted == **name)
    }

    fn wants(&self, entry: &DecisionEntry) -> bool {
        // What is declared for more than one App is of no namespace.
        let is_wanted = match &entry.app {
            Some(app) => self.wants_app(app),
            None => self.namespace.is_none() && self.name.is_none(),
        };
        is_wanted
            && self.decision.is_none_or(|wanted| entry.decision.as_str() == wanted)
            && self.actor.as_ref().is_none_or(|wanted| **wanted == *entry.actor)
            && self.since.is_none_or(|since| entry.at >= since)
            && self.until.is_none_or(|until| entry.at < until)
    }
}
