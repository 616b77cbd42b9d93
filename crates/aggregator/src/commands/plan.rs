//! `plan`: one round, and what would change.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use procscan_core::decision::Mode;
use procscan_core::plan::Dispute;
use tokio::sync::{mpsc, watch};

use super::printed::{self, escaped};
use super::service::environment;
use super::{CommandError, Stop, check_config::warn, state_copy};
use crate::config::{Config, Level, Logger};
use crate::counters::Counters;
use crate::decided::PersistedBlocks;
use crate::decided::{Decided, TakeOver};
use crate::leader;
use crate::ledger_task::ALL_REFUSE;
use crate::output::difference::{Action, Difference};
use crate::output::{Directory, Output};
use crate::run::{self, Pipeline, PipelineInputs};
use crate::state::{PersistedState, Store};
use crate::telemetry;
use crate::views::Views;

/// How many lines of one object are shown. Tens of thousands of Services are read elsewhere.
const MAX_LINES: usize = 40;
/// How long the cluster may take to answer every question after the round.
const ROUND_TIMEOUT: Duration = Duration::from_mins(2);

pub(super) async fn plan(path: &Path, mut stop: Stop) -> Result<(), CommandError> {
    let config = Config::load(path, environment())?;
    warn(&config);
    // The decisions are printed below: in the log they would say that they were made.
    telemetry::init(Logger { level: Level::Error, ..config.logger }, false);
    let decide = decide(&config);
    let changes = tokio::select! {
        () = stop.wait() => return Err(anyhow::anyhow!("interrupted").into()),
        changes = decide => changes?,
    };
    if changes { Err(CommandError::Changes) } else { Ok(()) }
}

/// Decides after one round, and prints what would change. Returns whether anything would.
async fn decide(config: &Config) -> anyhow::Result<bool> {
    let settings = config.settings();
    let cluster = run::cluster(config, Counters::default()).await?;
    let output = run::output(config, cluster.as_ref(), |path| Ok(Directory::at(path)))?;
    // Before the first start nothing is persisted.
    let nothing = PersistedState { is_complete: true, ..PersistedState::default() };
    let persisted = state_copy::read(config, cluster.as_ref()).await?.unwrap_or(nothing);
    let inputs = inputs(config, &output, persisted).await?;
    let pipeline = Pipeline::start(config, cluster.as_ref(), inputs)?;
    let decided = one_round(config, &pipeline.views, cluster.is_some()).await?;
    let mut text = answered(&pipeline.views).await;
    pipeline.stop();

    explain(&decided, &mut text);
    let differences = output.preview(&decided.plan, &settings).await.map_err(anyhow::Error::msg)?;
    text.push('\n');
    for difference in &differences {
        show(difference, &mut text);
    }
    let changes = differences.iter().filter(|difference| difference.action != Action::Leave).count();
    let sum = match (changes, decided.plan.mode) {
        (0, _) => "Nothing would change.".to_owned(),
        (n, mode) => format!(
            "{n} {} would change{}.",
            if n == 1 { "object" } else { "objects" },
            if mode == Mode::DryRun { ", if enforcement.mode were not dry-run" } else { "" }
        ),
    };
    let _ = writeln!(text, "{sum}");
    printed::print(&text)?;
    Ok(changes > 0)
}

/// A leader that knows the persisted state and what the objects block, and writes nothing.
async fn inputs(
    config: &Config,
    output: &Output,
    persisted: PersistedState,
) -> anyhow::Result<PipelineInputs> {
    let documents = persisted.documents().map_err(anyhow::Error::msg)?;
    let same_incident = config.policy().same_incident;
    let blocks = PersistedBlocks::of(&documents, same_incident, Timestamp::now())
        .filter(|_| persisted.unread.incidents.is_empty());
    let blocked = output.blocked(&config.settings(), blocks.as_ref()).await.map_err(anyhow::Error::msg)?;
    let (take_over, mut requests) = mpsc::channel::<TakeOver>(1);
    tokio::spawn(async move {
        if let Some(request) = requests.recv().await {
            let _ = request.blocked.send(blocked);
        }
    });
    Ok(PipelineInputs {
        store: Store::Copy(documents),
        persisted: watch::channel(Arc::new(persisted)).1,
        leadership: leader::alone(),
        take_over,
        written: watch::channel(Arc::default()).1,
        counters: Counters::default(),
    })
}

/// The decisions after one round. With a cluster, they wait until it has answered all look-ups.
async fn one_round(config: &Config, views: &Views, has_cluster: bool) -> anyhow::Result<Arc<Decided>> {
    let mut decided = views.decided.clone();
    // The round itself is bounded by its timeouts. The targets have to be found before, so the limit is twice as long.
    let round = config.aggregator.scan_interval * 2 + Duration::from_secs(5);
    let first = decided.wait_for(|decided| decided.rounds > 0);
    let is_done = matches!(tokio::time::timeout(round, first).await, Ok(Ok(_)));
    if !is_done {
        let error = views.targets.borrow().error.clone();
        let why = error.as_deref().unwrap_or("not all agents have answered or timed out");
        anyhow::bail!("no round was done: {why}");
    }
    if has_cluster && config.looks_at_pods() {
        // Accusations without an answer by then are shown as unverified.
        let _ = tokio::time::timeout(ROUND_TIMEOUT, decided.wait_for(|decided| decided.is_answered)).await;
    }
    let decided = decided.borrow().clone();
    Ok(decided)
}

/// How many agents have answered, and what has failed.
async fn answered(views: &Views) -> String {
    let snapshot = views.snapshots.fresh().await;
    let coverage = snapshot.coverage;
    let mut text = format!("{} of {} agents have answered.\n", coverage.fresh, coverage.expected());
    if snapshot.all_refuse() {
        let _ = writeln!(text, "! {ALL_REFUSE}");
    }
    let errors = [views.targets.borrow().error.clone(), views.cluster_facts.borrow().error.clone()];
    for error in errors.into_iter().flatten() {
        let _ = writeln!(text, "! {error}");
    }
    text
}

fn explain(decided: &Decided, text: &mut String) {
    for withheld in &decided.withheld {
        let _ = writeln!(text, "! {}", escaped(&withheld.reason));
    }
    for block in &decided.plan.blocks {
        let _ = writeln!(text, "block {}: {}", block.app, block.reason);
    }
    for held in &decided.held {
        let _ = writeln!(text, "hold  {}: {}", held.app, held.reason);
    }
    for dispute in decided.disputes.iter().take(MAX_LINES) {
        let Dispute { key, node, reason } = dispute;
        let process = key.process.escape_debug();
        let _ = writeln!(
            text,
            "disputed: node {node} accuses Pod {}/{} of `{process}`, but {reason}",
            key.namespace, key.pod
        );
    }
    if decided.unverified > 0 {
        let _ = writeln!(text, "{} accusations can't be verified.", decided.unverified);
    }
}

fn show(difference: &Difference, text: &mut String) {
    let _ = writeln!(text, "{} {}", difference.action, difference.object);
    for line in difference.lines.iter().take(MAX_LINES) {
        let _ = writeln!(text, "  {line}");
    }
    if let Some(more) = difference.lines.len().checked_sub(MAX_LINES).filter(|more| *more > 0) {
        let _ = writeln!(text, "  … {more} lines more");
    }
}
