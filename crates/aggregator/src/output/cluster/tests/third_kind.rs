//! A failure of one object affects no other kind, and only the object's own tenant.

use procscan_core::plan::{Notice, NoticePhase};

use super::kinds::{HOMES, Stage, notice, settings};
use super::world::{ApiServer, MESSAGES, POLICIES};
use super::*;
use crate::output::app_policies::{NAMESPACE, place};

fn notice_of(app: &App, phase: NoticePhase) -> Arc<Notice> {
    Arc::new(Notice { app: app.clone(), phase, ..(*notice()).clone() })
}

/// Two tenants with a blocked App and a notice each.
fn two_tenants() -> (Plan, [App; 2]) {
    let mut both = plan(2);
    let other = App::new("ns-b", "app", "shop");
    let block = Arc::make_mut(&mut both.blocks[1]);
    (block.app, block.exposure) = (other.clone(), Arc::new(Exposure::plain(["shop.ns-b.svc".into()])));
    let apps = [both.blocks[0].app.clone(), other];
    both.notices = apps.iter().map(|app| notice_of(app, NoticePhase::Blocked)).collect();
    (both, apps)
}

fn has_message(server: &ApiServer, app: &App) -> bool {
    server.get(MESSAGES, &app.namespace, &notification::name(app)).is_some()
}

/// A policy that can't be deleted, written or changed concerns its own tenant only.
#[tokio::test]
async fn a_tenant_is_notified_when_its_own_blocks_are_written() {
    for home in HOMES {
        let (both, [app, other]) = two_tenants();
        // A damaged policy that has left the plan.
        let mut stage = Stage::begin(home).await;
        stage.write(&plan(3)).await;
        stage.edit(2, |policy| policy["data"] = json!({"state": "closed"}));
        let outcome = stage.write(&both).await;
        assert!(outcome.problems.iter().any(|problem| problem.contains("is damaged")), "{outcome:?}");
        assert!(has_message(&stage.server, &app) && has_message(&stage.server, &other));

        // A policy that can't be written, and a suspended one.
        let mut stage = Stage::begin(home).await;
        let (_, name) = place(&other, home);
        stage.server.before(move |_, asked| {
            let is_its = asked.plural == POLICIES && asked.name.as_ref() == Some(&name);
            (asked.method == Method::PATCH && is_its).then(|| (403, "not today".to_owned()))
        });
        let outcome = stage.write(&both).await;
        assert_eq!(outcome.problems.len(), 1, "{outcome:?}");
        assert!(has_message(&stage.server, &app) && !has_message(&stage.server, &other));
        stage.server.well();
        let (namespace, name) = place(&other, home);
        let suspend = |policy: &mut Value| policy["metadata"]["annotations"] = json!({SUSPEND: "true"});
        stage.server.world().edit(POLICIES, &namespace, &name, suspend);
        stage.write(&both).await;
        assert!(!has_message(&stage.server, &other));
        stage
            .server
            .world()
            .edit(POLICIES, &namespace, &name, |it| it["metadata"]["annotations"] = json!({}));
        stage.write(&both).await;
        assert!(has_message(&stage.server, &other));
    }
}

/// The message about the grace is there, and the next one waits.
#[tokio::test]
async fn comparing_again_writes_no_message_that_waits() {
    let mut stage = Stage::begin(Some(NAMESPACE)).await;
    let (mut both, [app, _]) = two_tenants();
    both.notices = vec![notice_of(&app, NoticePhase::Grace { until: Timestamp::UNIX_EPOCH })];
    stage.write(&both).await;
    let message = |stage: &Stage| stage.server.get(MESSAGES, &app.namespace, &notification::name(&app));
    let before = message(&stage).unwrap()["spec"].clone();
    stage.edit(0, |policy| policy["metadata"]["annotations"] = json!({SUSPEND: "true"}));
    both.notices = vec![notice_of(&app, NoticePhase::Blocked)];
    let outcome = stage.write(&both).await;
    assert_eq!((outcome.suspended.len(), outcome.problems), (1, Vec::new()));
    assert_eq!(message(&stage).unwrap()["spec"], before);
}

/// The API server serves the kind again during the term, with policies whose blocks the leader has not inherited.
#[tokio::test]
async fn a_leader_that_has_not_inherited_the_blocks_of_a_kind_writes_nothing_and_the_next_one_inherits_them()
{
    for home in HOMES {
        let mut stage = Stage::begin(home).await;
        stage.write(&plan(2)).await;
        stage.server.world().unserved.insert(POLICIES.to_owned());
        stage.permit = WritePermit::of_term(2, "b");
        let permit = stage.permit.clone();
        assert_eq!(stage.output.take_over(&settings(home), &permit, true).await.unwrap().len(), 2);
        stage.server.world().unserved.clear();
        let before = [0, 1].map(|app| stage.policy(app));
        stage.write(&plan(1)).await;
        assert!(!stage.permit.holds());
        assert_eq!([0, 1].map(|app| stage.policy(app)), before);

        stage.permit = WritePermit::of_term(3, "b");
        let permit = stage.permit.clone();
        assert_eq!(stage.output.take_over(&settings(home), &permit, true).await.unwrap().len(), 2);
        let outcome = stage.write(&plan(1)).await;
        assert_eq!((outcome.removed, outcome.problems, stage.permit.holds()), (1, Vec::new(), true));
    }
}
