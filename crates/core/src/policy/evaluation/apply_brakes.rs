//! Applies the brakes to the blocks and releases that the incidents ask for.

use std::collections::BTreeSet;

use super::context::{EvaluationContext, ReleaseBasis, cleared_reason};
use crate::Moment;
use crate::decision::DecisionKind;
use crate::decision::Mode;
use crate::names::{App, NodeName, Text};
use crate::policy::alert::Alert;
use crate::policy::brake::{Brake, RuleNames};
use crate::policy::incident::{Hold, Phase};
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
        let mut held_blocks: Vec<Brake> = Vec::new();
        let mut held_releases: Vec<Brake> = Vec::new();
        let mut rules = RuleNames::default();
        let accusers: Vec<(App, Accusers)> = blocks
            .into_iter()
            .map(|(_, app)| {
                let accusers = self.accusers(&app, context, &mut rules);
                (app, accusers)
            })
            .collect();
        let mut tally = self.window.tally(&context.policy.brake, reading);
        for (app, accusers) in accusers {
            let Some(incident) = self.by_app.get_mut(&app) else {
                continue;
            };
            let shared = context.facts.held_for(&app, context.policy, incident.persisted.hold.is_approved());
            // An App that an operator has to look at anyway takes no place in the brakes' window.
            let brake = match shared {
                Some(shared) => Some(Brake::SharedService(shared.service.clone())),
                None if incident.persisted.hold.is_approved() => None,
                None => tally.due(&app, &accusers),
            };
            let accusation = incident.accusation();
            let is_short =
                matches!(incident.phase(), Phase::Grace { .. }) && incident.is_notice_short(context);
            let before = incident.warned_before(context.policy).unwrap_or_default();
            let persisted = incident.persisted_mut();
            persisted.set_window_entries(tally.of(&app));
            if let Some(brake) = brake {
                let others = shared.map(|shared| format!(": {}", shared.others)).unwrap_or_default();
                let reason = format!("{}{others}; {accusation}", brake.reason(&context.policy.brake));
                context.record_decision(&app, DecisionKind::Held, reason);
                persisted.phase = Phase::Held;
                persisted.hold = Hold::by(brake.clone(), context.now);
                // A shared Service of one App is no sign of a storm, so it raises no alert.
                if shared.is_none() {
                    held_blocks.push(brake);
                }
            } else {
                let notice = if is_short { "; its tenant could not be notified before" } else { "" };
                let known = context.facts.to_close(&app, context.policy, persisted).unwrap_or_default();
                let reason = Text::from(format!("{accusation}{notice}{before}{}", known.remarks()));
                context.record_decision(&app, DecisionKind::Blocked, known.complete(&reason));
                persisted.reason = reason;
                let dry_run = context.policy.mode == Mode::DryRun;
                persisted.phase = Phase::Blocked { since: context.now, dry_run, release_held: None };
            }
        }
        for (app, why, basis) in releases {
            let proven = basis == ReleaseBasis::Proof;
            let Some(incident) = self.by_app.get_mut(&app) else {
                continue;
            };
            // A release that waits for an operator happens neither by time nor by the same proof again.
            if proven && incident.persisted.holds_release() == Some(Brake::Gone) {
                continue;
            }
            let why = why.unwrap_or_else(|| {
                if incident.persisted.rare().inherited.is_some() {
                    "every node has answered for the whole clearing time without evidence of it".to_owned()
                } else {
                    cleared_reason(&app, incident.cleared, context)
                }
            });
            let brake = tally.release(&app, proven);
            let persisted = incident.persisted_mut();
            persisted.set_window_entries(tally.of(&app));
            if let Some(brake) = brake {
                context.record_decision(
                    &app,
                    DecisionKind::ReleaseHeld,
                    format!("{}; {why}", brake.reason(&context.policy.brake)),
                );
                if let Phase::Blocked { release_held, .. } = &mut persisted.phase {
                    *release_held = Some(context.now);
                }
                held_releases.push(brake);
            } else {
                context.record_decision(&app, DecisionKind::Released, why.clone());
                if incident.accepted.is_empty() {
                    incident.end(context.now);
                } else {
                    let persisted = incident.persisted_mut();
                    persisted.phase = Phase::Watched;
                    persisted.rare_mut().exempted = Some(why.into());
                }
            }
        }
        if let Some(brake) = held_blocks.first()
            && tally.begins_storm(brake)
        {
            let message = format!(
                "{}: from now on Apps are held, {} already, and stay unblocked until each is approved",
                brake.reason(&context.policy.brake),
                held_blocks.len()
            );
            context.alerts.push(Alert::Brake { brake: brake.clone(), message });
        }
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
            .filter(|(_, accepted)| incident.excuse_of(app, &accepted.record, context).is_none())
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
