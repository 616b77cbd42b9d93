//! The policy's laws, over random sequences.

mod steps;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::common::{World, record_of, target};
use jiff::Timestamp;
use procscan_core::Moment;
use procscan_core::clearing::Cleared;
use procscan_core::decision::{DecisionKind, Mode};
use procscan_core::names::{App, Key};
use procscan_core::plan::NoticePhase;
use procscan_core::policy::{Evaluation, IncidentCommand, Incidents, Phase, PodState};
use procscan_core::snapshot::{EvidenceView, State, Violation};
use procscan_core::state::Incident;
use proptest::collection::vec;
use proptest::prelude::*;

use self::steps::{Step, app, step};

const NODES: [&str; 3] = ["n0", "n1", "n2"];
const TENANTS: usize = 8;

fn world() -> World {
    let mut world = World::new(&NODES);
    world.policy.verify_pods = true;
    world.policy.brake.max_new_tenants = 3;
    world.policy.brake.max_tenants_per_node = 2;
    world.policy.brake.max_tenants_per_rule = 4;
    world.policy.brake.max_releases = 2;
    let follower = world.new_ledger();
    world.follower = Some((follower, true));
    world
}

/// A copy of the world, without the follower.
fn world_of(world: &World) -> World {
    World {
        ledger: world.new_ledger(),
        policy: world.policy.clone(),
        facts: world.facts.clone(),
        persisted: world.persisted.clone(),
        unwritable: world.unwritable.clone(),
        is_mute: world.is_mute,
        targets: world.targets.clone(),
        now: world.now,
        ..World::with(&NODES, world.rules.clone())
    }
}

proptest! {
    #![proptest_config(crate::common::cases(400))]

    /// An exempt, protected, terminating, disputed, unverified or held App is never in the plan, and time alone never
    /// takes it there. The log explains every difference between two plans.
    #[test]
    fn never_a_wrong_block(steps in vec(step(), 1..120)) {
        let mut world = world();
        // Apps that a brake holds and no operator has approved.
        let mut held: BTreeSet<App> = BTreeSet::new();
        // Apps that their Pod's own node has ever accused with fresh evidence.
        let mut accused: BTreeSet<App> = BTreeSet::new();
        let mut before: BTreeSet<App> = BTreeSet::new();
        let mut mode = world.policy.mode;
        for step in &steps {
            step.take(&mut world);
            let is_restart = matches!(step, Step::Restart | Step::FailOver);
            if mode == Mode::DryRun && (is_restart || world.policy.mode != mode) {
                // Apps that dry-run held are held no more, because they were held in a copy only.
                held = world.incidents.held(&world.policy).into_iter().map(|held| held.app).collect();
            }
            let snapshot = world.snapshot();
            for violation in &snapshot.violations {
                for evidence in violation.evidence().filter(|e| e.fresh_at.is_some()) {
                    if let Some(PodState::Present { node, app, .. }) =
                        world.facts.pods.get(&violation.key.pod_ref()).map(|fact| &fact.state)
                        && *node == evidence.node
                    {
                        accused.insert(app.clone());
                    }
                }
            }
            if let Step::Approve(tenant) = step {
                held.remove(&app(*tenant));
            }
            let evaluation = world.evaluate();
            let now: BTreeSet<App> = evaluation.plan.blocks.iter().map(|block| block.app.clone()).collect();
            let notified = evaluation.plan.notices.iter().filter(|n| n.phase != NoticePhase::Recovered);
            let notified: BTreeSet<App> = notified.map(|notice| notice.app.clone()).collect();
            for app in now.union(&notified) {
                prop_assert!(accused.contains(app), "{app} was only ever disputed or unverified");
                prop_assert!(!held.contains(app), "{app} is held, and no operator has approved it");
                if world.unwritable.contains(&app.namespace.to_string()) {
                    // A release that can't be persisted has no effect, whatever its reason.
                    continue;
                }
                // An existing block may be held by the brake on releases. An App that dry-run released is blocked as
                // before, once dry-run's copy is dropped.
                let goes_on = mode == world.policy.mode && !(mode == Mode::DryRun && is_restart);
                // While paused no App is opened, even if its namespace has become protected.
                let stays = world.policy.mode == Mode::Paused && (!goes_on || before.contains(app));
                prop_assert!(stays || world.policy.refuses(&app.namespace).is_none(), "{app} is protected");
                let is_new = goes_on && !before.contains(app) || notified.contains(app);
                prop_assert!(
                    !is_new || !world.facts.terminating.contains(&app.namespace),
                    "{app} is terminating"
                );
                prop_assert!(
                    !world.policy.exemptions.iter().any(|e| e.namespace.as_ref().is_some_and(|p| p.matches(&app.namespace))),
                    "{app} is exempt"
                );
            }
            for entry in evaluation.held.iter().filter(|entry| !entry.release) {
                prop_assert!(!now.contains(&entry.app) && !notified.contains(&entry.app));
                held.insert(entry.app.clone());
            }
            // Switching dry-run on or off shows or hides its decisions, and so does dropping them. Any other
            // difference has its decision.
            let is_effective = mode == world.policy.mode
                && !(mode == Mode::DryRun && is_restart);
            if is_effective && !matches!(step, Step::Approve(_) | Step::Release(_)) {
                for app in now.symmetric_difference(&before) {
                    let wanted = if now.contains(app) { DecisionKind::Blocked } else { DecisionKind::Released };
                    prop_assert!(
                        evaluation.decisions.iter().any(|d| d.app == *app && d.kind == wanted),
                        "{app} is {wanted:?} without a decision"
                    );
                }
            }
            // A decision that can't be persisted has no effect: it neither blocks nor releases an App.
            if is_effective && mode != Mode::DryRun {
                for app in now.symmetric_difference(&before) {
                    prop_assert!(!world.unwritable.contains(&app.namespace.to_string()), "{app} changed");
                }
            }
            if world.policy.mode == Mode::Paused && mode == Mode::Paused && !matches!(step, Step::Approve(_)) {
                prop_assert!(now.is_subset(&before), "something new while paused");
                // An operator's exemption, release or protection is the only way out.
                for app in before.difference(&now).filter(|_| is_effective && !matches!(step, Step::Release(_))) {
                    let is_covered = world.policy.refuses(&app.namespace).is_some()
                        || !world.policy.exemptions.is_empty()
                        || world.incidents.documents().iter().any(|incident| {
                            App::from(&incident.spec.app) == *app && !incident.status.releases.is_empty()
                        });
                    prop_assert!(is_covered, "{app} is released while paused");
                }
            }
            mode = world.policy.mode;
            before = now;
            // After the incident is deleted, the next accusation opens a new one.
            held.retain(|app| world.incidents.incidents().any(|(known, _)| known == app));

            let again = world.evaluate();
            prop_assert_eq!(again.plan, evaluation.plan, "evaluating again is idempotent");
            prop_assert_eq!(again.decisions, vec![]);
        }
    }

    /// A restart and another leader change nothing by themselves: no App is released or freed from a brake, and no
    /// tenant is notified again. No App is blocked that an unbroken run would not have blocked at this moment. The
    /// documents have all that the policy knows.
    #[test]
    fn a_restart_and_another_leader_change_nothing_by_themselves(
        steps in vec(step(), 1..100), fails_over in any::<bool>()
    ) {
        let mut world = world();
        let mut restarted = None;
        for step in steps.iter().filter(|step| !matches!(step, Step::Mode(Mode::DryRun))) {
            step.take(&mut world);
            let before = world.evaluate();
            let persisted: Vec<_> = world.persisted.values().cloned().collect();
            let snapshot = world.snapshot();
            let restored = Incidents::restore(&persisted, &snapshot, world.now);
            let is_same = |(a, b): (&Incident, &Incident)| {
                // The time of the last fresh evidence is persisted once an hour, and the scan interval to the minute.
                let bare = |incident: &Incident| {
                    let mut bare = incident.clone();
                    for evidence in &mut bare.status.evidence {
                        evidence.fresh_at = Timestamp::UNIX_EPOCH;
                        evidence.timestamp = "".into();
                        evidence.observations = 0;
                        evidence.scan_interval = None;
                        if let Some(cleared) = &mut evidence.cleared {
                            cleared.at = Timestamp::UNIX_EPOCH;
                        }
                    }
                    let status = &mut bare.status;
                    (status.clock, status.written, status.wall_clock) = (None, None, None);
                    bare.status.evidence.sort_by_key(|e| (e.pod.clone(), e.process.clone(), e.node.clone()));
                    bare
                };
                bare(a) == bare(b)
            };
            // If an incident can't be persisted, only its effect is the same.
            let of_persisted = |incidents: &Incidents| {
                let mut documents = incidents.documents();
                documents.retain(|incident| !world.unwritable.contains(&incident.spec.app.namespace.to_string()));
                documents
            };
            let (known, again) = (of_persisted(&world.incidents), of_persisted(&restored));
            prop_assert!(
                known.len() == again.len() && known.iter().zip(&again).all(is_same),
                "known:\n{known:#?}\npersisted:\n{again:#?}"
            );

            let mut other = World { follower: world.follower.take(), ..world_of(&world) };
            if fails_over { other.fail_over() } else { other.restart() }
            let after = other.evaluate();
            // The other replica may believe a record that this one knows to be of an earlier Pod. That is an
            // accusation like any other.
            let mut known: BTreeSet<App> = persisted.iter().map(|incident| App::from(&incident.spec.app)).collect();
            // The same holds if evidence and the proof that its Pod is gone have come in the same moment, which only
            // happens here.
            let active = |violation: &&Violation| violation.state == State::Active;
            let believed: BTreeSet<Key> =
                other.snapshot().violations.iter().filter(active).map(|violation| violation.key.clone()).collect();
            let is_gone = |evidence: &EvidenceView| evidence.cleared == Some(Cleared::PodGone);
            for violation in &world.snapshot().violations {
                if violation.evidence().any(is_gone) && believed.contains(&violation.key) {
                    known.retain(|app| app.namespace != violation.key.namespace);
                }
            }
            // The same holds if it has received a report that this one has only restored since its own restart.
            for violation in other.snapshot().violations.iter().filter(active) {
                let is_read_back = |(at, restarted): (Moment, Duration)| at.uptime() <= restarted;
                if violation.evidence().any(|e| e.fresh_at.zip(restarted).is_some_and(is_read_back)) {
                    known.retain(|app| app.namespace != violation.key.namespace);
                }
            }
            let of_known = |e: &Evaluation| {
                let mut e = e.clone();
                e.plan.blocks.retain(|block| known.contains(&block.app));
                // Evidence that came since and can't be persisted, or that only the other replica believes, makes one
                // accusation more or less.
                for block in &mut e.plan.blocks {
                    let block = Arc::make_mut(block);
                    (block.grounds, block.left) = (Box::default(), Box::default());
                }
                e.held.retain(|held| known.contains(&held.app));
                e.plan.notices.retain(|notice| known.contains(&notice.app));
                e.decisions.retain(|decision| known.contains(&decision.app) && decision.kind != DecisionKind::Disputed);
                let notified: Vec<_> = e.plan.notices.iter().map(|n| (n.app.clone(), n.sent_at)).collect();
                (e.plan.blocks, e.held, notified, e.decisions)
            };
            let (after, before) = (of_known(&after), of_known(&before));
            prop_assert_eq!((&after.0, &after.1, &after.2), (&before.0, &before.1, &before.2));
            prop_assert_eq!(after.3, vec![]);
            world.follower = other.follower.take();
            if matches!(step, Step::Restart | Step::FailOver) {
                // The test continues with the other one.
                world = other;
                restarted = Some(world.now.uptime());
            }
        }
    }

    /// An operator's release of an accusation holds until its date, whatever steps follow.
    #[test]
    fn no_release_by_hand_is_ever_lost(
        before in vec(step(), 1..40), pick in 0..TENANTS, after in vec(step(), 1..60)
    ) {
        let mut world = world();
        // A command that can't be persisted is not carried out.
        for step in before.iter().filter(|step| !matches!(step, Step::Mode(Mode::DryRun) | Step::Unwritable(_))) {
            step.take(&mut world);
            world.evaluate();
        }
        let has_grounds = |tenant: &usize| {
            world.incidents.documents().iter().any(|incident| {
                App::from(&incident.spec.app) == app(*tenant)
                    && incident.status.evidence.iter().any(|e| e.cleared.as_ref().is_none_or(|c| !c.ended))
            })
        };
        let accused: Vec<usize> = (0..TENANTS).filter(has_grounds).collect();
        let Some(&tenant) = accused.get(pick % accused.len().max(1)) else { return Ok(()) };
        let until = world.now.wall() + jiff::SignedDuration::from_hours(1);
        let release = IncidentCommand::Release { app: app(tenant), until };
        prop_assert!(world.incidents.execute(&release, "ops", &world.policy, world.now).is_ok());
        world.evaluate();
        let is_ours = |step: &&Step| {
            // Another release by the same operator may shorten it.
            !matches!(step, Step::Mode(Mode::DryRun)) && !matches!(step, Step::Release(of) if *of == tenant)
        };
        for step in after.iter().filter(is_ours) {
            step.take(&mut world);
            let blocked = world.evaluate().plan.blocks;
            if world.now.wall() < until {
                prop_assert!(blocked.iter().all(|block| block.app != app(tenant)), "blocked after {step:?}");
            }
        }
    }

    /// A new block has evidence that is fresh at that very moment.
    #[test]
    fn every_new_block_has_fresh_evidence_of_the_pods_own_node(steps in vec(step(), 1..80)) {
        let mut world = world();
        let mut before: BTreeSet<App> = BTreeSet::new();
        for step in &steps {
            step.take(&mut world);
            let evaluation = world.evaluate();
            let snapshot = world.snapshot();
            for decision in evaluation.decisions.iter().filter(|d| d.kind == DecisionKind::Blocked) {
                if before.contains(&decision.app) {
                    continue;
                }
                let fresh = snapshot.violations.iter().any(|violation| {
                    violation.evidence().any(|evidence| {
                        evidence.presence == procscan_core::clearing::Presence::Active
                            && matches!(
                                world.facts.pods.get(&violation.key.pod_ref()).map(|fact| &fact.state),
                                Some(PodState::Present { node, .. }) if *node == evidence.node
                            )
                            && violation.key.namespace == decision.app.namespace
                    })
                });
                prop_assert!(fresh, "{} is blocked on stale or disputed evidence", decision.app);
            }
            before = evaluation.plan.blocks.iter().map(|block| block.app.clone()).collect();
        }
    }

    /// The outcome is a function of the inputs: the same sequence has the same outcome.
    #[test]
    fn the_plan_is_a_function_of_its_inputs(steps in vec(step(), 1..60)) {
        let run = || {
            let mut world = world();
            let mut outcomes = Vec::new();
            for step in &steps {
                step.take(&mut world);
                let evaluation = world.evaluate();
                outcomes.push(format!("{:?} {:?} {:?}", evaluation.plan, evaluation.decisions, evaluation.held));
            }
            outcomes
        };
        prop_assert_eq!(run(), run());
    }

    /// Held Apps stay out of the plan, however long the wait is.
    #[test]
    fn time_alone_never_blocks_a_held_app(waits in vec(1..20_000_u64, 1..60), listen in any::<bool>()) {
        let mut world = World::new(&["n0"]);
        world.policy.brake.max_new_tenants = 0;
        world.answer("n0", vec![record_of("ns-t0", "web", "xmrig", 0)]);
        prop_assert!(world.blocked().is_empty());
        for wait in waits {
            world.wait(wait);
            if listen {
                let now = world.clock();
                world.answer("n0", vec![record_of("ns-t0", "web", "xmrig", now)]);
            } else {
                world.ledger.expect([target("n0")], 0);
            }
            world.policy.brake.max_new_tenants = 100;
            let blocked = world.blocked();
            let forgotten = world.incidents.incidents().all(|(_, i)| matches!(i.phase(), Phase::Ended { .. }));
            prop_assert!(blocked.is_empty() || forgotten);
        }
    }
}
