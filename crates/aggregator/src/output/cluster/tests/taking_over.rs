//! What a new leader does to the gateway's objects before anything is decided.

use super::world::{ApiServer, PLUGINS};
use super::*;
use crate::output::Output;

const GATEWAY: &str = "higress-system";
const PLUGIN: &str = "procscan-violations";

async fn closed(apps: usize) -> (ApiServer, Settings) {
    let settings = Config::default().settings();
    let server = ApiServer::default();
    server.output().write(&plan(apps), &settings, &WritePermit::always(), || true).await;
    server.writes();
    (server, settings)
}

fn writer(server: &ApiServer) -> Value {
    server.get(PLUGINS, GATEWAY, PLUGIN).unwrap()["metadata"]["annotations"][WRITER].clone()
}

/// As if another program wrote it before each of the next `times` marks.
fn busy(server: &ApiServer, times: usize) -> Arc<Mutex<usize>> {
    let count = Arc::new(Mutex::new(0));
    let seen = count.clone();
    server.before(move |world, asked| {
        if asked.method == Method::PATCH {
            let mut count = seen.lock().unwrap();
            *count += 1;
            if *count <= times {
                world.edit(PLUGINS, GATEWAY, PLUGIN, |plugin| plugin["metadata"]["generation"] = 7.into());
            }
        }
        None
    });
    count
}

#[tokio::test]
async fn a_new_leader_marks_its_objects_so_that_late_writes_of_the_one_before_are_refused() {
    let (server, settings) = closed(2).await;
    let permit = WritePermit::of_term(2, "b");
    let blocked = server.output_of(&permit).take_over(&settings, &permit, true).await.unwrap();
    assert_eq!(blocked.len(), 2);
    assert_eq!(writer(&server), "b in term 2");
    assert_eq!(server.world().writes[0].manager.as_deref(), Some(FIELD_MANAGER));
    assert_eq!(server.writes().len(), 1);
    // In dry-run nothing is touched, nor is what an operator has suspended or another program has written.
    let permit = WritePermit::of_term(3, "c");
    let take_over = async |may_touch| {
        let taken = server.output_of(&permit).take_over(&settings, &permit, may_touch).await;
        taken.unwrap().len()
    };
    assert_eq!(take_over(false).await, 2);
    server.world().edit(PLUGINS, GATEWAY, PLUGIN, |plugin| {
        plugin["metadata"]["annotations"][SUSPEND] = "true".into();
    });
    let foreign =
        json!({"metadata": {}, "spec": {"url": "oci://x", "matchRules": [{"service": ["a.ns-b.svc"]}]}});
    server.world().put(PLUGINS, GATEWAY, "procscan-violations-1", foreign);
    assert_eq!(take_over(true).await, 2);
    assert_eq!((server.writes().len(), writer(&server)), (0, json!("b in term 2")));
}

#[tokio::test]
async fn an_object_that_changes_at_the_same_time_is_marked_all_the_same_but_not_for_ever() {
    let (server, settings) = closed(1).await;
    let permit = WritePermit::of_term(2, "b");
    let tried = busy(&server, TRIES);
    assert_eq!(server.output_of(&permit).take_over(&settings, &permit, true).await.unwrap().len(), 1);
    assert_eq!((writer(&server), *tried.lock().unwrap()), (json!("b in term 2"), TRIES + 1));

    let tried = busy(&server, 50);
    let permit = WritePermit::of_term(3, "c");
    let refusal = server.output_of(&permit).take_over(&settings, &permit, true).await.unwrap_err();
    assert_eq!((refusal.kind, *tried.lock().unwrap()), (RefusalKind::Conflict, TRIES + 1));
}

#[tokio::test]
async fn a_new_leader_goes_on_where_there_is_nothing_to_mark_and_waits_where_it_is_refused() {
    let permit = WritePermit::of_term(2, "b");
    let (server, settings) = closed(1).await;
    let refuse = |method: Method| {
        server.before(move |_, asked| (asked.method == method).then(|| (403, "not today".to_owned())));
    };
    for method in [Method::GET, Method::PATCH] {
        refuse(method);
        let refusal = server.output_of(&permit).take_over(&settings, &permit, true).await.unwrap_err();
        assert!(refusal.text.ends_with("not today (403)"), "{}", refusal.text);
    }
    refuse(Method::GET);
    // Not knowing what is blocked is no reason to take nothing for blocked.
    assert!(server.output().blocked(&settings).await.is_err());
    let output = Output::Cluster(Box::new(server.output()));
    assert!(output.blocked(&settings, None).await.unwrap_err().ends_with("not today (403)"));
    server.well();
    assert_eq!(output.blocked(&settings, None).await.unwrap().len(), 1);

    // Deleted between the look and the mark.
    server.before(|world, asked| {
        if asked.method == Method::PATCH {
            world.remove(PLUGINS, GATEWAY, PLUGIN);
        }
        None
    });
    assert!(server.output_of(&permit).take_over(&settings, &permit, true).await.is_ok());
    // The kind is not installed: nothing is blocked by it.
    server.well();
    server.world().unserved.insert(PLUGINS.to_owned());
    assert_eq!(server.output_of(&permit).take_over(&settings, &permit, true).await.unwrap(), []);
    assert_eq!(server.output().blocked(&settings).await.unwrap(), []);
}

/// A right that is lost while the objects are read is another replica's: its new leader answers.
#[tokio::test]
async fn a_leader_whose_term_ends_meanwhile_gets_no_answer() {
    let (server, settings) = closed(1).await;
    let permit = WritePermit::of_term(2, "b");
    let lost = permit.clone();
    server.before(move |_, asked| {
        if asked.method == Method::GET {
            lost.give_up();
        }
        None
    });
    let mut output = Output::Cluster(Box::new(server.output_of(&permit)));
    let answer = output.take_over(&settings, &permit, true, None).await;
    assert!(matches!(answer, Err(crate::output::TakeOverError::Lost)));
    server.before(|_, asked| (asked.method == Method::PATCH).then(|| (403, "not today".to_owned())));
    let answer = output.take_over(&settings, &WritePermit::of_term(2, "b"), true, None).await;
    assert!(matches!(answer, Err(crate::output::TakeOverError::Unknown(_))));
    assert_ne!(writer(&server), "b in term 2");
}

/// The leader reads its state again in the same term, and the API server serves the kind again by then. The former plan could still be
/// written.
#[tokio::test]
async fn a_term_also_ends_if_its_second_take_over_finds_what_the_first_one_missed() {
    let (server, settings) = closed(2).await;
    let permit = WritePermit::of_term(2, "b");
    let mut output = Output::Cluster(Box::new(server.output_of(&permit)));
    server.world().unserved.insert(PLUGINS.to_owned());
    for _ in 0..2 {
        assert!(output.take_over(&settings, &permit, true, None).await.is_ok());
        // Another leader has marked Incidents, so the rank of this one rises.
        permit.rank_after(["c in term 7"].into_iter()).await;
    }
    server.world().unserved.clear();
    // A take-over that fails changes nothing.
    server.before(|_, asked| (asked.method == Method::GET).then(|| (503, "not today".to_owned())));
    assert!(output.take_over(&settings, &permit, true, None).await.is_err() && permit.holds());
    server.well();
    let before = server.get(PLUGINS, GATEWAY, PLUGIN);
    let answer = output.take_over(&settings, &permit, true, None).await;
    assert!(matches!(answer, Err(crate::output::TakeOverError::Lost)));
    assert_eq!((permit.holds(), server.get(PLUGINS, GATEWAY, PLUGIN)), (false, before));
    let next = WritePermit::of_term(8, "b");
    let Ok(inherited) = output.take_over(&settings, &next, true, None).await else { panic!("refused") };
    assert_eq!((inherited.len(), next.holds()), (2, true));
}

/// The gateway's kind was not served at the take-over, so the plan lacks the Apps that the gateway's object blocks.
#[tokio::test]
async fn a_leader_does_not_overwrite_the_blocks_of_a_kind_that_was_not_served_at_its_take_over() {
    let (server, settings) = closed(2).await;
    let before = server.get(PLUGINS, GATEWAY, PLUGIN);
    let leader = async |term, is_served: bool| {
        let permit = WritePermit::of_term(term, "b");
        let mut output = server.output_of(&permit);
        server.world().unserved.extend((!is_served).then(|| PLUGINS.to_owned()));
        let inherited = output.take_over(&settings, &permit, true).await.unwrap().len();
        output.write(&plan(0), &settings, &permit, || true).await;
        server.world().unserved.clear();
        output.write(&plan(0), &settings, &permit, || true).await;
        (inherited, permit.holds())
    };
    assert_eq!(leader(2, false).await, (0, false));
    assert_eq!(server.get(PLUGINS, GATEWAY, PLUGIN), before);
    assert_eq!(leader(3, true).await, (2, true));
    assert_ne!(server.get(PLUGINS, GATEWAY, PLUGIN), before);
    // Where the kind has no objects of ours, nothing was missed.
    server.world().remove(PLUGINS, GATEWAY, PLUGIN);
    assert_eq!(leader(4, false).await, (0, true));
    assert!(server.get(PLUGINS, GATEWAY, PLUGIN).is_some());
}
