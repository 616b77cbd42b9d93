//! Makes the parts of a plan from incidents.

use std::cmp::Ordering;
use std::sync::Arc;

use jiff::Timestamp;

use super::accepted_evidence::AcceptedEvidence;
use super::incident::Incident;
use crate::names::{App, Key, NodeName};
use crate::plan::{Accusation, Block, NoticePhase, OtherApps};

/// The block of `app`, made from its incident.
pub(super) fn block(app: &App, incident: &Incident, since: Timestamp) -> Block {
    Block {
        app: app.clone(),
        since,
        grounds: accusations(incident),
        left: left(incident),
        exposure: incident.exposure.clone(),
        reason: incident.exposure.complete(&incident.reason),
    }
}

fn accusations(incident: &Incident) -> Box<[Accusation]> {
    let accepted = incident.accepted.iter();
    let accusation = |((key, node), accepted): (&(Key, NodeName), &AcceptedEvidence)| Accusation {
        key: key.clone(),
        rule: accepted.record.rule().clone(),
        by_keyword: accepted.record.regex.is_empty(),
        node: node.clone(),
    };
    accepted.map(accusation).collect()
}

/// The violations of a block that no ground supports any more.
fn left(incident: &Incident) -> Box<[Key]> {
    match &incident.inherited {
        _ if !incident.accepted.is_empty() => Box::default(),
        Some(accused) => accused.iter().cloned().collect(),
        // Its release is held, so it is still blocked for what has cleared.
        None => incident.tombstones.keys().map(|(key, _)| key.clone()).collect(),
    }
}

/// The part of the last plan that equals `now`, or `now`. Both plans are ordered by App; `order` compares a part of the
/// last one with `now`.
pub(super) fn same<T: PartialEq>(
    last: &mut std::vec::IntoIter<Arc<T>>,
    order: impl Fn(&T) -> Ordering,
    now: T,
) -> Arc<T> {
    while let Some(next) = last.as_slice().first() {
        match order(next) {
            Ordering::Greater => break,
            Ordering::Equal => {
                return last.next().filter(|last| **last == now).unwrap_or_else(|| Arc::new(now));
            }
            Ordering::Less => drop(last.next()),
        }
    }
    Arc::new(now)
}

/// The other Apps that are closed with it in `phase`.
pub(super) fn closed_too(incident: &Incident, phase: NoticePhase) -> Option<Box<OtherApps>> {
    incident.exposure.others.clone().filter(|_| phase == NoticePhase::Blocked)
}
