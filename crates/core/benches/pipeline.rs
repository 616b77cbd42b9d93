//! The stages of a round with 100,000 violations. `cargo bench -p procscan-core --bench pipeline`
#![allow(missing_docs, clippy::unwrap_used)]

mod fleet;

use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, Criterion};
use fleet::Fleet;

const VIOLATIONS: usize = 100_000;

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(5))
        .configure_from_args();
    let mut fleet = Fleet::new(VIOLATIONS);
    criterion.bench_function("decode", |b| b.iter(|| black_box(fleet.decode())));
    criterion.bench_function("absorb", |b| {
        b.iter_custom(|rounds| {
            let mut spent = Duration::ZERO;
            for _ in 0..rounds {
                fleet.scan();
                let reports = fleet.reports();
                let started = std::time::Instant::now();
                black_box(fleet.absorb(&reports));
                spent += started.elapsed();
            }
            spent
        });
    });
    criterion.bench_function("snapshot", |b| b.iter(|| black_box(fleet.ledger.snapshot(fleet.now))));
    let snapshot = fleet.ledger.snapshot(fleet.now);
    criterion.bench_function("plan", |b| b.iter(|| black_box(fleet.decide(&snapshot))));
    criterion.bench_function("serialise", |b| {
        b.iter_batched(|| (), |()| black_box(fleet::serialise(&snapshot)), BatchSize::PerIteration);
    });
    criterion.final_summary();
}
