//! Applies observations to the ledger, and logs the changes.

use procscan_core::ledger::{Change, ChangeKind, Ledger, NodeChange};
use procscan_core::report::Report;

use super::ALL_REFUSE;
use crate::collector::{Observation, Round};

/// The part of a round that was last logged.
#[derive(Debug, Default)]
pub(super) struct LastRound {
    /// How many targets the round had, and how many of them answered.
    counts: Option<(usize, usize)>,
    /// Whether all nodes together had as many violations as they may have.
    is_full: bool,
}

/// Applies an observation to the ledger, and logs the change.
pub(super) fn apply_observation(ledger: &mut Ledger, observation: Observation, last: &mut LastRound) {
    match observation {
        // Dropping `_share` returns its part of the byte budget.
        Observation::Report(report, _share) => {
            log(&ledger.absorb(&report));
            if let Some(change) = ledger.take_node_change() {
                log_node(&report, change);
            }
        }
        Observation::RoundDone(round) => {
            ledger.round_done();
            log_limits(ledger, last);
            let counts = (round.asked + round.skipped, round.answered);
            let took_ms = u64::try_from(round.took.as_millis()).unwrap_or(u64::MAX);
            let lag_us = u64::try_from(round.lag.as_micros()).unwrap_or(u64::MAX);
            let Round { number, asked, answered, failed, skipped, .. } = round;
            if answered == 0 {
                let hint = ledger.all_refuse().then_some(ALL_REFUSE);
                tracing::warn!(
                    round = number,
                    asked,
                    failed,
                    skipped,
                    took_ms,
                    lag_us,
                    hint,
                    "round done: no agent has answered"
                );
            } else if last.counts.replace(counts) == Some(counts) {
                // A round with the same counts is no change.
                tracing::debug!(
                    round = number,
                    asked,
                    answered,
                    failed,
                    skipped,
                    took_ms,
                    lag_us,
                    "round done"
                );
            } else {
                tracing::info!(
                    round = number,
                    asked,
                    answered,
                    failed,
                    skipped,
                    took_ms,
                    lag_us,
                    "round done"
                );
            }
        }
    }
}

/// Logs which limits for the violations of all nodes together have been reached.
fn log_limits(ledger: &mut Ledger, last: &mut LastRound) {
    let cut = ledger.take_cut_cmdlines();
    if cut > 0 {
        tracing::warn!(
            cut,
            "command lines were cut to 256 bytes: their nodes have more than 32 KiB of them, and collector.cmdline_budget, or the sixteenth of it that one node may use, is full"
        );
    }
    let is_full = ledger.is_full();
    if std::mem::replace(&mut last.is_full, is_full) == is_full {
        return;
    }
    if is_full {
        tracing::warn!(
            "all nodes together have as many violations as collector.max_violations allows: no node's violations grow beyond 256"
        );
    } else {
        tracing::info!("all nodes together again have fewer violations than collector.max_violations allows");
    }
}

/// Logs changes of violations. Tenants choose the process names, so they are logged escaped. The command line is not
/// logged, because it may hold secrets.
pub(super) fn log(changes: &[Change]) {
    for Change { key, node, kind } in changes {
        let (namespace, pod, process) = (&*key.namespace, &*key.pod, key.process.escape_debug());
        match kind {
            ChangeKind::Appeared => tracing::warn!(namespace, pod, %process, %node, "violation"),
            ChangeKind::Sighted => {
                tracing::info!(namespace, pod, %process, %node, "violation listed without fresh evidence");
            }
            ChangeKind::Unconfirmed => {
                tracing::info!(namespace, pod, %process, %node, "violation unconfirmed");
            }
            ChangeKind::Cleared(why) => {
                tracing::info!(namespace, pod, %process, %node, why = why.as_str(), "violation cleared");
            }
        }
    }
}

/// Logs a change of a node: once when it begins, and once when it ends.
fn log_node(report: &Report, change: NodeChange) {
    let (node, address) = (&*report.target.node.0, &*report.target.address);
    match change {
        NodeChange::Unusable => {
            let failure = report.outcome.failure();
            let (reason, detail) = failure.map(|failure| (failure.reason.as_str(), &*failure.detail)).unzip();
            tracing::error!(
                alert = "unusable",
                node,
                address,
                reason,
                detail = ?detail.unwrap_or_default(),
                "a node's answers can't be used: its violations stay as they are until they can"
            );
        }
        NodeChange::UsableAgain => tracing::info!(node, address, "a node's answers can be used again"),
        NodeChange::LeavesOut { namespaces } => {
            let namespaces: Vec<&str> = namespaces.iter().map(|namespace| &**namespace).collect();
            tracing::warn!(
                node,
                address,
                ?namespaces,
                "records of a node are left out, by its agent or because there is no room for them: no violation clears in their namespaces (up to five are named)"
            );
        }
        NodeChange::LeavesNothingOut => {
            tracing::info!(node, address, "no records of a node are left out any more");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use procscan_core::Moment;
    use procscan_core::ledger::Detection;
    use procscan_core::names::NodeName;
    use procscan_core::report::{Answer, Failure, FailureReason, Limits, Outcome, Target, decode};

    use super::*;
    use crate::collector::Share;
    use crate::telemetry::logged::Logged;

    #[test]
    fn a_node_with_unusable_answers_raises_one_alert_and_one_line_when_they_can_be_used_again() {
        let (logged, _guard) = Logged::start();
        let at = |minute| {
            let passed = Duration::from_mins(minute);
            Moment::new(passed, jiff::Timestamp::UNIX_EPOCH + passed)
        };
        let target = Target { address: "n1:9090".into(), node: NodeName::new("n1") };
        let mut ledger = Ledger::new(Detection::default(), at(0));
        ledger.expect([target.clone()], 0);
        for minute in 0..120 {
            let failure = Failure { reason: FailureReason::Status, detail: "HTTP 503 instead of 200".into() };
            let is_usable = minute == 0 || minute >= 60;
            let outcome =
                if is_usable { Outcome::Complete(Answer::default()) } else { Outcome::Failed(failure) };
            let report = Report { target: target.clone(), at: at(minute), outcome };
            apply_observation(
                &mut ledger,
                Observation::Report(report, Share::default()),
                &mut LastRound::default(),
            );
        }
        let lines = logged.lines();
        assert_eq!(lines.len(), 2, "{lines:?}");
        for part in ["ERROR", "alert=\"unusable\"", "node=\"n1\"", "reason=\"status\"", "HTTP 503"] {
            assert!(lines[0].contains(part), "{part}: {lines:?}");
        }
        assert!(lines[1].contains("INFO") && lines[1].contains("can be used again"), "{lines:?}");
    }

    #[test]
    fn records_that_are_left_out_are_logged_once_and_so_is_their_end() {
        let (logged, _guard) = Logged::start();
        let at = |minute| {
            let passed = Duration::from_mins(minute);
            Moment::new(passed, jiff::Timestamp::UNIX_EPOCH + passed)
        };
        let target = Target { address: "n1:9090".into(), node: NodeName::new("n1") };
        let rules = Detection { max_keys_per_node: 4, ..Detection::default() };
        let mut ledger = Ledger::new(rules, at(0));
        ledger.expect([target.clone()], 0);
        let limits = Limits { records: 6, ..Limits::default() };
        // Too many for an answer, too many for the node, and no longer too many.
        for (minute, count) in [(0, 9), (1, 9), (2, 5), (3, 5), (4, 1), (5, 1)] {
            let record = |n| {
                format!(
                    r#"{{"namespace":"ns-a","pod":"p","process":"x{n}","timestamp":"1970-01-01T00:0{minute}:00Z"}}"#
                )
            };
            let records: Vec<String> = (0..count).map(record).collect();
            let (answer, _) = decode(format!("[{}]", records.join(",")).as_bytes(), &limits);
            let answer = Answer { date: Some(at(minute).wall()), ..answer };
            let report =
                Report { target: target.clone(), at: at(minute), outcome: Outcome::Complete(answer) };
            apply_observation(
                &mut ledger,
                Observation::Report(report, Share::default()),
                &mut LastRound::default(),
            );
        }
        let lines = logged.lines();
        let about: Vec<&String> = lines.iter().filter(|line| line.contains("left out")).collect();
        assert_eq!(about.len(), 2, "{lines:?}");
        for part in ["WARN", "node=\"n1\"", "ns-a"] {
            assert!(about[0].contains(part), "{part}: {about:?}");
        }
        assert!(about[1].contains("INFO") && about[1].contains("no records of a node"), "{about:?}");
    }

    #[test]
    fn the_limits_for_all_nodes_together_are_logged_when_they_are_reached() {
        let (logged, _guard) = Logged::start();
        let target = Target { address: "n1:9090".into(), node: NodeName::new("n1") };
        let rules = Detection {
            max_keys: 2,
            cmdline_budget: 0,
            same_incident: Duration::ZERO,
            ..Detection::default()
        };
        let at = |minute| {
            let passed = Duration::from_mins(minute);
            Moment::new(passed, jiff::Timestamp::UNIX_EPOCH + passed)
        };
        let mut ledger = Ledger::new(rules, at(0));
        ledger.expect([target.clone()], 0);
        let mut last = LastRound::default();
        for (minute, count) in [(0, 1), (1, 2), (2, 2)].into_iter().chain((3..200).map(|minute| (minute, 0)))
        {
            let now = at(minute).wall();
            let cmdline = "x".repeat(40 << 10);
            let record = |n| {
                format!(
                    r#"{{"namespace":"ns-a","pod":"p{n}","process":"x","cmdline":"{cmdline}","timestamp":"{now}"}}"#
                )
            };
            let body = format!("[{}]", (0..count).map(record).collect::<Vec<_>>().join(","));
            let limits = Limits { cmdline: 40 << 10, ..Limits::default() };
            let (answer, _) = decode(body.as_bytes(), &limits);
            let outcome = Outcome::Complete(Answer { date: Some(now), ..answer });
            let report = Report { target: target.clone(), at: at(minute), outcome };
            apply_observation(&mut ledger, Observation::Report(report, Share::default()), &mut last);
            ledger.advance(at(minute));
            apply_observation(
                &mut ledger,
                Observation::RoundDone(Round { answered: 1, ..Round::default() }),
                &mut last,
            );
        }
        let lines = logged.lines();
        let count = |text: &str| lines.iter().filter(|line| line.contains(text)).count();
        assert_eq!(count("cut=1"), 2, "{lines:?}");
        assert_eq!(count("as many violations as collector.max_violations"), 1, "{lines:?}");
        assert_eq!(count("fewer violations than collector.max_violations"), 1, "{lines:?}");
    }

    #[test]
    fn the_line_of_a_round_in_which_every_agent_refused_has_advice() {
        let (logged, _guard) = Logged::start();
        let now = Moment::new(Duration::ZERO, jiff::Timestamp::UNIX_EPOCH);
        let target = Target { address: "n1:9090".into(), node: NodeName::new("n1") };
        let mut ledger = Ledger::new(Detection::default(), now);
        ledger.expect([target.clone()], 0);
        for (reason, has_hint) in [(FailureReason::Refused, true), (FailureReason::Timeout, false)] {
            let outcome = Outcome::Failed(Failure { reason, detail: "no answer".into() });
            let report = Report { target: target.clone(), at: now, outcome };
            apply_observation(
                &mut ledger,
                Observation::Report(report, Share::default()),
                &mut LastRound::default(),
            );
            let round = Round { asked: 1, failed: 1, ..Round::default() };
            apply_observation(&mut ledger, Observation::RoundDone(round), &mut LastRound::default());
            let lines = logged.lines();
            let line = lines.last().unwrap();
            assert!(line.contains("no agent has answered"), "{lines:?}");
            assert_eq!(line.contains("enabled: true, port: 9090"), has_hint, "{line}");
        }
    }
}
