use std::{
    process::Command,
    time::{Duration, Instant},
};

use super::*;
use crate::record;

const UID: &str = "0f5e6a52-8c1d-4b8a-9a53-3c9d1f0b7a11";
const STATIC_UID: &str = "0123456789abcdef0123456789abcdef";
// Above any real process ID, so that a made-up process is never taken for the test itself.
const PID: u32 = 5_000_000;

/// A made-up node: `/proc` and the kubelet's log directories.
struct Node {
    root: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        let node = Self { root: tempfile::tempdir().unwrap() };
        fs::create_dir_all(node.root.path().join("proc/sys")).unwrap();
        fs::create_dir_all(node.root.path().join("pods")).unwrap();
        node.process(1, b"/sbin/init\0", "0::/init.scope");
        node.process(2, b"", "0::/");
        node.file(2, "comm", "kthreadd\n");
        node
    }

    fn file(&self, pid: u32, name: &str, text: &str) {
        fs::write(self.root.path().join(format!("proc/{pid}/{name}")), text).unwrap();
    }

    /// Makes process `pid` the agent itself.
    fn is_agent(&self, pid: u32) {
        let link = self.root.path().join("proc/self");
        fs::remove_file(&link).ok();
        std::os::unix::fs::symlink(pid.to_string(), link).unwrap();
    }

    fn why_partial(&self) -> Partial {
        match self.scanner(None).scan() {
            Err(ScanError::Partial(why)) => why,
            other => panic!("{other:?}"),
        }
    }

    fn pod(&self, namespace: &str, pod: &str, uid: &str) {
        fs::create_dir(self.root.path().join(format!("pods/{namespace}_{pod}_{uid}"))).unwrap();
    }

    fn process(&self, pid: u32, cmdline: &[u8], cgroup: &str) {
        let directory = self.root.path().join(format!("proc/{pid}"));
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("cmdline"), cmdline).unwrap();
        fs::write(directory.join("cgroup"), cgroup).unwrap();
    }

    fn end(&self, pid: u32) {
        fs::remove_dir_all(self.root.path().join(format!("proc/{pid}"))).unwrap();
    }

    fn scanner(&self, host: Option<HostIdentity>) -> Scanner {
        let path = self.root.path();
        let mut scanner = Scanner::new(path.join("proc"), path.join("pods"), Rules::default(), host);
        scanner.containers_root = path.join("containers");
        scanner
    }
}

fn found(scanner: &mut Scanner) -> Vec<Finding> {
    scanner.scan().unwrap().findings
}

fn in_pod(uid: &str) -> String {
    format!("0::/kubepods/burstable/pod{uid}/4f2a")
}

fn host() -> HostIdentity {
    HostIdentity { namespace: "ns-host".into(), pod: "this".into() }
}

#[test]
fn a_pods_offender_is_reported_with_all_fields_of_the_wire() {
    let node = Node::new();
    node.pod("ns-a", "web-1", UID);
    node.process(PID, b"/opt/xmrig\0-o\0pool \xff\0", &in_pod(UID));
    node.process(PID + 1, b"", &in_pod(UID));
    node.process(PID + 2, b"nginx\0", &in_pod(UID));

    let findings = found(&mut node.scanner(None));
    assert_eq!(findings.len(), 1);
    let at = "2025-12-22T18:30:00+08:00[+08:00]".parse().unwrap();
    let record = findings[0].clone().into_record(&at);
    let expected = Record {
        pod: "web-1".into(),
        namespace: "ns-a".into(),
        process: "xmrig".into(),
        cmdline: "/opt/xmrig -o pool \u{fffd}".into(),
        regex: "^xmrig$".into(),
        status: "active".into(),
        kind: "app".into(),
        name: "web-1".into(),
        timestamp: "2025-12-22T18:30:00.000+08:00".into(),
    };
    assert_eq!(record, expected);
}

#[test]
fn several_processes_of_one_name_are_one_finding_with_the_lowest_id() {
    let node = Node::new();
    node.pod("ns-a", "web-1", UID);
    // As text, 10000000 would sort before 5000000.
    node.process(10_000_000, b"xmrig\0second", &in_pod(UID));
    node.process(PID, b"xmrig\0first", &in_pod(UID));
    node.process(PID + 1, b"masscan", &in_pod(UID));
    let findings = found(&mut node.scanner(None));
    let listed: Vec<_> = findings.iter().map(|f| (f.process.as_str(), f.cmdline.as_str(), f.pid)).collect();
    assert_eq!(listed, [("masscan", "masscan", PID + 1), ("xmrig", "xmrig first", PID)]);
}

#[test]
fn only_known_tenants_are_reported_and_the_host_only_with_a_name() {
    let node = Node::new();
    node.pod("kube-system", "tool", UID);
    node.process(PID, b"xmrig", &in_pod(UID));
    node.process(PID + 1, b"xmrig", &in_pod(STATIC_UID));
    node.process(PID + 2, b"xmrig", "0::/system.slice/docker-4f2a.scope");

    let mut scanner = node.scanner(None);
    node.end(PID + 1);
    assert_eq!(found(&mut scanner), []);
    node.process(PID + 1, b"xmrig", &in_pod(STATIC_UID));

    let findings = found(&mut node.scanner(Some(host())));
    assert_eq!(findings.len(), 1);
    assert_eq!((findings[0].pod.as_str(), findings[0].pid), ("this", PID + 2));
}

#[test]
fn an_exempt_pod_has_no_findings() {
    let node = Node::new();
    node.pod("ns-a", "web-1", UID);
    node.process(PID, b"xmrig", &in_pod(UID));
    let mut scanner = node.scanner(None);
    scanner.rules =
        Rules::from_yaml("detectionRules: {blacklist: {processes: [x]}, whitelist: {podNames: [web]}}")
            .unwrap();
    assert_eq!(found(&mut scanner), []);
}

#[test]
fn an_ended_process_is_not_listed_and_a_missing_file_is_no_error() {
    let node = Node::new();
    node.process(PID, b"xmrig", "0::/");
    node.process(PID + 1, b"masscan", "0::/");
    fs::remove_file(node.root.path().join(format!("proc/{}/cgroup", PID + 1))).unwrap();
    let mut scanner = node.scanner(Some(host()));
    assert_eq!(found(&mut scanner).len(), 1);
    node.end(PID);
    assert_eq!(found(&mut scanner), []);
}

#[test]
fn listed_command_lines_are_bounded_and_a_missing_proc_root_is_an_error() {
    let node = Node::new();
    let long = [b"xmrig ".as_slice(), &vec![b'a'; 200_000]].concat();
    node.process(PID, &long, "0::/");
    let mut scanner = node.scanner(Some(host()));
    scanner.pods_root = "/nonexistent/pods".into();
    assert_eq!(found(&mut scanner)[0].cmdline.len(), record::MOST_CMDLINE);
    scanner.proc_root = "/nonexistent/proc".into();
    let error = scanner.scan().unwrap_err();
    assert!(matches!(error, ScanError::Processes(e) if e.kind() == io::ErrorKind::NotFound));
}

#[test]
fn a_real_process_is_found_while_it_runs() {
    let directory = tempfile::tempdir().unwrap();
    // The name is unique, because other offenders may run on this machine.
    let name = format!("xmrig-{}", std::process::id());
    let program = directory.path().join(&name);
    fs::copy("/bin/sleep", &program).unwrap();
    // If this test runs in a Pod, the kubelet's directory names the Pod.
    if let Home::Pod(uid) = Home::of(&fs::read_to_string("/proc/self/cgroup").unwrap()) {
        fs::create_dir(directory.path().join(format!("ns-host_this_{uid}"))).unwrap();
    }
    let rules =
        Rules::from_yaml(&format!("detectionRules: {{blacklist: {{processes: [^{name}$]}}}}")).unwrap();
    let mut scanner = Scanner::new("/proc".into(), directory.path().into(), rules, Some(host()));

    let mut child = Command::new(&program).arg("60").spawn().unwrap();
    // During exec the kernel sets the process's name first and its command line a moment later.
    let is_complete = |scan: &Scan| scan.findings.iter().any(|found| !found.cmdline.is_empty());
    let deadline = Instant::now() + Duration::from_secs(5);
    let running = loop {
        let found = scanner.scan();
        if Instant::now() > deadline || found.as_ref().map_or(true, is_complete) {
            break found;
        }
    };
    child.kill().unwrap();
    child.wait().unwrap();
    let running = running.unwrap().findings;
    assert_eq!(running.len(), 1);
    assert_eq!((running[0].pid, running[0].namespace.as_str()), (child.id(), "ns-host"));
    assert_eq!(running[0].cmdline, format!("{} 60", program.display()));
    assert_eq!(found(&mut scanner), []);
}

#[test]
fn an_offender_of_a_pod_without_a_name_makes_the_list_partial() {
    let node = Node::new();
    node.pod("ns-a", "web-1", UID);
    node.process(PID, b"xmrig", &in_pod(UID));
    node.process(PID + 1, b"xmrig", &in_pod(STATIC_UID));
    node.process(PID + 2, b"nginx", &in_pod(STATIC_UID));
    let root = node.root.path().join("pods");
    let containers = node.root.path().join("containers");
    assert_eq!(node.why_partial(), Partial::UnknownPods { root, containers, count: 1, pid: PID + 1 });
    // An agent with a name for its host may leave out unknown Pods.
    let mut scanner = node.scanner(Some(host()));
    let seen = scanner.scan().unwrap();
    assert_eq!((seen.findings.len(), seen.unknown_pods), (1, 1));
}

#[test]
fn a_node_that_runs_pods_is_partial_without_their_names() {
    let node = Node::new();
    node.process(PID, b"nginx", &in_pod(UID));
    let pods = node.root.path().join("pods");
    fs::remove_dir(&pods).unwrap();
    let Partial::NoPods { root, error } = node.why_partial() else { panic!("{:?}", node.why_partial()) };
    assert_eq!(root, pods);
    assert!(error.contains("No such file"), "{error}");
    // A file in the place of the directory gives an error, as a directory without permission does.
    fs::write(&pods, "").unwrap();
    assert!(matches!(node.why_partial(), Partial::NoPods { .. }));
    // The list is complete if there are no Pods, or if the host has a name.
    assert_eq!(found(&mut node.scanner(Some(host()))), []);
    node.end(PID);
    assert_eq!(found(&mut node.scanner(None)), []);
}

#[test]
fn an_agent_that_sees_its_own_pod_only_is_partial() {
    let own = "0::/kubepods.slice/own";
    let private = "0::/";
    for (first, command, agent, cgroup, why) in [
        (private, "procscan-aggregator\0agent", 1, private, "it is the first process"),
        (private, "tini\0--\0agent", 7, private, "the first process is of its container"),
        (own, "tini", 7, own, "the same, seen from the node's control groups"),
        (&*in_pod(UID), "nginx", 7, "0::/x", "the first process is of a Pod"),
        (&format!("0::/cri-containerd-{}.scope", "4f2a".repeat(16)), "nginx", 7, "0::/x", "of a container"),
        ("0::/../4f.scope", "/pause\0", 7, private, "the first process is a sandbox"),
    ] {
        let node = Node::new();
        node.end(1);
        node.end(2);
        node.process(1, command.as_bytes(), first);
        if agent != 1 {
            node.process(agent, b"agent", cgroup);
        }
        node.is_agent(agent);
        assert_eq!(node.why_partial(), Partial::OwnNamespace(node.root.path().join("proc")), "{why}");
        assert_eq!(found(&mut node.scanner(Some(host()))), [], "{why}: with a name for the host");
    }
    // A node that is a container itself has no kernel threads.
    let node = Node::new();
    node.end(1);
    node.end(2);
    node.process(1, b"/sbin/init\0", &format!("0::/docker/{}/init.scope", "4f2a".repeat(16)));
    node.process(7, b"agent", "0::/kubepods/pod/x");
    node.is_agent(7);
    assert_eq!(found(&mut node.scanner(None)), []);
    // Process 2 is a program with a similar name, in a container.
    node.process(2, b"kthreadd", private);
    node.file(2, "comm", "kthread\n");
    node.end(1);
    assert_eq!(node.why_partial(), Partial::Hidden(node.root.path().join("proc")));
}

#[test]
fn processes_that_are_hidden_or_can_not_be_read_make_the_list_partial() {
    // hidepid=2: other users' processes are not listed.
    let node = Node::new();
    node.end(1);
    node.end(2);
    node.process(PID, b"nginx", "0::/");
    let root = node.root.path().join("proc");
    assert_eq!(node.why_partial(), Partial::Hidden(root.clone()));
    assert_eq!(found(&mut node.scanner(Some(host()))), []);

    // hidepid=1, or a security module: the process is listed but can't be read. (Root can't read a directory as a file
    // either.)
    for file in ["cmdline", "cgroup"] {
        let node = Node::new();
        let root = node.root.path().join("proc");
        node.pod("ns-a", "web-1", UID);
        for pid in [PID, PID + 1] {
            node.process(pid, b"xmrig", &in_pod(UID));
            fs::remove_file(root.join(format!("{pid}/{file}"))).unwrap();
            fs::create_dir(root.join(format!("{pid}/{file}"))).unwrap();
        }
        let Partial::Unreadable { count, error, .. } = node.why_partial() else { panic!("{file}") };
        assert_eq!((count, error.contains("directory")), (2, true), "{file}: {error}");
        // A process that has ended does not count.
        for pid in [PID, PID + 1] {
            fs::remove_dir(root.join(format!("{pid}/{file}"))).unwrap();
        }
        assert_eq!(found(&mut node.scanner(None)), [], "{file}");
    }
}

/// The kernel does not show the control group of a process if its path has more than 4,096 bytes. A tenant can make such groups.
#[test]
fn a_process_in_too_deep_a_control_group_is_skipped_and_counted_and_hides_no_other() {
    let node = Node::new();
    node.pod("ns-a", "web-1", UID);
    node.process(PID, b"xmrig", &in_pod(UID));
    node.process(PID + 1, b"nginx", &in_pod(UID));
    let cgroup = node.root.path().join(format!("proc/{}/cgroup", PID + 1));
    fs::remove_file(&cgroup).unwrap();
    // Following this link gives the same error.
    std::os::unix::fs::symlink("x".repeat(300), &cgroup).unwrap();
    assert_eq!(fs::read(&cgroup).unwrap_err().kind(), io::ErrorKind::InvalidFilename);
    let seen = node.scanner(None).scan().unwrap();
    assert_eq!((seen.findings.len(), seen.deep_groups), (1, 1));
}

#[test]
fn a_scan_of_this_machine_is_complete_or_fails() {
    let directory = tempfile::tempdir().unwrap();
    let rules = Rules::from_yaml("detectionRules: {blacklist: {processes: [^no-such-process$]}}").unwrap();
    let mut scanner = Scanner::new("/proc".into(), directory.path().into(), rules, None);
    let sees_kernel = fs::read_to_string("/proc/2/comm").is_ok_and(|name| name == "kthreadd\n");
    match scanner.scan() {
        Ok(found) => assert_eq!(found.findings, []),
        Err(why) => assert!(!sees_kernel, "{why}"),
    }
}

mod programs;
mod shares;
