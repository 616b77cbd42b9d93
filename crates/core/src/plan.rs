//! What the policy wants to be true outside: who is blocked, who is told, with a reason for each.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use crate::names::{App, Key, NodeName, Text};
use crate::policy::Mode;

/// The desired blocks and notifications. Equal plans make equal objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// In dry-run nothing outside may be touched: the plan says what would be.
    pub mode: Mode,
    /// The Apps to block, ordered. Shared with the plan before where they are the same.
    pub blocks: Vec<Arc<Block>>,
    /// The tenants to tell, ordered by App. Shared like the blocks.
    pub notices: Vec<Arc<Notice>>,
    /// What the administrators are told.
    pub summary: Summary,
}

impl Plan {
    /// The plan of a policy that has not seen anything yet.
    pub fn empty(mode: Mode, now: Timestamp) -> Self {
        Self { mode, blocks: Vec::new(), notices: Vec::new(), summary: Summary::none(now) }
    }
}

/// One App to block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Block {
    /// The App.
    pub app: App,
    /// Since when.
    pub since: Timestamp,
    /// The accusations that the block still rests on; never empty when it is new.
    pub grounds: Vec<Accusation>,
    /// The violations that it is for where it rests on none any more: what has cleared, or what is known from before the start.
    /// Ordered.
    #[serde(skip)]
    pub left: Vec<Key>,
    /// How it is reached.
    #[serde(flatten)]
    pub exposure: Arc<Exposure>,
    /// Why, for people, as of when it was decided.
    pub reason: Text,
}

impl Block {
    /// The violations that it is for, ordered, each once.
    pub fn accused(&self) -> impl Iterator<Item = &Key> {
        let all = || self.grounds.iter().map(|ground| &ground.key).chain(&self.left);
        // Two nodes may accuse of the same.
        let before = std::iter::once(None).chain(all().map(Some));
        all().zip(before).filter(|(key, before)| Some(*key) != *before).map(|(key, _)| key)
    }
}

/// How an App is reached through the gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Hash)]
pub struct Exposure {
    /// The Services that expose it: host names without the cluster's domain, `service.namespace.svc`, ordered.
    pub services: Vec<Text>,
    /// The Ingresses with a path to one of them, as `namespace/name`, ordered.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ingresses: Vec<Text>,
    /// Those of `services` that may be reached in ways which `ingresses` does not name, ordered.
    #[serde(skip)]
    pub otherwise: Vec<Text>,
}

impl Exposure {
    /// Services of which nothing more is known.
    pub fn plain(services: impl IntoIterator<Item = Text>) -> Self {
        let services: BTreeSet<Text> = services.into_iter().collect();
        let services: Vec<Text> = services.into_iter().collect();
        Self { otherwise: services.clone(), services, ingresses: Vec::new() }
    }
}

/// One violation on one node, as it counted.
///
/// Nothing in it changes from scan to scan, so that plans are equal while nothing happens; and the command line stays out,
/// because it may hold secrets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Accusation {
    /// The violation.
    #[serde(flatten)]
    pub key: Key,
    /// The rule that accuses: the regex, or the process name where a keyword matched.
    pub rule: Text,
    /// The accusing node.
    pub node: NodeName,
}

/// One tenant to tell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Hash)]
pub struct Notice {
    /// The App that it is about.
    pub app: App,
    /// When this phase was first told: the notification's own time, so that it does not change from round to round.
    pub told: Timestamp,
    /// It was told before the start, so it may not be told again.
    pub inherited: bool,
    /// What is happening to the App.
    pub phase: NoticePhase,
    /// The offending processes' names, ordered, each once.
    pub processes: Vec<Text>,
}

/// What is happening to an App whose tenant is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Hash)]
#[serde(rename_all = "snake_case")]
pub enum NoticePhase {
    /// It will be blocked at that time unless the offence ends.
    Grace {
        /// When.
        until: Timestamp,
    },
    /// It is blocked.
    Blocked,
    /// It is neither any more: there is nothing left to read.
    Recovered,
}

/// What the administrators are told: how many Apps, and since when it has been so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Hash)]
pub struct Summary {
    /// Blocked now.
    pub blocked: usize,
    /// Told, and not blocked yet.
    pub in_grace: usize,
    /// Held back by a brake: only an approval blocks them.
    pub held: usize,
    /// When one of the numbers, or the set of Apps behind them, last changed.
    pub changed: Timestamp,
}

impl Summary {
    fn none(changed: Timestamp) -> Self {
        Self { blocked: 0, in_grace: 0, held: 0, changed }
    }

    /// All Apps that offend.
    pub fn apps(&self) -> usize {
        self.blocked + self.in_grace + self.held
    }
}

/// An App that a brake holds back. Not a part of the plan: nothing outside may follow from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HeldApp {
    /// The App.
    pub app: App,
    /// Since when.
    pub since: Timestamp,
    /// Which brake, for people.
    pub reason: String,
    /// Whether the brake holds its release rather than its block.
    pub release: bool,
}

/// One node's word that is not believed. Not a part of the plan: nothing outside may follow from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Dispute {
    /// What it says.
    #[serde(flatten)]
    pub key: Key,
    /// Who says it.
    pub node: NodeName,
    /// Why it is not believed, for people.
    pub reason: String,
}

/// A duration for people: `30m`, `1h 5m`, `2d`, `90s` as `1m 30s`.
pub(crate) fn human(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds == 0 {
        return format!("{}ms", duration.as_millis());
    }
    let parts =
        [(seconds / 86_400, "d"), (seconds / 3600 % 24, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")];
    let shown: Vec<String> =
        parts.iter().filter(|(n, _)| *n > 0).map(|(n, unit)| format!("{n}{unit}")).collect();
    shown.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_people_write_them() {
        let shown = |seconds| human(Duration::from_secs(seconds));
        assert_eq!((shown(90), shown(1800), shown(86_400)), ("1m 30s".into(), "30m".into(), "1d".into()));
        assert_eq!(human(Duration::from_millis(250)), "250ms");
    }
}
