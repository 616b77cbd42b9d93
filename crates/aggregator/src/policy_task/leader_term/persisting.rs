//! Persists decisions before anything follows from them. Carries out operator commands, and removes those that are
//! done.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use procscan_core::decision::DecisionKind;
use procscan_core::names::App;
use procscan_core::policy::{IssuedBy, Policy};
use procscan_core::state::Incident;
use procscan_core::state::incident::IncidentDecision;
use tokio::time::Instant;

use super::{LeaderTerm, MAX_RETRY_PAUSE, MIN_RETRY_PAUSE, Step};
use crate::counters::Counters;
use crate::kubernetes::WritePermit;
use crate::policy_task::history;
use crate::state::{Changed, IncidentEntry, PendingCommand, PersistedState, StateError, Store};

/// How many incidents are persisted in one part.
const MAX_PERSISTED_AT_ONCE: usize = 250;
/// How often the incidents whose retention is over are removed.
const CLEAN_UP_PERIOD: Duration = Duration::from_mins(10);

/// The result of carrying out the operator commands.
pub(super) struct AppliedCommands {
    /// The names of the incidents whose commands are all done.
    pub(super) done: BTreeSet<String>,
    /// The ended incidents that had a command, with its refusal in their logs.
    pub(super) history: Vec<Incident>,
}

impl LeaderTerm<'_> {
    /// Persists that notices have been written. No decision follows from it, so nothing is evaluated.
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
                tracing::warn!(%error, "the persisted state is read again");
                Step::Outdated
            }
        }
    }

    /// Marks the incidents whose objects differ from the decisions, so that they are written again. The numbering of
    /// operator commands continues from the number in such an object.
    pub(super) fn mark_differing(&mut self, state: &PersistedState) {
        let is_time = self.task.store.next_look().is_some_and(|at| Instant::now() >= at);
        if is_time {
            self.changed = self.task.store.changed(state);
        }
        let mut names = BTreeSet::new();
        for Changed { name, was_replaced } in std::mem::take(&mut self.changed) {
            let Some(seen) = state.incidents.get(&*name) else { continue };
            let app = App::from(&seen.app);
            if self.incidents.name_of(&app).as_ref() != Some(&name) {
                // The object belongs to an earlier incident of the App, so that incident has ended. All else of it is
                // known only from the object.
                if seen.is_open() {
                    self.note_reopened(&name, &app);
                } else {
                    self.task.store.accept(state, &name);
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

    /// Notes an object of `app` that has an open state, and is not the App's current Incident. Its incident has
    /// ended, or it is a copy under another name.
    pub(super) fn note_reopened(&mut self, name: &str, app: &App) {
        // If an Incident of the App can't be read, none of the App's Incidents is written.
        let may_be_it = self.unreadable.values().any(|it| it.app.as_ref().is_none_or(|other| other == app));
        let is_it = self.incidents.name_of(app).is_some_and(|known| known == name);
        if !is_it && !may_be_it && self.reopened.insert(name.to_owned()) {
            tracing::warn!(
                alert = "state",
                incident = name,
                %app,
                "an Incident that had ended, or has another name than its App's, has an open state: it was edited, copied, \
                 restored from a backup, or written late by the previous leader; it is written as ended"
            );
        }
    }

    /// Adds the incidents in `reopened` to the history that is written, as ended.
    pub(super) fn end_again(&mut self, state: &PersistedState, history: &mut Vec<Incident>) {
        let now = self.now().wall();
        self.reopened.retain(|name| {
            let Some(seen) = state.incidents.get(&**name) else { return true };
            self.incidents.name_of(&App::from(&seen.app)).as_ref() != Some(name)
        });
        for name in self.reopened.iter().filter(|name| !state.unread.incidents.contains_key(&***name)) {
            if let Some(incident) = history.iter_mut().find(|incident| incident.name == *name) {
                incident.status.end_again(now);
                continue;
            }
            let seen = state.incidents.get(&**name).filter(|seen| seen.is_open());
            history.extend(seen.and_then(|seen| seen.readable_document(name)).map(|mut incident| {
                incident.status.end_again(now);
                incident
            }));
        }
    }

    /// Carries out the pending operator commands.
    pub(super) fn apply_commands(&mut self, state: &PersistedState, policy: &Policy) -> AppliedCommands {
        let now = self.now();
        let (mut done, mut history) = (BTreeSet::new(), Vec::new());
        let observed = |name: &str, incident: &IncidentEntry| {
            let app = App::from(&incident.app);
            let known = self.incidents.incident(&app).filter(|known| known.name(&app) == name);
            known.map(procscan_core::policy::Incident::observed)
        };
        let pending = state.pending_commands(now.wall(), observed);
        for PendingCommand { incident, command, actor, reason, number } in pending {
            if self.unreadable.contains_key(&incident) {
                // The watch has an older version that can be read. Nothing may be written over the newer one, and the
                // command is not carried out.
                continue;
            }
            let app = command.app().clone();
            let known = self.incidents.incident(&app);
            let Some(known) = known.filter(|known| known.name(&app) == incident) else {
                history.extend(refused(state, &incident, &actor, number, now.wall()));
                continue;
            };
            if known.observed() >= number && !done.contains(&incident) {
                continue;
            }
            match self.incidents.execute(
                &command,
                IssuedBy { name: &actor, reason: reason.as_deref() },
                policy,
                now,
            ) {
                Ok(decision) => self.decisions.push(decision),
                Err(error) => tracing::info!(%app, actor, %error, "an operator command has no effect"),
            }
            self.incidents.note_done_up_to(&app, number);
            done.insert(incident);
        }
        AppliedCommands { done, history }
    }

    /// Persists the decisions. Those that can't be persisted are rolled back.
    ///
    /// Fails only if nothing more may be written, because another replica leads or has written.
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
        save_in_parts(&mut self.task.store, &self.task.counters, &self.permit, own, &mut failed).await?;
        // An object that is not the App's current Incident may be the only one that has the decisions about the App.
        // So it is written only after the current Incident.
        let has_own = |app: &App| {
            !waiting.contains(app)
                && self.incidents.name_of(app).is_none_or(|name| !failed.contains_key(&name))
        };
        let may_end = |it: &Incident| may_try(&it.name) && has_own(&App::from(&it.spec.app));
        let history: Vec<Incident> = history.into_iter().filter(may_end).collect();
        let names: Vec<String> = history.iter().map(|incident| incident.name.clone()).collect();
        save_in_parts(
            &mut self.task.store,
            &self.task.counters,
            &self.permit,
            history.into_iter(),
            &mut failed,
        )
        .await?;
        for name in names.iter().filter(|name| !failed.contains_key(*name)) {
            self.reopened.remove(name);
        }
        let has_failed =
            |app: &App| self.incidents.name_of(app).is_some_and(|name| failed.contains_key(&name));
        let (unsaved, saved): (Vec<App>, Vec<App>) = apps.into_iter().partition(has_failed);
        self.incidents.commit(&saved);
        let rolled_back: BTreeSet<App> = unsaved.into_iter().chain(waiting).collect();
        self.incidents.roll_back(&rolled_back);
        // A dispute and an inherited block are facts, whether they can be persisted or not.
        self.decisions.retain(|decision| {
            let is_fact = matches!(decision.kind, DecisionKind::Disputed | DecisionKind::Inherited);
            is_fact || !rolled_back.contains(&decision.app)
        });
        if is_time {
            self.failing.clear();
        }
        self.failing.extend(failed.keys().cloned());
        if let Some(error) = failed.values().next() {
            self.set_error(
                error,
                is_time,
                "some decisions can't be persisted, and have no effect until they can",
            );
        } else if self.failing.is_empty() {
            self.clear_error();
        }
        Ok(())
    }

    /// Removes the commands that are done and, once in a while, the incidents whose retention is over.
    pub(super) async fn clean_up(
        &mut self,
        state: &PersistedState,
        done: &BTreeSet<String>,
    ) -> Result<(), StateError> {
        // The store removes a command only if it is certain that it was done.
        let old = state.incidents.iter().filter(|(_, incident)| incident.is_done()).map(|(name, _)| &**name);
        let names: BTreeSet<&str> = old.chain(done.iter().map(String::as_str)).collect();
        let is_ours = |name: &&str| !self.failing.contains(*name) && !self.unreadable.contains_key(*name);
        for name in names.into_iter().filter(is_ours) {
            self.task.store.remove_commands(&self.permit, name).await?;
        }
        let is_due = self.cleaned_up.is_none_or(|cleaned_up| cleaned_up.elapsed() >= CLEAN_UP_PERIOD);
        if !is_due {
            return Ok(());
        }
        self.cleaned_up = Some(Instant::now());
        let now = self.now();
        let in_memory = self.incidents.incidents().map(|(app, incident)| incident.name(app));
        let known: BTreeSet<String> = in_memory.chain(self.unreadable.keys().cloned()).collect();
        let times = (now.wall(), self.incidents.leader_time(now));
        let expired = history::expired(state, &known, self.task.retention, times);
        if let Ok(before) = history::certain_wall_time(now, self.began).checked_sub(self.task.retention) {
            self.task.store.retain(before).await?;
        }
        if !expired.is_empty() {
            self.task.store.remove(&self.permit, &expired).await?;
            tracing::info!(incidents = expired.len(), "incidents whose retention is over were removed");
        }
        Ok(())
    }

    /// Publishes `error`, and logs it once. If it was time to try again (`is_time`), the next try comes after a
    /// longer pause.
    pub(super) fn set_error(&mut self, error: &StateError, is_time: bool, what: &str) {
        let text = error.to_string();
        if is_time {
            let pause = self.retry.map_or(MIN_RETRY_PAUSE, |(_, pause)| pause);
            self.retry = Some((Instant::now() + pause, (pause * 2).min(MAX_RETRY_PAUSE)));
        }
        self.task.channels.error.send_if_modified(|before| {
            let is_new = before.as_ref() != Some(&text);
            if is_new {
                tracing::error!(alert = "state", error = text, "{what}");
                *before = Some(text.clone());
            }
            is_new
        });
    }

    pub(super) fn clear_error(&mut self) {
        self.retry = None;
        self.task.channels.error.send_if_modified(|before| {
            let had_error = before.take().is_some();
            if had_error {
                tracing::info!("decisions can be persisted again");
            }
            had_error
        });
    }
}

/// Saves the documents `left`, and adds those that could not be saved to `failed`.
///
/// In parts, to bound the memory. There may be as many documents as Apps, and each takes a few times its size while
/// it is written.
async fn save_in_parts(
    store: &mut Store,
    counters: &Counters,
    permit: &WritePermit,
    mut left: impl Iterator<Item = Incident>,
    failed: &mut BTreeMap<String, StateError>,
) -> Result<(), StateError> {
    loop {
        let part: Vec<Incident> = left.by_ref().take(MAX_PERSISTED_AT_ONCE).collect();
        if part.is_empty() {
            return Ok(());
        }
        let count = part.len();
        let unsaved = store.save(permit, part).await;
        counters.state_written(count - unsaved.len().min(count), unsaved.len());
        failed.extend(unsaved);
        if let Some(error) = failed.values().find(|error| error.is_lost() || error.is_outdated()) {
            return Err(error.clone());
        }
    }
}

/// The incident of that name, with the refusal in its log. It has ended, so the command of the operator is not
/// carried out.
fn refused(state: &PersistedState, name: &str, actor: &str, number: i64, at: Timestamp) -> Option<Incident> {
    let mut incident = state.incidents.get(name).and_then(|incident| incident.readable_document(name))?;
    let reason = format!("{} has no open incident", App::from(&incident.spec.app));
    let decision = DecisionKind::Refused;
    incident.status.decisions.push(IncidentDecision {
        at,
        decision: decision.into(),
        actor: actor.into(),
        reason: reason.into(),
    });
    incident.status.decided += 1;
    incident.status.observed = number;
    Some(incident)
}
