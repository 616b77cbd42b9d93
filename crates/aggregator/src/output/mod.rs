//! Makes the plan true outside.
//!
//! Sees plans only, never the policy. Writes on difference only, tries again with backoff, and says what is wrong; a failing
//! output stops neither collecting nor serving.

mod directory;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use procscan_core::policy::Mode;
use procscan_core::resources::{self, Settings};
use tokio::sync::watch;

pub use self::directory::{Directory, Written};

use crate::policy_task::Decided;

/// How the last attempt to make the plan true went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutputStatus {
    /// The plan has been made true at least once.
    pub has_written: bool,
    /// What stands in the way, if anything does.
    pub error: Option<String>,
}

/// The pause after the first failure; doubles up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_mins(1);

/// Runs until nobody decides any more; the last plan is written too.
///
/// Each change of the plan is written at once, and each `repair` everything is compared again: whatever somebody else has
/// changed or removed meanwhile is put right.
pub async fn run(
    directory: Directory,
    settings: Settings,
    repair: Duration,
    mut decided: watch::Receiver<Arc<Decided>>,
    status: watch::Sender<OutputStatus>,
) {
    let directory = Arc::new(directory);
    let settings = Arc::new(settings);
    let mut pause = repair;
    let mut backoff = MIN_BACKOFF;
    let mut is_live = true;
    while is_live {
        tokio::select! {
            changed = decided.changed() => is_live = changed.is_ok(),
            () = tokio::time::sleep(pause) => {}
        }
        let now = decided.borrow_and_update().clone();
        // Before the first round is over, an empty plan means that nobody has answered yet.
        if now.rounds == 0 || now.plan.mode == Mode::DryRun {
            continue;
        }
        let result = write(&directory, &settings, now).await;
        (pause, backoff) = match result {
            Ok(_) => (repair, MIN_BACKOFF),
            Err(_) => (backoff, (backoff * 2).min(MAX_BACKOFF)),
        };
        report(&directory, result, &status);
    }
}

async fn write(
    directory: &Arc<Directory>,
    settings: &Arc<Settings>,
    decided: Arc<Decided>,
) -> Result<Written, String> {
    let (directory, settings) = (directory.clone(), settings.clone());
    let write = move || {
        let existing = directory.existing(&settings.gateway)?;
        let objects = resources::render(&decided.plan, &settings, existing);
        directory.apply(&objects)
    };
    match tokio::task::spawn_blocking(write).await {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(died) => Err(died.to_string()),
    }
}

fn report(directory: &Directory, result: Result<Written, String>, status: &watch::Sender<OutputStatus>) {
    let path = Path::display(directory.path());
    let before = status.borrow().error.clone();
    match result {
        Ok(written) => {
            if written != Written::default() {
                tracing::info!(directory = %path, written = written.written, removed = written.removed, "objects written");
            }
            if before.is_some() {
                tracing::info!(directory = %path, "objects can be written again");
            }
            status.send_replace(OutputStatus { has_written: true, error: None });
        }
        Err(error) => {
            if before.as_ref() != Some(&error) {
                tracing::error!(directory = %path, error, "objects can't be written; trying again");
            }
            status.send_modify(|status| status.error = Some(error));
        }
    }
}
