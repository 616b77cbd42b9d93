//! One leader term: it takes over the persisted state, and then decides, persists and publishes until the term ends.

mod evaluated_inputs;
mod persisting;
mod reporting;
mod taking_over;
mod wall_time;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use procscan_core::Moment;
use procscan_core::decision::{Decision, Mode};
use procscan_core::names::App;
use procscan_core::policy::{ClusterFacts, Incidents, LookupRequests, Policy};
use procscan_core::snapshot::Snapshot;
use procscan_core::state::exemption::readable;
use tokio::time::Instant;

use self::evaluated_inputs::EvaluatedInputs;
use self::persisting::AppliedCommands;
use super::{PolicyTask, journal, pause_end};
use crate::decided::Decided;
use crate::kubernetes::WritePermit;
use crate::state::{Changed, PersistedState, StateDigest, Unreadable};

/// The pause before a failed read or write of the persisted state is tried again. It doubles up to
/// [`MAX_RETRY_PAUSE`].
const MIN_RETRY_PAUSE: Duration = Duration::from_secs(1);
const MAX_RETRY_PAUSE: Duration = Duration::from_secs(15);

/// How a term ends.
pub(super) enum TermEnd {
    /// Another replica leads, or none does.
    Lost,
    /// The ledger has ended.
    Over,
}

/// One term.
pub(super) struct LeaderTerm<'a> {
    task: &'a mut PolicyTask,
    permit: WritePermit,
    incidents: Incidents,
    /// Whether the decisions are made on a copy of the persisted state that is never persisted: in dry-run. The next
    /// mode begins with the persisted state again.
    is_copy: bool,
    /// The decisions that are reported once they are persisted.
    decisions: Vec<Decision>,
    /// The names of the incidents that could not be persisted. Decisions about them have no effect.
    failing: BTreeSet<String>,
    /// When the failed writes are tried again, and the pause after that try.
    retry: Option<(Instant, Duration)>,
    has_waited: bool,
    cleaned_up: Option<Instant>,
    /// The incidents that can't be read, by name. Nothing is decided about their Apps.
    unreadable: BTreeMap<String, Unreadable>,
    /// The incidents whose objects differ from this leader's last write.
    changed: Vec<Changed>,
    /// The names of Incidents that have an open state, and are not the current Incident of their App.
    reopened: BTreeSet<String>,
    /// The digest of the persisted state when it was last looked at.
    digest: StateDigest,
    /// Whether this replica's clock differs from the API server's.
    is_clock_wrong: bool,
    /// When the term began, with a wall time that had certainly passed by then.
    began: (Moment, Timestamp),
    /// The inputs of the last evaluation.
    evaluated: Option<EvaluatedInputs>,
    /// When time alone may change a decision.
    deadline: Option<Instant>,
    /// See [`Decided::accused_since`].
    accused_since: Arc<BTreeMap<App, Moment>>,
}

/// The result of one evaluation.
enum Step {
    /// The plan is published.
    Done,
    /// The incidents in memory differ from the persisted ones, so the persisted state has to be read again.
    Outdated,
    Lost,
}

/// The reason why the leader looks at the inputs again. `false` means that the sender is gone.
#[derive(Clone, Copy)]
enum Wakeup {
    /// A snapshot was published.
    Snapshot(bool),
    /// A round is done, with or without a change.
    RoundDone,
    /// The cluster facts have changed.
    Facts(bool),
    /// The persisted state has changed: operators, other programs or this leader have written.
    PersistedState(bool),
    /// The output has written notifications.
    Written(bool),
    /// The configuration has other rules.
    Policy,
    /// Another replica may lead.
    Leadership,
    /// A deadline has passed, or a failed write has to be tried again.
    Due,
}

/// The next step after a [`Wakeup`].
enum NextStep {
    /// There is nothing to decide.
    Wait,
    /// The inputs have to be evaluated.
    Evaluate,
    /// The persisted state has to be read again.
    ReadAgain,
}

/// Which channels still have senders.
#[expect(clippy::struct_excessive_bools, reason = "one for each channel")]
struct OpenChannels {
    snapshots: bool,
    facts: bool,
    persisted: bool,
    written: bool,
}

impl Default for OpenChannels {
    fn default() -> Self {
        Self { snapshots: true, facts: true, persisted: true, written: true }
    }
}

impl OpenChannels {
    fn note(&mut self, wakeup: Wakeup) {
        match wakeup {
            Wakeup::Snapshot(is_open) => self.snapshots = is_open,
            Wakeup::Facts(is_open) => self.facts = is_open,
            Wakeup::PersistedState(is_open) => self.persisted = is_open,
            Wakeup::Written(is_open) => self.written = is_open,
            Wakeup::RoundDone | Wakeup::Policy | Wakeup::Leadership | Wakeup::Due => {}
        }
    }
}

impl<'a> LeaderTerm<'a> {
    pub(super) fn new(task: &'a mut PolicyTask, permit: WritePermit) -> Self {
        let now = task.clock.now();
        let began = (now, now.wall());
        Self {
            task,
            permit,
            incidents: Incidents::default(),
            is_copy: false,
            decisions: Vec::new(),
            failing: BTreeSet::new(),
            retry: None,
            has_waited: false,
            cleaned_up: None,
            unreadable: BTreeMap::new(),
            changed: Vec::new(),
            reopened: BTreeSet::new(),
            digest: StateDigest::default(),
            is_clock_wrong: false,
            began,
            evaluated: None,
            deadline: None,
            accused_since: Arc::default(),
        }
    }

    pub(super) async fn run(mut self) -> TermEnd {
        let mut pause = MIN_RETRY_PAUSE;
        let mut is_mode_logged = false;
        loop {
            if let Err(end) = self.take_over().await {
                return end;
            }
            if !std::mem::replace(&mut is_mode_logged, true) {
                let configured = self.task.policy.borrow().mode;
                journal::log_mode(configured, &self.task.channels.persisted.borrow().enforcement);
            }
            let began = Instant::now();
            if let Err(end) = self.decide().await {
                return end;
            }
            // Another program may change the objects again and again. Reading everything anew each time would leave
            // no time for decisions.
            let lasted = began.elapsed();
            if let Err(end) = self.pause(pause.saturating_sub(lasted)).await {
                return end;
            }
            pause = if lasted < MAX_RETRY_PAUSE { (pause * 2).min(MAX_RETRY_PAUSE) } else { MIN_RETRY_PAUSE };
        }
    }

    /// The policy with operators' exemptions and mode.
    fn policy_now(&self, state: &PersistedState) -> Policy {
        let mut policy = self.task.policy_now(state);
        if self.unreadable.values().any(|unreadable| unreadable.app.is_none()) {
            // The incident may be of any App, and may contain a release.
            policy.unread_exemptions.push(readable(&serde_json::Value::Null));
        }
        policy
    }

    /// Waits, but not beyond the term.
    async fn pause(&mut self, pause: Duration) -> Result<(), TermEnd> {
        tokio::select! {
            () = tokio::time::sleep(pause) => Ok(()),
            end = self.wait_for_end() => Err(end),
        }
    }

    /// Waits until the term is over.
    async fn wait_for_end(&mut self) -> TermEnd {
        let channels = &mut self.task.channels;
        loop {
            tokio::select! {
                // Without a Lease the channel has no sender, and the term does not end.
                Ok(()) = channels.leadership.changed() => if !self.permit.holds() { return TermEnd::Lost },
                changed = channels.snapshots.changed() => if changed.is_err() { return TermEnd::Over },
            }
        }
    }

    /// Decides on each change, until the term is over, or the persisted state has to be read again.
    ///
    /// Renewed evidence and clearing clocks are no changes: they are evaluated with the next change, and after
    /// [`evaluated_inputs::QUIET_ROUNDS`] rounds at the latest.
    async fn decide(&mut self) -> Result<(), TermEnd> {
        let mut open = OpenChannels::default();
        self.task.channels.snapshots.mark_changed();
        self.evaluated = None;
        let mut rested = Instant::now();
        while open.snapshots {
            let wakeup = self.wakeup(&open, rested).await;
            open.note(wakeup);
            match self.judge(wakeup).await? {
                NextStep::Wait => continue,
                NextStep::ReadAgain => return Ok(()),
                NextStep::Evaluate => {}
            }
            if !self.permit.holds() {
                return Err(TermEnd::Lost);
            }
            if !open.snapshots {
                self.incidents.persist_clocks();
            }
            let started = std::time::Instant::now();
            let step = self.step().await;
            rested = pause_end(started.elapsed());
            match step {
                Step::Done => {}
                Step::Lost => return Err(TermEnd::Lost),
                Step::Outdated => return Ok(()),
            }
        }
        Err(TermEnd::Over)
    }

    /// Waits for the next reason to look at the inputs. No snapshot is taken before `rested`.
    async fn wakeup(&mut self, open: &OpenChannels, rested: Instant) -> Wakeup {
        let retry = self.retry.map(|(at, _)| at);
        let look = self.task.store.next_look();
        let due = retry.into_iter().chain(self.deadline).chain(look).min();
        let PolicyTask { channels, policy, .. } = &mut *self.task;
        tokio::select! {
            changed = async {
                tokio::time::sleep_until(rested).await;
                channels.snapshots.changed().await
            } => Wakeup::Snapshot(changed.is_ok()),
            Ok(()) = channels.progress.changed() => Wakeup::RoundDone,
            changed = channels.facts.changed(), if open.facts => Wakeup::Facts(changed.is_ok()),
            changed = channels.persisted.changed(), if open.persisted => Wakeup::PersistedState(changed.is_ok()),
            changed = channels.written.changed(), if open.written => Wakeup::Written(changed.is_ok()),
            Ok(()) = policy.changed() => Wakeup::Policy,
            Ok(()) = channels.leadership.changed() => Wakeup::Leadership,
            () = async { tokio::time::sleep_until(due.unwrap_or_else(Instant::now)).await }, if due.is_some() => Wakeup::Due,
        }
    }

    /// Whether the inputs have to be evaluated after `wakeup`.
    async fn judge(&mut self, wakeup: Wakeup) -> Result<NextStep, TermEnd> {
        match wakeup {
            Wakeup::Snapshot(is_open) => Ok(self.judge_snapshot(is_open)),
            Wakeup::RoundDone => {
                self.ask_for_snapshot_after_round();
                Ok(NextStep::Wait)
            }
            Wakeup::PersistedState(_) => Ok(self.judge_persisted_state()),
            Wakeup::Written(_) => self.judge_written().await,
            Wakeup::Facts(_) | Wakeup::Policy | Wakeup::Leadership | Wakeup::Due => Ok(NextStep::Evaluate),
        }
    }

    fn judge_snapshot(&mut self, is_open: bool) -> NextStep {
        let now = EvaluatedInputs::of_published(&self.task.channels.snapshots.borrow_and_update());
        let is_waiting = self.is_waiting();
        let is_evaluated = self.evaluated.is_some_and(|before| before.makes_needless(now, is_waiting));
        if is_open && is_evaluated { NextStep::Wait } else { NextStep::Evaluate }
    }

    /// Asks for a snapshot if the round that has ended has to be evaluated. Without a change the ledger publishes none.
    fn ask_for_snapshot_after_round(&mut self) {
        let rounds = self.task.channels.progress.borrow_and_update().rounds;
        let at = self.task.clock.now();
        if let Some(before) = self.evaluated
            && !before.makes_needless(EvaluatedInputs { rounds, at, ..before }, self.is_waiting())
        {
            self.task.channels.ledger.ask();
        }
    }

    fn judge_persisted_state(&mut self) -> NextStep {
        let state = self.task.channels.persisted.borrow_and_update().clone();
        // The watch reports no error for an incident without a status. It looks like an incident of which nothing was
        // decided yet.
        let has_no_status = |name: &str| state.incidents.get(name).is_some_and(|it| it.summary().is_none());
        let is_unread = |name: &String| state.unread.incidents.contains_key(&**name) || has_no_status(name);
        if !self.unreadable.keys().all(is_unread) {
            // An operator has mended or deleted one of them.
            return NextStep::ReadAgain;
        }
        let digest = state.digest();
        if !self.is_copy {
            self.changed = self.task.store.changed(&state);
        }
        drop(state);
        // In a storm, the writes of this leader come back thousands of times. They are no change.
        let deleted = digest.lacks(&self.digest);
        let requests_the_same = digest.requests_the_same(&self.digest);
        self.digest = digest;
        if requests_the_same && deleted.is_empty() && self.changed.is_empty() {
            return NextStep::Wait;
        }
        // Another program has deleted these objects. The incidents still exist, so they are written again.
        self.incidents.mark_deleted(|name| deleted.contains(name));
        NextStep::Evaluate
    }

    async fn judge_written(&mut self) -> Result<NextStep, TermEnd> {
        if self.evaluated.is_none() || self.note_written() {
            return Ok(NextStep::Evaluate);
        }
        match self.persist_written().await {
            Step::Done => Ok(NextStep::Wait),
            Step::Lost => Err(TermEnd::Lost),
            Step::Outdated => Ok(NextStep::ReadAgain),
        }
    }

    /// Whether something waits for the end of a round, or for the answers of all nodes.
    fn is_waiting(&self) -> bool {
        self.has_waited || self.incidents.waits_for_rounds()
    }

    fn policy(&self) -> Policy {
        let state = self.task.channels.persisted.borrow().clone();
        self.policy_now(&state)
    }

    /// Evaluates the inputs once: applies operator commands, decides, persists, and publishes the plan.
    async fn step(&mut self) -> Step {
        let snapshot = self.latest_snapshot().await;
        let now = self.now();
        self.compare_clocks(now);
        // The change stays unseen, so that `decide` compares it with the state before.
        let state = self.task.channels.persisted.borrow().clone();
        let facts = self.facts_of_this_term();
        let policy = self.policy_now(&state);
        let is_copy = policy.mode == Mode::DryRun;
        if self.is_copy && !is_copy {
            // The decisions of dry-run, on its copy, had no effect.
            return Step::Outdated;
        }
        // From the first evaluation in dry-run on, nothing is persisted.
        self.is_copy |= is_copy;
        self.note_written();
        if !self.is_copy {
            self.mark_differing(&state);
        }
        let AppliedCommands { done, mut history } = self.apply_commands(&state, &policy);
        if !is_copy {
            self.end_again(&state, &mut history);
        }
        // The state that is persisted next takes its place, and both together would take much memory.
        drop(state);
        let decided = self.incidents.decide(&snapshot, &policy, &facts, now);
        self.evaluated = Some(EvaluatedInputs::of(&snapshot));
        self.decisions.extend(decided.decisions);
        // Raised before the decisions are persisted, because a later leader takes the alert of a persisted hold for
        // raised.
        self.raise_alerts(&decided.alerts);
        let is_answered = self.request_lookups(&snapshot, &policy, &facts);
        let rounds = snapshot.rounds;
        // The next snapshot may be made while the decisions are persisted, and both together would take much memory.
        drop(snapshot);
        if !is_copy && let Err(error) = self.persist(history).await {
            if error.is_lost() {
                return Step::Lost;
            }
            tracing::warn!(%error, "the persisted state is read again");
            return Step::Outdated;
        }
        self.note_accusations(&policy);
        self.report_decisions();
        self.set_deadline(&policy, now);
        let plan = self.incidents.plan(&policy, &facts, now);
        let accused_since = self.accused_since.clone();
        let (held, withheld) = (self.incidents.held(&policy), self.incidents.withheld());
        let (disputes, unverified) = (decided.disputes, decided.unverified);
        let permit = Some(self.permit.clone());
        self.publish(Decided {
            plan,
            held,
            withheld,
            disputes,
            unverified,
            is_answered,
            accused_since,
            rounds,
            permit,
        });
        if is_copy { Step::Done } else { self.clean_up_done(&done).await }
    }

    async fn latest_snapshot(&mut self) -> Arc<Snapshot> {
        let channels = &mut self.task.channels;
        let published = channels.snapshots.borrow_and_update().snapshot.clone();
        match published {
            Some(snapshot) => snapshot,
            // The ledger has dropped it, because no reader has asked for it.
            None => channels.ledger.fresh().await,
        }
    }

    /// The cluster facts; none if they answer the requests of an earlier term.
    fn facts_of_this_term(&mut self) -> Arc<ClusterFacts> {
        let channels = &mut self.task.channels;
        let facts = channels.facts.borrow_and_update().clone();
        let is_of_this_term = facts.epoch == channels.lookups.borrow().epoch;
        if is_of_this_term { facts } else { Arc::default() }
    }

    /// Sets when time alone may change a decision, or the clocks have to be persisted.
    fn set_deadline(&mut self, policy: &Policy, now: Moment) {
        let decision = self.incidents.next_deadline(policy, now);
        // A copy is never persisted, and neither are its clocks.
        let clocks = self.incidents.clocks_due(now).filter(|_| !self.is_copy);
        self.deadline = decision.into_iter().chain(clocks).min().map(|at| Instant::now() + at.since(now));
    }

    /// Removes the commands that are done, and the incidents whose retention is over. A failure is tried again with
    /// the next evaluation.
    async fn clean_up_done(&mut self, done: &BTreeSet<String>) -> Step {
        let state = self.task.channels.persisted.borrow().clone();
        match self.clean_up(&state, done).await {
            Err(error) if error.is_lost() => return Step::Lost,
            Err(error) => {
                tracing::warn!(%error, "commands that are done, or incidents whose retention is over, can't be removed yet");
            }
            Ok(()) => {}
        }
        Step::Done
    }

    /// Publishes the look-up requests. Returns whether the cluster facts answer all of them; always `false` without a
    /// cluster.
    fn request_lookups(&mut self, snapshot: &Snapshot, policy: &Policy, facts: &ClusterFacts) -> bool {
        let lookups = &self.task.channels.lookups;
        if lookups.is_closed() {
            return false;
        }
        let epoch = lookups.borrow().epoch;
        let requests = LookupRequests { epoch, ..self.incidents.lookup_requests(snapshot, policy) };
        let is_answered = requests.are_answered_by(facts);
        lookups.send_if_modified(|before| {
            let is_changed = **before != requests;
            if is_changed {
                *before = Arc::new(requests);
            }
            is_changed
        });
        is_answered
    }
}
