//! Lists of targets that once broke a law, or that reach code which others do not.
#![allow(clippy::unwrap_used)]

#[path = "../../../fuzz/laws/replay.rs"]
mod replay;
#[path = "../../../fuzz/laws/targets.rs"]
mod targets;

#[test]
fn lists_of_targets() {
    replay::replay("targets", targets::targets);
}
