//! The tasks of the service, and the order in which they end.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How long shutdown may take. Operators are promised at most 5 s.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(4);

/// The time after the start of a shutdown at which the Lease is given back at the latest.
const HAND_OVER_AFTER: Duration = Duration::from_millis(600);
/// The name of the stage that holds the Lease.
pub(super) const LEADER: &str = "leader";

/// A task of the service.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) name: &'static str,
    pub(super) task: JoinHandle<()>,
    /// Ends the stage, if no other event ends it.
    cancel: Option<CancellationToken>,
}

impl Stage {
    pub(super) fn spawn(name: &'static str, task: impl Future<Output = ()> + Send + 'static) -> Self {
        Self { name, task: tokio::spawn(task), cancel: None }
    }

    /// Runs a stage on a thread of its own. So no other task delays it, and none of its many tiny tasks wakes another
    /// thread.
    pub(super) fn threaded(
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (done, is_done) = oneshot::channel();
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            // Spawned as a task, because waking the future that `block_on` itself runs takes a system call each time.
            // A panic of the task has been reported by now, and ends the stage too.
            let _ = runtime.block_on(runtime.spawn(task));
            // The receiver may have been dropped.
            let _ = done.send(());
        })?;
        // A panic of the thread ends the stage too.
        Ok(Self::spawn(name, async move { drop(is_done.await) }))
    }

    pub(super) fn until(
        cancel: CancellationToken,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        Self { cancel: Some(cancel), ..Self::spawn(name, task) }
    }
}

/// Ends the stages in order. The Lease is given back in time even while a write is under way, so that another replica
/// can go on. Returns the names of the stages that did not end by themselves.
pub(super) async fn end(stages: Vec<Stage>) -> Vec<&'static str> {
    let deadline = tokio::time::Instant::now() + SHUTDOWN_TIMEOUT;
    let leader = stages.iter().find(|stage| stage.name == LEADER).and_then(|stage| stage.cancel.clone());
    let hand_over = tokio::spawn(async move {
        tokio::time::sleep(HAND_OVER_AFTER).await;
        if let Some(leader) = leader {
            leader.cancel();
        }
    });
    let mut late = Vec::new();
    for mut stage in stages {
        if let Some(cancel) = &stage.cancel {
            cancel.cancel();
        }
        if stage.task.is_finished() {
            continue;
        }
        if tokio::time::timeout_at(deadline, &mut stage.task).await.is_err() {
            stage.task.abort();
            late.push(stage.name);
        }
    }
    hand_over.abort();
    late
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_lease_is_given_back_within_a_second_while_a_write_is_under_way() {
        let cancel = CancellationToken::new();
        let (ended_tx, ended) = oneshot::channel();
        let leader = {
            let cancel = cancel.clone();
            async move {
                cancel.cancelled().await;
                let _ = ended_tx.send(Instant::now());
            }
        };
        let start = Instant::now();
        let stages =
            vec![Stage::spawn("output", std::future::pending()), Stage::until(cancel, LEADER, leader)];
        assert_eq!(end(stages).await, ["output"]);
        assert!(ended.await.unwrap() - start < Duration::from_secs(1));
    }
}
