//! The blocks and releases that passed the brakes within their window, and those that the brakes held.
//!
//! Each scope (all tenants, one tenant, one node, one rule) has a number of places. A block that passed takes a
//! place, and so does a held one. So the brake stays on while a storm goes on. After the storm, later accusations are
//! judged on their own. A held App stays held (see [`super::Incidents`]), and takes no second place however often it
//! is accused.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::Arc;

use super::brake::{Brake, BrakeRules};
use super::leader_clock::age;
use crate::names::{App, NodeName, Text};
use crate::sorted_vec::SortedVecSet;
use crate::time::CompactTimestamp;

/// The entries within the window. They are persisted with the incidents. Times are readings of the leader clock.
#[derive(Clone, Debug, Default)]
pub(super) struct Window {
    due: BTreeMap<App, Arc<Due>>,
    releases: BTreeMap<App, ReleaseDue>,
    /// When brakes last held a block and a release. An alert is raised once per storm, not once per App.
    held_block: Option<CompactTimestamp>,
    held_release: Option<CompactTimestamp>,
    held_gone: Option<CompactTimestamp>,
}

/// The nodes and rules that accuse an App. An empty rule stands for all keyword hits.
pub(super) type Accusers = SortedVecSet<(NodeName, Text)>;

/// How many accusers of one App are counted, because a node can make up any number of rules. An accuser that is not
/// counted does not let the App pass.
pub(super) const MAX_ACCUSERS: usize = 16;

/// An App was to be blocked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Due {
    /// When the App last passed; if it never did, since when it counts as held.
    pub(super) at: CompactTimestamp,
    /// No brake held it. It is false with an empty `held` if the App passed and an operator has released it since, or
    /// if an earlier version wrote this. Such an entry keeps its places, but the App does not pass by them.
    pub(super) passed: bool,
    /// The accusers that let it through, or, if none did, all of them.
    pub(super) accusers: Accusers,
    /// The brakes that held it.
    pub(super) held: Box<[Brake]>,
}

/// An App was to be released without an operator's command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReleaseDue {
    pub(super) at: CompactTimestamp,
    pub(super) passed: bool,
    /// The cluster proved that the App is gone. Such releases are counted separately from those by the rules.
    pub(super) proven: bool,
}

/// The counts within the window. An evaluation adds to them.
pub(super) struct Tally<'a> {
    window: &'a mut Window,
    rules: &'a BrakeRules,
    now: CompactTimestamp,
    counts: Counts,
}

/// The places of one scope, and the tenants or Apps that take them.
#[derive(Debug)]
struct Places<K> {
    /// Those that passed, and whether they may pass again by their place. After an operator's release they may not.
    passed: HashMap<K, bool>,
    /// Those that were held, and since when each counts.
    held: HashMap<K, CompactTimestamp>,
    /// How many are in `passed`, `held` or both.
    taken: usize,
}

impl<K> Default for Places<K> {
    fn default() -> Self {
        Self { passed: HashMap::new(), held: HashMap::new(), taken: 0 }
    }
}

impl<K: Eq + Hash + Clone> Places<K> {
    /// Whether `one` may pass by the place that it has.
    fn has_passed(&self, one: &K) -> bool {
        self.passed.get(one).copied().unwrap_or(false)
    }

    /// Whether `one` may pass if there are `max` places: it has passed already, or one is free.
    fn admits(&self, one: &K, max: usize) -> bool {
        self.has_passed(one) || self.taken < max
    }

    fn is_known(&self, one: &K) -> bool {
        self.passed.contains_key(one) || self.held.contains_key(one)
    }

    fn pass(&mut self, one: &K, again: bool) {
        self.taken += usize::from(!self.is_known(one));
        *self.passed.entry(one.clone()).or_default() |= again;
    }

    fn hold(&mut self, one: &K, at: CompactTimestamp) {
        self.taken += usize::from(!self.is_known(one));
        let first = self.held.entry(one.clone()).or_insert(at);
        *first = (*first).min(at);
    }
}

/// The tenants and Apps that passed or were held on the reports of one node.
#[derive(Debug, Default)]
struct NodePlaces {
    tenants: Places<Text>,
    apps: Places<App>,
}

impl NodePlaces {
    fn admits(&self, app: &App, rules: &BrakeRules) -> bool {
        let max = rules.max_apps_per_node;
        if !self.tenants.has_passed(&app.namespace) {
            return self.tenants.taken < rules.max_tenants_per_node && self.apps.passed.len() < max;
        }
        // Reserves a place for each tenant that may still come, so that one tenant's Apps do not hold another
        // tenant's.
        let reserved = rules.reserved_per_node(self.tenants.taken);
        self.apps.has_passed(app) || self.apps.taken.saturating_add(reserved) < max
    }
}

/// The places of all scopes.
#[derive(Debug, Default)]
struct Counts {
    tenants: Places<Text>,
    per_tenant: HashMap<Text, Places<App>>,
    per_node: HashMap<NodeName, NodePlaces>,
    per_rule: HashMap<Text, Places<Text>>,
    releases: Places<Text>,
    gone: Places<Text>,
}

impl Counts {
    /// Counts the entry of `app`.
    fn add(&mut self, app: &App, due: &Due) {
        let tenant = &app.namespace;
        for brake in &due.held {
            match brake {
                Brake::NewTenants => self.tenants.hold(tenant, due.at),
                Brake::Tenant(_) => self.per_tenant.entry(tenant.clone()).or_default().hold(app, due.at),
                Brake::Node(node) => {
                    let of_node = self.per_node.entry(node.clone()).or_default();
                    of_node.tenants.hold(tenant, due.at);
                    of_node.apps.hold(app, due.at);
                }
                Brake::Rule(rule) => self.per_rule.entry(rule.clone()).or_default().hold(tenant, due.at),
                // None of them counts blocks.
                Brake::Releases | Brake::Gone | Brake::SharedService(_) => {}
            }
        }
        if !due.held.is_empty() {
            return;
        }
        self.tenants.pass(tenant, due.passed);
        self.per_tenant.entry(tenant.clone()).or_default().pass(app, due.passed);
        for (node, rule) in due.accusers.iter() {
            let of_node = self.per_node.entry(node.clone()).or_default();
            of_node.tenants.pass(tenant, due.passed);
            of_node.apps.pass(app, due.passed);
            self.per_rule.entry(rule.clone()).or_default().pass(tenant, due.passed);
        }
    }

    fn add_release(&mut self, app: &App, release: ReleaseDue) {
        let places = if release.proven { &mut self.gone } else { &mut self.releases };
        if release.passed {
            places.pass(&app.namespace, true);
        } else {
            places.hold(&app.namespace, release.at);
        }
    }

    /// The accusers that may let `app` through, or the brakes that hold it.
    ///
    /// One accuser within the limits is enough. Otherwise an App could escape an honest node's accusation because a
    /// lying node or a bad rule accuses it too.
    fn judge(
        &self,
        app: &App,
        accusers: &Accusers,
        rules: &BrakeRules,
    ) -> Result<Vec<(NodeName, Text)>, BTreeSet<Brake>> {
        let tenant = &app.namespace;
        if !self.tenants.admits(tenant, rules.max_new_tenants) {
            return Err([Brake::NewTenants].into());
        }
        let of_tenant = self.per_tenant.get(tenant);
        let max = rules.max_apps_per_tenant;
        if !of_tenant.map_or(max > 0, |of_tenant| of_tenant.admits(app, max)) {
            return Err([Brake::Tenant(tenant.clone())].into());
        }
        let (mut through, mut held) = (Vec::new(), BTreeSet::new());
        let unknown = NodePlaces::default();
        for accuser in accusers.iter() {
            let (node, rule) = accuser;
            let by_node = self.per_node.get(node).unwrap_or(&unknown).admits(app, rules);
            let max = rules.max_tenants_per_rule;
            let by_rule = self.per_rule.get(rule).map_or(max > 0, |hit| hit.admits(tenant, max));
            if by_node && by_rule {
                through.push(accuser.clone());
            }
            held.extend((!by_node).then(|| Brake::Node(node.clone())));
            held.extend((!by_rule).then(|| Brake::Rule(rule.clone())));
        }
        if through.is_empty() { Err(held) } else { Ok(through) }
    }

    /// Since when the tenant of `app` (for [`Brake::Tenant`], the App) has counted as held by `brake`, if it does.
    fn held_since(&self, app: &App, brake: &Brake) -> Option<CompactTimestamp> {
        let tenant = &app.namespace;
        match brake {
            Brake::NewTenants => self.tenants.held.get(tenant).copied(),
            Brake::Tenant(_) => self.per_tenant.get(tenant)?.held.get(app).copied(),
            Brake::Node(node) => self.per_node.get(node)?.tenants.held.get(tenant).copied(),
            Brake::Rule(rule) => self.per_rule.get(rule)?.held.get(tenant).copied(),
            Brake::Releases => self.releases.held.get(tenant).copied(),
            Brake::Gone => self.gone.held.get(tenant).copied(),
            Brake::SharedService(_) => None,
        }
    }
}

impl Window {
    /// Forgets entries older than the window.
    pub(super) fn forget(&mut self, rules: &BrakeRules, now: CompactTimestamp) {
        self.due.retain(|_, due| age(now, due.at) < rules.window);
        self.releases.retain(|_, due| age(now, due.at) < rules.window);
    }

    /// Counts the entries within the window.
    pub(super) fn tally<'a>(&'a mut self, rules: &'a BrakeRules, now: CompactTimestamp) -> Tally<'a> {
        self.forget(rules, now);
        let mut counts = Counts::default();
        self.due.iter().for_each(|(app, due)| counts.add(app, due));
        self.releases.iter().for_each(|(app, release)| counts.add_release(app, *release));
        Tally { window: self, rules, now, counts }
    }

    /// Restores the entry of an App after a start. If there are two, the later one counts.
    pub(super) fn restore(&mut self, app: &App, due: Option<&Arc<Due>>, release: Option<ReleaseDue>) {
        if let Some(due) = due {
            let is_newer = |known: &Arc<Due>| known.at < due.at;
            if self.due.get(app).is_none_or(is_newer) {
                self.due.insert(app.clone(), due.clone());
            }
            // The alert about it has been raised already.
            let held = (!due.held.is_empty()).then_some(due.at);
            self.held_block = self.held_block.max(held);
        }
        if let Some(due) = release {
            if self.releases.get(app).is_none_or(|known| known.at < due.at) {
                self.releases.insert(app.clone(), due);
            }
            let last = if due.proven { &mut self.held_gone } else { &mut self.held_release };
            *last = (*last).max((!due.passed).then_some(due.at));
        }
    }

    /// Makes the next block of `app` pass the brakes again, because an operator has released it. Its places stay
    /// taken.
    pub(super) fn revoke_pass(&mut self, app: &App) {
        if let Some(due) = self.due.get_mut(app) {
            Arc::make_mut(due).passed = false;
        }
    }
}

impl Tally<'_> {
    /// Enters that `app` is to be blocked on the reports of `accusers`. Returns the brake that holds it, if any.
    pub(super) fn due(&mut self, app: &App, accusers: &Accusers) -> Option<Brake> {
        let brakes = match self.counts.judge(app, accusers, self.rules) {
            Ok(through) => {
                if self.pass(app, through) {
                    return None;
                }
                BTreeSet::new()
            }
            Err(brakes) => brakes,
        };
        Some(self.hold(app, accusers, brakes))
    }

    /// Enters that the accusers `through` let `app` pass. False if none of them could be counted.
    fn pass(&mut self, app: &App, through: Vec<(NodeName, Text)>) -> bool {
        // Accusers that let it through before keep their places.
        let before = self.window.due.get(app).filter(|due| due.held.is_empty());
        let mut counted = before.map(|due| due.accusers.clone()).unwrap_or_default();
        let mut is_counted = false;
        for accuser in through {
            if counted.contains(&accuser) || counted.len() < MAX_ACCUSERS {
                counted.insert(accuser);
                is_counted = true;
            }
        }
        if is_counted {
            let due = Due { at: self.now, passed: true, accusers: counted, held: Box::default() };
            self.enter(app, due);
        }
        is_counted
    }

    /// Enters that `brakes` hold `app`. Returns the first of them.
    fn hold(&mut self, app: &App, accusers: &Accusers, brakes: BTreeSet<Brake>) -> Brake {
        let first = brakes.first().cloned().unwrap_or(Brake::NewTenants);
        let brakes = if brakes.is_empty() { [first.clone()].into() } else { brakes };
        // An App that passed within the window keeps its places.
        if self.window.due.get(app).is_some_and(|due| due.held.is_empty()) {
            return first;
        }
        // A tenant counts since it was first held, so Apps that it starts later take no further place.
        let since = |brake: &Brake| self.counts.held_since(app, brake).unwrap_or(self.now);
        let at = brakes.iter().map(since).max().unwrap_or(self.now);
        let accusers = accusers.iter().take(MAX_ACCUSERS).cloned().collect();
        let held = brakes.into_iter().take(MAX_ACCUSERS).collect();
        self.enter(app, Due { at, passed: false, accusers, held });
        first
    }

    fn enter(&mut self, app: &App, due: Due) {
        self.counts.add(app, &due);
        self.window.due.insert(app.clone(), Arc::new(due));
    }

    /// The entries of `app`.
    pub(super) fn of(&self, app: &App) -> (Option<Arc<Due>>, Option<ReleaseDue>) {
        (self.window.due.get(app).cloned(), self.window.releases.get(app).copied())
    }

    /// Enters that `app` is to be released: by the rules, or because it is `proven` to be gone. Returns the brake that
    /// holds the release, if any.
    pub(super) fn release(&mut self, app: &App, proven: bool) -> Option<Brake> {
        let (brake, places, max) = if proven {
            (Brake::Gone, &self.counts.gone, self.rules.max_gone_tenants)
        } else {
            (Brake::Releases, &self.counts.releases, self.rules.max_releases)
        };
        let passed = places.admits(&app.namespace, max);
        let since = self.counts.held_since(app, &brake).filter(|_| !passed);
        let due = ReleaseDue { at: since.unwrap_or(self.now), passed, proven };
        self.counts.add_release(app, due);
        self.window.releases.insert(app.clone(), due);
        (!passed).then_some(brake)
    }

    /// Notes that `brake` holds something. Returns whether this begins a storm.
    pub(super) fn begins_storm(&mut self, brake: &Brake) -> bool {
        let last = match brake {
            Brake::Releases => &mut self.window.held_release,
            Brake::Gone => &mut self.window.held_gone,
            Brake::NewTenants
            | Brake::Tenant(_)
            | Brake::Node(_)
            | Brake::Rule(_)
            | Brake::SharedService(_) => &mut self.window.held_block,
        };
        last.replace(self.now).is_none_or(|last| age(self.now, last) >= self.rules.window)
    }
}
