use std::fs;

use super::*;
use crate::proc::{Omitted, Partial};
use crate::testing::{ask, open, seconds_until_closed, violations};

impl Agent {
    /// Replaces the list with a complete one.
    fn publish(&self, records: &[Record]) {
        self.publish_part(records, &LeftOut::default());
    }
}

fn record(pod: &str) -> Record {
    Record { pod: pod.into(), namespace: "ns-a".into(), cmdline: "a > b".into(), ..Record::default() }
}

async fn serving(records: &[Record]) -> (SocketAddr, Agent, CancellationToken, JoinHandle<io::Result<()>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, agent, cancel) = (listener.local_addr().unwrap(), Agent::new(), CancellationToken::new());
    agent.publish(records);
    let task = tokio::spawn(serve(listener, agent.clone(), cancel.clone()));
    (address, agent, cancel, task)
}

fn local(root: &std::path::Path) -> Options {
    Options {
        bind: SocketAddr::from(([127, 0, 0, 1], 0)),
        proc_root: root.into(),
        pods_root: root.join("pods"),
        host: Some(HostIdentity { namespace: "ns-host".into(), pod: "this".into() }),
        ..Options::default()
    }
}

#[tokio::test]
async fn answers_follow_the_contract() {
    let (address, agent, ..) = serving(&[]).await;
    let empty = violations(address).await;
    assert_eq!((empty.status(), empty.text()), (200, "[]\n"));
    assert_eq!(empty.header("content-type"), Some("application/json"));
    assert!(empty.header("date").unwrap().ends_with(" GMT"));

    agent.publish(&[record("p")]);
    let listed = violations(address).await;
    assert!(listed.text().contains(r"a \u003e b"));
    assert_eq!(listed.records(), [record("p")]);

    assert_eq!(ask(address, "GET /health", "").await.text(), "{\"status\":\"ok\"}\n");
    assert_eq!(ask(address, "GET /", "").await.status(), 404);
    for path in ["/api/violations", "/health", "/metrics"] {
        let refused = ask(address, &format!("DELETE {path}"), "").await;
        assert_eq!((refused.status(), refused.text()), (405, "method not allowed\n"));
        assert!(refused.header("content-type").unwrap().starts_with("text/plain"));
    }
}

#[tokio::test]
async fn an_unchanged_list_is_not_sent_twice() {
    let (address, agent, ..) = serving(&[record("p")]).await;
    let first = violations(address).await;
    let known = format!("If-None-Match: \"other\", {}\r\n", first.header("etag").unwrap());
    let again = ask(address, "GET /api/violations", &known).await;
    assert_eq!((again.status(), again.text()), (304, ""));
    assert_eq!(again.header("etag"), first.header("etag"));

    agent.publish(&[record("q")]);
    assert_eq!(ask(address, "GET /api/violations", &known).await.records(), [record("q")]);
}

#[tokio::test]
async fn omitted_processes_are_counted_in_a_header() {
    let (address, agent, ..) = serving(&[record("p")]).await;
    let whole = violations(address).await;
    assert_eq!(
        (whole.header("procscan-left-out"), whole.header("procscan-left-out-namespaces")),
        (None, None)
    );
    let omitted = |offenders, processes| Omitted { offenders, processes, command_lines: 1 };
    let left_out = LeftOut([("ns-a".into(), omitted(5, 0)), ("ns-b".into(), omitted(2, 9))].into());
    agent.publish_part(&[record("p")], &left_out);
    let part = violations(address).await;
    let expected = Some("offenders=7, processes=9, command-lines=2");
    assert_eq!((part.header("procscan-left-out"), part.records()), (expected, vec![record("p")]));
    assert_eq!(part.header("procscan-left-out-namespaces"), Some("ns-a, ns-b"));
    assert_ne!(
        part.header("etag"),
        whole.header("etag"),
        "the same list with omitted processes has another ETag"
    );
    let known = format!("If-None-Match: {}\r\n", part.header("etag").unwrap());
    let again = ask(address, "GET /api/violations", &known).await;
    assert_eq!((again.status(), again.header("procscan-left-out")), (304, expected));
}

#[test]
fn a_trouble_of_each_scan_is_logged_once() {
    let scanner = Scanner::new("/proc".into(), "/pods".into(), Rules::default(), None);
    let omitted = |offenders| Omitted { offenders, ..Omitted::default() };
    let of = |count| Scan {
        unknown_pods: count,
        doubtful_containers: count,
        deep_groups: count,
        hidden_programs: count,
        left_out: LeftOut([("ns-a".into(), omitted(count)), ("ns-b".into(), omitted(1))].into()),
        ..Scan::default()
    };
    let mut troubles = Troubles::default();
    let changes = troubles.update(troubles_of(&of(3), &scanner), Instant::now());
    assert_eq!(changes.len(), 6, "{changes:?}");
    let left_out = "there is more in ns-a than its share of the scan or of the list; left out: offenders=3, processes=0, command-lines=0";
    assert!(changes.contains(&Change::Begun(left_out.into())), "{changes:?}");
    assert_eq!(troubles.update(troubles_of(&of(4), &scanner), Instant::now()), []);

    // A failure has the same kind in each scan, for any count.
    let partial = |count| {
        let (root, containers) = ("/pods".into(), "/containers".into());
        ScanError::from(Partial::UnknownPods { root, containers, count, pid: 7 })
    };
    assert_eq!(partial(1).kind(), partial(2).kind());
    let mut publisher = Publisher { agent: Agent::new(), troubles: Troubles::default() };
    publisher.publish(&scanner, Err(partial(1)));
    publisher.publish(&scanner, Err(partial(2)));
    let Current::Nothing(why) = publisher.agent.current() else { panic!("a list") };
    assert!(
        why.starts_with("2 offending processes are of Pods that neither /pods nor /containers names"),
        "{why}"
    );
}

#[tokio::test]
async fn a_long_list_is_compressed_for_a_client_that_accepts_gzip() {
    let many: Vec<Record> = (0..50).map(|n| record(&format!("p{n}"))).collect();
    let (address, agent, ..) = serving(&many).await;
    let zipped = ask(address, "GET /api/violations", "Accept-Encoding: br, gzip;q=0.5\r\n").await;
    assert_eq!(zipped.header("content-encoding"), Some("gzip"));
    assert_eq!(zipped.unzipped(), crate::record::encode(&many));
    for headers in ["", "Accept-Encoding: gzip;q=0, br\r\n"] {
        let plain = ask(address, "GET /api/violations", headers).await;
        assert_eq!((plain.header("content-encoding"), plain.records().len()), (None, 50));
    }
    agent.publish(&many[..1]);
    let short = ask(address, "GET /api/violations", "Accept-Encoding: gzip\r\n").await;
    assert_eq!((short.header("content-encoding"), short.records().len()), (None, 1));
}

#[tokio::test]
async fn cancelling_ends_the_server_despite_an_open_connection() {
    let (address, _, cancel, task) = serving(&[]).await;
    let _idle = open(address, "GET /health", "").await;
    cancel.cancel();
    timeout_of(task).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_connection_without_a_request_is_closed() {
    let (address, ..) = serving(&[]).await;
    let silent = tokio::net::TcpStream::connect(address).await.unwrap();
    assert_eq!(seconds_until_closed(silent).await, 10);
}

#[tokio::test]
async fn an_agent_scans_before_its_first_answer_and_in_each_interval() {
    let root = tempfile::tempdir().unwrap();
    let process = root.path().join("5000000");
    fs::create_dir(&process).unwrap();
    fs::write(process.join("cmdline"), "xmrig\0-o\0pool").unwrap();
    fs::write(process.join("cgroup"), "0::/").unwrap();

    let cancel = CancellationToken::new();
    let options = Options { scan_interval: Duration::ZERO, ..local(root.path()) };
    let (address, task) = start(options, cancel.clone()).await.unwrap();
    let first = violations(address).await.records();
    assert_eq!((first.len(), first[0].process.as_str(), first[0].pod.as_str()), (1, "xmrig", "this"));

    let deadline = Instant::now() + Duration::from_secs(5);
    let until = async |done: &dyn Fn(&[Record]) -> bool| {
        while !done(&violations(address).await.records()) {
            assert!(Instant::now() < deadline, "no further scan");
        }
    };
    until(&|list| list.first().is_some_and(|record| record.timestamp > first[0].timestamp)).await;
    fs::remove_dir_all(&process).unwrap();
    until(&<[Record]>::is_empty).await;

    // After a failed scan the agent answers 503 instead of the old list.
    fs::remove_dir_all(root.path()).unwrap();
    loop {
        let answer = violations(address).await;
        if answer.status() == 503 {
            assert!(answer.text().contains("No such file"), "{}", answer.text());
            break;
        }
        assert!(Instant::now() < deadline, "an old list is still answered");
    }
    cancel.cancel();
    timeout_of(task).await.unwrap();
}

#[tokio::test]
async fn a_failed_start_names_the_reason() {
    let root = tempfile::tempdir().unwrap();
    let error = async |options| start(options, CancellationToken::new()).await.unwrap_err().to_string();
    let missing = error(local(std::path::Path::new("/nonexistent/proc"))).await;
    assert!(missing.starts_with("cannot scan the processes in /nonexistent/proc: "), "{missing}");
    let foreign = error(Options { bind: "192.0.2.1:1".parse().unwrap(), ..local(root.path()) }).await;
    assert!(foreign.starts_with("cannot listen on 192.0.2.1:1: "), "{foreign}");
    let host = Some(HostIdentity { namespace: "default".into(), pod: "this".into() });
    let unreported = error(Options { host, ..local(root.path()) }).await;
    assert!(unreported.contains("`default` must start with `ns-`"), "{unreported}");
}

#[tokio::test]
async fn an_agent_that_does_not_see_its_node_answers_503_with_the_reason() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("5000000")).unwrap();
    fs::write(root.path().join("5000000/cmdline"), "nginx").unwrap();
    fs::write(root.path().join("5000000/cgroup"), "0::/").unwrap();
    let cancel = CancellationToken::new();
    let options = Options { scan_interval: Duration::ZERO, host: None, ..local(root.path()) };
    let (address, task) = start(options, cancel.clone()).await.unwrap();
    let answer = ask(address, "GET /api/violations", "If-None-Match: *\r\n").await;
    assert_eq!(answer.status(), 503);
    assert!(answer.text().contains("hidepid"), "{}", answer.text());
    assert!(!answer.text().contains('['), "the answer must not look like a list");

    fs::create_dir(root.path().join("2")).unwrap();
    fs::write(root.path().join("2/comm"), "kthreadd\n").unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    while violations(address).await.status() != 200 {
        assert!(Instant::now() < deadline, "the agent still answers 503");
    }
    cancel.cancel();
    timeout_of(task).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn while_a_scan_hangs_the_old_list_is_not_served() {
    let agent = Agent::new();
    let publisher = |agent: &Agent| Publisher { agent: agent.clone(), troubles: Troubles::default() };
    let is_list = |agent: &Agent| matches!(agent.current(), Current::List(_));
    let (end, hangs) = tokio::sync::oneshot::channel::<()>();
    let scan = tokio::spawn({
        let mut publisher = publisher(&agent);
        async move { in_time(hangs, Duration::from_mins(1), &mut publisher).await }
    });
    sleep(Duration::from_secs(179)).await;
    assert!(is_list(&agent), "three intervals have not passed");
    sleep(Duration::from_secs(2)).await;
    assert!(!is_list(&agent));
    end.send(()).unwrap();
    scan.await.unwrap().unwrap();
    assert!(in_time(async { true }, Duration::ZERO, &mut publisher(&agent)).await);
}

async fn timeout_of<T>(task: JoinHandle<T>) -> T {
    tokio::time::timeout(Duration::from_secs(6), task).await.expect("an end in time").unwrap()
}

#[tokio::test]
async fn the_metrics_count_what_the_last_scan_saw() {
    let root = tempfile::tempdir().unwrap();
    for (pid, command) in [("5000000", "xmrig\0-o"), ("5000001", "xmrig\0-o"), ("5000002", "bash")] {
        let process = root.path().join(pid);
        fs::create_dir(&process).unwrap();
        fs::write(process.join("cmdline"), command).unwrap();
        fs::write(process.join("cgroup"), "0::/").unwrap();
    }
    let cancel = CancellationToken::new();
    let options = Options { scan_interval: Duration::from_hours(1), ..local(root.path()) };
    let (address, task) = start(options, cancel.clone()).await.unwrap();
    let answer = ask(address, "GET /metrics", "").await;
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4"));
    for sample in [
        "scan_duration_seconds_count{result=\"complete\"} 1",
        "processes_seen 3",
        "processes_matched 2",
        "processes_skipped{reason=\"not_of_tenants\"} 0",
        "processes_skipped{reason=\"unknown_pod\"} 0",
        "read_errors 0",
        "records 1",
    ] {
        let line = format!("procscan_agent_{sample}");
        assert!(answer.text().lines().any(|found| found == line), "{line} in {}", answer.text());
    }
    // The older format has no counters without `_total`, and comments begin with these words only.
    assert!(!answer.text().contains(" counter"), "{}", answer.text());
    cancel.cancel();
    timeout_of(task).await.unwrap();
}

#[tokio::test]
async fn the_metrics_tell_a_scan_without_a_list_and_its_read_errors() {
    let metrics = Metrics::default();
    let error = Partial::Unreadable { root: "/proc".into(), count: 7, error: "denied".into() };
    metrics.scanned(&Err(error.into()), Duration::from_secs(2));
    let of_one = LeftOut([("ns-a".to_owned(), Omitted { offenders: 3, ..Omitted::default() })].into());
    let seen = Scan { left_out: of_one, ..Scan::default() };
    let text = async || {
        let body = metrics.answer().into_body();
        String::from_utf8(axum::body::to_bytes(body, usize::MAX).await.unwrap().to_vec()).unwrap()
    };
    let failed = text().await;
    assert!(failed.contains("duration_seconds_sum{result=\"none\"} 2.0"), "{failed}");
    assert!(failed.contains("procscan_agent_read_errors 7\n"), "{failed}");
    metrics.scanned(&Ok(seen), Duration::from_secs(1));
    let partial = text().await;
    assert!(partial.contains("duration_seconds_count{result=\"partial\"} 1"), "{partial}");
    assert!(partial.contains("skipped{reason=\"list_share\"} 3"), "{partial}");
    assert!(partial.contains("procscan_agent_read_errors 0\n"), "{partial}");
}
