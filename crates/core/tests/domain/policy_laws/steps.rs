//! The steps of the random sequences: what agents, the cluster, operators and replicas do.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::common::{World, failed, record_of};
use procscan_core::decision::Mode;
use procscan_core::exemption::{Exemption, Pattern};
use procscan_core::names::{App, PodRef};
use procscan_core::policy::{IncidentCommand, Incidents, PodState};
use procscan_core::report::FailureReason;
use proptest::collection::vec;
use proptest::prelude::*;

use super::{NODES, TENANTS};

#[derive(Clone, Debug)]
pub(super) enum Step {
    Wait(u64),
    Accuse {
        node: usize,
        tenants: Vec<usize>,
    },
    Empty(usize),
    Fail(usize),
    PodOn {
        tenant: usize,
        node: usize,
    },
    PodGone(usize),
    PodUnreadable(usize),
    PodForgotten(usize),
    Exempt(usize),
    EndExemptions,
    Protect(usize),
    Terminate(usize),
    Approve(usize),
    Release(usize),
    Mode(Mode),
    Grace(u64),
    RoundDone,
    Restart,
    FailOver,
    Lag(bool),
    /// From now on decisions about those tenants can't be persisted.
    Unwritable(Vec<usize>),
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    let tenant = 0..TENANTS;
    let node = 0..NODES.len();
    prop_oneof![
        6 => prop_oneof![1..120_u64, 1..7200_u64].prop_map(Step::Wait),
        10 => (node.clone(), vec(tenant.clone(), 0..TENANTS))
            .prop_map(|(node, tenants)| Step::Accuse { node, tenants }),
        2 => node.clone().prop_map(Step::Empty),
        1 => node.clone().prop_map(Step::Fail),
        6 => (tenant.clone(), node).prop_map(|(tenant, node)| Step::PodOn { tenant, node }),
        1 => tenant.clone().prop_map(Step::PodGone),
        1 => tenant.clone().prop_map(Step::PodUnreadable),
        1 => tenant.clone().prop_map(Step::PodForgotten),
        1 => tenant.clone().prop_map(Step::Exempt),
        1 => Just(Step::EndExemptions),
        1 => tenant.clone().prop_map(Step::Protect),
        1 => tenant.clone().prop_map(Step::Terminate),
        1 => tenant.clone().prop_map(Step::Approve),
        1 => tenant.prop_map(Step::Release),
        1 => prop_oneof![2 => Just(Mode::Enforce), 1 => Just(Mode::DryRun), 1 => Just(Mode::Paused)]
            .prop_map(Step::Mode),
        1 => prop_oneof![Just(0), 1..600_u64].prop_map(Step::Grace),
        1 => Just(Step::RoundDone),
        2 => prop_oneof![Just(Step::Restart), Just(Step::FailOver)],
        1 => any::<bool>().prop_map(Step::Lag),
        1 => vec(0..TENANTS, 0..TENANTS).prop_map(Step::Unwritable),
        1 => Just(Step::Unwritable(Vec::new())),
    ]
}

pub(super) fn namespace(tenant: usize) -> String {
    format!("ns-t{tenant}")
}

pub(super) fn app(tenant: usize) -> App {
    App::new(namespace(tenant), "app", "web")
}

impl Step {
    pub(super) fn take(&self, world: &mut World) {
        match self {
            Step::Wait(seconds) => drop(world.wait(*seconds)),
            Step::Accuse { node, tenants } => accuse(world, *node, tenants),
            Step::Empty(node) => drop(world.answer(NODES[*node], vec![])),
            Step::Fail(node) => drop(world.report(NODES[*node], failed(FailureReason::Timeout))),
            Step::PodOn { tenant, node } => world.pod_on(&namespace(*tenant), "web", NODES[*node], "web"),
            Step::PodGone(tenant) => pod_gone(world, *tenant),
            Step::PodUnreadable(tenant) => {
                world.pod_is(&namespace(*tenant), "web", PodState::Unreadable("503".into()));
            }
            Step::PodForgotten(tenant) => {
                world.facts.pods.retain(|pod, _| *pod.namespace != *namespace(*tenant));
            }
            Step::Exempt(tenant) => exempt(world, *tenant),
            Step::EndExemptions => world.policy.exemptions.clear(),
            Step::Protect(tenant) => world.policy.protected = vec![namespace(*tenant)],
            Step::Terminate(tenant) => world.facts.terminating = BTreeSet::from([namespace(*tenant).into()]),
            Step::Approve(tenant) => execute(world, &IncidentCommand::Approve { app: app(*tenant) }),
            Step::Release(tenant) => {
                let until = world.now.wall() + jiff::SignedDuration::from_hours(1);
                execute(world, &IncidentCommand::Release { app: app(*tenant), until });
            }
            Step::Mode(mode) => set_mode(world, *mode),
            Step::Grace(seconds) => world.policy.grace = Duration::from_secs(*seconds),
            Step::RoundDone => world.ledger.round_done(),
            Step::Restart => world.restart(),
            Step::FailOver => world.fail_over(),
            Step::Unwritable(tenants) => {
                world.unwritable = tenants.iter().map(|tenant| namespace(*tenant)).collect();
            }
            Step::Lag(receives) => {
                if let Some((_, listening)) = &mut world.follower {
                    *listening = *receives;
                }
            }
        }
    }
}

fn accuse(world: &mut World, node: usize, tenants: &[usize]) {
    let now = world.clock();
    let records = tenants.iter().map(|t| record_of(&namespace(*t), "web", "xmrig", now)).collect();
    world.answer(NODES[node], records);
}

fn pod_gone(world: &mut World, tenant: usize) {
    world.pod_is(&namespace(tenant), "web", PodState::Gone);
    let pod = PodRef { namespace: namespace(tenant).into(), pod: "web".into() };
    world.ledger.pod_gone(&pod, world.now);
}

fn exempt(world: &mut World, tenant: usize) {
    world.policy.exemptions.push(Exemption {
        place: "Exemption a".into(),
        confirm: None,
        namespace: Some(Pattern::Exact(namespace(tenant))),
        app: None,
        process: None,
        rule: None,
        reason: "a test".into(),
        until: None,
    });
}

/// An operator gives the command. It may be refused.
fn execute(world: &mut World, command: &IncidentCommand) {
    let _ = world.incidents.execute(command, "ops", &world.policy, world.now);
}

fn set_mode(world: &mut World, mode: Mode) {
    let before = std::mem::replace(&mut world.policy.mode, mode);
    // Dry-run decides on a copy. Its decisions had no effect, and are dropped.
    if before == Mode::DryRun && mode != Mode::DryRun {
        let persisted: Vec<_> = world.persisted.values().cloned().collect();
        let snapshot = world.snapshot();
        world.incidents = Incidents::restore(&persisted, &snapshot, world.now);
    }
}
