use proptest::prelude::*;
use proptest::sample::subsequence;

use super::*;

fn slice(text: &str) -> EndpointSlice {
    serde_saphyr::from_str(text).unwrap()
}

const BOTH: &str = "
addressType: IPv4
metadata: {name: a}
ports: [{name: api, port: 9191}, {name: other, port: 1}]
endpoints:
- {addresses: [10.0.0.1], nodeName: n1, conditions: {ready: true}}
- {addresses: [10.0.0.2], conditions: {ready: false}}
";

#[test]
fn ports_go_by_number_or_by_name_and_endpoints_that_are_not_ready_count() {
    let slice = slice(BOTH);
    let shown =
        |port: &Port| -> Vec<String> { of_slice(&slice, port).keys().map(ToString::to_string).collect() };
    assert_eq!(shown(&Port::Number(9090)), ["10.0.0.1:9090", "10.0.0.2:9090"]);
    assert_eq!(shown(&Port::Name("api".into())), ["10.0.0.1:9191", "10.0.0.2:9191"]);
    assert!(shown(&Port::Name("none".into())).is_empty());
}

#[test]
fn a_node_in_two_slices_is_one_target_and_a_new_list_replaces_the_old_one_only_when_complete() {
    let mut known = Known::nothing();
    let port = Port::Number(9090);
    let put = |name: &str, text: &str| Change::Put(name.into(), of_slice(&slice(text), &port));
    let moved = "{addressType: IPv4, metadata: {}, endpoints: [{addresses: [10.0.0.2], nodeName: n2}]}";
    let six = "{addressType: IPv6, metadata: {}, endpoints: [{addresses: ['fd00::1'], nodeName: n3}]}";
    let names = "{addressType: FQDN, metadata: {}, endpoints: [{addresses: [agent.example]}]}";
    for change in
        [Change::Begin, put("a", BOTH), put("b", moved), put("c", six), put("d", names), Change::Complete]
    {
        known.apply(change);
    }
    let shown = |known: &Known| -> Vec<String> {
        known.targets().iter().map(|t| format!("{}={}", t.address, t.node)).collect()
    };
    let all = ["10.0.0.1:9090=n1", "10.0.0.2:9090=n2", "[fd00::1]:9090=n3"];
    assert_eq!(shown(&known), all);
    known.apply(Change::Begin);
    assert_eq!(shown(&known), all, "an incomplete list changes nothing");
    known.apply(put("c", six));
    known.apply(Change::Complete);
    assert_eq!(shown(&known), all[2..]);
    known.apply(Change::Remove("c".into()));
    assert!(known.is_empty());
}

/// The targets that are known after these slices came in this order.
fn listed(slices: &[EndpointSlice]) -> Vec<String> {
    let mut known = Known::nothing();
    known.apply(Change::Begin);
    for (index, slice) in slices.iter().enumerate() {
        // The names of slices sort in this order, too.
        known.apply(Change::Put(index.to_string(), of_slice(slice, &Port::Number(9090))));
    }
    known.apply(Change::Complete);
    known.targets().iter().map(|target| format!("{}={}", target.address, target.node)).collect()
}

fn endpoint(node: &str, conditions: &str, created: &str) -> EndpointSlice {
    let node = if node.is_empty() { String::new() } else { format!("nodeName: {node}, ") };
    slice(&format!(
        "{{addressType: IPv4, metadata: {{creationTimestamp: '{created}'}}, \
         endpoints: [{{addresses: [10.0.0.1], {node}conditions: {{{conditions}}}}}]}}"
    ))
}

const OLD: &str = "2026-01-01T00:00:00Z";
const NEW: &str = "2026-01-02T00:00:00Z";

#[test]
fn of_two_endpoints_with_one_address_the_ready_one_names_the_node_then_the_newer_one() {
    for (better, worse, why) in [
        (endpoint("z-live", "ready: true", OLD), endpoint("a-gone", "ready: false", NEW), "ready"),
        (
            endpoint("z-live", "", OLD),
            endpoint("a-gone", "ready: false", NEW),
            "a missing condition means ready",
        ),
        (
            endpoint("z-live", "ready: true, serving: true", OLD),
            endpoint("a-gone", "ready: true, serving: false", NEW),
            "with publishNotReadyAddresses all are marked ready",
        ),
        (
            endpoint("z-live", "ready: false, serving: true, terminating: true", OLD),
            endpoint("a-gone", "ready: false, serving: false, terminating: true", NEW),
            "serving while it terminates",
        ),
        (endpoint("z-live", "ready: true", OLD), endpoint("", "ready: true", NEW), "named"),
        (endpoint("z-live", "ready: true", NEW), endpoint("a-gone", "ready: true", OLD), "newer"),
        (endpoint("a", "ready: true", NEW), endpoint("b", "ready: true", NEW), "the first name"),
    ] {
        let expected = format!("10.0.0.1:9090={}", better.endpoints[0].node_name.as_deref().unwrap());
        for order in [[better.clone(), worse.clone()], [worse.clone(), better.clone()]] {
            assert_eq!(listed(&order), [expected.as_str()], "{why}");
        }
        // In one slice both have the same age.
        if better.metadata.creation_timestamp == worse.metadata.creation_timestamp || why != "newer" {
            for (first, second) in [(&better, &worse), (&worse, &better)] {
                let mut both = first.clone();
                both.endpoints.extend(second.endpoints.clone());
                assert_eq!(listed(&[both]), [expected.as_str()], "{why}, in one slice");
            }
        }
    }
}

#[test]
fn an_address_that_is_listed_as_ready_and_as_not_ready_belongs_to_the_ready_endpoint() {
    let endpoints: Endpoints = serde_saphyr::from_str(
        "{metadata: {}, subsets: [
          {notReadyAddresses: [{ip: 10.0.0.1, nodeName: a-gone}], ports: [{port: 1}]},
          {addresses: [{ip: 10.0.0.1, nodeName: z-live}], notReadyAddresses: [{ip: 10.0.0.1, nodeName: b-gone}]}]}",
    )
    .unwrap();
    let mut known = Known::nothing();
    known.apply(Change::Begin);
    known.apply(Change::Put("x".into(), of_endpoints(&endpoints, &Port::Number(9090))));
    known.apply(Change::Complete);
    let targets = known.targets();
    assert_eq!((targets.len(), &*targets[0].node.0), (1, "z-live"));
}

proptest! {
    #[test]
    fn the_order_of_slices_and_endpoints_does_not_change_the_targets(
        endpoints in prop::collection::vec((0u8..3, 0u8..4, any::<[Option<bool>; 3]>(), 0i64..3), 1..8),
        cuts in subsequence((1..8).collect::<Vec<usize>>(), 0..7),
        seed in any::<prop::sample::Index>(),
    ) {
        let make = |&(address, node, [ready, serving, terminating], age): &(u8, u8, [Option<bool>; 3], i64)| {
            let mut one = slice("{addressType: IPv4, metadata: {}, endpoints: [{addresses: []}]}");
            one.metadata.creation_timestamp = (age > 0)
                .then(|| k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::from_second(age).unwrap()));
            let endpoint = &mut one.endpoints[0];
            endpoint.addresses = vec![format!("10.0.0.{address}")];
            endpoint.node_name = (node > 0).then(|| format!("n{node}"));
            endpoint.conditions = Some(EndpointConditions { ready, serving, terminating });
            one
        };
        let all: Vec<EndpointSlice> = endpoints.iter().map(make).collect();
        let expected = listed(&all);
        let mut turned = all.clone();
        turned.rotate_left(seed.index(all.len()));
        prop_assert_eq!(&listed(&turned), &expected);
        turned.reverse();
        prop_assert_eq!(&listed(&turned), &expected);
        // Slices of the same age may be merged into one.
        let mut merged: Vec<EndpointSlice> = Vec::new();
        for (index, one) in turned.into_iter().enumerate() {
            match merged.last_mut() {
                Some(last) if cuts.contains(&index) && last.metadata == one.metadata => last.endpoints.extend(one.endpoints),
                _ => merged.push(one),
            }
        }
        prop_assert_eq!(&listed(&merged), &expected);
    }
}
