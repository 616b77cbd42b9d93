//! Dates of exemptions over several starts with wrong wall clocks.

use crate::clocks::{DAY, MONTH, accuse, accuse_one, leader, nodes};
use crate::common::{HOUR, MINUTE, World, app, exemption, many_blocked, namespaces, record_of};
use procscan_core::exemption::{Exemption, Pattern};
use procscan_core::policy::{IncidentCommand, Incidents};

/// Exempts the namespaces that match for so many hours.
fn exempt(world: &mut World, place: &str, namespaces: &str, hours: i64) {
    let until = world.now.wall() + jiff::SignedDuration::from_hours(hours);
    let any = Some(Pattern::Regex(regex::Regex::new(namespaces).unwrap()));
    let declared = exemption(|e| e.namespace.clone_from(&any), Some(until));
    world.policy.exemptions.push(Exemption { place: place.to_owned(), ..declared });
}

/// Another leader begins, and blocks another tenant, so that its wall clock is persisted. Returns whether `ns-a`,
/// which is accused again, is blocked.
fn blocks_with_another(world: &mut World, ahead: i64, tenant: usize) -> bool {
    leader(world, ahead);
    accuse_one(world);
    accuse(world, tenant..tenant + 1);
    let blocked = world.blocked();
    assert!(blocked.contains(&format!("ns-{tenant:03}")), "{blocked:?}");
    blocked.contains(&"ns-a".to_owned())
}

#[test]
fn an_exemption_that_one_leader_doubted_is_in_doubt_for_the_next_one_too() {
    const DECADE: i64 = 3650 * DAY;
    // How far each leader's clock is ahead of the last one's. The last clock of each is right again.
    let wrong: [&[i64]; 6] = [
        &[MONTH, 0, -MONTH],
        &[0, MONTH, 0, 0, -MONTH],
        &[MONTH, 0, -MONTH, MONTH, 0, -MONTH],
        &[-DECADE, 2 * DECADE, 0, 0, -DECADE],
        &[MONTH, -MONTH - DECADE, 0, DECADE + MONTH, 0, -MONTH],
        &[DAY / 6, 0, 0, -DAY / 6],
    ];
    for is_known in [true, false] {
        for clocks in wrong {
            let mut world = nodes(20);
            accuse(&mut world, 1..2);
            if is_known {
                accuse_one(&mut world);
                assert_eq!(world.blocked(), ["ns-001", "ns-a"]);
            }
            exempt(&mut world, "Exemption a", "^ns-a$", 2);
            assert_eq!(world.blocked(), ["ns-001"]);
            for (n, ahead) in clocks.iter().enumerate() {
                let is_blocked = blocks_with_another(&mut world, *ahead, n + 2);
                assert!(!is_blocked, "{is_known} {clocks:?}: start {n}");
            }
        }
    }
}

#[test]
fn an_exemption_that_appears_under_a_wrong_clock_is_in_doubt_at_the_next_start_too() {
    let mut world = nodes(20);
    accuse(&mut world, 1..2);
    leader(&mut world, MONTH);
    accuse(&mut world, 2..3);
    // The operator's own clock is right.
    exempt(&mut world, "Exemption a", "^ns-a$", 2 - 31 * 24);
    accuse_one(&mut world);
    assert!(!world.blocked().contains(&"ns-a".to_owned()));
    assert!(!blocks_with_another(&mut world, 0, 3));
    // When the clock is right again, the exemption opens the App that was blocked meanwhile.
    exempt(&mut world, "Exemption b", "^ns-003$", 3 - 31 * 24);
    world.evaluate();
    assert!(world.blocked().contains(&"ns-003".to_owned()));
    leader(&mut world, -MONTH);
    world.wait(MINUTE);
    assert!(!world.blocked().contains(&"ns-003".to_owned()));
}

#[test]
fn an_exemption_that_leaders_doubt_is_over_when_its_time_has_been_measured() {
    let mut world = nodes(20);
    accuse(&mut world, 1..2);
    exempt(&mut world, "Exemption a", "^ns-a$", 2);
    world.evaluate();
    for n in 0..6 {
        assert!(!blocks_with_another(&mut world, if n == 0 { MONTH } else { 0 }, 2 * n + 2), "start {n}");
        world.wait(19 * MINUTE);
        // The next leader reads the believed time from the documents.
        accuse(&mut world, 2 * n + 3..2 * n + 4);
        assert!(world.blocked().contains(&format!("ns-{:03}", 2 * n + 3)));
    }
    assert!(blocks_with_another(&mut world, 0, 14));
    // Whatever the clock shows now, it opens nothing.
    assert!(blocks_with_another(&mut world, -MONTH, 15));
}

#[test]
fn a_clock_that_no_operator_sets_right_is_believed_when_leaders_have_measured_a_day() {
    let mut world = nodes(20);
    accuse(&mut world, 1..2);
    exempt(&mut world, "Exemption a", "^ns-[ab]$", 24 * 30);
    world.evaluate();
    // Two leaders of twelve hours, and another clock that is behind in between.
    assert!(!blocks_with_another(&mut world, MONTH, 2));
    world.wait(12 * HOUR);
    accuse(&mut world, 3..4);
    assert!(!blocks_with_another(&mut world, 0, 4));
    world.wait(11 * HOUR);
    accuse_one(&mut world);
    assert!(!world.blocked().contains(&"ns-a".to_owned()));
    world.wait(HOUR);
    accuse_one(&mut world);
    assert!(world.blocked().contains(&"ns-a".to_owned()));
    // The next leader does not doubt it once more.
    leader(&mut world, 0);
    world.wait(MINUTE);
    let now = world.clock();
    world.answer("n9", vec![record_of("ns-b", "web", "miner9", now)]);
    assert!(world.blocked().contains(&"ns-b".to_owned()));
}

#[test]
fn a_clock_that_jumps_while_a_shorter_gap_is_doubted_is_doubted_for_a_day_of_its_own() {
    let mut world = nodes(20);
    accuse(&mut world, 1..2);
    exempt(&mut world, "Exemption a", "^ns-a$", 24 * 30);
    world.evaluate();
    // No replica leads for an hour, and that hour is doubted, too.
    assert!(!blocks_with_another(&mut world, DAY / 24, 2));
    world.wait(24 * HOUR - 10 * MINUTE);
    accuse(&mut world, 3..4);
    assert!(!blocks_with_another(&mut world, MONTH, 4));
    world.wait(HOUR);
    accuse(&mut world, 5..6);
    assert!(!blocks_with_another(&mut world, 0, 6));
    world.wait(HOUR);
    accuse(&mut world, 7..8);
    assert!(!blocks_with_another(&mut world, 0, 8));
}

#[test]
fn leaders_that_restart_every_few_hours_end_an_exemption_late_by_the_time_that_they_did_not_persist() {
    let mut world = nodes(40);
    accuse(&mut world, 1..2);
    exempt(&mut world, "Exemption a", "^ns-a$", 24 * 10);
    world.evaluate();
    // Evidence is written each hour. The time that a leader has measured since is lost with it, here almost an hour.
    let mut hours = 0;
    while !world.blocked().contains(&"ns-a".to_owned()) {
        world.wait(HOUR - MINUTE);
        accuse_one(&mut world);
        hours += 1;
        if hours % 6 == 0 {
            world.wait(HOUR - 2 * MINUTE);
            hours += 1;
            leader(&mut world, 0);
        }
        assert!(hours < 24 * 12);
    }
    assert!((24 * 10..24 * 11).contains(&hours), "{hours}");
}

/// Leaders have measured the time for which an operator released the App. A leader whose clock is ahead has blocked
/// it again.
#[test]
fn a_release_that_is_over_by_the_measured_time_opens_nothing_where_the_wall_clock_is_behind() {
    let mut world = nodes(20);
    accuse_one(&mut world);
    let until = world.now.wall() + std::time::Duration::from_secs(3 * HOUR);
    world.evaluate();
    world
        .incidents
        .execute(&IncidentCommand::Release { app: app("ns-a"), until }, "ops", &world.policy, world.now)
        .unwrap();
    assert!(world.blocked().is_empty());
    let hour = i64::try_from(HOUR).unwrap();
    assert!(!blocks_with_another(&mut world, -hour, 1));
    world.wait(3 * HOUR + MINUTE);
    accuse(&mut world, 2..3);
    assert_eq!(world.blocked().len(), 2);
    assert!(blocks_with_another(&mut world, MONTH, 3));
    assert!(blocks_with_another(&mut world, -MONTH, 4));
}

/// The leader began after a pause, so its believed time is behind its clock, which is right.
#[test]
fn an_exemption_that_was_added_after_a_start_and_is_over_opens_nothing_under_a_clock_that_is_behind() {
    let mut world = nodes(20);
    accuse(&mut world, 1..2);
    leader(&mut world, DAY / 12);
    accuse(&mut world, 2..3);
    exempt(&mut world, "Exemption a", "^ns-a$", 1);
    accuse_one(&mut world);
    assert!(!world.blocked().contains(&"ns-a".to_owned()));
    world.wait(HOUR + MINUTE);
    accuse(&mut world, 3..4);
    accuse_one(&mut world);
    assert!(world.blocked().contains(&"ns-a".to_owned()));
    leader(&mut world, -(DAY / 48));
    accuse_one(&mut world);
    assert!(world.blocked().contains(&"ns-a".to_owned()));
}

#[test]
fn an_exemption_that_a_clock_years_ahead_took_for_over_is_in_force_again_after_a_day_under_the_right_clock() {
    const YEARS: i64 = 3 * 365 * DAY;
    for starts in [0, 1] {
        let mut world = nodes(20);
        // The first clock is three years ahead, and an exemption of the configuration lies between.
        world.jump(YEARS);
        exempt(&mut world, "Exemption a", "^ns-x$", 2);
        world.evaluate();
        world.wait(3 * HOUR);
        accuse(&mut world, 1..3);
        leader(&mut world, -YEARS);
        exempt(&mut world, "Exemption b", "^ns-a$", 24 * 365);
        exempt(&mut world, "Exemption c", "^ns-001$", 24 * 365);
        accuse(&mut world, 1..2);
        let is_open = |world: &mut World| !world.blocked().contains(&"ns-001".to_owned());
        assert!(!is_open(&mut world), "in doubt, so it opens nothing");
        for hour in 1..=24 {
            world.wait(HOUR);
            accuse(&mut world, 1..2);
            assert_eq!(is_open(&mut world), hour == 24, "{hour}");
        }
        for start in 0..starts {
            accuse_one(&mut world);
            world.restart();
            accuse(&mut world, 1..2);
            assert!(is_open(&mut world), "start {start}");
        }
        accuse_one(&mut world);
        assert!(!world.blocked().contains(&"ns-a".to_owned()));
    }
}

#[test]
fn an_exemption_that_is_in_force_again_under_a_clock_that_was_set_back_is_counted_before_it_opens_anything() {
    let mut world = many_blocked();
    world.incidents = Incidents::default();
    world.persisted.clear();
    // It is in force while nothing is blocked, and ends.
    exempt(&mut world, "Exemption a", "^ns-", 1);
    world.ledger = world.new_ledger();
    world.evaluate();
    world.wait(2 * HOUR);
    let accuse_all = |world: &mut World| {
        let now = world.clock();
        let found = namespaces(25).iter().map(|namespace| crate::common::record(namespace, now)).collect();
        world.answer("n1", found);
        world.blocked().len()
    };
    assert_eq!(accuse_all(&mut world), 25);
    world.jump(-DAY);
    for hour in 1..=26 {
        world.wait(HOUR / 2);
        accuse_all(&mut world);
        world.jump(-1800);
        world.wait(HOUR / 2);
        assert_eq!(accuse_all(&mut world), 25, "{hour}");
        world.jump(-1800);
    }
    assert_eq!(world.incidents.withheld().len(), 1, "it is withheld");
}
