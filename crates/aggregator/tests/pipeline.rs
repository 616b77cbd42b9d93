//! The whole pipeline in one process, against a simulated fleet.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::{blocked_services, listing, objects};
use procscan_agent::simulate::{Behaviour, Fault, Fleet, FleetOptions};
use procscan_aggregator::config::Config;
use procscan_aggregator::ledger_task::Published;
use procscan_aggregator::run::Service;
use procscan_core::names::Key;
use procscan_core::snapshot::{Snapshot, State};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// A fleet whose nodes scan only at a call of `scan_now`.
fn fleet(nodes: usize) -> Fleet {
    let options = FleetOptions {
        nodes,
        port: 0,
        scan_interval: Duration::ZERO,
        offenders_per_node: 1,
        ..FleetOptions::default()
    };
    Fleet::start(options, &CancellationToken::new()).unwrap()
}

fn list(fleet: &Fleet, nodes: std::ops::Range<usize>) -> String {
    let lines: Vec<String> =
        fleet.targets()[nodes].iter().map(|(node, address)| format!("{address} node={node}")).collect();
    lines.join("\n") + "\n"
}

/// Replaces a file atomically, because a reader would see a half-written one.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, path).unwrap();
}

async fn start(directory: &Path, more: &str) -> Service {
    let targets = directory.join("targets");
    let text = format!(
        "aggregator: {{address: 127.0.0.1, scan_interval: 1s}}\n\
         discovery: {{mode: file, file: {}, refresh: 100ms}}\n\
         output: {{mode: directory, directory: {}}}\nstate: {{directory: {}}}\n{more}",
        targets.display(),
        directory.join("objects").display(),
        directory.join("state").display(),
    );
    let mut config = Config::parse(&text, "config", [], jiff::Timestamp::UNIX_EPOCH).unwrap();
    config.aggregator.port = 0;
    Service::start(&config).await.unwrap()
}

async fn until(service: &Service, what: &str, mut check: impl FnMut(&Snapshot) -> bool) -> Arc<Snapshot> {
    let mut published = service.views().snapshots.published();
    let seen = async {
        loop {
            let shown = published.borrow_and_update().snapshot.clone();
            if let Some(snapshot) = shown.filter(|snapshot| check(snapshot)) {
                return snapshot;
            }
            next(service, &mut published).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), seen).await.unwrap_or_else(|_| panic!("{what} never came"))
}

/// Waits until a snapshot is published. After a quiet second it asks for one, as a reader of the API does.
async fn next(service: &Service, published: &mut watch::Receiver<Published>) {
    while tokio::time::timeout(Duration::from_secs(1), published.changed()).await.is_err() {
        service.views().snapshots.fresh().await;
    }
}

async fn output_until(service: &Service, what: &str, mut check: impl FnMut() -> bool) {
    let mut published = service.views().snapshots.published();
    let wait = async {
        while !check() {
            next(service, &mut published).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), wait).await.unwrap_or_else(|_| panic!("{what} never came"));
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_of_agents_become_objects() {
    let temp = tempfile::tempdir().unwrap();
    let fleet = fleet(3);
    std::fs::write(temp.path().join("targets"), list(&fleet, 0..3)).unwrap();
    let service = start(temp.path(), "").await;
    let snapshot = until(&service, "the first round", |snapshot| snapshot.rounds == 1).await;
    assert_eq!((snapshot.coverage.fresh, snapshot.coverage.expected(), snapshot.list.len()), (3, 3, 0));
    let directory = temp.path().join("objects");
    output_until(&service, "the sentinel", || blocked_services(&directory) == ["procscan-sentinel.invalid"])
        .await;

    fleet.scan_now(1);
    until(&service, "the violation", |snapshot| snapshot.list.len() == 1).await;
    output_until(&service, "the block", || blocked_services(&directory).len() == 2).await;
    assert_eq!(objects(&directory).len(), 3);
    // In five more rounds without a change of the plan, no file is written.
    let written = || -> Vec<_> {
        listing(&directory)
            .iter()
            .map(|name| std::fs::metadata(directory.join(name)).unwrap().modified().unwrap())
            .collect()
    };
    let (before, rounds) = (written(), service.views().snapshots.published().borrow().rounds);
    fleet.scan_now(1);
    until(&service, "five more rounds", |snapshot| snapshot.rounds >= rounds + 5).await;
    assert_eq!(written(), before);
    // An edited file is repaired, and a removed directory is written again, without a change of the plan.
    let whole = objects(&directory);
    std::fs::write(
        directory.join(&listing(&directory)[0]),
        "# Written by procscan-aggregator; changes are overwritten.\n",
    )
    .unwrap();
    output_until(&service, "the repair", || {
        listing(&directory).len() == 3 && try_objects(&directory) == Some(whole.clone())
    })
    .await;
    std::fs::remove_dir_all(&directory).unwrap();
    output_until(&service, "the directory", || listing(&directory).len() == 3).await;
    service.stop().await;
    assert_eq!(objects(&directory), whole);
}

/// The name, modification time and length of each file in a directory.
fn written(directory: &Path) -> Vec<(String, std::time::SystemTime, u64)> {
    let files = std::fs::read_dir(directory).unwrap().map(Result::unwrap);
    let mut written: Vec<_> = files
        .map(|file| {
            let about = file.metadata().unwrap();
            (file.file_name().into_string().unwrap(), about.modified().unwrap(), about.len())
        })
        .collect();
    written.sort();
    written
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_change_no_file_is_written_and_no_body_is_built() {
    let temp = tempfile::tempdir().unwrap();
    let fleet = fleet(3);
    std::fs::write(temp.path().join("targets"), list(&fleet, 0..3)).unwrap();
    let service = start(temp.path(), "").await;
    fleet.scan_now(0);
    fleet.scan_now(1);
    until(&service, "the violations", |snapshot| snapshot.list.len() == 2).await;
    let (objects, state) = (temp.path().join("objects"), temp.path().join("state"));
    output_until(&service, "the blocks", || blocked_services(&objects).len() == 3).await;
    // After the Notifications are written, the policy persists `written_at` in the next rounds.
    let rounds = service.views().snapshots.published().borrow().rounds;
    until(&service, "a quiet round", |snapshot| snapshot.rounds >= rounds + 2).await;
    let body = |path| common::get(service.address(), path).body;
    let bodies = || [body("/api/violations"), body("/api/v1/plan"), body("/api/v1/incidents")];
    let (before, files, first) =
        (service.views().snapshots.fresh().await, [written(&objects), written(&state)], bodies());
    assert!(files.iter().all(|files| !files.is_empty()));
    until(&service, "five more rounds", |snapshot| snapshot.rounds >= before.rounds + 5).await;
    assert_eq!([written(&objects), written(&state)], files);
    let after = service.views().snapshots.fresh().await;
    assert!(Arc::ptr_eq(&before.list, &after.list), "the list was built anew");
    assert_eq!(bodies(), first);
    service.stop().await;
}

/// The objects, or `None` while a file can't be read as YAML.
fn try_objects(directory: &Path) -> Option<Vec<serde_json::Value>> {
    let read =
        |name: String| serde_saphyr::from_str(&std::fs::read_to_string(directory.join(name)).ok()?).ok();
    listing(directory).into_iter().filter(|name| !name.starts_with('.')).map(read).collect()
}

/// The test prints the delays and checks none: `cargo test -p procscan-aggregator --test pipeline -- --nocapture soon`.
#[tokio::test(flavor = "multi_thread")]
async fn healthy_nodes_are_shown_soon_after_their_answer_despite_faulty_nodes() {
    let temp = tempfile::tempdir().unwrap();
    let fleet = fleet(200);
    let faults =
        ["hang:10", "endless:2", "garbage:2", "gzip-bomb:2", "slow=5s:2", "reset", "error500", "drip=100ms"];
    let faults: Vec<Fault> = faults.iter().map(|fault| fault.parse().unwrap()).collect();
    let healthy = 200 - faults.iter().map(|fault| fault.count).sum::<usize>();
    fleet.inject(&faults).unwrap();
    (0..healthy).for_each(|node| fleet.scan_now(node));
    std::fs::write(temp.path().join("targets"), list(&fleet, 0..200)).unwrap();
    let service = start(temp.path(), "").await;
    let mut lags: BTreeMap<Key, Duration> = BTreeMap::new();
    until(&service, "every healthy node's violation", |snapshot| {
        for violation in snapshot.violations.iter().filter(|violation| violation.state == State::Active) {
            let answered = violation.leading.first_seen;
            lags.entry(violation.key.clone()).or_insert_with(|| snapshot.at.since(answered));
        }
        lags.len() >= healthy
    })
    .await;
    let mut lags: Vec<Duration> = lags.into_values().collect();
    lags.sort();
    eprintln!("from answer to API: median {:?}, longest {:?}", lags[lags.len() / 2], lags[lags.len() - 1]);
    service.stop().await;
}

/// Twenty nodes hang, and the collector has eight places. Without the probation lane, hanging nodes would take every place for a
/// whole timeout, and healthy nodes would miss rounds.
#[tokio::test(flavor = "multi_thread")]
async fn hanging_nodes_delay_no_healthy_node() {
    let temp = tempfile::tempdir().unwrap();
    let fleet = fleet(40);
    fleet.inject(&["hang:20".parse().unwrap()]).unwrap();
    std::fs::write(temp.path().join("targets"), list(&fleet, 0..40)).unwrap();
    let service = start(temp.path(), "collector: {concurrency: 8, max_backoff_rounds: 0}\n").await;
    until(&service, "an answer of every healthy node", |snapshot| snapshot.coverage.fresh == 20).await;
    // Count requests only after every hanging node has failed once.
    until(&service, "a failure of every other node", |snapshot| {
        snapshot.targets.iter().filter(|target| target.consecutive_failures > 0).count() == 20
    })
    .await;
    let asked = |nodes: std::ops::Range<usize>| nodes.map(|node| fleet.requests(node)).sum::<u64>();
    let (healthy, hanging) = (asked(0..20), asked(20..40));
    let rounds = service.views().snapshots.published().borrow().rounds;
    until(&service, "ten more rounds", |snapshot| snapshot.rounds >= rounds + 10).await;
    let (healthy, hanging) = (asked(0..20) - healthy, asked(20..40) - hanging);
    // One request to every healthy node in every round, except at both ends of the count.
    assert!(healthy >= 9 * 20, "{healthy}");
    // The probation lane has two places. A hanging node takes one for a second, so they get far fewer than twenty requests a
    // round.
    assert!(hanging <= healthy / 3, "{hanging} requests to nodes that hang, {healthy} to healthy ones");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn targets_follow_their_file_and_a_bad_file_leaves_the_last_targets() {
    let temp = tempfile::tempdir().unwrap();
    let fleet = fleet(3);
    let targets = temp.path().join("targets");
    replace(&targets, &list(&fleet, 0..1));
    let service = start(temp.path(), "").await;
    until(&service, "one target", |snapshot| snapshot.coverage.fresh == 1).await;

    fleet.scan_now(2);
    replace(&targets, &list(&fleet, 0..3));
    until(&service, "three targets", |snapshot| snapshot.coverage.fresh == 3 && snapshot.list.len() == 1)
        .await;

    replace(&targets, "not:a:target\n");
    let mut sets = service.views().targets.clone();
    let broken = tokio::time::timeout(Duration::from_secs(30), sets.wait_for(|set| set.error.is_some()));
    let set = broken.await.unwrap().unwrap().clone();
    assert_eq!(set.targets.len(), 3);
    assert!(set.error.as_ref().unwrap().contains("entry 1"), "{set:?}");

    // The violation of a removed target stays, because silence proves no absence.
    replace(&targets, &list(&fleet, 0..1));
    let snapshot = until(&service, "one target again", |snapshot| snapshot.coverage.expected() == 1).await;
    assert_eq!(snapshot.list.len(), 1);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dry_run_decides_and_writes_no_object() {
    let temp = tempfile::tempdir().unwrap();
    let fleet = fleet(1);
    fleet.scan_now(0);
    std::fs::write(temp.path().join("targets"), list(&fleet, 0..1)).unwrap();
    let service = start(temp.path(), "enforcement: {mode: dry-run}\n").await;
    let mut decided = service.views().decided.clone();
    let blocked = decided.wait_for(|decided| decided.plan.blocks.len() == 1 && decided.rounds > 0);
    tokio::time::timeout(Duration::from_secs(30), blocked).await.unwrap().unwrap();
    let rounds = service.views().snapshots.published().borrow().rounds;
    until(&service, "two more rounds", |snapshot| snapshot.rounds >= rounds + 2).await;
    service.stop().await;
    assert_eq!(listing(&temp.path().join("objects")), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_node_is_asked_less_often_and_counts_again_at_its_first_answer() {
    let temp = tempfile::tempdir().unwrap();
    let fleet = fleet(2);
    fleet.set_behaviour(0, Behaviour::Error500);
    fleet.scan_now(0);
    std::fs::write(temp.path().join("targets"), list(&fleet, 0..2)).unwrap();
    let service = start(temp.path(), "collector: {max_backoff_rounds: 1}\n").await;
    let snapshot = until(&service, "eight rounds", |snapshot| snapshot.rounds >= 8).await;
    let failing = snapshot.targets.iter().find(|target| &*target.node.0 == "sim-0000").unwrap();
    assert!(
        failing.consecutive_failures < 8,
        "a failing node was asked in every round: {}",
        failing.consecutive_failures
    );
    assert_eq!(failing.last_failure.as_ref().unwrap().1.detail, "HTTP 500 instead of 200");
    fleet.set_behaviour(0, Behaviour::Healthy);
    until(&service, "its violation", |snapshot| snapshot.list.len() == 1 && snapshot.coverage.fresh == 2)
        .await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_aggregator_releases_no_app() {
    let temp = tempfile::tempdir().unwrap();
    let fleet = fleet(2);
    (0..2).for_each(|node| fleet.scan_now(node));
    std::fs::write(temp.path().join("targets"), list(&fleet, 0..2)).unwrap();
    let directory = temp.path().join("objects");
    let service = start(temp.path(), "").await;
    output_until(&service, "two blocks", || blocked_services(&directory).len() == 3).await;
    service.stop().await;
    let before = objects(&directory);

    // After the restart no agent answers, or restarted agents answer `[]`, or decisions are paused. Every block and Notification
    // stays the same for some rounds.
    for (what, more) in [
        ("no answers", "detection: {clear_after: 1s, assumed_scan_interval: 1s}\n"),
        ("agents restarted", "detection: {clear_after: 1h}\n"),
        ("brakes", "detection: {clear_after: 1h}\nbrake: {max_new_tenants: 0}\n"),
        // This is the last one, because it persists that the processes have cleared. No App is released while paused.
        ("paused", "detection: {clear_after: 1s, assumed_scan_interval: 1s}\nenforcement: {mode: paused}\n"),
    ] {
        for node in 0..2 {
            let behaviour = if what == "no answers" { Behaviour::Hang } else { Behaviour::Restarted };
            fleet.set_behaviour(node, behaviour);
        }
        let service = start(temp.path(), more).await;
        until(&service, "four rounds", |snapshot| snapshot.rounds >= 4).await;
        service.stop().await;
        // The summary's timestamp is the start of each run, so it differs.
        let lasting = |all: Vec<serde_json::Value>| -> Vec<serde_json::Value> {
            all.into_iter().filter(|object| object["metadata"]["namespace"] != "default").collect()
        };
        assert_eq!(lasting(objects(&directory)), lasting(before.clone()), "{what}");
    }

    // An App is released after every node has answered for `clear_after` without evidence.
    let service = start(temp.path(), "detection: {clear_after: 2s, assumed_scan_interval: 1s}\n").await;
    output_until(&service, "the release", || blocked_services(&directory).len() == 1).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_output_is_reported_and_recovers_without_a_restart() {
    let temp = tempfile::tempdir().unwrap();
    let fleet = fleet(1);
    std::fs::write(temp.path().join("targets"), list(&fleet, 0..1)).unwrap();
    let directory = temp.path().join("objects");
    std::fs::create_dir(&directory).unwrap();
    let foreign = directory.join("wasmplugin_higress-system_procscan-violations.yaml");
    std::fs::write(&foreign, "kind: Mine\n").unwrap();
    let service = start(temp.path(), "").await;
    let mut status = service.views().output.clone();
    let failed =
        tokio::time::timeout(Duration::from_secs(30), status.wait_for(|status| status.error.is_some()));
    let error = failed.await.unwrap().unwrap().error.clone().unwrap();
    assert!(error.contains("move it away"), "{error}");
    std::fs::remove_file(&foreign).unwrap();
    let recovered = status.wait_for(|status| status.error.is_none() && status.has_written);
    tokio::time::timeout(Duration::from_secs(30), recovered).await.unwrap().unwrap();
    assert_eq!(blocked_services(&directory), ["procscan-sentinel.invalid"]);
    service.stop().await;
}

/// The two aggregators have different state directories, and share only the output directory.
#[tokio::test(flavor = "multi_thread")]
async fn an_aggregator_does_not_start_while_another_one_writes_in_its_output_directory() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().display();
    let config = |state: &str| {
        let text = format!(
            "aggregator: {{address: 127.0.0.1}}\ndiscovery: {{mode: static, targets: [\"127.0.0.1:1\"]}}\n\
             output: {{mode: directory, directory: {path}/objects}}\nstate: {{directory: {path}/{state}}}\n"
        );
        let mut config = Config::parse(&text, "config", [], jiff::Timestamp::UNIX_EPOCH).unwrap();
        config.aggregator.port = 0;
        config
    };
    let first = Service::start(&config("first")).await.unwrap();
    let error = format!("{:#}", Service::start(&config("second")).await.err().unwrap());
    assert!(error.contains("output.directory"), "{error}");
    assert!(error.contains("another process writes there"), "{error}");
    first.stop().await;
    Service::start(&config("second")).await.unwrap().stop().await;
}
