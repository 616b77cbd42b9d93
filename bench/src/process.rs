//! Processes that the bench starts and ends, and their CPU time and memory.

use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_getcpuclockid};
use nix::unistd::Pid;

/// How long a process may take to end after the signal.
const GOODBYE: Duration = Duration::from_secs(20);

/// The CPU time of a process: all of its threads, ended ones included.
pub(crate) struct Cpu {
    clock: ClockId,
    since: Duration,
}

impl Cpu {
    pub(crate) fn of(pid: Pid) -> anyhow::Result<Self> {
        let mut cpu = Self { clock: clock_getcpuclockid(pid)?, since: Duration::ZERO };
        cpu.since = cpu.now()?;
        Ok(cpu)
    }

    pub(crate) fn of_this() -> anyhow::Result<Self> {
        Self::of(Pid::this())
    }

    /// The CPU time that the process has used since this value was made.
    pub(crate) fn spent(&self) -> anyhow::Result<Duration> {
        Ok(self.now()?.saturating_sub(self.since))
    }

    fn now(&self) -> anyhow::Result<Duration> {
        Ok(Duration::from(self.clock.now()?))
    }
}

/// The soft limit of open files under systemd and current container runtimes.
const USUAL_FILES: u64 = 1024;

/// Runs `start` with the usual soft limit of open files, which its child processes inherit.
pub(crate) fn with_usual_files<T>(start: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, USUAL_FILES.min(hard), hard)?;
    let started = start();
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
    started
}

/// A child process; it is ended when this is dropped.
pub(crate) struct Running(Child);

impl Running {
    pub(crate) fn start(command: &mut Command) -> anyhow::Result<Self> {
        let shown = Path::new(command.get_program()).display().to_string();
        command.spawn().map(Self).with_context(|| format!("can't start {shown}"))
    }

    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.0
    }

    pub(crate) fn pid(&self) -> anyhow::Result<Pid> {
        Ok(Pid::from_raw(i32::try_from(self.0.id())?))
    }

    /// A figure of `/proc/PID/status`, in KiB.
    pub(crate) fn memory(&self, field: &str) -> anyhow::Result<u64> {
        let path = Path::new("/proc").join(self.0.id().to_string()).join("status");
        let status = std::fs::read_to_string(&path).context("the process has ended; see its log")?;
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let kib = line.and_then(|line| line.split_whitespace().next()).context("no such field")?;
        Ok(kib.parse()?)
    }

    /// Waits until the process ends by itself.
    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        kill(self.pid()?, Signal::SIGTERM)?;
        let deadline = Instant::now() + GOODBYE;
        while self.0.try_wait()?.is_none() {
            anyhow::ensure!(Instant::now() < deadline, "a process does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The process may have ended before.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
