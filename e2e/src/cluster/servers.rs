//! The flags and files of each server.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::ensure;
use serde_json::json;

use super::{ADMIN, AGGREGATOR, CONTROLLERS, IDENTITIES, Identity, Options};
use crate::network::{APISERVER, SERVICES, free_port};
use crate::process::Process;

/// The controllers that the aggregator depends on. Without those for Nodes and for orphaned Pods, which would delete the Pods:
/// simulated nodes do not renew their Leases.
const CONTROLLERS_ON: &[&str] = &[
    "daemonset-controller",
    "deployment-controller",
    "endpointslice-controller",
    "garbage-collector-controller",
    "job-controller",
    "namespace-controller",
    "replicaset-controller",
    "statefulset-controller",
];

/// The servers of one cluster: programs, ports and files.
#[derive(Debug)]
pub(super) struct Servers {
    programs: PathBuf,
    dir: PathBuf,
    options: Options,
    etcd_port: u16,
    etcd_peer_port: u16,
    apiserver_port: u16,
}

impl Servers {
    /// Takes ports, and writes the files that the servers read.
    pub(super) fn new(programs: PathBuf, dir: &Path, options: Options) -> anyhow::Result<Self> {
        let mut rules = vec![json!({"level": "None", "users": ["system:apiserver", CONTROLLERS.user]})];
        if options.audit_bodies {
            let writes = ["create", "update", "patch", "delete", "deletecollection"];
            rules.push(json!({"level": "RequestResponse", "users": [AGGREGATOR.user], "verbs": writes}));
        }
        rules.push(json!({"level": "Metadata"}));
        let policy = json!({
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["RequestReceived"],
            "omitManagedFields": true,
            "rules": rules,
        });
        std::fs::write(dir.join("audit-policy.yaml"), policy.to_string())?;
        let servers = Self {
            programs,
            dir: dir.to_owned(),
            options,
            etcd_port: free_port()?,
            etcd_peer_port: free_port()?,
            apiserver_port: free_port()?,
        };
        servers.write_tokens(true)?;
        for identity in IDENTITIES {
            servers.write_kubeconfig(&identity)?;
        }
        Ok(servers)
    }

    /// Writes the tokens that are valid from the API server's next start on: all of them, or all but the aggregator's.
    pub(super) fn write_tokens(&self, with_aggregator: bool) -> anyhow::Result<()> {
        let valid = |identity: &&Identity| with_aggregator || identity.user != AGGREGATOR.user;
        let line =
            |Identity { token, user, groups }: &Identity| format!("{token},{user},{token},\"{groups}\"\n");
        let lines: Vec<String> = IDENTITIES.iter().filter(valid).map(line).collect();
        Ok(std::fs::write(self.dir.join("tokens.csv"), lines.concat())?)
    }

    /// The directory of etcd's data.
    pub(super) fn data(&self) -> PathBuf {
        self.dir.join("etcd")
    }

    pub(super) fn kubeconfig(&self, identity: &Identity) -> PathBuf {
        self.dir.join(format!("{}.kubeconfig", identity.token))
    }

    fn write_kubeconfig(&self, identity: &Identity) -> anyhow::Result<()> {
        // The API server makes its certificate with its authority itself, at its first start.
        let authority = self.dir.join("certificates/apiserver.crt");
        let cluster = json!({"server": self.url(), "certificate-authority": authority});
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "e2e",
            "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": identity.token}}],
            "clusters": [{"name": "e2e", "cluster": cluster}],
            "users": [{"name": identity.token, "user": {"token": identity.token}}],
        });
        // JSON is YAML.
        Ok(std::fs::write(self.kubeconfig(identity), config.to_string())?)
    }

    pub(super) fn url(&self) -> String {
        format!("https://{}:{}", Ipv4Addr::LOCALHOST, self.apiserver_port)
    }

    /// The URL of the API server's readiness.
    pub(super) fn readiness(&self) -> &'static str {
        // It watches EndpointSlices itself. If they are disabled, this informer never syncs, but all other resources are served.
        let lacks_resources =
            self.options.apiserver_args.iter().any(|arg| arg.starts_with("--runtime-config"));
        if lacks_resources { "/readyz?exclude=informer-sync" } else { "/readyz" }
    }

    pub(super) fn audit_log(&self) -> PathBuf {
        self.dir.join("audit.log")
    }

    pub(super) fn etcd(&self) -> anyhow::Result<Process> {
        let listen = |kind: &str, port: u16| {
            let url = format!("http://{}:{port}", Ipv4Addr::LOCALHOST);
            [format!("--listen-{kind}-urls={url}"), format!("--advertise-client-urls={url}")]
        };
        let [clients, advertised] = listen("client", self.etcd_port);
        let [peers, _] = listen("peer", self.etcd_peer_port);
        self.start(
            "etcd",
            &[
                clients,
                advertised,
                peers,
                format!("--data-dir={}", self.data().display()),
                // The data has to outlast SIGKILL of the API server, not a failure of the machine.
                "--unsafe-no-fsync".into(),
                "--log-level=warn".into(),
            ],
        )
    }

    pub(super) fn apiserver(&self) -> anyhow::Result<Process> {
        let file = |name: &str| self.dir.join(name).display().to_string();
        let flags = [
            format!("--etcd-servers=http://{}:{}", Ipv4Addr::LOCALHOST, self.etcd_port),
            format!("--bind-address={}", Ipv4Addr::LOCALHOST),
            format!("--secure-port={}", self.apiserver_port),
            // Without it a default route is needed.
            format!("--advertise-address={APISERVER}"),
            format!("--service-cluster-ip-range={SERVICES}"),
            format!("--cert-dir={}", file("certificates")),
            // The key that it makes for its own certificate does for ServiceAccounts too.
            format!("--service-account-key-file={}", file("certificates/apiserver.key")),
            format!("--service-account-signing-key-file={}", file("certificates/apiserver.key")),
            "--service-account-issuer=https://kubernetes.default.svc".into(),
            format!("--token-auth-file={}", file("tokens.csv")),
            "--authorization-mode=RBAC".into(),
            // Pods need no ServiceAccount, which only a further controller would make.
            "--disable-admission-plugins=ServiceAccount".into(),
            format!("--audit-policy-file={}", file("audit-policy.yaml")),
            format!("--audit-log-path={}", self.audit_log().display()),
            // A rotated file would hide earlier events.
            "--audit-log-maxsize=0".into(),
        ];
        let mut all = flags.to_vec();
        all.extend_from_slice(&self.options.apiserver_args);
        self.start("kube-apiserver", &all)
    }

    pub(super) fn controllers(&self) -> anyhow::Result<Process> {
        self.start(
            "kube-controller-manager",
            &[
                format!("--kubeconfig={}", self.kubeconfig(&CONTROLLERS).display()),
                format!("--controllers={}", CONTROLLERS_ON.join(",")),
                "--leader-elect=false".into(),
                "--secure-port=0".into(),
                // Its defaults are for sharing a busy API server, and a test would wait for them.
                "--kube-api-qps=1000".into(),
                "--kube-api-burst=2000".into(),
            ],
        )
    }

    pub(super) fn kubectl(&self) -> anyhow::Result<Command> {
        let program = self.programs.join("kubectl");
        ensure!(program.is_file(), "there is no kubectl beside the servers in {}", self.programs.display());
        let mut command = Command::new(program);
        command.arg("--kubeconfig").arg(self.kubeconfig(&ADMIN)).arg("--request-timeout=30s");
        // Its cache of the API server's resources.
        command.env("HOME", &self.dir);
        Ok(command)
    }

    fn start(&self, name: &str, flags: &[String]) -> anyhow::Result<Process> {
        let mut command = Command::new(self.programs.join(name));
        // They write further files into their home directory.
        command.args(flags).current_dir(&self.dir).stdout(std::process::Stdio::null());
        Process::start(name, &mut command, self.dir.join(format!("{name}.log")))
    }
}
