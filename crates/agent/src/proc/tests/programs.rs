//! Offenders under another name than their program's, and containers whose control groups name no Pod.

use std::os::unix::{fs::symlink, process::CommandExt};

use super::*;

impl Node {
    /// Gives a process a program and the name that the kernel has for it.
    fn program(&self, pid: u32, exe: &str, comm: &str) {
        symlink(exe, self.root.path().join(format!("proc/{pid}/exe"))).unwrap();
        self.file(pid, "comm", &format!("{comm}\n"));
    }

    fn container(&self, link: &str) {
        let directory = self.root.path().join("containers");
        fs::create_dir_all(&directory).unwrap();
        symlink("/nonexistent", directory.join(link)).unwrap();
    }
}

/// The names under which these processes are listed.
fn listed(processes: &[(&[u8], &str, &str)]) -> Vec<String> {
    let node = Node::new();
    node.pod("ns-a", "web-1", UID);
    let mut listed = Vec::new();
    for (cmdline, exe, comm) in processes {
        node.process(PID, cmdline, &in_pod(UID));
        node.program(PID, exe, comm);
        listed.extend(found(&mut node.scanner(None)).into_iter().map(|finding| finding.process));
        node.end(PID);
    }
    listed
}

#[test]
fn a_program_is_found_under_its_own_name_despite_its_own_title() {
    let listed = listed(&[
        (b"/tmp/my dir/xmrig\0-o\0pool\0", "/tmp/my dir/xmrig", "xmrig"),
        (b"java\0-jar\0app.jar\0", "/opt/xmrig", "java"),
        (b"java\0", "/opt/xmrig (deleted)", "java"),
        (b"[kworker/0:1]\0", "/memfd:xmrig (deleted)", "kworker"),
        (b"sh\0/opt/xmrig\0", "/bin/dash", "xmrig"),
        (b"", "/opt/xmrig", ""),
        (b"java\0", "/opt/java", "java"),
    ]);
    assert_eq!(listed, ["xmrig"; 6]);
}

#[test]
fn a_keyword_names_the_program_of_a_path_with_a_space() {
    let cmdline = b"/tmp/my dir/app\0-o\0stratum+tcp://pool.example.com:3333\0";
    assert_eq!(
        listed(&[(cmdline, "/tmp/my dir/app", "app"), (cmdline, "/bin/other", "other")]),
        ["app", "my"]
    );
}

#[test]
fn a_keyword_behind_any_padding_is_found_and_shown() {
    for (padding, fill) in [(64 << 10, b'x'), (3 << 20, b'x'), (6 << 20, 0xff), (100_000, b'<')] {
        let node = Node::new();
        node.pod("ns-a", "web-1", UID);
        let parts = [b"./a\0".as_slice(), &vec![fill; padding], b"\0--url\0stratum+tcp://pool.example.com\0"];
        node.process(PID, &parts.concat(), &in_pod(UID));
        let seen = node.scanner(None).scan().unwrap();
        assert_eq!(seen.findings.len(), 1, "{padding}");
        assert!(seen.left_out.is_empty(), "{:?}", seen.left_out);
        let cmdline = &seen.findings[0].cmdline;
        assert!(cmdline.starts_with("./a ") && cmdline.contains(" --url stratum+tcp://pool"), "{cmdline}");
        assert!(record::cut(cmdline, record::MOST_CMDLINE) == cmdline, "{}", cmdline.len());
    }
}

#[test]
fn a_program_whose_first_thread_has_ended_is_found() {
    let node = Node::new();
    node.pod("ns-a", "web-1", UID);
    node.process(PID, b"", &in_pod(UID));
    node.file(PID, "comm", "xmrig\n");
    assert_eq!(found(&mut node.scanner(None)), [], "a zombie");
    for thread in [PID, PID + 1] {
        fs::create_dir_all(node.root.path().join(format!("proc/{PID}/task/{thread}"))).unwrap();
        node.file(PID, &format!("task/{thread}/cmdline"), "");
    }
    assert_eq!(found(&mut node.scanner(None)), [], "a zombie with threads that have ended");
    node.file(PID, &format!("task/{}/cmdline", PID + 1), "/opt/xmrig\0");
    assert_eq!(found(&mut node.scanner(None))[0].process, "xmrig");
}

#[test]
fn a_process_with_a_hidden_program_is_judged_by_its_other_names() {
    let node = Node::new();
    node.pod("ns-a", "web-1", UID);
    node.process(PID, b"java\0", &in_pod(UID));
    // A file in the place of the link: reading it fails with another error than for an ended process.
    node.file(PID, "exe", "");
    node.file(PID, "comm", "xmrig\n");
    let seen = node.scanner(None).scan().unwrap();
    assert_eq!((seen.hidden_programs, seen.findings[0].process.as_str()), (1, "xmrig"));
}

#[test]
fn a_real_program_is_found_behind_a_space_another_name_and_without_its_file() {
    let directory = tempfile::tempdir().unwrap();
    let name = format!("xmrig-of-{}", std::process::id());
    let program = directory.path().join("my dir").join(&name);
    fs::create_dir(directory.path().join("my dir")).unwrap();
    fs::copy("/bin/sleep", &program).unwrap();
    if let Home::Pod(uid) = Home::of(&fs::read_to_string("/proc/self/cgroup").unwrap()) {
        fs::create_dir(directory.path().join(format!("ns-host_this_{uid}"))).unwrap();
    }
    let rules =
        Rules::from_yaml(&format!("detectionRules: {{blacklist: {{processes: [^{name}$]}}}}")).unwrap();
    let mut scanner = Scanner::new("/proc".into(), directory.path().into(), rules, Some(host()));
    let mut child = Command::new(&program).arg0("a name of its own").arg("60").spawn().unwrap();
    fs::remove_file(&program).unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    let running = loop {
        let findings = scanner.scan().map(|seen| seen.findings);
        // A program that is being started has its name before its command line.
        let is_starting = matches!(&findings, Ok(found) if found.iter().all(|it| it.cmdline.is_empty()));
        if Instant::now() > deadline || !is_starting {
            break findings;
        }
    };
    child.kill().unwrap();
    child.wait().unwrap();
    let running = running.unwrap();
    assert_eq!((running.len(), running[0].pid, &running[0].process), (1, child.id(), &name));
    assert_eq!(running[0].cmdline, "a name of its own 60");
    assert!(running[0].started > 0);
}

#[test]
fn a_container_without_a_pod_in_its_control_group_has_the_name_that_the_kubelet_gives_it() {
    let node = Node::new();
    let id = "4f2a".repeat(16);
    node.process(PID, b"xmrig\0", &format!("0::/system.slice:cri-containerd:{id}"));
    assert!(matches!(node.why_partial(), Partial::UnknownPods { count: 1, pid: PID, .. }));
    node.container(&format!("web-1_ns-a_main-{id}.log"));
    let findings = found(&mut node.scanner(None));
    assert_eq!((findings[0].namespace.as_str(), findings[0].pod.as_str()), ("ns-a", "web-1"));

    // Docker has containers of its own, too.
    node.process(PID + 1, b"xmrig\0", &format!("0::/docker/{}", "0".repeat(64)));
    let seen = node.scanner(None).scan().unwrap();
    assert_eq!((seen.findings.len(), seen.doubtful_containers), (1, 0));
    node.end(PID);
    let mut scanner = node.scanner(None);
    scanner.containers_root = "/nonexistent/containers".into();
    let seen = scanner.scan().unwrap();
    assert_eq!(
        (seen.findings.len(), seen.doubtful_containers),
        (0, 1),
        "without the links, the container may be one of Kubernetes"
    );
    node.process(PID, b"xmrig\0", &format!("0::/system.slice:cri-containerd:{id}"));
    // A node that is a container itself.
    node.pod("ns-c", "web-3", UID);
    node.process(PID + 2, b"xmrig\0", &format!("0::/docker/{}/kubepods/pod{UID}", "1".repeat(64)));
    assert_eq!(found(&mut node.scanner(None))[1].namespace, "ns-c");
    node.end(PID + 2);
    node.container(&format!("web-2_ns-b_main-{}.log", "0".repeat(64)));
    assert_eq!(found(&mut node.scanner(None)).len(), 2);
}

/// The kernel stores 15 bytes of a name, and an exemption for the whole name does not match them.
#[test]
fn a_name_that_the_kernel_has_cut_is_no_name_of_its_own() {
    let rules =
        "detectionRules: {blacklist: {processes: [scan]}, whitelist: {processes: [^my-long-scanner-name$]}}";
    for (cmdline, exe, count) in [
        (&b"/opt/my-long-scanner-name\0"[..], "/opt/my-long-scanner-name", 0),
        (b"other\0", "/opt/my-long-scanner-name", 0),
        // The program has another name, so this one is not cut from it.
        (b"other\0", "/opt/other", 1),
    ] {
        let node = Node::new();
        node.pod("ns-a", "web-1", UID);
        node.process(PID, cmdline, &in_pod(UID));
        node.program(PID, exe, "my-long-scanner");
        let path = node.root.path();
        let rules = Rules::from_yaml(rules).unwrap();
        let mut scanner = Scanner::new(path.join("proc"), path.join("pods"), rules, None);
        assert_eq!(found(&mut scanner).len(), count, "{exe}");
    }
}
