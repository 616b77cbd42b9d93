//! One live line on a terminal: rounds, answering nodes, violations and blocks.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _, stderr};
use std::time::Duration;

use procscan_core::snapshot::{Snapshot, State};

use crate::telemetry::CLEAR_LINE;
use crate::views::Views;

/// How often the line is drawn.
const INTERVAL: Duration = Duration::from_millis(250);

/// Whether there is a terminal to draw on.
pub(crate) fn is_wanted() -> bool {
    stderr().is_terminal()
}

/// Draws until dropped.
pub(crate) async fn draw(views: Views) {
    let mut timer = tokio::time::interval(INTERVAL);
    loop {
        timer.tick().await;
        let snapshot = views.snapshots.fresh().await;
        // A terminal that is gone is no reason to stop the service.
        let _ = write!(stderr().lock(), "{CLEAR_LINE}{}", line(&views, &snapshot));
        let _ = stderr().flush();
    }
}

fn line(views: &Views, snapshot: &Snapshot) -> String {
    let decided = views.decided.borrow();
    let coverage = snapshot.coverage;
    let mut line = format!(
        "round {} · nodes {}/{} answering · violations {} active, {} unconfirmed · blocked {}",
        snapshot.rounds,
        coverage.fresh,
        coverage.expected(),
        snapshot.count(State::Active),
        snapshot.count(State::Unconfirmed),
        decided.plan.blocks.len(),
    );
    if !decided.held.is_empty() {
        let _ = write!(line, " · held {}", decided.held.len());
    }
    line
}
