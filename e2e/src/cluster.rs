//! The control plane: etcd, kube-apiserver and kube-controller-manager, each cluster with ports and files of its own.

use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::Value;

mod servers;

use crate::process::Process;
use crate::wait::until;
use servers::Servers;

/// Three servers on a busy machine; they take two seconds on an idle one.
const START_LIMIT: Duration = Duration::from_mins(1);

/// Names the directory of the servers' programs.
const SERVERS: &str = "PROCSCAN_E2E_SERVERS";

/// Names a directory in which the clusters' files stay.
const KEEP: &str = "PROCSCAN_E2E_KEEP";

/// A user of the API server. The name is the token too, because the API server can't be reached from outside of the namespace.
#[derive(Clone, Copy)]
struct Identity {
    token: &'static str,
    user: &'static str,
    groups: &'static str,
}

const ADMIN: Identity = Identity { token: ADMIN_TOKEN, user: "admin", groups: "system:masters" };
/// The bearer token of an administrator.
pub const ADMIN_TOKEN: &str = "admin";
const CONTROLLERS: Identity =
    Identity { token: "controllers", user: "system:kube-controller-manager", groups: "system:masters" };
/// The name of a Pod's ServiceAccount for the API server, so that RBAC decides as in a cluster.
const AGGREGATOR: Identity = Identity {
    token: "aggregator",
    user: "system:serviceaccount:kube-system:procscan-aggregator",
    groups: "system:serviceaccounts,system:serviceaccounts:kube-system,system:authenticated",
};

/// The same ServiceAccount in another Pod: the audit log shows which of the two it was by its UID.
const SECOND_REPLICA: Identity = Identity { token: "aggregator-2", ..AGGREGATOR };
/// A person without any rights yet.
const PERSON: Identity = Identity { token: "token-of-alice", user: "alice", groups: "system:authenticated" };
/// Another one.
const STRANGER: Identity = Identity { token: "token-of-bob", user: "bob", groups: "system:authenticated" };
/// All users.
const IDENTITIES: [Identity; 6] = [ADMIN, CONTROLLERS, AGGREGATOR, SECOND_REPLICA, PERSON, STRANGER];

/// The cluster to start.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whether the controllers run: EndpointSlices, Deployments, `StatefulSets`, garbage collection and what these need.
    pub controllers: bool,
    /// Whether the audit log also has the bodies of the aggregator's writes and of the answers, for [`crate::audit`].
    pub audit_bodies: bool,
    /// Further flags of kube-apiserver, such as `--runtime-config=discovery.k8s.io/v1=false`; they win.
    pub apiserver_args: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self { controllers: true, audit_bodies: false, apiserver_args: Vec::new() }
    }
}

/// A running control plane. Killed when dropped.
pub struct Cluster {
    servers: Servers,
    etcd: Process,
    apiserver: Option<Process>,
    controllers: Option<Process>,
    admin: kube::Client,
    // The last field, so that the directory is removed after the servers have ended.
    dir: tempfile::TempDir,
}

impl Cluster {
    /// Starts it, and returns when the API server is ready.
    ///
    /// # Errors
    /// When a server does not start; with the end of its log.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        let programs = std::env::var_os(SERVERS).with_context(|| {
            format!("{SERVERS} does not say where the servers are: start this by e2e/run")
        })?;
        let keep = std::env::var_os(KEEP).is_some();
        let dir = tempfile::Builder::new().prefix("cluster-").disable_cleanup(keep).tempdir()?;
        if keep {
            eprintln!("the cluster's files are in {}", dir.path().display());
        }
        let with_controllers = options.controllers;
        let servers = Servers::new(PathBuf::from(programs), dir.path(), options)?;
        let etcd = servers.etcd()?;
        let (apiserver, admin) = start_apiserver(&servers, &etcd).await?;
        let controllers = if with_controllers { Some(servers.controllers()?) } else { None };
        Ok(Self { servers, etcd, apiserver: Some(apiserver), controllers, admin, dir })
    }

    /// Starts the API server again, with the same port, certificate and data, and returns when it is ready.
    pub async fn start_apiserver(&mut self) -> anyhow::Result<()> {
        self.stop_apiserver()?;
        let (apiserver, admin) = start_apiserver(&self.servers, &self.etcd).await?;
        (self.apiserver, self.admin) = (Some(apiserver), admin);
        Ok(())
    }

    /// SIGKILL for the API server.
    pub fn stop_apiserver(&mut self) -> anyhow::Result<()> {
        self.apiserver.take().map_or(Ok(()), |apiserver| apiserver.kill())
    }

    /// Copies everything that is stored now. etcd and the API server are stopped meanwhile.
    pub async fn back_up(&mut self) -> anyhow::Result<PathBuf> {
        let backup = self.dir.path().join("etcd-backup");
        self.stop_apiserver()?;
        self.etcd.kill()?;
        copy_all(&self.servers.data(), &backup)?;
        self.etcd = self.servers.etcd()?;
        self.start_apiserver().await?;
        Ok(backup)
    }

    /// Replaces everything that is stored by a backup, as an operator would after a disaster.
    pub async fn restore(&mut self, backup: &Path) -> anyhow::Result<()> {
        self.stop_apiserver()?;
        self.etcd.kill()?;
        std::fs::remove_dir_all(self.servers.data())?;
        copy_all(backup, &self.servers.data())?;
        self.etcd = self.servers.etcd()?;
        self.start_apiserver().await
    }

    /// Sets whether the API server accepts the aggregator's tokens from its next start on, and starts it.
    pub async fn accept_aggregator(&mut self, is_accepted: bool) -> anyhow::Result<()> {
        self.servers.write_tokens(is_accepted)?;
        self.start_apiserver().await
    }

    /// SIGKILL for the controllers: from here on no object is made because of another.
    pub fn stop_controllers(&mut self) -> anyhow::Result<()> {
        self.controllers.take().map_or(Ok(()), |controllers| controllers.kill())
    }

    /// The running API server, to be stopped and continued by signals.
    pub fn apiserver(&self) -> Option<&Process> {
        self.apiserver.as_ref()
    }

    /// A client that may do anything.
    pub fn admin(&self) -> kube::Client {
        self.admin.clone()
    }

    /// A client with the aggregator's rights.
    pub async fn aggregator(&self) -> anyhow::Result<kube::Client> {
        client(&self.kubeconfig_aggregator()).await
    }

    /// The kubeconfig of the administrator.
    pub fn kubeconfig_admin(&self) -> PathBuf {
        self.servers.kubeconfig(&ADMIN)
    }

    /// The kubeconfig of the ServiceAccount `kube-system/procscan-aggregator`.
    pub fn kubeconfig_aggregator(&self) -> PathBuf {
        self.servers.kubeconfig(&AGGREGATOR)
    }

    /// The kubeconfig of the same ServiceAccount in another Pod.
    pub fn kubeconfig_second_replica(&self) -> PathBuf {
        self.servers.kubeconfig(&SECOND_REPLICA)
    }

    /// The bearer token of a person called `alice`.
    pub fn token_of_alice(&self) -> &'static str {
        PERSON.token
    }

    /// The bearer token of a person called `bob`.
    pub fn token_of_bob(&self) -> &'static str {
        STRANGER.token
    }

    /// The URL of the API server.
    pub fn url(&self) -> String {
        self.servers.url()
    }

    /// The cluster's directory: the servers' logs, and a place for a test's own files.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Deletes the aggregator's Lease, whose holder is dead: the next one need not wait for it.
    pub fn forget_leader(&self) -> anyhow::Result<()> {
        let mut command = self.servers.kubectl()?;
        command.args(["delete", "lease", "-n", "kube-system", "procscan-aggregator", "--ignore-not-found"]);
        let output = command.output().context("kubectl delete lease")?;
        ensure!(output.status.success(), "kubectl delete lease: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Runs kubectl as the administrator.
    pub async fn kubectl(&self, args: &[&str]) -> anyhow::Result<Output> {
        let mut command = self.servers.kubectl()?;
        command.args(args);
        let output = tokio::task::spawn_blocking(move || command.output()).await?;
        output.with_context(|| format!("kubectl {args:?}"))
    }

    /// `kubectl apply --server-side` of YAML documents; with kubectl's output if it fails.
    pub async fn apply(&self, yaml: &str) -> anyhow::Result<()> {
        let file = tempfile::Builder::new().suffix(".yaml").tempfile_in(self.dir.path())?;
        std::fs::write(file.path(), yaml)?;
        let path = file.path().to_string_lossy();
        let output = self.kubectl(&["apply", "--server-side", "-f", &path]).await?;
        if !output.status.success() {
            bail!("kubectl apply: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    /// All requests that have been answered so far, as audit events, except those between the servers.
    ///
    /// Their level is `Metadata`: verb, URI with its parameters, user, object and the answer's code, but no bodies, unless
    /// [`Options::audit_bodies`] adds them.
    pub fn audit(&self) -> anyhow::Result<Vec<Value>> {
        let text = std::fs::read_to_string(self.servers.audit_log())?;
        // The last line may be incomplete.
        Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }

    /// The audit events of the aggregator's requests, see [`Cluster::audit`], but those by which it checks the tests' own tokens.
    pub fn audit_of_aggregator(&self) -> anyhow::Result<Vec<Value>> {
        let mut events = self.audit()?;
        events.retain(|event| {
            event.pointer("/user/username") == Some(&AGGREGATOR.user.into())
                && !crate::audit::is_review(event)
        });
        Ok(events)
    }
}

/// Copies a directory and everything in it.
fn copy_all(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let (entry, to) = (entry?, to.to_owned());
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_all(&entry.path(), &to)?;
        } else {
            std::fs::copy(entry.path(), &to)?;
        }
    }
    Ok(())
}

async fn start_apiserver(servers: &Servers, etcd: &Process) -> anyhow::Result<(Process, kube::Client)> {
    let apiserver = servers.apiserver()?;
    let ready = until("the API server to be ready", START_LIMIT, async || {
        for process in [etcd, &apiserver] {
            // A server that has ended never becomes ready.
            if let Ok(Some(status)) = process.exited() {
                let error = anyhow::anyhow!("a server has ended: {status}");
                return Ok(Err(process.explain(&error)));
            }
        }
        is_ready(servers).await.map(Ok)
    });
    let client = ready.await.and_then(std::convert::identity).map_err(|error| apiserver.explain(&error))?;
    Ok((apiserver, client))
}

/// A client by a kubeconfig.
pub async fn client(kubeconfig: &Path) -> anyhow::Result<kube::Client> {
    let config = Kubeconfig::read_from(kubeconfig)?;
    let config = kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
    Ok(kube::Client::try_from(config)?)
}

/// Makes the client anew each time: the first ones come before there is a certificate to trust.
async fn is_ready(servers: &Servers) -> anyhow::Result<kube::Client> {
    let client = client(&servers.kubeconfig(&ADMIN)).await?;
    let mut request = kube::core::Request::new("").get("readyz", &kube::api::GetParams::default())?;
    *request.uri_mut() = servers.readiness().parse()?;
    match client.request_text(request).await {
        Ok(_) => Ok(client),
        // Of three dozen checks, the failed ones.
        Err(kube::Error::Api(status)) => {
            let failed: Vec<_> = status.message.lines().filter(|line| line.starts_with("[-]")).collect();
            bail!("{} {failed:?}", status.code)
        }
        Err(error) => Err(error.into()),
    }
}
