//! One target: its last answer and its last failure.

use std::sync::Arc;

use jiff::Timestamp;

use super::Detection;
use crate::Moment;
use crate::names::{NodeName, Text};
use crate::report::{Failure, FailureReason, Report};
use crate::snapshot::{TargetState, TargetView};

#[derive(Debug)]
pub(super) struct TargetEntry {
    pub(super) node: NodeName,
    pub(super) expected: bool,
    pub(super) last_report: Option<Moment>,
    pub(super) last_answer: Option<Moment>,
    /// Few targets have one.
    pub(super) last_failure: Option<Arc<(Timestamp, Failure)>>,
    pub(super) consecutive_failures: u32,
    /// Since when it has given only answers that can't be used.
    pub(super) unusable_since: Option<Moment>,
}

impl TargetEntry {
    pub(super) fn new(node: NodeName) -> Self {
        Self {
            node,
            expected: true,
            last_report: None,
            last_answer: None,
            last_failure: None,
            consecutive_failures: 0,
            unusable_since: None,
        }
    }

    /// Applies a report. Returns whether it is the same as the one before; `None` if it does not count.
    pub(super) fn note(&mut self, report: &Report) -> Option<bool> {
        let is_late = self.last_report.is_some_and(|last| report.at.uptime() < last.uptime());
        if self.node != report.target.node || is_late {
            return None;
        }
        let repeated = self.last_report == Some(report.at);
        self.last_report = Some(report.at);
        let Some(failure) = report.outcome.failure() else {
            (self.consecutive_failures, self.unusable_since) = (0, None);
            self.last_answer = Some(report.at);
            return Some(repeated);
        };
        if !repeated {
            self.consecutive_failures = self.consecutive_failures.saturating_add(1);
        }
        if failure.reason.is_silence() {
            self.unusable_since = None;
        } else {
            self.unusable_since.get_or_insert(report.at);
        }
        self.last_failure = Some(Arc::new((report.at.wall(), failure.clone())));
        Some(repeated)
    }

    /// Whether it refused the connection when it was last asked, so that nothing listens at its address.
    pub(super) fn refuses(&self) -> bool {
        let is_refusal = |last: &Arc<(Timestamp, Failure)>| last.1.reason == FailureReason::Refused;
        self.consecutive_failures > 0 && self.last_failure.as_ref().is_some_and(is_refusal)
    }

    pub(super) fn state(&self, rules: &Detection, now: Moment) -> TargetState {
        match self.last_answer {
            Some(at) if now.since(at) <= rules.fresh_within => TargetState::Fresh,
            _ if self.unusable_since.is_some() => TargetState::Unusable,
            Some(_) => TargetState::Stale,
            None => TargetState::NeverSeen,
        }
    }

    pub(super) fn view(&self, address: &Text, rules: &Detection, now: Moment) -> TargetView {
        TargetView {
            address: address.clone(),
            node: self.node.clone(),
            state: self.state(rules, now),
            last_answer: self.last_answer.map(|at| at.wall().into()),
            last_failure: self.last_failure.clone(),
            consecutive_failures: self.consecutive_failures,
            refuses: self.refuses(),
            unusable_since: self.unusable_since.map(|at| at.wall().into()),
        }
    }
}
