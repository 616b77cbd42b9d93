//! Finds the agents: publishes the current set of targets, and says when it can't be sure of it.
//!
//! A source that fails keeps the last set: an agent that can't be found any more is still expected to answer.

mod dns;
pub mod fixed;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod kubernetes;

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use procscan_core::report::Target;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use self::dns::Dns;
pub use self::kubernetes::{Kubernetes, Port};
use crate::plain_file;

/// The targets as of now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TargetSet {
    /// Every target once, ordered by address.
    pub targets: Vec<Target>,
    /// Agents that should exist but have no address.
    pub unlisted: usize,
    /// Why the source can't be asked at the moment, if so: the targets are then the last ones known.
    pub error: Option<String>,
    /// Where the targets come from, for people.
    pub source: String,
}

/// Where targets come from.
#[derive(Debug)]
pub enum Source {
    /// Asked again and again.
    Polled(Polled),
    /// Says by itself what changes. Boxed, because it is far larger than the others.
    Watched(Box<Kubernetes>),
}

/// A source that is asked again and again.
#[derive(Debug)]
pub enum Polled {
    /// A list that does not change.
    Static(Vec<Target>),
    /// A list in a file that may change.
    File {
        /// The file.
        path: PathBuf,
        /// The port of targets without one.
        port: u16,
    },
    /// A headless Service's name.
    Dns(Dns),
}

impl Polled {
    /// The source, for people.
    fn name(&self) -> String {
        match self {
            Self::Static(_) => "discovery.targets".to_owned(),
            Self::File { path, .. } => format!("the file {}", path.display()),
            Self::Dns(dns) => format!("the addresses of {}", dns.name),
        }
    }

    /// Asks the source once. Nothing if it is known to say what it has said `before`.
    async fn find(&self, before: &mut Option<u64>) -> Option<Result<Vec<Target>, String>> {
        match self {
            Self::Static(targets) => Some(Ok(targets.clone())),
            Self::File { path, port } => {
                let file = path.clone();
                let read = move || plain_file::read_text(&file, plain_file::MAX_TEXT);
                let text = tokio::task::spawn_blocking(read).await.unwrap_or_else(|e| Err(e.into()));
                let text = text.map_err(|e| format!("can't be read: {e}"));
                // Read every few seconds, and nearly always the same: not worth being taken apart again.
                let now =
                    text.as_ref().ok().map(|text| BuildHasherDefault::<DefaultHasher>::new().hash_one(text));
                if now.is_some() && *before == now {
                    return None;
                }
                *before = now;
                Some(text.and_then(|text| fixed::parse(text.lines(), *port).map_err(|e| e.to_string())))
            }
            Self::Dns(dns) => Some(dns.find().await),
        }
    }
}

/// Keeps `targets` up to date until cancelled. Never ends by itself.
pub async fn run(
    source: Source,
    refresh: Duration,
    targets: watch::Sender<Arc<TargetSet>>,
    cancel: CancellationToken,
) {
    match source {
        Source::Polled(polled) => poll(&polled, refresh, &targets, &cancel).await,
        Source::Watched(kubernetes) => kubernetes.run(refresh, targets, cancel).await,
    }
}

async fn poll(
    source: &Polled,
    refresh: Duration,
    targets: &watch::Sender<Arc<TargetSet>>,
    cancel: &CancellationToken,
) {
    let mut timer = tokio::time::interval(refresh);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut said = None;
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = timer.tick() => {}
        }
        let found = tokio::select! {
            () = cancel.cancelled() => return,
            found = source.find(&mut said) => found,
        };
        let Some(found) = found else { continue };
        let before = targets.borrow().clone();
        let now = match found {
            Ok(found) => TargetSet { targets: found, unlisted: 0, error: None, source: source.name() },
            Err(error) => TargetSet { error: Some(error), source: source.name(), ..(*before).clone() },
        };
        if *before == now {
            continue;
        }
        if let Some(error) = &now.error {
            tracing::warn!(
                source = now.source,
                error,
                kept = now.targets.len(),
                "targets can't be found; keeping the last ones"
            );
        } else {
            tracing::info!(source = now.source, targets = now.targets.len(), "targets found");
        }
        targets.send_replace(Arc::new(now));
    }
}
