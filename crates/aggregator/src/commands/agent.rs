//! `agent`: the reference node agent, or a simulated fleet of them.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context;
use procscan_agent::proc::HostIdentity;
use procscan_agent::rules::Rules;
use procscan_agent::server::{self, AgentError, Options};
use procscan_agent::simulate::{Fault, Fleet, FleetOptions, Script, spread_faults};
use tokio_util::sync::CancellationToken;

use super::{CommandError, Stop, printed};
use crate::args;
use crate::config::{ConfigError, Format, Logger};
use crate::plain_file;
use crate::telemetry;

pub(super) async fn agent(args: args::Agent, mut stop: Stop) -> Result<(), CommandError> {
    telemetry::init(Logger { format: Format::Text, ..Logger::default() }, false);
    let cancel = CancellationToken::new();
    let _stop_tasks = cancel.clone().drop_guard();
    let fleet;
    let mut task = if let Some(nodes) = args.simulate {
        // Mistakes in the arguments and their files are reported before any port is bound.
        let script = args.script.as_deref().map(|path| script(path, nodes as usize)).transpose()?;
        fleet = simulate(&args, nodes as usize, &cancel)?;
        let play = async move {
            if let Some(script) = script {
                fleet.play(script, cancel.clone()).await?;
            }
            cancel.cancelled().await;
            anyhow::Ok(())
        };
        tokio::spawn(play)
    } else {
        let options = Options {
            bind: args.bind,
            scan_interval: args.scan_interval,
            rules: rules(args.rules.as_deref())?,
            proc_root: args.proc,
            pods_root: args.pods,
            containers_root: args.containers,
            host: args.host_namespace.map(host),
        };
        let (address, task) = server::start(options, cancel).await.map_err(from_agent)?;
        printed::print(&format!("node agent on http://{address}/api/violations\n"))?;
        tokio::spawn(async move { task.await?.map_err(anyhow::Error::from) })
    };
    tokio::select! {
        () = stop.wait() => Ok(()),
        ended = &mut task => match ended {
            Ok(result) => result.map_err(CommandError::from),
            Err(died) => Err(CommandError::Other(died.into())),
        },
    }
}

fn simulate(args: &args::Agent, nodes: usize, cancel: &CancellationToken) -> Result<Fleet, CommandError> {
    let faults = faults(&args.fault)?;
    spread_faults(&faults, nodes).map_err(|e| CommandError::Usage(format!("--fault: {e}")))?;
    let options = FleetOptions {
        nodes,
        base: args.base,
        port: args.bind.port(),
        scan_interval: args.scan_interval,
        offenders_per_node: args.offenders,
        ..FleetOptions::default()
    };
    let fleet = Fleet::start(options, cancel).context("the fleet can't be started")?;
    fleet.inject(&faults).map_err(|e| CommandError::Usage(format!("--fault: {e}")))?;
    if let Some(path) = &args.targets {
        let mut list = String::new();
        for (node, address) in fleet.targets() {
            let _ = writeln!(list, "{address} node={node}");
        }
        std::fs::write(path, list).with_context(|| format!("{} can't be written", path.display()))?;
    }
    if let (Some((_, first)), Some((_, last))) = (fleet.targets().first(), fleet.targets().last()) {
        printed::print(&format!(
            "{nodes} simulated nodes, from http://{first}/api/violations to http://{last}/api/violations\n"
        ))?;
    }
    Ok(fleet)
}

/// A namespace that would never be reported is a mistake in the arguments.
pub(super) fn from_agent(error: AgentError) -> CommandError {
    match error {
        AgentError::HostNamespace(_) => CommandError::Usage(error.to_string()),
        other => CommandError::Other(other.into()),
    }
}

/// The faults of `--fault`.
pub(super) fn faults(texts: &[String]) -> Result<Vec<Fault>, CommandError> {
    let parse = |text: &String| text.parse().map_err(|e| CommandError::Usage(format!("--fault {text}: {e}")));
    texts.iter().map(parse).collect()
}

/// The rules of a file, or the built-in ones.
pub(super) fn rules(path: Option<&Path>) -> Result<Rules, CommandError> {
    let Some(path) = path else {
        return Ok(Rules::default());
    };
    let rules = Rules::from_yaml(&read(path)?).map_err(|e| ConfigError::new(path.display(), e))?;
    for refused in rules.refused() {
        tracing::warn!(file = %path.display(), "a rule is not in force, the others are: {refused}");
    }
    if rules.are_empty() {
        tracing::warn!(file = %path.display(), "detectionRules.blacklist has no processes and no keywords: no process will be reported");
    }
    Ok(rules)
}

fn script(path: &Path, nodes: usize) -> Result<Script, CommandError> {
    let checked = Script::from_yaml(&read(path)?).and_then(|script| script.check(nodes).map(|()| script));
    Ok(checked.map_err(|e| ConfigError::new(path.display(), e))?)
}

fn read(path: &Path) -> Result<String, ConfigError> {
    plain_file::read_text(path, plain_file::MAX_TEXT)
        .map_err(|e| ConfigError::new(path.display(), format!("can't be read: {e}")))
}

/// Processes outside of containers, reported as a Pod of the host's name.
pub(super) fn host(namespace: String) -> HostIdentity {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    // A host's name may have capitals and underscores, a Pod's may not.
    let pod: String = name
        .trim()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '.' { c.to_ascii_lowercase() } else { '-' })
        .collect();
    let pod = pod.trim_matches(['-', '.']).to_owned();
    HostIdentity { namespace, pod: if pod.is_empty() { "localhost".to_owned() } else { pod } }
}
