//! A real Prometheus scrapes the service and the reference agent, and evaluates the shipped alerts.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use procscan_agent::simulate::Behaviour;
use procscan_e2e::aggregator::{self, Aggregator};
use procscan_e2e::network::free_port;
use procscan_e2e::process::Process;
use procscan_e2e::until;
use procscan_e2e::wait::throughout;
use serde_json::{Value, json};

use crate::world::{Beginning, LIMIT, OWN, ROUNDS, World, config, scene};

const ALERTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/monitoring/alerts.yaml");

/// A running Prometheus that scrapes every second.
struct Prometheus {
    process: Process,
    port: u16,
}

impl Prometheus {
    /// Scrapes the service over TLS with a token, and the agent without one.
    fn start(dir: &Path, service: u16, agent: u16) -> anyhow::Result<Self> {
        let file = |name: &str| dir.join(name).display().to_string();
        let config = json!({
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [ALERTS],
            "scrape_configs": [
                {
                    "job_name": "procscan-aggregator",
                    "scheme": "https",
                    "tls_config": {"ca_file": file("tls.crt"), "server_name": "localhost"},
                    "authorization": {"credentials_file": file("token")},
                    "static_configs": [{"targets": [format!("127.0.0.1:{service}")]}],
                },
                {"job_name": "procscan-agent", "static_configs": [{"targets": [format!("127.0.0.1:{agent}")]}]},
            ],
        });
        std::fs::write(dir.join("prometheus.yml"), config.to_string())?;
        let port = free_port()?;
        let mut command = Command::new("prometheus");
        command.stdout(Stdio::null()).args([
            &format!("--config.file={}", file("prometheus.yml")),
            &format!("--storage.tsdb.path={}", file("tsdb")),
            &format!("--web.listen-address=127.0.0.1:{port}"),
        ]);
        let process = Process::start("prometheus", &mut command, dir.join("prometheus.log"))
            .context("this scenario needs Prometheus, such as Debian's package `prometheus`")?;
        Ok(Self { process, port })
    }

    /// The results of an instant query.
    async fn ask(&self, query: &str) -> anyhow::Result<Vec<Value>> {
        let escaped = query.bytes().fold(String::new(), |escaped, byte| format!("{escaped}%{byte:02x}"));
        let address = ([127, 0, 0, 1], self.port).into();
        let answer =
            aggregator::send(address, "GET", &format!("/api/v1/query?query={escaped}"), &[], None).await?;
        let body = answer.json();
        ensure!(answer.status == 200, "{query}: {body}");
        Ok(body["data"]["result"].as_array().cloned().unwrap_or_default())
    }

    async fn until(&self, what: &str, query: &str, is_it: impl Fn(&[Value]) -> bool) -> anyhow::Result<()> {
        let found = until(what, LIMIT, async || {
            let found = self.ask(query).await?;
            ensure!(is_it(&found), "{query}: {found:?}");
            Ok(())
        });
        found.await.map_err(|error| self.process.explain(&error))
    }

    /// Waits until the condition of an alert is true. It fires if it stays true for the time that the alert names.
    async fn until_alert(&self, alert: &str) -> anyhow::Result<()> {
        self.until(alert, &format!("ALERTS{{alertname=\"{alert}\"}}"), |found| !found.is_empty()).await
    }
}

/// A certificate for `localhost` and its key.
fn write_certificate(dir: &Path) -> anyhow::Result<(PathBuf, PathBuf)> {
    let key = rcgen::KeyPair::generate()?;
    let certificate = rcgen::CertificateParams::new(vec!["localhost".to_owned()])?.self_signed(&key)?;
    let (certificate_file, key_file) = (dir.join("tls.crt"), dir.join("tls.key"));
    std::fs::write(&certificate_file, certificate.pem())?;
    std::fs::write(&key_file, key.serialize_pem())?;
    Ok((certificate_file, key_file))
}

/// The reference agent on this machine's processes.
fn agent(dir: &Path) -> anyhow::Result<(Process, u16)> {
    let port = free_port()?;
    let program = std::env::var_os("PROCSCAN_E2E_PROGRAM").context("no program")?;
    let mut command = Command::new(program);
    command.args(["agent", "--host-namespace", "ns-host", "--scan-interval", "1s"]);
    command.args(["--bind", &format!("127.0.0.1:{port}")]).stdout(Stdio::null());
    Ok((Process::start("agent", &mut command, dir.join("agent.log"))?, port))
}

fn is_one(found: &[Value]) -> bool {
    matches!(found, [one] if one["value"][1] == "1")
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_scrapes_over_tls_with_the_shipped_right_and_alerts_begin_with_their_causes()
-> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let (certificate, key) = write_certificate(dir.path())?;
    let tls = json!({"api": {"tls_certificate": certificate, "tls_key": key}});
    let scene = scene(Beginning::default()).await?;
    let options = aggregator::Options::kubeconfig(scene.0.kubeconfig_aggregator());
    let aggregator = Aggregator::spawn(&config(&tls).to_string(), &options)?;
    let service = aggregator.address().port();
    let world = World::of(aggregator, scene);
    std::fs::write(dir.path().join("token"), world.cluster.token_of_alice())?;
    let (_agent, agent_port) = agent(dir.path())?;
    let prometheus = Prometheus::start(dir.path(), service, agent_port)?;
    prometheus.until("the agent", "up{job=\"procscan-agent\"}", is_one).await?;
    prometheus.until("its scans", "procscan_agent_processes_seen > 1", |found| found.len() == 1).await?;
    // Without the right there are no metrics.
    let refused = "up{job=\"procscan-aggregator\"} == 0";
    prometheus.until("the refusal", refused, |found| found.len() == 1).await?;
    let role = "--clusterrole=procscan-metrics-reader";
    world.kubectl(&["create", "clusterrolebinding", "scraper", role, "--user=alice"]).await?;
    prometheus.until("the service", "up{job=\"procscan-aggregator\"}", is_one).await?;

    prometheus
        .until("three nodes", "procscan_targets{state=\"fresh\"} == 3", |found| found.len() == 1)
        .await?;
    prometheus.until("the leader", "procscan_leader", is_one).await?;
    prometheus.until("no alert", "ALERTS", <[Value]>::is_empty).await?;
    let pod = world.tenant("ns-a", "web", "sim-0000").await?;
    world.accuse(0, &[("ns-a", &pod)]);
    prometheus.until("the block", "procscan_apps_blocked", is_one).await?;
    let took = "procscan_time_to_block_seconds_count";
    prometheus.until("the time to the block", took, is_one).await?;
    throughout("no alert after a block", ROUNDS, async || {
        let alerts = prometheus.ask("ALERTS").await?;
        ensure!(alerts.is_empty(), "{alerts:?}");
        Ok(())
    })
    .await?;

    // Another node accuses the Pod, an operator pauses, the agents hang, and the right to the Lease is lost.
    world.accuse(1, &[("ns-a", &pod)]);
    prometheus.until_alert("ProcscanNodeAccusesOthers").await?;
    let pause = json!({
        "apiVersion": "procscan.sealos.io/v1alpha1", "kind": "Enforcement",
        "metadata": {"name": "procscan", "namespace": OWN},
        "spec": {"mode": "paused", "reason": "a test"},
    });
    world.cluster.apply(&pause.to_string()).await?;
    prometheus.until_alert("ProcscanPaused").await?;
    for node in 0..3 {
        world.fleet.set_behaviour(node, Behaviour::Hang);
    }
    prometheus.until_alert("ProcscanNoAnswers").await?;
    world.kubectl(&["delete", "role", "-n", OWN, "procscan-aggregator-state"]).await?;
    prometheus.until_alert("ProcscanNoLeader").await
}

/// Runs `promtool check metrics`, which also checks names, units and help texts.
fn check_metrics(dir: &Path, text: &str) -> anyhow::Result<()> {
    let file = dir.join("metrics");
    std::fs::write(&file, text)?;
    let checked = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(std::fs::File::open(&file)?)
        .output()
        .context("this scenario needs promtool, such as that of Debian's package `prometheus`")?;
    let said = String::from_utf8_lossy(&checked.stderr).into_owned();
    ensure!(checked.status.success(), "{said}\n{text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn promtool_accepts_the_metrics() -> anyhow::Result<()> {
    let world = World::start().await?;
    let pod = world.tenant("ns-a", "web", "sim-0000").await?;
    world.accuse(0, &[("ns-a", &pod)]);
    world.until_closed(&["web-x7k2.ns-a"]).await?;
    let dir = tempfile::tempdir()?;
    let (_, metrics) = world.aggregator.get("/metrics").await?;
    check_metrics(dir.path(), metrics.as_str().context("no text")?)?;
    let (_agent, port) = agent(dir.path())?;
    let address = ([127, 0, 0, 1], port).into();
    let scanned = until("the agent", LIMIT, async || {
        let answer = aggregator::send(address, "GET", "/metrics", &[], None).await?;
        ensure!(answer.status == 200, "{}", answer.status);
        Ok(answer)
    });
    check_metrics(dir.path(), scanned.await?.json().as_str().context("no text")?)
}
