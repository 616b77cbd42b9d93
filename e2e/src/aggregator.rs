//! The aggregator as users run it: a program, a configuration file, signals, logs and its HTTP API.

use std::io::{Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::bail;
use serde_json::Value;

mod http;

pub use http::{Answer, send};

use crate::network::free_port;
use crate::process::Process;
use crate::wait::until;

/// Names the program.
const PROGRAM: &str = "PROCSCAN_E2E_PROGRAM";

/// How long it may take to end after SIGTERM.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// How long a command may take that is not a service.
const COMMAND_LIMIT: Duration = Duration::from_mins(1);

/// How the aggregator is started.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Its kubeconfig; without one it finds no cluster.
    pub kubeconfig: Option<PathBuf>,
    /// Further environment variables, such as `PROCSCAN_LOGGER__LEVEL`; they win.
    pub env: Vec<(String, String)>,
    /// The address of its HTTP API; by default a free port of 127.0.0.1.
    pub address: Option<SocketAddr>,
}

impl Options {
    /// With this kubeconfig, and nothing else.
    pub fn kubeconfig(path: impl Into<PathBuf>) -> Self {
        Self { kubeconfig: Some(path.into()), ..Self::default() }
    }
}

/// A running aggregator. Killed when dropped.
#[derive(Debug)]
pub struct Aggregator {
    process: Process,
    address: SocketAddr,
    logs: Mutex<Logs>,
    // The last field, so that the directory is removed after the program has ended.
    _dir: tempfile::TempDir,
}

/// The part of the log that was read so far.
#[derive(Debug, Default)]
struct Logs {
    offset: u64,
    rest: Vec<u8>,
    entries: Vec<Value>,
}

impl Aggregator {
    /// Starts `procscan-aggregator run` with this configuration, whose address and port `options` replace.
    ///
    /// Returns when it runs, not when it is ready.
    pub fn spawn(config: &str, options: &Options) -> anyhow::Result<Self> {
        let address = match options.address {
            Some(address) => address,
            None => SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?)),
        };
        let keep = std::env::var_os("PROCSCAN_E2E_KEEP").is_some();
        let dir = tempfile::Builder::new().prefix("aggregator-").disable_cleanup(keep).tempdir()?;
        if keep {
            eprintln!("the aggregator's files are in {}", dir.path().display());
        }
        let file = dir.path().join("config.yaml");
        std::fs::write(&file, config)?;
        let mut command = command(dir.path(), options)?;
        command.arg("run").arg("--config").arg(file).stdout(Stdio::null());
        command.env("PROCSCAN_AGGREGATOR__ADDRESS", address.ip().to_string());
        command.env("PROCSCAN_AGGREGATOR__PORT", address.port().to_string());
        command.envs(options.env.iter().cloned());
        let process = Process::start("procscan-aggregator", &mut command, dir.path().join("stderr"))?;
        Ok(Self { process, address, logs: Mutex::default(), _dir: dir })
    }

    /// The address of its HTTP API.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The process itself.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Its log so far. A line that is not JSON is a string.
    pub fn logs(&self) -> Vec<Value> {
        let mut logs = self.logs.lock().unwrap_or_else(PoisonError::into_inner);
        // An unreadable log counts as empty, and tests name the entry that they missed.
        drop(logs.read(self.process.log()));
        logs.entries.clone()
    }

    /// Waits for a log entry, which may be there already, and returns it.
    pub async fn wait_for_log(
        &self,
        what: &str,
        limit: Duration,
        is_it: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        let what = format!("the log entry: {what}");
        let found = until(&what, limit, async || {
            if let Some(status) = self.process.exited().ok().flatten() {
                return Ok(Err(anyhow::anyhow!("the aggregator has ended: {status}")));
            }
            self.logs().into_iter().find(&is_it).map(Ok).ok_or("no such entry")
        });
        found.await.and_then(std::convert::identity).map_err(|error| self.process.explain(&error))
    }

    /// `GET`; a body that is not JSON is a string.
    pub async fn get(&self, path: &str) -> anyhow::Result<(u16, Value)> {
        // Where no cluster checks tokens, it is ignored.
        let bearer = format!("Bearer {}", crate::cluster::ADMIN_TOKEN);
        let answer = self.send("GET", path, &[("authorization", &bearer)], None).await?;
        Ok((answer.status, answer.json()))
    }

    /// `GET` of a path whose lists come in pages, all of them put together.
    pub async fn get_all(&self, path: &str) -> anyhow::Result<Value> {
        let (mut whole, mut cursor) = (Value::Null, String::new());
        loop {
            let (status, mut page) = self.get(&format!("{path}{cursor}")).await?;
            anyhow::ensure!(status == 200, "{path}{cursor}: {status}: {page}");
            let next = page.as_object_mut().and_then(|page| page.remove("next"));
            match (whole.as_object_mut(), page) {
                (Some(whole), Value::Object(page)) => {
                    for (name, value) in page {
                        match (whole.get_mut(&name), value) {
                            (Some(Value::Array(before)), Value::Array(more)) => before.extend(more),
                            (_, value) => _ = whole.insert(name, value),
                        }
                    }
                }
                (_, page) => whole = page,
            }
            match next.as_ref().and_then(Value::as_str) {
                Some(next) => cursor = format!("?cursor={next}"),
                None => return Ok(whole),
            }
        }
    }

    /// Any request to its HTTP API.
    pub async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&Value>,
    ) -> anyhow::Result<Answer> {
        http::send(self.address, method, path, headers, body).await
    }

    /// Waits until `GET` of a path answers 200 with a body that is as it should be, and gives the body.
    pub async fn wait_for(
        &self,
        what: &str,
        limit: Duration,
        path: &str,
        is_it: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        let found = until(what, limit, async || {
            if let Some(status) = self.process.exited().ok().flatten() {
                return Ok(Err(anyhow::anyhow!("the aggregator has ended: {status}")));
            }
            match self.get(path).await {
                Ok((200, body)) if is_it(&body) => Ok(Ok(body)),
                Ok((status, body)) => Err(format!("{path}: {status} {body}")),
                Err(error) => Err(format!("{path}: {error:#}")),
            }
        });
        found.await.and_then(std::convert::identity).map_err(|error| self.process.explain(&error))
    }

    /// SIGKILL. Returns when it is gone.
    pub fn kill(&self) -> anyhow::Result<()> {
        self.process.kill()
    }

    /// Any signal by its name, such as `STOP`, `CONT` or `HUP`.
    pub fn signal(&self, signal: &str) -> anyhow::Result<()> {
        self.process.signal(signal)
    }

    /// SIGTERM, and how it ended.
    pub async fn stop(&self) -> anyhow::Result<ExitStatus> {
        self.process.signal("TERM")?;
        self.ended(STOP_LIMIT).await
    }

    /// Waits for it to end by itself.
    pub async fn ended(&self, limit: Duration) -> anyhow::Result<ExitStatus> {
        let ended = until("the aggregator to end", limit, async || self.process.exited().transpose()).await;
        ended.and_then(std::convert::identity).map_err(|error| self.process.explain(&error))
    }
}

impl Logs {
    fn read(&mut self, file: &Path) -> std::io::Result<()> {
        let mut file = std::fs::File::open(file)?;
        file.seek(SeekFrom::Start(self.offset))?;
        let read = file.read_to_end(&mut self.rest)?;
        self.offset += u64::try_from(read).unwrap_or_default();
        let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else {
            return Ok(());
        };
        let rest = self.rest.split_off(end + 1);
        let whole = std::mem::replace(&mut self.rest, rest);
        self.entries.extend(String::from_utf8_lossy(&whole).lines().map(http::json_or_text));
        Ok(())
    }
}

/// The exit and the output of a command.
#[derive(Debug)]
pub struct CommandOutput {
    /// The exit code; `None` after a signal.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Runs a command of the program, and waits until it ends.
pub async fn run_command(args: &[&str], options: &Options) -> anyhow::Result<CommandOutput> {
    let dir = tempfile::tempdir()?;
    let (stdout, stderr) = (dir.path().join("stdout"), dir.path().join("stderr"));
    let mut command = command(dir.path(), options)?;
    command.args(args).stdout(std::fs::File::create(&stdout)?);
    command.envs(options.env.iter().cloned());
    let process = Process::start("procscan-aggregator", &mut command, stderr.clone())?;
    let ended =
        until(&format!("{args:?} to end"), COMMAND_LIMIT, async || process.exited().transpose()).await;
    let status = ended.and_then(std::convert::identity).map_err(|error| process.explain(&error))?;
    let read = |file: &Path| std::fs::read(file).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    Ok(CommandOutput { code: status.code(), stdout: read(&stdout)?, stderr: read(&stderr)? })
}

/// The program without variables of our own environment by which it could find a cluster.
fn command(dir: &Path, options: &Options) -> anyhow::Result<Command> {
    let Some(program) = std::env::var_os(PROGRAM) else {
        bail!("{PROGRAM} does not name the aggregator's program: start this by e2e/run");
    };
    let mut command = Command::new(program);
    command.current_dir(dir).env_clear().env("HOME", dir).env("RUST_BACKTRACE", "1");
    if let Some(kubeconfig) = &options.kubeconfig {
        command.env("KUBECONFIG", kubeconfig);
    }
    Ok(command)
}
