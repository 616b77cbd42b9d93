//! Reports each decision once: in the log, and in the list of the last decisions that the API shows. Alerts and the
//! mode are logged here too.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use procscan_core::decision::{Decision, DecisionKind, Mode};
use procscan_core::policy::Alert;
use procscan_core::state::EnforcementSpec;

use crate::counters::{Counters, count};
use crate::wire_names::mode_name;

/// How many decisions the list has. Decisions about an incident are persisted with it; the list also has decisions
/// that belong to no incident.
const MAX_DECISIONS: usize = 2000;

/// The last decisions of this replica.
#[derive(Clone, Debug, Default)]
pub(crate) struct Journal {
    last: Arc<Mutex<VecDeque<Decision>>>,
    /// How many decisions there have been.
    count: Arc<AtomicU64>,
    counters: Counters,
}

impl Journal {
    /// An empty list, whose decisions are counted.
    pub(crate) fn new(counters: Counters) -> Self {
        Self { counters, ..Self::default() }
    }

    /// The last decisions, the latest first.
    pub(crate) fn last(&self) -> Vec<Decision> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).iter().rev().cloned().collect()
    }

    /// How many decisions this replica has reported, and the last ones, the latest first.
    pub(crate) fn reported(&self) -> (u64, Vec<Decision>) {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        // It changes under the same lock.
        (self.count(), last.iter().rev().cloned().collect())
    }

    /// How many decisions this replica has reported since its start.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// Logs a decision, and adds it to the list.
    pub(super) fn report(&self, decision: &Decision) {
        log(decision);
        if !decision.dry_run {
            count(&self.counters.decisions, "decision", decision.kind.as_str());
        }
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.len() == MAX_DECISIONS {
            last.pop_front();
        }
        last.push_back(decision.clone());
        self.count.fetch_add(1, Ordering::Release);
    }

    /// Logs an alert, and counts brakes that begin to hold.
    pub(super) fn raise(&self, alert: &Alert) {
        if let Alert::Brake { brake, .. } = alert {
            count(&self.counters.brakes, "brake", brake.kind());
        }
        raise(alert);
    }
}

fn log(decision: &Decision) {
    let Decision { app, kind, actor, reason, dry_run, .. } = decision;
    let reason = &**reason;
    let decision = kind.as_str();
    match kind {
        DecisionKind::Blocked
        | DecisionKind::Held
        | DecisionKind::ReleaseHeld
        | DecisionKind::Disputed
        | DecisionKind::Inherited => {
            tracing::warn!(%app, decision, %actor, reason, dry_run, "decision");
        }
        _ => tracing::info!(%app, decision, %actor, reason, dry_run, "decision"),
    }
}

/// Logs the mode in force, its source, and how to change it. A mode that operators declared outlives restarts, so the
/// configuration alone does not show which mode is in force.
pub(super) fn log_mode(configured: Mode, declared: &EnforcementSpec) {
    let Some(mode) = declared.mode else {
        tracing::info!(
            mode = mode_name(configured),
            "the mode of enforcement is that of the configuration (enforcement.mode); `pause` and `mode` change it at run time"
        );
        return;
    };
    let (by, reason) = (declared.by.as_deref(), declared.reason.as_deref());
    let (mode, configured, is_weaker) =
        (mode_name(mode), mode_name(configured), mode != configured && mode != Mode::Enforce);
    if is_weaker {
        tracing::warn!(mode, actor = by, reason, configured, "{DECLARED}");
    } else {
        tracing::info!(mode, actor = by, reason, configured, "{DECLARED}");
    }
}

const DECLARED: &str = "the mode of enforcement was declared at run time, which outlives restarts and counts over the configuration; \
    `resume` goes back to the configured one, `mode` changes it";

fn raise(alert: &Alert) {
    match alert {
        Alert::Brake { message, .. } => tracing::error!(alert = "brake", detail = message, "a brake holds"),
        Alert::Exemption { message } => {
            tracing::error!(
                alert = "exemption",
                detail = message,
                "an exemption has no effect, because it would open too many tenants at once"
            );
        }
        Alert::Clock { message } => {
            tracing::error!(alert = "clock", detail = message, "the clocks disagree about a date");
        }
        Alert::Notices { waiting } => tracing::warn!(
            alert = "notices",
            waiting,
            "more Apps need a first notice than notification.max_per_round; the next rounds notify the other tenants"
        ),
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use procscan_core::decision::Actor;
    use procscan_core::names::App;
    use procscan_core::policy::Brake;

    use super::*;
    use crate::telemetry::logged::Logged;

    fn decision(kind: DecisionKind, app: &str) -> Decision {
        Decision {
            at: Timestamp::UNIX_EPOCH,
            app: App::new("ns-a", "app", app),
            kind,
            actor: Actor::Policy,
            reason: "process `xmrig`".into(),
            dry_run: false,
        }
    }

    #[test]
    fn the_last_two_thousand_decisions_are_shown_the_latest_first() {
        let journal = Journal::default();
        for n in 0..MAX_DECISIONS + 2 {
            journal.report(&decision(DecisionKind::Released, &format!("web-{n}")));
        }
        let last = journal.last();
        let apps: Vec<&str> = last.iter().map(|decision| &*decision.app.name).collect();
        assert_eq!((apps.len(), apps[0], apps[MAX_DECISIONS - 1]), (2000, "web-2001", "web-2"));
    }

    #[test]
    fn a_block_a_hold_a_dispute_and_an_inherited_block_are_warnings_and_other_decisions_are_information() {
        let warnings = [
            DecisionKind::Blocked,
            DecisionKind::Held,
            DecisionKind::ReleaseHeld,
            DecisionKind::Disputed,
            DecisionKind::Inherited,
        ];
        let (logged, _guard) = Logged::start();
        let journal = Journal::default();
        for (kinds, level) in [
            (&warnings[..], "WARN"),
            (&[DecisionKind::Released, DecisionKind::Approved, DecisionKind::Refused][..], "INFO"),
        ] {
            for kind in kinds {
                journal.report(&decision(*kind, "web"));
                let lines = logged.lines();
                assert_eq!(lines.len(), 1, "{lines:?}");
                let field = format!("decision=\"{}\"", kind.as_str());
                assert!(lines[0].starts_with(level) && lines[0].contains(&field), "{lines:?}");
                assert!(
                    lines[0].contains("ns-a/app/web") && lines[0].contains("process `xmrig`"),
                    "{lines:?}"
                );
            }
        }
    }

    #[test]
    fn every_alert_is_logged_with_its_kind_and_advice() {
        let message = || "approve or release the Apps".to_owned();
        for (alert, level, kind, detail) in [
            (Alert::Brake { brake: Brake::NewTenants, message: message() }, "ERROR", "brake", message()),
            (Alert::Exemption { message: message() }, "ERROR", "exemption", message()),
            (Alert::Clock { message: message() }, "ERROR", "clock", message()),
            (Alert::Notices { waiting: 12 }, "WARN", "notices", "waiting=12".to_owned()),
        ] {
            let (logged, _guard) = Logged::start();
            raise(&alert);
            let lines = logged.lines();
            assert_eq!(lines.len(), 1, "{lines:?}");
            assert!(lines[0].starts_with(level), "{lines:?}");
            assert!(
                lines[0].contains(&format!("alert=\"{kind}\"")) && lines[0].contains(&detail),
                "{lines:?}"
            );
        }
    }

    #[test]
    fn the_mode_in_force_is_logged_with_its_source_and_how_to_change_it() {
        let declared = |mode| EnforcementSpec {
            mode: Some(mode),
            by: Some("alice".to_owned()),
            reason: Some("a bad rule".to_owned()),
        };
        let by = "actor=\"alice\" reason=\"a bad rule\"";
        for (configured, spec, level, parts) in [
            (
                Mode::Enforce,
                EnforcementSpec::default(),
                "INFO",
                ["mode=\"enforce\"", "configuration", "`pause`"],
            ),
            (
                Mode::DryRun,
                EnforcementSpec::default(),
                "INFO",
                ["mode=\"dry-run\"", "configuration", "`mode`"],
            ),
            (Mode::Enforce, declared(Mode::Paused), "WARN", ["mode=\"paused\"", by, "`resume`"]),
            (
                Mode::Enforce,
                declared(Mode::DryRun),
                "WARN",
                ["mode=\"dry-run\"", by, "configured=\"enforce\""],
            ),
            (Mode::Paused, declared(Mode::Paused), "INFO", ["mode=\"paused\"", by, "configured=\"paused\""]),
            (
                Mode::DryRun,
                declared(Mode::Enforce),
                "INFO",
                ["mode=\"enforce\"", by, "configured=\"dry-run\""],
            ),
        ] {
            let (logged, _guard) = Logged::start();
            log_mode(configured, &spec);
            let lines = logged.lines();
            assert_eq!(lines.len(), 1, "{lines:?}");
            assert!(lines[0].starts_with(level), "{lines:?}");
            assert!(parts.iter().all(|part| lines[0].contains(part)), "{parts:?}: {lines:?}");
        }
    }

    #[test]
    fn line_breaks_in_an_operators_texts_begin_no_new_log_line() {
        let (logged, _guard) = Logged::start();
        let forged = "x\nWARN decision app=ns-a/app/shop decision=\"released\"\r\u{1b}[2J\u{2028}y";
        let decision = Decision {
            at: Timestamp::UNIX_EPOCH,
            app: App::new("ns-a", "app", "web"),
            kind: DecisionKind::Released,
            actor: Actor::Operator(forged.into()),
            reason: forged.into(),
            dry_run: false,
        };
        Journal::default().report(&decision);
        let lines = logged.lines();
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(!lines[0].contains(['\r', '\u{1b}', '\u{2028}']), "{lines:?}");
    }
}
