//! Brakes: how much may happen at once before a person has to look.
//!
//! A bad rule or a lying node accuses many Apps in a short time. The window counts every App that *became due*, whether it
//! was blocked or held: as long as the storm goes on the brake stays on, and when it has passed, later accusations are
//! judged by themselves. What was held meanwhile stays held (see [`super::Book`]).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::Moment;
use crate::few::FewSet;
use crate::names::{App, NodeName, Text};
use crate::plan::human;

/// How much may happen within [`BrakeRules::window`].
#[derive(Clone, Debug)]
pub struct BrakeRules {
    /// New blocks.
    pub max_new_apps: usize,
    /// The window.
    pub window: Duration,
    /// New blocks that rest on one node's word.
    pub max_apps_per_node: usize,
    /// Tenants that one rule may hit.
    pub max_namespaces_per_rule: usize,
    /// Releases without an operator's act.
    pub max_releases: usize,
}

impl Default for BrakeRules {
    fn default() -> Self {
        Self {
            max_new_apps: 20,
            window: Duration::from_mins(10),
            max_apps_per_node: 5,
            max_namespaces_per_rule: 10,
            max_releases: 20,
        }
    }
}

/// Which brake holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Brake {
    /// Too many new blocks.
    NewApps,
    /// Too many from one node.
    Node(NodeName),
    /// One rule hits too many tenants.
    Rule(Text),
    /// Too many releases.
    Releases,
}

impl Brake {
    /// Why it holds, for people.
    pub(super) fn reason(&self, rules: &BrakeRules) -> String {
        let window = human(rules.window);
        match self {
            Self::NewApps => {
                format!(
                    "more than {} Apps were to be blocked within {window} (brake.max_new_apps)",
                    rules.max_new_apps
                )
            }
            Self::Node(node) => format!(
                "more than {} Apps were to be blocked within {window} on the word of node {node} (brake.max_apps_per_node)",
                rules.max_apps_per_node
            ),
            Self::Rule(rule) => format!(
                "the rule `{}` hits more than {} namespaces within {window} (brake.max_namespaces_per_rule)",
                rule.escape_debug(),
                rules.max_namespaces_per_rule
            ),
            Self::Releases => {
                format!("more than {} releases within {window} (brake.max_releases)", rules.max_releases)
            }
        }
    }
}

/// What happened within the window. A part of the book: it survives what the book survives.
#[derive(Clone, Debug, Default)]
pub(super) struct Window {
    due: BTreeMap<App, Arc<Due>>,
    releases: BTreeMap<App, ReleaseDue>,
    /// When a brake last held a block, and a release: an alert is raised once per storm, not once per App.
    held_block: Option<Moment>,
    held_release: Option<Moment>,
}

/// On whose word, and by which rules, an App becomes due.
pub(super) type Accusers = FewSet<(NodeName, Text)>;

/// How many accusers of one App are counted: nodes make up their rules as they like.
const MAX_ACCUSERS: usize = 64;

/// That an App became due, and on whose word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) at: Moment,
    pub(super) passed: bool,
    pub(super) accusers: Accusers,
}

/// That an App was to be released by the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReleaseDue {
    pub(super) at: Moment,
    pub(super) passed: bool,
}

/// The window in numbers, kept up to date while one evaluation adds to it.
pub(super) struct Tally<'a> {
    window: &'a mut Window,
    rules: &'a BrakeRules,
    now: Moment,
    counts: Counts,
}

/// How many Apps became due on the word of each node, and the namespaces that each rule hits.
#[derive(Default)]
struct Counts {
    per_node: HashMap<NodeName, usize>,
    per_rule: HashMap<Text, BTreeSet<Text>>,
}

impl Window {
    /// Forgets what no longer counts.
    pub(super) fn forget(&mut self, rules: &BrakeRules, now: Moment) {
        self.due.retain(|_, due| now.since(due.at) < rules.window);
        self.releases.retain(|_, due| now.since(due.at) < rules.window);
    }

    /// Counts what is left.
    pub(super) fn tally<'a>(&'a mut self, rules: &'a BrakeRules, now: Moment) -> Tally<'a> {
        self.forget(rules, now);
        let mut counts = Counts::default();
        for (app, due) in &self.due {
            counts.add(app, &due.accusers, &Accusers::default());
        }
        Tally { window: self, rules, now, counts }
    }
}

impl Window {
    /// Counts again what had been counted before the start.
    pub(super) fn restore(&mut self, app: &App, due: Option<&Arc<Due>>, release: Option<ReleaseDue>) {
        self.due.extend(due.map(|due| (app.clone(), due.clone())));
        self.releases.extend(release.map(|due| (app.clone(), due)));
    }

    /// What has passed the brakes of `app` passes them no more. It counts all the same.
    pub(super) fn ask_again(&mut self, app: &App) {
        if let Some(due) = self.due.get_mut(app) {
            Arc::make_mut(due).passed = false;
        }
    }

    /// An alert had been raised before the start.
    pub(super) fn restore_alerts(&mut self, held_block: Option<Moment>, held_release: Option<Moment>) {
        self.held_block = self.held_block.max(held_block);
        self.held_release = self.held_release.max(held_release);
    }
}

impl Counts {
    /// Counts `accusers` of `app`, apart from those that are `counted`.
    fn add(&mut self, app: &App, accusers: &Accusers, counted: &Accusers) {
        let nodes = |accusers: &Accusers| -> BTreeSet<NodeName> {
            accusers.iter().map(|(node, _)| node.clone()).collect()
        };
        for node in nodes(accusers).difference(&nodes(counted)) {
            *self.per_node.entry(node.clone()).or_default() += 1;
        }
        for (_, rule) in accusers.iter() {
            self.per_rule.entry(rule.clone()).or_default().insert(app.namespace.clone());
        }
    }
}

impl Tally<'_> {
    /// `app` has become due on the word of `accusers` (node and rule). The brake that holds it, if any.
    ///
    /// One accuser within the limits is enough: a lying node or a bad rule does not protect from an honest one.
    pub(super) fn due(&mut self, app: &App, accusers: &Accusers) -> Option<Brake> {
        let before = self.window.due.get(app);
        let has_passed = before.is_some_and(|due| due.passed);
        let counted = before.map(|due| due.accusers.clone()).unwrap_or_default();
        let brake = if has_passed { None } else { self.brake_for(app, accusers) };
        self.counts.add(app, accusers, &counted);
        // Whoever accused it before goes on counting: its place is not free for the next accusation.
        let more = MAX_ACCUSERS.saturating_sub(counted.len());
        let is_new = |accuser: &&(NodeName, Text)| !counted.contains(accuser);
        let new: Vec<_> = accusers.iter().filter(is_new).take(more).cloned().collect();
        let accusers = counted.into_iter().chain(new).collect();
        let due = Due { at: self.now, passed: brake.is_none(), accusers };
        self.window.due.insert(app.clone(), Arc::new(due));
        brake
    }

    /// What is counted of `app`.
    pub(super) fn of(&self, app: &App) -> (Option<Arc<Due>>, Option<ReleaseDue>) {
        (self.window.due.get(app).cloned(), self.window.releases.get(app).copied())
    }

    fn brake_for(&self, app: &App, accusers: &Accusers) -> Option<Brake> {
        if self.window.due.len() >= self.rules.max_new_apps {
            return Some(Brake::NewApps);
        }
        let mut first = None;
        for (node, rule) in accusers.iter() {
            let hit = self.counts.per_rule.get(rule);
            let brake =
                if self.counts.per_node.get(node).copied().unwrap_or(0) >= self.rules.max_apps_per_node {
                    Brake::Node(node.clone())
                } else if hit.is_some_and(|hit| {
                    !hit.contains(&app.namespace) && hit.len() >= self.rules.max_namespaces_per_rule
                }) {
                    Brake::Rule(rule.clone())
                } else {
                    return None;
                };
            first.get_or_insert(brake);
        }
        first
    }

    /// `app` is to be released by the rules. The brake that holds it, if any.
    pub(super) fn release(&mut self, app: &App) -> Option<Brake> {
        let has_passed = self.window.releases.get(app).is_some_and(|due| due.passed);
        let passed = has_passed || self.window.releases.len() < self.rules.max_releases;
        self.window.releases.insert(app.clone(), ReleaseDue { at: self.now, passed });
        (!passed).then_some(Brake::Releases)
    }

    /// Notes that `brake` holds something; whether that is news.
    pub(super) fn is_news(&mut self, brake: &Brake) -> bool {
        let last = match brake {
            Brake::Releases => &mut self.window.held_release,
            Brake::NewApps | Brake::Node(_) | Brake::Rule(_) => &mut self.window.held_block,
        };
        last.replace(self.now).is_none_or(|last| self.now.since(last) >= self.rules.window)
    }
}
