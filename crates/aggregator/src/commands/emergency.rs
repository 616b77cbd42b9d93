//! `unblock-all` and `uninstall`: what has to work when the service does not. They talk to the Kubernetes API themselves.

use std::fmt::Write as _;
use std::path::Path;

use super::CommandError;
use super::printed::{self, note};
use super::run::text;
use crate::config::{Config, Logger, OutputMode};
use crate::kubernetes::Cluster;
use crate::leader::removal::{self, Unheld};
use crate::output::cluster::{ClusterOutput, LeftBehind, SUSPEND};
use crate::run::{LEASE, objects};
use crate::telemetry;

pub(super) async fn unblock_all(path: &Path) -> Result<(), CommandError> {
    let (config, output) = connect(path).await?;
    let opened = output.unblock_all(&config.settings().gateway).await.map_err(anyhow::Error::from)?;
    if opened.is_empty() {
        let namespace = config.gateway.namespace;
        let text = format!("There is no WasmPlugin of ours in {namespace}: nothing is blocked.\n");
        return Ok(printed::print(&text)?);
    }
    let mut text = String::new();
    for object in &opened {
        let _ = writeln!(text, "{object}: open to all, and suspended");
    }
    text.push_str("\nThe service leaves them alone until the annotation is removed:\n");
    for object in opened {
        let name = object.rsplit_once('/').map_or("", |(_, name)| name);
        let namespace = &config.gateway.namespace;
        let _ = writeln!(text, "  kubectl annotate wasmplugins -n {namespace} {name} {SUSPEND}-");
    }
    Ok(printed::print(&text)?)
}

pub(super) async fn uninstall(path: &Path, dry_run: bool) -> Result<(), CommandError> {
    let (config, output) = connect(path).await?;
    let gateway = config.settings().gateway;
    let namespace = objects(&config, output.cluster()).namespace().to_owned();
    // Before anything is removed: a leader would make the objects again.
    let lease = if dry_run {
        removal::exists(output.cluster(), &namespace, LEASE)
            .await
            .map_err(anyhow::Error::from)?
            .then_some(None)
    } else {
        let found = Unheld::find(output.cluster(), &namespace, LEASE).await;
        found.map_err(anyhow::Error::from)?.map(Some)
    };
    let mut removed = output.uninstall(&gateway, dry_run).await.map_err(anyhow::Error::from)?;
    if let Some(lease) = lease {
        if let Some(lease) = lease {
            lease.remove().await.map_err(anyhow::Error::from)?;
        }
        removed.push(format!("Lease {namespace}/{LEASE}"));
    }
    let mut text = String::new();
    for object in &removed {
        let _ = writeln!(text, "{object}{}", if dry_run { " would be removed" } else { " removed" });
    }
    if removed.is_empty() {
        text.push_str("There is nothing of ours.\n");
    }
    match output.left_behind(&gateway).await {
        Ok(left) => left.iter().for_each(|left| name_left_behind(left, &mut text)),
        Err(refusal) => {
            note(format_args!("Could not look for objects of the program before this one: {refusal}"));
        }
    }
    Ok(printed::print(&text)?)
}

fn name_left_behind(LeftBehind { kind, plural, namespace, name }: &LeftBehind, text: &mut String) {
    let _ = writeln!(
        text,
        "\n{kind} {namespace}/{name} was left behind by the program before this one, and has no effect there. To remove it:\n  \
         kubectl delete -n {namespace} {plural} {name}"
    );
}

async fn connect(path: &Path) -> Result<(Config, ClusterOutput), CommandError> {
    let config = Config::load(path, std::env::vars_os().filter_map(text))?;
    telemetry::init(Logger { level: crate::config::Level::Warn, ..config.logger }, false);
    if config.output.mode != OutputMode::Cluster {
        let directory = config.output.directory().display();
        return Err(CommandError::Usage(format!(
            "output.mode: directory: the objects are the files in {directory}, and this command changes only objects in a cluster. \
             To open the gateway, stop the service, delete the files wasmplugin_*.yaml in {directory}, and delete these WasmPlugins in each cluster to which the files were applied"
        )));
    }
    let cluster = Cluster::connect(&config.kubernetes).await?;
    Ok((config, ClusterOutput::new(cluster)))
}
