//! Each stage of a round with 10,000 violations, once, for `bench/instructions` to count what it executes.
#![allow(missing_docs, clippy::unwrap_used)]

mod fleet;

use std::hint::black_box;

use fleet::Fleet;
use procscan_core::ledger::Change;
use procscan_core::plan::Plan;
use procscan_core::policy::Decided;
use procscan_core::report::{Answer, Report};
use procscan_core::snapshot::Snapshot;

const VIOLATIONS: usize = 10_000;

// The names of these functions stay, because `bench/instructions` counts by them.
#[inline(never)]
fn stage_decode(fleet: &Fleet) -> Vec<Answer> {
    black_box(fleet.decode())
}

#[inline(never)]
fn stage_absorb(fleet: &mut Fleet, reports: &[Report]) -> Vec<Change> {
    black_box(fleet.absorb(reports))
}

#[inline(never)]
fn stage_snapshot(fleet: &mut Fleet) -> Snapshot {
    black_box(fleet.ledger.snapshot(fleet.now))
}

#[inline(never)]
fn stage_plan(fleet: &mut Fleet, snapshot: &Snapshot) -> (Decided, Plan) {
    black_box(fleet.decide(snapshot))
}

#[inline(never)]
fn stage_serialise(snapshot: &Snapshot) -> Vec<u8> {
    black_box(fleet::serialise(snapshot))
}

fn main() {
    let mut fleet = Fleet::new(VIOLATIONS);
    drop(stage_decode(&fleet));
    let reports = fleet.reports();
    drop(stage_absorb(&mut fleet, &reports));
    let snapshot = stage_snapshot(&mut fleet);
    drop(stage_plan(&mut fleet, &snapshot));
    drop(stage_serialise(&snapshot));
}
