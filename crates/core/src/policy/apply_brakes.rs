//! What the incidents ask for, as far as the brakes let it.

use std::collections::BTreeSet;

use super::Mode;
use super::brake::{Brake, RuleNames};
use super::decision::{Alert, DecisionKind};
use super::evaluate::{EvaluationContext, ReleaseBasis, cleared_reason};
use super::incident::Phase;
use super::incidents::Incidents;
use super::window::{Accusers, Tally};
use crate::Moment;
use crate::names::{App, NodeName, Text};
use crate::time::CompactTimestamp;

impl Incidents {
    /// Blocks and releases what is wished for, as far as the brakes let it.
    pub(super) fn apply_brakes(
        &mut self,
        pass: &mut EvaluationContext<'_>,
        reading: CompactTimestamp,
        blocks: Vec<(Moment, App)>,
        releases: Vec<(App, Option<String>, ReleaseBasis)>,
    ) {
        if blocks.is_empty() && releases.is_empty() {
            // No brake is asked, so nothing has to be counted.
            self.window.forget(&pass.policy.brake, reading);
            return;
        }
        let mut held_blocks: Vec<Brake> = Vec::new();
        let mut held_releases: Vec<Brake> = Vec::new();
        let mut rules = RuleNames::default();
        let accusers: Vec<(App, Accusers)> = blocks
            .into_iter()
            .map(|(_, app)| {
                let accusers = self.accusers(&app, pass, &mut rules);
                (app, accusers)
            })
            .collect();
        let mut tally = self.window.tally(&pass.policy.brake, reading);
        for (app, accusers) in accusers {
            let Some(incident) = self.by_app.get_mut(&app) else {
                continue;
            };
            let shared = pass.facts.held_for(&app, pass.policy, incident.approved);
            // An App that an operator has to look at anyway takes no place in the brakes' window.
            let brake = match shared {
                Some(shared) => Some(Brake::SharedService(shared.service.clone())),
                None if incident.approved => None,
                None => tally.due(&app, &accusers),
            };
            let accusation = incident.accusation();
            let is_untold = matches!(incident.phase, Phase::Grace { .. }) && incident.is_untold(pass);
            let before = incident.warned_before(pass.policy);
            let file = incident.persisted_mut();
            file.set_window_entries(tally.of(&app));
            if let Some(brake) = brake {
                let others = shared.map(|shared| format!(": {}", shared.others)).unwrap_or_default();
                let reason = format!("{}{others}; {accusation}", brake.reason(&pass.policy.brake));
                pass.decide(&app, DecisionKind::Held, reason);
                file.phase = Phase::Held;
                file.rare_mut().held = Some((pass.now, brake.clone()));
                // A shared Service of one App is no sign of a storm, so it raises no alert.
                if shared.is_none() {
                    held_blocks.push(brake);
                }
            } else {
                let untold = if is_untold { "; its tenant could not be told before" } else { "" };
                let before = before.unwrap_or_default();
                let known = pass.facts.to_close(&app, pass.policy, file);
                let known = known.unwrap_or_default();
                let reason = Text::from(format!("{accusation}{untold}{before}{}", known.remarks()));
                pass.decide(&app, DecisionKind::Blocked, known.complete(&reason));
                file.reason = reason;
                let dry_run = pass.policy.mode == Mode::DryRun;
                file.phase = Phase::Blocked { since: pass.now, dry_run };
            }
        }
        for (app, why, basis) in releases {
            let proven = basis == ReleaseBasis::Proof;
            let Some(incident) = self.by_app.get_mut(&app) else {
                continue;
            };
            // What is held until an operator looks is opened neither by time nor by the same proof again.
            if proven && incident.holds_release() == Some(Brake::Gone) {
                continue;
            }
            let why = why.unwrap_or_else(|| {
                if incident.inherited.is_some() {
                    "every node has answered for the whole clearing time without evidence of it".to_owned()
                } else {
                    cleared_reason(&app, incident.cleared, pass)
                }
            });
            let brake = tally.release(&app, proven);
            let file = incident.persisted_mut();
            file.set_window_entries(tally.of(&app));
            if let Some(brake) = brake {
                pass.decide(
                    &app,
                    DecisionKind::ReleaseHeld,
                    format!("{}; {why}", brake.reason(&pass.policy.brake)),
                );
                file.rare_mut().release_held = Some(pass.now);
                held_releases.push(brake);
            } else {
                pass.decide(&app, DecisionKind::Released, why.clone());
                if incident.accepted.is_empty() {
                    incident.end(pass.now);
                } else {
                    let file = incident.persisted_mut();
                    file.phase = Phase::Watched;
                    file.rare_mut().exempted = Some(why.into());
                }
            }
        }
        if let Some(brake) = held_blocks.first()
            && tally.begins_storm(brake)
        {
            let message = format!(
                "{}: from now on Apps are held, {} already, and stay unblocked until each is approved",
                brake.reason(&pass.policy.brake),
                held_blocks.len()
            );
            pass.alerts.push(Alert::Brake { brake: brake.clone(), message });
        }
        alert_held_releases(&held_releases, &mut tally, pass);
    }

    /// The nodes and rules by which an App is to be blocked: those of its active grounds that are young enough and not
    /// exempted.
    fn accusers(&self, app: &App, pass: &EvaluationContext<'_>, rules: &mut RuleNames) -> Accusers {
        let Some(incident) = self.by_app.get(app) else {
            return Accusers::default();
        };
        // One match is enough for each rule that a node names: all would give the same accuser.
        let mut matched: BTreeSet<(&NodeName, &Text)> = BTreeSet::new();
        incident
            .accepted
            .iter()
            // A ground that may not lead to a new block may not pass the brakes for one either.
            .filter(|(_, ground)| ground.active && ground.is_young(pass.policy.max_age, pass.now))
            .filter(|(_, ground)| incident.excuse_of(app, &ground.record, pass).is_none())
            .filter_map(|((_, node), ground)| {
                let regex = &ground.record.regex;
                if matched.contains(&(node, regex)) {
                    return None;
                }
                let rule = rules.of(&ground.record);
                if rule == *regex {
                    matched.insert((node, regex));
                }
                Some((node.clone(), rule))
            })
            .collect()
    }
}

/// Raises the alerts of the brakes that hold `releases`.
fn alert_held_releases(releases: &[Brake], tally: &mut Tally<'_>, pass: &mut EvaluationContext<'_>) {
    for brake in [Brake::Releases, Brake::Gone] {
        let held = releases.iter().filter(|other| **other == brake).count();
        if held > 0 && tally.begins_storm(&brake) {
            let reason = brake.reason(&pass.policy.brake);
            let message = format!("{reason}: {held} Apps stay blocked until their release is approved");
            pass.alerts.push(Alert::Brake { brake, message });
        }
    }
}
