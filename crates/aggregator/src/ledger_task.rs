//! The only owner of the ledger: takes in observations, lets time pass, publishes snapshots.

use std::sync::Arc;
use std::time::Duration;

use procscan_core::ledger::{Change, ChangeKind, Ledger, Remembered};
use procscan_core::snapshot::Snapshot;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior};

use crate::clock::Clock;
use crate::collector::{Observation, Round};
use crate::discovery::TargetSet;
use crate::evidence::PodGone;

/// How soon after a change a snapshot shows it. Changes within it share one snapshot.
const PUBLISH_AFTER: Duration = Duration::from_millis(100);
/// How often time is let pass: evidence grows old and graces end without anybody saying so.
const TICK: Duration = Duration::from_secs(1);
/// How many observations are taken in before others get their turn.
const BATCH: usize = 64;

/// What the ledger has to be reminded of: evidence from before the start, or known to another replica.
#[derive(Debug)]
pub struct Memory {
    /// The evidence.
    pub evidence: Vec<Remembered>,
    /// It is in the snapshots from now on.
    pub done: oneshot::Sender<()>,
}

/// What the ledger is told.
#[derive(Debug)]
pub struct Inbox {
    /// What the agents have said.
    pub observations: mpsc::Receiver<Observation>,
    /// Who is expected to answer.
    pub targets: watch::Receiver<Arc<TargetSet>>,
    /// The Pods that are gone.
    pub gone: mpsc::Receiver<PodGone>,
    /// What was known before.
    pub memory: mpsc::Receiver<Memory>,
}

/// Runs until every sender of observations is gone; what they have sent is in the last snapshot.
pub async fn run(mut ledger: Ledger, clock: Clock, inbox: Inbox, snapshots: watch::Sender<Arc<Snapshot>>) {
    let Inbox { mut observations, mut targets, mut gone, mut memory } = inbox;
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut publish_at: Option<Instant> = None;
    let mut batch = Vec::with_capacity(BATCH);
    let (mut targets_live, mut gone_live, mut memory_live) = (true, true, true);
    let mut last_round = None;
    loop {
        let due = publish_at;
        tokio::select! {
            n = observations.recv_many(&mut batch, BATCH) => {
                if n == 0 {
                    break;
                }
                // Whoever is asked is in the set by now: the collector learned of it from the same one.
                if targets.has_changed().unwrap_or(false) {
                    expect(&mut ledger, &mut targets);
                }
                for observation in batch.drain(..) {
                    take_in(&mut ledger, observation, &mut last_round);
                }
            }
            changed = targets.changed(), if targets_live => match changed {
                Ok(()) => expect(&mut ledger, &mut targets),
                Err(_) => targets_live = false,
            },
            pod = gone.recv(), if gone_live => match pod {
                Some(PodGone { pod, until }) => log(&ledger.pod_gone(&pod, until)),
                None => gone_live = false,
            },
            past = memory.recv(), if memory_live => match past {
                Some(Memory { evidence, done }) => {
                    let now = clock.now();
                    ledger.remember(evidence, now);
                    publish_at = None;
                    snapshots.send_replace(Arc::new(ledger.snapshot(now)));
                    // Whoever asked may have ended meanwhile.
                    let _ = done.send(());
                    continue;
                }
                None => memory_live = false,
            },
            _ = tick.tick() => {
                log(&ledger.advance(clock.now()));
                publish_at = Some(Instant::now());
            }
            () = async { tokio::time::sleep_until(due.unwrap_or_else(Instant::now)).await }, if due.is_some() => {
                publish_at = None;
                snapshots.send_replace(Arc::new(ledger.snapshot(clock.now())));
                continue;
            }
        }
        publish_at.get_or_insert_with(|| Instant::now() + PUBLISH_AFTER);
    }
    snapshots.send_replace(Arc::new(ledger.snapshot(clock.now())));
}

fn expect(ledger: &mut Ledger, targets: &mut watch::Receiver<Arc<TargetSet>>) {
    let set = targets.borrow_and_update().clone();
    ledger.expect(set.targets.iter().cloned(), set.unlisted);
}

/// `last` is how many targets the last round had, and how many of them answered.
fn take_in(ledger: &mut Ledger, observation: Observation, last: &mut Option<(usize, usize)>) {
    match observation {
        Observation::Report(report) => log(&ledger.absorb(&report)),
        Observation::RoundDone(round) => {
            ledger.round_done();
            let counts = (round.asked + round.skipped, round.answered);
            let took_ms = u64::try_from(round.took.as_millis()).unwrap_or(u64::MAX);
            let Round { number, asked, answered, failed, skipped, .. } = round;
            if answered == 0 {
                tracing::warn!(
                    round = number,
                    asked,
                    failed,
                    skipped,
                    took_ms,
                    "round done: nobody has answered"
                );
            } else if last.replace(counts) == Some(counts) {
                // A round like the one before is no news.
                tracing::debug!(round = number, asked, answered, failed, skipped, took_ms, "round done");
            } else {
                tracing::info!(round = number, asked, answered, failed, skipped, took_ms, "round done");
            }
        }
    }
}

/// Tenants choose the process names, so they are logged escaped; the command line, which may hold secrets, is not logged.
fn log(changes: &[Change]) {
    for Change { key, node, kind } in changes {
        let (namespace, pod, process) = (&*key.namespace, &*key.pod, key.process.escape_debug());
        match kind {
            ChangeKind::Appeared => tracing::warn!(namespace, pod, %process, %node, "violation"),
            ChangeKind::Sighted => {
                tracing::info!(namespace, pod, %process, %node, "violation listed without fresh evidence");
            }
            ChangeKind::Unconfirmed => {
                tracing::info!(namespace, pod, %process, %node, "violation unconfirmed");
            }
            ChangeKind::Cleared(why) => {
                tracing::info!(namespace, pod, %process, %node, why = why.as_str(), "violation cleared");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use procscan_core::ledger::Detection;
    use procscan_core::names::NodeName;
    use procscan_core::report::{Failure, FailureReason, Outcome, Report, Target};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_taken_in_is_shown_soon_and_the_last_of_it_before_the_end() {
        let clock = Clock::start();
        let mut ledger = Ledger::new(Detection::default(), clock.now());
        let agent = Target { address: "n1:9090".into(), node: NodeName::new("n1") };
        let (observations_tx, observations) = mpsc::channel(4);
        let known = TargetSet { targets: vec![agent.clone()], ..TargetSet::default() };
        let (targets_tx, targets) = watch::channel(Arc::default());
        targets_tx.send_replace(Arc::new(known));
        let (published, mut snapshots) = watch::channel(Arc::new(ledger.snapshot(clock.now())));
        let task = {
            let (gone, memory) = (mpsc::channel(1).1, mpsc::channel(1).1);
            tokio::spawn(run(ledger, clock, Inbox { observations, targets, gone, memory }, published))
        };

        let failure = |detail: &str| Failure { reason: FailureReason::Timeout, detail: detail.to_owned() };
        let observe = |detail| {
            let outcome = Outcome::Failed(failure(detail));
            Observation::Report(Report { target: agent.clone(), at: clock.now(), outcome })
        };
        let sent = clock.now();
        observations_tx.send(observe("first")).await.unwrap();
        let tells = |snapshot: &Arc<Snapshot>, detail: &str| {
            snapshot.targets.iter().any(|t| t.last_failure.as_ref().is_some_and(|(_, f)| f.detail == detail))
        };
        snapshots.wait_for(|snapshot| tells(snapshot, "first")).await.unwrap();
        assert!(clock.now().since(sent) <= PUBLISH_AFTER, "{:?}", clock.now().since(sent));

        tokio::time::advance(Duration::from_millis(1)).await;
        observations_tx.send(observe("last")).await.unwrap();
        drop(observations_tx);
        task.await.unwrap();
        assert!(tells(&snapshots.borrow().clone(), "last"));
    }
}
