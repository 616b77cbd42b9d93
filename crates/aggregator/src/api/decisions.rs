//! `/api/v1/decisions`: the log of decisions.

use std::collections::HashSet;
use std::hash::{BuildHasher, DefaultHasher, Hash, Hasher, RandomState};

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use jiff::{SignedDuration, Timestamp};
use procscan_core::decision;
use procscan_core::names::App;
use procscan_core::state::Declaration;
use procscan_core::state::incident::IncidentDecision;
use serde::Deserialize;

use super::Api;
use super::page::Page;
use super::parameters::{CURSOR, Given, LIMIT, NAMESPACE, Order, Pairs, Parameter, name, sort, text, time};
use super::problem::Problem;
use super::reader::Reading;
use super::sort::{Paging, Place, Selection, SortValue};
use super::types::Decision as DecisionEntry;
use crate::state::{DecisionFilter, LoggedDecision, PersistedState};
use crate::wire_names::DECISIONS;

/// The parameters of the log.
pub(super) const PARAMETERS: &[Parameter] = &[
    NAMESPACE,
    text("name", "Only decisions of Apps with this name."),
    name("decision", &DECISIONS, "Only decisions of this kind."),
    text("actor", "Only decisions of this actor: `policy`, or the name of an operator."),
    time("since", "Only decisions since then."),
    time("until", "Only decisions before that."),
    sort(&["at"]),
    LIMIT,
    CURSOR,
];
/// How many are shown without a `limit`.
const DEFAULT_LIMIT: usize = 100;
/// How many rows of the log are in memory at once.
const ENTRIES_PER_READ: usize = 10_000;
/// How many times so many are read for one page: more than the log can have.
const MAX_CHUNKS: usize = 20;
/// The order without a `sort`: the latest first.
const LATEST_FIRST: Order = Order::of("at", true);

/// The filters of a query. All that are given must hold.
#[derive(Clone)]
struct Filter {
    namespace: Option<String>,
    name: Option<String>,
    /// One of [`DECISIONS`].
    decision: Option<&'static str>,
    actor: Option<String>,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    paging: Paging,
}

/// An entry of the log beside the incidents.
#[derive(Deserialize)]
#[serde(untagged)]
enum Logged {
    OfApp { incident: String, app: App, decision: IncidentDecision },
    OfAll(Declaration),
}

/// The place of a decision in the list. Several decisions of one kind may be made of an App at one time, so the place has the
/// actor and a fingerprint of the rest too.
fn place(entry: &DecisionEntry) -> Place {
    // The same in every replica of this version.
    let mut hasher = DefaultHasher::new();
    (&entry.reason, &entry.mode, &entry.exemption, entry.dry_run).hash(&mut hasher);
    let app = entry.app.as_ref();
    let app = [app.map(|app| &app.namespace), app.map(|app| &app.kind), app.map(|app| &app.name)];
    // With the fraction of the microsecond, because the log is read up to this time.
    let nanosecond = entry.at.subsec_nanosecond().rem_euclid(1000);
    let at = [SortValue::from(entry.at), SortValue::Number(nanosecond.into())];
    let texts = [
        entry.kind.as_str().into(),
        SortValue::from(&entry.actor),
        hasher.finish().to_string().as_str().into(),
    ];
    Place(at.into_iter().chain(app.map(SortValue::from)).chain(texts).collect())
}

/// The time of the decision at `place`.
fn time_of(Place(values): &Place) -> Option<Timestamp> {
    let [SortValue::Number(microsecond), SortValue::Number(nanosecond), ..] = values.as_slice() else {
        return None;
    };
    let at = Timestamp::from_microsecond(*microsecond).ok()?;
    at.checked_add(SignedDuration::from_nanos(*nanosecond)).ok()
}

/// One request at a time reads the log, so that waiting requests have none of it in memory. Other lists must not wait for the
/// disk, so this request takes its turn to make a page only after each read.
pub(super) async fn decisions(
    State(api): State<Api>,
    headers: HeaderMap,
    query: Pairs,
) -> Result<Response, Problem> {
    let (_, given) = api.reader(&headers, Reading::List, query, PARAMETERS).await?;
    let filter = Filter::of(&given)?;
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
        if chunks == MAX_CHUNKS || oldest.is_none_or(|oldest| latest.is_complete_before(oldest)) {
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
pub(super) fn just_after(at: Timestamp) -> Option<Timestamp> {
    at.checked_add(SignedDuration::from_nanos(1)).ok()
}

/// The entries of one page, and how many there are beyond. No more are in memory at any time: incidents may have had a hundred
/// thousand decisions.
struct Latest {
    filter: Filter,
    entries: Selection<DecisionEntry>,
    /// Fingerprints of the decisions that were seen, the page or not: the log has those of the incidents, too.
    known: HashSet<u64>,
    hasher: RandomState,
}

impl Latest {
    fn new(filter: Filter) -> Self {
        let entries = Selection::new(filter.paging.clone());
        Self { filter, entries, known: HashSet::new(), hasher: RandomState::new() }
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
        if self.filter.wants(&entry) {
            self.entries.add(place(&entry), entry);
        }
    }

    /// Whether the page is full, and no decision from `oldest` or before can be on it.
    fn is_complete_before(&self, oldest: Timestamp) -> bool {
        self.filter.paging.order.is_descending
            && self.entries.last_of_full().is_some_and(|entry| entry.at > oldest)
    }

    fn page(self) -> serde_json::Result<Vec<u8>> {
        let mut page = Page::new(self.filter.paging.limit);
        let count = self.entries.count();
        let shown = page.placed("decisions", &self.filter.paging, self.entries.into_entries())?;
        let more = count.saturating_sub(shown);
        page.more(more > 0);
        page.member("more", &more)?;
        page.end()
    }
}

impl Filter {
    fn of(given: &Given) -> Result<Self, Problem> {
        Ok(Self {
            namespace: given.text("namespace"),
            name: given.text("name"),
            decision: given.name("decision"),
            actor: given.text("actor"),
            since: given.time("since"),
            until: given.time("until"),
            paging: Paging::with_limit(given, LATEST_FIRST, DEFAULT_LIMIT)?,
        })
    }

    /// The first chunk of the log that may have something of this page. Many decisions have the time of the cursor, and some of
    /// them may be behind it.
    fn of_log(&self) -> DecisionFilter {
        let shown = self.paging.after.as_ref().and_then(time_of);
        let (mut since, mut before) = (self.since, self.until);
        if self.paging.order.is_descending {
            before = before.into_iter().chain(shown.and_then(just_after)).min();
        } else {
            since = since.into_iter().chain(shown).max();
        }
        DecisionFilter { namespace: self.namespace.clone(), since, before, skip: 0, limit: ENTRIES_PER_READ }
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
