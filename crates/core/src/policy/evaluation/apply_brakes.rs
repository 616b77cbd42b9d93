//! Applies the brakes to the blocks and releases that the incidents ask for.

use std::collections::BTreeSet;

use super::context::{EvaluationContext, ReleaseBasis, cleared_reason};
use crate::Moment;
use crate::decision::DecisionKind;
use crate::decision::Mode;
use crate::names::{App, NodeName, Text};
use crate::policy::alert::Alert;
use crate::policy::brake::{Brake, RuleNames};
use crate::policy::incident::{Hold, Incident, Phase};
use crate::policy::incidents::Incidents;
use crate::policy::window::{Accusers, Tally};
use crate::time::CompactTimestamp;

impl Incidents {
    /// Blocks and releases Apps, as far as the brakes allow.
    pub(in crate::policy) fn apply_brakes(
        &mut self,
        context: &mut EvaluationContext<'_>,
        reading: CompactTimestamp,
        blocks: Vec<(Moment, App)>,
        releases: Vec<(App, Option<String>, ReleaseBasis)>,
    ) {
        if blocks.is_empty() && releases.is_empty() {
            // No brake decides anything, so nothing has to be counted.
            self.window.forget(&context.policy.brake, reading);
            return;
        }
        let mut rules = RuleNames::default();
        let accusers: Vec<(App, Accusers)> = blocks
            .into_iter()
            .map(|(_, app)| {
                let accusers = self.accusers(&app, context, &mut rules);
                (app, accusers)
            })
            .collect();
        let mut tally = self.window.tally(&context.policy.brake, reading);
        let mut held_blocks: Vec<Brake> = Vec::new();
        for (app, accusers) in accusers {
            let Some(incident) = self.by_app.get_mut(&app) else { continue };
            held_blocks.extend(incident.block_or_hold(&app, &accusers, &mut tally, context));
        }
        let mut held_releases: Vec<Brake> = Vec::new();
        for (app, why, basis) in releases {
            let Some(incident) = self.by_app.get_mut(&app) else { continue };
            held_releases.extend(incident.release_or_hold(&app, why, basis, &mut tally, context));
        }
        alert_held_blocks(&held_blocks, &mut tally, context);
        alert_held_releases(&held_releases, &mut tally, context);
    }

    /// The nodes and rules by which an App is to be blocked: those of its active evidence that is young enough and
    /// not exempted.
    fn accusers(&self, app: &App, context: &EvaluationContext<'_>, rules: &mut RuleNames) -> Accusers {
        let Some(incident) = self.by_app.get(app) else {
            return Accusers::default();
        };
        // One match is enough for each rule that a node names, because all would give the same accuser.
        let mut matched: BTreeSet<(&NodeName, &Text)> = BTreeSet::new();
        incident
            .accepted
            .iter()
            // Evidence that may not lead to a new block may not pass the brakes for one either.
            .filter(|(_, accepted)| accepted.active && accepted.is_young(context.policy.max_age, context.now))
            .filter(|(_, accepted)| incident.cover_of(app, &accepted.record, context).is_none())
            .filter_map(|((_, node), accepted)| {
                let regex = &accepted.record.regex;
                if matched.contains(&(node, regex)) {
                    return None;
                }
                let rule = rules.of(&accepted.record);
                if rule == *regex {
                    matched.insert((node, regex));
                }
                Some((node.clone(), rule))
            })
            .collect()
    }
}

impl Incident {
    /// Blocks `app`, or holds its block. Returns the brake if it holds the block, unless the reason is a shared Service
    /// of one App.
    fn block_or_hold(
        &mut self,
        app: &App,
        accusers: &Accusers,
        tally: &mut Tally<'_>,
        context: &mut EvaluationContext<'_>,
    ) -> Option<Brake> {
        let is_approved = self.persisted.hold.is_approved();
        let shared = context.facts.held_for(app, context.policy, is_approved);
        // An App that an operator has to look at anyway takes no place in the brakes' window.
        let brake = match shared {
            Some(shared) => Some(Brake::SharedService(shared.service.clone())),
            None if is_approved => None,
            None => tally.due(app, accusers),
        };
        let entries = tally.of(app);
        self.persisted_mut().set_window_entries(entries);
        let Some(brake) = brake else {
            self.block(app, context);
            return None;
        };
        let others = shared.map(|shared| format!(": {}", shared.others)).unwrap_or_default();
        let reason = format!("{}{others}; {}", brake.reason(&context.policy.brake), self.accusation());
        context.record_decision(app, DecisionKind::Held, reason);
        let persisted = self.persisted_mut();
        persisted.phase = Phase::Held;
        persisted.hold = Hold::by(brake.clone(), context.now);
        // A shared Service concerns one App only, so no alert is raised.
        shared.is_none().then_some(brake)
    }

    /// Blocks `app`, with the reason that its tenant and operators read.
    fn block(&mut self, app: &App, context: &mut EvaluationContext<'_>) {
        let is_short = matches!(self.phase(), Phase::Grace { .. }) && self.is_notice_short(context);
        let notice = if is_short { "; its tenant could not be notified before" } else { "" };
        let before = self.warned_before(context.policy).unwrap_or_default();
        let accusation = self.accusation();
        let persisted = self.persisted_mut();
        let known = context.facts.to_close(app, context.policy, persisted).unwrap_or_default();
        let reason = Text::from(format!("{accusation}{notice}{before}{}", known.remarks()));
        context.record_decision(app, DecisionKind::Blocked, known.complete(&reason));
        persisted.reason = reason;
        let dry_run = context.policy.mode == Mode::DryRun;
        persisted.phase = Phase::Blocked { since: context.now, dry_run, release_held: None };
    }

    /// Releases `app`, or holds its release. Returns the brake that begins to hold it.
    fn release_or_hold(
        &mut self,
        app: &App,
        why: Option<String>,
        basis: ReleaseBasis,
        tally: &mut Tally<'_>,
        context: &mut EvaluationContext<'_>,
    ) -> Option<Brake> {
        let is_proven = basis == ReleaseBasis::Proof;
        // A release that waits for an operator stays held, even if the same proof comes again.
        if is_proven && self.persisted.holds_release() == Some(Brake::Gone) {
            return None;
        }
        let why = why.unwrap_or_else(|| self.release_reason(app, context));
        let brake = tally.release(app, is_proven);
        let entries = tally.of(app);
        self.persisted_mut().set_window_entries(entries);
        if let Some(brake) = brake {
            let reason = format!("{}; {why}", brake.reason(&context.policy.brake));
            context.record_decision(app, DecisionKind::ReleaseHeld, reason);
            if let Phase::Blocked { release_held, .. } = &mut self.persisted_mut().phase {
                *release_held = Some(context.now);
            }
            return Some(brake);
        }
        context.record_decision(app, DecisionKind::Released, why.clone());
        if self.accepted.is_empty() {
            self.end(context.now);
        } else {
            let persisted = self.persisted_mut();
            persisted.phase = Phase::Watched;
            persisted.rare_mut().exempted = Some(why.into());
        }
        None
    }

    /// The reason of a release by the rules.
    fn release_reason(&self, app: &App, context: &EvaluationContext<'_>) -> String {
        if self.persisted.rare().inherited.is_some() {
            return "every node has answered for the whole clearing time without evidence of it".to_owned();
        }
        cleared_reason(app, self.cleared, context)
    }
}

/// Raises the alert of the brake that holds the first of `blocks`.
fn alert_held_blocks(blocks: &[Brake], tally: &mut Tally<'_>, context: &mut EvaluationContext<'_>) {
    let Some(brake) = blocks.first().filter(|brake| tally.begins_storm(brake)) else { return };
    let message = format!(
        "{}: from now on further Apps are held ({} so far); each stays unblocked until an operator approves it",
        brake.reason(&context.policy.brake),
        blocks.len()
    );
    context.alerts.push(Alert::Brake { brake: brake.clone(), message });
}

/// Raises the alerts of the brakes that hold `releases`.
fn alert_held_releases(releases: &[Brake], tally: &mut Tally<'_>, context: &mut EvaluationContext<'_>) {
    for brake in [Brake::Releases, Brake::Gone] {
        let held = releases.iter().filter(|other| **other == brake).count();
        if held > 0 && tally.begins_storm(&brake) {
            let reason = brake.reason(&context.policy.brake);
            let message = format!("{reason}: {held} Apps stay blocked until their release is approved");
            context.alerts.push(Alert::Brake { brake, message });
        }
    }
}
