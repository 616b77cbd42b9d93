//! Many schedules of failures, each the same in every run. In none of them do two candidates hold a permit at once.

use super::*;

const SCHEDULES: u64 = 60;
/// How many steps a schedule has, and how long a step takes.
const STEPS: u64 = 3000;
const STEP: Duration = Duration::from_millis(50);
/// The time after which a replica leads again. The latest request arrives after 10 s, maybe from a candidate that has
/// stopped. Then the Lease has to run out.
const RECOVERY_TIME: Duration = Duration::from_secs(22);
const NAMES: [&str; 3] = ["a", "b", "c"];

/// Pseudo-random numbers, from a seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % below
    }

    fn network(&mut self) -> Network {
        let mut network =
            Network { there: ms(self.roll(200)), back: ms(self.roll(200)), ..Network::default() };
        match self.roll(10) {
            0 | 1 => network.loses_requests = true,
            2 | 3 => network.loses_answers = true,
            4 => network.refuses_writes = Some(if self.roll(2) == 0 { 500 } else { 409 }),
            // So late that the client has stopped waiting, but the request arrives.
            5 => network.there = ms(1000 + self.roll(9000)),
            6 => network.back = ms(1000 + self.roll(9000)),
            _ => {}
        }
        network
    }
}

/// Runs one schedule. Returns how many terms there were, and in how many steps a candidate could write.
async fn play(seed: u64) -> (usize, u64) {
    let mut dice = Dice(seed);
    let server = Server::default();
    let mut replicas: Vec<Replica> = NAMES.iter().map(|name| Replica::start(&server, name)).collect();
    let (mut stopping, mut led) = (Vec::new(), 0);
    for step in 0..STEPS {
        if dice.roll(40) == 0 {
            let replica = &replicas[usize::try_from(dice.roll(3)).unwrap()];
            replica.network.send_replace(dice.network());
        }
        if dice.roll(100) == 0 {
            replicas[usize::try_from(dice.roll(3)).unwrap()].freeze();
        }
        if dice.roll(50) == 0 {
            replicas[usize::try_from(dice.roll(3)).unwrap()].thaw();
        }
        if dice.roll(400) == 0 {
            // Another process takes its place, while it stops.
            let at = usize::try_from(dice.roll(3)).unwrap();
            replicas[at].cancel.cancel();
            let next = Replica::start(&server, &format!("{}'", replicas[at].identity));
            stopping.push(std::mem::replace(&mut replicas[at], next));
        }
        sleep(STEP).await;
        let store = server.store();
        let holding: Vec<_> = store.permits.iter().filter(|permit| permit.holds()).collect();
        assert!(holding.len() <= 1, "seed {seed}, step {step}: {holding:?}");
        assert!(store.overlaps.is_empty(), "seed {seed}, step {step}: {:?}", store.overlaps);
        led += u64::try_from(holding.len()).unwrap();
    }
    // After all failures have ended, a replica leads in the end.
    for replica in &replicas {
        replica.thaw();
        replica.network.send_replace(Network::default());
    }
    sleep(RECOVERY_TIME).await;
    let store = server.store();
    assert_eq!(store.permits.iter().filter(|permit| permit.holds()).count(), 1, "seed {seed}");
    (store.permits.len(), led)
}

#[tokio::test(start_paused = true)]
async fn no_two_candidates_ever_hold_a_permit_at_once() {
    let (mut terms, mut led) = (0, 0);
    for seed in 0..SCHEDULES {
        let seen = play(seed).await;
        terms += seen.0;
        led += seen.1;
    }
    // A schedule in which nothing happens proves nothing.
    assert!(terms > 5 * usize::try_from(SCHEDULES).unwrap(), "{terms}");
    assert!(led > SCHEDULES * STEPS / 3, "{led}");
}
