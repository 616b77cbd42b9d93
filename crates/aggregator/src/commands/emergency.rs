//! `unblock-all` and `uninstall`: what has to work when the service does not. They talk to the Kubernetes API themselves.

use std::path::Path;

use super::CommandError;
use super::run::text;
use crate::config::{Config, Logger, OutputMode};
use crate::kubernetes::Cluster;
use crate::output::cluster::{ClusterOutput, SUSPEND};
use crate::telemetry;

pub(super) async fn unblock_all(path: &Path) -> Result<(), CommandError> {
    let (config, output) = connect(path).await?;
    let opened = output.unblock_all(&config.settings().gateway).await.map_err(anyhow::Error::from)?;
    if opened.is_empty() {
        println!("There is no WasmPlugin of ours in {}: nothing is blocked.", config.gateway.namespace);
        return Ok(());
    }
    for object in &opened {
        println!("{object}: open to everybody, and suspended");
    }
    println!("\nThe service leaves them alone until the annotation is removed:");
    for object in opened {
        let name = object.rsplit_once('/').map_or("", |(_, name)| name);
        println!("  kubectl annotate wasmplugins -n {} {name} {SUSPEND}-", config.gateway.namespace);
    }
    Ok(())
}

pub(super) async fn uninstall(path: &Path, dry_run: bool) -> Result<(), CommandError> {
    let (config, output) = connect(path).await?;
    let removed = output.uninstall(&config.settings().gateway, dry_run).await.map_err(anyhow::Error::from)?;
    for object in &removed {
        println!("{object}{}", if dry_run { " would be removed" } else { " removed" });
    }
    if removed.is_empty() {
        println!("There is nothing of ours.");
    }
    Ok(())
}

async fn connect(path: &Path) -> Result<(Config, ClusterOutput), CommandError> {
    let config = Config::load(path, std::env::vars_os().filter_map(text))?;
    telemetry::init(Logger { level: crate::config::Level::Warn, ..config.logger }, false);
    if config.output.mode != OutputMode::Cluster {
        let directory = config.output.directory().display();
        return Err(CommandError::Usage(format!(
            "output.mode: directory: the objects are the files in {directory}; there is nothing of ours in a cluster"
        )));
    }
    let cluster = Cluster::connect(&config.kubernetes).await?;
    Ok((config, ClusterOutput::new(cluster)))
}
