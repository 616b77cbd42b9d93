//! From evidence to grounds: what is accepted against whom, and for how long.

use std::collections::{BTreeMap, BTreeSet};

use super::book::{Book, ClearedGround, Ground, Incident, Standing};
use super::decision::DecisionKind;
use super::evaluate::Pass;
use super::facts::{Verdict, claimed_app};
use crate::Moment;
use crate::ledger::{Cleared, Presence};
use crate::names::{App, Key, NodeName};
use crate::snapshot::{EvidenceView, State};

impl Book {
    /// Takes in the evidence: accepted evidence becomes a ground of its App's incident. Returns how much can't be judged.
    pub(super) fn hear(&mut self, pass: &mut Pass<'_>) -> usize {
        for incident in self.incidents.values_mut() {
            for ground in incident.grounds.values_mut() {
                ground.active = false;
            }
        }
        let mut known: BTreeMap<_, _> = BTreeMap::new();
        for (app, incident) in &self.incidents {
            for (id, ground) in &incident.grounds {
                known.insert(id.clone(), (app.clone(), ground.fresh_at));
            }
        }
        let (mut disputes, mut refused) = (BTreeMap::new(), BTreeSet::new());
        let mut unverified = 0;
        for violation in &pass.snapshot.violations {
            if let Some(why) = pass.policy.refuses(&violation.key.namespace) {
                if violation.state == State::Active {
                    let app = claimed_app(&violation.record);
                    if !self.refused.contains(&app) && !self.incidents.contains_key(&app) {
                        pass.decide(&app, DecisionKind::Exempted, why.to_owned());
                    }
                    refused.insert(app);
                }
                continue;
            }
            for evidence in &violation.evidence {
                let Some(fresh_at) = evidence.fresh_at else {
                    continue;
                };
                if evidence.presence == Presence::Cleared {
                    continue;
                }
                let id = (violation.key.clone(), evidence.node.clone());
                let already = known.get(&id).is_some_and(|(_, at)| *at >= fresh_at);
                match pass.facts.judge(&evidence.node, &evidence.record, fresh_at, pass.policy.verify_pods) {
                    Verdict::Accepted(app) => {
                        // What was accepted against one App stays against it, even if the Pod's labels now name another.
                        let app = known.get(&id).filter(|_| already).map_or(app, |(app, _)| app.clone());
                        if evidence.presence == Presence::Active {
                            self.accuse(app, id, evidence, fresh_at, pass);
                        }
                    }
                    // Evidence that was accepted while it was fresh is not disputed because the Pod has gone since.
                    Verdict::Disputed(_) | Verdict::Unverified(_) if already => {}
                    Verdict::Disputed(why) => {
                        if !self.disputes.contains_key(&id) {
                            let reason = format!(
                                "node {} accuses Pod {} of process `{}`, but {why}",
                                evidence.node.0.escape_debug(),
                                id.0.pod,
                                id.0.process.escape_debug()
                            );
                            pass.decide(&claimed_app(&evidence.record), DecisionKind::Disputed, reason);
                        }
                        disputes.insert(id, why);
                    }
                    // Its Pod is being looked up again: until then it stands as it did.
                    Verdict::Unverified(_) => match self.disputes.remove(&id) {
                        Some(why) => drop(disputes.insert(id, why)),
                        None => unverified += 1,
                    },
                }
            }
        }
        self.disputes = disputes;
        self.refused = refused;
        unverified
    }

    fn accuse(
        &mut self,
        app: App,
        id: (Key, NodeName),
        evidence: &EvidenceView,
        fresh_at: Moment,
        pass: &Pass<'_>,
    ) {
        let same_incident = pass.policy.same_incident;
        let incident = self.incidents.entry(app).or_insert_with(|| Incident::new(fresh_at));
        if let Standing::Ended { at } = incident.standing {
            if pass.now.since(at) > same_incident {
                *incident = Incident::new(fresh_at);
            }
            incident.standing = Standing::Watched;
        }
        incident.release_held = None;
        incident.inherited = None;
        incident.note_process(&id.0.process);
        let ground = Ground { record: evidence.record.clone(), fresh_at, mark: evidence.mark, active: true };
        match incident.grounds.get_mut(&id) {
            // Evidence that we have heard is still fresh, but its record may have been re-read: keep the clock.
            Some(old) if old.fresh_at >= fresh_at => old.active = true,
            Some(old) => *old = ground,
            None => {
                incident.grounds.insert(id, ground);
            }
        }
    }

    /// Lets grounds go by the clocks of their nodes, and all grounds of an App that is gone.
    pub(super) fn clear_grounds(&mut self, pass: &Pass<'_>) {
        for (app, incident) in &mut self.incidents {
            if pass.facts.is_gone(app) {
                incident.grounds.clear();
                // A block of which only the Services are known can't be matched with Pods, present or gone.
                if incident.inherited.as_ref().is_some_and(|accused| !accused.is_empty()) {
                    incident.inherited = None;
                }
                incident.cleared = Some(ClearedGround::AppGone);
            }
            let cleared = &mut incident.cleared;
            incident.grounds.retain(|(_, node), ground| {
                let why = match pass.snapshot.nodes.get(node) {
                    Some(view) => view.clock.cleared(ground.mark, ground.fresh_at, pass.now),
                    // A node that the ledger does not know has not answered since.
                    None => (pass.now.since(ground.fresh_at) >= pass.policy.unreachable_limit)
                        .then_some(Cleared::Unreachable),
                };
                *cleared = why.map(ClearedGround::By).or(*cleared);
                why.is_none()
            });
        }
    }
}
