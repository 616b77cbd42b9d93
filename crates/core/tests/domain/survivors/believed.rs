//! The believed wall time: clocks that are set right, and dates that a doubted clock has set.

use crate::clocks::{DAY, MONTH, accuse, accuse_one, leader, nodes};
use crate::common::{HOUR, MINUTE, World, exemption};
use procscan_core::exemption::Pattern;

/// Exempts `ns-a` for so many hours from now.
fn exempt(world: &mut World, hours: i64) {
    let until = world.now.wall() + jiff::SignedDuration::from_hours(hours);
    let it = exemption(|e| e.namespace = Some(Pattern::Exact("ns-a".into())), Some(until));
    world.policy.exemptions = vec![it];
}

fn is_blocked(world: &mut World) -> bool {
    accuse_one(world);
    world.blocked().contains(&"ns-a".to_owned())
}

#[test]
fn a_clock_that_was_ahead_from_the_first_start_on_is_doubted_once_it_has_been_set_right() {
    let mut world = nodes(20);
    world.jump(MONTH);
    accuse(&mut world, 1..2);
    leader(&mut world, -MONTH);
    accuse(&mut world, 2..3);
    exempt(&mut world, 48);
    assert!(!is_blocked(&mut world));
    accuse(&mut world, 3..4);
    leader(&mut world, MONTH);
    assert!(!is_blocked(&mut world));
}

#[test]
fn an_exemption_that_is_declared_by_a_doubted_clock_lasts_as_long_as_it_says() {
    let mut world = nodes(20);
    accuse(&mut world, 1..2);
    leader(&mut world, MONTH);
    accuse(&mut world, 2..3);
    exempt(&mut world, 2);
    assert!(!is_blocked(&mut world));
    world.wait(2 * HOUR - 10 * MINUTE);
    assert!(!is_blocked(&mut world));
    world.wait(10 * MINUTE);
    assert!(is_blocked(&mut world));
}

#[test]
fn an_exemption_beyond_a_doubted_clocks_time_ends_by_that_clock() {
    let mut world = nodes(20);
    accuse(&mut world, 1..2);
    exempt(&mut world, 24 * 41);
    assert!(!is_blocked(&mut world));
    leader(&mut world, 31 * DAY);
    for hour in 0..10 * 24 - 1 {
        world.wait(HOUR - MINUTE);
        assert!(!is_blocked(&mut world), "{hour}");
    }
    world.wait(HOUR);
    assert!(is_blocked(&mut world));
}
