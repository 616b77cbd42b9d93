//! Which incidents are history, and kept no longer.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use procscan_core::names::Text;
use procscan_core::state::IncidentState;

use crate::state::Kept;

/// How many ended incidents of one namespace are kept: a tenant can make any number of Apps.
const MAX_PER_NAMESPACE: usize = 1000;
/// How many are forgotten at once.
const SWEPT: usize = 200;

/// The incidents that ended longer than `retention` ago, or before many others of their namespace, by name, apart from those that
/// are `known`: they may go on.
pub(super) fn over(
    kept: &Kept,
    known: &BTreeSet<String>,
    retention: Duration,
    now: Timestamp,
) -> Vec<String> {
    let mut ended: BTreeMap<&Text, Vec<(Timestamp, &Text)>> = BTreeMap::new();
    for (name, incident) in kept.incidents.iter().filter(|(name, _)| !known.contains(&***name)) {
        let Some(brief) = incident.brief() else { continue };
        if let Some(since) = brief.since.filter(|_| brief.state == IncidentState::Ended)
            && brief.released_until.is_none_or(|until| until.get() <= now)
        {
            ended.entry(&incident.app.namespace).or_default().push((since.get(), name));
        }
    }
    let mut over = Vec::new();
    for mut of_namespace in ended.into_values() {
        // The latest first.
        of_namespace.sort_unstable_by(|a, b| b.cmp(a));
        let is_over = |(rank, (since, _)): &(usize, (Timestamp, &Text))| {
            *rank >= MAX_PER_NAMESPACE || since.checked_add(retention).is_ok_and(|end| end < now)
        };
        over.extend(
            of_namespace.into_iter().enumerate().filter(is_over).map(|(_, (_, name))| name.to_string()),
        );
    }
    over.truncate(SWEPT);
    over
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use jiff::SignedDuration;
    use procscan_core::names::App;
    use procscan_core::state::{IncidentSpec, IncidentStatus};
    use serde_json::json;

    use super::*;
    use crate::state::KeptIncident;

    const RETENTION: Duration = Duration::from_hours(1);

    fn kept(incidents: &[(&str, &str, &str, i64)]) -> Kept {
        let mut kept = Kept::default();
        for (name, namespace, state, minutes) in incidents {
            let since = Timestamp::UNIX_EPOCH + SignedDuration::from_mins(*minutes);
            let status = json!({"state": state, "opened": since, "since": since});
            let status: IncidentStatus = serde_json::from_value(status).unwrap();
            let spec = IncidentSpec::of(&App::new(*namespace, "app", *name));
            let incident = KeptIncident::new(spec, Some(&status), 1, None).unwrap();
            kept.incidents.insert((*name).into(), Arc::new(incident));
        }
        kept
    }

    #[test]
    fn what_ended_long_ago_or_before_many_others_of_its_namespace_is_over() {
        let now = Timestamp::UNIX_EPOCH + SignedDuration::from_mins(100);
        let seen = kept(&[
            ("old", "ns-a", "Ended", 39),
            ("known", "ns-a", "Ended", 39),
            ("blocked", "ns-a", "Blocked", 0),
            ("new", "ns-a", "Ended", 40),
        ]);
        assert_eq!(over(&seen, &["known".to_owned()].into(), RETENTION, now), ["old"]);

        let names: Vec<String> = (0..MAX_PER_NAMESPACE + 2).map(|n| format!("i-{n:04}")).collect();
        let mut many: Vec<_> = names.iter().map(|name| (name.as_str(), "ns-b", "Ended", 90)).collect();
        many[500].3 = 80;
        many[700].3 = 81;
        many.push(("other", "ns-c", "Ended", 70));
        assert_eq!(over(&kept(&many), &BTreeSet::new(), RETENTION, now), ["i-0700", "i-0500"]);
    }
}
