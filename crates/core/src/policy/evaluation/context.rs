//! The context of one evaluation: what it reads, and what it has decided so far.

use std::collections::{BTreeMap, BTreeSet};

use crate::Moment;
use crate::clearing::Cleared;
use crate::decision::{Actor, Decision, DecisionKind, Mode};
use crate::names::{App, NodeName, PodRef, Text};
use crate::policy::Policy;
use crate::policy::alert::Alert;
use crate::policy::brake::Brake;
use crate::policy::cluster_facts::ClusterFacts;
use crate::policy::dates::{Dates, Validity};
use crate::policy::incident::accepted_evidence::ClearingCause;
use crate::policy::incident::{EvidenceId, StickyRelease};
use crate::policy::namespace_refusals::NamespaceRefusals;
use crate::snapshot::Snapshot;

/// Operators' releases, by App.
pub(in crate::policy) type Releases = BTreeMap<App, Vec<StickyRelease>>;
/// The holds of brakes, by App.
pub(in crate::policy) type Holds = BTreeMap<App, (Moment, Brake)>;

pub(in crate::policy) struct EvaluationContext<'a> {
    pub(in crate::policy) snapshot: &'a Snapshot,
    pub(in crate::policy) policy: &'a Policy,
    pub(in crate::policy) facts: &'a ClusterFacts,
    pub(in crate::policy) now: Moment,
    pub(in crate::policy) refusals: NamespaceRefusals<'a>,
    pub(in crate::policy) dates: Dates,
    /// Whether each of the policy's exemptions is in force now, in their order.
    pub(in crate::policy) exemptions: Vec<Validity>,
    /// Operators' releases, by the earlier names of Apps.
    pub(in crate::policy) released: Releases,
    /// The holds of brakes, by the earlier names of Apps.
    pub(in crate::policy) held: Holds,
    /// Apps that are blocked in namespaces which may not be blocked stay closed.
    pub(in crate::policy) refused_stay_closed: bool,
    /// The Apps whose persisted incidents can't be read.
    pub(in crate::policy) unreadable: BTreeSet<App>,
    /// Namespaces with accusations, fresh or old, that are not cleared and can't be judged.
    pub(in crate::policy) doubtful: BTreeSet<Text>,
    /// The Pods of those accusations that are fresh, with the accusing nodes.
    pub(in crate::policy) unjudged: BTreeSet<(PodRef, NodeName)>,
    pub(in crate::policy) decisions: Vec<Decision>,
    pub(in crate::policy) alerts: Vec<Alert>,
}

/// The basis of a release.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::policy) enum ReleaseBasis {
    /// The rules: the accusations have cleared. The brakes apply.
    Rules,
    /// The cluster proves that the App or its namespace is gone or being deleted. So the release opens nothing, if
    /// the cluster is right.
    Proof,
}

impl EvaluationContext<'_> {
    pub(in crate::policy) fn alert(&mut self, alert: Alert) {
        self.alerts.push(alert);
    }

    /// Whether an accusation of the same Pod by the same node can't be judged.
    pub(in crate::policy) fn is_unjudged(&self, (key, node): &EvidenceId) -> bool {
        self.unjudged.contains(&(key.pod_ref(), node.clone()))
    }

    /// Whether an exemption that can't be read completely may cover accusations of `app`.
    pub(in crate::policy) fn may_exempt(&self, app: &App) -> bool {
        let is_over = |until| self.dates.validity(until, self.now) == Validity::Over;
        let mut unread = self.policy.unread_exemptions.iter();
        unread.any(|exemption| !exemption.until.is_some_and(is_over) && exemption.may_cover(app))
    }

    /// Whether all nodes have answered for long enough, and each accusation in the namespace of `app` is judged. Then no
    /// node lists an accusation of `app` that is not known.
    pub(in crate::policy) fn has_settled(&self, app: &App) -> bool {
        !self.doubtful.contains(&app.namespace) && self.snapshot.is_settled(self.policy.unreachable_limit)
    }

    pub(in crate::policy) fn record_decision(
        &mut self,
        app: &App,
        kind: DecisionKind,
        reason: impl Into<Text>,
    ) {
        self.decisions.push(Decision {
            at: self.now.wall(),
            app: app.clone(),
            kind,
            actor: Actor::Policy,
            reason: reason.into(),
            dry_run: self.policy.mode == Mode::DryRun,
        });
    }
}

pub(in crate::policy) fn cleared_reason(
    app: &App,
    cleared: Option<ClearingCause>,
    context: &EvaluationContext<'_>,
) -> String {
    match cleared {
        Some(ClearingCause::AppGone) if context.facts.is_gone(app) => "no Pod of the App remains".to_owned(),
        Some(ClearingCause::AppGone) => {
            "no Pod of the App remained, and nothing has been accepted against it since".to_owned()
        }
        Some(ClearingCause::By(Cleared::Unreachable)) => {
            "its node has not answered for detection.unreachable_limit".to_owned()
        }
        Some(ClearingCause::By(Cleared::Hidden)) => {
            "its node has answered for detection.unreachable_limit in sum, but during too much of it another process's record hid it, or \
             records of its namespace were left out"
                .to_owned()
        }
        Some(ClearingCause::By(Cleared::ByClock | Cleared::PodGone)) => {
            "its node has answered for the whole clearing time without fresh evidence".to_owned()
        }
        None => format!("nothing is left of the accusation as of {}", context.now.wall()),
    }
}
