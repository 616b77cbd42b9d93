//! Files that are damaged, and files that only seem to be damaged.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;

use rusqlite::Connection;
use tempfile::{TempDir, tempdir};

use super::super::place::{MAX_SET_ASIDE, Place};
use super::*;

/// A directory with three batches in it.
async fn three_batches() -> TempDir {
    let directory = tempdir().unwrap();
    let sqlite = open(directory.path()).await;
    for number in 1..=3 {
        sqlite.commit(&numbered(number)).await.unwrap();
    }
    directory
}

fn write_at(path: &Path, bytes: &[u8], offset: u64) {
    OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, offset).unwrap();
}

fn position(path: &Path, text: &str) -> u64 {
    let bytes = fs::read(path).unwrap();
    let found = bytes.windows(text.len()).position(|window| window == text.as_bytes()).unwrap();
    u64::try_from(found).unwrap()
}

/// A pipe that no program writes would be waited for without end.
#[tokio::test]
async fn a_file_that_is_not_regular_is_refused_by_name_and_not_waited_for() {
    use rustix::fs::{CWD, Mode, mkfifoat};
    for name in ["state.db", "state.lock", "state.db-journal", "state.db-wal", "state.db-shm"] {
        let directory = three_batches().await;
        let path = directory.path().join(name);
        for make in [
            |path: &Path| mkfifoat(CWD, path, Mode::RWXU).unwrap(),
            |path: &Path| std::os::unix::fs::symlink("elsewhere", path).unwrap(),
            |path: &Path| fs::create_dir(path).unwrap(),
        ] {
            let _ = fs::remove_file(&path);
            make(&path);
            let error = refusal(directory.path()).await.to_string();
            assert!(error.contains(&path.display().to_string()), "{error}");
            assert!(error.contains("it is not a regular file; move it away"), "{error}");
            assert!(!directory.path().join("elsewhere").exists());
        }
    }
}

#[tokio::test]
async fn a_damaged_file_is_set_aside_and_a_new_one_is_made() {
    type Damage = fn(&Path);
    let ways: [(&str, Damage); 9] = [
        ("a header of nonsense", |path| write_at(path, &[0x5a; 100], 0)),
        ("not a database", |path| fs::write(path, "this is not a database\n".repeat(1000)).unwrap()),
        ("shorter than a header", |path| fs::write(path, "SQLite").unwrap()),
        ("empty", |path| drop(File::create(path).unwrap())),
        ("half of it", |path| {
            let file = OpenOptions::new().write(true).open(path).unwrap();
            file.set_len(file.metadata().unwrap().len() / 2).unwrap();
        }),
        ("a page of nonsense", |path| write_at(path, &[0x5a; 4096], 4096 * 3)),
        ("one flipped bit in a text", |path| {
            write_at(path, b"y", position(path, "\"number\":3,\"padding\":\"xx") + 25);
        }),
        ("one flipped bit in a column's name", |path| {
            write_at(path, b"checksul", position(path, "checksum"));
        }),
        ("one flipped bit in a table's name", |path| {
            write_at(path, b"documenus", position(path, "documents"));
        }),
    ];
    for (what, damage) in ways {
        let directory = three_batches().await;
        let file = directory.path().join("state.db");
        damage(&file);
        let damaged = fs::read(&file).unwrap();
        let (sqlite, warnings) = Sqlite::open(directory.path()).await.unwrap();
        let [SetAside { path, problem: Some(_) }] = &warnings[..] else { panic!("{what}: {warnings:?}") };
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with("state.db.corrupt-2") && !name.contains(':'), "{what}: {name}");
        assert_eq!(fs::read(path).unwrap(), damaged, "{what}: it is unchanged");
        assert_eq!(last_whole(&sqlite).await, 0, "{what}");
        sqlite.commit(&numbered(1)).await.unwrap();
        drop(sqlite);

        let (sqlite, warnings) = Sqlite::open(directory.path()).await.unwrap();
        assert_eq!(last_whole(&sqlite).await, 1, "{what}");
        assert_eq!(
            warnings,
            [SetAside { path: path.clone(), problem: None }],
            "{what}: a restart does not end it"
        );
        fs::remove_file(path).unwrap();
        sqlite.retain(at(0), 10).await.unwrap();
        assert_eq!(sqlite.warnings(), [], "{what}: taking the file away does");
    }
}

/// A reader gets exactly the content that was written, or an error.
#[tokio::test]
async fn a_flipped_byte_anywhere_never_changes_the_content_that_is_read() {
    let source = tempdir().unwrap();
    let sqlite = open(source.path()).await;
    let put = vec![document("a", json!({"state": "blocked"})), document("b", json!({"state": "released"}))];
    let decisions: Vec<_> = (1..4).flat_map(|number| numbered(number).decisions).collect();
    sqlite.commit(&Batch { put: put.clone(), decisions, ..Batch::default() }).await.unwrap();
    let log = sqlite.decisions(everything()).await.unwrap();
    drop(sqlite);
    let whole = fs::read(source.path().join("state.db")).unwrap();
    let directory = tempdir().unwrap();
    let file = directory.path().join("state.db");
    let (mut seen, mut unharmed) = (0, 0);
    // The space that no page uses yet has no meaning.
    let in_use = |position: &usize| *position < 4096 || whole[*position] != 0;
    for position in (0..whole.len()).filter(in_use).step_by(13) {
        let mut flipped = whole.clone();
        flipped[position] ^= 1 << (position % 8);
        fs::write(&file, &flipped).unwrap();
        match Sqlite::open(directory.path()).await {
            Ok((sqlite, warnings)) if warnings.is_empty() => {
                assert_eq!(sqlite.load().await.unwrap(), put, "{position}");
                assert_eq!(sqlite.decisions(everything()).await.unwrap(), log, "{position}");
                sqlite.commit(&Batch::default()).await.unwrap();
                unharmed += 1;
            }
            Ok((_, warnings)) => {
                seen += 1;
                for file in warnings {
                    fs::remove_file(file.path).unwrap();
                }
            }
            // The fields of the header with the application, and with the versions that can read and write the file.
            Err(error) => {
                assert!(matches!(position, 18 | 44..48 | 60..72), "{position}: {error}");
                assert_eq!(fs::read(&file).unwrap(), flipped);
            }
        }
        let _ = fs::remove_file(directory.path().join("state.db-journal"));
    }
    assert!(seen > 50, "{seen} damaged, {unharmed} not");
}

#[tokio::test]
async fn damage_that_is_found_in_use_is_set_aside_at_the_recovery() {
    let directory = tempdir().unwrap();
    let file = directory.path().join("state.db");
    let sqlite = open(directory.path()).await;
    // More than SQLite holds in memory.
    let put = (0..1000).map(|n| document(&format!("{n}"), json!("x".repeat(8000)))).collect();
    sqlite.commit(&Batch { put, ..Batch::default() }).await.unwrap();
    let whole = fs::read(&file).unwrap();
    write_at(&file, &vec![0x5a; whole.len() / 2], u64::try_from(whole.len() / 4).unwrap());
    let error = sqlite.load().await.unwrap_err();
    assert_eq!(error.kind(), StateErrorKind::Corrupt, "{error}");
    assert_eq!(sqlite.warnings(), [], "not touched yet");
    // A disk that returns one content now and another one later is not trusted again.
    write_at(&file, &whole, 0);
    assert!(sqlite.recover().await.unwrap());
    let [SetAside { path, problem: Some(_) }] = &sqlite.warnings()[..] else { panic!("no warning") };
    assert_eq!(fs::read(path).unwrap(), whole);
    sqlite.commit(&numbered(1)).await.unwrap();
    assert_eq!(last_whole(&sqlite).await, 1);
}

#[tokio::test]
async fn a_file_that_is_emptied_in_use_is_noticed() {
    let directory = three_batches().await;
    let sqlite = open(directory.path()).await;
    File::create(directory.path().join("state.db")).unwrap();
    let error = sqlite.commit(&numbered(4)).await.unwrap_err();
    assert_eq!(error.kind(), StateErrorKind::Deleted);
    assert!(error.to_string().contains("another program has written to state.db"), "{error}");
    assert!(sqlite.recover().await.unwrap());
    assert_eq!(sqlite.warnings().len(), 1);
}

#[tokio::test]
async fn a_journal_without_its_database_undoes_nothing_in_a_new_one() {
    let directory = three_batches().await;
    let (file, journal) = (directory.path().join("state.db"), directory.path().join("state.db-journal"));
    // A journal as a crash leaves it, seen while a transaction of SQLite's own is going on.
    let connection = Connection::open(&file).unwrap();
    connection
        .execute_batch("PRAGMA cache_spill = 1; PRAGMA cache_size = 1; BEGIN; DELETE FROM documents")
        .unwrap();
    let hot = fs::read(&journal).unwrap();
    drop(connection);
    assert!(hot.len() > 512);
    fs::write(&journal, &hot).unwrap();
    fs::remove_file(&file).unwrap();
    let sqlite = open(directory.path()).await;
    assert_eq!(last_whole(&sqlite).await, 0);
    assert_eq!(sqlite.warnings(), []);
}

#[tokio::test]
async fn the_file_of_a_newer_version_is_refused_and_left_as_it_is() {
    let directory = three_batches().await;
    let file = directory.path().join("state.db");
    Connection::open(&file).unwrap().pragma_update(None, "user_version", 7).unwrap();
    let before = fs::read(&file).unwrap();
    let error = refusal(directory.path()).await;
    assert_eq!(error.kind(), StateErrorKind::Newer);
    let text = format!(
        "{} can't be opened: a newer version of procscan-aggregator has written it: its format is version 7, and this \
         program knows versions up to 1; run the newer program, or configure another directory",
        file.display()
    );
    assert_eq!(error.to_string(), text);
    assert_eq!(fs::read(&file).unwrap(), before);

    // A file that needs a newer version of SQLite is refused, too.
    Connection::open(&file).unwrap().pragma_update(None, "user_version", 1).unwrap();
    write_at(&file, &[5], 18);
    let before = fs::read(&file).unwrap();
    let error = refusal(directory.path()).await;
    assert_eq!(error.kind(), StateErrorKind::Newer, "{error}");
    assert_eq!(fs::read(&file).unwrap(), before);
    assert_eq!(names(directory.path()).iter().filter(|name| name.contains("corrupt")).count(), 0);
}

#[tokio::test]
async fn a_file_of_another_program_is_refused_and_left_as_it_is() {
    let directory = tempdir().unwrap();
    let file = directory.path().join("state.db");
    Connection::open(&file).unwrap().execute_batch("CREATE TABLE theirs (a)").unwrap();
    let before = fs::read(&file).unwrap();
    let error = refusal(directory.path()).await;
    assert_eq!(error.kind(), StateErrorKind::Other);
    assert!(error.to_string().contains("another program's database"), "{error}");
    assert_eq!(fs::read(&file).unwrap(), before);

    for make in
        [|path: &Path| fs::create_dir(path), |path: &Path| std::os::unix::fs::symlink("/dev/null", path)]
    {
        let directory = tempdir().unwrap();
        make(&directory.path().join("state.db")).unwrap();
        let error = refusal(directory.path()).await;
        assert_eq!(error.kind(), StateErrorKind::Other);
        assert!(error.to_string().contains("not a regular file"), "{error}");
        assert_eq!(names(directory.path()), ["state.db", "state.lock"]);
    }

    let directory = tempdir().unwrap();
    let path = directory.path().join("state");
    fs::write(&path, "").unwrap();
    let error = refusal(&path).await;
    assert_eq!(error.kind(), StateErrorKind::Other);
    assert!(error.to_string().contains("not a directory"), "{error}");
}

#[test]
fn a_disk_is_not_filled_with_damaged_files() {
    let directory = tempdir().unwrap();
    let place = Place::make(directory.path()).unwrap();
    for second in 0..8 {
        fs::write(place.database(), "").unwrap();
        fs::write(place.journal(), "").unwrap();
        place.set_aside(at(second)).unwrap().unwrap();
    }
    let left = [0, 4, 5, 6, 7].map(|n| format!("state.db.corrupt-1970-01-01T00-00-0{n}Z"));
    assert_eq!(left.len(), MAX_SET_ASIDE);
    let with_journals: Vec<_> =
        left.iter().flat_map(|name| [name.clone(), format!("{name}-journal")]).collect();
    assert_eq!(names(directory.path()), with_journals);

    fs::write(place.database(), "another").unwrap();
    let second = place.set_aside(at(7)).unwrap().unwrap();
    assert!(second.ends_with("state.db.corrupt-1970-01-01T00-00-07Z.2"), "{second:?}");
    assert_eq!(place.set_aside(at(7)).unwrap(), None, "there is nothing left");
}

#[tokio::test]
async fn a_file_without_its_identity_is_damaged_and_the_warning_names_where_it_went() {
    let directory = three_batches().await;
    let file = directory.path().join("state.db");
    Connection::open(&file).unwrap().execute_batch("DELETE FROM file").unwrap();
    let (_sqlite, warnings) = Sqlite::open(directory.path()).await.unwrap();
    let [file @ SetAside { path, problem }] = &warnings[..] else { panic!("{warnings:?}") };
    assert_eq!(problem.as_deref(), Some("it has lost its identity"));
    let place = path.display();
    assert_eq!(
        file.to_string(),
        format!(
            "the state file was damaged (it has lost its identity) and has been set aside as {place}; look for the \
             cause, then take that file away"
        )
    );
    let later = SetAside { problem: None, ..file.clone() };
    assert!(
        later.to_string().starts_with("the state file was damaged and has been set aside as "),
        "{later}"
    );
}

/// The texts that an operator reads in the log and at `/readyz`, and whether the file is set aside for each.
#[test]
fn each_failure_has_a_plain_text_with_advice() {
    use std::io::{Error, ErrorKind};

    use rusqlite::ffi;

    let path = Path::new("/state/state.db");
    for (kind, expected, text) in [
        (ErrorKind::StorageFull, StateErrorKind::Full, "no space left on the device; make room"),
        (ErrorKind::QuotaExceeded, StateErrorKind::Full, "no space left in the disk quota; make room"),
        (
            ErrorKind::ReadOnlyFilesystem,
            StateErrorKind::ReadOnly,
            "the file system is read-only; make it writable",
        ),
        (ErrorKind::PermissionDenied, StateErrorKind::ReadOnly, "permission denied; make it writable"),
        (ErrorKind::NotADirectory, StateErrorKind::Other, "not a directory"),
    ] {
        let error = StateError::io(path, "written", &Error::from(kind));
        assert_eq!(error.kind(), expected);
        let line = error.to_string();
        assert!(line.starts_with(&format!("/state/state.db can't be written: {text}")), "{line}");
    }
    for (code, expected, text) in [
        (ffi::SQLITE_READONLY_DBMOVED, StateErrorKind::Deleted, "it has been deleted or replaced"),
        (ffi::SQLITE_IOERR_WRITE, StateErrorKind::Other, "the disk takes no more of it"),
        (ffi::SQLITE_IOERR_READ, StateErrorKind::Other, "disk I/O error"),
        (ffi::SQLITE_FULL, StateErrorKind::Full, "no space left on the device; make room"),
        (
            ffi::SQLITE_READONLY,
            StateErrorKind::ReadOnly,
            "attempt to write a readonly database; make it writable",
        ),
        (ffi::SQLITE_PERM, StateErrorKind::ReadOnly, "access permission denied; make it writable"),
        (ffi::SQLITE_BUSY, StateErrorKind::Locked, "it is in use by another process; end the other process"),
        (
            ffi::SQLITE_LOCKED,
            StateErrorKind::Locked,
            "it is in use by another process; end the other process",
        ),
        (ffi::SQLITE_CORRUPT, StateErrorKind::Corrupt, "database disk image is malformed"),
        (ffi::SQLITE_NOTADB, StateErrorKind::Corrupt, "file is not a database"),
    ] {
        let failure = rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
        let error = StateError::sqlite(path, "read", &failure);
        assert_eq!(error.kind(), expected, "{code}");
        let line = error.to_string().to_lowercase();
        assert!(line.starts_with(&format!("/state/state.db can't be read: {text}").to_lowercase()), "{line}");
    }
    let failure = rusqlite::Error::InvalidColumnType(0, "body".to_owned(), rusqlite::types::Type::Null);
    assert_eq!(StateError::sqlite(path, "read", &failure).kind(), StateErrorKind::Corrupt);
    let failure = rusqlite::Error::InvalidQuery;
    assert_eq!(StateError::sqlite(path, "read", &failure).kind(), StateErrorKind::Other);
}
