//! The grace is given once in an incident. A tenant that stops and begins again has the rest of it.

use std::time::Duration;

use procscan_core::decision::Mode;
use procscan_core::exemption::Pattern;
use procscan_core::names::App;
use procscan_core::plan::NoticePhase;
use procscan_core::policy::{Evaluation, IncidentCommand, Lineage, Phase};

use crate::common::{HOUR, MINUTE, World, app, exemption, policy, record_of};

const MONTH: i64 = 30 * 24 * 3600;

/// A world in which the grace lasts for so many minutes.
pub(crate) fn with_grace(minutes: u64) -> World {
    let mut world = World::new(&["n1"]);
    world.policy.grace = Duration::from_mins(minutes);
    // The monotonic clock needs a reading for a month ago.
    world.wait(40 * 24 * HOUR);
    world
}

/// The node finds these processes now.
pub(crate) fn find(world: &mut World, processes: &[&str]) -> Evaluation {
    let now = world.clock();
    world.answer("n1", processes.iter().map(|process| record_of("ns-a", "web", process, now)).collect());
    world.evaluate()
}

pub(crate) fn accuse(world: &mut World) -> Evaluation {
    find(world, &["xmrig"])
}

pub(crate) fn phase(world: &World) -> Phase {
    world.incidents.incident(&app("ns-a")).expect("an incident").phase()
}

/// Nothing is found until the incident is over. That takes half an hour, or as many scans as long as the process was
/// away before. Returns the minutes.
pub(crate) fn stops(world: &mut World) -> u64 {
    for minute in 1..=400 {
        world.rounds(1, |w| drop(find(w, &[])));
        if matches!(phase(world), Phase::Ended { .. }) {
            return minute;
        }
    }
    panic!("{:?}", phase(world));
}

/// The tenant offends, is notified of the grace, and stops.
pub(crate) fn is_warned_and_stops(world: &mut World) -> u64 {
    assert!(accuse(world).plan.blocks.is_empty());
    assert!(matches!(phase(world), Phase::Grace { .. }));
    stops(world)
}

pub(crate) fn is_blocked(evaluation: &Evaluation) -> bool {
    !evaluation.plan.blocks.is_empty()
}

/// The tenant offends all the time, and is blocked in the minute `minutes` from now, and no sooner.
pub(crate) fn is_blocked_in(world: &mut World, minutes: u64, what: &str) {
    assert!(!is_blocked(&accuse(world)), "{what}: at once");
    for minute in 1..=minutes {
        world.wait(MINUTE);
        assert_eq!(is_blocked(&accuse(world)), minute == minutes, "{what}: after {minute} minutes");
    }
}

pub(crate) fn release(world: &mut World, hours: i64) {
    let until = world.now.wall() + jiff::SignedDuration::from_hours(hours);
    let command = IncidentCommand::Release { app: app("ns-a"), until };
    world.incidents.execute(&command, "ops", &world.policy, world.now).unwrap();
    world.evaluate();
}

#[test]
fn a_tenant_that_stops_until_it_is_cleared_is_blocked_when_it_begins_again_after_the_grace() {
    let mut world = with_grace(10);
    is_warned_and_stops(&mut world);
    let evaluation = accuse(&mut world);
    assert!(is_blocked(&evaluation));
    let reason = &evaluation.plan.blocks[0].reason;
    assert!(reason.contains("; its tenant was warned before, and the grace ended at "), "{reason}");
    // After the release by the rules, the incident is still the same.
    stops(&mut world);
    assert!(is_blocked(&accuse(&mut world)));
}

#[test]
fn a_tenant_that_begins_again_during_the_grace_has_the_rest_of_it_and_is_notified_of_that() {
    let mut world = with_grace(600);
    let until = world.now.wall() + Duration::from_hours(10);
    let first = is_warned_and_stops(&mut world);
    let evaluation = accuse(&mut world);
    assert_eq!(evaluation.plan.notices[0].phase, NoticePhase::Grace { until });
    assert!(evaluation.decisions[0].reason.contains("; to be blocked in 9h 30m"), "{evaluation:?}");
    let second = stops(&mut world);
    is_blocked_in(&mut world, 600 - first - second, "the rest of the grace");
}

#[test]
fn a_restart_or_another_leader_whatever_its_clock_neither_shortens_the_grace_nor_gives_another() {
    for ahead in [0, MONTH, -MONTH] {
        for is_restarted_first in [false, true] {
            let mut world = with_grace(120);
            assert!(!is_blocked(&accuse(&mut world)));
            if is_restarted_first {
                world.jump(ahead);
                world.restart();
            }
            let passed = stops(&mut world);
            world.jump(if is_restarted_first { -ahead } else { ahead });
            world.restart();
            is_blocked_in(&mut world, 120 - passed, &format!("{ahead} {is_restarted_first}"));
        }
        let mut world = with_grace(10);
        is_warned_and_stops(&mut world);
        world.jump(ahead);
        world.restart();
        // How far the agent's clock is from this leader's is learned first.
        accuse(&mut world);
        world.wait(MINUTE);
        assert!(is_blocked(&accuse(&mut world)), "{ahead}: its grace has ended");
    }
}

#[test]
fn the_warning_counts_through_a_restart_in_the_middle_of_the_grace() {
    let mut world = with_grace(10);
    accuse(&mut world);
    world.wait(4 * MINUTE);
    // The write persists how much time has been measured.
    find(&mut world, &["xmrig", "zmap"]);
    world.restart();
    is_blocked_in(&mut world, 6, "after a restart");
    // The document is as an earlier version wrote it.
    let mut world = with_grace(10);
    accuse(&mut world);
    world.wait(4 * MINUTE);
    find(&mut world, &["xmrig", "zmap"]);
    for persisted in world.persisted.values_mut() {
        let mut status = serde_json::to_value(&persisted.status).unwrap();
        status.as_object_mut().unwrap().remove("grace");
        persisted.status = serde_json::from_value(status).unwrap();
    }
    world.restart();
    is_blocked_in(&mut world, 6, "after an upgrade");
}

#[test]
fn after_a_release_a_tenant_has_a_whole_grace() {
    let mut world = with_grace(10);
    accuse(&mut world);
    release(&mut world, 2);
    stops(&mut world);
    world.rounds(2 * 60, |w| drop(find(w, &[])));
    world.restart();
    world.wait(24 * HOUR);
    world.policy.same_incident = Duration::from_secs(100 * HOUR);
    // A new leader can't know that the release is over before it has measured that.
    world.rounds(3 * 60, |w| drop(find(w, &[])));
    is_blocked_in(&mut world, 10, "after the release");
}

#[test]
fn an_exemption_of_the_warned_process_gives_a_whole_grace_though_the_incident_was_over() {
    for is_over in [true, false] {
        let mut world = with_grace(10);
        accuse(&mut world);
        if is_over {
            stops(&mut world);
        }
        let it = exemption(|e| e.process = Some(Pattern::Exact("xmrig".into())), None);
        world.policy.exemptions = vec![it];
        find(&mut world, &[]);
        if !is_over {
            stops(&mut world);
        }
        world.policy.exemptions.clear();
        is_blocked_in(&mut world, 10, "after the exemption");
    }
    // A protected namespace is exempt.
    let mut world = with_grace(10);
    is_warned_and_stops(&mut world);
    world.policy.protected = vec!["ns-a".into()];
    find(&mut world, &[]);
    world.policy.protected = policy().protected;
    is_blocked_in(&mut world, 10, "after the protection");
}

#[test]
fn a_tenant_gets_no_new_grace_by_starting_an_exempt_process() {
    let mut world = with_grace(10);
    world.policy.exemptions = vec![exemption(|e| e.process = Some(Pattern::Exact("zmap".into())), None)];
    accuse(&mut world);
    find(&mut world, &["xmrig", "zmap"]);
    world.rounds(31, |w| drop(find(w, &["zmap"])));
    assert_eq!(phase(&world), Phase::Watched);
    stops(&mut world);
    world.restart();
    find(&mut world, &["zmap"]);
    assert!(is_blocked(&accuse(&mut world)));
}

#[test]
fn an_exemption_of_one_of_two_processes_leaves_the_grace_of_the_other() {
    for exempt in ["xmrig", "zmap"] {
        let mut world = with_grace(10);
        find(&mut world, &["xmrig", "zmap"]);
        world.policy.exemptions = vec![exemption(|e| e.process = Some(Pattern::Exact(exempt.into())), None)];
        for minute in 1..=10 {
            world.wait(MINUTE);
            let evaluation = find(&mut world, &["xmrig", "zmap"]);
            assert_eq!(is_blocked(&evaluation), minute == 10, "{exempt} {minute}");
        }
    }
}

#[test]
fn a_warning_that_was_not_written_has_begun_no_grace() {
    let mut world = with_grace(10);
    world.is_mute = true;
    is_warned_and_stops(&mut world);
    // The tenant can be notified that the grace is over.
    world.is_mute = false;
    find(&mut world, &[]);
    world.wait(20 * MINUTE);
    is_blocked_in(&mut world, 10, "not notified");
}

#[test]
fn a_later_incident_has_a_whole_grace() {
    for (wait, is_new) in [(2 * HOUR - MINUTE, false), (2 * HOUR + MINUTE, true)] {
        let mut world = with_grace(10);
        world.policy.same_incident = Duration::from_secs(2 * HOUR);
        is_warned_and_stops(&mut world);
        world.wait(wait);
        if is_new {
            is_blocked_in(&mut world, 10, "a new incident");
        } else {
            assert!(is_blocked(&accuse(&mut world)));
        }
    }
}

#[test]
fn an_exempt_process_that_runs_on_preserves_no_old_grace() {
    for (hours, is_new) in [(23, false), (25, true)] {
        let mut world = with_grace(10);
        world.policy.exemptions = vec![exemption(|e| e.process = Some(Pattern::Exact("zmap".into())), None)];
        find(&mut world, &["xmrig", "zmap"]);
        world.rounds(31, |w| drop(find(w, &["zmap"])));
        for _ in 0..hours * 6 {
            world.wait(10 * MINUTE);
            find(&mut world, &["zmap"]);
        }
        world.restart();
        assert_eq!(is_blocked(&find(&mut world, &["xmrig", "zmap"])), !is_new, "{hours}");
        if is_new {
            assert!(matches!(phase(&world), Phase::Grace { .. }));
        }
    }
}

#[test]
fn each_pause_counts_for_itself_while_an_exempt_process_runs_on() {
    let mut world = with_grace(10);
    world.policy.same_incident = Duration::from_secs(2 * HOUR);
    world.policy.exemptions = vec![exemption(|e| e.process = Some(Pattern::Exact("zmap".into())), None)];
    find(&mut world, &["xmrig", "zmap"]);
    for _ in 0..2 {
        while phase(&world) != Phase::Watched {
            world.rounds(1, |w| drop(find(w, &["zmap"])));
        }
        world.rounds(90, |w| drop(find(w, &["zmap"])));
        assert!(is_blocked(&find(&mut world, &["xmrig", "zmap"])));
    }
}

#[test]
fn a_release_that_could_not_be_persisted_revokes_no_grace() {
    let mut world = with_grace(10);
    accuse(&mut world);
    world.wait(4 * MINUTE);
    accuse(&mut world);
    world.unwritable = ["ns-a".to_owned()].into();
    release(&mut world, 2);
    world.unwritable.clear();
    is_blocked_in(&mut world, 6, "as if it had not been released");
}

#[test]
fn a_longer_grace_is_not_cut_by_an_earlier_warning() {
    let mut world = with_grace(10);
    let passed = is_warned_and_stops(&mut world);
    world.policy.grace = Duration::from_hours(1);
    is_blocked_in(&mut world, 60 - passed, "a longer grace");
    // A shorter grace does not cut the announced one either.
    let mut world = with_grace(60);
    let passed = is_warned_and_stops(&mut world);
    world.policy.grace = Duration::from_mins(10);
    is_blocked_in(&mut world, 60 - passed, "a shorter grace");
}

#[test]
fn other_labels_on_the_same_controllers_pods_give_no_new_grace() {
    for (origin, is_same) in [("Deployment/web", true), ("Deployment/other", false)] {
        let mut world = with_grace(10);
        world.policy.verify_pods = true;
        let pod = |world: &mut World, pod: &str, app: &str, origin: &str| {
            world.pod_on("ns-a", pod, "n1", app);
            world.comes_of("ns-a", pod, Lineage { origin: Some(origin.into()), earlier: None });
            let now = world.clock();
            world.answer("n1", vec![record_of("ns-a", pod, "xmrig", now)]);
            world.evaluate()
        };
        pod(&mut world, "web-1", "web", "Deployment/web");
        assert!(matches!(phase(&world), Phase::Grace { .. }));
        world.wait(11 * MINUTE);
        let evaluation = pod(&mut world, "web-2", "renamed", origin);
        let is_blocked = evaluation.plan.blocks.iter().any(|block| *block.app.name == *"renamed");
        assert_eq!(is_blocked, is_same, "{origin}");
    }
}

#[test]
fn another_name_of_the_workload_shares_the_grace_only_within_the_same_incident() {
    for (hours, is_same) in [(23, true), (25, false)] {
        let mut world = with_grace(10);
        world.policy.verify_pods = true;
        let pod = |world: &mut World, app: &str, processes: &[&str]| {
            world.recreate("ns-a", "web-1", "n1", app);
            let origin = Some("Deployment/web".into());
            world.comes_of("ns-a", "web-1", Lineage { origin, earlier: None });
            world.wait(1);
            let now = world.clock();
            let records = processes.iter().map(|process| record_of("ns-a", "web-1", process, now)).collect();
            world.answer("n1", records);
            world.evaluate()
        };
        pod(&mut world, "web", &["xmrig"]);
        stops(&mut world);
        world.wait(hours * HOUR);
        assert_eq!(is_blocked(&pod(&mut world, "renamed", &["xmrig"])), is_same, "{hours}");
    }
}

#[test]
fn a_release_of_the_app_under_its_new_name_covers_the_old_one_too_and_it_has_a_whole_grace_after_it() {
    let mut world = with_grace(10);
    world.policy.verify_pods = true;
    let found = |world: &mut World, app: &str| {
        world.recreate("ns-a", "web-1", "n1", app);
        let origin = Some("Deployment/web".into());
        world.comes_of("ns-a", "web-1", Lineage { origin, earlier: None });
        world.wait(MINUTE);
        let now = world.clock();
        world.answer("n1", vec![record_of("ns-a", "web-1", "xmrig", now)]);
        world.evaluate()
    };
    found(&mut world, "web");
    found(&mut world, "renamed");
    let until = world.now.wall() + jiff::SignedDuration::from_hours(1);
    let command = IncidentCommand::Release { app: App::new("ns-a", "app", "renamed"), until };
    world.incidents.execute(&command, "ops", &world.policy, world.now).unwrap();
    world.evaluate();
    world.wait(20 * MINUTE);
    let evaluation = found(&mut world, "web");
    assert!(!is_blocked(&evaluation), "{:?}", evaluation.plan.blocks);
    // The release ends after an hour, of which 21 minutes have passed.
    for minute in 22..=70 {
        let evaluation = found(&mut world, "web");
        assert_eq!(is_blocked(&evaluation), minute == 70, "{minute}");
    }
}

#[test]
fn dry_run_shows_the_block_at_the_first_deadline_and_counts_as_no_warning() {
    let mut world = with_grace(10);
    world.policy.mode = Mode::DryRun;
    // In dry-run nothing is written.
    world.is_mute = true;
    is_warned_and_stops(&mut world);
    assert!(is_blocked(&accuse(&mut world)));
    stops(&mut world);
    world.policy.mode = Mode::Enforce;
    world.is_mute = false;
    is_blocked_in(&mut world, 10, "in enforce mode");
}
