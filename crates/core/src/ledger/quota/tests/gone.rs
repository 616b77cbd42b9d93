//! Pods that are gone.

use super::*;

/// If the violation were forgotten, the next answer with its young record would make it active again.
#[test]
fn a_flood_does_not_push_out_a_violation_whose_pod_is_gone_while_its_record_is_young() {
    let mut node = Crowded::new();
    let gone = |ago| vec![("ns-a", "gone", "x".to_owned(), ago)];
    node.list_found(&gone(0));
    node.ledger.pod_gone(&PodRef { namespace: "ns-a".into(), pod: "gone".into() }, at(1));
    for minute in 1..4 {
        let mut keys = gone(minute);
        keys.extend((0..20).map(|n| ("ns-a", "flood", format!("p{n:02}"), 0)));
        node.list_found(&keys);
        let known = node.known(at(node.minute));
        assert_eq!(known.last(), Some(&("ns-a/gone/x".to_owned(), State::Cleared)));
    }
}

/// In a StatefulSet the next Pod has the name of the one before.
#[test]
fn a_violation_that_is_found_again_after_its_pod_was_gone_makes_no_room_for_a_flood() {
    let mut node = Crowded::new();
    let again = ("ns-a", "web-0", "x".to_owned());
    node.list(std::slice::from_ref(&again));
    node.ledger.pod_gone(&PodRef { namespace: "ns-a".into(), pod: "web-0".into() }, at(1));
    node.list(&[again]);
    let known = node.list(&flood("ns-a", "flood", 8));
    assert_eq!(known.last(), Some(&"ns-a/web-0/x".to_owned()), "{known:?}");
}

#[test]
fn live_violations_have_room_before_the_only_violation_of_a_pod_that_is_gone() {
    let mut node = Crowded::new();
    let pods = ["gone0", "gone1", "gone2"];
    let listed = |ago| pods.map(|pod| ("ns-a", pod, "x".to_owned(), ago)).to_vec();
    node.list_found(&listed(0));
    for pod in pods {
        node.ledger.pod_gone(&PodRef { namespace: "ns-a".into(), pod: pod.into() }, at(node.minute));
    }
    node.minute = 600;
    let mut keys = listed(600);
    keys.extend((0..8).map(|n| ("ns-a", "new", format!("p{n:02}"), 0)));
    assert_eq!(node.list_found(&keys), names("ns-a", "new", "p", 0..8));
}

/// Pods that come and go take no room from a Pod that runs, whether its process was seen before them or not.
#[test]
fn pods_that_are_gone_push_out_no_violation_of_a_pod_that_runs() {
    let mut node = Crowded::new();
    let gone: Vec<String> = (0..3 * Crowded::MAX).map(|n| format!("gone-{n:02}")).collect();
    let miner = |name: &str| ("ns-m", name.to_owned());
    let list = |node: &mut Crowded, pods: &[String], miners: &[(&str, String)]| {
        let pods = pods.iter().map(|pod| ("ns-a", pod.as_str(), "x".to_owned()));
        let miners = miners.iter().map(|(namespace, pod)| (*namespace, pod.as_str(), "xmrig".to_owned()));
        node.list(&pods.chain(miners).collect::<Vec<_>>())
    };
    list(&mut node, &gone[..6], &[miner("known")]);
    for turn in 1..4 {
        for pod in &gone {
            node.ledger.pod_gone(&pod_ref("ns-a", pod), at(node.minute));
        }
        let miners = [miner("known"), miner("new")];
        let known = list(&mut node, &gone[turn * 6..(turn + 1) * 6], &miners);
        for name in ["ns-m/known/xmrig", "ns-m/new/xmrig"] {
            assert!(known.contains(&name.to_owned()), "{name} in {known:?}");
        }
    }
}
