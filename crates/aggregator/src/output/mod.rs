//! Makes the plan true outside.
//!
//! Sees plans only, never the policy. Writes on difference only, tries again with backoff, and says what is wrong; a failing
//! output stops neither collecting nor serving.

pub mod cluster;
pub mod difference;
mod directory;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use procscan_core::plan::Plan;
use procscan_core::policy::{Inherited, Mode};
use procscan_core::resources::{self, Settings};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use self::cluster::ClusterOutput;
use self::difference::Difference;
pub use self::directory::{Directory, Written};
use crate::kubernetes::Refusal;
use crate::policy_task::Decided;

/// How the last attempt to make the plan true went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutputStatus {
    /// The plan has been made true at least once.
    pub has_written: bool,
    /// What stands in the way, if anything does.
    pub error: Option<String>,
    /// The objects that an operator keeps us from writing.
    pub suspended: Vec<String>,
}

/// The pause after the first failure; doubles up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_mins(1);
/// The least pause between two writes: the gateways get each one, so a burst of changes should be one.
const SETTLE: Duration = Duration::from_millis(500);
/// How many problems are told in one line.
const TOLD: usize = 3;

/// Where the objects go.
#[derive(Debug)]
pub enum Output {
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
    /// The objects that an operator keeps us from writing.
    pub suspended: Vec<String>,
    /// There is more to do, but something else has to be looked at first.
    pub is_unfinished: bool,
}

impl Outcome {
    fn note(&mut self, done: Result<bool, Refusal>) {
        match done {
            Ok(written) => self.written += usize::from(written),
            Err(refusal) => self.problems.push(refusal.text),
        }
    }

    fn error(&self) -> Option<String> {
        let more = self.problems.len().saturating_sub(TOLD);
        let mut told = self.problems.iter().take(TOLD).cloned().collect::<Vec<_>>().join("; ");
        if more > 0 {
            told = format!("{told}; and {more} more");
        }
        (!told.is_empty()).then_some(told)
    }
}

impl Output {
    /// Where, for people.
    fn place(&self) -> String {
        match self {
            Self::Directory(directory) => directory.path().display().to_string(),
            Self::Cluster(_) => "the cluster".to_owned(),
        }
    }

    /// What our objects block now.
    pub async fn blocked(&self, settings: &Settings) -> Result<Vec<Inherited>, String> {
        match self {
            Self::Directory(directory) => directory.blocked(&settings.gateway).map_err(|e| e.to_string()),
            Self::Cluster(cluster) => cluster.blocked(&settings.gateway).await.map_err(|e| e.to_string()),
        }
    }

    /// Makes the plan true, as far as `go_on` lets it.
    async fn write(
        &mut self,
        plan: &Arc<Decided>,
        settings: &Arc<Settings>,
        go_on: impl Fn() -> bool,
    ) -> Outcome {
        match self {
            Self::Directory(directory) => write_files(directory, settings, plan).await,
            Self::Cluster(cluster) => cluster.write(&plan.plan, settings, go_on).await,
        }
    }

    /// What writing `plan` would do.
    pub async fn preview(&self, plan: &Plan, settings: &Settings) -> Result<Vec<Difference>, String> {
        match self {
            Self::Directory(directory) => directory.preview(plan, settings).map_err(|e| e.to_string()),
            Self::Cluster(cluster) => cluster.preview(plan, settings).await.map_err(|e| e.to_string()),
        }
    }
}

/// Runs until nobody decides any more; the last plan is written too.
///
/// First says what is blocked already, however long it takes to find out: nothing can be decided before. Then each change of the
/// plan is written at once, and each `repair` everything is compared again: whatever somebody else has changed or removed
/// meanwhile is put right.
pub async fn run(
    mut output: Output,
    settings: Settings,
    repair: Duration,
    inherited: oneshot::Sender<Vec<Inherited>>,
    mut decided: watch::Receiver<Arc<Decided>>,
    status: watch::Sender<OutputStatus>,
) {
    let settings = Arc::new(settings);
    if !inherit(&output, &settings, inherited, &mut decided, &status).await {
        return;
    }
    let mut due = Instant::now();
    let mut backoff = MIN_BACKOFF;
    let mut is_live = true;
    let mut written: Option<Arc<Decided>> = None;
    while is_live {
        tokio::select! {
            changed = decided.changed() => is_live = changed.is_ok(),
            () = tokio::time::sleep_until(due) => {}
        }
        let now = decided.borrow_and_update().clone();
        // Before the first round is over, an empty plan means that nobody has answered yet.
        if now.rounds == 0 || now.plan.mode == Mode::DryRun {
            due = Instant::now() + repair;
            continue;
        }
        // Something else has been decided that is not in the plan.
        let is_same = written.as_ref().is_some_and(|written| written.plan == now.plan);
        if is_same && is_live && Instant::now() < due {
            continue;
        }
        let outcome = output.write(&now, &settings, || !decided.has_changed().unwrap_or(true)).await;
        let pause;
        (pause, backoff) = match (&outcome.problems[..], outcome.is_unfinished) {
            ([], true) => (Duration::ZERO, MIN_BACKOFF),
            ([], false) => (repair, MIN_BACKOFF),
            // What could be written is looked after in every round all the same.
            _ => (backoff.min(repair), (backoff * 2).min(MAX_BACKOFF)),
        };
        due = Instant::now() + pause;
        written = outcome.problems.is_empty().then_some(now);
        let has_written = outcome.written > 0;
        report(&output, outcome, &status);
        if has_written && is_live {
            tokio::time::sleep(SETTLE).await;
        }
    }
}

/// Finds out what is blocked already. Whether anybody still wants to know.
async fn inherit(
    output: &Output,
    settings: &Settings,
    inherited: oneshot::Sender<Vec<Inherited>>,
    decided: &mut watch::Receiver<Arc<Decided>>,
    status: &watch::Sender<OutputStatus>,
) -> bool {
    let mut backoff = MIN_BACKOFF;
    loop {
        match output.blocked(settings).await {
            Ok(blocked) => {
                if !blocked.is_empty() {
                    let apps = blocked.len();
                    tracing::info!(apps, "blocked before the start, and until the fleet has answered");
                }
                status.send_modify(|status| status.error = None);
                return inherited.send(blocked).is_ok();
            }
            Err(error) => {
                let place = output.place();
                if status.borrow().error.as_ref() != Some(&error) {
                    tracing::error!(
                        place,
                        error,
                        "what is blocked already is not known; nothing is decided until it is"
                    );
                }
                status.send_modify(|status| status.error = Some(error));
            }
        }
        tokio::select! {
            // Nobody decides anything before this is known, so this can only be the end.
            changed = decided.changed() => if changed.is_err() { return false },
            () = tokio::time::sleep(backoff) => backoff = (backoff * 2).min(MAX_BACKOFF),
        }
    }
}

async fn write_files(directory: &Directory, settings: &Arc<Settings>, decided: &Arc<Decided>) -> Outcome {
    let (directory, settings, decided) = (directory.clone(), settings.clone(), decided.clone());
    let write = move || {
        let existing = directory.existing(&settings.gateway)?;
        let objects = resources::render(&decided.plan, &settings, existing);
        directory.apply(&objects)
    };
    match tokio::task::spawn_blocking(write).await {
        Ok(Ok(Written { written, removed })) => Outcome { written, removed, ..Outcome::default() },
        Ok(Err(error)) => Outcome { problems: vec![error.to_string()], ..Outcome::default() },
        Err(died) => Outcome { problems: vec![died.to_string()], ..Outcome::default() },
    }
}

fn report(output: &Output, outcome: Outcome, status: &watch::Sender<OutputStatus>) {
    let place = output.place();
    let before = status.borrow().clone();
    let error = outcome.error();
    if outcome.written + outcome.removed > 0 {
        tracing::info!(place, written = outcome.written, removed = outcome.removed, "objects written");
    }
    match &error {
        Some(error) if before.error.as_ref() != Some(error) => {
            tracing::error!(place, error, "objects can't be written; trying again");
        }
        None if before.error.is_some() => tracing::info!(place, "objects can be written again"),
        _ => {}
    }
    if outcome.suspended != before.suspended {
        let annotation = cluster::SUSPEND;
        if outcome.suspended.is_empty() {
            tracing::info!(annotation, "objects are no longer suspended");
        } else {
            tracing::warn!(annotation, objects = outcome.suspended.join(", "), "suspended: left as they are");
        }
    }
    let has_written = before.has_written || error.is_none();
    let now = OutputStatus { has_written, error, suspended: outcome.suspended };
    status.send_if_modified(|status| {
        let is_news = *status != now;
        *status = now;
        is_news
    });
}
