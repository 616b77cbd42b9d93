//! Accusations without effect: those in namespaces that may not be blocked, and disputed ones.

use procscan_core::decision::DecisionKind;
use procscan_core::names::PodRef;
use procscan_core::policy::PodState;
use procscan_core::report::Record;

use crate::common::*;

/// `n` processes in `namespace`; the node makes up the Apps' names anew in each `round`.
fn made_up(namespace: &str, n: usize, round: u64, stamp: i64) -> Vec<Record> {
    (0..n).map(|i| record_of(namespace, &format!("p-{round}-{i}"), "xmrig", stamp)).collect()
}

fn logged(world: &mut World) -> Vec<String> {
    let decisions = world.evaluate().decisions;
    decisions
        .iter()
        .map(|decision| {
            assert_eq!(decision.kind, DecisionKind::Exempted);
            decision.reason.to_string()
        })
        .collect()
}

#[test]
fn accusations_in_a_protected_namespace_are_logged_once_whatever_names_a_node_makes_up() {
    let mut world = World::new(&["n1", "n2"]);
    let mut log = Vec::new();
    world.rounds(10, |w| {
        let now = w.clock();
        w.answer("n1", made_up("kube-system", 300, w.now.uptime().as_secs(), now));
        log.extend(logged(w));
    });
    let [line] = &log[..] else { panic!("{} lines", log.len()) };
    assert!(line.contains("node n1") && line.contains("kube-system") && line.contains("299 more"), "{line}");
    assert!(line.contains("enforcement.protected_namespaces"), "{line}");

    // Another node or another namespace is logged on its own.
    let now = world.clock();
    world.answer("n2", made_up("kube-system", 1, 0, now));
    world.answer("n1", [made_up("kube-system", 1, 1, now), made_up("kube-dns", 1, 1, now)].concat());
    let lines = logged(&mut world);
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].contains("node n1") && lines[0].contains("kube-dns"), "{lines:?}");
    assert!(lines[1].contains("node n2") && !lines[1].contains("more"), "{lines:?}");
}

#[test]
fn a_node_that_makes_up_namespaces_too_is_logged_a_few_times_a_day() {
    let mut world = World::new(&["n1"]);
    let mut log = Vec::new();
    let a_day = |w: &mut World, log: &mut Vec<String>| {
        for hour in 0..23 {
            w.wait(HOUR);
            let now = w.clock();
            let records = (0..100).flat_map(|i| made_up(&format!("x-{hour}-{i}"), 2, hour, now)).collect();
            w.answer("n1", records);
            log.extend(logged(w));
        }
    };
    a_day(&mut world, &mut log);
    assert_eq!(log.len(), 17, "{log:?}");
    assert!(log[16].contains("more than 16 namespaces") && log[16].contains("node n1"), "{}", log[16]);
    log.clear();
    a_day(&mut world, &mut log);
    assert!(log.len() <= 17, "{log:?}");
}

#[test]
fn an_accusation_that_is_repeated_after_a_day_is_logged_again() {
    let mut world = World::new(&["n1"]);
    let accuse = |w: &mut World| {
        let now = w.clock();
        w.answer("n1", made_up("kube-system", 1, 0, now));
        logged(w).len()
    };
    assert_eq!(accuse(&mut world), 1);
    for _ in 0..3 {
        world.wait(20 * HOUR);
        assert_eq!(accuse(&mut world), 0, "it has been accused within a day");
    }
    world.answer("n1", vec![]);
    world.wait(25 * HOUR);
    world.evaluate();
    assert_eq!(accuse(&mut world), 1);
}

/// The node accuses Pods that do not exist, and gives them other names each time.
#[test]
fn disputed_accusations_in_a_namespace_are_logged_once_whatever_pods_a_node_makes_up() {
    let mut world = World::new(&["n1", "n2"]);
    world.policy.verify_pods = true;
    let accuse = |w: &mut World, node: &str, records: Vec<Record>| {
        for record in &records {
            w.pod_is(&record.key.namespace, &record.key.pod, PodState::Gone);
        }
        w.answer(node, records);
        let evaluation = w.evaluate();
        let of = |kind| evaluation.decisions.iter().filter(move |it| it.kind == kind);
        assert_eq!(of(DecisionKind::Disputed).count(), evaluation.decisions.len());
        let log: Vec<String> = of(DecisionKind::Disputed).map(|it| it.reason.to_string()).collect();
        (log, evaluation.disputes.len())
    };
    let mut log = Vec::new();
    world.rounds(10, |w| {
        let (now, round) = (w.clock(), w.now.uptime().as_secs());
        let (lines, disputes) = accuse(w, "n1", made_up("ns-a", 300, round, now));
        log.extend(lines);
        assert!(disputes >= 300, "all of them are listed: {disputes}");
    });
    let [line] = &log[..] else { panic!("{} lines", log.len()) };
    assert!(line.contains("node n1") && line.contains("there is no such Pod"), "{line}");
    assert!(line.contains("299 more") && line.contains("ns-a"), "{line}");

    // Another node or another namespace is logged on its own; namespaces that the node makes up too are not.
    let now = world.clock();
    let (lines, _) = accuse(&mut world, "n2", made_up("ns-a", 1, 0, now));
    assert_eq!(lines.len(), 1);
    assert!(lines[0].contains("node n2") && !lines[0].contains("more"), "{lines:?}");
    log.clear();
    for round in 0..10 {
        world.wait(MINUTE);
        let now = world.clock();
        let records = (0..20).flat_map(|n| made_up(&format!("ns-x{round}-{n}"), 2, round, now)).collect();
        log.extend(accuse(&mut world, "n1", records).0);
    }
    assert_eq!(log.len(), 16, "{log:?}");
    assert!(log[15].contains("more than 16 namespaces"), "{}", log[15]);

    // A disputed accusation hides none in a namespace that may not be blocked, nor the other way round.
    let now = world.clock();
    world.answer("n2", made_up("kube-system", 1, 1, now));
    assert_eq!(logged(&mut world).len(), 1);
    let pod = PodRef { namespace: "kube-system".into(), pod: "p-1-0".into() };
    assert!(!world.facts.pods.contains_key(&pod));
}
