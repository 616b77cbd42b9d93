//! The Pods of one namespace, and the limit of each Pod.

use super::*;

#[test]
fn violations_seen_first_stay_and_a_flood_in_one_pod_leaves_the_other_pods_of_the_tenant() {
    let mut node = Crowded::new();
    node.list(&[("ns-a", "old", "miner".to_owned())]);
    let mut keys = flood("ns-a", "flood", 20);
    node.list(&keys);
    keys.push(("ns-a", "new", "miner".to_owned()));
    keys.push(("ns-b", "web", "miner".to_owned()));
    keys.push(("ns-a", "old", "miner".to_owned()));
    let known = node.list(&keys);
    for expected in ["ns-a/old/miner", "ns-a/new/miner", "ns-b/web/miner", "ns-a/flood/p00"] {
        assert!(known.contains(&expected.to_owned()), "{expected} in {known:?}");
    }
    let renamed: Vec<_> = (0..20).map(|n| ("ns-a", "flood", format!("q{n:02}"))).collect();
    assert_eq!(node.list(&renamed), known, "new names push out nothing");
}

#[test]
fn a_pod_with_many_names_has_violations_up_to_its_limit_and_running_processes_stay() {
    let mut node = Crowded::new();
    node.limit_pods(4);
    let mut keys = flood("ns-a", "flood", 20);
    keys.push(("ns-a", "web", "xmrig".to_owned()));
    let known = node.list(&keys);
    assert_eq!(
        known,
        ["ns-a/flood/p00", "ns-a/flood/p01", "ns-a/flood/p02", "ns-a/flood/p03", "ns-a/web/xmrig"]
    );
    // Hours later the processes have other names, and old evidence makes room.
    node.minute = 300;
    let renamed: Vec<_> = (0..20).map(|n| ("ns-a", "flood", format!("q{n:02}"))).collect();
    node.ledger.advance(at(300));
    let known = node.list(&renamed);
    assert_eq!(
        known,
        ["ns-a/flood/q00", "ns-a/flood/q01", "ns-a/flood/q02", "ns-a/flood/q03", "ns-a/web/xmrig"]
    );
}

#[test]
fn a_pods_limit_counts_its_own_violations_and_those_that_were_known_before() {
    let mut node = Crowded::new();
    node.limit_pods(4);
    // The node has room for all of them.
    let mut keys = flood("ns-a", "web", 5);
    let mut expected = names("ns-a", "web", "p", 0..4);
    assert_eq!(node.list(&keys), expected);
    // A Pod of another tenant has the same name.
    keys.extend(flood("ns-b", "web", 3));
    expected.extend(names("ns-b", "web", "p", 0..3));
    assert_eq!(node.list(&keys), expected);
    keys.push(("ns-a", "web", "q00".to_owned()));
    assert_eq!(node.list(&keys), expected);
}

#[test]
fn of_pods_with_one_violation_each_those_that_were_seen_first_stay() {
    let mut node = Crowded::new();
    let first = ("ns-a", "z", "p00".to_owned());
    node.list(std::slice::from_ref(&first));
    let pods: Vec<String> = (0..8).map(|n| format!("pod{n}")).collect();
    let mut keys: Vec<_> = pods.iter().map(|pod| ("ns-a", pod.as_str(), "p00".to_owned())).collect();
    keys.push(first);
    let known: Vec<String> =
        pods[..7].iter().chain([&"z".to_owned()]).map(|pod| format!("ns-a/{pod}/p00")).collect();
    assert_eq!(node.list(&keys), known);
}

#[test]
fn each_pod_has_a_violation_before_any_has_a_second_one() {
    let mut node = Crowded::new();
    let mut listed = flood("ns-a", "flood", 5);
    listed.extend(["p1", "p2", "p3", "p4", "p5", "p6"].iter().flat_map(|pod| flood("ns-b", pod, 1)));
    let known = node.list(&listed);
    assert_eq!(known.iter().filter(|name| name.starts_with("ns-a/flood/")).count(), 2, "{known:?}");
    assert_eq!(known.iter().filter(|name| name.starts_with("ns-b/")).count(), 6, "{known:?}");
}

proptest! {
    /// [`Crowded::list_found`] checks that a repeated report changes nothing.
    #[test]
    fn a_violation_is_known_of_each_pod_with_a_fresh_record(
        rounds in proptest::collection::vec(
            proptest::collection::btree_map((0..4_usize, 0..2_usize, 0..12_usize), prop_oneof![Just(0_u64), 1..90_u64], 0..30),
            1..6,
        ),
    ) {
        let (namespaces, pods) = (["ns-a", "ns-b", "ns-c", "ns-d"], ["one", "two"]);
        let mut node = Crowded::new();
        for round in rounds {
            let keys: Vec<_> = round
                .iter()
                .map(|((n, p, process), ago)| (namespaces[*n], pods[*p], process.to_string(), *ago))
                .collect();
            let known = node.list_found(&keys);
            for (namespace, pod, _, _) in keys.iter().filter(|(.., ago)| *ago == 0) {
                let prefix = format!("{namespace}/{pod}/");
                prop_assert!(known.iter().any(|key| key.starts_with(&prefix)), "{prefix} in {known:?}");
            }
        }
    }
}
