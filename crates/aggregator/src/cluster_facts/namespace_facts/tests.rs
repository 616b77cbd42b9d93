use jiff::Timestamp;
use procscan_core::identity::Labels;

use procscan_core::policy::Lineage;

use super::*;

const PATIENCE: Duration = Duration::from_mins(1);

fn at(seconds: u64) -> Moment {
    Moment::new(Duration::from_secs(seconds), Timestamp::UNIX_EPOCH)
}

fn labels(app: &str) -> Labels {
    [("app".to_owned(), app.to_owned())].into()
}

fn pod(uid: &str, app: &str, has_ended: bool) -> Pod {
    Pod {
        uid: uid.into(),
        created: Some(at(0)),
        node: Some("n1".into()),
        host_ips: Vec::new(),
        labels: labels(app),
        app: App::new("ns-a", "app", app),
        lineage: Lineage::default(),
        has_ended,
        is_pending: false,
    }
}

fn seen(pods: &[(&str, Pod)], absent: &[&str]) -> NamespaceContents {
    NamespaceContents {
        pods: pods.iter().map(|(name, pod)| ((*name).into(), pod.clone())).collect(),
        absent: absent.iter().map(|name| (*name).into()).collect(),
        services: vec![Service { name: "web-x7k2".into(), selector: labels("web"), ..Service::default() }],
        ..NamespaceContents::default()
    }
}

fn requested() -> RequestedFacts {
    accused(PodIdentity::Unknown)
}

/// Wanted is an App whose Pod of that name was accused.
fn accused(which: PodIdentity) -> RequestedFacts {
    let pod = ("web-0".into(), which);
    RequestedFacts { apps: [(app(), [pod].into())].into(), pods: ["web-0".into()].into() }
}

fn app() -> App {
    App::new("ns-a", "app", "web")
}

fn update(
    facts: &mut NamespaceFacts,
    seen: impl Into<Option<NamespaceContents>>,
    seconds: u64,
) -> Vec<Moment> {
    facts
        .update(&"ns-a".into(), &requested(), seen.into(), at(seconds), PATIENCE)
        .into_iter()
        .map(|(_, until)| until)
        .collect()
}

#[test]
fn an_app_is_gone_only_when_none_of_its_pods_was_there_for_a_while() {
    let mut facts = NamespaceFacts::default();
    update(&mut facts, seen(&[("web-0", pod("1", "web", false))], &[]), 0);
    let exposure = facts.apps[&app()].exposure.clone().unwrap();
    assert_eq!(exposure, Exposure::plain(["web-x7k2.ns-a.svc".into()]));
    assert_eq!(update(&mut facts, seen(&[], &["web-0"]), 10), [at(10)]);
    assert_eq!(facts.apps[&app()], AppFact::default(), "it may be coming back");
    update(&mut facts, seen(&[("web-1", pod("2", "web", false))], &["web-0"]), 40);
    update(&mut facts, seen(&[], &["web-0"]), 60);
    update(&mut facts, seen(&[], &["web-0"]), 119);
    assert!(!facts.apps[&app()].gone, "the wait begins anew");
    update(&mut facts, seen(&[], &["web-0"]), 120);
    assert!(facts.apps[&app()].gone);
}

#[test]
fn the_services_of_an_app_are_known_with_its_first_accusation() {
    let mut facts = NamespaceFacts::default();
    let requested = RequestedFacts { pods: ["web-0".into()].into(), apps: BTreeMap::new() };
    facts.update(
        &"ns-a".into(),
        &requested,
        Some(seen(&[("web-0", pod("1", "web", false))], &[])),
        at(0),
        PATIENCE,
    );
    assert_eq!(facts.apps[&app()].exposure, Some(Exposure::plain(["web-x7k2.ns-a.svc".into()])));
}

#[test]
fn neither_a_failure_nor_a_listing_without_a_direct_lookup_proves_anything_gone() {
    let mut facts = NamespaceFacts::default();
    update(&mut facts, seen(&[("web-0", pod("1", "web", false))], &[]), 0);
    for seconds in [60, 120, 180] {
        let before = facts.pods["web-0"].clone();
        assert!(update(&mut facts, seen(&[], &[]), seconds).is_empty());
        assert_eq!(facts.pods["web-0"], before, "as old as it was");
        assert!(!facts.apps[&app()].gone);
        facts.set_unreadable(&requested(), "503", at(seconds + 30));
        assert!(matches!(facts.pods["web-0"].state, PodState::Unreadable(_)));
        assert_eq!(facts.apps[&app()], AppFact::default());
    }
}

#[test]
fn more_pods_than_one_lookup_gets_to_take_turns_and_a_proof_that_has_begun_is_finished_first() {
    let names = ["a", "b", "web-0"].map(Text::from);
    let requested = RequestedFacts {
        pods: names.clone().into(),
        apps: [(app(), [(names[2].clone(), PodIdentity::Unknown)].into())].into(),
    };
    let mut facts = NamespaceFacts::default();
    let urgent =
        |facts: &NamespaceFacts| facts.urgent(&requested).iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(urgent(&facts), ["a", "b", "web-0"]);
    let look_up = |facts: &mut NamespaceFacts, absent: &[&str], seconds| {
        facts.update(&"ns-a".into(), &requested, Some(seen(&[], absent)), at(seconds), PATIENCE);
    };
    look_up(&mut facts, &["a"], 10);
    assert_eq!(urgent(&facts), ["b", "web-0", "a"]);
    look_up(&mut facts, &["b"], 20);
    assert_eq!(urgent(&facts), ["web-0", "a", "b"]);
    look_up(&mut facts, &["web-0"], 30);
    assert_eq!(urgent(&facts), ["web-0", "a", "b"], "it may be proven gone with the next look-up");
    look_up(&mut facts, &["web-0"], 90);
    assert!(facts.apps[&app()].gone);
}

#[test]
fn a_pod_that_ended_or_is_another_object_now_is_gone() {
    let mut facts = NamespaceFacts::default();
    update(&mut facts, seen(&[("web-0", pod("1", "web", false))], &[]), 0);
    // Evidence from after the old Pod was last seen may be of the new one.
    assert_eq!(update(&mut facts, seen(&[("web-0", pod("2", "web", false))], &[]), 50), [at(0)]);
    assert_eq!(update(&mut facts, seen(&[("web-0", pod("2", "web", false))], &[]), 60), []);
    assert_eq!(update(&mut facts, seen(&[("web-0", pod("2", "web", true))], &[]), 70), [at(70)]);
    assert_eq!(facts.pods["web-0"].state, PodState::Gone);
    assert_eq!(update(&mut facts, None, 80), [], "returned once");
    // Believed before the start.
    let mut facts = NamespaceFacts::default();
    assert_eq!(update(&mut facts, None, 5), [at(5)]);
    assert_eq!(update(&mut facts, None, 80), [], "returned once");
    // No accusation of it was ever accepted.
    let requested = RequestedFacts { pods: ["web-0".into()].into(), apps: BTreeMap::new() };
    assert!(NamespaceFacts::default().update(&"ns-a".into(), &requested, None, at(5), PATIENCE).is_empty());
}

/// The facts of the App after its Pod was accused, and two look-ups found a Pod of UID 1 of another App there. The Services that
/// select no Pod are left out.
fn known(which: &PodIdentity) -> AppFact {
    let mut facts = NamespaceFacts::default();
    for seconds in [0, 600] {
        let mut found = seen(&[("web-0", pod("1", "other", false))], &[]);
        let (name, selector) = ("other-a1b2".into(), labels("other"));
        found.services.push(Service { name, selector, ..Service::default() });
        facts.update(&"ns-a".into(), &accused(which.clone()), Some(found), at(seconds), PATIENCE);
    }
    AppFact { selecting_none: Arc::default(), ..facts.apps[&app()].clone() }
}

#[test]
fn an_accused_pod_under_another_label_still_stands_for_its_app() {
    let exposure = Some(Exposure::plain(["other-a1b2.ns-a.svc".into()]));
    assert_eq!(
        known(&PodIdentity::Uid("1".into())),
        AppFact { exposure, ..AppFact::default() },
        "it is still that Pod that is reached"
    );
}

#[test]
fn another_pod_of_the_same_name_is_no_pod_of_the_app() {
    assert_eq!(known(&PodIdentity::Uid("0".into())), AppFact { gone: true, ..AppFact::default() });
}

#[test]
fn a_pod_of_the_accused_name_opens_and_closes_nothing_if_the_accused_uid_is_unknown() {
    assert_eq!(known(&PodIdentity::Unknown), AppFact::default());
}

/// The App's own Pod and others, behind a Service for all of them and others for some.
fn together(pods: &[(&str, Pod)]) -> NamespaceContents {
    let mut found = seen(pods, &[]);
    for pod in found.pods.values_mut() {
        pod.labels.insert("tier".to_owned(), "front".to_owned());
    }
    let all: Labels = [("tier".to_owned(), "front".to_owned())].into();
    for (name, selector) in [("a-all", all), ("blog-x", labels("blog"))] {
        found.services.push(Service { name: name.into(), selector, ..Service::default() });
    }
    let manager = "cloud.sealos.io/app-deploy-manager".to_owned();
    let by_hand = [(manager, "web".to_owned())].into();
    found.services.push(Service { name: "by-hand".into(), labels: by_hand, ..Service::default() });
    found
}

/// A shared Service, the other Apps that are named, and how many more there are.
type Shared = (String, Vec<String>, usize);

fn shared(found: NamespaceContents, which: PodIdentity) -> (Vec<String>, Vec<Shared>) {
    let mut facts = NamespaceFacts::default();
    facts.update(&"ns-a".into(), &accused(which), Some(found), at(0), PATIENCE);
    let AppFact { exposure, shared, .. } = facts.apps[&app()].clone();
    let text = |text: &Text| text.to_string();
    let names = |others: &OtherApps| others.named.iter().map(|app| text(&app.name)).collect();
    let shared = shared.iter().map(|it| (text(&it.service), names(&it.others), it.others.more));
    (exposure.unwrap().services.iter().map(text).collect(), shared.collect())
}

/// The Services that select no running Pod, where there is a Pod of the App and that one of another App.
fn selecting_none(other: Pod) -> Vec<String> {
    let pods = [("web-0", pod("1", "web", false)), ("blog-0", other)];
    let mut facts = NamespaceFacts::default();
    let found = Some(together(&pods));
    facts.update(&"ns-a".into(), &accused(PodIdentity::Uid("1".into())), found, at(0), PATIENCE);
    facts.apps[&app()].selecting_none.iter().map(ToString::to_string).collect()
}

#[test]
fn services_that_select_no_running_pod_are_known() {
    let other = |has_ended, is_pending| Pod { is_pending, ..pod("5", "blog", has_ended) };
    assert_eq!(selecting_none(other(false, false)), ["by-hand.ns-a.svc"]);
    assert_eq!(selecting_none(other(true, false)), ["blog-x.ns-a.svc", "by-hand.ns-a.svc"]);
    // It waits for a node, or for its image: no traffic reaches it.
    assert_eq!(selecting_none(other(false, true)), ["blog-x.ns-a.svc", "by-hand.ns-a.svc"]);
}

/// Any Pod of the App may start in a moment.
#[test]
fn a_service_of_the_apps_own_pod_that_has_not_started_exposes_it() {
    let mut facts = NamespaceFacts::default();
    let own = Pod { is_pending: true, ..pod("1", "web", false) };
    update(&mut facts, seen(&[("web-0", own)], &[]), 0);
    let exposure = facts.apps[&app()].exposure.clone();
    assert_eq!(exposure, Some(Exposure::plain(["web-x7k2.ns-a.svc".into()])));
}

#[test]
fn a_service_of_several_apps_is_known_with_the_others_that_run() {
    let mut ended = pod("4", "old", true);
    ended.app = App::new("ns-a", "app", "old");
    let pods = [
        ("web-0", pod("1", "web", false)),
        ("web-1", pod("2", "web", false)),
        ("shop-0", pod("3", "shop", false)),
        ("old-0", ended),
        ("blog-0", pod("5", "blog", false)),
        ("blog-1", pod("6", "blog", false)),
    ];
    let (services, others) = shared(together(&pods), PodIdentity::Uid("1".into()));
    assert_eq!(services, ["a-all.ns-a.svc", "by-hand.ns-a.svc", "web-x7k2.ns-a.svc"]);
    assert_eq!(others, [("a-all.ns-a.svc".into(), vec!["blog".into(), "shop".into()], 0)]);
    let (_, alone) = shared(together(&pods[..2]), PodIdentity::Uid("1".into()));
    assert_eq!(alone, []);
}

#[test]
fn an_accused_pod_under_another_label_is_no_other_app() {
    let pods = [("web-0", pod("1", "mask", false)), ("web-1", pod("2", "web", false))];
    assert_eq!(shared(together(&pods), PodIdentity::Uid("1".into())).1, []);
    let (_, others) = shared(together(&pods), PodIdentity::Uid("0".into()));
    assert_eq!(others, [("a-all.ns-a.svc".into(), vec!["mask".into()], 0)], "another Pod of its name is");
}

#[test]
fn only_some_of_the_many_apps_behind_one_service_are_named() {
    let names: Vec<String> = (0..30).map(|n| format!("app-{n:02}")).collect();
    let mut pods = vec![("web-0", pod("1", "web", false))];
    pods.extend(names.iter().map(|name| (name.as_str(), pod(name, name, false))));
    let (_, others) = shared(together(&pods), PodIdentity::Uid("1".into()));
    assert_eq!((others[0].1.len(), others[0].2), (20, 10));
}

#[test]
fn where_accusations_are_not_verified_a_pods_name_is_enough() {
    let exposure = Some(Exposure::plain(["other-a1b2.ns-a.svc".into()]));
    assert_eq!(known(&PodIdentity::Any), AppFact { exposure, ..AppFact::default() });
}

#[test]
fn an_app_with_one_of_several_accused_pods_left_is_not_gone() {
    let two = [("web-0", "1"), ("web-1", "2")].map(|(name, uid)| (name.into(), PodIdentity::Uid(uid.into())));
    let requested =
        RequestedFacts { apps: [(app(), two.into_iter().collect())].into(), pods: BTreeSet::new() };
    let mut facts = NamespaceFacts::default();
    let mut is_gone = |pods: &[(&str, Pod)], absent: &[&str], seconds| {
        facts.update(&"ns-a".into(), &requested, Some(seen(pods, absent)), at(seconds), PATIENCE);
        facts.apps[&app()].gone
    };
    let other = |uid| pod(uid, "other", false);
    for seconds in [0, 600] {
        assert!(!is_gone(&[("web-0", other("9")), ("web-1", other("2"))], &[], seconds));
        assert!(!is_gone(&[("web-0", other("9"))], &[], seconds), "not looked for");
    }
    assert!(!is_gone(&[("web-0", other("9"))], &["web-1"], 700));
    assert!(is_gone(&[("web-0", other("9"))], &["web-1"], 760));
}

#[test]
fn with_routes_ingresses_are_named_and_services_reached_otherwise_are_listed_apart() {
    let mut found = seen(&[("web-0", pod("1", "web", false))], &[]);
    found.services.push(Service { name: "web-2".into(), selector: labels("web"), ..Service::default() });
    found.routes = Some(super::super::lookup::Routes {
        ingresses: [("web-x7k2".into(), ["in".into()].into())].into(),
        otherwise: ["web-2".into(), "stranger".into()].into(),
    });
    let mut facts = NamespaceFacts::default();
    update(&mut facts, found, 0);
    let exposure = facts.apps[&app()].exposure.clone().unwrap();
    let texts = |texts: &[Text]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(texts(&exposure.services), ["web-2.ns-a.svc", "web-x7k2.ns-a.svc"]);
    assert_eq!(texts(&exposure.ingresses), ["ns-a/in"]);
    assert_eq!(texts(&exposure.otherwise), ["web-2.ns-a.svc"]);
}
