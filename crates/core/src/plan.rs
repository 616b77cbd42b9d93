//! The plan: the desired blocks and notifications, with a reason for each.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::decision::Mode;
use crate::names::{App, Key, NodeName, Text};

/// The desired blocks and notifications. Equal plans make equal objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// In dry-run the plan only shows the decisions. Nothing may be written to the cluster.
    pub mode: Mode,
    /// The Apps to block, ordered. Unchanged ones are shared with the plan before.
    pub blocks: Vec<Arc<Block>>,
    /// The notices for tenants, ordered by App. Shared like the blocks.
    pub notices: Vec<Arc<Notice>>,
    /// The notice for administrators.
    pub summary: Summary,
}

impl Plan {
    /// The plan of a policy that has not seen anything yet.
    pub fn empty(mode: Mode, now: Timestamp) -> Self {
        Self { mode, blocks: Vec::new(), notices: Vec::new(), summary: Summary::none(now) }
    }
}

/// One App to block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Block {
    /// The App.
    pub app: App,
    /// Since when it is blocked.
    pub since: Timestamp,
    /// The accusations that still support the block. Not empty when the block is new.
    pub grounds: Box<[Accusation]>,
    /// The violations of a block that no accusation supports any more: tombstones, or inherited. Ordered.
    #[serde(skip)]
    pub left: Box<[Key]>,
    /// How it is reached.
    #[serde(flatten)]
    pub exposure: Arc<Exposure>,
    /// The reason, as a text for people, as of the decision.
    pub reason: Text,
}

impl Block {
    /// The violations that the block is for, ordered, each once.
    pub fn accused(&self) -> impl Iterator<Item = &Key> {
        let all = || self.grounds.iter().map(|accusation| &accusation.key).chain(&self.left);
        // Two nodes may report the same violation.
        let before = std::iter::once(None).chain(all().map(Some));
        all().zip(before).filter(|(key, before)| Some(*key) != *before).map(|(key, _)| key)
    }
}

/// How an App is reached through the gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Hash, JsonSchema)]
#[schemars(rename = "PlanExposure")]
pub struct Exposure {
    /// The Services that expose it: host names without the cluster's domain, `service.namespace.svc`, ordered.
    pub services: Vec<Text>,
    /// The Ingresses with a path to one of them, as `namespace/name`, ordered.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ingresses: Vec<Text>,
    /// Those of `services` that may be reached in ways which `ingresses` does not name, ordered.
    #[serde(skip)]
    pub otherwise: Vec<Text>,
    /// The other Apps that are closed with this one, because `services` expose them too. `None` if there are none.
    #[serde(flatten)]
    pub others: Option<Box<OtherApps>>,
    /// Services that expose it and other Apps and therefore stay open (`enforcement.shared_services`), ordered.
    #[serde(skip_serializing_if = "<[Text]>::is_empty")]
    pub left_open: Box<[Text]>,
    /// Why the gateway closes nothing of the App, if so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nothing_closed: Option<Text>,
}

/// The handling of a Service that exposes other Apps as well as the one to be blocked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SharedServices {
    /// The Service is closed, because otherwise a tenant could prevent a block by a Service that selects many Apps. The
    /// block names the other Apps.
    #[default]
    Block,
    /// The App is held until an operator approves the block. A Service that becomes shared after the block stays closed
    /// if it was ever closed; otherwise it stays open until an operator approves.
    Hold,
    /// The Service stays open.
    Skip,
}

/// Some Apps of one namespace. Bounded, because a tenant can make any number.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Hash, JsonSchema)]
pub struct OtherApps {
    /// The first `OtherApps::MAX_NAMED` by name, ordered.
    #[serde(rename = "also_closes", skip_serializing_if = "Vec::is_empty")]
    pub named: Vec<App>,
    /// How many more there are at least.
    #[serde(rename = "also_closes_more", skip_serializing_if = "is_zero")]
    pub more: usize,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(n: &usize) -> bool {
    *n == 0
}

/// A Service that exposes other Apps as well as a given one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedService {
    /// The Service, as `service.namespace.svc`.
    pub service: Text,
    /// The other Apps.
    pub others: OtherApps,
}

impl OtherApps {
    /// How many Apps are named at most.
    pub(crate) const MAX_NAMED: usize = 20;

    /// From a set of Apps.
    pub fn of(apps: BTreeSet<&App>) -> Self {
        let more = apps.len().saturating_sub(Self::MAX_NAMED);
        Self { named: apps.into_iter().take(Self::MAX_NAMED).cloned().collect(), more }
    }

    /// `None` if there are no other Apps. Boxed, because few Apps share a Service and the others should take no
    /// memory for this.
    pub fn non_empty(self) -> Option<Box<Self>> {
        (!self.named.is_empty()).then(|| Box::new(self))
    }

    /// The union. Apps that are only counted may be the same in several sets, so the largest count is taken and not
    /// the sum.
    fn union<'a>(all: impl Iterator<Item = &'a Self> + Clone) -> Self {
        let together = Self::of(all.clone().flat_map(|others| &others.named).collect());
        let known = together.named.len() + together.more;
        let most = all.map(|others| others.named.len() + others.more).max().unwrap_or(0);
        Self { more: together.more + most.saturating_sub(known), ..together }
    }
}

/// `app/web, devbox/dev and 3 more`, with unprintable characters escaped, because tenants choose the names.
impl fmt::Display for OtherApps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, app) in self.named.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{}/{}", app.kind.escape_debug(), app.name.escape_debug())?;
        }
        if self.more > 0 { write!(f, " and {} more", self.more) } else { Ok(()) }
    }
}

impl Exposure {
    /// The Services and Ingresses that are closed when the App is blocked: all but the Services in `shared` for which
    /// `stays_open` returns true.
    pub(crate) fn apart_from(&self, shared: &[SharedService], stays_open: impl Fn(&Text) -> bool) -> Self {
        let (open, closed): (Vec<_>, Vec<_>) = shared.iter().partition(|shared| stays_open(&shared.service));
        let is_closed = |service: &&Text| !open.iter().any(|open| open.service == **service);
        let services: Vec<Text> = self.services.iter().filter(is_closed).cloned().collect();
        Self {
            otherwise: self.otherwise.iter().filter(is_closed).cloned().collect(),
            // The gateway closes an Ingress only for the Services that are named with it, so an additional Ingress
            // does no harm.
            ingresses: if services.is_empty() { Vec::new() } else { self.ingresses.clone() },
            services,
            others: OtherApps::union(closed.iter().map(|shared| &shared.others)).non_empty(),
            left_open: open.iter().map(|open| open.service.clone()).collect(),
            nothing_closed: None,
        }
    }

    /// Adds a Service whose routes are not known. It is no longer left open.
    pub(crate) fn add_unseen(&mut self, service: &Text) {
        if self.left_open.contains(service) {
            self.left_open = self.left_open.iter().filter(|open| *open != service).cloned().collect();
        }
        if let Err(place) = self.services.binary_search(service) {
            self.services.insert(place, service.clone());
            let place = self.otherwise.partition_point(|known| known < service);
            self.otherwise.insert(place, service.clone());
        }
    }

    /// Why the gateway closes nothing of the App; `None` if it closes something. `has_plain_list` is whether the
    /// gateway also closes Services to which no Ingress leads.
    pub(crate) fn closes_nothing(&self, has_plain_list: bool) -> Option<&'static str> {
        if self.services.is_empty() {
            // The remarks name the Services that stay open because they are shared.
            return self.left_open.is_empty().then_some("no Service of its namespace exposes it");
        }
        let is_out_of_reach = !has_plain_list && self.ingresses.is_empty();
        is_out_of_reach
            .then_some("no Ingress is known to lead to its Services, and gateway.max_service_entries is 0")
    }

    /// The remarks to append to a reason: other Apps that are closed, and Services that stay open. Empty if there are
    /// none.
    pub(crate) fn remarks(&self) -> String {
        let mut remarks = String::new();
        if let Some(others) = &self.others {
            remarks = format!("; its Services expose other Apps too, which are closed with it: {others}");
        }
        if let Some(first) = self.left_open.first() {
            let more = match self.left_open.len() {
                1 => String::new(),
                n => format!(" and {} more", n - 1),
            };
            remarks = format!(
                "{remarks}; left open, because other Apps are exposed by it too (enforcement.shared_services): \
                 Service {first}{more}"
            );
        }
        remarks
    }

    /// The text to append to the reason of a block if nothing is closed; empty if something is closed.
    fn nothing_remark(&self) -> String {
        let of = |why: &Text| format!("; nothing is closed at the gateway: {why}");
        self.nothing_closed.as_ref().map(of).unwrap_or_default()
    }

    /// The reason of a block, with the remark that nothing is closed at present, if so.
    pub(crate) fn complete(&self, reason: &Text) -> Text {
        if self.nothing_closed.is_none() {
            return reason.clone();
        }
        format!("{reason}{}", self.nothing_remark()).into()
    }

    /// The inverse of [`Exposure::complete`]: the reason without that remark.
    pub(crate) fn incomplete(&self, reason: &Text) -> Text {
        let remark = self.nothing_remark();
        let bare = reason.strip_suffix(&*remark).filter(|_| !remark.is_empty());
        bare.map_or_else(|| reason.clone(), Text::from)
    }

    /// The union of both: everything is closed that either of them closes. The remarks are those of `now`.
    pub(crate) fn and(&self, now: &Self) -> Self {
        let either = |all: fn(&Self) -> &Vec<Text>| -> Vec<Text> {
            let all: BTreeSet<&Text> = all(self).iter().chain(all(now)).collect();
            all.into_iter().cloned().collect()
        };
        let services = either(|exposure| &exposure.services);
        let is_open = |service: &&Text| services.binary_search(service).is_err();
        Self {
            ingresses: either(|exposure| &exposure.ingresses),
            otherwise: either(|exposure| &exposure.otherwise),
            others: now.others.clone(),
            left_open: now.left_open.iter().filter(is_open).cloned().collect(),
            nothing_closed: now.nothing_closed.clone().filter(|_| self.services.is_empty()),
            services,
        }
    }

    /// Services whose routes are not known.
    pub fn plain(services: impl IntoIterator<Item = Text>) -> Self {
        let services: BTreeSet<Text> = services.into_iter().collect();
        let services: Vec<Text> = services.into_iter().collect();
        Self { otherwise: services.clone(), services, ..Self::default() }
    }
}

/// One accusation of a block: a violation on one node.
///
/// Nothing in it changes from scan to scan, so that plans are equal while nothing happens. It has no command line,
/// because a command line may hold secrets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Accusation {
    /// The violation.
    #[serde(flatten)]
    pub key: Key,
    /// The rule that accuses: the regex, or the process name where a keyword matched.
    pub rule: Text,
    /// The agent names no rule: a keyword matched.
    #[serde(skip)]
    pub by_keyword: bool,
    /// The accusing node.
    pub node: NodeName,
}

/// A notice to one tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Hash, JsonSchema)]
pub struct Notice {
    /// The App that it is about.
    pub app: App,
    /// When the tenant was first notified of this phase. It is the notification's own time, so that the notification
    /// does not change from round to round.
    pub sent_at: Timestamp,
    /// The notice was written before the start, so it may not be sent again.
    pub inherited: bool,
    /// The phase of the App.
    pub phase: NoticePhase,
    /// The offending processes' names, ordered, each once.
    pub processes: Box<[Text]>,
    /// The other Apps that are closed with it. `None` if there are none.
    #[serde(flatten)]
    pub others: Option<Box<OtherApps>>,
}

/// The phase of an App in a notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Hash, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NoticePhase {
    /// The App will be blocked at that time unless the offence ends.
    Grace {
        /// When.
        until: Timestamp,
    },
    /// The App is blocked.
    Blocked,
    /// The App is neither warned nor blocked any more.
    Recovered,
}

/// The notice for administrators: how many Apps are affected, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Hash, JsonSchema)]
pub struct Summary {
    /// Blocked now.
    pub blocked: usize,
    /// Warned, and not blocked yet.
    pub in_grace: usize,
    /// Held by a brake. Only an approval blocks them.
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

/// An App that a brake holds. Not a part of the plan, because nothing may be written for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct HeldApp {
    /// The App.
    pub app: App,
    /// Since when it is held.
    pub since: Timestamp,
    /// Which brake, for people.
    pub reason: String,
    /// Whether the brake holds its release rather than its block.
    pub release: bool,
}

/// One node's accusation that is not believed. Not a part of the plan, because nothing may be written for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Dispute {
    /// The violation that the node reports.
    #[serde(flatten)]
    pub key: Key,
    /// The accusing node.
    pub node: NodeName,
    /// The reason why it is not believed, as a text for people.
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
    fn durations_are_written_in_days_hours_minutes_and_seconds() {
        let shown = |seconds| human(Duration::from_secs(seconds));
        assert_eq!((shown(90), shown(1800), shown(86_400)), ("1m 30s".into(), "30m".into(), "1d".into()));
        assert_eq!(human(Duration::from_millis(250)), "250ms");
    }

    fn others(names: &[&str], more: usize) -> OtherApps {
        OtherApps { named: names.iter().map(|name| App::new("ns-a", "app", *name)).collect(), more }
    }

    fn shared(service: &str, names: &[&str], more: usize) -> SharedService {
        SharedService { service: service.into(), others: others(names, more) }
    }

    #[test]
    fn other_apps_are_named_up_to_a_bound_and_then_counted() {
        let apps: Vec<App> = (0..23).map(|n| App::new("ns-a", "app", format!("web-{n:02}"))).collect();
        let of = |n: usize| OtherApps::of(apps.iter().take(n).collect());
        assert_eq!(
            (of(0), of(0).non_empty(), of(1).non_empty().is_some()),
            (OtherApps::default(), None, true)
        );
        assert_eq!((of(20).named.len(), of(20).more, of(23).named.len(), of(23).more), (20, 0, 20, 3));
        assert!(of(23).to_string().starts_with("app/web-00, app/web-01, "));
        assert!(
            of(23).to_string().ends_with("app/web-19 and 3 more")
                && of(20).to_string().ends_with("app/web-19")
        );
        let odd = OtherApps::of([&App::new("ns-a", "devbox", "x\u{1b}")].into());
        assert_eq!(odd.to_string(), "devbox/x\\u{1b}");
    }

    #[test]
    fn apps_of_several_services_are_counted_once() {
        let union = |all: &[OtherApps]| OtherApps::union(all.iter());
        assert_eq!(union(&[]), OtherApps::default());
        assert_eq!(union(&[others(&["a", "c"], 0), others(&["a", "b"], 0)]), others(&["a", "b", "c"], 0));
        // Twelve and three; the three that are named may be among the ten that are only counted.
        assert_eq!(
            union(&[others(&["a", "b"], 10), others(&["c", "d", "e"], 0)]),
            others(&["a", "b", "c", "d", "e"], 7)
        );
        let many = |from: usize| OtherApps {
            named: (from..from + 20).map(|n| App::new("ns-a", "app", format!("{n:03}"))).collect(),
            more: 5,
        };
        let both = union(&[many(0), many(100)]);
        assert_eq!((both.named, both.more), (many(0).named, 20));
    }

    #[test]
    fn a_service_that_stays_open_is_not_closed_and_its_other_apps_are_not_named() {
        let texts = |names: &[&str]| names.iter().map(|name| Text::from(*name)).collect::<Vec<_>>();
        let all = Exposure {
            services: texts(&["all", "both", "own"]),
            ingresses: texts(&["ns-a/in"]),
            otherwise: texts(&["both", "own"]),
            ..Exposure::default()
        };
        let shared = [shared("all", &["b", "c"], 0), shared("both", &["b"], 0)];
        let closed = all.apart_from(&shared, |_| false);
        assert_eq!(closed, Exposure { others: others(&["b", "c"], 0).non_empty(), ..all.clone() });
        assert_eq!(
            closed.remarks(),
            "; its Services expose other Apps too, which are closed with it: app/b, app/c"
        );
        let some = all.apart_from(&shared, |service| **service == *"all");
        assert_eq!(
            some,
            Exposure {
                services: texts(&["both", "own"]),
                others: others(&["b"], 0).non_empty(),
                left_open: texts(&["all"]).into(),
                ..all.clone()
            }
        );
        let skipped = all.apart_from(&shared, |_| true);
        assert_eq!(
            skipped,
            Exposure {
                services: texts(&["own"]),
                ingresses: all.ingresses.clone(),
                otherwise: texts(&["own"]),
                others: None,
                left_open: texts(&["all", "both"]).into(),
                nothing_closed: None,
            }
        );
        assert_eq!(
            skipped.remarks(),
            "; left open, because other Apps are exposed by it too (enforcement.shared_services): Service all and 1 more"
        );
        assert!(some.remarks().ends_with("app/b; left open, because other Apps are exposed by it too (enforcement.shared_services): Service all"));
        assert_eq!(all.remarks(), "");
        let only = Exposure { services: texts(&["all"]), ..all.clone() }.apart_from(&shared[..1], |_| true);
        assert!(only.services.is_empty() && only.ingresses.is_empty(), "an Ingress alone closes nothing");
        let json = serde_json::to_value(&some).unwrap();
        assert_eq!(
            json["also_closes"],
            serde_json::json!([{"namespace": "ns-a", "type": "app", "name": "b"}])
        );
        assert_eq!((&json["left_open"], json.get("also_closes_more")), (&serde_json::json!(["all"]), None));
        let json = serde_json::to_value(&all).unwrap();
        assert_eq!((json.get("also_closes"), json.get("left_open")), (None, None));
        let more = Exposure { others: others(&["b"], 2).non_empty(), ..all };
        assert_eq!(serde_json::to_value(more).unwrap()["also_closes_more"], 2);
    }
}
