//! Makes the plan true outside.
//!
//! The output gets plans, and decides nothing. It writes differences only, tries again with backoff, and reports what is wrong.
//! A failing output stops neither collecting nor serving.

#[cfg(test)]
#[path = "../../tests/common/app_policies.rs"]
#[allow(unreachable_pub, reason = "the scenarios use the same file")]
mod app_policies;
pub mod cluster;
pub(crate) mod difference;
mod directory;
mod persisted_blocks;
mod status;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use procscan_core::decision::Mode;
use procscan_core::names::App;
use procscan_core::plan::{Notice, NoticePhase, Plan};
use procscan_core::policy::InheritedBlock;
use procscan_core::resources::{self, Settings};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use self::cluster::ClusterOutput;
use self::difference::Difference;
pub(crate) use self::directory::{Directory, DirectoryError, Pass, Written};
pub use self::status::OutputStatus;
use self::status::{forget, report};
use crate::clock::Clock;
use crate::counters::Counters;
use crate::decided::{Decided, PersistedBlocks, TakeOver, WrittenNotifications};
use crate::kubernetes::WritePermit;
use crate::kubernetes::{Refusal, RefusalKind};

/// The pause after the first failure; doubles up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_mins(1);
/// The least pause between two writes: the gateways get each one, so a burst of changes should be one.
const MIN_WRITE_PAUSE: Duration = Duration::from_millis(500);
/// How long messages may still be written as files at the end. What is not written is written after the next start.
const FINAL_WRITE_TIME: Duration = Duration::from_millis(150);
/// How many problems one line of the log names.
const MAX_PROBLEMS_SHOWN: usize = 3;

/// Where the objects go.
#[derive(Debug)]
pub(crate) enum Output {
    /// YAML files.
    Directory(Directory),
    /// The cluster itself.
    Cluster(Box<ClusterOutput>),
}

/// What one pass has come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Objects written.
    pub written: usize,
    /// Objects removed.
    pub removed: usize,
    /// What could not be done, and why.
    pub problems: Vec<String>,
    /// The objects that an operator has suspended.
    pub(crate) suspended: Vec<String>,
    /// The messages that could not be written; they are tried again while everything else goes on.
    pub(crate) deferred: DeferredSummary,
    /// Which parts of the plan can't be blocked, and why; `None` if this pass did not find out.
    pub(crate) left_open: Option<Vec<String>>,
    /// There is more to do, but something else has to be looked at first, or nothing could be done at all.
    pub(crate) is_unfinished: bool,
    /// The files that could not be written, by name.
    pub(crate) failed: BTreeSet<String>,
    /// What is in the directory that no program can read objects from.
    pub(crate) junk: Option<String>,
}

/// Messages that could not be written for reasons of their own: neither the plan nor the API server is at fault.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct DeferredSummary {
    /// The number of messages.
    pub(crate) count: usize,
    /// The reasons of the first few.
    pub(crate) why: Vec<String>,
    /// When one of them is tried again.
    pub(crate) next: Option<Instant>,
}

impl DeferredSummary {
    /// The text for the status.
    fn text(&self) -> Option<String> {
        (self.count > 0).then(|| {
            format!("set aside and tried again later: {} messages: {}", self.count, self.why.join("; "))
        })
    }
}

impl Outcome {
    fn note(&mut self, done: Result<bool, Refusal>) {
        match done {
            Ok(written) => self.written += usize::from(written),
            Err(refusal) => self.problems.push(refusal.text),
        }
    }

    fn error(&self) -> Option<String> {
        let more = self.problems.len().saturating_sub(MAX_PROBLEMS_SHOWN);
        let mut text = self.problems.iter().take(MAX_PROBLEMS_SHOWN).cloned().collect::<Vec<_>>().join("; ");
        if more > 0 {
            text = format!("{text}; and {more} more");
        }
        (!text.is_empty()).then_some(text)
    }
}

/// Observes how long it took from the evidence that led to a block to the write of the block.
#[derive(Debug)]
pub(crate) struct BlockDelays {
    clock: Clock,
    counters: Counters,
    /// The blocks of this term that were observed.
    observed: BTreeSet<App>,
}

impl BlockDelays {
    pub(crate) fn new(clock: Clock, counters: Counters) -> Self {
        Self { clock, counters, observed: BTreeSet::new() }
    }

    /// Every block of `decided` is written.
    fn note_written(&mut self, decided: &Decided) {
        let (since, now) = (&decided.accused_since, self.clock.now());
        self.observed.retain(|app| since.contains_key(app));
        for block in &decided.plan.blocks {
            if let Some(since) = since.get(&block.app)
                && self.observed.insert(block.app.clone())
            {
                self.counters.time_to_block.observe(now.since(*since).as_secs_f64());
            }
        }
    }
}

impl Output {
    /// The objects look different from now on.
    fn forget_drafts(&self) {
        match self {
            Self::Directory(directory) => directory.forget_drafts(),
            // Each pass compares the objects as they are rendered.
            Self::Cluster(_) => {}
        }
    }

    /// Where, for people.
    fn place(&self) -> String {
        match self {
            Self::Directory(directory) => directory.path().display().to_string(),
            Self::Cluster(_) => "the cluster".to_owned(),
        }
    }

    /// What our objects block now. A damaged file is an error, unless the persisted Incidents say what it blocked: see
    /// [`Directory::blocked`].
    pub(crate) async fn blocked(
        &self,
        settings: &Settings,
        persisted: Option<&PersistedBlocks>,
    ) -> Result<Vec<InheritedBlock>, String> {
        match self {
            Self::Directory(directory) => directory.blocked(settings, persisted).map_err(|e| e.to_string()),
            Self::Cluster(cluster) => cluster.blocked(settings).await.map_err(|e| e.to_string()),
        }
    }

    /// Marks our objects for the holder of `permit`, and returns what they block. The API server then refuses late writes of
    /// earlier leaders. Without `may_touch` the output writes nothing. A damaged file is an error, unless the persisted
    /// Incidents say what it blocked: see [`Directory::blocked`].
    async fn take_over(
        &mut self,
        settings: &Settings,
        permit: &WritePermit,
        may_touch: bool,
        persisted: Option<&PersistedBlocks>,
    ) -> Result<Vec<InheritedBlock>, TakeOverError> {
        match self {
            Self::Directory(directory) => {
                directory.identify().await.map_err(TakeOverError::Unknown)?;
                // Only the process that may write clears it away.
                if may_touch && let Err(error) = directory.tidy(settings.kinds) {
                    tracing::warn!(%error, "temporary files stay in the output directory");
                }
                directory.blocked(settings, persisted).map_err(|e| TakeOverError::Unknown(e.to_string()))
            }
            Self::Cluster(cluster) => match cluster.take_over(settings, permit, may_touch).await {
                Ok(blocked) => Ok(blocked),
                Err(refusal) if refusal.kind == RefusalKind::NotLeading => Err(TakeOverError::Lost),
                Err(refusal) => Err(TakeOverError::Unknown(refusal.text)),
            },
        }
    }

    /// Makes the objects say what the plan says. In a cluster it stops when another plan is `decided`; files of messages that are
    /// left at the end of the process are not written. If the plan `was_true`, only what other programs have changed has to be
    /// written. If the objects were compared a moment ago (`is_seen`), the difference to the plan before is enough.
    async fn write(
        &mut self,
        plan: &Arc<Decided>,
        was_true: bool,
        is_seen: bool,
        settings: &Arc<Settings>,
        permit: &WritePermit,
        decided: &watch::Receiver<Arc<Decided>>,
    ) -> Outcome {
        match self {
            Self::Directory(directory) => {
                let go_on = until_the_end(decided.clone());
                write_files(directory, settings, plan, (was_true, is_seen), go_on).await
            }
            Self::Cluster(cluster) => {
                let go_on = || !decided.has_changed().unwrap_or(true);
                cluster.write(&plan.plan, settings, permit, go_on).await
            }
        }
    }

    /// What writing `plan` would do.
    pub(crate) async fn preview(&self, plan: &Plan, settings: &Settings) -> Result<Vec<Difference>, String> {
        match self {
            Self::Directory(directory) => directory.preview(plan, settings).map_err(|e| e.to_string()),
            Self::Cluster(cluster) => cluster.preview(plan, settings).await.map_err(|e| e.to_string()),
        }
    }
}

/// Why what is blocked is not known.
enum TakeOverError {
    /// The leader's term has ended.
    Lost,
    /// This stands in the way.
    Unknown(String),
}

/// What the output reads and writes.
#[derive(Debug)]
pub(crate) struct Channels {
    /// What a new leader asks.
    pub(crate) take_over: mpsc::Receiver<TakeOver>,
    /// What should be true.
    pub(crate) decided: watch::Receiver<Arc<Decided>>,
    /// The notices that have been written.
    pub(crate) delivered: watch::Sender<Arc<WrittenNotifications>>,
    /// How it goes.
    pub(crate) status: watch::Sender<OutputStatus>,
    /// What the objects look like, which may change while the task runs.
    pub(crate) settings: watch::Receiver<Arc<Settings>>,
    /// How long blocks have taken.
    pub(crate) delays: BlockDelays,
}

/// Writes what the policy task decides. Returns when the policy task has ended and the last plan is written.
///
/// At the beginning of a term, the policy task asks what is blocked already, and decides nothing before this task answers. This
/// task answers when it has found out, however long that takes. Then it writes each change of the plan at once. After each
/// `repair` it compares all objects with the plan, and puts right what other programs have changed or removed. It does not write
/// what another replica has decided.
pub(crate) async fn run(mut output: Output, repair: Duration, channels: Channels) {
    let Channels { mut take_over, mut decided, delivered, status, settings: mut configured, mut delays } =
        channels;
    let mut settings = configured.borrow_and_update().clone();
    let mut due = Instant::now();
    let mut backoff = MIN_BACKOFF;
    let (mut is_live, mut is_asked) = (true, true);
    let mut written: Option<Arc<Decided>> = None;
    let mut seen: Option<Instant> = None;
    while is_live {
        tokio::select! {
            question = take_over.recv(), if is_asked => match question {
                Some(question) => {
                    written = None;
                    answer(&mut output, &settings, question, &mut decided, &status).await;
                    continue;
                }
                None => is_asked = false,
            },
            changed = decided.changed() => is_live = changed.is_ok(),
            Ok(()) = configured.changed() => {
                settings = configured.borrow_and_update().clone();
                output.forget_drafts();
                // All objects are compared with the plan.
                (written, due) = (None, Instant::now());
            }
            () = tokio::time::sleep_until(due) => {}
        }
        let now = decided.borrow_and_update().clone();
        let permit = now.permit.clone().filter(WritePermit::holds);
        // Before the first round is over, an empty plan means that no node has answered yet.
        let (Some(permit), false, false) = (permit, now.rounds == 0, now.plan.mode == Mode::DryRun) else {
            forget(&status);
            due = Instant::now() + repair;
            continue;
        };
        // Something else has been decided that is not in the plan.
        let is_same =
            written.as_ref().is_some_and(|written| Arc::ptr_eq(written, &now) || written.plan == now.plan);
        // At the end, only what has been decided since is worth the time.
        if is_same && (!is_live || Instant::now() < due) {
            continue;
        }
        let is_seen = written.is_some() && seen.is_some_and(|seen| seen.elapsed() < repair);
        if is_same || !is_seen {
            seen = Some(Instant::now());
        }
        let outcome = output.write(&now, is_same, is_seen, &settings, &permit, &decided).await;
        if !permit.holds() {
            // What could not be written any more is another's to write.
            written = None;
            forget(&status);
            continue;
        }
        let pause;
        (pause, backoff) = next_pass(&outcome, repair, backoff);
        due = Instant::now() + pause;
        announce(&output, &now, &outcome, &settings, &delivered);
        if outcome.problems.is_empty() {
            delays.note_written(&now);
        }
        written = outcome.problems.is_empty().then_some(now);
        let has_written = outcome.written > 0;
        report(&output, outcome, &status);
        if has_written && is_live && decided.has_changed().is_ok() {
            tokio::time::sleep(MIN_WRITE_PAUSE).await;
        }
    }
}

/// The pause before the next pass, and the pause after a failure of that one.
fn next_pass(outcome: &Outcome, repair: Duration, backoff: Duration) -> (Duration, Duration) {
    if outcome.problems.is_empty() {
        // A pass is unfinished only because another decision waits, and that is written at once.
        (outcome.deferred.next.map_or(repair, |next| repair.min(next - Instant::now())), MIN_BACKOFF)
    } else {
        // Objects that could be written are still checked in every round.
        (backoff.min(repair), (backoff * 2).min(MAX_BACKOFF))
    }
}

/// Publishes which notices have been written.
fn announce(
    output: &Output,
    decided: &Decided,
    outcome: &Outcome,
    settings: &Settings,
    delivered: &watch::Sender<Arc<WrittenNotifications>>,
) {
    let is_written = |notice: &&Arc<Notice>| match output {
        Output::Directory(_) => {
            let mut files = directory::files_of(&notice.app, settings);
            !outcome.is_unfinished && files.any(|file| !outcome.failed.contains(&file))
        }
        Output::Cluster(cluster) => cluster.has_sent(notice, settings),
    };
    let is_new = |notice: &&Arc<Notice>| !notice.inherited && notice.phase != NoticePhase::Recovered;
    let now: WrittenNotifications = decided
        .plan
        .notices
        .iter()
        .filter(is_new)
        .filter(is_written)
        .map(|notice| (notice.app.clone(), notice.sent_at.into()))
        .collect();
    delivered.send_if_modified(|before| {
        let has_changed = **before != now;
        if has_changed {
            *before = Arc::new(now);
        }
        has_changed
    });
}

/// Finds out what is blocked already, however long it takes, unless the right to write passes on.
async fn answer(
    output: &mut Output,
    settings: &Settings,
    question: TakeOver,
    decided: &mut watch::Receiver<Arc<Decided>>,
    status: &watch::Sender<OutputStatus>,
) {
    let TakeOver { permit, may_touch, persisted, blocked: answer } = question;
    let mut backoff = MIN_BACKOFF;
    while permit.holds() && !answer.is_closed() {
        match output.take_over(settings, &permit, may_touch, persisted.as_ref()).await {
            Ok(blocked) => {
                status.send_modify(|status| status.error = None);
                // The policy task may have ended meanwhile.
                let _ = answer.send(blocked);
                return;
            }
            Err(TakeOverError::Lost) => return,
            Err(TakeOverError::Unknown(error)) => {
                let place = output.place();
                if status.borrow().error.as_ref() != Some(&error) {
                    tracing::error!(
                        alert = "output",
                        place,
                        error,
                        "what is blocked already is not known; nothing is decided until it is"
                    );
                }
                status.send_modify(|status| status.error = Some(error));
            }
        }
        tokio::select! {
            // The policy task decides nothing before it has this answer, so it has ended.
            changed = decided.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(backoff) => backoff = (backoff * 2).min(MAX_BACKOFF),
        }
    }
}

/// Whether there is time to write messages: as long as plans may follow, and for [`FINAL_WRITE_TIME`] after their end was noticed.
fn until_the_end(decided: watch::Receiver<Arc<Decided>>) -> impl FnMut() -> bool + Send + 'static {
    let mut ended: Option<std::time::Instant> = None;
    move || {
        decided.has_changed().is_ok()
            || ended.get_or_insert_with(std::time::Instant::now).elapsed() < FINAL_WRITE_TIME
    }
}

async fn write_files(
    directory: &Directory,
    settings: &Arc<Settings>,
    decided: &Arc<Decided>,
    (was_true, is_seen): (bool, bool),
    go_on: impl FnMut() -> bool + Send + 'static,
) -> Outcome {
    let (directory, settings, decided) = (directory.clone(), settings.clone(), decided.clone());
    let looked_at = directory.clone();
    let write = move || {
        if was_true && !directory.has_changed()? {
            return Ok((Pass { is_finished: true, ..Pass::default() }, None));
        }
        if was_true || !is_seen {
            directory.refresh()?;
        }
        let existing = directory.existing(&settings)?;
        let left_open = resources::left_open(&decided.plan, &settings, &existing);
        let drafts = resources::drafts(&decided.plan, &settings, existing);
        let mut pass = directory.apply_while(drafts, go_on)?;
        directory.remove_cut(&settings, &mut pass)?;
        Ok((pass, Some(left_open)))
    };
    let undone =
        |problem: String| Outcome { problems: vec![problem], is_unfinished: true, ..Outcome::default() };
    let outcome = match tokio::task::spawn_blocking(write).await {
        Ok(Ok((Pass { written: Written { written, removed }, failed, is_finished }, left_open))) => Outcome {
            written,
            removed,
            problems: failed.iter().map(|(_, error)| error.to_string()).collect(),
            failed: failed.into_iter().map(|(name, _)| name).collect(),
            left_open,
            is_unfinished: !is_finished,
            ..Outcome::default()
        },
        Ok(Err::<_, DirectoryError>(error)) => undone(error.to_string()),
        Err(died) => undone(died.to_string()),
    };
    Outcome { junk: looked_at.junk(), ..outcome }
}
