//! The API beside nginx with the same bytes as files, and the effect of answers on the collector.
#![expect(clippy::cast_precision_loss, reason = "people read three digits of them")]

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Context;

use crate::aggregator::{self, API, Aggregator, Setup};
use crate::fleet::Simulated;
use crate::load::{Answer, Load, Outcome};
use crate::nginx::{self, Files, Nginx};
use crate::process::Cpu;

const LIST: &str = "/api/violations";
/// An interval longer than a measurement, so that the list does not change beside its file.
const NEVER: Duration = Duration::from_hours(24);
/// Longer than any measurement.
const UNTIL_STOPPED: Duration = Duration::from_hours(24);

#[derive(clap::Args)]
pub(crate) struct Options {
    /// The aggregator
    #[arg(long, default_value = "target/release/procscan-aggregator")]
    program: PathBuf,
    /// nginx
    #[arg(long, default_value = "nginx")]
    nginx: PathBuf,
    /// Measure the aggregator alone
    #[arg(long)]
    no_nginx: bool,
    /// The size of the fleet
    #[arg(long, default_value_t = 5000)]
    nodes: usize,
    /// Records of each node
    #[arg(long, default_value_t = 2)]
    records: usize,
    /// Threads that serve, of the aggregator and of nginx
    #[arg(long, default_value_t = 1)]
    workers: usize,
    /// Persistent connections
    #[arg(long, default_value_t = 32)]
    connections: usize,
    /// How often each is measured, in turns; the median counts
    #[arg(long, default_value_t = 3)]
    passes: usize,
    /// How long each pass takes
    #[arg(long, value_parser = humantime::parse_duration, default_value = "5s")]
    pass: Duration,
    /// The length of a round
    #[arg(long, value_parser = humantime::parse_duration, default_value = "10s")]
    interval: Duration,
    /// Full lists per second beside which the collector's lag is measured
    #[arg(long, default_value_t = 200)]
    rate: u32,
    /// Rounds with and rounds without that load; 0 leaves it out
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    aggregator::ensure_built(&options.program)?;
    let nginx = if options.no_nginx { None } else { Some(nginx::find(&options.nginx)?) };
    beside_nginx(options, nginx.as_deref())?;
    if options.rounds > 0 {
        beside_the_collector(options)?;
    }
    Ok(())
}

fn start(options: &Options, scans: Duration, directory: &Path) -> anyhow::Result<(Simulated, Aggregator)> {
    let fleet = Simulated::start(options.nodes, options.records, scans, &[], directory)?;
    let setup = Setup {
        program: &options.program,
        interval: options.interval,
        braked: false,
        workers: Some(options.workers),
        more: "",
    };
    let aggregator = Aggregator::start(&setup, directory)?;
    aggregator.first_round(options.interval)?;
    // From the second round on, every target is asked in its own slot.
    aggregator.lags(1, options.interval)?;
    Ok((fleet, aggregator))
}

fn beside_nginx(options: &Options, program: Option<&Path>) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let (_fleet, aggregator) = start(options, NEVER, directory.path())?;
    let plain = load(options, API, LIST, "").once()?;
    let gzip = load(options, API, LIST, GZIP).once()?;
    anyhow::ensure!(gzip.header("content-encoding") == Some("gzip"), "not compressed:\n{}", gzip.head);
    let nginx =
        program.map(|program| start_nginx(options, program, &plain, &gzip, directory.path())).transpose()?;
    let page = filtered_page(&String::from_utf8(plain.body)?)?;
    let tag = |port: u16| {
        let answer = load(options, port, LIST, "").once()?;
        anyhow::Ok(format!("If-None-Match: {}\r\n", answer.header("etag").context("no ETag")?))
    };
    let not_modified = |port| anyhow::Ok(Some(Kind { headers: tag(port)?, status: 304, ..Kind::list() }));
    let rows: [(&str, KindOf<'_>); 4] = [
        ("full list", &|_| Ok(Some(Kind::list()))),
        ("full list, gzip", &|_| Ok(Some(Kind { headers: GZIP.to_owned(), ..Kind::list() }))),
        ("304", &not_modified),
        // A file can't be filtered.
        ("filtered page", &|port| Ok((port == API).then(|| Kind { path: page.clone(), ..Kind::list() }))),
    ];
    print_header();
    for (name, kind) in rows {
        row(options, name, kind, &aggregator, nginx.as_ref()).with_context(|| name.to_owned())?;
    }
    drop(nginx);
    aggregator.process.stop()
}

/// Starts nginx with the aggregator's answers as files, and checks that it sends the same.
fn start_nginx(
    options: &Options,
    program: &Path,
    plain: &Answer,
    gzip: &Answer,
    directory: &Path,
) -> anyhow::Result<Nginx> {
    let files = Files { path: LIST, plain: &plain.body, gzip: &gzip.body };
    let nginx = Nginx::start(program, options.workers, options.nodes, &files, directory)?;
    for (headers, ours) in [("", plain), (GZIP, gzip)] {
        let theirs = load(options, nginx::PORT, LIST, headers).once()?;
        let encoding = |answer: &Answer| answer.header("content-encoding").map(str::to_owned);
        let is_same = theirs.body == ours.body && encoding(&theirs) == encoding(ours);
        anyhow::ensure!(is_same, "nginx sends another answer:\n{}", theirs.head);
    }
    Ok(nginx)
}

/// The path of a page of one namespace: the last one of the violations, so that the aggregator has to search all of it.
fn filtered_page(violations: &str) -> anyhow::Result<String> {
    let (_, last) = violations.rsplit_once("\"namespace\":\"").context("a record in the list")?;
    let namespace = last.split('"').next().unwrap_or_default();
    Ok(format!("/api/v1/violations?namespace={namespace}&limit=100"))
}

fn print_header() {
    println!();
    println!(
        "| {:<15} | {:<10} | {:>10} | {:>8} | {:>16} | {:>7} | {:>7} | {:>15} | {:>12} |",
        "",
        "",
        "requests/s",
        "MB/s",
        "CPU ms per 1,000",
        "p50 ms",
        "p99 ms",
        "requests, ratio",
        "bytes, ratio"
    );
}

const GZIP: &str = "Accept-Encoding: gzip\r\n";

/// The request for the server on a port; `None` if that server has no such answer.
type KindOf<'a> = &'a dyn Fn(u16) -> anyhow::Result<Option<Kind>>;

struct Kind {
    path: String,
    headers: String,
    status: u16,
}

impl Kind {
    fn list() -> Self {
        Self { path: LIST.to_owned(), headers: String::new(), status: 200 }
    }
}

fn load<'a>(options: &Options, port: u16, path: &'a str, headers: &'a str) -> Load<'a> {
    let connections = options.connections;
    Load { port, path, headers, status: 200, length: None, connections, per_second: None }
}

/// One pass, or the median of some.
#[derive(Clone, Copy)]
struct Figures {
    requests: f64,
    bytes: f64,
    /// CPU seconds per request, with those of collecting.
    cpu: f64,
    p50: f64,
    p99: f64,
}

fn row(
    options: &Options,
    name: &str,
    kind: KindOf<'_>,
    aggregator: &Aggregator,
    nginx: Option<&Nginx>,
) -> anyhow::Result<()> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..options.passes {
        if let Some(kind) = kind(API)? {
            ours.push(pass(options, API, &kind, &[Cpu::of(aggregator.process.pid()?)?])?);
        }
        if let Some(nginx) = nginx
            && let Some(kind) = kind(nginx::PORT)?
        {
            theirs.push(pass(options, nginx::PORT, &kind, &nginx.cpu()?)?);
        }
    }
    let (ours, theirs) = (median(&ours), median(&theirs));
    for (server, figures, other) in [("aggregator", ours, theirs), ("nginx", theirs, None)] {
        let Some(Figures { requests, bytes, cpu, p50, p99 }) = figures else { continue };
        let ratio = |ours: f64, of: &dyn Fn(Figures) -> f64| {
            let theirs = other.map(of).filter(|theirs| *theirs > 0.0);
            theirs.map_or("-".to_owned(), |theirs| format!("{:.2}", ours / theirs))
        };
        println!(
            "| {name:<15} | {server:<10} | {requests:>10.0} | {:>8.1} | {:>16.1} | {:>7.2} | {:>7.2} | {:>15} | {:>12} |",
            bytes / 1e6,
            cpu * 1e6,
            p50 * 1e3,
            p99 * 1e3,
            ratio(requests, &|theirs| theirs.requests),
            ratio(bytes, &|theirs| theirs.bytes),
        );
    }
    Ok(())
}

fn pass(options: &Options, port: u16, kind: &Kind, cpu: &[Cpu]) -> anyhow::Result<Figures> {
    let mut load = load(options, port, &kind.path, &kind.headers);
    load.status = kind.status;
    // The length of a page depends on the time that is in it.
    let is_fixed = kind.status == 200 && kind.path == LIST;
    load.length = is_fixed.then(|| anyhow::Ok(load.once()?.body.len())).transpose()?;
    let before = cpu.iter().map(Cpu::spent).sum::<anyhow::Result<Duration>>()?;
    let Outcome { took, bytes, latencies } = load.run(options.pass, &AtomicBool::new(false))?;
    let spent = cpu.iter().map(Cpu::spent).sum::<anyhow::Result<Duration>>()?.saturating_sub(before);
    let (took, count) = (took.as_secs_f64(), latencies.len() as f64);
    let at = |percent| crate::rounds::percentile(&latencies, percent).as_secs_f64();
    Ok(Figures {
        requests: count / took,
        bytes: bytes as f64 / took,
        cpu: spent.as_secs_f64() / count,
        p50: at(50),
        p99: at(99),
    })
}

/// The median of each figure by itself.
fn median(passes: &[Figures]) -> Option<Figures> {
    let of = |figure: fn(&Figures) -> f64| {
        let mut all: Vec<f64> = passes.iter().map(figure).collect();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied()
    };
    Some(Figures {
        requests: of(|pass| pass.requests)?,
        bytes: of(|pass| pass.bytes)?,
        cpu: of(|pass| pass.cpu)?,
        p50: of(|pass| pass.p50)?,
        p99: of(|pass| pass.p99)?,
    })
}

/// How late agents are asked with and without load, while the list changes with every round.
fn beside_the_collector(options: &Options) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let (_fleet, aggregator) = start(options, options.interval / 2, directory.path())?;
    let lag = || {
        let lags = aggregator.lags(options.rounds, options.interval)?;
        anyhow::Ok(lags.map(|lags| lags.iter().sum::<u64>() as f64 / lags.len() as f64))
    };
    let idle = lag()?;
    let mut load = load(options, API, LIST, "");
    load.per_second = Some(options.rate);
    let stop = AtomicBool::new(false);
    let (loaded, outcome) = std::thread::scope(|scope| {
        let asking = scope.spawn(|| load.run(UNTIL_STOPPED, &stop));
        let loaded = lag();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let outcome = asking.join().map_err(|_| anyhow::anyhow!("the load has panicked"))?;
        anyhow::Ok((loaded?, outcome?))
    })?;
    aggregator.process.stop()?;
    print_lags(options, idle, loaded, &outcome);
    Ok(())
}

fn print_lags(options: &Options, idle: Option<f64>, loaded: Option<f64>, outcome: &Outcome) {
    let shown = |lag: Option<f64>| lag.map_or("-".to_owned(), |lag| format!("{lag:.0}"));
    let ratio = idle.zip(loaded).filter(|(idle, _)| *idle > 0.0).map(|(idle, loaded)| loaded / idle);
    let answered = outcome.latencies.len() as f64 / outcome.took.as_secs_f64();
    let at = |percent| crate::rounds::percentile(&outcome.latencies, percent).as_secs_f64() * 1e3;
    println!();
    println!("| {:<38} | {:>8} |", "the collector's lag, idle, µs", shown(idle));
    let loaded_name = format!("with {} full lists per second, µs", options.rate);
    println!("| {loaded_name:<38} | {:>8} |", shown(loaded));
    println!("| {:<38} | {:>8} |", "ratio", ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}")));
    println!("| {:<38} | {answered:>8.1} |", "answered per second");
    println!("| {:<38} | {:>8.2} |", "p50 ms", at(50));
    println!("| {:<38} | {:>8.2} |", "p99 ms", at(99));
}
