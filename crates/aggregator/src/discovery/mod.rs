//! Finds the agents: publishes the current set of targets, with an error if the set may be old.
//!
//! If a source fails, the last set stays, because an agent that can't be found any more is still expected to answer.

mod dns;
mod file;
mod kubernetes;

use std::sync::Arc;
use std::time::Duration;

use procscan_core::report::Target;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub(crate) use self::dns::Dns;
pub(crate) use self::file::TargetFile;
pub(crate) use self::kubernetes::{Kubernetes, Port};

/// The current targets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TargetSet {
    /// Every target once, ordered by address.
    pub targets: Vec<Target>,
    /// Agents that should exist but have no address.
    pub(crate) unlisted: usize,
    /// Why the source can't be read at the moment; `None` if it can. With an error, the targets are the last known
    /// ones.
    pub error: Option<String>,
    /// Where the targets come from, for people.
    pub(crate) source: String,
}

/// Where targets come from.
#[derive(Debug)]
pub(crate) enum Source {
    /// A source that is read again and again.
    Polled(Polled),
    /// A source that reports changes by itself. Boxed, because it is far larger than the others.
    Watched(Box<Kubernetes>),
}

/// A source that is read again and again.
#[derive(Debug)]
pub(crate) enum Polled {
    /// A list that does not change.
    Static(Vec<Target>),
    /// A list in a file that may change.
    File(TargetFile),
    /// A headless Service's name.
    Dns(Dns),
}

impl Polled {
    /// The source, for people.
    fn name(&self) -> String {
        match self {
            Self::Static(_) => "discovery.targets".to_owned(),
            Self::File(file) => format!("the file {}", file.path.display()),
            Self::Dns(dns) => format!("the addresses of {}", dns.name),
        }
    }

    /// Reads the source once. `known` are the current targets. `None` if they do not change yet.
    async fn find(&mut self, known: &[Target]) -> Option<Result<Vec<Target>, String>> {
        match self {
            Self::Static(targets) => Some(Ok(targets.clone())),
            Self::File(file) => file.find(known).await,
            Self::Dns(dns) => Some(dns.find().await),
        }
    }
}

/// Keeps `targets` up to date until cancelled. Never ends by itself.
pub(crate) async fn run(
    source: Source,
    refresh: Duration,
    targets: watch::Sender<Arc<TargetSet>>,
    cancel: CancellationToken,
) {
    match source {
        Source::Polled(mut polled) => poll(&mut polled, refresh, &targets, &cancel).await,
        Source::Watched(kubernetes) => kubernetes.run(refresh, targets, cancel).await,
    }
}

async fn poll(
    source: &mut Polled,
    refresh: Duration,
    targets: &watch::Sender<Arc<TargetSet>>,
    cancel: &CancellationToken,
) {
    let mut timer = tokio::time::interval(refresh);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = timer.tick() => {}
        }
        let before = targets.borrow().clone();
        let found = tokio::select! {
            () = cancel.cancelled() => return,
            found = source.find(&before.targets) => found,
        };
        let Some(found) = found else { continue };
        let now = match found {
            Ok(found) => TargetSet { targets: found, unlisted: 0, error: None, source: source.name() },
            Err(error) => TargetSet { error: Some(error), source: source.name(), ..(*before).clone() },
        };
        if *before == now {
            continue;
        }
        if let Some(error) = &now.error {
            tracing::warn!(
                alert = "discovery",
                source = now.source,
                error,
                targets = now.targets.len(),
                "targets can't be found; the last ones stay"
            );
        } else {
            tracing::info!(source = now.source, targets = now.targets.len(), "targets found");
        }
        targets.send_replace(Arc::new(now));
    }
}
