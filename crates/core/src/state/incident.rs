//! One App's incident, from its first accepted evidence to its clearing.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::hash::stable_hash;
use crate::ledger::Cleared;
use crate::names::{App, Text, readable};
use crate::policy::DecisionKind;

/// An incident as it is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Incident {
    /// Unique, and always the same for the same App and opening: see [`name`].
    pub name: String,
    /// What operators say of it.
    pub spec: IncidentSpec,
    /// What the aggregator says of it.
    pub status: IncidentStatus,
}

/// The name of the incident of `app` that opened at `opened`: a DNS subdomain that begins with the tenant's namespace.
pub fn name(app: &App, opened: Timestamp) -> String {
    let hash = stable_hash(&[&app.namespace, &app.kind, &app.name, &opened.as_nanosecond().to_string()]);
    // Where agents name the namespace it may be any text, like the App's name.
    format!("{}{}{hash:016x}", readable(&app.namespace), readable(&app.name))
}

/// Which App it is about, and what operators want done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IncidentSpec {
    /// The App. Never changes.
    #[schemars(extend("x-kubernetes-validations" = [{"rule": "self == oldSelf", "message": "an incident is of one App for good"}]))]
    pub app: AppRef,
    /// Approves what a brake holds, the block or the release. Taken away when it has been done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approve: Option<Approval>,
    /// Releases the App, and keeps these accusations from blocking it again. Taken away when it has been done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<Release>,
}

impl IncidentSpec {
    /// An incident of `app` of which nobody wants anything.
    pub fn of(app: &App) -> Self {
        Self { app: AppRef::from(app), approve: None, release: None }
    }
}

/// An App.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct AppRef {
    /// The tenant's namespace.
    pub namespace: Text,
    /// `app` or `devbox`.
    #[serde(rename = "type")]
    pub kind: Text,
    /// Its name.
    pub name: Text,
}

impl From<&App> for AppRef {
    fn from(app: &App) -> Self {
        Self { namespace: app.namespace.clone(), kind: app.kind.clone(), name: app.name.clone() }
    }
}

impl From<&AppRef> for App {
    fn from(app: &AppRef) -> Self {
        Self::new(app.namespace.clone(), app.kind.clone(), app.name.clone())
    }
}

/// An operator's approval.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Approval {
    /// Who approves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub by: Option<String>,
    /// Why, for the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub reason: Option<String>,
}

/// An operator's release.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Release {
    /// Who releases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub by: Option<String>,
    /// Why, for the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub reason: Option<String>,
    /// Until when these accusations do not block the App again; 30 days if nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

/// What has come of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum IncidentState {
    /// Nothing yet: not due, exempt, or released by an operator.
    #[default]
    Watched,
    /// The tenant is told, and will be blocked.
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

/// What the aggregator says of an incident. Everything that it has to know again after a restart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IncidentStatus {
    /// What has come of it.
    pub state: IncidentState,
    /// When it opened.
    pub opened: Timestamp,
    /// Since when it is in its state.
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
    /// Why, for people.
    #[serde(default)]
    pub reason: Text,
    /// The brake that holds the block. Stays until it is approved, also while the incident is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub brake: Option<HeldBy>,
    /// Since when a brake holds the release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release_held: Option<Timestamp>,
    /// An operator has approved the block.
    #[serde(default)]
    pub approved: bool,
    /// What covers it, as last logged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exempted: Option<String>,
    /// The accusations, and those that have cleared: a record that is still listed but does not change is not believed again.
    #[serde(default)]
    pub evidence: Vec<Evidence>,
    /// How many accusations there are beyond those in `evidence`.
    #[serde(default)]
    pub evidence_omitted: usize,
    /// The names of its processes, as the tenant is told.
    #[serde(default)]
    pub processes: Vec<Text>,
    /// It was blocked before anything was kept, for these Pods and processes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inherited: Option<Vec<PodProcess>>,
    /// By which rule the last accusation cleared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cleared: Option<ClearedBy>,
    /// How the App is reached, as last known.
    #[serde(default)]
    pub exposure: Exposure,
    /// What made the accused Pods, as `Kind/name`: the App is recognised by it when its Pods' labels change.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub origins: Vec<Text>,
    /// Earlier names of the App: releases, exemptions and holds by these names keep it from being blocked anew.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub formerly: Vec<AppRef>,
    /// Other Apps that are closed with it, because one of its Services exposes them too: the first ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also_closes: Vec<AppRef>,
    /// How many other Apps there are beyond those in `alsoCloses`, at least.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub also_closes_more: usize,
    /// What the tenant has been told last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub told: Option<Told>,
    /// When and on whose word the App was last to be blocked: the brakes count it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due: Option<Due>,
    /// When it was last to be released by the rules: what the brake on releases counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release_due: Option<ReleaseDue>,
    /// Accusations that an operator's release covers.
    #[serde(default)]
    pub releases: Vec<StickyRelease>,
    /// The last decisions, the latest last.
    #[serde(default)]
    pub decisions: Vec<Decision>,
    /// How many decisions there have been.
    #[serde(default)]
    pub decided: u64,
    /// Up to which of the operators' acts everything has been done: a generation of the object, or a number that grows.
    #[serde(default)]
    pub observed: i64,
    /// Which replica has written this, and in which term of its leading.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writer: Option<String>,
}

/// Which brake holds the block, and since when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HeldBy {
    /// Since when.
    pub since: Timestamp,
    /// The kind of brake.
    pub brake: BrakeKind,
    /// What the brake counts: with `Node` the node; with `Rule` the rule, empty for all keyword hits; with `NewApps`
    /// the namespace of a tenant with too many Apps, or nothing; with `SharedService` the Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<Text>,
}

/// The kinds of brakes on blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum BrakeKind {
    /// `brake.max_new_tenants`; with a namespace in `of`, `brake.max_apps_per_tenant`.
    NewApps,
    /// `brake.max_tenants_per_node` and `brake.max_apps_per_node`.
    Node,
    /// `brake.max_tenants_per_rule`.
    Rule,
    /// `enforcement.shared_services: hold`.
    SharedService,
}

/// A brake on blocks, and what it counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Scope {
    /// The kind of brake.
    pub brake: BrakeKind,
    /// The node, rule, tenant or Service, as in the status's `brake`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<Text>,
}

/// One node's word of one violation. The command line stays out: it may hold secrets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Evidence {
    /// The Pod.
    pub pod: Text,
    /// The Pod's UID. Missing where there was no cluster to ask, and in what an earlier version kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<Text>,
    /// The process.
    pub process: Text,
    /// The node whose word it is.
    pub node: Text,
    /// The regular expression that matched; empty for a keyword.
    pub regex: Text,
    /// What the agent takes the App's type for.
    #[serde(rename = "type")]
    pub kind: Text,
    /// What the agent takes the App's name for.
    pub name: Text,
    /// When it was first listed.
    pub first_seen: Timestamp,
    /// When it was last fresh, as of when this was written: at most an hour more may have passed.
    pub fresh_at: Timestamp,
    /// The agent's own time of that, as the agent wrote it.
    pub timestamp: Text,
    /// How many different times of the agent were seen.
    pub observations: u64,
    /// How often the agent scans, as far as it was learned, in seconds.
    #[serde(rename = "scanIntervalSeconds", default, skip_serializing_if = "Option::is_none")]
    pub scan_interval: Option<u64>,
    /// It has cleared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cleared: Option<ClearedEvidence>,
}

/// When and by which rule one node's evidence cleared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClearedEvidence {
    /// When.
    pub at: Timestamp,
    /// By which rule.
    pub by: ClearedBy,
    /// It is no accusation any more. If not, only the Pod is gone, and the App's block goes on.
    pub ended: bool,
}

/// By which rule evidence cleared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ClearedBy {
    /// Its node has answered for long enough without it.
    Clock,
    /// Its node has not answered for too long.
    Unreachable,
    /// Its node has answered for long, but too many answers said nothing of it: they listed another process instead, or
    /// left out records of its namespace.
    Hidden,
    /// Its Pod is gone.
    PodGone,
    /// No Pod of the App is left.
    AppGone,
}

impl From<ClearedBy> for Cleared {
    fn from(by: ClearedBy) -> Self {
        match by {
            ClearedBy::Clock => Self::ByClock,
            ClearedBy::Unreachable => Self::Unreachable,
            ClearedBy::Hidden => Self::Hidden,
            ClearedBy::PodGone | ClearedBy::AppGone => Self::PodGone,
        }
    }
}

/// A process in a Pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct PodProcess {
    /// The Pod.
    pub pod: Text,
    /// The process.
    pub process: Text,
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
    /// Those of `services` that may be reached in other ways; all of them if nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub otherwise: Option<Vec<Text>>,
    /// Services that expose it and other Apps, and therefore stay open (`enforcement.shared_services`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_open: Vec<Text>,
    /// Services that were closed once and do not expose it at the moment, ordered: if they are made again, they are
    /// closed again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub once_closed: Vec<Text>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks like this")]
fn is_zero(n: &usize) -> bool {
    *n == 0
}

/// What a tenant has been told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Told {
    /// When: the Notification's own time.
    pub at: Timestamp,
    /// What.
    pub what: Telling,
    /// When the Notification had been written, if it has.
    #[serde(rename = "deliveredAt", default, skip_serializing_if = "Option::is_none")]
    pub delivered: Option<Timestamp>,
    /// When it had been written, by the clock that runs only while a replica leads.
    #[serde(rename = "deliveredByClock", default, skip_serializing_if = "Option::is_none")]
    pub delivered_by_clock: Option<Timestamp>,
}

/// The kinds of news for a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Telling {
    /// The App will be blocked.
    Grace,
    /// It is blocked.
    Blocked,
    /// It is neither any more.
    Recovered,
}

/// When and on whose word an App was to be blocked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Due {
    /// When, by the clock that runs only while a replica leads.
    pub at: Timestamp,
    /// No brake held it.
    pub passed: bool,
    /// On whose word.
    #[serde(default)]
    pub accusers: Vec<Accuser>,
    /// The brakes that held it. With none although `passed` is false it counts for all brakes: an operator has released the
    /// App since, or an earlier version wrote this.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held: Vec<Scope>,
}

/// When an App was to be released without an operator's act.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReleaseDue {
    /// When, by the clock that runs only while a replica leads.
    pub at: Timestamp,
    /// No brake held it.
    pub passed: bool,
    /// The cluster proved that it is gone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub proven: bool,
}

/// A node and a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct Accuser {
    /// The node.
    pub node: Text,
    /// The rule's regex; empty for keyword hits.
    pub rule: Text,
}

/// An accusation that an operator's release covers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StickyRelease {
    /// The process; any, if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<Text>,
    /// The rule; any, if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<Text>,
    /// Until when.
    pub until: Timestamp,
    /// The earliest end, by the clock that runs only while a replica leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_by_clock: Option<Timestamp>,
    /// Who released.
    pub by: Text,
}

/// A kind of decision. Kinds that only another version knows are kept as they are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum LoggedKind {
    /// A kind that this version knows.
    Known(DecisionKind),
    /// A kind that only another version knows.
    Other(Text),
}

impl LoggedKind {
    /// The kind, if this version knows it.
    pub fn known(&self) -> Option<DecisionKind> {
        match self {
            Self::Known(kind) => Some(*kind),
            Self::Other(_) => None,
        }
    }

    /// The kind as a label, `snake_case`.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Known(kind) => kind.as_str(),
            Self::Other(text) => text,
        }
    }
}

impl From<DecisionKind> for LoggedKind {
    fn from(kind: DecisionKind) -> Self {
        Self::Known(kind)
    }
}

impl PartialEq<DecisionKind> for LoggedKind {
    fn eq(&self, kind: &DecisionKind) -> bool {
        self.known() == Some(*kind)
    }
}

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Decision {
    /// When.
    pub at: Timestamp,
    /// What.
    #[schemars(with = "String")]
    pub decision: LoggedKind,
    /// Who: `policy` for the rules, else the operator's name.
    pub actor: Text,
    /// Why, for people, with the evidence.
    pub reason: Text,
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
