//! The rules that the processes of one Pod match.

use super::*;

/// The hits of one rule may be exempted, and must not hide the hits of another.
#[test]
fn the_rules_in_a_pod_take_turns() {
    let mut node = Crowded::new();
    node.limit_pods(4);
    let exempted = flood("ns-a", "web", 6);
    node.list(&exempted);
    let mut records: Vec<Record> =
        exempted.iter().map(|(namespace, pod, process)| hit(namespace, pod, process, "")).collect();
    records.push(hit("ns-a", "web", "xmrig", "^xmrig$"));
    let mut expected = names("ns-a", "web", "p", 0..3);
    expected.push("ns-a/web/xmrig".to_owned());
    assert_eq!(node.take_in(records), expected);
}

/// An exempted process does not hide another process of its Pod, even if other tenants have a Pod for each place.
#[test]
fn the_first_violation_of_a_rule_has_room_before_other_tenants_take_all() {
    let mut node = Crowded::new();
    let exempted = || hit("ns-v", "web", "editor", "editor");
    let known = node.take_in(vec![exempted()]);
    assert_eq!(known, ["ns-v/web/editor"]);
    let others = || (0..8).map(|n| hit("ns-h", &format!("pod-{n}"), "xmrig", "xmrig"));
    let known = node.take_in(others().chain([exempted(), hit("ns-v", "web", "xmrig", "xmrig")]).collect());
    assert_eq!(known.iter().filter(|name| name.starts_with("ns-h/")).count(), 6);
    assert!(known.contains(&"ns-v/web/editor".to_owned()) && known.contains(&"ns-v/web/xmrig".to_owned()));
    // A second name under the same rule has no such place.
    let second = hit("ns-v", "web", "miner", "xmrig");
    assert_eq!(node.take_in(others().chain([exempted(), second]).collect()).len(), 8);
    assert!(!node.known(at(node.minute)).iter().any(|(name, _)| name == "ns-v/web/miner"));
}

/// A process may match another rule than before.
#[test]
fn a_known_violation_counts_under_the_rule_of_the_answer_at_hand() {
    let mut node = Crowded::new();
    node.limit_pods(4);
    let hits = |rules: &[(&str, &str)]| {
        rules.iter().map(|(process, rule)| hit("ns-a", "web", process, rule)).collect::<Vec<_>>()
    };
    node.take_in(hits(&[("a", "r1"), ("b", "r1"), ("c", "r1"), ("d", "r1")]));
    // `d` is the first of its rule now, so `c` makes room for `e`, and the same answer again changes nothing.
    let known = node.take_in(hits(&[("a", "r1"), ("b", "r1"), ("c", "r1"), ("d", "r2"), ("e", "r2")]));
    assert_eq!(known, ["ns-a/web/a", "ns-a/web/b", "ns-a/web/d", "ns-a/web/e"]);
}
