//! Decides whether many namespaces are looked up together, and which. Pure: `sweep` does it.
//!
//! A sweep lists the whole cluster, so its requests are the pages of the cluster's objects, however many namespaces it
//! is for. It is made if single look-ups would take more. A namespace that one sweep can't see is not left to the next
//! one: see `missed` and `passed`.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use procscan_core::Moment;
use procscan_core::names::Text;

use super::budget::Budget;
use super::sweep::{Ended, Plan, Stop};

/// From this many namespaces on a sweep is considered: fewer are looked up one by one within some seconds.
const MIN_SWEEP_NAMESPACES: usize = 40;
/// How many requests a look-up takes at least: the namespace, its Pods, its Services.
const PER_LOOK: usize = 3;
/// How many namespaces the first sweep is for at most; see [`Sweeps::fits`].
const MAX_SWEEP_OBJECTS: usize = 2500;
/// The least time between two sweeps.
const PAUSE: Duration = Duration::from_secs(2);
/// The same after one that failed.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(30);
/// For how long the cost of a sweep and the heavy namespaces are remembered, because the cluster changes.
const SWEEP_SIZE_VALID_FOR: Duration = Duration::from_mins(10);
/// How many heavy namespaces, those with the most bytes, are left out of the lists: their names are part of each
/// request.
const MAX_LEFT_OUT: usize = 50;
/// How many heavy namespaces are remembered.
const MAX_HEAVY: usize = 10_000;

/// The sweeps.
#[derive(Debug, Default)]
pub(super) struct Sweeps {
    /// The namespaces of the running sweep.
    running: BTreeSet<Text>,
    /// When the next one may begin.
    pub(super) not_before: Option<Moment>,
    /// How many requests a sweep takes, and when that was found.
    cost: Option<(usize, Moment)>,
    /// How many namespaces fit into one sweep, if that is known: their contents are in memory together.
    fits: Option<usize>,
    /// Namespaces that are too large for a sweep, since when that is known, and how many bytes were read of their large
    /// objects.
    heavy: BTreeMap<Text, (Moment, usize)>,
    /// Whether it is logged that more namespaces are heavy than can be left out.
    is_crowded: bool,
    /// How many bytes sweeps may read.
    pub(super) budget: Budget,
    /// Namespaces in which a sweep could not see everything: they get a look-up of their own first.
    missed: BTreeSet<Text>,
    /// When the last sweep over a namespace began.
    passed: BTreeMap<Text, Moment>,
    has_failed: bool,
}

impl Sweeps {
    /// A sweep over the namespaces that wait longest, if it costs less than single look-ups. Each of `waiting` is: whether
    /// it was looked up before, since when it waits, and its name.
    pub(super) fn plan(
        &mut self,
        mut waiting: Vec<(bool, Moment, &Text)>,
        with_routes: bool,
        now: Moment,
    ) -> Option<Plan> {
        if !self.running.is_empty() || self.not_before.is_some_and(|at| now.uptime() < at.uptime()) {
            return None;
        }
        self.heavy.retain(|_, (since, _)| now.since(*since) < SWEEP_SIZE_VALID_FOR);
        waiting.retain(|(.., namespace)| !self.heavy.contains_key(*namespace));
        let most = waiting.len() * PER_LOOK;
        let is_too_much =
            self.cost.is_some_and(|(cost, at)| cost > most && now.since(at) < SWEEP_SIZE_VALID_FOR);
        if waiting.len() < MIN_SWEEP_NAMESPACES || is_too_much {
            return None;
        }
        waiting.sort_unstable();
        let fitting = waiting.into_iter().take(self.fits.unwrap_or(MAX_SWEEP_OBJECTS));
        Some(Plan {
            namespaces: fitting.map(|(.., namespace)| namespace.clone()).collect(),
            without: self.heaviest(),
            with_routes,
            most,
            budget: self.budget.clone(),
        })
    }

    /// The heavy namespaces with the most bytes. The lists contain the others, whose objects are dropped.
    fn heaviest(&self) -> BTreeSet<Text> {
        let mut heavy: Vec<(Reverse<usize>, &Text)> =
            self.heavy.iter().map(|(namespace, (_, read))| (Reverse(*read), namespace)).collect();
        heavy.sort_unstable();
        heavy.into_iter().take(MAX_LEFT_OUT).map(|(_, namespace)| namespace.clone()).collect()
    }

    /// How many namespaces are looked up one by one, in turn, because they are too large for a sweep.
    pub(super) fn heavy(&self) -> usize {
        self.heavy.len()
    }

    /// The sweep begins.
    pub(super) fn begin(&mut self, plan: &Plan) {
        self.running.clone_from(&plan.namespaces);
    }

    /// Discards the running sweep's results.
    pub(super) fn cancel(&mut self) {
        *self = Self {
            cost: self.cost,
            fits: self.fits,
            heavy: std::mem::take(&mut self.heavy),
            is_crowded: self.is_crowded,
            budget: self.budget.clone(),
            ..Self::default()
        };
    }

    /// The sweep that began at `asked` ended at `now`. Returns its namespaces.
    pub(super) fn end(&mut self, ended: Ended, asked: Moment, now: Moment) -> BTreeSet<Text> {
        let all = std::mem::take(&mut self.running);
        let fits = self.fits.unwrap_or(MAX_SWEEP_OBJECTS);
        let pause = if matches!(ended.result, Err(Stop::Refused(_))) { PAUSE_AFTER_FAILURE } else { PAUSE };
        self.not_before = Some(Moment::new(now.uptime().saturating_add(pause), now.wall()));
        let has_new_heavy = ended.heavy.keys().any(|namespace| !self.heavy.contains_key(namespace));
        for (namespace, read) in ended.heavy {
            if self.heavy.len() < MAX_HEAVY {
                self.heavy.insert(namespace, (now, read));
            }
        }
        let is_crowded = self.heavy.len() > MAX_LEFT_OUT;
        if is_crowded && !self.is_crowded {
            tracing::warn!(
                namespaces = self.heavy.len(),
                "many namespaces hold too much to be looked up together with others; each is looked up on its own, in turn"
            );
        }
        self.is_crowded = is_crowded;
        match &ended.result {
            Ok(()) => {
                self.cost = Some((ended.requests, now));
                self.fits = Some((fits * 2).min(4 * MAX_SWEEP_OBJECTS));
                self.passed.extend(all.iter().map(|namespace| (namespace.clone(), asked)));
            }
            // Without the heavy namespaces the next one may cost less.
            Err(Stop::Costly) if has_new_heavy => {}
            Err(Stop::Costly) => self.cost = Some((ended.requests, now)),
            Err(Stop::Full) => self.fits = Some((all.len().min(fits) / 2).max(MIN_SWEEP_NAMESPACES)),
            Err(Stop::Refused(refusal)) if !self.has_failed => tracing::warn!(
                error = refusal.text,
                "accused namespaces can't be looked up together; meanwhile each is looked up on its own"
            ),
            Err(Stop::Refused(_)) => {}
        }
        self.has_failed = matches!(ended.result, Err(Stop::Refused(_)));
        all
    }

    /// A sweep did not see this namespace, or not all of it.
    pub(super) fn miss(&mut self, namespace: Text) {
        self.missed.insert(namespace);
    }

    /// The namespace had a look-up of its own.
    pub(super) fn was_looked_up(&mut self, namespace: &Text) {
        self.missed.remove(namespace);
    }

    /// Keeps the namespaces for which `is_asked` returns true, and forgets all others.
    pub(super) fn retain(&mut self, is_asked: impl Fn(&Text) -> bool) {
        self.missed.retain(|namespace| is_asked(namespace));
        self.passed.retain(|namespace, _| is_asked(namespace));
    }

    pub(super) fn is_running(&self) -> bool {
        !self.running.is_empty()
    }

    /// Whether the one that is running is for that namespace.
    pub(super) fn is_at(&self, namespace: &Text) -> bool {
        self.running.contains(namespace)
    }

    /// Whether the namespace needs a look-up of its own first.
    pub(super) fn has_missed(&self, namespace: &Text) -> bool {
        self.missed.contains(namespace)
    }

    /// When the last sweep over the namespace began.
    pub(super) fn passed(&self, namespace: &Text) -> Option<Moment> {
        self.passed.get(namespace).copied()
    }
}
