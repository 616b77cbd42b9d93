//! The aggregator in its release build, and the figures of rounds in its log.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::process::Running;

/// The port of the aggregator's API.
pub(crate) const API: u16 = 18_090;

/// The allocator's setting in the image (`Dockerfile`): it returns free memory to the kernel at once.
const ALLOCATOR: (&str, &str) = ("MIMALLOC_PURGE_DELAY", "0");

/// How the aggregator runs.
pub(crate) struct Setup<'a> {
    pub(crate) program: &'a Path,
    /// The length of a round.
    pub(crate) interval: Duration,
    /// With the default brakes.
    pub(crate) braked: bool,
    /// How many threads serve; by default as many as there are cores.
    pub(crate) workers: Option<usize>,
    /// Further sections of the configuration, whole lines.
    pub(crate) more: &'a str,
}

pub(crate) struct Aggregator {
    pub(crate) process: Running,
    log: PathBuf,
}

pub(crate) fn ensure_built(program: &Path) -> anyhow::Result<()> {
    let shown = program.display();
    anyhow::ensure!(program.exists(), "{shown}: not found; build it with `cargo build --release`");
    Ok(())
}

impl Aggregator {
    pub(crate) fn start(setup: &Setup<'_>, directory: &Path) -> anyhow::Result<Self> {
        let shown = |name: &str| directory.join(name).display().to_string();
        let brakes = "brake: {max_new_tenants: 1000000, max_tenants_per_node: 1000000, max_apps_per_node: 1000000, max_apps_per_tenant: 1000000, max_tenants_per_rule: 1000000, max_releases: 1000000}\n";
        // Every block is written, because the plain list takes all of them: without a cluster, no block can name Ingresses.
        let config = format!(
            "aggregator: {{address: 127.0.0.1, scan_interval: {}, port: {API}}}\n\
             discovery: {{mode: file, file: {}}}\n\
             output: {{mode: directory, directory: {}}}\n\
             state: {{directory: {}}}\n\
             gateway: {{max_service_entries: 1000000}}\n\
             notification: {{max_per_round: 1000000}}\n{}{}{}",
            humantime::format_duration(setup.interval).to_string().replace(' ', ""),
            shown("targets"),
            shown("objects"),
            shown("state"),
            if setup.braked { "" } else { brakes },
            // Only this level logs rounds without changes.
            if setup.workers.is_some() { "logger: {level: debug}\n" } else { "" },
            setup.more,
        );
        std::fs::write(directory.join("config.yaml"), config)?;
        let log = directory.join("log");
        let mut command = Command::new(setup.program);
        command.args(["run", "--config", &shown("config.yaml")]).stderr(std::fs::File::create(&log)?);
        command.env(ALLOCATOR.0, ALLOCATOR.1);
        if let Some(workers) = setup.workers {
            command.env("TOKIO_WORKER_THREADS", workers.to_string());
        }
        Ok(Self { process: Running::start(&mut command)?, log })
    }

    /// How long the first round takes, which is not spread over its interval.
    pub(crate) fn first_round(&self, interval: Duration) -> anyhow::Result<Duration> {
        let line = self.rounds(0, 1, interval)?.into_iter().next().context("a round")?;
        let took = number(&line, "took_ms").context("a log line without `took_ms`")?;
        Ok(Duration::from_millis(took))
    }

    /// How late agents were asked on average in each of the next `count` whole rounds; `None` if the log has no figures.
    pub(crate) fn lags(&self, count: usize, interval: Duration) -> anyhow::Result<Option<Vec<u64>>> {
        // The round that is running is not counted, because it began before this call.
        let skip = rounds_of(&std::fs::read_to_string(&self.log)?).count() + 1;
        let lines = self.rounds(skip, count, interval)?;
        Ok(lines.iter().map(|line| number(line, "lag_us")).collect())
    }

    /// Waits for the log lines of `count` rounds after the first `skip`.
    fn rounds(&self, skip: usize, count: usize, interval: Duration) -> anyhow::Result<Vec<String>> {
        let rounds = u32::try_from(skip + count)?;
        let deadline = Instant::now() + interval * rounds.saturating_add(1);
        loop {
            let log = std::fs::read_to_string(&self.log)?;
            let lines: Vec<String> = rounds_of(&log).skip(skip).take(count).map(str::to_owned).collect();
            if lines.len() == count {
                return Ok(lines);
            }
            anyhow::ensure!(Instant::now() < deadline, "no round has ended; see {}", self.log.display());
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

fn rounds_of(log: &str) -> impl Iterator<Item = &str> {
    // The last line may be incomplete.
    let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().filter(|line| line.contains("\"round done"))
}

/// A number in a line of JSON.
fn number(line: &str, field: &str) -> Option<u64> {
    let (_, value) = line.split_once(&format!("\"{field}\":"))?;
    let end = value.find(|c: char| !c.is_ascii_digit()).unwrap_or(value.len());
    value.get(..end)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_complete_lines_of_rounds_are_read() {
        let log = "{\"message\":\"listening\"}\n\
                   {\"message\":\"round done\",\"took_ms\":812,\"lag_us\":70}\n\
                   {\"message\":\"round done: no agent has answered\",\"lag_us\":9}\n\
                   {\"message\":\"round done\",\"lag_us\":1";
        let lags: Vec<_> = rounds_of(log).map(|line| number(line, "lag_us")).collect();
        assert_eq!(lags, [Some(70), Some(9)]);
        assert_eq!(rounds_of("{\"message\":\"round done\"").count(), 0);
    }

    #[test]
    fn an_incomplete_number_is_not_read() {
        let line = r#"{"took_ms":812,"lag_us":"7","asked":}"#;
        assert_eq!(number(line, "took_ms"), Some(812));
        assert_eq!(number(line, "lag_us"), None);
        assert_eq!(number(line, "asked"), None);
        assert_eq!(number(line, "took"), None);
    }
}
