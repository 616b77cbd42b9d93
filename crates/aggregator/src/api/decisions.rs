//! `/api/v1/decisions`: who decided what, when, why, and on what evidence.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};
use std::hash::{BuildHasher, DefaultHasher, Hash, Hasher, RandomState};

use axum::extract::State;
use axum::response::Response;
use jiff::Timestamp;
use procscan_core::names::Text;
use procscan_core::policy;
use procscan_core::state::Declaration;
use procscan_core::state::incident::{AppRef, Decision, LoggedKind};
use serde::{Deserialize, Serialize};

use super::Api;
use super::page::{Page, Paging};
use super::problem::Problem;
use super::query::{LABEL, Parameters, TEXT, TIME, label, set, set_word, text, time, unknown};
use crate::state::{DecisionFilter, Kept, LoggedDecision};
use crate::words::DECISIONS;

/// The parameters, as they are named in the refusal of another one.
const PARAMETERS: &str = "namespace, name, decision, actor, since, until, limit, cursor";
/// How many are shown without a `limit`.
const LIMIT: usize = 100;
/// How many of the log are looked at, the latest first.
const MAX_LOGGED: usize = 10_000;

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
struct Entry {
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
    OfApp { incident: String, app: AppRef, decision: Decision },
    OfAll(Declaration),
}

impl Entry {
    fn kept(incident: String, app: AppRef, Decision { at, decision, actor, reason }: Decision) -> Self {
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
pub(super) async fn decisions(
    State(api): State<Api>,
    Parameters(query): Parameters,
) -> Result<Response, Problem> {
    let filter = Filter::of(query)?;
    let turn = api.turn().await?;
    let logged = api.views.desk.logged(DecisionFilter {
        namespace: filter.namespace.clone(),
        since: filter.since,
        before: filter.until,
        skip: 0,
        limit: MAX_LOGGED,
    });
    let logged = logged.await.unwrap_or_else(|error| {
        // What the incidents have is shown all the same; what is wrong with the file is told where it is written.
        tracing::warn!(%error, "the log of decisions can't be read");
        Vec::new()
    });
    let kept = api.views.kept.borrow().clone();
    let journal = api.views.journal.last();
    Ok(api
        .make(turn, move || {
            let mut latest = Latest::new(filter);
            latest.add_all(&kept, logged, journal);
            latest.page()
        })
        .await)
}

/// The entries of one page, and how many there are beyond. No more are in memory at any time: incidents may have had a hundred
/// thousand decisions.
struct Latest {
    filter: Filter,
    limit: usize,
    entries: BTreeMap<Place, Entry>,
    /// Fingerprints of the decisions that were seen, the page or not: the log has those of the incidents, too.
    known: HashSet<u64>,
    hasher: RandomState,
    /// How many were asked for, from where this page begins.
    count: usize,
}

impl Latest {
    fn new(filter: Filter) -> Self {
        let limit = filter.paging.limit_or(LIMIT);
        let (known, hasher) = (HashSet::new(), RandomState::new());
        Self { filter, limit, entries: BTreeMap::new(), known, hasher, count: 0 }
    }

    fn add_all(&mut self, kept: &Kept, logged: Vec<LoggedDecision>, journal: Vec<policy::Decision>) {
        for (name, incident) in &kept.incidents {
            // To unpack an incident is what takes most of the time.
            if !self.filter.wants_app(&incident.app) {
                continue;
            }
            let Some(incident) = incident.legible(name) else { continue };
            for decision in incident.status.decisions {
                let entry = Entry::kept(name.to_string(), incident.spec.app.clone(), decision);
                self.learn(&entry);
                self.add(entry);
            }
        }
        for logged in logged {
            match serde_json::from_str(&logged.body) {
                Ok(Logged::OfApp { incident, app, decision }) => {
                    let entry = Entry::kept(incident, app, decision);
                    if self.learn(&entry) {
                        self.add(entry);
                    }
                }
                Ok(Logged::OfAll(declaration)) => self.add(Entry::declared(declaration)),
                // Another version wrote it.
                Err(_) => {}
            }
        }
        for declaration in kept.declared.all() {
            self.add(Entry::declared(declaration.clone()));
        }
        // Decisions of no incident, decisions in dry-run, and earlier decisions that their incident no longer holds.
        for decision in journal {
            let entry = Entry {
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
    fn learn(&mut self, entry: &Entry) -> bool {
        self.known.insert(self.fingerprint(entry))
    }

    fn fingerprint(&self, entry: &Entry) -> u64 {
        let app = entry.app.as_ref().map(|AppRef { namespace, kind, name }| (namespace, kind, name));
        self.hasher.hash_one((entry.at, app, entry.decision.as_str()))
    }

    fn add(&mut self, entry: Entry) {
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

    fn page(self) -> serde_json::Result<Vec<u8>> {
        let mut page = Page::new(self.limit);
        let shown = page.list("decisions", self.entries.into_values(), Entry::place)?;
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
                "namespace" => set(&mut filter.namespace, name, value, LABEL, label),
                "name" => set(&mut filter.name, name, value, TEXT, text),
                "decision" => set_word(&mut filter.decision, name, value, &DECISIONS),
                "actor" => set(&mut filter.actor, name, value, TEXT, text),
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

    fn wants_app(&self, AppRef { namespace, name, .. }: &AppRef) -> bool {
        self.namespace.as_ref().is_none_or(|wanted| **wanted == **namespace)
            && self.name.as_ref().is_none_or(|wanted| **wanted == **name)
    }

    fn wants(&self, entry: &Entry) -> bool {
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
