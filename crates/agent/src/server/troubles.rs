//! Tells the log of each trouble when it begins and when it is over, not at each scan.
//!
//! A tenant can let a trouble come and go with each scan. So it is over only after it has been absent for a while.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

/// How long a trouble must be absent to be over.
const QUIET: Duration = Duration::from_mins(10);
/// Troubles that are known at a time; further ones are not told.
const MOST: usize = 1000;

#[derive(Debug, Default)]
pub(super) struct Troubles {
    last_seen: BTreeMap<String, Instant>,
}

/// A trouble of one scan.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    /// The same text for the same trouble, whatever it counts.
    pub(super) kind: String,
    /// What the log is told.
    pub(super) text: String,
}

/// What the log has to be told.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum News {
    Begun(String),
    /// A trouble of this kind is over.
    Over(String),
}

impl Troubles {
    /// Takes in the troubles of a scan.
    pub(super) fn see(&mut self, present: Vec<Trouble>, now: Instant) -> Vec<News> {
        let mut news = Vec::new();
        for Trouble { kind, text } in present {
            if let Some(last_seen) = self.last_seen.get_mut(&kind) {
                *last_seen = now;
            } else if self.last_seen.len() < MOST {
                self.last_seen.insert(kind, now);
                news.push(News::Begun(text));
            }
        }
        let is_over = |last_seen: Instant| now.saturating_duration_since(last_seen) >= QUIET;
        let over: Vec<String> =
            self.last_seen.extract_if(.., |_, last_seen| is_over(*last_seen)).map(|(kind, _)| kind).collect();
        news.extend(over.into_iter().map(News::Over));
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trouble(kind: &str, count: u64) -> Trouble {
        Trouble { kind: kind.into(), text: format!("{count} of {kind}") }
    }

    #[test]
    fn a_trouble_is_told_when_it_begins_and_when_it_is_over_however_often_it_comes_and_goes() {
        let (mut troubles, start) = (Troubles::default(), Instant::now());
        let mut news = Vec::new();
        for second in 0..3600 {
            let present = if second % 2 == 0 { vec![trouble("a", second)] } else { Vec::new() };
            news.extend(troubles.see(present, start + Duration::from_secs(second)));
        }
        assert_eq!(news, [News::Begun("0 of a".into())]);
        let later = start + Duration::from_hours(1);
        assert_eq!(troubles.see(vec![trouble("b", 1)], later), [News::Begun("1 of b".into())]);
        let over = troubles.see(vec![trouble("b", 2)], later + QUIET);
        assert_eq!(over, [News::Over("a".into())]);
        assert_eq!(troubles.see(vec![trouble("a", 9)], later + QUIET), [News::Begun("9 of a".into())]);
    }

    #[test]
    fn only_so_many_troubles_are_told() {
        let mut troubles = Troubles::default();
        let flood = (0..5000).map(|n| trouble(&format!("{n}"), n)).collect();
        assert_eq!(troubles.see(flood, Instant::now()).len(), MOST);
    }
}
