//! Rounds over simulated fleets: what the aggregator pays for them, and how soon what is answered is written.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;

use crate::aggregator::{self, Aggregator, Setup};
use crate::fleet::{BASE, PORT, Simulated, micros};
use crate::process::Cpu;
use crate::table::{Row, Table};

/// How many rounds after the last fault memory is looked at: whoever has failed is asked again by then.
const RECOVERY: u32 = 3;
/// How often it is looked whether the output has changed.
const LOOK: Duration = Duration::from_millis(5);

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
    /// How many rounds are measured in which nothing changes but the timestamps: in every fifth everything is decided on again
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// How many changes are timed, over one more round
    #[arg(long, default_value_t = 200)]
    changes: usize,
    /// Faults of the last nodes, as `BEHAVIOUR:PERCENT`, from before what is measured until after it
    #[arg(long)]
    fault: Vec<String>,
    /// Keep the brakes as they are shipped, so that all but the first Apps are held
    #[arg(long)]
    braked: bool,
    /// Where files and logs stay
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
    // Agents scan between any two rounds, so no answer is like the one before.
    let scans = options.interval / 2;
    let faults =
        options.fault.iter().map(|fault| of_nodes(fault, nodes)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut fleet = Simulated::start(nodes, options.records, scans, &faults, directory)?;
    // Nobody misbehaves yet, but whoever will is left out: a node that hangs would be waited for afterwards.
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
    // The second round has everybody in its usual place, and by the third everything has been written and looked at once more.
    let settled = options.interval.mul_f64(2.9);
    std::thread::sleep(settled.saturating_sub(started.elapsed()));
    let idle = aggregator.process.memory("VmRSS")?;
    if !options.fault.is_empty() {
        fleet.order("misbehave")?;
        // From here on every node has been asked since.
        std::thread::sleep(options.interval);
    }
    let cpu = Cpu::of(aggregator.process.pid()?)?;
    let started = Instant::now();
    let mut bare = Pass::default();
    for round in 1..=options.rounds {
        // The last fifth of a round is quiet: nobody is asked in it but by the bare loop. What a connection costs differs from minute to
        // minute on a machine that shares its host, so that only what was measured in turns can be compared.
        bare.add(&Pass::run(answering)?);
        std::thread::sleep((options.interval * round).saturating_sub(started.elapsed()));
    }
    // Where rounds are too short for the bare loop, it were more of them.
    let per_round = cpu.spent()?.div_duration_f64(started.elapsed()) * options.interval.as_secs_f64();
    let cpu = Cpu::of(aggregator.process.pid()?)?;
    let waits = changes(options, nodes, directory, &mut fleet)?;
    let with_changes = cpu.spent()?;
    if !options.fault.is_empty() {
        fleet.order("behave")?;
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

/// What the bare loop has cost.
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

/// A fault for so many nodes, of one for so many per cent of them.
fn of_nodes(fault: &str, nodes: usize) -> anyhow::Result<String> {
    let (behaviour, percent) = fault.rsplit_once(':').context("a fault is BEHAVIOUR:PERCENT")?;
    let percent: usize = percent.parse().context("a fault is BEHAVIOUR:PERCENT")?;
    Ok(format!("{behaviour}:{}", nodes * percent / 100))
}

/// How many nodes answer as they should: what hangs or lies is at the end of the fleet.
fn healthy(options: &Options, nodes: usize) -> usize {
    let percents = options.fault.iter().filter_map(|fault| fault.rsplit_once(':')?.1.parse::<usize>().ok());
    nodes - percents.map(|percent| nodes * percent / 100).sum::<usize>().min(nodes)
}

/// Changes nodes evenly over a round. How long it took from each answer to the output, ordered.
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
    let (mut asked, mut waits) = (0, Vec::new());
    // What is there already is not looked at.
    look(&objects, &mut seen, |_| ())?;
    while waits.len() < count && started.elapsed() < options.interval * 3 {
        while asked < count && started.elapsed() >= pause * u32::try_from(asked)? {
            fleet.order(&format!("offend {}", asked * healthy / count))?;
            asked += 1;
        }
        for line in fleet.answers.try_iter() {
            let mut words = line.split(' ').skip(2);
            let (Some(pod), Some(at)) = (words.next(), words.next()) else { continue };
            answered.insert(pod.to_owned(), at.parse()?);
        }
        look(&objects, &mut seen, |text| {
            let now = micros();
            answered.retain(|pod, at| {
                let is_written = text.contains(pod.as_str());
                if is_written {
                    waits.push(Duration::from_micros(now.saturating_sub(*at)));
                }
                !is_written
            });
        })?;
        std::thread::sleep(LOOK);
    }
    waits.sort_unstable();
    Ok(waits)
}

/// Reads the gateway's objects that have changed since the last look.
fn look(
    objects: &Path,
    seen: &mut BTreeMap<PathBuf, SystemTime>,
    mut read: impl FnMut(&str),
) -> anyhow::Result<()> {
    // Far fewer than the tenants' objects, and known by name: there is no need to list the others each time.
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

/// The file of a WasmPlugin: the first one, and those that go on with what has no room in it.
pub(crate) fn plugin(index: usize) -> String {
    match index {
        0 => "wasmplugin_higress-system_procscan-violations.yaml".to_owned(),
        n => format!("wasmplugin_higress-system_procscan-violations-{n}.yaml"),
    }
}
