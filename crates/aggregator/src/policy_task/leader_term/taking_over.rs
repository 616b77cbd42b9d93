//! The beginning of a term: reads what is kept and what is blocked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use procscan_core::decision::Mode;
use procscan_core::names::App;
use procscan_core::policy::{InheritedBlock, remembered};
use procscan_core::state::{Incident, IncidentState};
use tokio::sync::oneshot;

use super::{LeaderTerm, MAX_PAUSE, MIN_PAUSE, TermEnd};
use crate::ledger_task::Reminder;
use crate::output::PersistedBlocks;
use crate::policy_task::TakeOver;
use crate::state::{Loaded, PersistedState, StateError, Unreadable};

const UNREADABLE: &str = "what is kept can't be read; nothing is decided until it is";
const PAUSE_NOT_PERSISTED: &str =
    "the pause after the loss of what was kept can't be persisted; nothing is decided until it is";

/// How long a list of what operators declare is waited for at most, before it is asked for again.
const MAX_LIST_TIMEOUT: Duration = Duration::from_mins(2);
/// How long a watch that works may lag behind.
const SEEN_WITHIN: Duration = Duration::from_secs(5);

const DECLARED: &str = "Exemptions and Enforcements";
const EVERYTHING: &str = "Incidents, Exemptions and Enforcements";

impl LeaderTerm<'_> {
    /// Reads what is kept and what is blocked, and tries again until both are known.
    pub(super) async fn take_over(&mut self) -> Result<(), TermEnd> {
        let mut pause = MIN_PAUSE;
        self.read_declarations().await?;
        // Before the incidents are read, so that a deletion from then on is noticed.
        self.digest = self.task.channels.persisted.borrow_and_update().digest();
        self.is_copy = self.policy().mode == Mode::DryRun;
        let Loaded { incidents: kept, unreadable } = loop {
            let seen = self.task.channels.persisted.borrow().clone();
            match self.task.store.load(&self.permit, &seen).await {
                Ok(loaded) => break loaded,
                Err(error) => self.set_error(&error, true, UNREADABLE),
            }
            self.pause(pause).await?;
            pause = (pause * 2).min(MAX_PAUSE);
        };
        self.wait_for_incidents().await?;
        if self.is_copy {
            // Nothing of a copy is ever kept, which would say that the trouble is over.
            self.clear_error();
        }
        self.set_aside(unreadable);
        let persisted = PersistedBlocks::of(&kept, self.task.policy.same_incident, self.now().wall());
        let blocked = self.blocked(persisted.filter(|_| self.unreadable.is_empty())).await?;
        if !blocked.is_empty() && !self.is_copy {
            self.begin_after_loss().await?;
        }
        self.remind_ledger(&kept).await?;
        let now = self.now();
        let snapshot = self.task.channels.ledger.fresh().await;
        let policy = self.policy();
        let written = kept.iter().filter_map(|incident| incident.status.written).max();
        self.began = (now, written.map_or(now.wall(), |written| written.min(now.wall())));
        self.changed.clear();
        self.incidents = self.incidents.restore_again(&kept, &snapshot, now);
        self.incidents
            .mark_unreadable(self.unreadable.values().filter_map(|unreadable| unreadable.app.clone()));
        if self.unreadable.values().any(|unreadable| unreadable.app.is_none()) {
            self.incidents.mark_unknown_unreadable();
        }
        (self.decisions, self.failing, self.retry) = (Vec::new(), BTreeSet::new(), None);
        self.reopened.clear();
        for incident in kept.iter().filter(|incident| incident.status.state != IncidentState::Ended) {
            self.note_reopened(&incident.name, &App::from(&incident.spec.app));
        }
        let open = kept.iter().filter(|incident| incident.status.state != IncidentState::Ended).count();
        let inherited = self.incidents.inherit(blocked, &policy, now);
        if open + inherited.len() > 0 {
            tracing::info!(incidents = open, inherited = inherited.len(), "taken over from before");
        }
        if !inherited.is_empty() && !self.is_copy {
            tracing::warn!(
                alert = "state",
                apps = inherited.len(),
                "found blocked, and nothing is kept of it: an earlier version blocked it, or what was kept is lost, and \
                 operators' releases, exemptions and pauses with it"
            );
        }
        self.decisions.extend(inherited);
        Ok(())
    }

    /// Pauses before anything is decided, if what was kept of the blocked Apps may be lost, and operators' exemptions with it.
    async fn begin_after_loss(&mut self) -> Result<(), TermEnd> {
        let mut pause = MIN_PAUSE;
        while let Err(error) = self.task.store.begin_after_loss().await {
            self.set_error(&error, true, PAUSE_NOT_PERSISTED);
            self.pause(pause).await?;
            pause = (pause * 2).min(MAX_PAUSE);
        }
        Ok(())
    }

    /// Logs once for each incident that can't be read what follows from that.
    fn set_aside(&mut self, unreadable: BTreeMap<String, Unreadable>) {
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
                    "an incident can't be read: its App is neither blocked nor released nor told, and what is closed of it \
                     stays closed, until it is mended or deleted"
                );
            } else {
                tracing::error!(
                    alert = "state",
                    incident,
                    error,
                    "an incident can't be read, nor which App it is of: nothing new is blocked until it is mended or deleted"
                );
            }
        }
        self.unreadable = unreadable;
    }

    /// Waits until it is known what operators want now: without their exemptions and their mode, exempted tenants could be
    /// blocked.
    async fn read_declarations(&mut self) -> Result<(), TermEnd> {
        let mut pause = MIN_PAUSE;
        while let Err(error) = self.task.store.read_declarations().await {
            self.set_error(&error, true, UNREADABLE);
            self.pause(pause).await?;
            pause = (pause * 2).min(MAX_PAUSE);
        }
        self.relist(false).await
    }

    /// Waits until the watch shows each incident as it was read: else a release that an operator has asked for would be
    /// done only after a block.
    async fn wait_for_incidents(&mut self) -> Result<(), TermEnd> {
        let mut kept = self.task.channels.persisted.clone();
        let unseen = self.task.store.unseen(&kept.borrow());
        let is_seen = |kept: &Arc<PersistedState>| unseen.iter().all(|(name, stamp)| stamp.is_in(kept, name));
        tokio::select! {
            seen = kept.wait_for(is_seen) => return seen.map(drop).map_err(|_| TermEnd::Over),
            end = self.is_over() => return Err(end),
            () = tokio::time::sleep(SEEN_WITHIN) => {}
        }
        // The watch hangs, or one of them was deleted meanwhile.
        self.relist(true).await
    }

    /// Waits until what operators declare is shown as it is now, and the incidents too if `with_incidents`.
    async fn relist(&mut self, with_incidents: bool) -> Result<(), TermEnd> {
        let mut patience = MAX_PAUSE;
        let mut kept = self.task.channels.persisted.clone();
        loop {
            let as_of = self.task.store.relist(with_incidents);
            // What was shown before the request may be old, even if it is complete.
            let is_heard = |kept: &Arc<PersistedState>| kept.is_complete && kept.as_of >= as_of;
            tokio::select! {
                heard = kept.wait_for(is_heard) => return heard.map(drop).map_err(|_| TermEnd::Over),
                end = self.is_over() => return Err(end),
                () = tokio::time::sleep(patience) => {}
            }
            // The list may hang as well. A slow one is given more time.
            let kinds = if with_incidents { EVERYTHING } else { DECLARED };
            self.set_error(&StateError::Unlisted(kinds, patience), true, UNREADABLE);
            patience = (patience * 2).min(MAX_LIST_TIMEOUT);
        }
    }

    /// What the objects block.
    async fn blocked(&mut self, persisted: Option<PersistedBlocks>) -> Result<Vec<InheritedBlock>, TermEnd> {
        let (tell, blocked) = oneshot::channel();
        let question =
            TakeOver { permit: self.permit.clone(), may_touch: !self.is_copy, persisted, blocked: tell };
        if self.task.channels.take_over.send(question).await.is_err() {
            return Err(TermEnd::Over);
        }
        let holds = self.permit.clone();
        tokio::select! {
            // Without an answer the output has ended, or the right to write has.
            answer = blocked => answer.map_err(|_| if holds.holds() { TermEnd::Over } else { TermEnd::Lost }),
            end = self.is_over() => Err(end),
        }
    }

    async fn remind_ledger(&mut self, kept: &[Incident]) -> Result<(), TermEnd> {
        let (done, is_done) = oneshot::channel();
        let memory = Reminder { evidence: remembered(kept), done };
        if self.task.channels.reminders.send(memory).await.is_err() || is_done.await.is_err() {
            return Err(TermEnd::Over);
        }
        Ok(())
    }
}
