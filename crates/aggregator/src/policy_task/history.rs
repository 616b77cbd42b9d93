//! Selects the ended incidents whose retention is over, so that they are removed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use procscan_core::Moment;
use procscan_core::names::Text;
use procscan_core::state::IncidentState;

use crate::state::PersistedState;

/// How many ended incidents of one namespace stay persisted. Limited, because a tenant can make any number of Apps.
const MAX_PER_NAMESPACE: usize = 1000;
/// How many incidents are removed at once.
const MAX_REMOVED_AT_ONCE: usize = 200;

/// The wall time, but no later than the start of the term plus the time measured since. So a wall clock that jumps
/// ahead makes no incident old. `began` is a moment with a wall time that had certainly passed by then.
pub(super) fn certain_wall_time(now: Moment, (moment, wall): (Moment, Timestamp)) -> Timestamp {
    wall.checked_add(now.since(moment)).map_or(now.wall(), |measured| measured.min(now.wall()))
}

/// When an incident ended.
struct End<'a> {
    /// By the leader clock, which runs only while a replica leads; `since` if its reading is not known.
    clock: Timestamp,
    since: Timestamp,
    name: &'a Text,
}

/// The names of the incidents that ended longer than `retention` ago, or before too many others of their namespace.
/// Incidents that are `known` are left out, because they may go on. `wall` is the time by the wall clock, and `clock`
/// the time by the leader clock, which runs only while a replica leads. An incident is old only by both clocks.
pub(super) fn expired(
    state: &PersistedState,
    known: &BTreeSet<String>,
    retention: Duration,
    (wall, clock): (Timestamp, Timestamp),
) -> Vec<String> {
    let mut ended: BTreeMap<&Text, Vec<End<'_>>> = BTreeMap::new();
    for (name, incident) in state.incidents.iter().filter(|(name, _)| !known.contains(&***name)) {
        let Some(summary) = incident.summary() else { continue };
        if let Some(since) = summary.since.filter(|_| summary.state == IncidentState::Ended)
            && summary.released_until.is_none_or(|until| until.get() <= wall)
        {
            let end = End { clock: summary.clock.unwrap_or(since).get(), since: since.get(), name };
            ended.entry(&incident.app.namespace).or_default().push(end);
        }
    }
    let is_older = |at: Timestamp, now: Timestamp| at.checked_add(retention).is_ok_and(|end| end < now);
    let mut expired = Vec::new();
    for mut of_namespace in ended.into_values() {
        // The latest first.
        of_namespace.sort_unstable_by(|a, b| (b.clock, b.name).cmp(&(a.clock, a.name)));
        let is_expired = |(rank, end): &(usize, End<'_>)| {
            *rank >= MAX_PER_NAMESPACE || (is_older(end.since, wall) && is_older(end.clock, clock))
        };
        expired.extend(
            of_namespace.into_iter().enumerate().filter(is_expired).map(|(_, end)| end.name.to_string()),
        );
    }
    expired.truncate(MAX_REMOVED_AT_ONCE);
    expired
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use jiff::SignedDuration;
    use procscan_core::names::App;
    use procscan_core::state::{IncidentSpec, IncidentStatus};
    use serde_json::json;

    use super::*;
    use crate::state::IncidentEntry;

    const RETENTION: Duration = Duration::from_hours(1);

    fn state(incidents: &[(&str, &str, &str, i64)]) -> PersistedState {
        let mut persisted = PersistedState::default();
        for (name, namespace, state, minutes) in incidents {
            let since = Timestamp::UNIX_EPOCH + SignedDuration::from_mins(*minutes);
            let status = json!({"state": state, "opened": since, "since": since});
            let status: IncidentStatus = serde_json::from_value(status).unwrap();
            let spec = IncidentSpec::of(&App::new(*namespace, "app", *name));
            let incident = IncidentEntry::new(spec, Some(&status), 1, None).unwrap();
            persisted.incidents.insert((*name).into(), Arc::new(incident));
        }
        persisted
    }

    #[test]
    fn incidents_that_ended_long_ago_or_before_many_others_of_their_namespace_have_expired() {
        let now = Timestamp::UNIX_EPOCH + SignedDuration::from_mins(100);
        let persisted = state(&[
            ("old", "ns-a", "Ended", 39),
            ("known", "ns-a", "Ended", 39),
            ("blocked", "ns-a", "Blocked", 0),
            ("new", "ns-a", "Ended", 40),
        ]);
        assert_eq!(expired(&persisted, &["known".to_owned()].into(), RETENTION, (now, now)), ["old"]);

        let names: Vec<String> = (0..MAX_PER_NAMESPACE + 2).map(|n| format!("i-{n:04}")).collect();
        let mut many: Vec<_> = names.iter().map(|name| (name.as_str(), "ns-b", "Ended", 90)).collect();
        many[500].3 = 80;
        many[700].3 = 81;
        many.push(("other", "ns-c", "Ended", 70));
        assert_eq!(expired(&state(&many), &BTreeSet::new(), RETENTION, (now, now)), ["i-0700", "i-0500"]);
    }

    #[test]
    fn a_wall_clock_that_jumps_ahead_makes_no_incident_old() {
        let now = Timestamp::UNIX_EPOCH + SignedDuration::from_mins(100);
        let ahead = now + SignedDuration::from_hours(1000);
        let persisted = state(&[("old", "ns-a", "Ended", 39), ("new", "ns-a", "Ended", 90)]);
        assert_eq!(expired(&persisted, &BTreeSet::new(), RETENTION, (ahead, now)), ["old"]);
        assert_eq!(expired(&persisted, &BTreeSet::new(), RETENTION, (now, ahead)), ["old"]);

        let began = (Moment::new(Duration::from_mins(5), now), now);
        let later = |minutes: u64, wall| Moment::new(Duration::from_mins(5 + minutes), wall);
        assert_eq!(certain_wall_time(later(10, ahead), began), now + SignedDuration::from_mins(10));
        assert_eq!(certain_wall_time(later(10, now), began), now);
    }
}
