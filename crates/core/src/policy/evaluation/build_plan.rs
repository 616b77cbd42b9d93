//! Makes the plan from the incidents as they are.

use std::cmp::Ordering;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;

use jiff::Timestamp;

use super::notify::{may_be_notified, notice_phase, notification_kind};
use crate::Moment;
use crate::names::{App, Key, NodeName};
use crate::plan::{Accusation, Block, Notice, NoticePhase, OtherApps, Plan, Summary};
use crate::policy::Policy;
use crate::policy::cluster_facts::ClusterFacts;
use crate::policy::incident::Incident;
use crate::policy::incident::Phase;
use crate::policy::incident::accepted_evidence::AcceptedEvidence;
use crate::policy::incidents::{Incidents, LastPlan};

/// The block of `app`, made from its incident.
pub(in crate::policy) fn block(app: &App, incident: &Incident, since: Timestamp) -> Block {
    Block {
        app: app.clone(),
        since,
        grounds: accusations(incident),
        left: left(incident),
        exposure: incident.persisted.exposure.clone(),
        reason: incident.persisted.exposure.complete(&incident.persisted.reason),
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

/// The violations that a block was for, if no accepted evidence is left.
fn left(incident: &Incident) -> Box<[Key]> {
    match &incident.persisted.rare().inherited {
        _ if !incident.accepted.is_empty() => Box::default(),
        Some(accused) => accused.iter().cloned().collect(),
        // Its release is held, so the App is still blocked for evidence that has cleared.
        None => incident.tombstones.keys().map(|(key, _)| key.clone()).collect(),
    }
}

/// The part of the last plan that equals `now`, or `now`. Both plans are ordered by App. `order` compares a part of
/// the last plan with `now`.
pub(in crate::policy) fn same<T: PartialEq>(
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

/// The other Apps that are closed with the App of `incident` in `phase`.
pub(in crate::policy) fn closed_too(incident: &Incident, phase: NoticePhase) -> Option<Box<OtherApps>> {
    incident.persisted.exposure.others.clone().filter(|_| phase == NoticePhase::Blocked)
}

impl Incidents {
    /// The plan that follows from the incidents as they are.
    pub fn plan(&mut self, policy: &Policy, facts: &ClusterFacts, now: Moment) -> Plan {
        let mode = policy.mode;
        let last = std::mem::take(&mut self.last_plan);
        let mut blocks = Vec::with_capacity(last.blocks.len());
        let mut notices = Vec::with_capacity(last.notices.len());
        let (mut last_blocks, mut last_notices) = (last.blocks.into_iter(), last.notices.into_iter());
        // A hash of the phase of each App shows any change of the set. Its key is secret, so a tenant can't make two
        // sets with the same hash.
        let mut hasher = last.summary_hash.0.build_hasher();
        let mut summary = Summary { blocked: 0, in_grace: 0, held: 0, changed: now.wall() };
        for (app, incident) in &self.by_app {
            let phase = notice_phase(incident, mode);
            match (phase, incident.phase()) {
                (NoticePhase::Blocked, Phase::Blocked { since, .. }) => {
                    summary.blocked += 1;
                    (app, 0_u8).hash(&mut hasher);
                    blocks.push(same(
                        &mut last_blocks,
                        |last| last.app.cmp(app),
                        block(app, incident, since.wall()),
                    ));
                }
                (_, Phase::Grace { .. }) => {
                    summary.in_grace += 1;
                    (app, 1_u8).hash(&mut hasher);
                }
                (_, Phase::Held) => {
                    summary.held += 1;
                    (app, 2_u8).hash(&mut hasher);
                }
                _ => {}
            }
            // A tenant that waits for a notification, or gets none, keeps the Notification that it has.
            let sent = incident.persisted.notification.filter(|sent| sent.kind == notification_kind(&phase));
            if let Some(sent) = sent.filter(|_| may_be_notified(app, incident, policy, facts)) {
                let notice = Notice {
                    app: app.clone(),
                    sent_at: sent.sent_at.get(),
                    inherited: sent.inherited,
                    phase,
                    processes: incident.persisted.processes.iter().cloned().collect(),
                    others: closed_too(incident, phase),
                };
                notices.push(same(&mut last_notices, |last| last.app.cmp(app), notice));
            }
        }
        summary.blocked += self.unreadable.blocks().count();
        self.unreadable.blocks().for_each(|block| (&block.app, 0_u8).hash(&mut hasher));
        self.unreadable.add_to(&mut blocks);
        // The vectors live until the next plan, and `last_plan` has copies of them.
        blocks.shrink_to_fit();
        notices.shrink_to_fit();
        let (hashing, before) = last.summary_hash;
        let hash = hasher.finish();
        let before = before.filter(|(before, _)| *before == hash);
        summary.changed = before.map_or(summary.changed, |(_, changed)| changed);
        let summary_hash = (hashing, Some((hash, summary.changed)));
        self.last_plan = LastPlan { blocks: blocks.clone(), notices: notices.clone(), summary_hash };
        Plan { mode, blocks, notices, summary }
    }

    /// The blocks and holds as of the last decision, without deciding anything. A replica that does not lead shows
    /// them.
    pub fn current_plan(&self, policy: &Policy, now: Moment) -> Plan {
        let mut plan = Plan::empty(policy.mode, now.wall());
        for (app, incident) in &self.by_app {
            match incident.phase() {
                Phase::Blocked { since, .. } => {
                    plan.blocks.push(Arc::new(block(app, incident, since.wall())));
                }
                Phase::Grace { .. } => plan.summary.in_grace += 1,
                Phase::Held => plan.summary.held += 1,
                Phase::Watched | Phase::Ended { .. } => {}
            }
        }
        self.unreadable.add_to(&mut plan.blocks);
        plan.summary.blocked = plan.blocks.len();
        plan
    }
}
