//! Agents' answers that once broke a law, or that reach code which others do not.

#[path = "../../../../fuzz/laws/replay.rs"]
mod replay;
#[path = "../../../../fuzz/laws/report.rs"]
mod report;

#[test]
fn answers_of_agents() {
    replay::replay("report", report::report);
}
