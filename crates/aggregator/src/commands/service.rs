//! The service and its environment, for the commands that read a configuration or run the service.

use std::ffi::OsString;

use super::CommandError;
use crate::run::Service;

/// Runs the service until `stop` is ready, or until a stage ends by itself.
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

/// The environment variables whose names are UTF-8, because each variable of the configuration has such a name. A value
/// that is not UTF-8 is in the result, because the configuration refuses it by its name.
pub(super) fn environment() -> impl Iterator<Item = (String, OsString)> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
}
