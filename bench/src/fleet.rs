//! The fleet, in a process of its own.

use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use anyhow::Context;
use procscan_agent::simulate::{Behaviour, Fault, Fleet, FleetOptions};
use tokio_util::sync::CancellationToken;

use crate::process::Running;

/// Where the fleets are: one address per node.
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
    /// Where the list of targets goes
    #[arg(long)]
    targets: PathBuf,
}

/// How often it is looked whether a node has been asked: how exactly its answer is timed.
const LOOK: Duration = Duration::from_millis(1);

/// Prints `ready`, then obeys: `offend NODE` starts one more process on a node. When the node has answered with it, prints
/// `answered NODE POD MICROSECONDS`, the time since the epoch. `misbehave` begins the faults, `behave` ends them.
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
    let (tell, mut told) = tokio::sync::mpsc::channel(1024);
    // Ends with whoever has started it.
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if tell.blocking_send(line).is_err() {
                return;
            }
        }
    });
    println!("ready");
    let mut waiting: Vec<(usize, u64, String)> = Vec::new();
    let mut looks = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            line = told.recv() => {
                let Some(line) = line else { return Ok(()) };
                match line.as_str() {
                    "misbehave" => {
                        fleet.inject(&options.fault)?;
                        continue;
                    }
                    "behave" => {
                        (0..options.nodes).for_each(|node| fleet.set_behaviour(node, Behaviour::Healthy));
                        continue;
                    }
                    _ => {}
                }
                let node: usize = line.strip_prefix("offend ").context("an order")?.parse()?;
                let count = fleet.offenders(node).len() + 1;
                let asked = fleet.requests(node);
                fleet.set_offender_count(node, count);
                fleet.scan_now(node);
                let pod = fleet.offenders(node).last().map(|offender| offender.pod.clone()).unwrap_or_default();
                waiting.push((node, asked, pod));
            }
            _ = looks.tick(), if !waiting.is_empty() => {
                waiting.retain(|(node, asked, pod)| {
                    let has_answered = fleet.requests(*node) > *asked;
                    if has_answered {
                        println!("answered {node} {pod} {}", crate::rounds::micros());
                    }
                    !has_answered
                });
                std::io::stdout().flush()?;
            }
        }
    }
}

/// Nobody waits for a fleet longer than this.
const READY: Duration = Duration::from_mins(1);

/// The process, as whoever has started it sees it.
pub(crate) struct Simulated {
    pub(crate) orders: ChildStdin,
    pub(crate) answers: Receiver<String>,
    _process: Running,
}

impl Simulated {
    /// Starts it, with `faults` as `BEHAVIOUR:PERCENT`; the list of its targets goes to the directory.
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
            let (behaviour, percent) = fault.rsplit_once(':').context("a fault is BEHAVIOUR:PERCENT")?;
            let percent: usize = percent.parse().context("a fault is BEHAVIOUR:PERCENT")?;
            command.args(["--fault", &format!("{behaviour}:{}", nodes * percent / 100)]);
        }
        let mut process = Running::start(&mut command)?;
        let orders = process.child().stdin.take().context("a pipe")?;
        let output = process.child().stdout.take().context("a pipe")?;
        let (tell, answers) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if tell.send(line).is_err() {
                    return;
                }
            }
        });
        let ready = answers.recv_timeout(READY).context("the fleet does not start")?;
        anyhow::ensure!(ready == "ready", "the fleet says: {ready}");
        Ok(Self { orders, answers, _process: process })
    }
}
