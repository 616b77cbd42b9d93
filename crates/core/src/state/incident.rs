//! The persisted form of one App's incident.

mod brake;
mod evidence;
mod grace;
mod log;
mod spec;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::brake::{Accuser, BrakeKind, Due, HeldBy, ReleaseDue, Scope};
pub use self::evidence::{ClearedBy, ClearedEvidence, EvidenceStatus, PodProcess};
pub use self::grace::Grace;
pub use self::log::{IncidentDecision, LoggedKind};
pub use self::spec::{AppRef, Approval, IncidentSpec, Release};
use crate::decision::{Actor, DecisionKind};
use crate::hash::stable_hash;
use crate::names::{App, Text, readable};

/// How many Services of one App are persisted. They are needed only until the cluster has been read again.
pub const MAX_SERVICES: usize = 1000;

/// An incident as it is persisted.
#[derive(Clone, Debug, PartialEq)]
pub struct Incident {
    /// The name: unique, and always the same for the same App and opening (see [`name`]).
    pub name: String,
    /// The part that operators write.
    pub spec: IncidentSpec,
    /// The part that the aggregator writes.
    pub status: IncidentStatus,
}

/// The name of the incident of `app` that opened at `opened`: a DNS subdomain that begins with the tenant's namespace.
pub fn name(app: &App, opened: Timestamp) -> String {
    let hash = stable_hash(&[&app.namespace, &app.kind, &app.name, &opened.as_nanosecond().to_string()]);
    // An agent may name any text as the namespace, as for the App's name.
    format!("{}{}{hash:016x}", readable(&app.namespace), readable(&app.name))
}

/// The state of an incident.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum IncidentState {
    /// The App is accused, and neither warned, held nor blocked: not due, exempt, or released by an operator.
    #[default]
    Watched,
    /// The tenant is warned, and its App will be blocked.
    Grace,
    /// A brake holds the block until it is approved.
    Held,
    /// Blocked.
    Blocked,
    /// Blocked, and a brake holds the release until it is approved.
    ReleaseHeld,
    /// Over.
    Ended,
}

/// The part of an incident that the aggregator writes. It has everything that a restart must not forget.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IncidentStatus {
    /// The state of the incident.
    pub state: IncidentState,
    /// When it opened.
    pub opened: Timestamp,
    /// Since when the incident is in its state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// When the tenant's grace ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// When the grace ends, by the clock that runs only while a replica leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_ends: Option<Timestamp>,
    /// The reading of the clock that runs only while a replica leads, when this was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<Timestamp>,
    /// The wall clock of the replica that wrote this, when it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written: Option<Timestamp>,
    /// The wall time that leaders believe. It decides when the date of an exemption has passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wall_clock: Option<WallClock>,
    /// Why, for people.
    #[serde(default)]
    pub reason: Text,
    /// The brake that holds the block. It stays until the block is approved, also while the incident is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub brake: Option<HeldBy>,
    /// Since when a brake holds the release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release_held: Option<Timestamp>,
    /// An operator has approved the block.
    #[serde(default)]
    pub approved: bool,
    /// Why it is not enforced (an exemption, a release or its namespace), as last logged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exempted: Option<String>,
    /// Withheld exemptions, as hashes of their content. Each would open this App together with those of too many
    /// other tenants. Recorded with a few of these Apps only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub withheld: Vec<Text>,
    /// The accusations, and those that have cleared. A record of a cleared one that is still listed but does not
    /// change is not believed again.
    #[serde(default)]
    pub evidence: Vec<EvidenceStatus>,
    /// How many accusations there are beyond those in `evidence`.
    #[serde(default)]
    pub evidence_omitted: usize,
    /// The names of its processes, as in the tenant's notification.
    #[serde(default)]
    pub processes: Vec<Text>,
    /// The Pods and processes of an inherited block: the App was blocked before any incident of it was persisted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inherited: Option<Vec<PodProcess>>,
    /// By which rule the last accusation cleared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cleared: Option<ClearedBy>,
    /// How the App is reached, as last known.
    #[serde(default)]
    pub exposure: Exposure,
    /// The controllers that made the accused Pods, as `Kind/name`. They identify the App when its Pods' labels change.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub origins: Vec<Text>,
    /// Earlier names of the App. Releases, exemptions and holds by these names prevent that it is newly blocked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub formerly: Vec<AppRef>,
    /// The first other Apps that are closed with it, because one of its Services exposes them too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also_closes: Vec<AppRef>,
    /// How many other Apps there are beyond those in `alsoCloses`, at least.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub also_closes_more: usize,
    /// The last notification of the tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub told: Option<NotificationStatus>,
    /// The grace, which the tenant is given once in an incident. It stays when the accusations clear.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace: Option<Grace>,
    /// When and on which reports the App was last to be blocked, as the brakes count it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due: Option<Due>,
    /// When the App was last to be released by the rules, as the brake on releases counts it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release_due: Option<ReleaseDue>,
    /// Accusations that an operator's release covers.
    #[serde(default)]
    pub releases: Vec<StickyRelease>,
    /// The last decisions, the latest last.
    #[serde(default)]
    pub decisions: Vec<IncidentDecision>,
    /// How many decisions there have been.
    #[serde(default)]
    pub decided: u64,
    /// The number of the last operator command that has been done: a generation of the object, or a number that
    /// grows.
    #[serde(default)]
    pub observed: i64,
    /// The replica that wrote this, and its leader term.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writer: Option<String>,
}

/// How an App is reached through the gateway: see [`crate::plan::Exposure`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Exposure {
    /// Its Services, as `service.namespace.svc`.
    #[serde(default)]
    pub services: Vec<Text>,
    /// Its Ingresses, as `namespace/name`.
    #[serde(default)]
    pub ingresses: Vec<Text>,
    /// Those of `services` that may be reached in other ways; all of them if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub otherwise: Option<Vec<Text>>,
    /// Services that expose it and other Apps, and therefore stay open (`enforcement.shared_services`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_open: Vec<Text>,
    /// Services that were closed once and are not closed at the moment, ordered. They are closed again if they are
    /// made again, or select no Pod any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub once_closed: Vec<Text>,
    /// Why the gateway closes nothing of the App although it is blocked, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nothing_closed: Option<Text>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(n: &usize) -> bool {
    *n == 0
}

/// The wall time that leaders believe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WallClock {
    /// The time that is believed. It advances by the time that leaders measure.
    pub believed: Timestamp,
    /// A wall clock that is ahead of it. It is believed once leaders have measured a day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub doubted: Option<DoubtedClock>,
    /// The latest date of an exemption that was over.
    #[serde(rename = "latestOver", default, skip_serializing_if = "Option::is_none")]
    pub latest_over: Option<Timestamp>,
}

/// A wall clock that is ahead of the time that has been measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DoubtedClock {
    /// Its time when this was written.
    pub time: Timestamp,
    /// Its time when the doubt began.
    pub since: Timestamp,
}

/// The last notification of a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NotificationStatus {
    /// When the notification was decided: the Notification's own time.
    pub at: Timestamp,
    /// The phase that the tenant was notified of.
    pub what: NotifiedOf,
    /// When the Notification had been written to the cluster, if it has.
    #[serde(rename = "deliveredAt", default, skip_serializing_if = "Option::is_none")]
    pub delivered: Option<Timestamp>,
    /// When it had been written, by the clock that runs only while a replica leads.
    #[serde(rename = "deliveredByClock", default, skip_serializing_if = "Option::is_none")]
    pub delivered_by_clock: Option<Timestamp>,
}

/// The phase that a tenant is notified of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum NotifiedOf {
    /// The App will be blocked.
    Grace,
    /// It is blocked.
    Blocked,
    /// It is neither any more.
    Recovered,
}

impl IncidentStatus {
    /// Ends, at `at`, an incident that had ended before and whose object shows it as open, because an operator edited
    /// or restored the object. The reading of the leader clock stays, so the incident does not become the last one of
    /// its App.
    pub fn end_again(&mut self, at: Timestamp) {
        self.clock = self.clock.or(self.since);
        (self.state, self.since) = (IncidentState::Ended, Some(at));
        (self.until, self.grace_ends, self.grace, self.release_held) = (None, None, None, None);
        (self.approved, self.exempted, self.inherited, self.evidence_omitted) = (false, None, None, 0);
        // The next warning is written as a new one, even if the next grace begins at once.
        if let Some(sent) = self.told.as_mut().filter(|sent| sent.what == NotifiedOf::Grace) {
            sent.what = NotifiedOf::Recovered;
        }
        for evidence in &mut self.evidence {
            if !evidence.cleared.as_ref().is_some_and(|cleared| cleared.ended) {
                // The evidence had cleared, because the incident had ended. When it cleared is not known, and
                // `fresh_at` is the earliest moment.
                let (at, by) = (evidence.fresh_at, ClearedBy::Clock);
                evidence.cleared = Some(ClearedEvidence { at, by, ended: true });
            }
        }
        self.reason =
            Text::from("it had ended before, or is a copy; it was edited, copied, or restored from a backup");
        self.decisions.push(IncidentDecision {
            at,
            decision: DecisionKind::Closed.into(),
            actor: Actor::Policy.name(),
            reason: self.reason.clone(),
        });
        self.decided += 1;
    }
}

/// An accusation that an operator's release covers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StickyRelease {
    /// The process; any process if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<Text>,
    /// The rule; any rule if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<Text>,
    /// Until when.
    pub until: Timestamp,
    /// The earliest end, by the clock that runs only while a replica leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_by_clock: Option<Timestamp>,
    /// The operator who released the App.
    pub by: Text,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_one_app_and_one_opening_and_valid_whatever_the_app_is_called() {
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        let web = App::new("ns-a", "app", "web");
        assert_eq!(name(&web, at(1)), name(&web, at(1)));
        assert_ne!(name(&web, at(1)), name(&web, at(2)));
        assert_ne!(name(&web, at(1)), name(&App::new("ns-a", "devbox", "web"), at(1)));
        assert!(name(&web, at(1)).starts_with("ns-a-web-"));
        for odd in ["", "-", "A b", "日本", "a/../b", &"x".repeat(300)] {
            let name = name(&App::new(odd, odd, odd), at(1));
            assert!(crate::names::is_dns_label(&name) || name.len() <= 98, "{name}");
            assert!(crate::names::is_dns_subdomain(&name), "{name}");
        }
    }
}
