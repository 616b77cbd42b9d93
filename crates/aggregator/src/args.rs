//! The command line.

pub(crate) mod operators;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

/// The arguments of the program.
#[derive(Debug, Parser)]
#[command(
    name = "procscan-aggregator",
    version,
    arg_required_else_help = true,
    // An attribute keeps the full stop, which a comment loses.
    about = "Collects forbidden-process reports from ProcScan agents, blocks the offending apps at the Higress gateway, and \
             notifies their tenants."
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the service.
    #[command(after_help = "Examples:
  procscan-aggregator run --config config.yaml
  PROCSCAN_LOGGER__LEVEL=debug procscan-aggregator run")]
    Run(ConfigFile),
    /// Run the service on this machine as a demonstration.
    ///
    /// The reference agent reads /proc, and the service writes its objects to a directory.
    #[command(after_help = "Examples:
  procscan-aggregator demo
  procscan-aggregator demo --nodes 50 --fault hang --fault endless
  procscan-aggregator demo --keep

Then, in another terminal:
  cp \"$(command -v sleep)\" xmrig && ./xmrig 300")]
    Demo(Demo),
    /// Check a configuration.
    ///
    /// The exit code is 0 if the configuration is valid, and 2 if not.
    #[command(after_help = "Example:
  procscan-aggregator check-config --config config.yaml")]
    CheckConfig(ConfigFile),
    /// Ask every agent once, and print what would change and why.
    ///
    /// The exit code is 0 if nothing would change, and 3 if something would. It is 1 if the command could not find out, and 2 for a
    /// mistake in usage or configuration.
    #[command(after_help = "Example:
  procscan-aggregator plan --config config.yaml

Nothing is written. Only one round counts, so no App would be released.")]
    Plan(ConfigFile),
    /// Replay the persisted incidents under a configuration, and print which blocks would differ and why.
    ///
    /// The exit code is 0 if no block would differ, and 3 if one would. It is 1 if the command could not find out, and 2 for a
    /// mistake in usage or configuration.
    #[command(after_help = "Example:
  procscan-aggregator simulate --config new.yaml --since 24h

Exemptions, protected namespaces, grace and brakes are judged anew. The persisted Exemptions count, too. An exemption that the service
would withhold until it is confirmed has no effect. The command reads the Incidents of the cluster, or a copy of the state file. So it
writes nothing, and it does not disturb a running service.")]
    Simulate(Simulate),
    /// Open the gateway to all Apps in an emergency.
    ///
    /// The command opens and suspends the WasmPlugins. The service need not run.
    #[command(
        name = "unblock-all",
        after_help = "Example:
  procscan-aggregator unblock-all --config config.yaml

The service leaves a suspended WasmPlugin alone. To let it block again:
  kubectl annotate wasmplugins -n higress-system -l app.kubernetes.io/managed-by=procscan-aggregator procscan-aggregator/suspend-"
    )]
    UnblockAll(ConfigFile),
    /// Remove the objects of the service from the cluster.
    ///
    /// The command removes the Notifications, then the WasmPlugins, and the Lease last. Stop the service before, because nothing is
    /// removed while a replica leads.
    #[command(after_help = "Examples:
  procscan-aggregator uninstall --dry-run
  kubectl delete --cascade=foreground -f deploy/manifests/deployment.yaml && procscan-aggregator uninstall

The gateway drains its connections once when a WasmPlugin is removed.")]
    Uninstall(Uninstall),
    /// Print the definitions (CRDs) of the kinds Incident, Exemption and Enforcement.
    #[command(after_help = "Example:
  procscan-aggregator crds | kubectl apply -f -

The file deploy/manifests/rbac.yaml has them, too.")]
    Crds,
    /// Run the reference node agent on the /proc of this machine, or a simulated fleet of agents.
    #[command(after_help = "Examples:
  procscan-aggregator agent --bind 0.0.0.0:9090
  procscan-aggregator agent --rules rules.yaml --host-namespace ns-demo
  procscan-aggregator agent --simulate 200 --fault hang --fault slow=5s:3")]
    Agent(Agent),
    #[command(flatten)]
    Operate(operators::Operate),
}

#[derive(Debug, Args)]
pub(crate) struct ConfigFile {
    /// The configuration: a regular file, or a link to one, of at most 16 MiB.
    #[arg(long, short, value_name = "FILE", default_value = "config.yaml")]
    pub(crate) config: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Simulate {
    #[command(flatten)]
    pub(crate) file: ConfigFile,
    /// How far back the replay begins.
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = duration)]
    pub(crate) since: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct Uninstall {
    #[command(flatten)]
    pub(crate) file: ConfigFile,
    /// Print what would be removed, and remove nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// The number of simulated nodes beside this machine.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=65_000))]
    pub(crate) nodes: u32,
    /// The port of the HTTP API, on 127.0.0.1.
    #[arg(long, value_name = "PORT", default_value_t = 8090)]
    pub(crate) port: u16,
    /// The directory that objects are written to. The state is beside it, in DIR-state. The objects and the state of an
    /// earlier demo are removed first. Files of other programs, and objects or a state that no demo has made, are never
    /// removed.
    #[arg(long, value_name = "DIR", default_value = "procscan-demo")]
    pub(crate) dir: PathBuf,
    /// Go on from the objects and the state of the earlier demo. Its blocks stay.
    #[arg(long)]
    pub(crate) keep: bool,
    /// Give the last simulated nodes a fault, as `BEHAVIOUR[:COUNT]`; may be repeated. The error for an unknown fault lists
    /// all faults.
    #[arg(long, value_name = "FAULT")]
    pub(crate) fault: Vec<String>,
    /// The rules of the agent on this machine: a configuration file of the real agent, or the manifest that holds it.
    #[arg(long, value_name = "FILE")]
    pub(crate) rules: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Agent {
    /// The address to listen on. The agent has no authentication. It must see all of the node's processes (hostPID, and
    /// root where /proc has hidepid) and the names of its Pods; otherwise it answers 503 with the reason.
    #[arg(long, value_name = "ADDRESS", default_value_t = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9090))]
    pub(crate) bind: SocketAddr,
    /// The time between two scans of the processes, or of the simulated processes.
    #[arg(long, value_name = "DURATION", default_value = "100s", value_parser = duration)]
    pub(crate) scan_interval: Duration,
    /// The rules: a configuration file of the real agent, or the manifest that holds it.
    #[arg(long, value_name = "FILE")]
    pub(crate) rules: Option<PathBuf>,
    /// Report processes outside of containers too, as if they ran in this namespace in a Pod of the host's name. This is for
    /// machines that are no nodes of a cluster, because the agent does not check then whether it sees all processes.
    #[arg(long, value_name = "NAMESPACE")]
    pub(crate) host_namespace: Option<String>,
    /// The proc file system.
    #[arg(long, value_name = "DIR", default_value = "/proc")]
    pub(crate) proc: PathBuf,
    /// The kubelet's directory of Pods' logs. The agent takes the names of Pods from it.
    #[arg(long, value_name = "DIR", default_value = "/var/log/pods")]
    pub(crate) pods: PathBuf,
    /// The kubelet's directory of links to containers' logs. It is needed where the control groups of containers do not
    /// name their Pods.
    #[arg(long, value_name = "DIR", default_value = "/var/log/containers")]
    pub(crate) containers: PathBuf,
    /// Simulate so many nodes instead, each with its own loopback address from 127.64.0.1 on, at the port of --bind.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_000))]
    pub(crate) simulate: Option<u32>,
    /// The address of the first simulated node.
    #[arg(long, value_name = "ADDRESS", default_value_t = Ipv4Addr::new(127, 64, 0, 1), requires = "simulate")]
    pub(crate) base: Ipv4Addr,
    /// The number of offenders on each simulated node.
    #[arg(long, value_name = "N", default_value_t = 1, requires = "simulate")]
    pub(crate) offenders: usize,
    /// Give the last simulated nodes a fault, as `BEHAVIOUR[:COUNT]`; may be repeated. The error for an unknown fault lists
    /// all faults.
    #[arg(long, value_name = "FAULT", requires = "simulate")]
    pub(crate) fault: Vec<String>,
    /// Play a script on the simulated nodes.
    #[arg(long, value_name = "FILE", requires = "simulate")]
    pub(crate) script: Option<PathBuf>,
    /// Write the simulated nodes to a file that `discovery.mode: file` reads.
    #[arg(long, value_name = "FILE", requires = "simulate")]
    pub(crate) targets: Option<PathBuf>,
}

fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err("expected a duration with its unit, such as 60s or 5m".to_owned()),
    }
}
