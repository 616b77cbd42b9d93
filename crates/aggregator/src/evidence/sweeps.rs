//! Whether many namespaces are looked at together, and which. Pure: `sweep` does it.
//!
//! A sweep lists the whole cluster, so it takes as many requests as the cluster has pages of objects, however many namespaces it is for.
//! It is made where looks one by one would take more. What a sweep can't see is not asked of the next one: `missed`, `passed`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use procscan_core::Moment;
use procscan_core::names::Text;

use super::sweep::{Ended, Plan, Stop};

/// From so many namespaces on a sweep is thought of: fewer are looked at one by one within some seconds.
const MANY: usize = 40;
/// How many requests a look takes at least: the namespace, its Pods, its Services.
const PER_LOOK: usize = 3;
/// How many namespaces a sweep is for at most, at first; see [`Sweeps::fits`].
const FITS: usize = 2500;
/// The least time between two sweeps.
const PAUSE: Duration = Duration::from_secs(2);
/// The same after one that has failed.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(30);
/// For how long it is known what a sweep costs, and which namespaces are heavy: the cluster changes.
const KNOWN: Duration = Duration::from_mins(10);
/// How many heavy namespaces are known. Their names are part of each request of a sweep.
pub(super) const MAX_HEAVY: usize = 50;

/// The sweeps.
#[derive(Debug, Default)]
pub(super) struct Sweeps {
    /// The namespaces of the one that is running.
    running: BTreeSet<Text>,
    /// When the next one may begin.
    pub(super) not_before: Option<Moment>,
    /// How many requests one takes, and when that was found out.
    cost: Option<(usize, Moment)>,
    /// How many namespaces fit into one, if that is known: what they hold is in memory together.
    fits: Option<usize>,
    /// Namespaces that hold so much that they are left out, and since when.
    heavy: BTreeMap<Text, Moment>,
    /// Namespaces in which a sweep has not seen all that matters: they are looked at by themselves first.
    missed: BTreeSet<Text>,
    /// When the last sweep over a namespace began.
    passed: BTreeMap<Text, Moment>,
    has_failed: bool,
}

impl Sweeps {
    /// A sweep for those of the namespaces that wait longest, if that costs less than to look at each. `waiting`: whether it has been
    /// looked at before, since when it waits, and its name.
    pub(super) fn plan(
        &mut self,
        mut waiting: Vec<(bool, Moment, &Text)>,
        with_routes: bool,
        now: Moment,
    ) -> Option<Plan> {
        if !self.running.is_empty() || self.not_before.is_some_and(|at| now.uptime() < at.uptime()) {
            return None;
        }
        self.heavy.retain(|_, since| now.since(*since) < KNOWN);
        waiting.retain(|(.., namespace)| !self.heavy.contains_key(*namespace));
        let most = waiting.len() * PER_LOOK;
        let is_too_much = self.cost.is_some_and(|(cost, at)| cost > most && now.since(at) < KNOWN);
        if waiting.len() < MANY || is_too_much {
            return None;
        }
        waiting.sort_unstable();
        let fitting = waiting.into_iter().take(self.fits.unwrap_or(FITS));
        Some(Plan {
            namespaces: fitting.map(|(.., namespace)| namespace.clone()).collect(),
            without: self.heavy.keys().cloned().collect(),
            with_routes,
            most,
        })
    }

    /// It begins.
    pub(super) fn begin(&mut self, plan: &Plan) {
        self.running.clone_from(&plan.namespaces);
    }

    /// What has been read so far does not count.
    pub(super) fn cancel(&mut self) {
        *self = Self {
            cost: self.cost,
            fits: self.fits,
            heavy: std::mem::take(&mut self.heavy),
            ..Self::default()
        };
    }

    /// The one that began at `asked` has ended at `now`. Returns the namespaces that it was for.
    pub(super) fn end(&mut self, ended: Ended, asked: Moment, now: Moment) -> BTreeSet<Text> {
        let all = std::mem::take(&mut self.running);
        let fits = self.fits.unwrap_or(FITS);
        let pause = if matches!(ended.result, Err(Stop::Refused(_))) { PAUSE_AFTER_FAILURE } else { PAUSE };
        self.not_before = Some(Moment::new(now.uptime().saturating_add(pause), now.wall()));
        let has_new_heavy = ended.heavy.iter().any(|namespace| !self.heavy.contains_key(namespace));
        for namespace in ended.heavy {
            if self.heavy.len() < MAX_HEAVY {
                self.heavy.insert(namespace, now);
            }
        }
        match &ended.result {
            Ok(()) => {
                self.cost = Some((ended.requests, now));
                self.fits = Some((fits * 2).min(4 * FITS));
                self.passed.extend(all.iter().map(|namespace| (namespace.clone(), asked)));
            }
            // Without the heavy ones the next one may cost less.
            Err(Stop::Costly) if has_new_heavy => {}
            Err(Stop::Costly) => self.cost = Some((ended.requests, now)),
            Err(Stop::Full) => self.fits = Some((all.len().min(fits) / 2).max(MANY)),
            Err(Stop::Refused(refusal)) if !self.has_failed => tracing::warn!(
                error = refusal.text,
                "accused namespaces can't be looked at together; meanwhile each is looked at by itself"
            ),
            Err(Stop::Refused(_)) => {}
        }
        self.has_failed = matches!(ended.result, Err(Stop::Refused(_)));
        all
    }

    /// A sweep has not seen this namespace, or not all that matters in it.
    pub(super) fn miss(&mut self, namespace: Text) {
        self.missed.insert(namespace);
    }

    /// A namespace has been looked at by itself.
    pub(super) fn has_been_looked_at(&mut self, namespace: &Text) {
        self.missed.remove(namespace);
    }

    /// These are asked about; all others are forgotten.
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

    /// Whether it has to be looked at by itself first.
    pub(super) fn has_missed(&self, namespace: &Text) -> bool {
        self.missed.contains(namespace)
    }

    /// When the last one over it began.
    pub(super) fn passed(&self, namespace: &Text) -> Option<Moment> {
        self.passed.get(namespace).copied()
    }
}
