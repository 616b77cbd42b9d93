//! Feeds the inputs of `fuzz/corpus`.
#![cfg(test)]

use std::path::Path;

fn replay(target: &str, law: fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let mut inputs: Vec<_> =
        std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    inputs.sort();
    assert!(!inputs.is_empty(), "{} is empty", directory.display());
    for path in inputs {
        let input = std::fs::read(&path).unwrap();
        // Says which one it was: a panic tells of the law only.
        let done = std::panic::catch_unwind(|| law(&input));
        assert!(done.is_ok(), "{}", path.display());
    }
}

#[test]
fn answers_of_agents() {
    replay("report", super::report);
}

#[test]
fn answers_of_agents_as_they_come_over_the_wire() {
    replay("http", super::http);
}

#[test]
fn configurations() {
    replay("config", super::config);
}

#[test]
fn lists_of_targets() {
    replay("targets", super::targets);
}

#[test]
fn queries() {
    replay("query", super::query);
}
