//! Kills the aggregator many times while a fleet misbehaves, and compares its output with the offenders that really ran.
//!
//! The laws: no block is lost. No App is blocked that never offended. Every file is whole. An App that offends on a node that
//! answers is blocked in the end, and an App that does not offend is released. The seed decides all events except the moments of
//! the kills, which depend on the machine.
#![expect(clippy::indexing_slicing, reason = "a missing member of a JSON value is null")]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use procscan_agent::simulate::{Behaviour, Fleet, FleetOptions};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::aggregator::ensure_built;
use crate::process::Running;

/// How long a node has to answer without an offender until it is released.
const CLEAR_AFTER: Duration = Duration::from_secs(8);
/// The fleet's scans, and the aggregator's rounds.
const INTERVAL: Duration = Duration::from_secs(1);
/// How old evidence may be when it arrives. Answers of a node in this time count.
const SLACK: Duration = Duration::from_secs(3);
/// The longest wait for a condition.
const PATIENCE: Duration = Duration::from_mins(2);
/// How often a node may change.
const TICK: Duration = Duration::from_millis(100);
/// After this many kills, it runs undisturbed until its output is as expected.
const KILLS_BETWEEN_RESTS: u32 = 10;
/// The end of the name of a Service that is never closed.
const SENTINEL: &str = ".invalid";

#[derive(clap::Args)]
pub(crate) struct Options {
    /// The aggregator
    #[arg(long, default_value = "target/release/procscan-aggregator")]
    program: PathBuf,
    /// How many seconds the kills go on; the last part, without kills, follows
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    /// The seed of all events; by default a new one each time
    #[arg(long)]
    seed: Option<u64>,
    /// The size of the fleet
    #[arg(long, default_value_t = 40)]
    nodes: usize,
}

/// The behaviour of a node's agent, as far as the laws depend on it.
#[derive(Clone, Copy, PartialEq)]
enum Speech {
    /// It lists the offenders that run.
    True,
    /// It gives no usable answer, which proves nothing.
    None,
    /// It answers `[]`, so that the App is released in the end.
    Empty,
}

const BEHAVIOURS: [(&str, Speech); 17] = [
    ("healthy", Speech::True),
    ("healthy", Speech::True),
    ("wrapped", Speech::True),
    ("mixed-bad", Speech::True),
    ("one-at-a-time", Speech::True),
    ("hang", Speech::None),
    ("reset", Speech::None),
    ("error500", Speech::None),
    ("garbage", Speech::None),
    ("endless", Speech::None),
    ("slow=5s", Speech::None),
    ("drip=200ms", Speech::None),
    ("gzip-bomb", Speech::None),
    ("zstd-bomb", Speech::None),
    ("redirect", Speech::None),
    ("null", Speech::Empty),
    ("restarted", Speech::Empty),
];

struct Node {
    /// The beginning of the name of its App's Service.
    service: String,
    offends: bool,
    speech: Speech,
    /// Whether an offender ever ran there.
    has_offended: bool,
    /// Since when no answer lists an offender of the node.
    absent_since: Option<Instant>,
}

/// The same numbers for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap_or(0) % n.max(1)
    }
}

#[derive(Default)]
struct Figures {
    kills: u32,
    rests: u32,
    changes: u64,
    looks: u64,
    most_blocked: usize,
    new_blocks: usize,
    releases: usize,
    peak_kib: u64,
}

struct Soak<'a> {
    program: &'a Path,
    directory: &'a Path,
    api: SocketAddr,
    random: Random,
    fleet: &'a Fleet,
    nodes: Vec<Node>,
    closed: BTreeSet<String>,
    figures: Figures,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    ensure_built(&options.program)?;
    let program = options.program.canonicalize()?;
    let seed = options.seed.unwrap_or_else(|| u64::from(std::process::id()));
    println!("seed {seed}");
    let directory = tempfile::tempdir()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let _context = runtime.enter();
    let fleet = Fleet::start(
        FleetOptions {
            nodes: options.nodes,
            base: Ipv4Addr::new(127, 65, 0, 1),
            port: 0,
            scan_interval: INTERVAL,
            tenants: options.nodes,
            ..FleetOptions::default()
        },
        &CancellationToken::new(),
    )?;
    let nodes = (0..options.nodes).map(|node| quiet(&fleet, node)).collect::<anyhow::Result<_>>()?;
    let api = prepare(&fleet, directory.path())?;
    let mut soak = Soak {
        program: &program,
        directory: directory.path(),
        api,
        random: Random(seed),
        fleet: &fleet,
        nodes,
        closed: BTreeSet::new(),
        figures: Figures::default(),
    };
    let done = soak.run(Duration::from_secs(options.seconds));
    let Figures { kills, rests, changes, looks, most_blocked, new_blocks, releases, peak_kib } = soak.figures;
    println!(
        "{kills} kills, {rests} rests, {changes} changes, the directory looked at {looks} times; \
         {new_blocks} blocks, {releases} releases, {most_blocked} blocked at most; peak memory {} MiB",
        peak_kib >> 10
    );
    if done.is_err() {
        println!("files and logs are in {}", directory.keep().display());
    }
    done.with_context(|| format!("seed {seed}"))
}

/// Learns the name of a node's App, and lets no offender run there.
fn quiet(fleet: &Fleet, node: usize) -> anyhow::Result<Node> {
    let offender = fleet.offenders(node).into_iter().next().context("an offender")?;
    fleet.set_offender_count(node, 0);
    fleet.scan_now(node);
    Ok(Node {
        service: format!("{}.{}.svc", offender.name, offender.namespace),
        offends: false,
        speech: Speech::True,
        has_offended: false,
        absent_since: Some(Instant::now()),
    })
}

/// Writes the files by which an aggregator finds the fleet; returns the address of its API.
fn prepare(fleet: &Fleet, directory: &Path) -> anyhow::Result<SocketAddr> {
    let lines = fleet.targets().into_iter().map(|(node, address)| format!("{address} node={node}"));
    std::fs::write(directory.join("targets"), lines.map(|line| line + "\n").collect::<String>())?;
    let api = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let config = format!(
        "aggregator: {{address: 127.0.0.1, port: {}, scan_interval: {}s}}\n\
         collector: {{timeout: 1s, connect_timeout: 1s, concurrency: 16, max_backoff_rounds: 1}}\n\
         detection: {{clear_after: {}s, assumed_scan_interval: {}s}}\n\
         discovery: {{mode: file, file: targets}}\n\
         output: {{mode: directory, directory: objects}}\n\
         state: {{directory: state}}\n\
         brake: {{max_new_tenants: 1000, max_tenants_per_node: 1000, max_apps_per_node: 1000, max_tenants_per_rule: 1000, max_releases: 1000}}\n",
        api.port(),
        INTERVAL.as_secs(),
        CLEAR_AFTER.as_secs(),
        INTERVAL.as_secs(),
    );
    std::fs::write(directory.join("config.yaml"), config)?;
    Ok(api)
}

impl Soak<'_> {
    fn run(&mut self, time: Duration) -> anyhow::Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            for _ in 0..KILLS_BETWEEN_RESTS {
                self.until_killed()?;
                if Instant::now() >= end {
                    break;
                }
            }
            self.rest()?;
        }
        Ok(())
    }

    /// Starts the aggregator, changes nodes, and kills it soon or after a few rounds.
    fn until_killed(&mut self) -> anyhow::Result<()> {
        let mut process = self.start()?;
        let most = if self.random.below(3) == 0 { 300 } else { 6000 };
        let killed_at = Instant::now() + Duration::from_millis(self.random.below(most) as u64);
        loop {
            let left = killed_at.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            std::thread::sleep(left.min(TICK));
            self.change();
            self.look()?;
        }
        ensure!(process.child().try_wait()?.is_none(), "the aggregator has ended by itself; see its log");
        self.figures.peak_kib = self.figures.peak_kib.max(process.memory("VmHWM")?);
        // Dropping the process sends SIGKILL.
        drop(process);
        self.figures.kills += 1;
        self.look()
    }

    /// No more kills: checks that each offending App is blocked, each other one is released, and the API shows it.
    fn rest(&mut self) -> anyhow::Result<()> {
        for node in 0..self.nodes.len() {
            self.behave(node, "healthy", Speech::True);
        }
        let process = self.start()?;
        let wanted: BTreeSet<String> =
            self.nodes.iter().filter(|node| node.offends).map(|node| node.service.clone()).collect();
        let deadline = Instant::now() + PATIENCE;
        while self.closed != wanted {
            if Instant::now() >= deadline {
                let missing: Vec<_> = wanted.difference(&self.closed).collect();
                let left: Vec<_> = self.closed.difference(&wanted).collect();
                bail!("not blocked after {PATIENCE:?}: {missing:?}; not released: {left:?}");
            }
            std::thread::sleep(TICK);
            self.look()?;
        }
        let ready = get(self.api, "/readyz")?;
        ensure!(ready["state"]["ok"] == true, "the state is not ok: {ready}");
        let plan = get(self.api, "/api/v1/plan")?;
        ensure!(plan["mode"] == "enforce", "the mode is not enforce: {}", plan["mode"]);
        let blocks = plan["blocks"].as_array().context("blocks")?.len();
        ensure!(blocks == wanted.len(), "{blocks} blocks in the plan, {} written", wanted.len());
        let is_temporary = |name: &String| name.starts_with('.') && name != ".procscan.lock";
        let leftovers = self.listing()?.into_iter().filter(is_temporary).collect::<Vec<_>>();
        ensure!(leftovers.len() <= 1, "temporary files of kills are not removed: {leftovers:?}");
        self.figures.peak_kib = self.figures.peak_kib.max(process.memory("VmHWM")?);
        process.stop()?;
        self.figures.rests += 1;
        self.look()
    }

    fn start(&self) -> anyhow::Result<Running> {
        let log = std::fs::File::options().create(true).append(true).open(self.directory.join("log"))?;
        let mut command = Command::new(self.program);
        Running::start(
            command.args(["run", "--config", "config.yaml"]).current_dir(self.directory).stderr(log),
        )
    }

    /// Changes a node from time to time.
    fn change(&mut self) {
        let node = self.random.below(self.nodes.len());
        match self.random.below(6) {
            0 => {
                let choice = self.random.below(BEHAVIOURS.len());
                if let Some((behaviour, speech)) = BEHAVIOURS.get(choice) {
                    self.behave(node, behaviour, *speech);
                }
            }
            // The nodes with odd numbers never offend.
            1 | 2 if node.is_multiple_of(2) => {
                let Some(it) = self.nodes.get_mut(node) else { return };
                it.offends = !it.offends;
                it.has_offended |= it.offends;
                let count = usize::from(it.offends);
                self.fleet.set_offender_count(node, count);
                self.note(node);
            }
            3 => self.fleet.restart(node),
            _ => return,
        }
        self.figures.changes += 1;
    }

    fn behave(&mut self, node: usize, behaviour: &str, speech: Speech) {
        if let (Ok(behaviour), Some(it)) = (behaviour.parse::<Behaviour>(), self.nodes.get_mut(node)) {
            self.fleet.set_behaviour(node, behaviour);
            it.speech = speech;
            self.note(node);
        }
    }

    /// Notes since when no answer lists an offender of a node.
    fn note(&mut self, node: usize) {
        let Some(it) = self.nodes.get_mut(node) else { return };
        if it.offends && it.speech == Speech::True {
            it.absent_since = None;
        } else if !it.offends || it.speech == Speech::Empty {
            it.absent_since.get_or_insert_with(Instant::now);
        }
    }

    /// Compares the directory with the offenders that run.
    fn look(&mut self) -> anyhow::Result<()> {
        self.figures.looks += 1;
        let Some(now) = self.closed_now()? else {
            ensure!(self.closed.is_empty(), "the WasmPlugin is gone, and blocked {:?}", self.closed);
            return Ok(());
        };
        for service in &now {
            let node = self.node_of(service)?;
            ensure!(node.has_offended, "{service} is closed, and no offender ever ran there");
        }
        for service in self.closed.difference(&now) {
            let quiet = self.node_of(service)?.absent_since.map(|since| since.elapsed());
            let is_right = quiet.is_some_and(|quiet| quiet + SLACK >= CLEAR_AFTER);
            ensure!(is_right, "the block of {service} is lost after {quiet:?} without its offender");
        }
        self.figures.new_blocks += now.difference(&self.closed).count();
        self.figures.releases += self.closed.difference(&now).count();
        self.figures.most_blocked = self.figures.most_blocked.max(now.len());
        self.closed = now;
        Ok(())
    }

    fn node_of(&self, service: &str) -> anyhow::Result<&Node> {
        let node = self.nodes.iter().find(|node| node.service == service);
        node.with_context(|| format!("{service} is closed, and belongs to no node"))
    }

    fn listing(&self) -> anyhow::Result<Vec<String>> {
        let Ok(entries) = std::fs::read_dir(self.directory.join("objects")) else { return Ok(Vec::new()) };
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    /// The Services that are closed; `None` before the WasmPlugin is written. Reads every file, because each has to be whole.
    fn closed_now(&self) -> anyhow::Result<Option<BTreeSet<String>>> {
        let mut closed = None;
        for name in self.listing()?.into_iter().filter(|name| !name.starts_with('.')) {
            let text = match std::fs::read_to_string(self.directory.join("objects").join(&name)) {
                // The aggregator has deleted it since it was listed.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                text => text?,
            };
            let object: Value =
                serde_saphyr::from_str(&text).with_context(|| format!("{name} is not complete"))?;
            ensure!(
                object["kind"].is_string() && object["spec"].is_object(),
                "{name} is not complete:\n{text}"
            );
            if object["kind"] == "WasmPlugin" {
                let rules = object["spec"]["matchRules"].as_array().context("rules")?;
                let services = rules.iter().filter_map(|rule| rule["service"].as_array()).flatten();
                let services = services.filter_map(Value::as_str).filter(|name| !name.ends_with(SENTINEL));
                // Without the cluster's domain.
                let short = |name: &str| name.split_once(".svc").map(|(name, _)| format!("{name}.svc"));
                closed.get_or_insert_with(BTreeSet::new).extend(services.filter_map(short));
            }
        }
        Ok(closed)
    }
}

fn get(address: SocketAddr, path: &str) -> anyhow::Result<Value> {
    let mut stream = TcpStream::connect_timeout(&address, INTERVAL)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (_, body) = text.split_once("\r\n\r\n").context("an answer")?;
    serde_json::from_str(body).with_context(|| format!("{path}: {body}"))
}
