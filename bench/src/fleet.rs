//! The fleet, in a process of its own.

use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use procscan_agent::simulate::{Behaviour, Fault, Fleet, FleetOptions};
use tokio_util::sync::CancellationToken;

use crate::process::Running;

/// The first address and the port of the fleets: one address per node.
pub(crate) const BASE: Ipv4Addr = Ipv4Addr::new(127, 64, 0, 1);
pub(crate) const PORT: u16 = 19_090;

#[derive(clap::Args)]
pub(crate) struct Options {
    #[arg(long)]
    nodes: usize,
    #[arg(long)]
    base: Ipv4Addr,
    #[arg(long)]
    port: u16,
    #[arg(long)]
    records: usize,
    #[arg(long)]
    tenants: usize,
    #[arg(long, value_parser = humantime::parse_duration)]
    scan_interval: Duration,
    #[arg(long)]
    fault: Vec<Fault>,
    /// The file for the list of targets
    #[arg(long)]
    targets: PathBuf,
}

/// How often the fleet checks for new requests, and so the precision of the time of an answer.
const CHECK_EVERY: Duration = Duration::from_millis(1);

/// A change that is reported once its node has answered with it.
struct Waiting {
    node: usize,
    /// The change is reported once the node has received this many requests.
    requests: u64,
    pod: String,
}

/// Prints `ready`, then takes commands from its standard input:
///
/// - `offend NODE` starts one more process on a node. After the node's answer with it, the fleet prints
///   `answered NODE POD MICROSECONDS`, the time since the epoch.
/// - `calm NODE ANSWERS` ends the last process. The fleet prints the same line after this many answers without it.
/// - `misbehave` begins the faults, and `behave` ends them.
/// - `miners` prints `miner NODE POD` for each Pod that has an offender, and then `all`.
#[tokio::main]
pub(crate) async fn run(options: &Options) -> anyhow::Result<()> {
    let fleet = Fleet::start(
        FleetOptions {
            nodes: options.nodes,
            base: options.base,
            port: options.port,
            listen: Ipv4Addr::UNSPECIFIED,
            scan_interval: options.scan_interval,
            offenders_per_node: options.records,
            tenants: options.tenants,
            ..FleetOptions::default()
        },
        &CancellationToken::new(),
    )?;
    let mut list = Vec::new();
    for (node, address) in fleet.targets() {
        writeln!(list, "{address} node={node}")?;
    }
    std::fs::write(&options.targets, list)?;
    let (sender, mut commands) = tokio::sync::mpsc::channel(1024);
    // The standard input ends with the parent process.
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    println!("ready");
    let mut waiting: Vec<Waiting> = Vec::new();
    let mut checks = tokio::time::interval(CHECK_EVERY);
    loop {
        tokio::select! {
            line = commands.recv() => {
                let Some(line) = line else { return Ok(()) };
                waiting.extend(carry_out(&fleet, options, &line)?);
            }
            _ = checks.tick(), if !waiting.is_empty() => {
                waiting.retain(|Waiting { node, requests, pod }| {
                    let has_answered = fleet.requests(*node) >= *requests;
                    if has_answered {
                        println!("answered {node} {pod} {}", micros());
                    }
                    !has_answered
                });
                std::io::stdout().flush()?;
            }
        }
    }
}

/// Carries out a command; returns the change that has to be reported.
fn carry_out(fleet: &Fleet, options: &Options, line: &str) -> anyhow::Result<Option<Waiting>> {
    let fields: Vec<&str> = line.split(' ').collect();
    let last = |node| fleet.offenders(node).last().map(|offender| offender.pod.clone()).unwrap_or_default();
    match fields.as_slice() {
        ["misbehave"] => fleet.inject(&options.fault)?,
        ["behave"] => (0..options.nodes).for_each(|node| fleet.set_behaviour(node, Behaviour::Healthy)),
        ["miners"] => {
            for node in 0..options.nodes {
                for miner in fleet.offenders(node).into_iter().chain(fleet.neighbour(node)) {
                    println!("miner {node} {}", miner.pod);
                }
            }
            println!("all");
            std::io::stdout().flush()?;
        }
        ["offend", node] => {
            let node = node.parse()?;
            let count = fleet.offenders(node).len() + 1;
            let requests = fleet.requests(node) + 1;
            fleet.set_offender_count(node, count);
            fleet.scan_now(node);
            return Ok(Some(Waiting { node, requests, pod: last(node) }));
        }
        ["calm", node, answers] => {
            let node = node.parse()?;
            let pod = last(node);
            let count = fleet.offenders(node).len().saturating_sub(1);
            fleet.set_offender_count(node, count);
            fleet.scan_now(node);
            let answers: u64 = answers.parse()?;
            return Ok(Some(Waiting { node, requests: fleet.requests(node) + answers, pod }));
        }
        _ => anyhow::bail!("invalid command: {line}"),
    }
    Ok(None)
}

/// The longest wait for an answer of the fleet.
const READY: Duration = Duration::from_mins(1);

/// The process of a fleet, for the process that has started it.
pub(crate) struct Simulated {
    commands: ChildStdin,
    pub(crate) answers: Receiver<String>,
    pub(crate) process: Running,
}

impl Simulated {
    /// Starts it, with `faults` as `BEHAVIOUR:NODES`; the list of its targets goes to the directory.
    pub(crate) fn start(
        nodes: usize,
        records: usize,
        scan_interval: Duration,
        faults: &[String],
        directory: &Path,
    ) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("fleet").stdin(Stdio::piped()).stdout(Stdio::piped());
        let base = BASE.to_string();
        let set = [
            ("--nodes", nodes.to_string()),
            ("--base", base),
            ("--port", PORT.to_string()),
            ("--records", records.to_string()),
            ("--tenants", (nodes / 10).max(1).to_string()),
            ("--scan-interval", humantime::format_duration(scan_interval).to_string()),
            ("--targets", directory.join("targets").display().to_string()),
        ];
        for (name, value) in set {
            command.args([name, &value]);
        }
        for fault in faults {
            // In a small fleet, a percentage may be less than one node.
            if !fault.ends_with(":0") {
                command.args(["--fault", fault]);
            }
        }
        let mut process = Running::start(&mut command)?;
        let commands = process.child().stdin.take().context("a pipe")?;
        let output = process.child().stdout.take().context("a pipe")?;
        let (sender, answers) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let ready = answers.recv_timeout(READY).context("the fleet does not start")?;
        anyhow::ensure!(ready == "ready", "invalid report of the fleet: {ready}");
        Ok(Self { commands, answers, process })
    }

    pub(crate) fn command(&mut self, command: &str) -> anyhow::Result<()> {
        writeln!(self.commands, "{command}").context("the fleet has ended")
    }

    /// The nodes and Pods of all offenders. Called while no change waits for its report.
    pub(crate) fn miners(&mut self) -> anyhow::Result<Vec<(usize, String)>> {
        self.command("miners")?;
        let mut miners = Vec::new();
        loop {
            let line = self.answers.recv_timeout(READY).context("the fleet does not answer")?;
            let fields: Vec<&str> = line.split(' ').collect();
            match fields.as_slice() {
                ["miner", node, pod] => miners.push((node.parse()?, (*pod).to_owned())),
                ["all"] => return Ok(miners),
                _ => anyhow::bail!("invalid report of the fleet: {line}"),
            }
        }
    }
}

/// Microseconds since the epoch.
pub(crate) fn micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
