//! Tests with real files, real processes and real full disks.

mod commits;
mod damage;
mod disk;
mod killed;
mod processes;

use std::path::Path;

use serde_json::json;

use super::*;
use crate::state::Kind;

fn number_of(body: &str) -> u64 {
    serde_json::from_str::<serde_json::Value>(body).unwrap()["number"].as_u64().unwrap()
}

fn document(name: &str, body: impl std::fmt::Display) -> Document {
    Document { kind: Kind::Incident, name: name.to_owned(), body: body.to_string() }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// Two documents that must always agree, and the decision that goes with them.
fn numbered(number: u64) -> Batch {
    let padding = "x".repeat(20_000);
    Batch {
        put: vec![
            document("left", json!({"number": number, "padding": padding})),
            document("right", json!({"number": number, "padding": padding})),
        ],
        remove: Vec::new(),
        decisions: vec![LoggedDecision {
            at: at(i64::try_from(number).unwrap()),
            namespace: "ns-a".to_owned(),
            body: json!({"number": number}).to_string(),
        }],
    }
}

/// The number of the last batch of [`numbered`] that is there as a whole; 0 if there is none.
async fn last_whole(sqlite: &Sqlite) -> u64 {
    let documents = sqlite.load().await.unwrap();
    let numbers: Vec<_> = documents.iter().map(|d| number_of(&d.body)).collect();
    let number = numbers.first().copied().unwrap_or(0);
    assert!(numbers == [number; 2] || (numbers.is_empty() && number == 0), "{numbers:?}");
    let log = sqlite.decisions(everything()).await.unwrap();
    let logged: Vec<_> = log.iter().map(|d| number_of(&d.body)).collect();
    assert_eq!(logged, (1..=number).rev().collect::<Vec<_>>());
    number
}

fn everything() -> DecisionFilter {
    DecisionFilter { namespace: None, since: None, before: None, skip: 0, limit: usize::MAX }
}

async fn open(directory: &Path) -> Sqlite {
    let (sqlite, warnings) = Sqlite::open(directory).await.unwrap();
    assert_eq!(warnings, []);
    sqlite
}

async fn refusal(directory: &Path) -> StateError {
    Sqlite::open(directory).await.unwrap_err()
}

/// The names of the files in a directory.
fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
