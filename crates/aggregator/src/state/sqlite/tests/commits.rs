//! Commits and reads in normal operation, and while files are deleted.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use futures_util::FutureExt;
use rusqlite::Connection;
use tempfile::tempdir;

use super::super::open::Open;
use super::super::place::Place;
use super::super::schema;
use super::*;

#[tokio::test]
async fn a_committed_batch_is_there_again_after_a_restart() {
    let parent = tempdir().unwrap();
    let directory = parent.path().join("a/b");
    let sqlite = open(&directory).await;
    assert_eq!(sqlite.load().await.unwrap(), []);
    let name = "ns-ü/Deployment/«web»";
    let exemption = Document { kind: Kind::Exemption, ..document(name, json!({"rule": "^x\"'\n\0"})) };
    let enforcement = Document { kind: Kind::Enforcement, ..document("enforcement", json!(null)) };
    let incident = document(name, json!({"evidence": [1, 2.5, -3, u64::MAX], "state": "blocked"}));
    let put = vec![enforcement.clone(), exemption.clone(), incident.clone()];
    sqlite.commit(&Batch { put, ..Batch::default() }).await.unwrap();
    let released = document(name, json!({"state": "released"}));
    let remove = vec![(Kind::Enforcement, "enforcement".to_owned()), (Kind::Incident, "missing".to_owned())];
    sqlite.commit(&Batch { put: vec![released.clone()], remove, ..Batch::default() }).await.unwrap();
    drop(sqlite);
    assert_eq!(open(&directory).await.load().await.unwrap(), [exemption, released]);
    let mode = |name: &str| fs::metadata(directory.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(""), mode("state.db"), mode("state.lock")), (0o700, 0o600, 0o600));
}

/// Any number of clients may read the log. A write waits for one of them at most.
#[tokio::test]
async fn a_write_waits_for_one_reader_at_most() {
    let directory = tempdir().unwrap();
    let sqlite = open(directory.path()).await;
    sqlite.commit(&numbered(1)).await.unwrap();
    let busy = sqlite.store.clone().lock_owned().await;
    let readers: Vec<_> = (0..50)
        .map(|_| {
            let sqlite = sqlite.clone();
            tokio::spawn(async move { sqlite.decisions(everything()).await.unwrap().len() })
        })
        .collect();
    tokio::task::yield_now().await;
    let batch = numbered(2);
    let mut write = std::pin::pin!(sqlite.commit(&batch));
    assert!(write.as_mut().now_or_never().is_none(), "all of them wait for their turn");
    drop(busy);
    write.await.unwrap();
    let mut before = 0;
    for reader in readers {
        before += usize::from(reader.await.unwrap() == 1);
    }
    assert!(before <= 1, "{before} readers came first");
}

#[tokio::test]
async fn a_document_that_is_put_and_removed_in_one_batch_stays() {
    let directory = tempdir().unwrap();
    let sqlite = open(directory.path()).await;
    let put = vec![document("a", json!(1))];
    sqlite
        .commit(&Batch {
            put: put.clone(),
            remove: vec![(Kind::Incident, "a".to_owned())],
            ..Batch::default()
        })
        .await
        .unwrap();
    assert_eq!(sqlite.load().await.unwrap(), put);
}

#[tokio::test]
async fn the_file_is_flushed_at_each_commit_and_used_by_one_connection_only() {
    let directory = tempdir().unwrap();
    let place = Place::make(directory.path()).unwrap();
    Open::create(&place).unwrap();
    let open = Open::existing(&place).unwrap().unwrap();
    let read = |pragma: &str| {
        open.read(&place, |connection| {
            connection.pragma_query_value(None, pragma, |row| {
                row.get::<_, rusqlite::types::Value>(0).map(|value| match value {
                    rusqlite::types::Value::Integer(number) => number.to_string(),
                    rusqlite::types::Value::Text(text) => text,
                    other => panic!("{other:?}"),
                })
            })
        })
        .unwrap()
    };
    let settings = ["synchronous", "journal_mode", "locking_mode", "foreign_keys", "temp_store"].map(read);
    assert_eq!(settings, ["2", "truncate", "exclusive", "1", "2"]);
    let error = Connection::open(place.database()).unwrap().execute("DELETE FROM documents", []).unwrap_err();
    assert_eq!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::DatabaseBusy));
}

#[tokio::test]
async fn a_batch_that_fails_halfway_leaves_nothing() {
    let directory = tempdir().unwrap();
    let file = directory.path().join("state.db");
    open(directory.path()).await.commit(&numbered(1)).await.unwrap();
    // FAIL leaves the effect of the statement so far, so only the transaction rolls it back.
    let trigger = "CREATE TRIGGER refuse BEFORE INSERT ON decisions BEGIN SELECT RAISE(FAIL, 'refused'); END";
    Connection::open(&file).unwrap().execute_batch(trigger).unwrap();
    let sqlite = open(directory.path()).await;
    let error = sqlite.commit(&numbered(2)).await.unwrap_err();
    assert_eq!(error.to_string(), format!("{} can't be written: refused", file.display()));
    assert_eq!(error.kind(), StateErrorKind::Other);
    assert_eq!(sqlite.load().await.unwrap_err(), error, "closed until it is recovered");
    assert!(!sqlite.recover().await.unwrap());
    assert_eq!(last_whole(&sqlite).await, 1);
}

#[tokio::test]
async fn a_batch_that_is_committed_again_is_logged_once() {
    let directory = tempdir().unwrap();
    let sqlite = open(directory.path()).await;
    let same_time = LoggedDecision { body: json!("another").to_string(), ..numbered(1).decisions.remove(0) };
    sqlite.commit(&numbered(1)).await.unwrap();
    sqlite.commit(&numbered(1)).await.unwrap();
    assert_eq!(last_whole(&sqlite).await, 1);
    sqlite.commit(&Batch { decisions: vec![same_time.clone()], ..Batch::default() }).await.unwrap();
    let log = sqlite.decisions(everything()).await.unwrap();
    assert_eq!(log, [same_time, numbered(1).decisions.remove(0)]);
}

#[tokio::test]
async fn a_commit_whose_caller_has_stopped_waiting_is_still_made() {
    let directory = tempdir().unwrap();
    let sqlite = open(directory.path()).await;
    drop(sqlite.commit(&numbered(1)).now_or_never());
    assert_eq!(last_whole(&sqlite).await, 1);
}

fn entry(second: i64, namespace: &str, number: usize) -> LoggedDecision {
    LoggedDecision { at: at(second), namespace: namespace.to_owned(), body: json!(number).to_string() }
}

fn numbers(log: &[LoggedDecision]) -> Vec<u64> {
    log.iter().map(|entry| entry.body.parse().unwrap()).collect()
}

#[tokio::test]
async fn the_log_is_read_newest_first_and_in_pages() {
    let directory = tempdir().unwrap();
    let sqlite = open(directory.path()).await;
    // 0 to 5, two in each second, one for each tenant.
    let decisions = (0..6).map(|n| entry(100 + i64::try_from(n / 2).unwrap(), ["ns-a", "ns-b"][n % 2], n));
    sqlite.commit(&Batch { decisions: decisions.collect(), ..Batch::default() }).await.unwrap();
    let read = async |filter| numbers(&sqlite.decisions(filter).await.unwrap());
    let namespace = |name: &str| Some(name.to_owned());
    assert_eq!(read(everything()).await, [5, 4, 3, 2, 1, 0]);
    assert_eq!(read(DecisionFilter { namespace: namespace("ns-a"), ..everything() }).await, [4, 2, 0]);
    assert_eq!(read(DecisionFilter { since: Some(at(101)), ..everything() }).await, [5, 4, 3, 2]);
    assert_eq!(read(DecisionFilter { before: Some(at(101)), ..everything() }).await, [1, 0]);
    assert_eq!(read(DecisionFilter { limit: 3, ..everything() }).await, [5, 4, 3]);
    assert_eq!(read(DecisionFilter { skip: 3, limit: 2, ..everything() }).await, [2, 1]);
    let (since, before) = (Some(at(101)), Some(at(102)));
    let one = DecisionFilter { namespace: namespace("ns-b"), since, before, ..everything() };
    assert_eq!(read(one).await, [3]);
    assert_eq!(read(DecisionFilter { namespace: namespace("ns-c"), ..everything() }).await, [0; 0]);
}

#[tokio::test]
async fn the_log_is_never_searched_or_sorted_as_a_whole() {
    let directory = tempdir().unwrap();
    let place = Place::make(directory.path()).unwrap();
    Open::create(&place).unwrap();
    let open = Open::existing(&place).unwrap().unwrap();
    let statements = [
        (schema::DECISIONS, "INDEX decisions_by_time (at>? AND at<?)"),
        (schema::DECISIONS_OF, "INDEX decisions_by_namespace (namespace=? AND at>? AND at<?)"),
        (schema::REMOVE_OLDEST, "INDEX decisions_by_time (at<?)"),
    ];
    for (sql, index) in statements {
        let plan = open
            .read(&place, |connection| {
                let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}"))?;
                let nulls = vec![rusqlite::types::Null; statement.parameter_count()];
                statement
                    .query_map(rusqlite::params_from_iter(nulls), |row| row.get::<_, String>(3))?
                    .collect::<Result<Vec<_>, _>>()
            })
            .unwrap();
        assert!(plan.iter().any(|step| step.contains(index)), "{plan:?}");
        assert!(!plan.iter().any(|step| step.contains("SCAN decisions")), "{plan:?}");
        assert!(!plan.iter().any(|step| step.contains("TEMP B-TREE FOR ORDER")), "{plan:?}");
    }
}

#[tokio::test]
async fn old_decisions_are_removed_and_so_are_the_oldest_of_too_many() {
    let directory = tempdir().unwrap();
    let sqlite = open(directory.path()).await;
    let decisions =
        (0..2 * MAX_REMOVED_AT_ONCE + 500).map(|n| entry(i64::try_from(n).unwrap(), "ns-a", n)).collect();
    sqlite.commit(&Batch { decisions, ..Batch::default() }).await.unwrap();
    assert_eq!(sqlite.retain(at(10), usize::MAX).await.unwrap(), 10);
    assert_eq!(sqlite.retain(at(10), usize::MAX).await.unwrap(), 0);
    let oldest = async || numbers(&sqlite.decisions(everything()).await.unwrap()).pop();
    assert_eq!(oldest().await, Some(10));
    assert_eq!(sqlite.retain(at(12), 2 * MAX_REMOVED_AT_ONCE).await.unwrap(), 490);
    assert_eq!(oldest().await, Some(500));
    assert_eq!(sqlite.retain(at(0), 3).await.unwrap(), 2 * MAX_REMOVED_AT_ONCE - 3);
    assert_eq!(numbers(&sqlite.decisions(everything()).await.unwrap()), [2499, 2498, 2497]);
    assert_eq!(sqlite.retain(at(i64::MAX / 10_000_000_000), 3).await.unwrap(), 3);
    assert_eq!(oldest().await, None);
}

#[tokio::test]
async fn a_file_that_is_deleted_is_noticed_and_written_again() {
    let directory = tempdir().unwrap();
    let file = directory.path().join("state.db");
    let sqlite = open(directory.path()).await;
    sqlite.commit(&numbered(1)).await.unwrap();
    fs::remove_file(&file).unwrap();
    let error = sqlite.commit(&numbered(2)).await.unwrap_err();
    assert_eq!(error.kind(), StateErrorKind::Deleted);
    let text = format!("{} can't be used: state.db has been deleted while it was in use", file.display());
    assert_eq!(error.to_string(), text);
    assert!(!file.exists(), "no new file is made before the recovery");
    assert!(sqlite.recover().await.unwrap());
    assert_eq!(sqlite.load().await.unwrap(), []);
    assert_eq!(sqlite.retain(at(0), 10).await.unwrap(), 0);
    assert!(sqlite.recover().await.unwrap(), "nothing has been written again yet");
    sqlite.commit(&numbered(1)).await.unwrap();
    assert!(!sqlite.recover().await.unwrap());
    drop(sqlite);
    assert_eq!(last_whole(&open(directory.path()).await).await, 1);
}

#[test]
fn a_write_into_a_file_that_is_just_being_deleted_fails() {
    let directory = tempdir().unwrap();
    let place = Place::make(directory.path()).unwrap();
    Open::create(&place).unwrap();
    let mut open = Open::existing(&place).unwrap().unwrap();
    open.write(&place, |_| Ok(())).unwrap();
    let error = open
        .write(&place, |_| {
            fs::remove_file(place.database()).unwrap();
            Ok(())
        })
        .unwrap_err();
    assert_eq!(error.kind(), StateErrorKind::Deleted);
}

#[tokio::test]
async fn a_directory_that_is_deleted_is_made_again() {
    let parent = tempdir().unwrap();
    let directory = parent.path().join("state");
    let sqlite = open(&directory).await;
    fs::remove_dir_all(&directory).unwrap();
    assert_eq!(sqlite.load().await.unwrap_err().kind(), StateErrorKind::Deleted);
    assert!(sqlite.recover().await.unwrap());
    sqlite.commit(&numbered(1)).await.unwrap();
    let lock = Place::make(&directory).unwrap().lock();
    assert_eq!(lock.unwrap_err().kind(), StateErrorKind::Locked, "the new directory is locked too");
}

#[tokio::test]
async fn a_file_that_is_replaced_is_noticed() {
    let directory = tempdir().unwrap();
    let (file, copy) = (directory.path().join("state.db"), directory.path().join("copy"));
    let first = open(directory.path()).await;
    first.commit(&numbered(1)).await.unwrap();
    drop(first);
    fs::copy(&file, &copy).unwrap();
    let sqlite = open(directory.path()).await;
    for number in 2..4 {
        sqlite.commit(&numbered(number)).await.unwrap();
    }
    fs::rename(&copy, &file).unwrap();
    let error = sqlite.commit(&numbered(4)).await.unwrap_err();
    assert_eq!(error.kind(), StateErrorKind::Deleted);
    assert!(error.to_string().contains("replaced by another file"), "{error}");
    assert!(sqlite.recover().await.unwrap(), "an old copy differs from the state in memory");
    sqlite.commit(&numbered(4)).await.unwrap();
    assert!(!sqlite.recover().await.unwrap());
}

#[tokio::test]
async fn a_journal_that_is_deleted_is_made_again_before_anything_relies_on_it() {
    let directory = tempdir().unwrap();
    let sqlite = open(directory.path()).await;
    sqlite.commit(&numbered(1)).await.unwrap();
    let journal = directory.path().join("state.db-journal");
    fs::remove_file(&journal).unwrap();
    let error = sqlite.commit(&numbered(2)).await.unwrap_err();
    assert_eq!(error.kind(), StateErrorKind::Deleted);
    assert!(error.to_string().starts_with(&journal.display().to_string()), "{error}");
    assert!(!sqlite.recover().await.unwrap());
    assert_eq!(last_whole(&sqlite).await, 1);
    sqlite.commit(&numbered(2)).await.unwrap();
    assert!(journal.exists());
}

#[tokio::test]
async fn a_commit_that_was_made_although_it_seemed_to_fail_is_no_other_file() {
    let directory = tempdir().unwrap();
    let file = directory.path().join("state.db");
    let sqlite = open(directory.path()).await;
    sqlite.commit(&numbered(1)).await.unwrap();
    for (more, is_another) in [(1, false), (2, true)] {
        fs::remove_file(directory.path().join("state.db-journal")).unwrap();
        sqlite.load().await.unwrap_err();
        let count = "UPDATE file SET generation = generation + ?1";
        Connection::open(&file).unwrap().execute(count, [more]).unwrap();
        assert_eq!(sqlite.recover().await.unwrap(), is_another, "{more}");
        sqlite.commit(&numbered(1)).await.unwrap();
    }
}
