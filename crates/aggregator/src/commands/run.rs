//! `run`: the service.

use std::path::Path;
use std::sync::Arc;

use super::service::{environment, until_stopped};
use super::{CommandError, Stop, demo};
use crate::config::Config;
use crate::reload::ConfigFile;
use crate::run::Service;
use crate::telemetry;

pub(super) async fn run(path: &Path, mut stop: Stop) -> Result<(), CommandError> {
    let variables: Vec<_> = environment().collect();
    let config = Config::load(path, variables.clone())?;
    telemetry::init(config.logger, false);
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let file = ConfigFile { path: path.to_owned(), variables, asked: Arc::default() };
    let asked = file.asked.clone();
    let service = Service::start_with(&config, Some(file)).await?;
    // Not before: a demo may be running there, and then the service does not start.
    demo::unmark(&config);
    until_stopped(service, stop.wait_as_a_service(&asked)).await
}
