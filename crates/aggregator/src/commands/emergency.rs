//! `unblock-all` and `uninstall`: what has to work when the service does not. They talk to the Kubernetes API themselves.

use std::fmt::Write as _;
use std::path::Path;

use procscan_core::resources::Home;

use super::CommandError;
use super::printed::{self, note};
use super::service::environment;
use crate::config::{Config, Logger, OutputMode};
use crate::kubernetes::Cluster;
use crate::leader::removal::{self, Unheld};
use crate::output::cluster::{ClusterOutput, LeftBehind, Opened, OpenedObject, SUSPEND};
use crate::run::{LEASE, objects};
use crate::telemetry;

pub(super) async fn unblock_all(path: &Path) -> Result<(), CommandError> {
    let (config, output) = connect(path).await?;
    let settings = config.settings();
    let Opened { objects, refused } = output.unblock_all(&settings).await;
    let refused: Vec<String> = refused.into_iter().map(|refusal| refusal.text).collect();
    if objects.is_empty() && refused.is_empty() {
        let kinds: Vec<String> = settings
            .kinds
            .iter()
            .filter(|kind| kind.blocking().is_some())
            .map(|kind| match kind.home(&settings) {
                Home::Namespace(namespace) => format!("{kind} of ours in {namespace}"),
                Home::Tenants => format!("{kind} of ours"),
            })
            .collect();
        return Ok(printed::print(&format!(
            "There is no {}: nothing is blocked.\n",
            kinds.join(" and no ")
        ))?);
    }
    let mut text = String::new();
    for OpenedObject { kind, namespace, name } in &objects {
        let _ = writeln!(text, "{kind} {namespace}/{name}: open to all, and suspended");
    }
    if !objects.is_empty() {
        text.push_str("\nThe service leaves them alone until the annotation is removed:\n");
    }
    for OpenedObject { kind, namespace, name } in &objects {
        let _ = writeln!(text, "  kubectl annotate {} -n {namespace} {name} {SUSPEND}-", kind.plural());
    }
    printed::print(&text)?;
    if refused.is_empty() { Ok(()) } else { Err(anyhow::Error::msg(refused.join("; ")).into()) }
}

pub(super) async fn uninstall(path: &Path, dry_run: bool) -> Result<(), CommandError> {
    let (config, output) = connect(path).await?;
    let settings = config.settings();
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
    let mut removed = output.uninstall(&settings, dry_run).await.map_err(anyhow::Error::from)?;
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
    match output.left_behind(&settings).await {
        Ok(left) => left.iter().for_each(|left| name_left_behind(left, &mut text)),
        Err(refusal) => {
            note(format_args!("Could not look for objects of the program before this one: {refusal}"));
        }
    }
    Ok(printed::print(&text)?)
}

fn name_left_behind(LeftBehind { kind, namespace, name }: &LeftBehind, text: &mut String) {
    let plural = kind.resource();
    let _ = writeln!(
        text,
        "\n{kind} {namespace}/{name} was left behind by the program before this one, and has no effect there. To remove it:\n  \
         kubectl delete -n {namespace} {plural} {name}"
    );
}

async fn connect(path: &Path) -> Result<(Config, ClusterOutput), CommandError> {
    let config = Config::load(path, environment())?;
    telemetry::init(Logger { level: crate::config::Level::Warn, ..config.logger }, false);
    if config.output.mode != OutputMode::Cluster {
        let directory = config.output.directory().display();
        let kinds = config.settings().kinds;
        let blocking: Vec<_> = kinds.iter().filter(|kind| kind.blocking().is_some()).collect();
        let files: Vec<String> =
            blocking.iter().map(|kind| format!("{}*.yaml", kind.file_prefix())).collect();
        let objects: Vec<String> = blocking.iter().map(|kind| format!("{kind}s")).collect();
        return Err(CommandError::Usage(format!(
            "output.mode: directory: the objects are the files in {directory}, and this command changes only objects in a cluster. \
             To open the gateway, stop the service, delete the files {} in {directory}, and delete these {} in each cluster to which the files were applied",
            files.join(" and "),
            objects.join(" and ")
        )));
    }
    let cluster = Cluster::connect(&config.kubernetes).await?;
    Ok((config, ClusterOutput::new(cluster)))
}
