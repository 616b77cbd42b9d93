//! Whether every miner is in `GET /api/violations`.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::load::Load;

/// How often the list is read.
const PERIOD: Duration = Duration::from_secs(5);
/// How soon a client without an answer tries again, because hostile clients take all places most of the time.
const RETRY: Duration = Duration::from_millis(50);
const TICK: Duration = Duration::from_millis(100);

/// The results of the reads.
#[derive(Default)]
pub(super) struct Listed {
    /// How many lists were read.
    pub(super) looks: usize,
    /// How many could not be read within [`PERIOD`].
    refused: usize,
    /// The most miners of one behaviour that a list lacked.
    pub(super) missing: BTreeMap<&'static str, usize>,
    /// How many lists were read up to the last one that lacked a miner.
    last_incomplete: usize,
}

impl fmt::Display for Listed {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{} lists read, {} not answered", self.looks, self.refused)?;
        for (behaviour, count) in &self.missing {
            write!(to, "; {count} of {behaviour} missing")?;
        }
        if self.last_incomplete > 0 {
            write!(to, "; the last incomplete list was number {}", self.last_incomplete)?;
        }
        Ok(())
    }
}

/// Reads the list until it is stopped, for the first time after `start`. `miners` are Pods, and the behaviour of their nodes.
pub(super) fn watch(
    port: u16,
    miners: &[(String, &'static str)],
    start: Duration,
    stop: &AtomicBool,
) -> Listed {
    let load = Load {
        port,
        path: "/api/violations",
        headers: "",
        status: 200,
        length: None,
        connections: 1,
        per_second: None,
    };
    let mut listed = Listed::default();
    let mut due = Instant::now() + start;
    while !stop.load(Ordering::Relaxed) {
        if Instant::now() < due {
            std::thread::sleep(TICK);
            continue;
        }
        due = Instant::now() + PERIOD;
        loop {
            if let Ok(answer) = load.once() {
                listed.look(&String::from_utf8_lossy(&answer.body), miners);
                break;
            }
            if Instant::now() >= due || stop.load(Ordering::Relaxed) {
                listed.refused += 1;
                break;
            }
            std::thread::sleep(RETRY);
        }
    }
    listed
}

impl Listed {
    fn look(&mut self, list: &str, miners: &[(String, &'static str)]) {
        self.looks += 1;
        let pods: HashSet<&str> =
            list.split("\"pod\":\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        let mut missing: BTreeMap<&'static str, usize> = BTreeMap::new();
        for (_, behaviour) in miners.iter().filter(|(pod, _)| !pods.contains(pod.as_str())) {
            *missing.entry(behaviour).or_default() += 1;
        }
        if !missing.is_empty() {
            self.last_incomplete = self.looks;
        }
        for (behaviour, count) in missing {
            let most = self.missing.entry(behaviour).or_default();
            *most = count.max(*most);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_list_that_lacks_a_miner_is_noticed() {
        let miners = [("a".to_owned(), "healthy"), ("b".to_owned(), "x-gzip"), ("c".to_owned(), "x-gzip")];
        let mut listed = Listed::default();
        listed.look(r#"{"violations":[{"pod":"a"},{"pod":"b","name":"b"},{"pod":"c"}]}"#, &miners);
        assert_eq!(listed.to_string(), "1 lists read, 0 not answered");
        listed.look(r#"{"violations":[{"pod":"a","name":"b"}]}"#, &miners);
        listed.look(r#"{"violations":[{"pod":"a"},{"pod":"b"}]}"#, &miners);
        assert_eq!(
            listed.to_string(),
            "3 lists read, 0 not answered; 2 of x-gzip missing; the last incomplete list was number 3"
        );
    }
}
