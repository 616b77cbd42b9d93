//! The beginning of a term: reads the persisted state and the blocks in the objects. Nothing is decided before both
//! are known.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use procscan_core::decision::Mode;
use procscan_core::names::App;
use procscan_core::policy::{InheritedBlock, remembered};
use procscan_core::state::{Incident, IncidentState};
use tokio::sync::oneshot;

use super::{LeaderTerm, MAX_RETRY_PAUSE, MIN_RETRY_PAUSE, TermEnd};
use crate::decided::PersistedBlocks;
use crate::decided::TakeOver;
use crate::ledger_task::Reminder;
use crate::state::{Loaded, PersistedState, StateError, Unreadable};

const UNREADABLE: &str = "the persisted state can't be read; nothing is decided until it is";
const PAUSE_NOT_PERSISTED: &str =
    "the pause after the loss of the persisted state can't be persisted; nothing is decided until it is";

/// How long a list is waited for at most, before it is requested again.
const MAX_LIST_TIMEOUT: Duration = Duration::from_mins(2);
/// How far a working watch may lag behind.
const MAX_WATCH_LAG: Duration = Duration::from_secs(5);

const DECLARED: &str = "Exemptions and Enforcements";
const EVERYTHING: &str = "Incidents, Exemptions and Enforcements";

impl LeaderTerm<'_> {
    /// Reads the persisted state and the blocks in the objects. Tries again until both are known.
    pub(super) async fn take_over(&mut self) -> Result<(), TermEnd> {
        let mut pause = MIN_RETRY_PAUSE;
        self.read_declarations().await?;
        // Before the incidents are read, so that a deletion from then on is noticed.
        self.digest = self.task.channels.persisted.borrow_and_update().digest();
        self.is_copy = self.policy().mode == Mode::DryRun;
        let Loaded { incidents: documents, unreadable } = loop {
            let state = self.task.channels.persisted.borrow().clone();
            match self.task.store.load(&self.permit, &state).await {
                Ok(loaded) => break loaded,
                Err(error) => self.set_error(&error, true, UNREADABLE),
            }
            self.pause(pause).await?;
            pause = (pause * 2).min(MAX_RETRY_PAUSE);
        };
        self.wait_for_incidents().await?;
        if self.is_copy {
            // A copy is never persisted, so no successful write will clear the error.
            self.clear_error();
        }
        self.note_unreadable(unreadable);
        let persisted =
            PersistedBlocks::of(&documents, self.task.policy.borrow().same_incident, self.now().wall());
        let blocked = self.blocked(persisted.filter(|_| self.unreadable.is_empty())).await?;
        if !blocked.is_empty() && !self.is_copy {
            self.begin_after_loss().await?;
        }
        self.remind_ledger(&documents).await?;
        let now = self.now();
        let snapshot = self.task.channels.ledger.fresh().await;
        let policy = self.policy();
        let written = documents.iter().filter_map(|incident| incident.status.written).max();
        self.began = (now, written.map_or(now.wall(), |written| written.min(now.wall())));
        self.changed.clear();
        self.incidents = self.incidents.restore_again(&documents, &snapshot, now);
        self.incidents
            .mark_unreadable(self.unreadable.values().filter_map(|unreadable| unreadable.app.clone()));
        if self.unreadable.values().any(|unreadable| unreadable.app.is_none()) {
            self.incidents.mark_unknown_unreadable();
        }
        (self.decisions, self.failing, self.retry) = (Vec::new(), BTreeSet::new(), None);
        self.reopened.clear();
        for incident in documents.iter().filter(|incident| incident.status.state != IncidentState::Ended) {
            self.note_reopened(&incident.name, &App::from(&incident.spec.app));
        }
        let open = documents.iter().filter(|incident| incident.status.state != IncidentState::Ended).count();
        let inherited = self.incidents.inherit(blocked, &policy, now);
        if open + inherited.len() > 0 {
            tracing::info!(
                incidents = open,
                inherited = inherited.len(),
                "incidents and inherited blocks were taken over"
            );
        }
        if !inherited.is_empty() && !self.is_copy {
            tracing::warn!(
                alert = "state",
                apps = inherited.len(),
                "Apps are blocked, and nothing is persisted of them: an earlier version blocked them, or the persisted state \
                 is lost, and operators' releases, exemptions and pauses with it"
            );
        }
        self.decisions.extend(inherited);
        Ok(())
    }

    /// Sets the mode to paused before anything is decided, if the persisted state of the blocked Apps may be lost.
    /// Operators' exemptions would be lost with it.
    async fn begin_after_loss(&mut self) -> Result<(), TermEnd> {
        let mut pause = MIN_RETRY_PAUSE;
        while let Err(error) = self.task.store.begin_after_loss().await {
            self.set_error(&error, true, PAUSE_NOT_PERSISTED);
            self.pause(pause).await?;
            pause = (pause * 2).min(MAX_RETRY_PAUSE);
        }
        Ok(())
    }

    /// Notes the incidents that can't be read. Logs each of them once, with the consequences.
    fn note_unreadable(&mut self, unreadable: BTreeMap<String, Unreadable>) {
        for (incident, now) in &unreadable {
            if self.unreadable.get(incident) == Some(now) {
                continue;
            }
            let Unreadable { app, error } = now;
            if let Some(app) = app {
                tracing::error!(
                    alert = "state",
                    incident,
                    %app,
                    error,
                    "an incident can't be read: its App is neither blocked nor released, its tenant is not notified, and what \
                     is closed of it stays closed, until the incident is mended or deleted"
                );
            } else {
                tracing::error!(
                    alert = "state",
                    incident,
                    error,
                    "neither an incident nor the name of its App can be read: nothing new is blocked until the incident is \
                     mended or deleted"
                );
            }
        }
        self.unreadable = unreadable;
    }

    /// Waits until the current declarations of operators are known. Without their exemptions and their mode, exempted
    /// tenants could be blocked.
    async fn read_declarations(&mut self) -> Result<(), TermEnd> {
        let mut pause = MIN_RETRY_PAUSE;
        while let Err(error) = self.task.store.read_declarations().await {
            self.set_error(&error, true, UNREADABLE);
            self.pause(pause).await?;
            pause = (pause * 2).min(MAX_RETRY_PAUSE);
        }
        self.relist(false).await
    }

    /// Waits until the watch shows each incident as it was read. Otherwise a release that an operator has requested
    /// could come only after a block.
    async fn wait_for_incidents(&mut self) -> Result<(), TermEnd> {
        let mut persisted = self.task.channels.persisted.clone();
        let unseen = self.task.store.unseen(&persisted.borrow());
        let is_seen =
            |state: &Arc<PersistedState>| unseen.iter().all(|(name, version)| version.is_in(state, name));
        tokio::select! {
            seen = persisted.wait_for(is_seen) => return seen.map(drop).map_err(|_| TermEnd::Over),
            end = self.wait_for_end() => return Err(end),
            () = tokio::time::sleep(MAX_WATCH_LAG) => {}
        }
        // The watch hangs, or an incident was deleted meanwhile.
        self.relist(true).await
    }

    /// Waits until the watch shows the current declarations of operators, and the incidents too if `with_incidents`.
    async fn relist(&mut self, with_incidents: bool) -> Result<(), TermEnd> {
        let mut timeout = MAX_RETRY_PAUSE;
        let mut persisted = self.task.channels.persisted.clone();
        loop {
            let as_of = self.task.store.relist(with_incidents);
            // A state from before the request may be old, even if it is complete.
            let is_current = |state: &Arc<PersistedState>| state.is_complete && state.as_of >= as_of;
            tokio::select! {
                current = persisted.wait_for(is_current) => {
                    return current.map(drop).map_err(|_| TermEnd::Over);
                }
                end = self.wait_for_end() => return Err(end),
                () = tokio::time::sleep(timeout) => {}
            }
            // The list may hang too, or be slow. So the next one gets more time.
            let kinds = if with_incidents { EVERYTHING } else { DECLARED };
            self.set_error(&StateError::Unlisted(kinds, timeout), true, UNREADABLE);
            timeout = (timeout * 2).min(MAX_LIST_TIMEOUT);
        }
    }

    /// Asks the output which Apps the objects block.
    async fn blocked(&mut self, persisted: Option<PersistedBlocks>) -> Result<Vec<InheritedBlock>, TermEnd> {
        let (answer, blocked) = oneshot::channel();
        let request =
            TakeOver { permit: self.permit.clone(), may_touch: !self.is_copy, persisted, blocked: answer };
        if self.task.channels.take_over.send(request).await.is_err() {
            return Err(TermEnd::Over);
        }
        let permit = self.permit.clone();
        tokio::select! {
            // Without an answer, the output has ended or the permit has.
            answer = blocked => answer.map_err(|_| if permit.holds() { TermEnd::Over } else { TermEnd::Lost }),
            end = self.wait_for_end() => Err(end),
        }
    }

    async fn remind_ledger(&mut self, documents: &[Incident]) -> Result<(), TermEnd> {
        let (done, is_done) = oneshot::channel();
        let reminder = Reminder { evidence: remembered(documents), done };
        if self.task.channels.reminders.send(reminder).await.is_err() || is_done.await.is_err() {
            return Err(TermEnd::Over);
        }
        Ok(())
    }
}
