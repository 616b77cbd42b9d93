//! One evaluation: from evidence to incidents, from incidents to a plan.

use std::collections::{BTreeMap, BTreeSet};

use super::book::{Book, ClearedGround, Ground, Incident, Standing};
use super::brake::Brake;
use super::decision::{Actor, Alert, Decision, DecisionKind};
use super::facts::{Facts, Verdict, claimed_app};
use super::{Mode, Policy};
use crate::Moment;
use crate::ledger::{Cleared, Presence};
use crate::names::{App, Key, NodeName, Text};
use crate::plan::{Accusation, Block, HeldApp, Notice, NoticePhase, Plan, Summary, human};
use crate::snapshot::{EvidenceView, Snapshot};

/// What one evaluation comes to.
#[derive(Clone, Debug)]
pub struct Evaluation {
    /// What should be true outside.
    pub plan: Plan,
    /// The Apps that brakes hold.
    pub held: Vec<HeldApp>,
    /// What was decided, in order: every difference to the plan before has its reason here.
    pub decisions: Vec<Decision>,
    /// What an operator should look at now.
    pub alerts: Vec<Alert>,
    /// Evidence that is not believed, because its node accuses a Pod that does not run on it.
    pub disputed: usize,
    /// Evidence that can't be judged, because its Pod could not be read.
    pub unverified: usize,
}

struct Pass<'a> {
    snapshot: &'a Snapshot,
    policy: &'a Policy,
    facts: &'a Facts,
    now: Moment,
    decisions: Vec<Decision>,
    alerts: Vec<Alert>,
}

/// What an incident asks for, before the brakes are asked.
enum Wish {
    Nothing,
    Block,
    Release,
}

impl Book {
    /// Decides. The same inputs give the same outcome; evaluating again without a change decides nothing new.
    pub fn evaluate(
        &mut self,
        snapshot: &Snapshot,
        policy: &Policy,
        facts: &Facts,
        now: Moment,
    ) -> Evaluation {
        let mut pass = Pass { snapshot, policy, facts, now, decisions: Vec::new(), alerts: Vec::new() };
        self.releases.retain(|release| now.wall < release.until);
        let (disputed, unverified) = self.hear(&mut pass);
        self.clear_grounds(&pass);

        let mut blocks: Vec<(Moment, App)> = Vec::new();
        let mut releases: Vec<App> = Vec::new();
        let apps: Vec<App> = self.incidents.keys().cloned().collect();
        for app in apps {
            match self.judge(&app, &mut pass) {
                Wish::Nothing => {}
                Wish::Release => releases.push(app),
                Wish::Block => {
                    let fresh_at =
                        self.incidents.get(&app).and_then(|i| i.grounds.values().map(|g| g.fresh_at).min());
                    blocks.push((fresh_at.unwrap_or(now), app));
                }
            }
        }
        // First come, first blocked; what arrived together goes by name, so that the outcome is the same each time.
        blocks.sort();
        self.brake(&mut pass, blocks, releases);
        self.incidents.retain(|_, incident| match incident.standing {
            Standing::Ended { at } => now.since(at) <= policy.same_incident || !incident.grounds.is_empty(),
            _ => true,
        });

        let plan = self.plan(&mut pass);
        let Pass { decisions, alerts, .. } = pass;
        Evaluation { plan, held: self.held(policy), decisions, alerts, disputed, unverified }
    }

    /// Takes in the evidence: accepted evidence becomes a ground of its App's incident. Returns (disputed, unverified).
    fn hear(&mut self, pass: &mut Pass<'_>) -> (usize, usize) {
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
        let mut disputes = BTreeSet::new();
        let mut unverified = 0;
        for violation in &pass.snapshot.violations {
            if pass.policy.refuses(&violation.key.namespace).is_some() {
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
                match pass.facts.judge(&evidence.node, &evidence.record, pass.policy.verify_pods) {
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
                        if !self.disputes.contains(&id) {
                            let reason = format!(
                                "node {} accuses Pod {} of process `{}`, but {why}",
                                evidence.node.0.escape_debug(),
                                id.0.pod,
                                id.0.process.escape_debug()
                            );
                            pass.decide(&claimed_app(&evidence.record), DecisionKind::Disputed, reason);
                        }
                        disputes.insert(id);
                    }
                    Verdict::Unverified(_) => unverified += 1,
                }
            }
        }
        let count = disputes.len();
        self.disputes = disputes;
        (count, unverified)
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
    fn clear_grounds(&mut self, pass: &Pass<'_>) {
        for (app, incident) in &mut self.incidents {
            if !incident.grounds.is_empty() && pass.facts.is_gone(app) {
                incident.grounds.clear();
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

    /// What one incident asks for. Does at once what no brake is asked about.
    fn judge(&mut self, app: &App, pass: &mut Pass<'_>) -> Wish {
        let excuses = self.excuses(app, pass);
        let Some(incident) = self.incidents.get_mut(app) else {
            return Wish::Nothing;
        };
        if matches!(incident.standing, Standing::Ended { .. }) {
            return Wish::Nothing;
        }
        let refusal = if pass.facts.terminating.contains(&app.namespace) {
            Some("the namespace is being deleted".to_owned())
        } else {
            pass.policy.refuses(&app.namespace).map(str::to_owned)
        };
        let covered = refusal.or_else(|| {
            // Every ground has its excuse: the first one speaks for all.
            excuses.iter().all(Option::is_some).then(|| excuses.into_iter().flatten().next()).flatten()
        });
        if let Some(why) = covered {
            if matches!(incident.standing, Standing::Blocked { .. }) {
                pass.decide(app, DecisionKind::Released, why.clone());
            } else if incident.exempted.is_none() {
                pass.decide(app, DecisionKind::Exempted, why.clone());
            }
            incident.exempted = Some(why);
            incident.notified = false;
            incident.release_held = None;
            if incident.grounds.is_empty() {
                incident.end(pass.now);
            } else {
                incident.standing = Standing::Watched;
            }
            return Wish::Nothing;
        }
        incident.exempted = None;

        if incident.grounds.is_empty() {
            return match incident.standing {
                Standing::Blocked { .. }
                    if pass.policy.mode == Mode::Paused || incident.release_held.is_some() =>
                {
                    Wish::Nothing
                }
                Standing::Blocked { .. } => Wish::Release,
                _ => {
                    let reason = cleared_reason(incident.cleared, pass);
                    pass.decide(app, DecisionKind::Closed, reason);
                    incident.end(pass.now);
                    Wish::Nothing
                }
            };
        }
        if let Standing::Blocked { dry_run, .. } = incident.standing {
            if !dry_run || pass.policy.mode != Mode::Enforce {
                return Wish::Nothing;
            }
            // What dry-run decided had no effect: it becomes real like any new block, brakes included.
            incident.standing = Standing::Watched;
        }
        if incident.standing != Standing::Held && incident.held.is_some() && !incident.approved {
            incident.standing = Standing::Held;
        }
        let active = incident.grounds.values().any(|ground| ground.active);
        if incident.standing == Standing::Held || pass.policy.mode == Mode::Paused || !active {
            return Wish::Nothing;
        }
        if pass.policy.grace.is_zero() || incident.approved {
            return Wish::Block;
        }
        match incident.standing {
            Standing::Grace { until } if pass.now.uptime < until.uptime => Wish::Nothing,
            Standing::Grace { .. } => Wish::Block,
            _ => {
                let grace = pass.policy.grace;
                let wall = pass.now.wall.checked_add(grace).unwrap_or(pass.now.wall);
                let until = Moment { uptime: pass.now.uptime.saturating_add(grace), wall };
                incident.standing = Standing::Grace { until };
                let reason = format!("{}; to be blocked in {}", incident.accusation(), human(grace));
                pass.decide(app, DecisionKind::Warned, reason);
                Wish::Nothing
            }
        }
    }

    /// The excuse of each ground, in order.
    fn excuses(&self, app: &App, pass: &Pass<'_>) -> Vec<Option<String>> {
        let Some(incident) = self.incidents.get(app) else {
            return Vec::new();
        };
        incident.grounds.values().map(|g| self.excuse(app, &g.record, pass.policy, pass.now.wall)).collect()
    }

    /// Blocks and releases what is wished for, as far as the brakes let it.
    fn brake(&mut self, pass: &mut Pass<'_>, blocks: Vec<(Moment, App)>, releases: Vec<App>) {
        let mut held_blocks: Vec<Brake> = Vec::new();
        let mut held_releases = 0_usize;
        let accusers: Vec<(App, BTreeSet<_>)> = blocks
            .into_iter()
            .map(|(_, app)| {
                let accusers = self.accusers(&app, pass);
                (app, accusers)
            })
            .collect();
        let mut tally = self.window.tally(&pass.policy.brake, pass.now);
        for (app, accusers) in accusers {
            let Some(incident) = self.incidents.get_mut(&app) else {
                continue;
            };
            let brake = if incident.approved { None } else { tally.due(&app, accusers) };
            if let Some(brake) = brake {
                let reason = format!("{}; {}", brake.reason(&pass.policy.brake), incident.accusation());
                pass.decide(&app, DecisionKind::Held, reason);
                incident.standing = Standing::Held;
                incident.notified = false;
                incident.held = Some((pass.now, brake.clone()));
                held_blocks.push(brake);
            } else {
                pass.decide(&app, DecisionKind::Blocked, incident.accusation());
                let dry_run = pass.policy.mode == Mode::DryRun;
                incident.standing = Standing::Blocked { since: pass.now, dry_run };
            }
        }
        for app in releases {
            let Some(incident) = self.incidents.get_mut(&app) else {
                continue;
            };
            let why = cleared_reason(incident.cleared, pass);
            if let Some(brake) = tally.release(&app) {
                pass.decide(
                    &app,
                    DecisionKind::ReleaseHeld,
                    format!("{}; {why}", brake.reason(&pass.policy.brake)),
                );
                incident.release_held = Some(pass.now);
                held_releases += 1;
            } else {
                pass.decide(&app, DecisionKind::Released, why);
                incident.end(pass.now);
            }
        }
        if let Some(brake) = held_blocks.first()
            && tally.is_news(brake)
        {
            let message = format!(
                "{}: {} Apps are held and stay unblocked until each is approved",
                brake.reason(&pass.policy.brake),
                held_blocks.len()
            );
            pass.alerts.push(Alert::Brake { brake: brake.clone(), message });
        }
        if held_releases > 0 && tally.is_news(&Brake::Releases) {
            let reason = Brake::Releases.reason(&pass.policy.brake);
            let message =
                format!("{reason}: {held_releases} Apps stay blocked until their release is approved");
            pass.alerts.push(Alert::Brake { brake: Brake::Releases, message });
        }
    }

    /// On whose word, and by which rules, an App is due: its active grounds that nothing excuses.
    fn accusers(&self, app: &App, pass: &Pass<'_>) -> BTreeSet<(NodeName, Text)> {
        let Some(incident) = self.incidents.get(app) else {
            return BTreeSet::new();
        };
        incident
            .grounds
            .iter()
            .filter(|(_, ground)| ground.active)
            .filter(|(_, ground)| self.excuse(app, &ground.record, pass.policy, pass.now.wall).is_none())
            .map(|((_, node), ground)| (node.clone(), ground.record.rule().clone()))
            .collect()
    }

    fn plan(&mut self, pass: &mut Pass<'_>) -> Plan {
        if self.notices.0 != pass.snapshot.rounds {
            self.notices = (pass.snapshot.rounds, 0);
        }
        let mode = pass.policy.mode;
        let mut blocks = Vec::new();
        let mut notices = Vec::new();
        let mut waiting = 0;
        // A byte for each App says what is happening to it, so that any change of the set is seen.
        let mut standing: BTreeMap<App, u8> = BTreeMap::new();
        let mut summary = Summary { blocked: 0, in_grace: 0, held: 0, changed: pass.now.wall };
        for (app, incident) in &mut self.incidents {
            let phase = match incident.standing {
                Standing::Blocked { since, dry_run } if !dry_run || mode == Mode::DryRun => {
                    summary.blocked += 1;
                    standing.insert(app.clone(), 0);
                    blocks.push(Block {
                        app: app.clone(),
                        since: since.wall,
                        grounds: accusations(incident),
                        services: pass.facts.services(app, pass.policy.verify_pods),
                        reason: incident.accusation(),
                    });
                    NoticePhase::Blocked
                }
                Standing::Grace { until } => {
                    summary.in_grace += 1;
                    standing.insert(app.clone(), 1);
                    NoticePhase::Grace { until: until.wall }
                }
                Standing::Held => {
                    summary.held += 1;
                    standing.insert(app.clone(), 2);
                    continue;
                }
                _ => continue,
            };
            if !incident.notified && self.notices.1 >= pass.policy.max_notices_per_round {
                waiting += 1;
                continue;
            }
            if !incident.notified {
                incident.notified = true;
                self.notices.1 += 1;
            }
            notices.push(Notice {
                app: app.clone(),
                opened: incident.opened.wall,
                phase,
                processes: incident.processes.iter().cloned().collect(),
            });
        }
        if waiting > 0 {
            pass.alerts.push(Alert::Notices { waiting });
        }
        match &self.summary {
            Some((before, changed)) if *before == standing => summary.changed = *changed,
            _ => self.summary = Some((standing, summary.changed)),
        }
        Plan { mode, blocks, notices, summary }
    }
}

impl Pass<'_> {
    fn decide(&mut self, app: &App, kind: DecisionKind, reason: String) {
        self.decisions.push(Decision {
            at: self.now.wall,
            app: app.clone(),
            kind,
            actor: Actor::Policy,
            reason,
            dry_run: self.policy.mode == Mode::DryRun,
        });
    }
}

fn accusations(incident: &Incident) -> Vec<Accusation> {
    let accusation = |((_, node), ground): (&(_, NodeName), &Ground)| Accusation {
        record: ground.record.clone(),
        node: node.clone(),
    };
    incident.grounds.iter().map(accusation).collect()
}

fn cleared_reason(cleared: Option<ClearedGround>, pass: &Pass<'_>) -> String {
    match cleared {
        Some(ClearedGround::AppGone) => "no Pod of the App remains".to_owned(),
        Some(ClearedGround::By(Cleared::Unreachable)) => {
            "its node has not answered for detection.unreachable_limit".to_owned()
        }
        Some(ClearedGround::By(Cleared::ByClock | Cleared::PodGone)) => {
            "its node has answered for the whole clearing time without fresh evidence".to_owned()
        }
        None => format!("nothing is left of the accusation as of {}", pass.now.wall),
    }
}
