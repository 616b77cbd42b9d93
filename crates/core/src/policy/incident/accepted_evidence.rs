//! The accepted evidence of an incident, and the tombstones of evidence that has cleared.

use std::sync::Arc;
use std::time::Duration;

use crate::Moment;
use crate::clearing::{Cleared, NodeClock, Reading};
use crate::ledger::SHORT_CMDLINE;
use crate::names::Text;
use crate::policy::cluster_facts::AcceptedPod;
use crate::report::Record;
use crate::snapshot::EvidenceView;
use crate::time::{CompactDuration, CompactTimestamp};

/// How much longer evidence must have been hidden before the time is noted again, because each note is written to the
/// state.
const HIDDEN_STEP: Duration = Duration::from_hours(1);

/// It has a clearing clock of its own beside the ledger's, started at the last evidence that was *accepted*. A node
/// that still accuses a Pod which has moved away restarts the ledger's clock, but not this one.
#[derive(Clone, Debug)]
pub(in crate::policy) struct AcceptedEvidence {
    pub(in crate::policy) record: Arc<Record>,
    /// The accused Pod's UID; `None` if there was no cluster, or if an earlier version persisted this evidence.
    pub(in crate::policy) pod_uid: Option<Text>,
    pub(in crate::policy) fresh_at: Moment,
    /// When its agent found it, by our monotonic clock. Not known after a start until the agent reports it again,
    /// because the persisted time is a wall clock's.
    pub(in crate::policy) found_at: Option<CompactDuration>,
    /// The agent's own time of it, because two replicas see the same evidence at different moments.
    pub(in crate::policy) evidence_time: CompactTimestamp,
    /// From when on its node's answers without it count. Not from before the start, because this process did not
    /// receive earlier answers.
    pub(in crate::policy) counted_from: Moment,
    /// The reading of its clearing clock when it was last accepted.
    pub(in crate::policy) mark: Reading,
    pub(in crate::policy) first_seen: CompactTimestamp,
    /// How often its node's agent scans, as far as it was learned. It is persisted, so that a restart does not
    /// shorten the clearing time.
    pub(in crate::policy) scan_interval: Option<CompactDuration>,
    /// The longest time for which it was unseen and came back (see [`crate::snapshot::EvidenceDetails::away`]).
    pub(in crate::policy) away: CompactDuration,
    /// How long its node has answered since it was last fresh, earlier leaders' time included. Zero if none of these
    /// answers was inconclusive about it. Updated in steps of [`HIDDEN_STEP`].
    pub(in crate::policy) hidden_for: CompactDuration,
    /// Fresh and accepted, as of the last evaluation.
    pub(in crate::policy) active: bool,
    /// An exemption or a release covers it, or may do so once a doubt about its date is over. Known only if the
    /// incident has more accepted evidence than is persisted.
    pub(in crate::policy) covered: bool,
    /// Its Pod is proven gone. The App's block goes on, because its processes may come back with the next Pod.
    pub(in crate::policy) gone: bool,
    pub(in crate::policy) observations: u32,
    /// What was persisted of it last; `None` if it has not been persisted yet.
    pub(in crate::policy) persisted: Option<PersistedEvidence>,
}

/// What a restart would know of accepted evidence.
#[derive(Clone, Copy, Debug)]
pub(in crate::policy) struct PersistedEvidence {
    /// By the monotonic clock.
    pub(in crate::policy) fresh_at: CompactDuration,
    pub(in crate::policy) hidden_for: CompactDuration,
    /// In seconds, rounded up as in the document; zero while the interval is not known.
    pub(in crate::policy) scan_interval: u32,
    pub(in crate::policy) covered: bool,
    pub(in crate::policy) gone: bool,
}

/// Accepted evidence that has cleared.
#[derive(Clone, Debug)]
pub(in crate::policy) struct Tombstone {
    pub(in crate::policy) evidence: AcceptedEvidence,
    pub(in crate::policy) at: CompactTimestamp,
    pub(in crate::policy) by: ClearingCause,
    /// It has been persisted.
    pub(in crate::policy) is_persisted: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::policy) enum ClearingCause {
    By(Cleared),
    AppGone,
}

/// From when on a clearing clock counts: its reading and the moment.
#[derive(Clone, Copy, Debug)]
pub(in crate::policy) struct ClearingStart {
    pub(in crate::policy) mark: Reading,
    pub(in crate::policy) counted_from: Moment,
}

impl AcceptedEvidence {
    /// Restarts its clearing clock at `counted_from`, unless the clock already counts from a later moment. After a
    /// restart it counts from the restart, because another leader may have received reports of the process until
    /// then.
    pub(in crate::policy) fn restart_clock(&mut self, ClearingStart { mark, counted_from }: ClearingStart) {
        if self.counted_from < counted_from {
            (self.mark, self.counted_from) = (mark, counted_from);
        }
    }

    /// Like [`AcceptedEvidence::restart_clock`], for evidence that was found anew: the time for which it was hidden
    /// before is dropped.
    pub(in crate::policy) fn restart_clock_anew(&mut self, start: ClearingStart) {
        self.restart_clock(start);
        self.mark.before = CompactDuration::ZERO;
    }

    /// Where its clearing clock starts.
    pub(in crate::policy) fn clearing_start(&self) -> ClearingStart {
        ClearingStart { mark: self.mark, counted_from: self.counted_from }
    }

    /// Notes how long it has been hidden, once in [`HIDDEN_STEP`] of answered time. `inconclusive` returns for how
    /// much of the node's answered time the answers were inconclusive about it.
    pub(in crate::policy) fn note_hidden(
        &mut self,
        clock: &NodeClock,
        inconclusive: impl FnOnce() -> CompactDuration,
    ) {
        let answered = clock.odometer.saturating_sub(self.mark.answered);
        let before = self.mark.before.get();
        let by_now = before.saturating_add(answered);
        let noted = self.hidden_for.get();
        if noted < before || noted > by_now {
            // Its clock was restarted since the last note.
            self.hidden_for = self.mark.before;
        } else if by_now.saturating_sub(noted) >= HIDDEN_STEP
            && (!before.is_zero() || inconclusive() > self.mark.inconclusive)
        {
            self.hidden_for = by_now.into();
        }
    }

    /// Whether its command line counts in the ledger's limit for command lines.
    pub(in crate::policy) fn has_long_cmdline(&self) -> bool {
        self.record.cmdline.len() > SHORT_CMDLINE
    }

    /// Drops a long command line, because no decision reads it and no limit counts it here.
    pub(in crate::policy) fn drop_cmdline(&mut self) {
        if self.has_long_cmdline() {
            self.record = Arc::new(self.record.without_cmdline());
        }
    }

    /// Evidence that has just been accepted against the Pod with that UID.
    pub(in crate::policy) fn of(evidence: &EvidenceView, pod_uid: Option<Text>, fresh_at: Moment) -> Self {
        Self {
            record: evidence.record.clone(),
            pod_uid,
            fresh_at,
            found_at: found_at(evidence),
            evidence_time: evidence.evidence_time,
            counted_from: fresh_at,
            mark: evidence.mark,
            first_seen: evidence.first_seen.wall().into(),
            // `clear_evidence` sets it in the same evaluation.
            scan_interval: None,
            away: evidence.away,
            hidden_for: CompactDuration::ZERO,
            active: true,
            covered: false,
            gone: false,
            observations: saturating_u32(evidence.observations),
            persisted: None,
        }
    }

    /// Whether its agent found it so recently that a new block may follow from it.
    pub(in crate::policy) fn is_young(&self, max_age: Duration, now: Moment) -> bool {
        self.found_at.is_some_and(|at| now.uptime().saturating_sub(at.get()) <= max_age)
    }

    /// Takes over what `evidence` adds, which is still fresh and the same as this. The record may have been read
    /// again, but the clearing clock goes on.
    pub(in crate::policy) fn renew(&mut self, evidence: &EvidenceView) {
        (self.active, self.gone) = (true, false);
        self.observations = saturating_u32(evidence.observations);
        self.found_at = self.found_at.max(found_at(evidence));
    }

    /// The interval to persist, so that a restart knows how long the evidence may be unseen.
    pub(in crate::policy) fn longest_interval(&self) -> Option<CompactDuration> {
        self.scan_interval.max(Some(self.away).filter(|away| *away > CompactDuration::ZERO))
    }

    /// Notes that it is persisted as it is now.
    pub(in crate::policy) fn note_persisted(&mut self) {
        self.persisted = Some(PersistedEvidence {
            fresh_at: self.fresh_at.uptime().into(),
            hidden_for: self.hidden_for,
            scan_interval: self.longest_interval().map_or(0, seconds_of_interval),
            covered: self.covered,
            gone: self.gone,
        });
    }

    /// Whether it is about `pod` and not about another Pod of the same name. Evidence that an earlier version
    /// persisted is about the Pod that existed then.
    pub(in crate::policy) fn is_of(&self, pod: &AcceptedPod) -> bool {
        match (&self.pod_uid, &pod.uid) {
            (Some(known), Some(uid)) => known == uid,
            (None, Some(_)) => pod.created.is_some_and(|at| at.uptime() <= self.fresh_at.uptime()),
            (_, None) => false,
        }
    }

    /// Whether `evidence`, fresh at `fresh_at`, adds nothing to it.
    pub(in crate::policy) fn knows(&self, evidence: &EvidenceView, fresh_at: Moment) -> bool {
        self.fresh_at >= fresh_at || self.evidence_time == evidence.evidence_time
    }
}

/// `n` as a `u32`, which takes less memory in each incident and its evidence; [`u32::MAX`] if it is greater.
pub(in crate::policy) fn saturating_u32(n: u64) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// A scan interval in seconds, as it is persisted. It is rounded up, because too long an interval only delays the
/// release.
pub(in crate::policy) fn whole_seconds(interval: CompactDuration) -> u64 {
    let interval = interval.get();
    interval.as_secs() + u64::from(interval.subsec_nanos() > 0)
}

/// The same as a `u32`.
pub(in crate::policy) fn seconds_of_interval(interval: CompactDuration) -> u32 {
    saturating_u32(whole_seconds(interval))
}

fn found_at(evidence: &EvidenceView) -> Option<CompactDuration> {
    let fresh_at = evidence.fresh_at?.uptime();
    Some(fresh_at.saturating_sub(evidence.age?.get()).into())
}
