//! Logs each trouble of the scans when it begins and when it is over, not at each scan.
//!
//! A tenant can cause and remove a trouble with each scan. So it is over only after an absence of [`QUIET`].

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

/// How long a trouble must be absent to be over.
const QUIET: Duration = Duration::from_mins(10);
/// How many troubles are remembered; further ones are not logged.
const MOST: usize = 1000;

#[derive(Debug, Default)]
pub(super) struct Troubles {
    last_seen: BTreeMap<String, Instant>,
}

/// A trouble of one scan.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    /// The same text for the same kind of trouble, for any count.
    pub(super) kind: String,
    /// The message for the log.
    pub(super) text: String,
}

/// A change that is logged.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    Begun(String),
    /// A trouble of this kind is over.
    Over(String),
}

impl Troubles {
    /// Takes the troubles of a scan. Returns the changes to log.
    pub(super) fn update(&mut self, present: Vec<Trouble>, now: Instant) -> Vec<Change> {
        let mut changes = Vec::new();
        for Trouble { kind, text } in present {
            if let Some(last_seen) = self.last_seen.get_mut(&kind) {
                *last_seen = now;
            } else if self.last_seen.len() < MOST {
                self.last_seen.insert(kind, now);
                changes.push(Change::Begun(text));
            }
        }
        let is_over = |last_seen: Instant| now.saturating_duration_since(last_seen) >= QUIET;
        let over: Vec<String> =
            self.last_seen.extract_if(.., |_, last_seen| is_over(*last_seen)).map(|(kind, _)| kind).collect();
        changes.extend(over.into_iter().map(Change::Over));
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trouble(kind: &str, count: u64) -> Trouble {
        Trouble { kind: kind.into(), text: format!("{count} of {kind}") }
    }

    #[test]
    fn an_alternating_trouble_is_logged_when_it_begins_and_when_it_is_over() {
        let (mut troubles, start) = (Troubles::default(), Instant::now());
        let mut changes = Vec::new();
        for second in 0..3600 {
            let present = if second % 2 == 0 { vec![trouble("a", second)] } else { Vec::new() };
            changes.extend(troubles.update(present, start + Duration::from_secs(second)));
        }
        assert_eq!(changes, [Change::Begun("0 of a".into())]);
        let later = start + Duration::from_hours(1);
        assert_eq!(troubles.update(vec![trouble("b", 1)], later), [Change::Begun("1 of b".into())]);
        let over = troubles.update(vec![trouble("b", 2)], later + QUIET);
        assert_eq!(over, [Change::Over("a".into())]);
        assert_eq!(troubles.update(vec![trouble("a", 9)], later + QUIET), [Change::Begun("9 of a".into())]);
    }

    #[test]
    fn the_number_of_remembered_troubles_is_limited() {
        let mut troubles = Troubles::default();
        let flood = (0..5000).map(|n| trouble(&format!("{n}"), n)).collect();
        assert_eq!(troubles.update(flood, Instant::now()).len(), MOST);
    }
}
