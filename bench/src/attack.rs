//! Faulty agents, flooding tenants and hostile clients at once, and their effect on probes, memory and healthy nodes.
//!
//! The bars: each probe is answered within [`PROBE_LIMIT`], and memory stays below [`MEMORY_LIMIT`]. Each change of a healthy node
//! is in the output within [`CHANGE_LIMIT`] of the answer that shows it. Every miner is listed.

mod changes;
mod clients;
mod listed;
mod probes;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use self::changes::Waits;
use self::clients::Clients;
use self::listed::Listed;
use self::probes::Latencies;
use crate::aggregator::{self, API, Aggregator, Setup};
use crate::fleet::Simulated;
use crate::process::{Cpu, with_usual_files};
use crate::rounds::percentile;

pub(crate) use self::clients::{Options as ClientOptions, run as run_clients};

/// The longest that a probe may take.
const PROBE_LIMIT: Duration = Duration::from_millis(100);
/// The most resident memory, in bytes.
const MEMORY_LIMIT: u64 = 100_000_000;
/// The longest from the answer that shows a change to the output.
const CHANGE_LIMIT: Duration = Duration::from_secs(2);
/// A token of the aggregator's file. Half of the clients that send no body have it.
const TOKEN: &str = "a-token-of-the-simulated-attack";
/// Texts that the log has only after a failure of the program.
const FAILED: [&str; 2] = ["panicked", "died"];

/// The flooding tenants' behaviours, in turns.
const FLOODS: [&str; 2] = ["flood=3000", "flood-long"];

/// The faults, and whether the miners of their nodes have to be listed. They need not be listed if the agent gives no usable
/// answer, or one without end.
const FAULTS: [(&str, bool); 29] = [
    ("hang", false),
    ("reset", false),
    ("error500", false),
    ("garbage", false),
    ("endless", false),
    ("slow=1s", true),
    ("slow=1m", false),
    ("drip=200ms", false),
    ("gzip-bomb", false),
    ("zstd-bomb", false),
    ("gzip-members", false),
    ("chunk-extensions", false),
    ("redirect", false),
    ("null", false),
    ("restarted", false),
    ("stale-timestamps", false),
    ("wrapped", true),
    ("mixed-bad", true),
    ("huge-record", true),
    ("one-at-a-time", true),
    ("no-date", true),
    ("skewed=-1h", true),
    ("skewed=1h", true),
    ("long-cmdline=1MiB", true),
    ("long-cmdline=24MiB", true),
    ("zero-padding", true),
    ("x-gzip", true),
    ("lone-surrogates", true),
    ("flood=1000", true),
];

#[derive(clap::Args)]
pub(crate) struct Options {
    /// The aggregator
    #[arg(long, default_value = "target/release/procscan-aggregator")]
    program: PathBuf,
    /// For how long
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// The length of a round; agents have at most 10 s of it
    #[arg(long, value_parser = humantime::parse_duration, default_value = "10s")]
    interval: Duration,
    /// Healthy nodes: on each of them a miner begins and ends
    #[arg(long, default_value_t = 100)]
    healthy: usize,
    /// Nodes with a flooding tenant
    #[arg(long, default_value_t = 100)]
    flooding: usize,
    /// Nodes with faults, all kinds of them
    #[arg(long, default_value_t = 600)]
    faulty: usize,
    /// Hostile clients of the API
    #[arg(long, default_value_t = 1000)]
    clients: usize,
    /// A directory for files and logs, which are not removed
    #[arg(long)]
    keep: Option<PathBuf>,
}

/// The behaviour of some consecutive nodes.
struct Group {
    behaviour: &'static str,
    nodes: std::ops::Range<usize>,
    must_be_listed: bool,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    aggregator::ensure_built(&options.program)?;
    let temp = tempfile::tempdir()?;
    let directory = options.keep.as_deref().unwrap_or(temp.path());
    std::fs::create_dir_all(directory)?;
    anyhow::ensure!(directory.read_dir()?.next().is_none(), "{}: not empty", directory.display());
    let missed = measure(options, directory)?;
    if missed.is_empty() {
        return Ok(());
    }
    let files = if options.keep.is_some() { directory.to_owned() } else { temp.keep() };
    println!("files and logs are in {}", files.display());
    anyhow::bail!("missed: {}", missed.join("; "))
}

/// Returns the bars that were missed.
fn measure(options: &Options, directory: &Path) -> anyhow::Result<Vec<String>> {
    let groups = groups(options);
    let faults: Vec<String> = groups
        .iter()
        .filter(|group| !group.nodes.is_empty())
        .map(|group| format!("{}:{}", group.behaviour, group.nodes.len()))
        .collect();
    let nodes = options.healthy + options.flooding + options.faulty;
    // Agents scan between any two rounds, so that each answer has another scan.
    let mut fleet = Simulated::start(nodes, 1, options.interval / 4, &faults, directory)?;
    fleet.command("misbehave")?;
    let miners = miners(&mut fleet, options.healthy, &groups)?;
    println!("{nodes} nodes, {} miners that have to be listed, {} clients", miners.len(), options.clients);

    let aggregator = start(options, directory)?;
    let first_round = aggregator.first_round(options.interval)?;
    let before = aggregator.process.memory("VmHWM")? << 10;
    println!("the first round took {first_round:.1?}; peak memory until then {:.1} MB", megabytes(before));
    let cpu = Cpu::of(aggregator.process.pid()?)?;
    let fleet_cpu = Cpu::of(fleet.process.pid()?)?;
    let clients = Clients::start(options.clients)?;
    let time = Duration::from_secs(options.seconds);
    let started = Instant::now();
    let stop = AtomicBool::new(false);
    let (waits, probes, listed) = std::thread::scope(|scope| {
        let probes = scope.spawn(|| probes::run(API, &stop));
        // All records of a flood are known after two rounds.
        let listed = scope.spawn(|| listed::watch(API, &miners, options.interval * 2, &stop));
        let waits = changes::run(&mut fleet, directory, options.healthy, options.interval, time);
        if waits.is_ok() {
            std::thread::sleep(time.saturating_sub(started.elapsed()));
        }
        stop.store(true, Ordering::Relaxed);
        let probes = probes.join().map_err(|_| anyhow::anyhow!("the probes have panicked"))??;
        let listed = listed.join().map_err(|_| anyhow::anyhow!("the check of the list has panicked"))?;
        anyhow::Ok((waits?, probes, listed))
    })?;
    let took = started.elapsed();
    let peak = aggregator.process.memory("VmHWM")? << 10;
    let cpu = cpu.spent()?;
    let table = clients.stop()?;
    println!();
    print!("{table}");
    println!(
        "\nCPU of the aggregator {:.1} s, of the fleet {:.1} s, in {:.1} s; peak memory of the fleet {:.1} MB",
        cpu.as_secs_f64(),
        fleet_cpu.spent()?.as_secs_f64(),
        took.as_secs_f64(),
        megabytes(fleet.process.memory("VmHWM")? << 10),
    );
    let mut missed = judge(&probes, peak, &waits, &listed);
    aggregator.process.stop()?;
    let log = std::fs::read_to_string(directory.join("log"))?;
    let failed = log.lines().find(|line| FAILED.iter().any(|word| line.contains(word)));
    missed.extend(failed.map(|line| format!("the log says: {line}")));
    Ok(missed)
}

/// The behaviour of all nodes: the healthy nodes come first, and the nodes with faults last.
fn groups(options: &Options) -> Vec<Group> {
    let mut next = options.healthy;
    let mut group = |behaviour, count, must_be_listed| {
        let nodes = next..next + count;
        next = nodes.end;
        Group { behaviour, nodes, must_be_listed }
    };
    let share = |all: usize, of: usize, at: usize| all / of + usize::from(at < all % of);
    let floods = FLOODS.iter().enumerate();
    let mut groups: Vec<Group> = floods
        .map(|(at, behaviour)| group(behaviour, share(options.flooding, FLOODS.len(), at), true))
        .collect();
    let faults = FAULTS.iter().enumerate();
    groups.extend(faults.map(|(at, (behaviour, must_be_listed))| {
        group(behaviour, share(options.faulty, FAULTS.len(), at), *must_be_listed)
    }));
    groups
}

/// The Pods of the miners that have to be listed the whole time, each with the behaviour of its node.
fn miners(
    fleet: &mut Simulated,
    healthy: usize,
    groups: &[Group],
) -> anyhow::Result<Vec<(String, &'static str)>> {
    let behaviour_of = |node: usize| {
        if node < healthy {
            return Some("healthy");
        }
        let group = groups.iter().find(|group| group.nodes.contains(&node))?;
        group.must_be_listed.then_some(group.behaviour)
    };
    let miners = fleet.miners()?.into_iter();
    Ok(miners.filter_map(|(node, pod)| Some((pod, behaviour_of(node)?))).collect())
}

fn start(options: &Options, directory: &Path) -> anyhow::Result<Aggregator> {
    let shown = |duration: Duration| humantime::format_duration(duration).to_string().replace(' ', "");
    let tokens = directory.join("tokens");
    std::fs::write(&tokens, format!("operator {TOKEN}\n"))?;
    let more = format!(
        "collector: {{timeout: {}}}\ndetection: {{clear_after: {}, assumed_scan_interval: {}}}\napi: {{auth: tokens, token_file: {}}}\n",
        shown(options.interval.min(Duration::from_secs(10))),
        shown(changes::clear_after(options.interval)),
        shown(options.interval),
        tokens.display(),
    );
    let setup = Setup {
        program: &options.program,
        interval: options.interval,
        braked: false,
        workers: None,
        more: &more,
    };
    with_usual_files(|| Aggregator::start(&setup, directory))
}

/// Prints each bar with the measured value; returns the bars that were missed.
fn judge(probes: &[Latencies], peak: u64, waits: &Waits, listed: &Listed) -> Vec<String> {
    let mut missed = Vec::new();
    println!("\n| {:<26} | {:<16} | {:<66} | {:<6} |", "", "bar", "measured", "");
    let mut row = |name: &str, bar: String, measured: String, is_met: bool| {
        println!(
            "| {name:<26} | {bar:<16} | {measured:<66} | {:<6} |",
            if is_met { "met" } else { "MISSED" }
        );
        if !is_met {
            missed.push(format!("{name}: {measured}"));
        }
    };
    for probe in probes {
        let all = &probe.answered;
        let [p50, p99, most] = [50, 99, 100].map(|percent| percentile(all, percent));
        let measured = format!(
            "p50 {p50:.1?}, p99 {p99:.1?}, slowest {most:.1?} of {}; without answer: {}",
            all.len(),
            probe.failed
        );
        let is_met = probe.failed == 0 && !all.is_empty() && most < PROBE_LIMIT;
        let bar = if probe.is_judged { format!("< {PROBE_LIMIT:?}") } else { "none".to_owned() };
        row(probe.name, bar, measured, is_met || !probe.is_judged);
    }
    let bar = format!("< {:.0} MB", megabytes(MEMORY_LIMIT));
    row("peak memory", bar, format!("{:.1} MB", megabytes(peak)), peak < MEMORY_LIMIT);
    for (name, waits, is_needed) in [
        ("miner begins to output", &waits.begun, true),
        // A short attack is over before the first miner ends.
        ("miner ends to output", &waits.ended, false),
    ] {
        let all = &waits.seen;
        let [p50, p99, most] = [50, 99, 100].map(|percent| percentile(all, percent));
        let measured = format!(
            "p50 {p50:.1?}, p99 {p99:.1?}, slowest {most:.1?} of {}; missing: {}",
            all.len(),
            waits.missing
        );
        let is_met = waits.missing == 0 && most < CHANGE_LIMIT && !(is_needed && all.is_empty());
        row(name, format!("< {CHANGE_LIMIT:?}"), measured, is_met);
    }
    let is_met = listed.missing.is_empty() && listed.looks > 0;
    row("every miner is listed", "in each list".to_owned(), listed.to_string(), is_met);
    missed
}

#[expect(clippy::cast_precision_loss, reason = "people read three digits of them")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use procscan_agent::simulate::{Behaviour, Fault};

    use super::*;

    fn name(behaviour: &str) -> &str {
        behaviour.split('=').next().unwrap()
    }

    #[test]
    fn every_simulated_fault_is_in_the_attack() {
        let forms = Behaviour::forms();
        let all: BTreeSet<&str> = forms.split(", ").map(name).filter(|name| *name != "healthy").collect();
        let here = FAULTS.iter().map(|(fault, _)| *fault).chain(FLOODS);
        assert_eq!(here.map(name).collect::<BTreeSet<_>>(), all);
    }

    #[test]
    fn every_node_has_its_behaviour() {
        for faulty in [0, 5, FAULTS.len(), 600] {
            let options = Options {
                program: PathBuf::new(),
                seconds: 1,
                interval: Duration::from_secs(1),
                healthy: 7,
                flooding: 3,
                faulty,
                clients: 1,
                keep: None,
            };
            let groups = groups(&options);
            let nodes: Vec<usize> = groups.iter().flat_map(|group| group.nodes.clone()).collect();
            assert_eq!(nodes, (7..10 + faulty).collect::<Vec<_>>());
            assert!(groups.iter().all(|group| group.behaviour.parse::<Fault>().is_ok()));
            assert!(faulty < FAULTS.len() || groups.iter().all(|group| !group.nodes.is_empty()));
        }
    }
}
