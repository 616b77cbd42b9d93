//! A process that is killed at any moment.

use std::hash::{BuildHasher, RandomState};
use std::time::Instant;

use tempfile::tempdir;

use super::processes::{Other, given_directory};
use super::*;

const KILLS: u64 = 20;

#[tokio::test]
#[ignore = "a part of `a_killed_process_leaves_whole_batches_and_all_that_it_has_reported`, which runs it"]
async fn commits_until_it_is_killed() {
    let sqlite = open(&given_directory()).await;
    for number in last_whole(&sqlite).await + 1.. {
        sqlite.commit(&numbered(number)).await.unwrap();
        println!("committed {number}");
    }
}

#[tokio::test]
async fn a_killed_process_leaves_whole_batches_and_all_that_it_has_reported() {
    let directory = tempdir().unwrap();
    let random = RandomState::new();
    let (mut last, mut cut_short, mut kills) = (0, 0, 0);
    // At least one of the kills has to hit a commit that is half done.
    while kills < KILLS || cut_short == 0 {
        assert!(kills < 20 * KILLS, "no commit was ever cut short: the moments are not random");
        let mut other = Other::run("killed::commits_until_it_is_killed", directory.path());
        let mut next_report = || Some(other.read_after("committed ")?.parse::<u64>().unwrap());
        let mut reported = next_report().unwrap();
        let begun = Instant::now();
        let more = random.hash_one((kills, "more")) % 4 + 1;
        for _ in 0..more {
            reported = next_report().unwrap();
        }
        // Anywhere within the time that two commits take. Waiting without sleeping, which would wake up with the disk.
        let pace = begun.elapsed().as_secs_f64() / f64::from(u32::try_from(more).unwrap());
        let part = f64::from(u32::try_from(random.hash_one((kills, "when")) % 1000).unwrap()) / 500.0;
        let moment = Instant::now();
        while moment.elapsed().as_secs_f64() < pace * part {
            std::hint::spin_loop();
        }
        other.child.kill().unwrap();
        other.child.wait().unwrap();
        while let Some(number) = other.read_after("committed ") {
            reported = number.parse().unwrap();
        }
        let journal = std::fs::metadata(directory.path().join("state.db-journal"));
        cut_short += u64::from(journal.is_ok_and(|journal| journal.len() > 0));

        let sqlite = open(directory.path()).await;
        let found = last_whole(&sqlite).await;
        assert!(found >= reported && found <= reported + 1, "{found} is there, {reported} was reported");
        assert!(found > last);
        last = found;
        kills += 1;
    }
    println!("{kills} kills, {cut_short} of them within a commit, {last} batches");
}
