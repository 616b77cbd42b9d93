//! Disks that are full or can't be written: in another process, in a mount namespace of its own.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use tempfile::tempdir;

use super::processes::{again, given_directory};
use super::*;

/// How space is made: `ballast` is a file that is removed, `limit` is a limit on the size of files that is lifted.
const ROOM: &str = "PROCSCAN_TEST_ROOM";
/// The text that a refusal has to contain.
const EXPECTED_TEXT: &str = "PROCSCAN_TEST_EXPECTED";

/// How to get a mount namespace of one's own; `None` where that is not allowed.
fn namespace() -> Option<Vec<&'static str>> {
    let ways = [vec!["--mount"], vec!["--user", "--map-root-user", "--mount"]];
    let try_it = ["sh", "-c", "mount -t tmpfs none /tmp"];
    ways.into_iter().find(|way| {
        let tried = Command::new("unshare").args(way).args(try_it).stderr(Stdio::null()).status();
        tried.is_ok_and(|status| status.success())
    })
}

/// A shell that runs `first` and then becomes the other process.
fn after(way: &[&str], first: &str) -> Command {
    let (program, args) = way.split_first().unwrap_or((&"sh", &[]));
    let mut command = Command::new(program);
    command.args(args);
    if !way.is_empty() {
        command.arg("sh");
    }
    command.args(["-ec", &format!("{first}\nexec \"$0\" \"$@\"")]).arg(std::env::current_exe().unwrap());
    command
}

fn succeeds(mut command: Command, test: &str, directory: &Path) {
    again(&mut command, test, directory);
    let output = command.stderr(Stdio::piped()).output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && stdout.contains("1 passed"), "{command:?}: {stdout}\n{stderr}");
}

#[tokio::test]
#[ignore = "a part of the tests below, which run it"]
async fn runs_out_of_room() {
    let directory = given_directory();
    let room = std::env::var(ROOM).unwrap();
    let ballast = directory.join("ballast");
    let sqlite = open(&directory.join("state")).await;
    let (kind, text) = match room.as_str() {
        "ballast" => {
            (StateErrorKind::Full, "state.db can't be written: no space left on the device; make room")
        }
        _ => (StateErrorKind::Other, "state.db can't be written: the disk takes no more of it"),
    };
    let mut number = 0;
    let padding = "x".repeat(30_000);
    let batch = |number: u64| {
        let mut batch = numbered(number);
        batch.put.push(Document { kind: Kind::Exemption, ..document(&format!("{number}"), json!(padding)) });
        batch
    };
    let whole = async |sqlite: &Sqlite| {
        let documents = sqlite.load().await.unwrap();
        let (pair, others): (Vec<_>, Vec<_>) = documents.iter().partition(|d| d.kind == Kind::Incident);
        assert!(pair.iter().all(|d| number_of(&d.body) == others.len() as u64), "{}", others.len());
        let log = sqlite.decisions(everything()).await.unwrap();
        assert_eq!(log.len(), others.len());
        u64::try_from(others.len()).unwrap()
    };
    let error = loop {
        match sqlite.commit(&batch(number + 1)).await {
            Ok(()) => number += 1,
            Err(error) => break error,
        }
    };
    assert!(number > 2, "{number}");
    for again in 0..3 {
        let error =
            if again == 0 { error.clone() } else { sqlite.commit(&batch(number + 1)).await.unwrap_err() };
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(text), "{error}");
        assert!(!sqlite.recover().await.unwrap(), "a full disk is no damage");
        assert_eq!(whole(&sqlite).await, number);
    }
    if room == "ballast" {
        // Nor can a new one be made, once the last space is taken.
        let last = directory.join("last");
        let mut file = fs::File::create(&last).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
        let error = refusal(&directory.join("another")).await;
        assert_eq!(error.kind(), StateErrorKind::Full, "{error}");
        // Nor one in a directory that has no space for its name.
        let mut names = (0..).map(|n| directory.join(format!("name-{n}")));
        let full = names.find(|name| fs::write(name, "").is_err());
        let error = refusal(&directory.join("third")).await;
        assert_eq!(error.kind(), StateErrorKind::Full, "{error} {full:?}");
        fs::remove_file(&ballast).unwrap();
        fs::remove_file(&last).unwrap();
        open(&directory.join("another")).await;
    } else {
        let pid = std::process::id().to_string();
        let lifted = Command::new("prlimit").args(["--fsize=unlimited:", "--pid", &pid]).status().unwrap();
        assert!(lifted.success());
    }
    assert!(!sqlite.recover().await.unwrap());
    sqlite.commit(&batch(number + 1)).await.unwrap();
    assert_eq!(whole(&sqlite).await, number + 1);
    assert_eq!(sqlite.warnings(), []);
}

/// The limit works wherever this test runs. `EFBIG` then stands for a full disk.
#[test]
fn the_state_can_be_written_again_once_the_file_may_grow() {
    let directory = tempdir().unwrap();
    // A process that exceeds the limit is killed otherwise.
    let mut command = after(&[], "trap '' XFSZ; ulimit -S -f 600");
    command.env(ROOM, "limit");
    succeeds(command, "disk::runs_out_of_room", directory.path());
}

#[test]
fn the_state_can_be_written_again_once_a_full_disk_has_room() {
    let Some(way) = namespace() else {
        eprintln!("no mount namespaces here: a full disk is tried as a limit on the size of files only");
        return the_state_can_be_written_again_once_the_file_may_grow();
    };
    let directory = tempdir().unwrap();
    let path = directory.path().display();
    let first = format!(
        "mount -t tmpfs -o size=1m,nr_inodes=64 none '{path}'; dd if=/dev/zero of='{path}/ballast' bs=64k count=8 status=none"
    );
    let way = [&["unshare"], &way[..]].concat();
    let mut command = after(&way, &first);
    command.env(ROOM, "ballast");
    succeeds(command, "disk::runs_out_of_room", directory.path());
}

#[tokio::test]
#[ignore = "a part of the tests below, which run it"]
async fn is_refused() {
    let directory = given_directory();
    let (before, expected) = (names(&directory), std::env::var(EXPECTED_TEXT).unwrap());
    let error = refusal(&directory).await;
    assert_eq!(error.kind(), StateErrorKind::ReadOnly, "{error}");
    assert!(error.to_string().contains(&expected), "{error}");
    assert_eq!(names(&directory), before);
}

async fn one_batch() -> tempfile::TempDir {
    let directory = tempdir().unwrap();
    open(directory.path()).await.commit(&numbered(1)).await.unwrap();
    directory
}

#[tokio::test]
async fn a_read_only_file_system_is_no_damage() {
    let Some(way) = namespace() else {
        eprintln!("no mount namespaces here: unwritable files are tried by permissions only");
        return;
    };
    let directory = one_batch().await;
    let path = directory.path().display();
    let first = format!("mount --bind '{path}' '{path}'; mount -o remount,bind,ro '{path}'");
    let way = [&["unshare"], &way[..]].concat();
    let mut command = after(&way, &first);
    command.env(EXPECTED_TEXT, "state.lock can't be locked: the file system is read-only; make it writable");
    succeeds(command, "disk::is_refused", directory.path());
    assert_eq!(last_whole(&open(directory.path()).await).await, 1);
}

/// Permissions do not hold for root, so the other process runs as another user then.
#[tokio::test]
async fn a_file_without_write_permission_is_no_damage() {
    let directory = one_batch().await;
    let mode = |name: &str, mode| {
        fs::set_permissions(directory.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    let is_root = fs::metadata("/proc/self").unwrap().uid() == 0;
    mode("", 0o555);
    mode("state.db", 0o444);
    let texts = [
        (0o444, "state.lock can't be locked: permission denied; make it writable"),
        (0o666, "state.db can't be opened: permission denied; make it writable"),
    ];
    for (lock, expected) in texts {
        mode("state.lock", lock);
        // By this name another user can run the program without access to its directory.
        let mut command = Command::new("/proc/self/exe");
        if is_root {
            command.uid(65_534).gid(65_534);
        }
        command.env(EXPECTED_TEXT, expected);
        succeeds(command, "disk::is_refused", directory.path());
    }
    mode("", 0o755);
    mode("state.db", 0o644);
    assert_eq!(last_whole(&open(directory.path()).await).await, 1);
}
