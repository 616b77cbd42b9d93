//! Accepts evidence against Apps, and clears accepted evidence by the clocks of its nodes.

use std::collections::BTreeMap;
use std::time::Duration;

use super::context::EvaluationContext;
use crate::Moment;
use crate::clearing::{Cleared, Presence};
use crate::decision::DecisionKind;
use crate::names::{App, Key, NodeName};
use crate::policy::cluster_facts::{AcceptedPod, Verdict};
use crate::policy::incident::accepted_evidence::{AcceptedEvidence, ClearingCause, ClearingStart};
use crate::policy::incident::{EvidenceId, Incident, Phase};
use crate::policy::incidents::Incidents;
use crate::policy::incidents::refused_accusations::{self, IneffectiveAccusations};
use crate::snapshot::{EvidenceView, NodeView, State};
use crate::time::CompactDuration;

/// The identities of accepted evidence, each with its `fresh_at` and the App that it counts against.
type Known = (EvidenceId, Moment, App);

/// The App that each piece of evidence counts against, for look-ups in the order of the keys.
struct Accused {
    /// Ordered by evidence. Two Apps may have accepted the same evidence, one after the other. Then the later
    /// acceptance comes first, and of equally late ones that of the lesser App.
    known: Vec<Known>,
    /// How many of `known` come before the key that was looked up last.
    passed: usize,
}

impl Accused {
    fn new(mut known: Vec<Known>) -> Self {
        // The entries are mostly in order already, because Apps and keys are ordered by namespace first. They are
        // sorted in place, because there is one for each accusation.
        known.sort_unstable_by(|(id, at, app), (other, other_at, other_app)| {
            id.cmp(other).then(other_at.cmp(at)).then_with(|| app.cmp(other_app))
        });
        Self { known, passed: 0 }
    }

    /// What is known of the evidence of `key`, for [`accused_app`]. Keys must not descend: for a key that is less
    /// than the one before, nothing may be found.
    fn of(&mut self, key: &Key) -> &[Known] {
        let rest = self.known.get(self.passed..).unwrap_or_default();
        self.passed += rest.iter().take_while(|((other, _), ..)| other < key).count();
        let rest = self.known.get(self.passed..).unwrap_or_default();
        let count = rest.iter().take_while(|((other, _), ..)| other == key).count();
        rest.get(..count).unwrap_or_default()
    }
}

/// The App that the evidence of `node` counts against, in what [`Accused::of`] returned.
fn accused_app<'a>(known: &'a [Known], node: &NodeName) -> Option<&'a App> {
    let place = known.partition_point(|((_, other), ..)| other < node);
    known.get(place).filter(|((_, other), ..)| other == node).map(|(.., app)| app)
}

/// What an evaluation finds in the evidence, besides the accepted evidence.
#[derive(Default)]
struct Findings<'a> {
    /// The reason of each dispute.
    disputes: BTreeMap<EvidenceId, String>,
    refused: IneffectiveAccusations<'a>,
    disputed: IneffectiveAccusations<'a>,
    /// How many pieces can't be judged.
    unverified: usize,
}

/// The judgement of one piece of evidence.
struct Judgement<'e> {
    verdict: Verdict,
    /// What was judged: the evidence at hand, or earlier evidence of the same violation and node.
    evidence: &'e EvidenceView,
    fresh_at: Moment,
    /// Whether it was accepted before.
    was_accepted: bool,
    /// Whether it counts against the App that it counted against before.
    stays: bool,
}

impl Incidents {
    /// Applies the evidence of the snapshot: adds accepted evidence to its App's incident. Returns how many pieces
    /// can't be judged.
    pub(in crate::policy) fn apply_evidence(&mut self, context: &mut EvaluationContext<'_>) -> usize {
        let violations = &context.snapshot.violations;
        debug_assert!(violations.is_sorted_by(|a, b| a.key <= b.key), "violations are looked up in order");
        let mut known = self.deactivate_all();
        let earlier = std::mem::take(&mut self.unjudged);
        let mut findings = Findings::default();
        for violation in violations {
            if let Some(why) = context.refusals.of(&violation.key.namespace) {
                if violation.state == State::Active
                    && !refused_accusations::is_known(&self.by_app, violation.record())
                {
                    let active = violation.evidence().filter(|e| e.presence == Presence::Active);
                    active.for_each(|it| findings.refused.count(&it.node, &it.record, || why.into()));
                }
                continue;
            }
            let accused = known.of(&violation.key);
            for evidence in violation.evidence() {
                let Some(fresh_at) = evidence.fresh_at else { continue };
                let id = (violation.key.clone(), evidence.node.clone());
                let before = accused_app(accused, &evidence.node);
                if evidence.presence == Presence::Cleared {
                    self.note_gone(&id, (evidence, fresh_at), before);
                    continue;
                }
                let judgement = self.judge_evidence(&id, (evidence, fresh_at), before, &earlier, context);
                let Judgement { verdict, evidence: judged, fresh_at: judged_at, was_accepted, stays } =
                    judgement;
                // The node has reported the violation, so the clearing clock starts anew, even if the evidence is not
                // accepted.
                let start = ClearingStart { mark: evidence.mark, counted_from: fresh_at };
                match verdict {
                    Verdict::Accepted(pod) => {
                        let app = before.filter(|_| stays).unwrap_or(&pod.app).clone();
                        self.accept(&app, id, (judged, judged_at, pod), was_accepted, start, context);
                    }
                    // Evidence that was accepted while it was fresh is not disputed because its Pod has gone since.
                    Verdict::Disputed(_) | Verdict::Unverified(_) if was_accepted => {}
                    Verdict::Disputed(why) => {
                        findings.disputed.count(&evidence.node, &evidence.record, || why.clone().into());
                        findings.disputes.insert(id, why);
                    }
                    // The Pod is being looked up again. Until then a dispute stays.
                    Verdict::Unverified(_) => {
                        if let Some(why) = self.disputes.remove(&id) {
                            findings.disputes.insert(id, why);
                            continue;
                        }
                        findings.unverified += 1;
                        self.note_unverified(id, judged, before, start, context);
                    }
                }
            }
        }
        self.disputes = findings.disputes;
        self.log_accusations(findings.refused, findings.disputed, context);
        findings.unverified
    }

    /// Notes that evidence which the ledger has cleared is gone with its Pod.
    fn note_gone(
        &mut self,
        id: &EvidenceId,
        (evidence, fresh_at): (&EvidenceView, Moment),
        before: Option<&App>,
    ) {
        let is_gone = evidence.cleared == Some(Cleared::PodGone);
        let accepted = before.and_then(|app| self.by_app.get_mut(app)?.accepted.get_mut(id));
        // If the Pod is gone, its earlier processes are gone too.
        if let Some(accepted) = accepted.filter(|accepted| is_gone || accepted.knows(evidence, fresh_at)) {
            accepted.gone = is_gone;
        }
    }

    /// Judges a piece of evidence that counted against the App `before`.
    ///
    /// If evidence is renewed more often than its Pod is looked up, each look-up is too old for the latest evidence. So
    /// the evidence is judged as of the first moment that was not judged yet, which is in `earlier`.
    fn judge_evidence<'e>(
        &mut self,
        id: &EvidenceId,
        (evidence, fresh_at): (&'e EvidenceView, Moment),
        before: Option<&App>,
        earlier: &'e BTreeMap<EvidenceId, (Moment, EvidenceView)>,
        context: &EvaluationContext<'_>,
    ) -> Judgement<'e> {
        let accepted = before.and_then(|app| self.by_app.get(app)?.accepted.get(id));
        let judge = |evidence: &'e EvidenceView, fresh_at: Moment| {
            let known = accepted.filter(|accepted| accepted.knows(evidence, fresh_at));
            let pod = before.zip(known.map(|known| known.pod_uid.as_ref()));
            let verdict = context.facts.judge(evidence, fresh_at, pod, context.policy.verify_pods);
            let was_accepted = known.is_some();
            // Evidence that was accepted against one App stays against it, and so does later evidence of the same Pod.
            // That holds even if the Pod's labels or other rules name another App now.
            let stays = was_accepted
                || matches!(&verdict, Verdict::Accepted(pod) if accepted.is_some_and(|it| it.is_of(pod)));
            Judgement { verdict, evidence, fresh_at, was_accepted, stays }
        };
        let judgement = judge(evidence, fresh_at);
        if !matches!(judgement.verdict, Verdict::Unverified(_)) || evidence.presence != Presence::Active {
            return judgement;
        }
        let at_first = earlier.get(id).map(|(at, evidence)| judge(evidence, *at));
        let (first, judgement) = match at_first {
            None => ((fresh_at, evidence), judgement),
            Some(Judgement { verdict: Verdict::Unverified(_), evidence, fresh_at, .. }) => {
                ((fresh_at, evidence), judgement)
            }
            Some(judged) => ((fresh_at, evidence), judged),
        };
        self.unjudged.insert(id.clone(), (first.0, first.1.clone()));
        judgement
    }

    /// Adds accepted evidence to the incident of `app`. Unless `was_accepted`, the evidence was not accepted before.
    fn accept(
        &mut self,
        app: &App,
        id: EvidenceId,
        (evidence, fresh_at, pod): (&EvidenceView, Moment, AcceptedPod),
        was_accepted: bool,
        start: ClearingStart,
        context: &EvaluationContext<'_>,
    ) {
        if self.unreadable.contains(app) {
            return;
        }
        if evidence.presence == Presence::Active {
            self.accuse(app, id, (evidence, fresh_at, pod), start, context);
            return;
        }
        let incident = self.by_app.get(app);
        if !incident.is_some_and(|incident| incident.has_tombstone(&id, evidence, fresh_at)) {
            self.restart_clock(app, &id, (fresh_at, was_accepted), start);
            self.add_inactive(app, id, (evidence, fresh_at, pod), start);
        }
    }

    /// Notes evidence that can't be judged yet. It is not accepted, but it is no sign of absence either, so it clears
    /// nothing.
    fn note_unverified(
        &mut self,
        id: EvidenceId,
        evidence: &EvidenceView,
        before: Option<&App>,
        start: ClearingStart,
        context: &mut EvaluationContext<'_>,
    ) {
        if let Some(accepted) = before.and_then(|app| self.by_app.get_mut(app)?.accepted.get_mut(&id)) {
            accepted.restart_clock_anew(start);
        }
        // Old evidence counts too, because it would keep a blocked App blocked once it is judged.
        context.doubtful.insert(id.0.namespace.clone());
        if evidence.presence == Presence::Active {
            context.unjudged.insert((id.0.pod_ref(), id.1));
        }
    }

    /// Logs refused and disputed accusations that have begun.
    fn log_accusations(
        &mut self,
        refused: IneffectiveAccusations<'_>,
        disputed: IneffectiveAccusations<'_>,
        context: &mut EvaluationContext<'_>,
    ) {
        let (now, forget_after) = (context.now, context.policy.same_incident);
        for (accusations, logged, kind) in [
            (refused, &mut self.logged_refusals, DecisionKind::Exempted),
            (disputed, &mut self.logged_disputes, DecisionKind::Disputed),
        ] {
            for (app, reason) in logged.note(accusations, kind, now, forget_after) {
                context.record_decision(&app, kind, reason);
            }
        }
    }

    /// Marks all accepted evidence inactive. Fresh evidence activates it again. Returns the App of each piece.
    fn deactivate_all(&mut self) -> Accused {
        let mut known = Vec::with_capacity(self.by_app.len());
        for (app, incident) in &mut self.by_app {
            for (id, accepted) in incident.accepted.iter_mut() {
                accepted.active = false;
                known.push((id.clone(), accepted.fresh_at, app.clone()));
            }
        }
        Accused::new(known)
    }

    /// Restarts the clearing clock of accepted evidence that was renewed since the last evaluation and is old by now.
    /// Unless it `was_accepted`, it was found anew.
    fn restart_clock(
        &mut self,
        app: &App,
        id: &EvidenceId,
        (fresh_at, was_accepted): (Moment, bool),
        start: ClearingStart,
    ) {
        let accepted = self.by_app.get_mut(app).and_then(|incident| incident.accepted.get_mut(id));
        match accepted {
            Some(accepted) if !was_accepted => accepted.restart_clock_anew(start),
            Some(accepted) if accepted.fresh_at < fresh_at => accepted.restart_clock(start),
            _ => {}
        }
    }

    /// Adds evidence that was never accepted while it was fresh, because the cluster could not be read or another
    /// replica led. It leads to no block, but a blocked App stays blocked until this evidence has cleared.
    fn add_inactive(
        &mut self,
        app: &App,
        id: EvidenceId,
        (evidence, fresh_at, pod): (&EvidenceView, Moment, AcceptedPod),
        start: ClearingStart,
    ) {
        let Some(incident) = self.by_app.get_mut(app) else { return };
        if matches!(incident.phase(), Phase::Blocked { .. }) && incident.accepted.get(&id).is_none() {
            let mut accepted = AcceptedEvidence::of(evidence, pod.uid, fresh_at);
            accepted.active = false;
            accepted.restart_clock(start);
            incident.tombstones.remove(&id);
            incident.accepted.insert(id, accepted);
        }
    }

    fn accuse(
        &mut self,
        app: &App,
        id: EvidenceId,
        (evidence, fresh_at, pod): (&EvidenceView, Moment, AcceptedPod),
        start: ClearingStart,
        context: &EvaluationContext<'_>,
    ) {
        let same_incident = context.policy.same_incident;
        let incident = self.by_app.entry(app.clone()).or_insert_with(|| Incident::new(fresh_at));
        if incident.has_tombstone(&id, evidence, fresh_at) {
            return;
        }
        if let Phase::Ended { at } = incident.phase() {
            if context.now.since(at) > same_incident {
                // Operators' releases and a brake's hold outlast the incident.
                let outlasts = incident.persisted.clone();
                *incident = Incident::new(fresh_at);
                incident.persisted_mut().take_over_from(&outlasts);
            }
            incident.note_end();
            incident.set_phase(Phase::Watched);
        }
        incident.resume_block();
        if incident.persisted.rare().inherited.is_some() {
            incident.persisted_mut().reset_rare(|rare| rare.inherited = None);
        }
        incident.note_process(&id.0.process);
        incident.tombstones.remove(&id);
        if let Some(old) = incident.accepted.get_mut(&id).filter(|old| old.knows(evidence, fresh_at)) {
            old.renew(evidence);
        } else {
            let mut accepted = AcceptedEvidence::of(evidence, pod.uid, fresh_at);
            accepted.restart_clock(start);
            if let Some(old) = incident.accepted.get(&id) {
                accepted.restart_clock_anew(old.clearing_start());
                // Evidence of another Pod has to be persisted anew.
                accepted.persisted = old.persisted.filter(|_| old.pod_uid == accepted.pod_uid);
            }
            incident.accepted.insert(id, accepted);
        }
        self.note_lineage(app, pod.lineage, context);
    }

    /// Clears accepted evidence by the clocks of its nodes, and all evidence of an App that is gone.
    pub(in crate::policy) fn clear_evidence(&mut self, context: &EvaluationContext<'_>) {
        for (app, incident) in &mut self.by_app {
            let app_is_gone = context.facts.is_gone(app);
            // A block of which only the Services are known can't be matched with Pods, present or gone.
            if app_is_gone
                && incident.persisted.rare().inherited.as_ref().is_some_and(|accused| !accused.is_empty())
            {
                incident.persisted_mut().reset_rare(|rare| rare.inherited = None);
            }
            let why = |(key, node): &EvidenceId, accepted: &AcceptedEvidence, view: Option<&NodeView>| {
                if app_is_gone {
                    return Some(ClearingCause::AppGone);
                }
                // If the ledger does not know a violation, all answers of its node were inconclusive about it.
                let inconclusive =
                    || context.snapshot.inconclusive(key, node).unwrap_or(Duration::MAX.into());
                let cleared = match view {
                    // As of the snapshot, because a node may have answered since.
                    Some(view) => view.clock.cleared(
                        accepted.mark,
                        accepted.away,
                        inconclusive,
                        accepted.counted_from,
                        context.snapshot.at,
                    ),
                    // A node that the ledger does not know has not answered since.
                    None => (context.now.since(accepted.counted_from) >= context.policy.unreachable_limit)
                        .then_some(Cleared::Unreachable),
                };
                cleared.map(ClearingCause::By)
            };
            let mut cleared: Vec<(EvidenceId, ClearingCause)> = Vec::new();
            for (id, accepted) in incident.accepted.iter_mut() {
                let view = context.snapshot.nodes.get(&id.1);
                if let Some(view) = view {
                    accepted.scan_interval = view.interval;
                }
                if let Some(by) = why(id, accepted, view) {
                    cleared.push((id.clone(), by));
                }
                if let Some(view) = view {
                    let inconclusive =
                        || context.snapshot.inconclusive(&id.0, &id.1).unwrap_or(CompactDuration::ZERO);
                    accepted.note_hidden(&view.clock, inconclusive);
                }
            }
            if app_is_gone {
                incident.cleared = Some(ClearingCause::AppGone);
            }
            for (id, by) in cleared {
                if let Some(accepted) = incident.accepted.remove(&id) {
                    incident.cleared = Some(by);
                    incident.add_tombstone(id, accepted, by, context.now.wall());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use jiff::Timestamp;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn evidence_counts_against_the_app_that_accepted_it_last(accepted in vec((0..4_u8, 0..3_u8, 0..3_u64, 0..3_u8), 0..16)) {
            let key = |n: u8| Key::new("ns-a", format!("web-{n}"), "xmrig");
            let node = |n: u8| NodeName::new(format!("node-{n}"));
            let mut latest: BTreeMap<(u8, u8), (u64, u8)> = BTreeMap::new();
            let known = accepted.iter().map(|(pod, of, at, app)| {
                let last = latest.entry((*pod, *of)).or_insert((*at, *app));
                if last.0 < *at || last.0 == *at && *app < last.1 {
                    *last = (*at, *app);
                }
                let at = Moment::new(Duration::from_secs(*at), Timestamp::UNIX_EPOCH);
                ((key(*pod), node(*of)), at, App::new("ns-a", "app", app.to_string()))
            });
            let mut accused = Accused::new(known.collect());
            for pod in 0..4 {
                let known = accused.of(&key(pod));
                for of in 0..3 {
                    let found = accused_app(known, &node(of)).map(|app| app.name.to_string());
                    prop_assert_eq!(found, latest.get(&(pod, of)).map(|(_, app)| app.to_string()));
                }
            }
        }
    }
}
