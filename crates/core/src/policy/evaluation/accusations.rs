//! Decides which accusations of an App count: what covers each of them, and whether one of them justifies a new
//! block.

use super::context::EvaluationContext;
use crate::Moment;
use crate::names::{App, Key};
use crate::policy::incident::accepted_evidence::AcceptedEvidence;
use crate::policy::incident::{Incident, Phase, StickyRelease, released_by};
use crate::report::Record;

impl Incident {
    /// Whether `app`, whose incident this is, may be accused by evidence that can't be judged yet. A node whose
    /// accusation has cleared may accuse the same Pod again, perhaps of another process. Any node may accuse any Pod
    /// of a namespace that can't be read. Both may also have been so before the start.
    pub(in crate::policy) fn may_be_accused(&self, app: &App, context: &EvaluationContext<'_>) -> bool {
        let have_settled = || self.tombstones.keys().all(|(_, node)| context.snapshot.has_settled(node));
        // The App's Pods may be replaced by others, on other nodes. The tenant may be the cause of failed look-ups.
        let is_hidden =
            || context.doubtful.contains(&app.namespace) && context.facts.is_unreadable(&app.namespace);
        self.is_accused_anew(context) || is_hidden() || (self.had_cleared && !have_settled())
    }

    fn is_accused_anew(&self, context: &EvaluationContext<'_>) -> bool {
        !context.unjudged.is_empty() && self.tombstones.keys().any(|id| context.is_unjudged(id))
    }

    /// Whether a node that accuses the App has new evidence of the same Pod that can't be judged yet.
    pub(in crate::policy) fn has_unjudged(&self, context: &EvaluationContext<'_>) -> bool {
        self.accepted.keys().any(|id| context.is_unjudged(id))
    }

    /// Whether the Pod of an accusation that justifies a new block was read directly after the accusation. A report
    /// of a watch is not enough. `since` is when the block began to wait for that read.
    pub(in crate::policy) fn is_proven(
        &self,
        covers: &[Option<String>],
        since: Option<Moment>,
        context: &EvaluationContext<'_>,
    ) -> bool {
        let is_proven = |key: &Key, accepted: &AcceptedEvidence| {
            let after = since.map_or(accepted.fresh_at, |since| since.min(accepted.fresh_at)).uptime();
            context.facts.read_at(&key.pod_ref()).is_some_and(|read| read.uptime() >= after)
        };
        let mut accepted = self.accepted.iter().zip(covers);
        !context.policy.verify_pods
            || accepted.any(|(((key, _), accepted), cover)| {
                self.justifies_block(accepted, cover.as_deref(), context) && is_proven(key, accepted)
            })
    }

    /// Whether `accepted` justifies a new block. Evidence that an exemption or a release covers does not. Neither
    /// does old evidence, however seldom its node scans, unless an operator has approved the block.
    pub(in crate::policy) fn justifies_block(
        &self,
        accepted: &AcceptedEvidence,
        cover: Option<&str>,
        context: &EvaluationContext<'_>,
    ) -> bool {
        let is_young =
            self.persisted.hold.is_approved() || accepted.is_young(context.policy.max_age, context.now);
        accepted.active && is_young && cover.is_none()
    }

    /// What covers each piece of accepted evidence, in order; `None` for one that nothing covers.
    pub(in crate::policy) fn covers(
        &self,
        app: &App,
        context: &EvaluationContext<'_>,
    ) -> Vec<Option<String>> {
        if self.accepted.is_empty() && matches!(self.phase(), Phase::Blocked { .. }) {
            // The App is still blocked, for evidence that has cleared or for an inherited block.
            return self.last_records(app).iter().map(|record| self.cover_of(app, record, context)).collect();
        }
        self.accepted.values().map(|accepted| self.cover_of(app, &accepted.record, context)).collect()
    }

    /// What covers an accusation of `app`, whose incident this is; `None` if nothing does.
    pub(in crate::policy) fn cover_of(
        &self,
        app: &App,
        record: &Record,
        context: &EvaluationContext<'_>,
    ) -> Option<String> {
        let is_blocked = matches!(self.phase(), Phase::Blocked { .. });
        let cover = self.cover_while(is_blocked, app, record, context);
        if is_blocked { cover } else { cover.or_else(|| self.cover_by_earlier_name(record, context)) }
    }

    /// What covers an accusation of `app` if the App `is_blocked`, or is not.
    pub(in crate::policy) fn cover_while(
        &self,
        is_blocked: bool,
        app: &App,
        record: &Record,
        context: &EvaluationContext<'_>,
    ) -> Option<String> {
        let exemptions = context.policy.exemptions.iter().zip(&context.exemptions);
        let mut in_force = exemptions.filter(|(_, validity)| validity.covers(is_blocked));
        if let Some((exemption, _)) = in_force.find(|(exemption, _)| exemption.covers(app, record)) {
            return Some(format!("exempted: {}", exemption.reason));
        }
        let is_in_force =
            |release: &StickyRelease| context.dates.validity(release.until, context.now).covers(is_blocked);
        let release = self
            .persisted
            .rare()
            .releases
            .iter()
            .find(|release| release.covers(record) && is_in_force(release));
        release.map(|release| released_by(&release.actor, release.until))
    }

    /// The exemption or release that covers an accusation by an earlier name of the App. It only prevents new blocks.
    /// If it opened a block, a tenant could open one by changing labels.
    fn cover_by_earlier_name(&self, record: &Record, context: &EvaluationContext<'_>) -> Option<String> {
        let exemptions = || context.policy.exemptions.iter().zip(&context.exemptions);
        let of = |name: &App| {
            let mut in_force = exemptions().filter(|(_, validity)| validity.covers(false));
            if let Some((exemption, _)) = in_force.find(|(exemption, _)| exemption.covers(name, record)) {
                return Some(format!("exempted: {}; as App {name}, its name before", exemption.reason));
            }
            let mut releases = context.released.get(name).into_iter().flatten();
            let release = releases.find(|release| {
                release.covers(record) && context.dates.validity(release.until, context.now).covers(false)
            })?;
            Some(format!("{}; as App {name}, its name before", released_by(&release.actor, release.until)))
        };
        self.persisted.rare().formerly.iter().find_map(of)
    }
}
