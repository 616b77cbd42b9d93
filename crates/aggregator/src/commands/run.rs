//! `run`: the service.

use std::path::Path;

use super::service::{environment, until_stopped};
use super::{CommandError, Stop, demo};
use crate::config::Config;
use crate::run::Service;
use crate::telemetry;

pub(super) async fn run(config: &Path, mut stop: Stop) -> Result<(), CommandError> {
    let config = Config::load(config, environment())?;
    telemetry::init(config.logger, false);
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let service = Service::start(&config).await?;
    // Not before: a demo may be running there, and then the service does not start.
    demo::unmark(&config);
    until_stopped(service, stop.wait_as_a_service()).await
}
