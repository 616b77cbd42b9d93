//! Child processes whose output goes to a file and that do not outlive their owner.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, anyhow, ensure};

/// How many bytes of a log an error contains.
const TAIL_LINES: usize = 15;

/// A running child process. Killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Mutex<Child>,
    log: PathBuf,
}

impl Process {
    /// Starts it with its standard error appended to `log`. Its standard output is as the command says.
    pub fn start(name: &str, command: &mut Command, log: PathBuf) -> anyhow::Result<Self> {
        let open = || File::options().create(true).append(true).open(&log);
        let file = open().with_context(|| format!("opening {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting {name} ({})", command.get_program().display()))?;
        Ok(Self { name: name.to_owned(), child: Mutex::new(child), log })
    }

    /// Its exit status, if it has ended.
    pub fn exited(&self) -> anyhow::Result<Option<ExitStatus>> {
        self.child().try_wait().with_context(|| format!("waiting for {}", self.name))
    }

    /// SIGKILL. Returns when it is gone.
    pub fn kill(&self) -> anyhow::Result<()> {
        let mut child = self.child();
        // An error means that it has ended already.
        drop(child.kill());
        child.wait().map(drop).with_context(|| format!("waiting for {}", self.name))
    }

    /// Sends a signal by its name, such as `TERM` or `STOP`.
    pub fn signal(&self, signal: &str) -> anyhow::Result<()> {
        let mut child = self.child();
        // After it has ended and was waited for, its id may belong to another process.
        ensure!(child.try_wait()?.is_none(), "{} has ended, SIG{signal} comes too late", self.name);
        let status = Command::new("kill").arg(format!("-{signal}")).arg(child.id().to_string()).status()?;
        ensure!(status.success(), "SIG{signal} was not sent to {}", self.name);
        Ok(())
    }

    /// Peak resident memory in KiB, while it runs.
    pub fn peak_memory_kib(&self) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child().id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let number = line.and_then(|line| line.split_whitespace().next()).context("it has no memory")?;
        Ok(number.parse()?)
    }

    /// An error that it has caused, with the last lines that it logged.
    pub fn explain(&self, error: &anyhow::Error) -> anyhow::Error {
        anyhow!("{error:#}\n{} logged last, in {}:\n{}", self.name, self.log.display(), tail(&self.log))
    }

    /// The file of its log.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// No change of it can be incomplete, so a panic elsewhere does not matter.
    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.kill());
    }
}

/// The last lines of a file.
fn tail(file: &Path) -> String {
    let bytes = std::fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let skip = text.lines().count().saturating_sub(TAIL_LINES);
    text.lines().skip(skip).collect::<Vec<_>>().join("\n")
}
