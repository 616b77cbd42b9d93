//! Judgements that the watches allow without a look-up, step by step.

use super::*;

/// Watched, looked up at 10 s, and accepted with that UID.
fn watched(uid: &str) -> (State, WatchStates, Text) {
    let namespace = Text::from("ns-a");
    let states = WatchStates::default();
    let mut state = state(&[("ns-a", "n1", 5)]);
    state.watch_states = Some(states.clone());
    {
        let mut changes = states.changes();
        changes.note_in([&namespace].into_iter());
        for kind in changes::Kind::ALL {
            changes.begin(kind, at(8));
        }
        changes.begin_lookup(&namespace);
    }
    let found = NamespaceContents {
        pods: [("web".into(), Pod { node: Some("n1".into()), ..seen_pod() })].into(),
        ..NamespaceContents::default()
    };
    let result = LookupResult { namespace: namespace.clone(), asked: at(10), seen: Ok(Some(found)) };
    state.apply_lookup(result, ROUND).unwrap();
    let pod = PodRef { namespace: namespace.clone(), pod: "web".into() };
    let pods = [(pod.clone(), AccusingNodes::one(NodeName::new("n1"), at(20)))].into();
    let apps =
        [(App::new("ns-a", "app", "web"), vec![AccusedPod { pod, which: PodIdentity::Uid(uid.into()) }])]
            .into();
    state.set_requests(&LookupRequests { pods, apps, ..LookupRequests::default() }, at(20));
    for kind in changes::Kind::ALL {
        states.changes().expect(kind, "7".to_owned(), at(30));
        states.changes().reach(kind, "8");
    }
    (state, states, namespace)
}

fn seen_pod() -> Pod {
    seen(&"ns-a".into()).pods.remove("web").unwrap()
}

fn asked(state: &State) -> u64 {
    state.facts().pods.values().next().unwrap().asked.uptime().as_secs()
}

#[test]
fn a_fact_is_as_new_as_the_last_moment_up_to_which_everything_was_reported() {
    let (mut state, ..) = watched("1");
    assert!(state.confirm(at(31)));
    assert_eq!(asked(&state), 30);
    assert_eq!(due(&mut state, 31), Vec::<String>::new());
    // Silent for too long.
    assert!(!state.confirm(at(1000)));
    assert_eq!(due(&mut state, 1000), ["ns-a"]);
}

#[test]
fn where_something_has_changed_nothing_is_judged_before_another_lookup() {
    let (mut state, states, _) = watched("1");
    states.changes().note(changes::Kind::Pods, "ns-a", "web", None);
    assert!(!state.confirm(at(31)));
    assert_eq!((asked(&state), due(&mut state, 31)), (10, vec!["ns-a".to_owned()]));
}

#[test]
fn another_pod_of_the_name_that_was_accepted_needs_a_direct_read() {
    let (mut state, ..) = watched("0");
    assert!(!state.confirm(at(31)));
    assert_eq!((asked(&state), due(&mut state, 31)), (10, vec!["ns-a".to_owned()]));
    let (mut state, ..) = watched("1");
    assert!(due(&mut state, 31).is_empty(), "it is known by its UID");
}
