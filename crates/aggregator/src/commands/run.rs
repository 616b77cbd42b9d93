//! `run`: the service.

use std::path::Path;

use super::{CommandError, Stop, demo};
use crate::config::Config;
use crate::run::Service;
use crate::telemetry;

pub(super) async fn run(config: &Path, mut stop: Stop) -> Result<(), CommandError> {
    let config = Config::load(config, std::env::vars_os().filter_map(text))?;
    telemetry::init(config.logger, false);
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let service = Service::start(&config).await?;
    // Not before: a demo may be running there, and then the service does not start.
    demo::unmark(&config);
    until_stopped(service, stop.wait_as_a_service()).await
}

/// Runs until `stop` is ready, or a stage dies.
pub(super) async fn until_stopped(
    mut service: Service,
    stop: impl Future<Output = ()>,
) -> Result<(), CommandError> {
    let broken = tokio::select! {
        () = stop => None,
        stage = service.broken() => Some(stage),
    };
    service.stop().await;
    match broken {
        None => Ok(()),
        Some(stage) => Err(anyhow::anyhow!("the {stage} stopped by itself").into()),
    }
}

/// A variable whose name and value are text; others can't be ours.
pub(super) fn text((name, value): (std::ffi::OsString, std::ffi::OsString)) -> Option<(String, String)> {
    Some((name.into_string().ok()?, value.into_string().ok()?))
}
