//! The grace: which parts of it are persisted, which events revoke it, and how the names of a workload share it.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::common::{HOUR, MINUTE, World, app, exemption, record_of};
use crate::grace::{
    accuse, find, is_blocked, is_blocked_in, is_warned_and_stops, phase, release, stops, with_grace,
};
use jiff::SignedDuration;
use procscan_core::exemption::Pattern;
use procscan_core::names::App;
use procscan_core::plan::NoticePhase;
use procscan_core::policy::{Evaluation, IncidentCommand, Lineage, Phase};

fn exempt(world: &mut World, process: &str) {
    let it = exemption(|e| e.process = Some(Pattern::Exact(process.into())), None);
    world.policy.exemptions = vec![it];
}

#[test]
fn another_process_of_the_warning_preserves_the_grace_of_an_exempt_one_through_a_restart_and_a_pause() {
    for (exempted, other) in [("xmrig", "zmap"), ("zmap", "xmrig")] {
        for restarts in [false, true] {
            let mut world = with_grace(10);
            find(&mut world, &["xmrig", "zmap"]);
            exempt(&mut world, exempted);
            find(&mut world, &["xmrig", "zmap"]);
            if restarts {
                world.restart();
                // No report has come yet.
                world.evaluate();
            }
            stops(&mut world);
            assert!(is_blocked(&find(&mut world, &[other])), "{exempted} {restarts}");
        }
    }
}

#[test]
fn an_exemption_gives_a_whole_grace_if_another_leader_gave_the_one_before() {
    let rule = record_of("ns-a", "web", "xmrig", 0).rule().to_string();
    let of_process = exemption(|e| e.process = Some(Pattern::Exact("xmrig".into())), None);
    let of_rule = exemption(|e| e.rule = Some(Pattern::Exact(rule.clone())), None);
    for it in [of_process, of_rule] {
        let mut world = with_grace(10);
        is_warned_and_stops(&mut world);
        world.restart();
        world.policy.exemptions = vec![it];
        find(&mut world, &[]);
        world.policy.exemptions.clear();
        is_blocked_in(&mut world, 10, "after the exemption");
    }
}

#[test]
fn a_written_warning_allows_a_decision_once_whatever_else_was_written() {
    let mut world = with_grace(10);
    world.is_mute = true;
    let evaluation = find(&mut world, &["xmrig"]);
    let warning = &evaluation.plan.notices[0];
    assert!(matches!(warning.phase, NoticePhase::Grace { .. }));
    let others = ["ns-0", "ns-z"].map(|other| (app(other), warning.sent_at.into()));
    let mut written: BTreeMap<_, _> = others.into();
    assert!(!world.incidents.note_written(&written, world.now));
    written.insert(warning.app.clone(), (warning.sent_at - SignedDuration::from_secs(1)).into());
    assert!(!world.incidents.note_written(&written, world.now), "an earlier notification");
    written.insert(warning.app.clone(), warning.sent_at.into());
    assert!(world.incidents.note_written(&written, world.now));
    assert!(!world.incidents.note_written(&written, world.now));
}

#[test]
fn a_release_revokes_the_grace_of_a_process_that_has_ended_since() {
    let mut world = with_grace(120);
    accuse(&mut world);
    find(&mut world, &["xmrig", "zmap"]);
    world.rounds(60, |w| drop(find(w, &["zmap"])));
    assert!(matches!(phase(&world), Phase::Grace { .. }));
    release(&mut world, 1);
    let blocked = (0..=121).find(|_| {
        world.wait(MINUTE);
        is_blocked(&find(&mut world, &["xmrig", "zmap"]))
    });
    // The release ends before.
    assert_eq!(blocked, Some(120));
}

#[test]
fn the_tenant_is_notified_anew_of_a_grace_that_begins_right_after_a_release() {
    let mut world = with_grace(10);
    accuse(&mut world);
    world.wait(4 * MINUTE);
    let until = world.now.wall() + jiff::SignedDuration::from_hours(2);
    world
        .incidents
        .execute(&IncidentCommand::Release { app: app("ns-a"), until }, "ops", &world.policy, world.now)
        .unwrap();
    let evaluation = find(&mut world, &["xmrig", "zmap"]);
    let [notice] = &evaluation.plan.notices[..] else { panic!("one tenant is notified: {evaluation:?}") };
    assert_eq!(notice.sent_at, world.now.wall());
    assert!(matches!(notice.phase, NoticePhase::Grace { .. }));
    for minute in 1..=10 {
        world.wait(MINUTE);
        assert_eq!(is_blocked(&find(&mut world, &["xmrig", "zmap"])), minute == 10, "{minute}");
    }
}

#[test]
fn only_the_warning_itself_counts_as_a_notification_of_the_grace() {
    // The warning could not be written before the tenant stopped.
    let mut world = with_grace(10);
    world.is_mute = true;
    is_warned_and_stops(&mut world);
    let over = world.evaluate().plan.notices.pop().unwrap();
    assert_eq!(over.phase, NoticePhase::Recovered);
    // The tenant begins anew, and so many others are warned in this round that this one has to wait.
    world.policy.max_notices_per_round = 0;
    accuse(&mut world);
    assert!(matches!(phase(&world), Phase::Grace { .. }));
    // The notification that the last grace is over is written only now.
    assert!(!world.incidents.note_written(&[(over.app.clone(), over.sent_at.into())].into(), world.now));
    world.wait(5 * MINUTE);
    (world.policy.max_notices_per_round, world.is_mute) = (10, false);
    is_blocked_in(&mut world, 10, "once it is warned");
}

#[test]
fn without_a_grace_in_the_configuration_the_reason_of_a_block_names_no_earlier_one() {
    let mut world = with_grace(10);
    is_warned_and_stops(&mut world);
    world.policy.grace = Duration::ZERO;
    let evaluation = accuse(&mut world);
    let reason = &evaluation.plan.blocks[0].reason;
    assert!(!reason.contains("warned"), "{reason}");
}

#[test]
fn how_long_only_exempt_processes_have_run_is_known_to_the_next_leader() {
    for (hours, is_new) in [(20, false), (26, true)] {
        let mut world = with_grace(10);
        exempt(&mut world, "zmap");
        find(&mut world, &["xmrig", "zmap"]);
        world.rounds(31, |w| drop(find(w, &["zmap"])));
        for hour in 0..hours {
            for _ in 0..6 {
                world.wait(10 * MINUTE);
                find(&mut world, &["zmap"]);
            }
            if hour == 12 {
                world.restart();
            }
        }
        assert_eq!(is_blocked(&find(&mut world, &["xmrig", "zmap"])), !is_new, "{hours}");
    }
}

#[test]
fn an_incident_that_has_ended_and_is_restored_from_a_backup_gives_no_old_grace() {
    let mut world = with_grace(10);
    accuse(&mut world);
    let backup = world.persisted.clone();
    stops(&mut world);
    // The write for another tenant persists how much time has been measured.
    world.policy.exemptions = vec![exemption(|e| e.namespace = Some(Pattern::Exact("ns-b".into())), None)];
    let now = world.clock();
    world.answer("n1", vec![record_of("ns-b", "web", "xmrig", now)]);
    world.evaluate();
    for (name, mut incident) in backup {
        incident.status.end_again(world.now.wall());
        world.persisted.insert(name, incident);
    }
    world.restart();
    is_blocked_in(&mut world, 10, "after the restore");
}

/// The only Pod belongs to `app` now. This controller has made it, and it runs this process.
fn found(world: &mut World, app: &str, controller: Option<&str>, process: &str) -> Evaluation {
    world.recreate("ns-a", "web-1", "n1", app);
    let origin = controller.map(Into::into);
    world.comes_of("ns-a", "web-1", Lineage { origin, earlier: None });
    world.wait(1);
    let now = world.clock();
    world.answer("n1", vec![record_of("ns-a", "web-1", process, now)]);
    world.evaluate()
}

fn verified(minutes: u64) -> World {
    let mut world = with_grace(minutes);
    world.policy.verify_pods = true;
    world
}

/// Nothing is found until the minute of the test.
fn pauses_until(world: &mut World, minute: u64) {
    while world.clock() < i64::try_from(40 * 24 * HOUR + minute * MINUTE).unwrap() {
        world.rounds(1, |w| drop(find(w, &[])));
    }
}

fn named(name: &str) -> App {
    App::new("ns-a", "app", name)
}

fn is_over(world: &World, name: &str) -> bool {
    matches!(world.incidents.incident(&named(name)).unwrap().phase(), Phase::Ended { .. })
}

fn blocks(evaluation: &Evaluation, name: &str) -> bool {
    evaluation.plan.blocks.iter().any(|block| block.app == named(name))
}

fn release_named(world: &mut World, name: &str) {
    let until = world.now.wall() + jiff::SignedDuration::from_hours(24);
    let command = IncidentCommand::Release { app: named(name), until };
    world.incidents.execute(&command, "ops", &world.policy, world.now).unwrap();
    world.evaluate();
}

const WEB: Option<&str> = Some("Deployment/web");

#[test]
fn an_app_that_had_its_own_grace_is_not_given_that_of_another_name() {
    let mut world = verified(600);
    found(&mut world, "web", WEB, "xmrig");
    pauses_until(&mut world, 120);
    // The controller of this Pod is not known yet.
    found(&mut world, "renamed", None, "zmap");
    pauses_until(&mut world, 610);
    assert!(is_over(&world, "web") && is_over(&world, "renamed"));
    assert!(!blocks(&found(&mut world, "renamed", WEB, "zmap"), "renamed"));
    pauses_until(&mut world, 721);
    assert!(blocks(&found(&mut world, "renamed", WEB, "zmap"), "renamed"));
}

#[test]
fn an_app_that_an_operator_has_released_is_given_a_whole_grace_in_a_later_incident() {
    let mut world = verified(10);
    world.policy.same_incident = Duration::from_secs(2 * HOUR);
    found(&mut world, "renamed", None, "xmrig");
    release_named(&mut world, "renamed");
    pauses_until(&mut world, 240);
    found(&mut world, "web", WEB, "zmap");
    pauses_until(&mut world, 300);
    // That tenant's other App is blocked by now.
    assert!(!blocks(&found(&mut world, "renamed", WEB, "zmap"), "renamed"));
}

#[test]
fn of_the_names_of_a_workload_the_last_one_decides_which_grace_is_left() {
    let mut world = verified(10);
    found(&mut world, "c", WEB, "xmrig");
    // That revokes the first grace.
    release_named(&mut world, "c");
    pauses_until(&mut world, 40);
    assert!(!blocks(&found(&mut world, "a", WEB, "zmap"), "a"));
    pauses_until(&mut world, 80);
    assert!(blocks(&found(&mut world, "b", WEB, "zmap"), "b"));
}
