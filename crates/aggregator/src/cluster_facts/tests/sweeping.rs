//! Many accused namespaces that wait at once, at the default pace.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::budget::Budget;
use super::fake::{pod, service};
use super::stage::{Stage, wait};
use super::sweep::{Ended, Plan, Stop, Swept};
use super::*;

/// The default of `kubernetes.requests_per_second`.
const PACE: u32 = 20;

impl Stage {
    fn judged(&self) -> usize {
        self.names.iter().filter(|namespace| self.knows(namespace)).count()
    }

    /// One sweep over all namespaces.
    async fn sweep(&self, plan: Plan) -> Swept {
        let namespaces = self.names.iter().cloned().collect();
        let plan = Plan { namespaces, most: if plan.most == 0 { 1000 } else { plan.most }, ..plan };
        sweep::sweep(&plan, &crate::kubernetes::Cluster::with_client(self.server.client()), self.clock).await
    }
}

/// A Pod whose labels have this many bytes.
fn large_pod(bytes: usize) -> Value {
    let mut large = pod("1", "web", "n1");
    large["metadata"]["labels"]["large"] = "x".repeat(bytes).into();
    large
}

#[tokio::test(start_paused = true)]
async fn two_thousand_accused_namespaces_are_judged_within_a_round() {
    let stage = Stage::new(2000, PACE);
    stage.accuse(false);
    wait(60).await;
    assert_eq!(stage.judged(), 2000);
    let app = App::new("ns-01999", "app", "web");
    assert_eq!(stage.facts.borrow().apps[&app].exposure.as_ref().unwrap().services.len(), 1);
    assert_eq!(stage.status.borrow().waiting, 0);
    let lookups = stage.server.store().asked_for("/namespaces/ns-");
    assert!(lookups < 100, "{lookups}");
}

#[tokio::test(start_paused = true)]
async fn evidence_that_keeps_coming_is_judged_within_two_rounds() {
    let stage = Stage::new(2000, PACE);
    // Each node scans at a time of its own, and renews everything each minute; nothing is accepted.
    let mut requests = LookupRequests::default();
    for second in 0..180 {
        for (n, namespace) in stage.names.iter().enumerate().filter(|(n, _)| n % 60 == second % 60) {
            let pod = PodRef { namespace: namespace.clone(), pod: "web".into() };
            requests
                .pods
                .insert(pod, AccusingNodes::one(NodeName::new(format!("n{}", n % 60)), stage.clock.now()));
        }
        stage.requests.send_replace(Arc::new(requests.clone()));
        wait(1).await;
        let status = stage.status.borrow().clone();
        assert!(status.longest_wait <= Duration::from_secs(20), "{status:?}");
    }
    assert_eq!(stage.judged(), 2000);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_a_sweep_does_not_list_is_gone_only_by_a_lookup_of_its_own() {
    let stage = Stage::new(100, PACE);
    stage.server.remove("pods", "ns-00007", "web");
    stage.server.remove("namespaces", "", "ns-00008");
    let Swept { seen, ended } = stage.sweep(Plan::default()).await;
    assert!(ended.result.is_ok() && ended.heavy.is_empty(), "{ended:?}");
    assert!(seen[&Text::from("ns-00007")].absent.is_empty());
    assert!(!seen.contains_key("ns-00008"));
    stage.accuse(false);
    wait(30).await;
    assert_eq!(stage.judged(), 98);
    for (namespace, direct) in [("ns-00007", "/ns-00007/pods/web"), ("ns-00008", "/namespaces/ns-00008?")] {
        assert_eq!(stage.fact(namespace).state, PodState::Gone);
        let requests = stage.server.store().requests.clone();
        let asked = requests.iter().filter(|request| format!("{request}?").contains(direct)).count();
        assert!((1..=2).contains(&asked), "{direct}: {asked}");
    }
    let lists = stage.server.store().asked_for("/api/v1/pods?&limit=100");
    wait(60).await;
    assert_eq!(
        stage.server.store().asked_for("/api/v1/pods?&limit=100"),
        lists,
        "no sweep is sent for a Pod that does not exist"
    );
}

#[tokio::test(start_paused = true)]
async fn pods_that_are_deleted_together_are_proven_gone_each_by_its_name() {
    let mut stage = Stage::settled_at(100, PACE).await;
    stage.accuse(true);
    for namespace in &stage.names[..60] {
        stage.server.remove("pods", namespace, "web");
    }
    wait(60).await;
    let mut gone = BTreeSet::new();
    while let Ok(pod) = stage.gone.try_recv() {
        gone.insert(pod.pod.namespace);
    }
    assert_eq!(gone.len(), 60);
    wait(120).await;
    let proven = stage.facts.borrow().apps.values().filter(|fact| fact.gone).count();
    assert_eq!(proven, 60);
    let sweeps = stage.server.store().asked_for("/api/v1/pods?&limit=100");
    assert!(sweeps > 1, "{sweeps}");
}

#[tokio::test(start_paused = true)]
async fn a_sweep_that_takes_more_than_lookups_one_by_one_is_given_up_and_not_tried_again_soon() {
    let stage = Stage::new(50, PACE);
    for n in 0..4000 {
        stage.server.put("pods", "ns-other", &format!("web-{n}"), pod("1", "web", "n1"));
    }
    let Swept { seen, ended } = stage.sweep(Plan { most: 10, ..Plan::default() }).await;
    assert!(seen.is_empty() && matches!(ended.result, Err(Stop::Costly)), "{ended:?}");
    assert!((10..16).contains(&ended.requests), "{ended:?}");
    let mut sweeps = super::sweeps::Sweeps::default();
    let waiting = || stage.names.iter().map(|name| (false, at(1), name)).collect::<Vec<_>>();
    assert_eq!(sweeps.plan(waiting(), false, at(1)).unwrap().most, 150);
    sweeps.end(super::sweep::Ended { requests: 151, ..ended }, at(1), at(1));
    assert!(sweeps.plan(waiting(), false, at(500)).is_none());
    assert!(sweeps.plan(waiting(), false, at(601)).is_some(), "the cluster may be smaller by now");
}

#[tokio::test(start_paused = true)]
async fn a_namespace_with_large_objects_delays_no_other_and_is_looked_up_by_itself() {
    let stage = Stage::new(200, PACE);
    for n in 0..160 {
        // Labels, which are held, and other fields, which are only read.
        stage.server.put("pods", "ns-00100", &format!("large-{n}"), large_pod(12 << 10));
    }
    for n in 0..80 {
        let mut large = service("web");
        large["metadata"]["annotations"] = json!({"large": "x".repeat(1 << 20)});
        stage.server.put("services", "ns-other", &format!("large-{n}"), large);
    }
    let heavy: BTreeSet<Text> = ["ns-00100".into(), "ns-other".into()].into();
    let Swept { seen, ended } = stage.sweep(Plan::default()).await;
    assert!(ended.result.is_ok() && ended.heavy.keys().eq(&heavy), "{ended:?}");
    assert_eq!((seen.len(), seen.contains_key("ns-00100")), (199, false));
    stage.server.store().requests.clear();
    let Swept { seen, ended } = stage.sweep(Plan { without: heavy, ..Plan::default() }).await;
    assert!(ended.heavy.is_empty() && seen.len() == 199 && ended.requests <= 6, "{ended:?}");
    stage.server.store().requests.clear();
    stage.accuse(false);
    wait(60).await;
    assert_eq!(stage.judged(), 200, "{:?}", stage.status.borrow());
    let lookups = stage.server.store().asked_for("/namespaces/ns-00100/services");
    assert!((1..=2).contains(&lookups), "{lookups}");
}

#[tokio::test(start_paused = true)]
async fn namespaces_that_exceed_the_memory_limit_together_are_looked_up_in_parts() {
    let stage = Stage::new(100, 200);
    for name in &stage.names {
        for n in 0..9 {
            stage.server.put("pods", name, &format!("large-{n}"), large_pod(40 << 10));
        }
    }
    let Swept { seen, ended } = stage.sweep(Plan::default()).await;
    assert!(
        seen.is_empty() && ended.heavy.is_empty() && matches!(ended.result, Err(Stop::Full)),
        "{ended:?}"
    );
    stage.accuse(false);
    wait(60).await;
    assert_eq!(stage.judged(), 100);
    let mut sweeps = super::sweeps::Sweeps::default();
    let waiting = || stage.names.iter().map(|name| (false, at(1), name)).collect::<Vec<_>>();
    let plan = sweeps.plan(waiting(), false, at(1)).unwrap();
    sweeps.begin(&plan);
    assert!(sweeps.plan(waiting(), false, at(1)).is_none(), "one at a time");
    sweeps.end(ended, at(1), at(1));
    assert_eq!(sweeps.plan(waiting(), false, at(9)).unwrap().namespaces.len(), 50);
}

#[tokio::test(start_paused = true)]
async fn a_namespace_that_changes_during_a_sweep_is_looked_up_again() {
    let stage = Stage::new(600, 4);
    stage.accuse(true);
    // The watches have begun, and a running sweep has already read the Services.
    wait(25).await;
    let last = || stage.server.store().requests.last().cloned().unwrap();
    while !last().starts_with("/api/v1/services?&limit=500") {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    stage.server.put("services", "ns-00000", "web-2", service("web"));
    wait(30).await;
    assert_eq!(stage.services("ns-00000"), 2);
}

#[tokio::test(start_paused = true)]
async fn a_sweep_of_an_earlier_term_counts_for_nothing() {
    let stage = Stage::new(600, 2);
    stage.accuse(false);
    wait(2).await;
    let mut requests = LookupRequests::clone(&stage.requests.borrow());
    requests.epoch += 1;
    stage.requests.send_replace(Arc::new(requests));
    let begun = stage.clock.now();
    wait(30).await;
    assert_eq!(stage.facts.borrow().epoch, 1);
    assert_eq!(stage.judged(), 600);
    assert!(stage.fact("ns-00000").asked.uptime() >= begun.uptime());
}

#[tokio::test(start_paused = true)]
async fn where_a_sweep_is_refused_each_namespace_is_looked_up_by_itself() {
    let stage = Stage::new(60, PACE);
    stage.server.store().refused = [("/api/v1/pods?".to_owned(), 403)].into();
    stage.accuse(false);
    wait(20).await;
    assert_eq!((stage.judged(), stage.status.borrow().error.clone()), (60, None));
}

#[tokio::test(start_paused = true)]
async fn where_routes_matter_a_sweep_knows_them() {
    let stage = Stage::new(100, PACE);
    stage.server.store().refused = [("httproutes".to_owned(), 404)].into();
    let path = json!({"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "web"}}});
    let ingress = json!({"metadata": {}, "spec": {"rules": [{"http": {"paths": [path]}}]}});
    stage.server.put("ingresses", "ns-00000", "in", ingress);
    let Swept { seen, ended } = stage.sweep(Plan { with_routes: true, ..Plan::default() }).await;
    assert!(ended.result.is_ok(), "{ended:?}");
    let routes = |namespace: &str| seen[&Text::from(namespace)].routes.clone();
    assert_eq!(routes("ns-00000").unwrap().ingresses[&Text::from("web")], ["in".into()].into());
    assert_eq!(routes("ns-00001"), Some(super::lookup::Routes::default()));
    let Swept { seen, .. } = stage.sweep(Plan::default()).await;
    assert_eq!(seen[&Text::from("ns-00000")].routes, None);
}

#[tokio::test(start_paused = true)]
async fn large_objects_count_for_their_own_namespace_and_not_for_its_neighbours() {
    let stage = Stage::new(100, PACE);
    // On the first page: 40 large Pods, and 49 small ones of the next namespace.
    for n in 0..40 {
        let mut large = pod("1", "web", "n1");
        large["metadata"]["annotations"] = json!({"large": "x".repeat(1 << 20)});
        stage.server.put("pods", "ns-00010", &format!("large-{n:03}"), large);
    }
    for n in 0..200 {
        stage.server.put("pods", "ns-00011", &format!("small-{n:03}"), pod("1", "web", "n1"));
    }
    let Swept { seen, ended } = stage.sweep(Plan::default()).await;
    assert!(ended.result.is_ok(), "{ended:?}");
    let heavy: Vec<&str> = ended.heavy.keys().map(AsRef::as_ref).collect();
    assert_eq!(heavy, ["ns-00010"]);
    assert_eq!(seen[&Text::from("ns-00011")].pods.len(), 201);
}

#[test]
fn all_heavy_namespaces_are_looked_up_one_by_one_and_the_heaviest_are_not_listed() {
    let names: Vec<Text> = (0..130).map(|n| format!("ns-{n:03}").into()).collect();
    let mut sweeps = super::sweeps::Sweeps::default();
    let heavy = names[..80].iter().enumerate().map(|(n, name)| (name.clone(), n));
    let ended = Ended { requests: 1, heavy: heavy.collect(), result: Ok(()) };
    sweeps.end(ended, at(1), at(1));
    assert_eq!(sweeps.heavy(), 80);
    let waiting = names.iter().map(|name| (false, at(1), name)).collect();
    let plan = sweeps.plan(waiting, false, at(10)).unwrap();
    assert!(plan.namespaces.iter().eq(&names[80..]), "{:?}", plan.namespaces);
    assert!(plan.without.iter().eq(&names[30..80]), "{:?}", plan.without);
}

#[tokio::test(start_paused = true)]
async fn a_sweep_reads_no_more_per_minute_than_its_budget() {
    let stage = Stage::new(100, PACE);
    for n in 0..1000 {
        let mut usual = pod("1", "web", "n1");
        usual["metadata"]["annotations"] = json!({"usual": "x".repeat(10 << 10)});
        stage.server.put("pods", "ns-other", &format!("web-{n:04}"), usual);
    }
    let begun = stage.clock.now();
    let budget = Budget::of(2 << 20);
    let plan = Plan { budget: budget.clone(), ..Plan::default() };
    let Swept { seen, ended } = stage.sweep(plan).await;
    assert!(ended.result.is_ok() && seen.len() == 100, "{ended:?}");
    // Two pages of 5 MB: the second waits until the budget of 2 MiB per minute allows it.
    let took = stage.clock.now().since(begun);
    assert!((80..120).contains(&took.as_secs()), "{took:?}");
    assert!(budget.wait(stage.clock.now()) > Duration::ZERO);
}
