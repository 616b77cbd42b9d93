//! A directory belongs to one Lease: its replicas share it, and no other process writes there.

use std::path::Path;

use serde_json::json;

use super::*;
use crate::config::Config;
use crate::kubernetes::Cluster;
use crate::run::Service;

const OURS: &str = "kube-system/procscan-aggregator";
const OTHER: &str = "other/procscan-aggregator";
const MARKER: &str = ".procscan.lease";

fn replica(path: &Path, lease: Option<&str>) -> Result<Directory, String> {
    let directory = Directory::open(path).unwrap();
    directory.lock(lease.map(str::to_owned)).map_err(|error| error.to_string())?;
    Ok(directory)
}

fn write(directory: &Directory, names: &[&str]) -> Result<Written, String> {
    put(directory, &objects(names, 0)).map_err(|error| error.to_string())
}

#[test]
fn replicas_of_one_lease_share_a_directory_and_a_process_without_a_lease_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let first = replica(temp.path(), Some(OURS)).unwrap();
    let second = replica(temp.path(), Some(OURS)).unwrap();
    assert_eq!(write(&first, &["web"]).unwrap().written, 1);
    drop(first);
    second.refresh().unwrap();
    assert_eq!(write(&second, &["web", "x"]).unwrap().written, 1);
    assert!(replica(temp.path(), None).unwrap_err().contains("another process writes there"));
    drop(second);
    let alone = replica(temp.path(), None).unwrap();
    assert!(replica(temp.path(), Some(OURS)).unwrap_err().contains("another process writes there"));
    drop(alone);
    replica(temp.path(), Some(OURS)).unwrap();
}

#[test]
fn a_directory_of_another_lease_is_refused_with_the_file_both_leases_and_the_next_step() {
    let temp = tempfile::tempdir().unwrap();
    let first = replica(temp.path(), Some(OURS)).unwrap();
    let marker = temp.path().join(MARKER);
    for is_running in [true, false] {
        let error = replica(temp.path(), Some(OTHER)).unwrap_err();
        let marker = marker.display().to_string();
        for part in [&marker, OURS, OTHER, "another output.directory", "remove this file"] {
            assert!(error.contains(part), "{error} (running: {is_running})");
        }
        if is_running {
            write(&first, &["web"]).unwrap();
            first.lock(None).unwrap_err();
        }
    }
    drop(first);
    fs::remove_file(&marker).unwrap();
    replica(temp.path(), Some(OTHER)).unwrap();
    assert_eq!(fs::read_to_string(&marker).unwrap(), format!("{OTHER}\n"));
}

#[test]
fn a_directory_that_another_lease_has_taken_is_not_written_any_more() {
    let temp = tempfile::tempdir().unwrap();
    let first = replica(temp.path(), Some(OURS)).unwrap();
    write(&first, &["web"]).unwrap();
    let marker = temp.path().join(MARKER);
    fs::remove_file(&marker).unwrap();
    let second = replica(temp.path(), Some(OTHER)).unwrap();
    write(&second, &["web", "x"]).unwrap();
    let text = fs::read_to_string(temp.path().join(PLUGIN)).unwrap();
    first.refresh().unwrap();
    for _ in 0..2 {
        let error = write(&first, &["web"]).unwrap_err();
        assert!(error.contains(MARKER) && error.contains(OURS) && error.contains(OTHER), "{error}");
        assert!(first.tidy(resources::KINDS).is_err());
    }
    assert_eq!(fs::read_to_string(temp.path().join(PLUGIN)).unwrap(), text);
    drop(second);
    fs::remove_file(&marker).unwrap();
    write(&first, &["web"]).unwrap();
    assert_eq!(fs::read_to_string(&marker).unwrap(), format!("{OURS}\n"));
}

#[test]
fn a_directory_that_was_made_again_belongs_to_the_lease_again() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("objects");
    let first = replica(&path, Some(OURS)).unwrap();
    write(&first, &["web"]).unwrap();
    fs::remove_dir_all(&path).unwrap();
    assert_eq!(write(&first, &["web"]).unwrap().written, 1);
    assert_eq!(listing(&path), [MARKER, LOCK, PLUGIN]);
    assert!(replica(&path, Some(OTHER)).unwrap_err().contains(OURS));
    assert!(replica(&path, None).unwrap_err().contains("another process writes there"));
}

#[test]
fn the_file_of_the_lease_outlasts_clearing_away_and_a_crash_that_emptied_it() {
    let temp = tempfile::tempdir().unwrap();
    let marker = temp.path().join(MARKER);
    fs::write(&marker, "").unwrap();
    let first = replica(temp.path(), Some(OURS)).unwrap();
    fs::write(temp.path().join(".procscan-lease-0123456789abcdef"), "half").unwrap();
    first.tidy(resources::KINDS).unwrap();
    assert_eq!(listing(temp.path()), [MARKER, LOCK]);
    assert_eq!(fs::read_to_string(&marker).unwrap(), format!("{OURS}\n"));
    fs::write(&marker, "\u{1b}[31m".repeat(1000)).unwrap();
    let error = first.tidy(resources::KINDS).unwrap_err().to_string();
    assert!(error.len() < 4000 && !error.contains('\u{1b}'), "{error}");
}

/// A cluster whose namespaces have this UID; without one it can't be asked.
fn cluster(uid: Option<&'static str>) -> Cluster {
    let service = tower::service_fn(move |request: hyper::Request<kube::client::Body>| {
        let name = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "uid": uid}});
        let code = if uid.is_some() { 200 } else { 503 };
        let body = kube::client::Body::from(object.to_string().into_bytes());
        std::future::ready(hyper::Response::builder().status(code).body(body))
    });
    Cluster::with_client(kube::Client::new(service, "default"))
}

/// A cluster in which no account may read a Namespace.
fn forbidding() -> Cluster {
    let service = tower::service_fn(|_: hyper::Request<kube::client::Body>| {
        let status = json!({
            "apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": "Forbidden", "code": 403,
            "message": "namespaces is forbidden", "metadata": {},
        });
        let body = kube::client::Body::from(status.to_string().into_bytes());
        std::future::ready(hyper::Response::builder().status(403).body(body))
    });
    Cluster::with_client(kube::Client::new(service, "default"))
}

fn installation(path: &Path, uid: Option<&'static str>) -> Directory {
    let mut directory = Directory::open(path).unwrap();
    directory.lock_for(&cluster(uid), "kube-system", "procscan-aggregator").unwrap();
    directory
}

async fn begin(directory: &Directory) -> Result<(), String> {
    let mut output = Output::Directory(directory.clone());
    match output.take_over(&settings(), &WritePermit::of_term(1, "a"), true, None).await {
        Ok(_) => Ok(()),
        Err(TakeOverError::Unknown(error)) => Err(error),
        Err(TakeOverError::Lost) => panic!("no other replica leads"),
    }
}

/// By default, all of them have a Lease of the same namespace and name.
#[tokio::test]
async fn installations_in_two_clusters_do_not_write_one_directory_in_turns() {
    let temp = tempfile::tempdir().unwrap();
    let marker = temp.path().join(MARKER);
    let first = installation(temp.path(), Some("uid-1"));
    let replica = installation(temp.path(), Some("uid-1"));
    let other = installation(temp.path(), Some("uid-2"));
    begin(&first).await.unwrap();
    assert_eq!(fs::read_to_string(&marker).unwrap(), format!("{OURS} uid-1\n"));
    write(&first, &["web"]).unwrap();
    for _ in 0..2 {
        let error = begin(&other).await.unwrap_err();
        let marker = marker.display().to_string();
        for part in [
            &marker,
            OURS,
            "another cluster",
            "uid-1",
            "uid-2",
            "another output.directory",
            "remove this file",
        ] {
            assert!(error.contains(part), "{error}");
        }
        assert_eq!(write(&other, &["x"]).unwrap_err(), error);
    }
    begin(&replica).await.unwrap();
    write(&replica, &["web"]).unwrap();
    // An operator lets the other one go ahead: then this one stops.
    fs::remove_file(&marker).unwrap();
    begin(&other).await.unwrap();
    assert!(write(&first, &["web", "x"]).unwrap_err().contains("uid-2"));
}

#[tokio::test]
async fn nothing_begins_before_the_cluster_says_which_one_it_is() {
    let temp = tempfile::tempdir().unwrap();
    let marker = temp.path().join(MARKER);
    let error = begin(&installation(temp.path(), None)).await.unwrap_err();
    assert!(error.contains("get namespaces in namespace kube-system"), "{error}");
    // As earlier versions wrote it.
    assert_eq!(fs::read_to_string(&marker).unwrap(), format!("{OURS}\n"));
    begin(&installation(temp.path(), Some("uid-1"))).await.unwrap();
    assert_eq!(fs::read_to_string(&marker).unwrap(), format!("{OURS} uid-1\n"));
}

/// A Role of an operator may leave that right out.
#[tokio::test]
async fn without_the_right_to_ask_which_cluster_it_is_the_directory_is_written_all_the_same() {
    let temp = tempfile::tempdir().unwrap();
    let marker = temp.path().join(MARKER);
    let (logged, _guard) = crate::telemetry::logged::Logged::start();
    let mut directory = Directory::open(temp.path()).unwrap();
    directory.lock_for(&forbidding(), "kube-system", "procscan-aggregator").unwrap();
    begin(&directory).await.unwrap();
    let lines = logged.lines();
    assert!(
        lines.len() == 1
            && lines[0].starts_with("WARN")
            && lines[0].contains("get namespaces in namespace kube-system")
            && lines[0].contains(&temp.path().display().to_string()),
        "{lines:?}"
    );
    assert_eq!(write(&directory, &["web"]).unwrap().written, 1);
    assert_eq!(fs::read_to_string(&marker).unwrap(), format!("{OURS}\n"));
    // What a replica with that right has written stays, and the Lease still counts.
    begin(&installation(temp.path(), Some("uid-1"))).await.unwrap();
    begin(&directory).await.unwrap();
    assert_eq!(logged.count("WARN"), 0, "it is logged once");
    assert_eq!(write(&directory, &["web", "x"]).unwrap().written, 1);
    assert_eq!(fs::read_to_string(&marker).unwrap(), format!("{OURS} uid-1\n"));
    fs::write(&marker, format!("{OTHER} uid-1\n")).unwrap();
    assert!(begin(&directory).await.unwrap_err().contains(OTHER));
}

/// Nothing answers as the cluster: the directory is refused before it is asked.
#[tokio::test]
async fn an_aggregator_does_not_start_in_the_output_directory_of_another_lease() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().display();
    let kubeconfig = temp.path().join("kubeconfig");
    let text = "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{name: c, context: {cluster: c, user: u}}]\n\
                clusters: [{name: c, cluster: {server: \"http://127.0.0.1:1\"}}]\nusers: [{name: u, user: {token: t}}]\n";
    fs::write(&kubeconfig, text).unwrap();
    let config = |name: &str, state: &str| {
        let text = format!(
            "aggregator: {{address: 127.0.0.1}}\ndiscovery: {{mode: static, targets: [\"127.0.0.1:1\"]}}\n\
             kubernetes: {{kubeconfig: {path}/kubeconfig}}\noutput: {{mode: directory, directory: {path}/objects}}\nstate: {state}\n"
        );
        let mut config = Config::parse(&text, name, [], jiff::Timestamp::UNIX_EPOCH).unwrap();
        config.aggregator.port = 0;
        config
    };
    let of = |namespace: &str| config(namespace, &format!("{{mode: cluster, namespace: {namespace}}}"));
    let alone = config("alone", &format!("{{mode: file, directory: {path}/state}}"));
    let first = Service::start(&of("kube-system")).await.unwrap();
    let replica = Service::start(&of("kube-system")).await.unwrap();
    let error = format!("{:#}", Service::start(&of("other")).await.err().unwrap());
    assert!(error.contains("output.directory: ") && error.contains(OURS) && error.contains(OTHER), "{error}");
    let error = format!("{:#}", Service::start(&alone).await.err().unwrap());
    assert!(error.contains("another process writes there"), "{error}");
    first.stop().await;
    replica.stop().await;
    let first = Service::start(&alone).await.unwrap();
    let error = format!("{:#}", Service::start(&of("kube-system")).await.err().unwrap());
    assert!(error.contains("another process writes there"), "{error}");
    first.stop().await;
}
