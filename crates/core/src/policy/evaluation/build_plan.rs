//! The plan: what follows from the incidents as they are.

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

/// The violations of a block that no ground supports any more.
fn left(incident: &Incident) -> Box<[Key]> {
    match &incident.persisted.rare().inherited {
        _ if !incident.accepted.is_empty() => Box::default(),
        Some(accused) => accused.iter().cloned().collect(),
        // Its release is held, so it is still blocked for what has cleared.
        None => incident.tombstones.keys().map(|(key, _)| key.clone()).collect(),
    }
}

/// The part of the last plan that equals `now`, or `now`. Both plans are ordered by App; `order` compares a part of the
/// last one with `now`.
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

/// The other Apps that are closed with it in `phase`.
pub(in crate::policy) fn closed_too(incident: &Incident, phase: NoticePhase) -> Option<Box<OtherApps>> {
    incident.persisted.exposure.others.clone().filter(|_| phase == NoticePhase::Blocked)
}

impl Incidents {
    /// What follows from the book as it is.
    pub fn plan(&mut self, policy: &Policy, facts: &ClusterFacts, now: Moment) -> Plan {
        // Whatever has been decided has been kept by now, so both are as they will be for a while.
        let [incidents, effective] = &mut self.dense;
        incidents.fill(&mut self.by_app);
        effective.fill(&mut self.committed);
        let mode = policy.mode;
        let last = std::mem::take(&mut self.last_plan);
        let mut blocks = Vec::with_capacity(last.blocks.len());
        let mut notices = Vec::with_capacity(last.notices.len());
        let (mut last_blocks, mut last_notices) = (last.blocks.into_iter(), last.notices.into_iter());
        // What is happening to each App, so that any change of the set is seen. The key is a secret, so nobody can look for two sets
        // that look the same.
        let mut standing = last.standing.0.build_hasher();
        let mut summary = Summary { blocked: 0, in_grace: 0, held: 0, changed: now.wall() };
        for (app, incident) in &self.by_app {
            let phase = notice_phase(incident, mode);
            match (phase, incident.phase()) {
                (NoticePhase::Blocked, Phase::Blocked { since, .. }) => {
                    summary.blocked += 1;
                    (app, 0_u8).hash(&mut standing);
                    blocks.push(same(
                        &mut last_blocks,
                        |last| last.app.cmp(app),
                        block(app, incident, since.wall()),
                    ));
                }
                (_, Phase::Grace { .. }) => {
                    summary.in_grace += 1;
                    (app, 1_u8).hash(&mut standing);
                }
                (_, Phase::Held) => {
                    summary.held += 1;
                    (app, 2_u8).hash(&mut standing);
                }
                _ => {}
            }
            // A tenant that waits to be told, or is not to be told, keeps the Notification that it has.
            let told = incident.persisted.notification.filter(|told| told.kind == notification_kind(&phase));
            if let Some(told) = told.filter(|_| may_be_notified(app, incident, policy, facts)) {
                let notice = Notice {
                    app: app.clone(),
                    sent_at: told.sent_at.get(),
                    inherited: told.inherited,
                    phase,
                    processes: incident.persisted.processes.iter().cloned().collect(),
                    others: closed_too(incident, phase),
                };
                notices.push(same(&mut last_notices, |last| last.app.cmp(app), notice));
            }
        }
        summary.blocked += self.unreadable.blocks().count();
        self.unreadable.blocks().for_each(|block| (&block.app, 0_u8).hash(&mut standing));
        self.unreadable.add_to(&mut blocks);
        // They live until the next plan, and `last` has copies of them.
        blocks.shrink_to_fit();
        notices.shrink_to_fit();
        let (hashing, before) = last.standing;
        let standing = standing.finish();
        let before = before.filter(|(before, _)| *before == standing);
        summary.changed = before.map_or(summary.changed, |(_, changed)| changed);
        let standing = (hashing, Some((standing, summary.changed)));
        self.last_plan = LastPlan { blocks: blocks.clone(), notices: notices.clone(), standing };
        Plan { mode, blocks, notices, summary }
    }

    /// What is blocked and held as of the last decision, without deciding anything: what a replica shows that only follows.
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
