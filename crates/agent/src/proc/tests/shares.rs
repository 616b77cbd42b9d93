//! A tenant with many or large processes takes no records and no bytes of a scan from other tenants.

use super::*;
use crate::proc::listing::MOST_OF_POD;
use crate::proc::turns::Round;
use crate::record::encode;

/// A Pod's UID that ends in `number`.
fn uid(number: u32) -> String {
    format!("0f5e6a52-8c1d-4b8a-9a53-{number:012x}")
}

/// The largest answer, in bytes, that an aggregator reads by default.
const MAX_BODY: usize = 4 << 20;
/// The number of processes of one Pod: more than the list has, with more bytes than an answer has.
const NAMES: u32 = 300;
const MINER: &[u8] = b"./a\0--url\0stratum+tcp://pool.example.com\0";

/// A scanner with cheap rules, because these tests read many bytes.
fn scanner(node: &Node, limits: Limits) -> Scanner {
    let rules = "detectionRules: {blacklist: {processes: [^xmrig$, ^masscan$], keywords: [stratum]}}";
    let mut scanner = node.scanner(None);
    scanner.rules = Rules::from_yaml(rules).unwrap();
    scanner.limits = limits;
    scanner
}

fn padded(padding: usize) -> Vec<u8> {
    [b"./a\0".as_slice(), &vec![b'x'; padding], b"\0--url\0stratum+tcp://pool.example.com\0"].concat()
}

#[test]
fn a_flood_of_processes_and_names_hides_no_other_pod_and_fits_into_an_answer() {
    let node = Node::new();
    node.pod("ns-a", "flood", &uid(1));
    node.pod("ns-a", "names", &uid(2));
    node.pod("ns-a", "zz-other", &uid(3));
    node.pod("ns-b", "web", &uid(4));
    let escaped = [b"xmrig\0".as_slice(), &vec![b'<'; 62_000]].concat();
    for n in 0..70 {
        let named = [format!("/{n}/masscan\0").as_bytes(), &escaped].concat();
        node.process(PID + n, if n % 2 == 0 { &escaped } else { &named }, &in_pod(&uid(1)));
    }
    for n in 0..NAMES {
        let long = [format!("{n:05}\0").as_bytes(), &vec![b'&'; 16_000], MINER].concat();
        node.process(PID + 100 + n, &long, &in_pod(&uid(2)));
    }
    // The youngest processes.
    node.process(PID + 9000, b"xmrig\0", &in_pod(&uid(3)));
    node.process(PID + 9001, MINER, &in_pod(&uid(4)));
    let seen = scanner(&node, Limits::default()).scan().unwrap();
    let of = |pod: &str| seen.findings.iter().filter(|finding| finding.pod == pod).count();
    assert_eq!((of("flood"), of("names"), of("zz-other"), of("web")), (2, MOST_OF_POD, 1, 1));
    let left_out = Omitted { offenders: NAMES as usize - MOST_OF_POD, ..Omitted::default() };
    assert_eq!(seen.left_out, LeftOut([("ns-a".to_owned(), left_out)].into()));
    let at = "2025-12-22T18:30:00+08:00[+08:00]".parse().unwrap();
    let records: Vec<Record> = seen.findings.into_iter().map(|finding| finding.into_record(&at)).collect();
    assert!(encode(&records).len() < MAX_BODY);
}

#[test]
fn the_largest_list_fits_into_an_answer() {
    let name = "\u{1}".repeat(1000);
    let record = Record {
        pod: "p".repeat(253),
        namespace: "n".repeat(63),
        process: record::cut(&name, record::MOST_PROCESS).into(),
        cmdline: record::excerpt(&"<".repeat(10_000), 9000, record::MOST_CMDLINE),
        regex: record::cut(&"&".repeat(1000), record::MOST_REGEX).into(),
        status: "active".into(),
        kind: "app".into(),
        name: "p".repeat(253),
        timestamp: "2025-12-22T18:30:00.000+08:00".into(),
    };
    assert!(encode(&vec![record; MOST_RECORDS]).len() < MAX_BODY);
}

#[test]
fn long_command_lines_of_one_tenant_do_not_displace_those_of_others() {
    let node = Node::new();
    let mut scanner = scanner(&node, Limits { scan: 400 << 10, cmdline: 128 << 10, head: 1 << 10 });
    node.pod("ns-a", "web", &uid(1));
    node.pod("ns-b", "web", &uid(2));
    node.pod("ns-b", "flood", &uid(3));
    for n in 0..40 {
        node.process(PID + n, &vec![b'x'; 300 << 10], &in_pod(&uid(3)));
    }
    node.process(PID + 50, &padded(40 << 10), &in_pod(&uid(1)));
    node.process(PID + 51, &padded(40 << 10), &in_pod(&uid(2)));
    for scan in 0..5 {
        let seen = scanner.scan().unwrap();
        let pods: Vec<_> = seen.findings.iter().map(|f| (f.namespace.as_str(), f.pod.as_str())).collect();
        assert_eq!(pods, [("ns-a", "web"), ("ns-b", "web")], "scan {scan}");
        let of_b = seen.left_out.0["ns-b"];
        assert_eq!((seen.left_out.0.len(), of_b.command_lines), (1, 40), "scan {scan}: {:?}", seen.left_out);
    }
}

#[test]
fn each_process_has_its_turn() {
    // Command lines that exceed the share together, long ones, and lines beyond the limit for one line.
    for (processes, padding, most_scans) in [(400, 10, 25), (60, 3 << 10, 30), (60, 9 << 10, 65)] {
        let node = Node::new();
        let mut scanner = scanner(&node, Limits { scan: 10 << 10, cmdline: 6 << 10, head: 100 });
        node.pod("ns-a", "web", &uid(1));
        for n in 0..processes {
            node.process(PID + n, &vec![b'x'; padding], &in_pod(&uid(1)));
        }
        let miner = if padding < 100 { MINER.to_vec() } else { padded(4 << 10) };
        node.process(PID + processes, &miner, &in_pod(&uid(1)));
        let scans: Vec<Scan> = (0..most_scans).map(|_| scanner.scan().unwrap()).collect();
        assert!(scans.iter().all(|seen| !seen.left_out.is_empty()));
        let first = scans.iter().position(|seen| !seen.findings.is_empty());
        let first = first.unwrap_or_else(|| panic!("{processes} of {padding}: never in {most_scans} scans"));
        assert!(first > 0, "{processes} of {padding}: others have their turn before");
        // A finding stays listed until its process ends, or another process has the same ID.
        let is_listed = |seen: &Scan| seen.findings.len() == 1;
        assert!(scans.iter().skip(first).all(is_listed), "{processes} of {padding}");
        node.file(PID + processes, "stat", &format!("1 (a) S{} 77\n", " 0".repeat(18)));
        assert!(!is_listed(&scanner.scan().unwrap()), "{processes} of {padding}");
        assert!((0..most_scans).any(|_| is_listed(&scanner.scan().unwrap())), "{processes} of {padding}");
        node.end(PID + processes);
        assert!(!is_listed(&scanner.scan().unwrap()), "{processes} of {padding}");
    }
}

/// A Pod that ends and starts more processes between two scans than a scan reads.
#[test]
fn old_processes_have_their_turn_despite_new_ones() {
    const RUNNING: u32 = 50;
    const NEW: u32 = 15;
    for padding in [0, 3 << 10] {
        let node = Node::new();
        // Ten processes a scan, or two of the long ones.
        let scan = if padding == 0 { 1 << 10 } else { 20 << 10 };
        let mut scanner = scanner(&node, Limits { scan, cmdline: 6 << 10, head: 100 });
        node.pod("ns-a", "web", &uid(1));
        let start = |n: u32| node.process(PID + n, &vec![b'x'; padding + 10], &in_pod(&uid(1)));
        let mut flood: std::collections::VecDeque<u32> = (1..=RUNNING).collect();
        for n in &flood {
            start(*n);
        }
        let partial = scanner.scan().unwrap();
        assert!(partial.findings.is_empty() && !partial.left_out.is_empty(), "{padding}");
        // An old process becomes a miner after its turn.
        node.process(PID, &if padding == 0 { MINER.to_vec() } else { padded(padding) }, &in_pod(&uid(1)));
        let mut next = RUNNING;
        let found_in = (0..60).find(|_| {
            for _ in 0..NEW {
                flood.pop_front().into_iter().for_each(|n| node.end(PID + n));
                next += 1;
                start(next);
                flood.push_back(next);
            }
            scanner.scan().unwrap().findings.len() == 1
        });
        assert!(found_in.is_some(), "{padding}: never in 60 scans");
    }
}

#[test]
fn a_process_listed_before_a_flood_stays_listed_while_it_runs() {
    let node = Node::new();
    let mut scanner = scanner(&node, Limits { scan: 1 << 10, cmdline: 6 << 10, head: 100 });
    node.pod("ns-a", "web", &uid(1));
    node.process(PID + 900, MINER, &in_pod(&uid(1)));
    let seen = scanner.scan().unwrap();
    assert!(seen.findings.len() == 1 && seen.left_out.is_empty());
    (0..900).for_each(|n| node.process(PID + n, b"x", &in_pod(&uid(1))));
    for scan in 0..3 {
        let seen = scanner.scan().unwrap();
        assert!(seen.findings.len() == 1 && !seen.left_out.is_empty(), "scan {scan}");
    }
    node.end(PID + 900);
    assert_eq!(found(&mut scanner), []);
}

#[test]
fn an_ended_process_is_not_listed_although_its_parent_has_not_waited_for_it() {
    let node = Node::new();
    node.pod("ns-a", "web", &uid(1));
    node.process(PID, MINER, &in_pod(&uid(1)));
    let mut scanner = scanner(&node, Limits::default());
    assert_eq!(found(&mut scanner).len(), 1);
    node.file(PID, "cmdline", "");
    assert_eq!(found(&mut scanner), []);
}

#[test]
fn a_round_ends_with_the_processes_of_its_beginning() {
    let order = |round: Round, ids: &[u32]| round.go_on(ids).map(|(id, _)| id).collect::<Vec<_>>();
    let after = |round: Round, ids: &[u32], turns: usize| round.go_on(ids).nth(turns - 1).unwrap().1;
    let round = after(Round::default(), &[3, 5, 7, 9], 2);
    assert_eq!(order(round, &[3, 5, 7, 9]), [7, 9, 3, 5]);
    // New ones come after the lowest of the next round.
    assert_eq!(order(round, &[3, 5, 7, 9, 11, 13]), [7, 9, 3, 5, 11, 13]);
    let next = after(round, &[3, 5, 7, 9, 11, 13], 3);
    assert_eq!(order(next, &[2, 3, 5, 9, 11, 13, 15]), [5, 9, 11, 13, 2, 3, 15]);
    // All remaining processes of the round have ended.
    assert_eq!(order(round, &[3, 20]), [3, 20]);
    assert!(order(round, &[]).is_empty());
}

/// The text that exempts a process may be at the end of its command line.
#[test]
fn with_exempt_commands_a_cut_command_line_accuses_no_process() {
    let lists = "blacklist: {processes: [^xmrig$]}, whitelist: {commands: [--approved-by=ops]}";
    let rules = |lists: &str| Rules::from_yaml(&format!("detectionRules: {{{lists}}}")).unwrap();
    let line =
        |padding: usize, end: &[u8]| [b"xmrig\0".as_slice(), &vec![b'x'; padding], b"\0", end].concat();
    let node = Node::new();
    node.pod("ns-a", "web", &uid(1));
    node.process(PID, &vec![b'x'; 9 << 10], &in_pod(&uid(1)));
    node.process(PID + 1, &line(6 << 10, b"--approved-by=ops\0"), &in_pod(&uid(1)));
    let mut limited = scanner(&node, Limits { scan: 12 << 10, cmdline: 10 << 10, head: 1 << 10 });
    limited.rules = rules(lists);
    for scan in 0..6 {
        let seen = limited.scan().unwrap();
        assert_eq!((seen.findings.len(), seen.left_out.total().command_lines), (0, 1), "scan {scan}");
    }
    // Without such a rule, the beginning is enough.
    let mut without = limited.clone();
    without.rules = rules("blacklist: {processes: [^xmrig$]}");
    assert_eq!(found(&mut without).len(), 1);
    // The process is judged in a later scan, and listed from then on.
    node.file(PID + 1, "cmdline", std::str::from_utf8(&line(6 << 10, b"--mine\0")).unwrap());
    let listed: Vec<usize> = (0..6).map(|_| found(&mut limited).len()).collect();
    assert_eq!(listed[2..], [1; 4], "{listed:?}");
    // A line that no scan reads to its end does not hide its process. One line is beyond the limit, and one is beyond the share.
    for padding in [11 << 10, 60 << 10] {
        node.file(PID + 1, "cmdline", std::str::from_utf8(&line(padding, b"")).unwrap());
        let mut limited = limited.clone();
        limited.limits.cmdline = 30 << 10;
        let listed: Vec<usize> = (0..6).map(|_| found(&mut limited).len()).collect();
        assert_eq!(listed[3..], [1; 3], "{padding}: {listed:?}");
    }
}

#[test]
fn a_scan_reads_no_more_than_its_limit_of_all_tenants() {
    let tenants = || -> Tenants {
        let pod = |ns: u32, pod: u32| Owner::named((format!("ns-{ns}"), format!("p{pod}")));
        let of = |ns: u32| (0..5).map(|p| (pod(ns, p), (0..ns + p).collect())).collect();
        (0..20).map(|ns| (format!("ns-{ns}"), of(ns))).collect()
    };
    let (mut total, mut least) = (0, u64::MAX);
    turns::share(tenants(), 10_000, |_, _, share| {
        total += share;
        least = least.min(share);
        share
    });
    assert!(total <= 10_000 && least >= 100, "{total} {least}");
    // The namespaces with the most processes get the bytes that others do not use.
    let mut most = 0;
    turns::share(tenants(), 10_000, |owner, _, share| {
        most = most.max(share);
        if owner.tenant() == "ns-19" { share } else { 0 }
    });
    assert!(most >= 10_000 / 5, "{most}");
}
