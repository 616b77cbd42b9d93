//! What is decided is kept before anything follows from it; what operators want is done, and then cleared away.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use procscan_core::decision::DecisionKind;
use procscan_core::names::App;
use procscan_core::policy::{IssuedBy, Policy};
use procscan_core::state::Incident;
use procscan_core::state::incident as kept;
use tokio::time::Instant;

use super::{LeaderTerm, MAX_PAUSE, MIN_PAUSE, Step};
use crate::leader::WritePermit;
use crate::policy_task::history;
use crate::state::{Changed, IncidentEntry, PendingCommand, PersistedState, StateError, Store};

/// How many incidents are kept in one go.
const MAX_PERSISTED_AT_ONCE: usize = 250;
/// How often it is looked for incidents that are kept no longer.
const CLEAN_UP_PERIOD: Duration = Duration::from_mins(10);

/// What has been done of what operators want.
pub(super) struct AppliedCommands {
    /// The incidents of which everything has been done.
    pub(super) done: BTreeSet<String>,
    /// Those that are over, with the answer that they are.
    pub(super) history: Vec<Incident>,
}

impl LeaderTerm<'_> {
    /// Keeps that tenants have been told. Nothing follows from it, so nothing is decided.
    pub(super) async fn persist_written(&mut self) -> Step {
        if !self.permit.holds() {
            return Step::Lost;
        }
        if self.is_copy {
            return Step::Done;
        }
        match self.persist(Vec::new()).await {
            Ok(()) => Step::Done,
            Err(error) if error.is_lost() => Step::Lost,
            Err(error) => {
                tracing::warn!(%error, "what is kept is read again");
                Step::Outdated
            }
        }
    }

    /// Notes which incidents to write again because their objects differ from what was decided. The numbering of
    /// operators' acts continues from what such an object says.
    pub(super) fn mark_differing(&mut self, kept: &PersistedState) {
        let is_time = self.task.store.next_look().is_some_and(|at| Instant::now() >= at);
        if is_time {
            self.changed = self.task.store.changed(kept);
        }
        let mut names = BTreeSet::new();
        for Changed { name, was_replaced } in std::mem::take(&mut self.changed) {
            let Some(seen) = kept.incidents.get(&*name) else { continue };
            let app = App::from(&seen.app);
            if self.incidents.name_of(&app).as_ref() != Some(&name) {
                // It is an earlier incident of the App, so it has ended; the rest is known from its object only.
                if seen.is_open() {
                    self.note_reopened(&name, &app);
                } else {
                    self.task.store.accept(kept, &name);
                }
                continue;
            }
            if was_replaced {
                self.incidents.restart_numbering(&app, seen.observed());
            }
            names.insert(name);
        }
        if !names.is_empty() {
            self.incidents.mark_deleted(|name| names.contains(name));
        }
    }

    /// Notes an incident of `app` whose object says that it is open, and which is not the App's own one: it has ended, or
    /// it is a copy under another name.
    pub(super) fn note_reopened(&mut self, name: &str, app: &App) {
        // If an incident of the App can't be read, none of its incidents is touched.
        let may_be_it = self.unreadable.values().any(|it| it.app.as_ref().is_none_or(|other| other == app));
        let is_it = self.incidents.name_of(app).is_some_and(|known| known == name);
        if !is_it && !may_be_it && self.reopened.insert(name.to_owned()) {
            tracing::warn!(
                alert = "state",
                incident = name,
                %app,
                "an Incident that had ended, or has another name than its App's, says that it is open: it was edited, copied, \
                 restored from a backup, or written late by the previous leader; it is written as ended"
            );
        }
    }

    /// Adds the incidents in `reopened` to the history that is written, as ended.
    pub(super) fn end_again(&mut self, kept: &PersistedState, history: &mut Vec<Incident>) {
        let now = self.now().wall();
        self.reopened.retain(|name| {
            let Some(seen) = kept.incidents.get(&**name) else { return true };
            self.incidents.name_of(&App::from(&seen.app)).as_ref() != Some(name)
        });
        for name in self.reopened.iter().filter(|name| !kept.unread.incidents.contains_key(&***name)) {
            if let Some(incident) = history.iter_mut().find(|incident| incident.name == *name) {
                incident.status.end_again(now);
                continue;
            }
            let seen = kept.incidents.get(&**name).filter(|seen| seen.is_open());
            history.extend(seen.and_then(|seen| seen.readable_document(name)).map(|mut incident| {
                incident.status.end_again(now);
                incident
            }));
        }
    }

    /// Does what operators want.
    pub(super) fn apply_commands(&mut self, kept: &PersistedState, policy: &Policy) -> AppliedCommands {
        let now = self.now();
        let (mut done, mut history) = (BTreeSet::new(), Vec::new());
        let observed = |name: &str, incident: &IncidentEntry| {
            let app = App::from(&incident.app);
            let known = self.incidents.incident(&app).filter(|known| known.name(&app) == name);
            known.map(procscan_core::policy::Incident::observed)
        };
        let orders = kept.pending_commands(now.wall(), observed);
        for PendingCommand { incident, command: act, actor, reason, number } in orders {
            if self.unreadable.contains_key(&incident) {
                // The watch has an older version of it than what is kept: nothing may be written over it, and the act
                // is not done.
                continue;
            }
            let app = act.app().clone();
            let known = self.incidents.incident(&app);
            let Some(known) = known.filter(|known| known.name(&app) == incident) else {
                history.extend(refused(kept, &incident, &actor, number, now.wall()));
                continue;
            };
            if known.observed() >= number && !done.contains(&incident) {
                continue;
            }
            match self.incidents.execute(
                &act,
                IssuedBy { name: &actor, reason: reason.as_deref() },
                policy,
                now,
            ) {
                Ok(decision) => self.decisions.push(decision),
                Err(error) => tracing::info!(%app, actor, %error, "an operator's act has no effect"),
            }
            self.incidents.note_done_up_to(&app, number);
            done.insert(incident);
        }
        AppliedCommands { done, history }
    }

    /// Keeps what has been decided, as far as it can be kept; the rest is taken back.
    ///
    /// Fails only where nothing more may be written: another replica leads, or has written.
    pub(super) async fn persist(&mut self, history: Vec<Incident>) -> Result<(), StateError> {
        let is_time = self.retry.is_none_or(|(at, _)| Instant::now() >= at);
        let may_try = |name: &str| is_time || !self.failing.contains(name);
        let (apps, waiting): (Vec<App>, Vec<App>) = self
            .incidents
            .dirty()
            .into_iter()
            .partition(|app| self.incidents.name_of(app).is_none_or(|name| may_try(&name)));
        let waiting: BTreeSet<App> = waiting.into_iter().collect();
        let mut failed: BTreeMap<String, StateError> = BTreeMap::new();
        let own = apps.iter().filter_map(|app| self.incidents.document(app));
        save_in_parts(&mut self.task.store, &self.permit, own, &mut failed).await?;
        // An object that is not the App's own may be the only one that says what has been decided of the App: it is not
        // touched before the App's own one has been written.
        let has_own = |app: &App| {
            !waiting.contains(app)
                && self.incidents.name_of(app).is_none_or(|name| !failed.contains_key(&name))
        };
        let may_end = |it: &Incident| may_try(&it.name) && has_own(&App::from(&it.spec.app));
        let history: Vec<Incident> = history.into_iter().filter(may_end).collect();
        let names: Vec<String> = history.iter().map(|incident| incident.name.clone()).collect();
        save_in_parts(&mut self.task.store, &self.permit, history.into_iter(), &mut failed).await?;
        for name in names.iter().filter(|name| !failed.contains_key(*name)) {
            self.reopened.remove(name);
        }
        let is_lost = |app: &App| self.incidents.name_of(app).is_some_and(|name| failed.contains_key(&name));
        let (lost, saved): (Vec<App>, Vec<App>) = apps.into_iter().partition(is_lost);
        self.incidents.commit(&saved);
        let taken_back: BTreeSet<App> = lost.into_iter().chain(waiting).collect();
        self.incidents.roll_back(&taken_back);
        // That an App was found blocked is true whether it can be kept or not.
        self.decisions.retain(|decision| {
            let is_of_nobody = matches!(decision.kind, DecisionKind::Disputed | DecisionKind::Inherited);
            is_of_nobody || !taken_back.contains(&decision.app)
        });
        if is_time {
            self.failing.clear();
        }
        self.failing.extend(failed.keys().cloned());
        if let Some(error) = failed.values().next() {
            self.set_error(error, is_time, "some decisions can't be kept, and have no effect until they can");
        } else if self.failing.is_empty() {
            self.clear_error();
        }
        Ok(())
    }

    /// Takes away what operators wanted and what is kept no longer.
    pub(super) async fn clean_up(
        &mut self,
        kept: &PersistedState,
        done: &BTreeSet<String>,
    ) -> Result<(), StateError> {
        // The store knows whether that is certain.
        let old = kept.incidents.iter().filter(|(_, incident)| incident.is_done()).map(|(name, _)| &**name);
        let names: BTreeSet<&str> = old.chain(done.iter().map(String::as_str)).collect();
        let is_ours = |name: &&str| !self.failing.contains(*name) && !self.unreadable.contains_key(*name);
        for name in names.into_iter().filter(is_ours) {
            self.task.store.remove_commands(&self.permit, name).await?;
        }
        let is_due = self.swept.is_none_or(|swept| swept.elapsed() >= CLEAN_UP_PERIOD);
        if !is_due {
            return Ok(());
        }
        self.swept = Some(Instant::now());
        let now = self.now();
        let in_book = self.incidents.incidents().map(|(app, incident)| incident.name(app));
        let known: BTreeSet<String> = in_book.chain(self.unreadable.keys().cloned()).collect();
        let over =
            history::over(kept, &known, self.task.retention, (now.wall(), self.incidents.leader_time(now)));
        if let Ok(before) = history::certain(now, self.began).checked_sub(self.task.retention) {
            self.task.store.retain(before).await?;
        }
        if !over.is_empty() {
            self.task.store.remove(&self.permit, &over).await?;
            tracing::info!(incidents = over.len(), "history is kept no longer");
        }
        Ok(())
    }

    /// Says once what stands in the way. Was it time to try again, then the next time is later.
    pub(super) fn set_error(&mut self, error: &StateError, is_time: bool, what: &str) {
        let text = error.to_string();
        if is_time {
            let pause = self.retry.map_or(MIN_PAUSE, |(_, pause)| pause);
            self.retry = Some((Instant::now() + pause, (pause * 2).min(MAX_PAUSE)));
        }
        self.task.channels.error.send_if_modified(|before| {
            let is_news = before.as_ref() != Some(&text);
            if is_news {
                tracing::error!(alert = "state", error = text, "{what}");
                *before = Some(text.clone());
            }
            is_news
        });
    }

    pub(super) fn clear_error(&mut self) {
        self.retry = None;
        self.task.channels.error.send_if_modified(|before| {
            let was_in_trouble = before.take().is_some();
            if was_in_trouble {
                tracing::info!("decisions can be kept again");
            }
            was_in_trouble
        });
    }
}

/// Saves the documents `left`, and adds those that could not be saved to `failed`.
///
/// In parts, to bound the memory: there may be as many as Apps, and each takes a few times its size while it is written.
async fn save_in_parts(
    store: &mut Store,
    permit: &WritePermit,
    mut left: impl Iterator<Item = Incident>,
    failed: &mut BTreeMap<String, StateError>,
) -> Result<(), StateError> {
    loop {
        let part: Vec<Incident> = left.by_ref().take(MAX_PERSISTED_AT_ONCE).collect();
        if part.is_empty() {
            return Ok(());
        }
        failed.extend(store.save(permit, part).await);
        if let Some(error) = failed.values().find(|error| error.is_lost() || error.is_outdated()) {
            return Err(error.clone());
        }
    }
}

/// The incident of that name, with the refusal in its log: it has ended, so what an operator asked for is not done.
fn refused(seen: &PersistedState, name: &str, actor: &str, number: i64, at: Timestamp) -> Option<Incident> {
    let mut incident = seen.incidents.get(name).and_then(|incident| incident.readable_document(name))?;
    let reason = format!("{} has no open incident", App::from(&incident.spec.app));
    let decision = DecisionKind::Refused;
    incident.status.decisions.push(kept::IncidentDecision {
        at,
        decision: decision.into(),
        actor: actor.into(),
        reason: reason.into(),
    });
    incident.status.decided += 1;
    incident.status.observed = number;
    Some(incident)
}
