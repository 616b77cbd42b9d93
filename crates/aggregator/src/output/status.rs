//! How the output goes: what is shown of it, and what is logged.

use tokio::sync::watch;

use super::cluster;
use super::{Outcome, Output};

/// How the last attempt to make the plan true went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutputStatus {
    /// The plan has been made true at least once.
    pub has_written: bool,
    /// What stands in the way, if anything does.
    pub error: Option<String>,
    /// The messages that are set aside, if any; everything else is written.
    pub(crate) deferred: Option<String>,
    /// Which Services of blocked Apps stay open because the plain list has no room for them.
    pub(crate) left_open: Option<String>,
    /// What is in the output directory that no program can read objects from; everything else is written.
    pub(crate) junk: Option<String>,
    /// The objects that an operator keeps us from writing.
    pub(crate) suspended: Vec<String>,
}

/// Forgets the errors of a replica that does not write any more: they do not concern it now.
pub(super) fn forget(status: &watch::Sender<OutputStatus>) {
    status.send_if_modified(|status| {
        let now = OutputStatus { has_written: status.has_written, ..OutputStatus::default() };
        let has_changed = *status != now;
        *status = now;
        has_changed
    });
}

/// Notes what one pass has come to, and logs each state when it begins and when it ends.
pub(super) fn report(output: &Output, outcome: Outcome, status: &watch::Sender<OutputStatus>) {
    let place = output.place();
    let before = status.borrow().clone();
    let error = outcome.error();
    if outcome.written + outcome.removed > 0 {
        tracing::info!(place, written = outcome.written, removed = outcome.removed, "objects written");
    }
    match &error {
        Some(error) if before.error.as_ref() != Some(error) => {
            tracing::error!(alert = "output", place, error, "objects can't be written; trying again");
        }
        None if before.error.is_some() => tracing::info!(place, "objects can be written again"),
        _ => {}
    }
    let aside = outcome.deferred.text();
    match &aside {
        // Logged once, however many there are: tenants can choose their number and their faults.
        Some(messages) if before.deferred.is_none() => {
            tracing::warn!(place, messages, "messages can't be written; everything else goes on");
        }
        None if before.deferred.is_some() => tracing::info!(place, "all messages are written again"),
        _ => {}
    }
    let left_open = match outcome.left_open {
        Some(left_open) => (!left_open.is_empty()).then(|| left_open.join("; ")),
        None => before.left_open.clone(),
    };
    match &left_open {
        Some(services) if before.left_open.is_none() => {
            tracing::error!(alert = "gateway", place, services, "blocked Apps are not closed on every route");
        }
        None if before.left_open.is_some() => {
            tracing::info!(place, "blocked Apps are closed on every route again");
        }
        _ => {}
    }
    log_junk(&place, before.junk.as_ref(), outcome.junk.as_ref());
    if outcome.suspended != before.suspended {
        let annotation = cluster::SUSPEND;
        if outcome.suspended.is_empty() {
            tracing::info!(annotation, "objects are no longer suspended");
        } else {
            tracing::warn!(annotation, objects = outcome.suspended.join(", "), "suspended: left as they are");
        }
    }
    let has_written = before.has_written || error.is_none();
    let (junk, suspended) = (outcome.junk, outcome.suspended);
    let now = OutputStatus { has_written, error, deferred: aside, left_open, junk, suspended };
    status.send_if_modified(|status| {
        let has_changed = *status != now;
        *status = now;
        has_changed
    });
}

fn log_junk(place: &str, before: Option<&String>, now: Option<&String>) {
    match now {
        Some(files) if before != Some(files) => {
            tracing::warn!(
                place,
                files,
                "files in the output directory are no regular files, or can't be read; all other files are written"
            );
        }
        None if before.is_some() => {
            tracing::info!(place, "all files in the output directory can be read again");
        }
        _ => {}
    }
}
