//! Fresh evidence, old evidence, and records that were never believed.

use super::*;

#[test]
fn fresh_and_live_violations_stay_before_those_that_have_ended() {
    let mut node = Crowded::new();
    let known = |name: &str, ago| ("ns-a", "q", name.to_owned(), ago);
    // The record was found long ago, so it was never believed.
    node.list_found(&[known("x1", 600)]);
    let mut keys: Vec<_> = (0..12).map(|n| ("ns-a", "p", format!("y{n:02}"), 0)).collect();
    keys.push(known("x1", 0));
    let listed = node.list_found(&keys);
    assert!(listed.contains(&"ns-a/q/x1".to_owned()), "{listed:?}");
    // Pods that are gone make room for a new one.
    let pod = |n| format!("gone{n}");
    let names: Vec<String> = (0..8).map(pod).collect();
    let mut node = Crowded::new();
    node.list(&names.iter().map(|pod| ("ns-a", pod.as_str(), "x".to_owned())).collect::<Vec<_>>());
    for pod in &names {
        node.ledger.pod_gone(&PodRef { namespace: "ns-a".into(), pod: pod.as_str().into() }, at(node.minute));
    }
    // Hours later the agent goes on listing what it found in the first minute.
    node.minute = 600;
    let mut keys: Vec<_> = names.iter().map(|pod| ("ns-a", pod.as_str(), "x".to_owned(), 600)).collect();
    keys.push(("ns-a", "new", "x".to_owned(), 0));
    assert!(node.list_found(&keys).contains(&"ns-a/new/x".to_owned()));
}

#[test]
fn unlisted_violations_that_can_be_judged_anew_make_room_first_and_no_more_than_needed() {
    let mut node = Crowded::new();
    // The records were found ten hours before the first answer, so they were never believed.
    let old = |n: usize, minute: u64| ("ns-a", "old", format!("p{n:02}"), 600 + minute);
    node.list_found(&(0..7).map(|n| old(n, 1)).collect::<Vec<_>>());
    node.list_found(&(1..7).map(|n| old(n, 2)).collect::<Vec<_>>());
    let mut expected = names("ns-a", "new", "p", 0..2);
    expected.extend(names("ns-a", "old", "p", 1..7));
    assert_eq!(
        node.list(&flood("ns-a", "new", 2)),
        expected,
        "p00 has been missing from the answers for longest"
    );
    // The old records make room even if their namespace has less than its share.
    expected.truncate(2);
    expected.extend(names("ns-b", "web", "p", 0..6));
    assert_eq!(node.list(&flood("ns-b", "web", 8)), expected);
}

#[test]
fn old_violations_have_room_before_records_that_were_never_believed() {
    let mut node = Crowded::new();
    let unbelieved = |ago| (0..4).map(move |n| ("ns-a", "pod", format!("x{n:02}"), ago)).collect::<Vec<_>>();
    node.list_found(&unbelieved(600));
    node.let_grow_old(&flood("ns-a", "pod", 4), &unbelieved(601));
    let mut keys = unbelieved(900);
    keys.extend((0..4).map(|n| ("ns-a", "pod", format!("q{n:02}"), 0)));
    let expected = ["p", "q"].map(|name| names("ns-a", "pod", name, 0..4)).concat();
    assert_eq!(node.list_found(&keys), expected);
}

#[test]
fn new_records_of_an_answer_without_a_date_do_not_push_out_old_violations() {
    let mut node = Crowded::new();
    node.let_grow_old(&flood("ns-a", "pod", 8), &[]);
    let keys: Vec<_> = (0..8).map(|n| ("ns-a", "pod", format!("q{n:02}"), 0)).collect();
    assert_eq!(node.answer(&keys, false), names("ns-a", "pod", "p", 0..8));
    assert_eq!(node.answer(&keys, true), names("ns-a", "pod", "q", 0..8), "these are fresh");
}

#[test]
fn live_violations_have_room_before_old_ones_that_an_answer_without_a_date_lists_again() {
    let mut node = Crowded::new();
    node.let_grow_old(&flood("ns-a", "pod", 4), &[]);
    let live = |minute: u64| (0..4).map(move |n| ("ns-a", "pod", format!("q{n:02}"), minute));
    node.list_found(&live(0).collect::<Vec<_>>());
    // The old violations were found in the fifth minute, and this is minute 302.
    let old = (0..4).map(|n| ("ns-a", "pod", format!("p{n:02}"), 297));
    let other = (0..8).map(|n| ("ns-b", "web", format!("p{n:02}"), 0));
    let known = node.answer(&old.chain(live(1)).chain(other).collect::<Vec<_>>(), false);
    // Each Pod has one. Further violations of the other Pod can't be judged yet, so live ones have room before them.
    let old = names("ns-a", "pod", "p", 0..1);
    assert_eq!(known, [old, names("ns-a", "pod", "q", 0..4), names("ns-b", "web", "p", 0..3)].concat());
}

#[test]
fn a_violation_that_was_found_again_stays_even_if_that_is_some_time_ago() {
    let mut node = Crowded::new();
    node.let_grow_old(&flood("ns-a", "pod", 8), &[]);
    let mut keys = vec![("ns-a", "pod", "p07".to_owned(), 60)];
    keys.extend((0..8).map(|n| ("ns-a", "pod", format!("q{n:02}"), 0)));
    let expected = [names("ns-a", "pod", "p", 7..8), names("ns-a", "pod", "q", 0..7)].concat();
    assert_eq!(node.list_found(&keys), expected);
}

#[test]
fn violations_that_were_seen_first_have_room_before_later_ones() {
    let mut node = Crowded::new();
    let first = ("ns-a", "pod", "z".to_owned());
    node.list(std::slice::from_ref(&first));
    node.list(&[flood("ns-a", "pod", 7), vec![first.clone()]].concat());
    let known = node.list(&[first, ("ns-a", "web", "p00".to_owned())]);
    let mut expected = names("ns-a", "pod", "p", 0..6);
    expected.extend(["ns-a/pod/z".to_owned(), "ns-a/web/p00".to_owned()]);
    assert_eq!(known, expected);
}

/// The answer lists no record of ns-a. So the ledger leaves out no record of the answer when it forgets violations of
/// ns-a.
#[test]
fn forgotten_violations_that_are_not_listed_leave_no_record_out_of_the_answer() {
    let mut node = Crowded::new();
    node.let_grow_old(&flood("ns-a", "pod", 8), &[]);
    let known = node.list(&flood("ns-b", "web", 7));
    assert_eq!(known, [names("ns-a", "pod", "p", 0..1), names("ns-b", "web", "p", 0..7)].concat());
    assert_eq!(node.ledger.take_node_change(), None);
}
