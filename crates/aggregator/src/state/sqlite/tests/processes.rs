//! Runs this test binary as another process, and tests two processes on one state.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Stdio};

use super::super::place::Place;
use super::*;

/// Where the other process finds the state.
const DIRECTORY: &str = "PROCSCAN_TEST_STATE";

/// Another process that runs one test of this module, which is ignored otherwise.
pub(super) fn again(program: &mut Command, test: &str, directory: &Path) {
    let module = module_path!().split_once("::").unwrap().1.rsplit_once("::").unwrap().0;
    let filter = format!("{module}::{test}");
    program
        .args([filter.as_str(), "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .env(DIRECTORY, directory)
        .stdout(Stdio::piped());
}

/// Where the state is, in the other process.
pub(super) fn given_directory() -> std::path::PathBuf {
    std::env::var_os(DIRECTORY).expect("a part of another test, which runs it").into()
}

/// Another process, and its output.
pub(super) struct Other {
    pub(super) child: Child,
    pub(super) stdout: BufReader<ChildStdout>,
}

impl Other {
    pub(super) fn run(test: &str, directory: &Path) -> Self {
        let mut program = Command::new(std::env::current_exe().unwrap());
        again(program.stdin(Stdio::piped()), test, directory);
        let mut child = program.spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Self { child, stdout }
    }

    /// The rest of the next whole line that contains `text`; `None` if the process has ended before.
    pub(super) fn read_after(&mut self, text: &str) -> Option<String> {
        let mut line = String::new();
        loop {
            line.clear();
            self.stdout.read_line(&mut line).unwrap();
            let whole = line.strip_suffix('\n')?;
            if let Some((_, rest)) = whole.split_once(text) {
                return Some(rest.to_owned());
            }
        }
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        // A test that fails leaves no process behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
#[ignore = "a part of `a_second_process_is_refused`, which runs it"]
async fn holds_the_state() {
    let _sqlite = open(&given_directory()).await;
    println!("holding");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

#[tokio::test]
async fn a_second_process_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let mut other = Other::run("processes::holds_the_state", directory.path());
    other.read_after("holding").unwrap();
    let text = format!(
        "{} can't be opened: it is in use by another process; end the other process, or give each process a directory \
         of its own",
        directory.path().join("state.db").display()
    );
    let error = refusal(directory.path()).await;
    assert_eq!((error.kind(), error.to_string()), (StateErrorKind::Locked, text.clone()));
    // A process is refused even if the lock's file was removed.
    std::fs::remove_file(directory.path().join("state.lock")).unwrap();
    let error = refusal(directory.path()).await;
    assert_eq!((error.kind(), error.to_string()), (StateErrorKind::Locked, text));
    drop(other.child.stdin.take());
    assert!(other.child.wait().unwrap().success());
    open(directory.path()).await;
    assert!(!names(directory.path()).iter().any(|name| name.contains("corrupt")));
}

#[tokio::test]
async fn a_second_process_is_refused_while_there_is_no_file_yet() {
    let directory = tempfile::tempdir().unwrap();
    let lock = Place::make(directory.path()).unwrap().lock().unwrap();
    assert_eq!(refusal(directory.path()).await.kind(), StateErrorKind::Locked);
    assert_eq!(names(directory.path()), ["state.lock"]);
    // As in a process that has just been forked and has not yet become another program.
    let _copy = lock.file.try_clone().unwrap();
    drop(lock);
    open(directory.path()).await;
}
