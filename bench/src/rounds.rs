//! Rounds over simulated fleets: their CPU time and memory, and the time from an answer to the output.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;

use crate::aggregator::{self, Aggregator, Setup};
use crate::fleet::{BASE, PORT, Simulated, micros};
use crate::process::Cpu;
use crate::table::{Row, Table};

/// The rounds between the last fault and the measurement of memory. In this time all failed targets are asked again.
const RECOVERY: u32 = 3;
/// How often the output is checked for changes.
const CHECK_EVERY: Duration = Duration::from_millis(5);

#[derive(clap::Args)]
pub(crate) struct Options {
    /// The aggregator
    #[arg(long, default_value = "target/release/procscan-aggregator")]
    program: PathBuf,
    /// The sizes of the fleets
    #[arg(long, value_delimiter = ',', default_value = "5000,15000,65000")]
    nodes: Vec<usize>,
    /// Records of each node
    #[arg(long, default_value_t = 2)]
    records: usize,
    /// The length of a round
    #[arg(long, value_parser = humantime::parse_duration, default_value = "60s")]
    interval: Duration,
    /// How many rounds are measured in which only timestamps change; every fifth round decides on all incidents again
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// How many changes are timed, over one more round
    #[arg(long, default_value_t = 200)]
    changes: usize,
    /// Faults of the last nodes during the measurement, as `BEHAVIOUR:PERCENT`
    #[arg(long)]
    fault: Vec<String>,
    /// Use the default brakes, so that all but the first Apps are held
    #[arg(long)]
    braked: bool,
    /// A directory for files and logs, which are not removed
    #[arg(long)]
    keep: Option<PathBuf>,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    aggregator::ensure_built(&options.program)?;
    let mut table = Table::default();
    for nodes in &options.nodes {
        let temp;
        let directory = if let Some(keep) = &options.keep {
            keep.join(nodes.to_string())
        } else {
            temp = tempfile::tempdir()?;
            temp.path().to_owned()
        };
        anyhow::ensure!(
            !directory.exists() || directory.read_dir()?.next().is_none(),
            "{}: not empty",
            directory.display()
        );
        std::fs::create_dir_all(&directory)?;
        table.add(measure(options, *nodes, &directory).with_context(|| format!("{nodes} nodes"))?);
        print!("{table}");
    }
    Ok(())
}

fn measure(options: &Options, nodes: usize, directory: &Path) -> anyhow::Result<Row> {
    // Agents scan between any two rounds, so that each answer differs from the one before.
    let scans = options.interval / 2;
    let faults =
        options.fault.iter().map(|fault| of_nodes(fault, nodes)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut fleet = Simulated::start(nodes, options.records, scans, &faults, directory)?;
    // The bare loop leaves out the nodes that will misbehave, because it would wait for those that hang.
    let answering = healthy(options, nodes);
    let setup = Setup {
        program: &options.program,
        interval: options.interval,
        braked: options.braked,
        workers: None,
        more: "",
    };
    let aggregator = Aggregator::start(&setup, directory)?;
    let started = Instant::now();
    let first_round = aggregator.first_round(options.interval)?;
    // From the second round on, every target is asked in its own slot. By the third, all objects have been written and compared.
    let settled = options.interval.mul_f64(2.9);
    std::thread::sleep(settled.saturating_sub(started.elapsed()));
    let idle = aggregator.process.memory("VmRSS")?;
    if !options.fault.is_empty() {
        fleet.command("misbehave")?;
        // Every node has been asked since.
        std::thread::sleep(options.interval);
    }
    let cpu = Cpu::of(aggregator.process.pid()?)?;
    let started = Instant::now();
    let mut bare = Pass::default();
    for round in 1..=options.rounds {
        // In the last fifth of a round only the bare loop asks the nodes. The cost of a connection differs from minute to minute on
        // a shared host, so only measurements that take turns can be compared.
        bare.add(&Pass::run(answering)?);
        std::thread::sleep((options.interval * round).saturating_sub(started.elapsed()));
    }
    // If the rounds are too short for the bare loop, more rounds have passed.
    let per_round = cpu.spent()?.div_duration_f64(started.elapsed()) * options.interval.as_secs_f64();
    let cpu = Cpu::of(aggregator.process.pid()?)?;
    let waits = changes(options, nodes, directory, &mut fleet)?;
    let with_changes = cpu.spent()?;
    if !options.fault.is_empty() {
        fleet.command("behave")?;
        std::thread::sleep(options.interval * RECOVERY);
    }
    let rss = aggregator.process.memory("VmRSS")?;
    let peak = aggregator.process.memory("VmHWM")?;
    aggregator.process.stop()?;
    Ok(Row {
        nodes,
        records: nodes * options.records,
        cpu: per_round,
        cpu_changes: with_changes.as_secs_f64(),
        bare: bare.cpu / f64::from(options.rounds),
        bare_wall: bare.wall / f64::from(options.rounds),
        first_round: first_round.as_secs_f64(),
        bytes: bare.bytes,
        faulty: nodes - answering,
        idle,
        peak,
        rss,
        changes: waits.len(),
        missing: options.changes.min(nodes) - waits.len(),
        p50: percentile(&waits, 50),
        p99: percentile(&waits, 99),
        slowest: waits.last().copied().unwrap_or_default(),
    })
}

pub(crate) fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last * percent).div_ceil(100)).copied().unwrap_or_default()
}

/// The costs of the bare loop.
#[derive(Default)]
struct Pass {
    cpu: f64,
    wall: f64,
    /// Received in the last one.
    bytes: u64,
}

impl Pass {
    /// One pass, in a process of its own.
    fn run(nodes: usize) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("bare").args(["--base", &BASE.to_string(), "--port", &PORT.to_string()]);
        let output = command.args(["--nodes", &nodes.to_string()]).stderr(Stdio::inherit()).output()?;
        let text = String::from_utf8(output.stdout)?;
        let mut words = text.split_whitespace();
        let mut next = || words.next().context("the bare loop has failed");
        Ok(Self { cpu: next()?.parse()?, wall: next()?.parse()?, bytes: next()?.parse()? })
    }

    fn add(&mut self, other: &Self) {
        self.cpu += other.cpu;
        self.wall += other.wall;
        self.bytes = other.bytes;
    }
}

/// Turns a fault with a percentage of the nodes into one with their number.
fn of_nodes(fault: &str, nodes: usize) -> anyhow::Result<String> {
    let (behaviour, percent) = fault.rsplit_once(':').context("a fault is BEHAVIOUR:PERCENT")?;
    let percent: usize = percent.parse().context("a fault is BEHAVIOUR:PERCENT")?;
    Ok(format!("{behaviour}:{}", nodes * percent / 100))
}

/// How many nodes never misbehave. The others are at the end of the fleet.
fn healthy(options: &Options, nodes: usize) -> usize {
    let percents = options.fault.iter().filter_map(|fault| fault.rsplit_once(':')?.1.parse::<usize>().ok());
    nodes - percents.map(|percent| nodes * percent / 100).sum::<usize>().min(nodes)
}

/// Changes nodes evenly over a round. Returns the times from each answer to the output, ordered.
fn changes(
    options: &Options,
    nodes: usize,
    directory: &Path,
    fleet: &mut Simulated,
) -> anyhow::Result<Vec<Duration>> {
    let objects = directory.join("objects");
    let healthy = healthy(options, nodes);
    let count = options.changes.min(healthy);
    let pause = options.interval / u32::try_from(count.max(1))?;
    let started = Instant::now();
    let mut seen: BTreeMap<PathBuf, SystemTime> = BTreeMap::new();
    let mut answered: BTreeMap<String, u64> = BTreeMap::new();
    let (mut changed, mut waits) = (0, Vec::new());
    // Files that exist already are not read.
    read_changed(&objects, &mut seen, |_| ())?;
    while waits.len() < count && started.elapsed() < options.interval * 3 {
        while changed < count && started.elapsed() >= pause * u32::try_from(changed)? {
            fleet.command(&format!("offend {}", changed * healthy / count))?;
            changed += 1;
        }
        for line in fleet.answers.try_iter() {
            let mut words = line.split(' ').skip(2);
            let (Some(pod), Some(at)) = (words.next(), words.next()) else { continue };
            answered.insert(pod.to_owned(), at.parse()?);
        }
        read_changed(&objects, &mut seen, |text| {
            let now = micros();
            answered.retain(|pod, at| {
                let is_written = text.contains(pod.as_str());
                if is_written {
                    waits.push(Duration::from_micros(now.saturating_sub(*at)));
                }
                !is_written
            });
        })?;
        std::thread::sleep(CHECK_EVERY);
    }
    waits.sort_unstable();
    Ok(waits)
}

/// Reads the gateway's objects that have changed since the last call.
fn read_changed(
    objects: &Path,
    seen: &mut BTreeMap<PathBuf, SystemTime>,
    mut read: impl FnMut(&str),
) -> anyhow::Result<()> {
    // These files are known by name, and far fewer than those of the tenants' objects, so the directory need not be listed.
    for index in 0.. {
        let path = objects.join(plugin(index));
        let Ok(metadata) = path.metadata() else { return Ok(()) };
        let modified = metadata.modified()?;
        if seen.insert(path.clone(), modified) != Some(modified) {
            read(&std::fs::read_to_string(&path)?);
        }
    }
    Ok(())
}

/// The file of a WasmPlugin: the first one, or a further one for the blocks beyond its size.
pub(crate) fn plugin(index: usize) -> String {
    match index {
        0 => "wasmplugin_higress-system_procscan-violations.yaml".to_owned(),
        n => format!("wasmplugin_higress-system_procscan-violations-{n}.yaml"),
    }
}
