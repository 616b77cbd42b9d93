//! `demo`: the main job on this machine, with nothing but this program.

mod earlier;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use procscan_agent::server::{self, Options};
use procscan_agent::simulate::{Fleet, FleetOptions};
use tokio_util::sync::CancellationToken;

pub(super) use self::earlier::unmark;
use super::agent::{faults, from_agent, host, rules};
use super::service::until_stopped;
use super::{CommandError, Stop, printed};
use crate::args;
use crate::config::{Config, DiscoveryMode, Format, Level, Logger, OutputMode};
use crate::progress;
use crate::run::Service;
use crate::telemetry;

/// The namespace that processes outside of containers are reported in.
const NAMESPACE: &str = "ns-demo";
/// How often the agents look at their processes.
const SCAN_INTERVAL: Duration = Duration::from_secs(1);
/// Of so many simulated nodes, one has an offender.
const OFFENDER_EVERY: usize = 10;

pub(super) async fn demo(args: args::Demo, mut stop: Stop) -> Result<(), CommandError> {
    let live = progress::is_wanted();
    telemetry::init(Logger { level: Level::Info, format: Format::Text }, live);
    let cancel = CancellationToken::new();
    let _stop_agents = cancel.clone().drop_guard();

    // Mistakes in what was typed come before anything starts.
    let rules = rules(args.rules.as_deref())?;
    let fleet = simulate(&args, &cancel)?;
    let agent = Options {
        bind: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0),
        scan_interval: SCAN_INTERVAL,
        rules,
        host: Some(host(NAMESPACE.to_owned())),
        ..Options::default()
    };
    let (agent, _agent_task) = server::start(agent, cancel.clone()).await.map_err(from_agent)?;

    let mut config = config(&args);
    config.discovery.targets.push(format!("{agent} node=this-machine"));
    if let Some(fleet) = &fleet {
        let simulated = fleet.targets().into_iter().map(|(node, address)| format!("{address} node={node}"));
        config.discovery.targets.extend(simulated);
    }
    earlier::begin(&config, args.keep)?;
    let service = Service::start(&config).await?;
    let banner = banner(&args, &config, service.address());
    if let Err(error) = printed::print(&format!("{banner}\n")) {
        service.stop().await;
        return Err(error.into());
    }
    let drawing = live.then(|| tokio::spawn(progress::draw(service.views().clone())));
    let result = until_stopped(service, stop.wait()).await;
    if let Some(drawing) = drawing {
        drawing.abort();
        printed::note("");
    }
    result
}

fn simulate(args: &args::Demo, cancel: &CancellationToken) -> Result<Option<Fleet>, CommandError> {
    let faults = faults(&args.fault)?;
    if args.nodes == 0 {
        return if faults.is_empty() {
            Ok(None)
        } else {
            Err(CommandError::Usage("--fault: there are no simulated nodes; give some with --nodes".into()))
        };
    }
    let nodes = args.nodes as usize;
    let options = FleetOptions {
        nodes,
        port: 0,
        scan_interval: SCAN_INTERVAL,
        offenders_per_node: 0,
        ..FleetOptions::default()
    };
    let fleet = Fleet::start(options, cancel).context("the simulated nodes can't be started")?;
    for node in (0..nodes).step_by(OFFENDER_EVERY) {
        fleet.set_offender_count(node, 1);
    }
    fleet.inject(&faults).map_err(|e| CommandError::Usage(format!("--fault: {e}")))?;
    Ok(Some(fleet))
}

/// Everything as in production, but faster, so that a person sees it happen.
fn config(args: &args::Demo) -> Config {
    let mut config = Config::default();
    config.aggregator.address = Ipv4Addr::LOCALHOST.into();
    config.aggregator.port = args.port;
    config.aggregator.scan_interval = Duration::from_secs(2);
    config.collector.timeout = Duration::from_secs(1);
    config.collector.connect_timeout = Duration::from_secs(1);
    config.detection.max_age = Duration::from_secs(15);
    config.detection.clear_after = Duration::from_secs(30);
    config.detection.assumed_scan_interval = SCAN_INTERVAL;
    config.discovery.mode = DiscoveryMode::Static;
    config.output.mode = OutputMode::Directory;
    config.output.directory = Some(args.dir.clone());
    config.state.directory = Some(earlier::state_of(&args.dir));
    config
}

/// What the demo does, where to look, and what to try.
fn banner(args: &args::Demo, config: &Config, address: SocketAddr) -> String {
    let place = |directory: &Option<PathBuf>| {
        let directory = directory.clone().unwrap_or_default();
        std::path::absolute(&directory).unwrap_or(directory).display().to_string()
    };
    format!(
        "ProcScan Aggregator is looking at this machine's processes{}.

  Violations   http://{address}/api/violations
  Nodes        http://{address}/api/v1/nodes
  Plan         http://{address}/api/v1/plan
  Objects      {}
  State        {}

Try it in another terminal:

  cp \"$(command -v sleep)\" xmrig && ./xmrig 300

It is listed within a few seconds, and its App is blocked: see the objects. Stop it, and the block is
released once its node has answered for 30 s without it. Ctrl-C ends the demo. The next one removes these
objects and this state, and begins anew; with --keep it goes on from them.
",
        if args.nodes > 0 { format!(" and at {} simulated nodes", args.nodes) } else { String::new() },
        place(&config.output.directory),
        place(&config.state.directory),
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Arguments, Command};

    #[test]
    fn the_banner_names_every_directory_that_the_demo_makes() {
        for (args, objects) in [(&["demo"][..], "procscan-demo"), (&["demo", "--dir", "/tmp/a"], "/tmp/a")] {
            let args = Arguments::parse_from([&["procscan-aggregator"], args].concat());
            let Command::Demo(args) = args.command else { panic!("{args:?}") };
            let config = config(&args);
            let banner = banner(&args, &config, SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 1));
            let objects = std::path::absolute(objects).unwrap().display().to_string();
            for line in [format!("  Objects      {objects}"), format!("  State        {objects}-state")] {
                assert!(banner.lines().any(|it| it == line), "{line}: {banner}");
            }
        }
    }
}
