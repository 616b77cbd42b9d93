//! Who leads, by which clock, and what can be kept.

use std::collections::{BTreeMap, BTreeSet};

use jiff::SignedDuration;
use procscan_core::Moment;
use procscan_core::clearing::Presence;
use procscan_core::decision::Decision;
use procscan_core::names::{App, Text};
use procscan_core::plan::Plan;
use procscan_core::policy::{ClusterFacts, InheritedBlock};
use procscan_core::resources::{Existing, render, wasm_plugin};
use procscan_core::state::{Incident, IncidentState};

use super::nodes::{LEADER, OTHER};
use super::operators::RELEASE;
use super::random::Random;
use super::tenants::{namespace, tenant_in};
use super::{DAY, MINUTE, MOST_BACK, Soak, TENANTS, apps};
use crate::common::settings;

pub(super) struct Leaders {
    /// A leader restarts, or another goes on, once in so many minutes.
    every: usize,
    /// When the leader began.
    pub(super) since: u64,
    pub(super) mute_until: u64,
    unwritable_until: u64,
    late_until: u64,
    /// What is kept, as it was at a time, and what the gateway closed then.
    backup: Option<(BTreeMap<String, Incident>, Option<Plan>)>,
    /// What the gateway closes.
    plan: Option<Plan>,
    /// The Apps of which it is not certain what is kept: what was decided of them has been written, and the answer said otherwise.
    pub(super) uncertain: BTreeSet<App>,
    /// The Apps that a restored backup says are blocked, and that are not: nothing can be written of them, so the next leader takes them
    /// for blocked. Until then.
    pub(super) reopened: BTreeSet<App>,
}

impl Leaders {
    pub(super) fn new(random: &mut Random) -> Self {
        Self {
            every: [30, 90, 90, 2000][random.below(4)],
            since: 0,
            mute_until: 0,
            unwritable_until: 0,
            late_until: 0,
            backup: None,
            plan: None,
            uncertain: BTreeSet::new(),
            reopened: BTreeSet::new(),
        }
    }

    /// By how many seconds another leader's wall clock is ahead.
    pub(super) fn difference(random: &mut Random) -> i64 {
        let minutes =
            i64::try_from(random.seconds(0, 22 * MINUTE)).unwrap() - i64::try_from(11 * MINUTE).unwrap();
        let days = i64::try_from(31 * DAY).unwrap();
        [0, minutes, minutes, days, -days][random.below(5)]
    }
}

impl Soak {
    /// What goes wrong with clocks, and with what is kept and told.
    pub(super) fn trouble_of_leaders(&mut self) {
        let now = self.now();
        if self.random.once_in(300) {
            // The leader's jumps; no agent's does, nor does another replica's.
            let by = i64::try_from(self.random.seconds(0, 2 * MOST_BACK)).unwrap()
                - i64::try_from(MOST_BACK).unwrap();
            let now = self.world.now;
            self.world.now = Moment::new(now.uptime(), now.wall() + SignedDuration::from_secs(by));
            self.world.follower_ahead -= by;
            self.told.jumps += 1;
        }
        if self.random.once_in(400) {
            self.leaders.mute_until = now + self.random.seconds(MINUTE, 30 * MINUTE);
        }
        if self.random.once_in(400) {
            self.world.unwritable = self.some_namespaces();
            self.leaders.unwritable_until = now + self.random.seconds(MINUTE, 30 * MINUTE);
        }
        if self.random.once_in(400) {
            self.world.late = self.some_namespaces();
            self.leaders.late_until = now + self.random.seconds(MINUTE, 10 * MINUTE);
        }
        if self.random.once_in(700) {
            self.leaders.backup = Some((self.world.kept.clone(), self.leaders.plan.clone()));
        }
        if self.random.once_in(150)
            && let Some((_, hears)) = &mut self.world.follower
        {
            *hears = !*hears;
        }
        self.world.is_mute = now < self.leaders.mute_until;
        if now >= self.leaders.unwritable_until {
            self.world.unwritable.clear();
        }
        if now >= self.leaders.late_until {
            self.world.late.clear();
        }
    }

    pub(super) fn calm_leaders(&mut self) {
        let it = &mut self.leaders;
        (it.mute_until, it.unwritable_until, it.late_until) = (0, 0, 0);
        self.world.is_mute = false;
        self.world.unwritable.clear();
        self.world.late.clear();
    }

    fn some_namespaces(&mut self) -> BTreeSet<String> {
        let some = (0..TENANTS).filter(|tenant| (tenant + self.random.below(2)).is_multiple_of(3));
        some.map(namespace).collect()
    }

    /// Whether something that is decided of that tenant may have no effect, or none that is known.
    pub(super) fn is_hindered(&self, tenant: usize) -> bool {
        let now = self.now();
        let namespace = namespace(tenant);
        now < self.leaders.mute_until.max(self.cluster.deaf_until)
            || self.world.unwritable.contains(&namespace)
            || self.world.late.contains(&namespace)
    }

    /// What was decided and written though the answer said otherwise.
    pub(super) fn note_late(&mut self) -> Vec<Decision> {
        let late = std::mem::take(&mut self.world.decided_late);
        self.told.late_answers += u64::try_from(late.len()).unwrap();
        let (is_late, is_unwritable) = (&self.world.late, &self.world.unwritable);
        let is_in =
            |namespaces: &BTreeSet<String>, app: &App| namespaces.contains(&app.namespace.to_string());
        self.leaders.uncertain.retain(|app| is_in(is_late, app) || is_in(is_unwritable, app));
        self.leaders.uncertain.extend(late.iter().map(|decision| decision.app.clone()));
        late
    }

    /// What the gateway closes from now on.
    pub(super) fn note_plan(&mut self, plan: Plan) {
        self.leaders.plan = Some(plan);
    }

    fn closed(&self) -> Vec<InheritedBlock> {
        let Some(plan) = &self.leaders.plan else { return Vec::new() };
        let settings = settings();
        let objects = render(plan, &settings, Existing::default()).into_iter();
        let plugins = objects.filter(|object| object.kind == "WasmPlugin");
        let plugins: Vec<_> = plugins.map(|object| serde_json::to_value(object).unwrap()).collect();
        wasm_plugin::blocked(&plugins, &settings.gateway)
    }

    /// Perhaps another one leads now, or knows no more than what is kept.
    pub(super) fn lead(&mut self) {
        self.end_history();
        if self.random.once_in(2000) && self.leaders.backup.is_some() {
            self.restore_backup();
        } else if !self.leaders.uncertain.is_empty() && self.random.once_in(3) {
            // The leader has lost its certainty of what is kept.
            self.world.closed = self.closed();
            self.world.read_again();
            self.begin(false, true);
        } else if self.random.once_in(self.leaders.every) {
            self.another_leader(false);
        }
    }

    /// Everything is forgotten but what is kept, or another replica goes on.
    fn another_leader(&mut self, is_restored: bool) {
        self.world.closed = self.closed();
        if is_restored {
            self.forget_closed();
            for pod in self.tenants.iter_mut().flat_map(|tenant| &mut tenant.pods) {
                pod.kept = None;
            }
        }
        let is_restart = self.random.once_in(2);
        if is_restart {
            self.world.restart();
            for pod in self.tenants.iter_mut().flat_map(|tenant| &mut tenant.pods) {
                pod.heard[LEADER] = pod.kept;
            }
        } else {
            self.told.other_clocks += u64::from(self.world.follower_ahead != 0);
            self.world.fail_over();
            if self.random.once_in(4) {
                // A new one takes the place of the one that has gone.
                self.world.follower_ahead = Leaders::difference(&mut self.random);
            }
            // What it has not heard itself is no evidence to it, but for what is kept.
            for pod in self.tenants.iter_mut().flat_map(|tenant| &mut tenant.pods) {
                pod.heard = [pod.heard[OTHER], None];
            }
            self.told.failovers += 1;
        }
        self.told.restarts += 1;
        self.begin(is_restored, !is_restart);
    }

    /// A leader's first evaluation, before it knows anything of the cluster. `has_heard` is whether it has collected the
    /// nodes' answers before.
    fn begin(&mut self, is_restored: bool, has_heard: bool) {
        self.cluster.forget();
        self.forget_uncertain();
        self.leaders.since = self.now();
        self.world.facts = ClusterFacts::default();
        // Everything that is persisted of these has cleared. They wait for nodes' answers because not all of it could be
        // persisted, or because the leader before has begun since and has not heard their nodes for the clearing time.
        // This one may have, and then it releases them at once; `judge` compares that with what has run where. Not while
        // it knows any accusation in the namespace that has not cleared, fresh or old: it has looked up no Pod yet. What
        // never was fresh is no accusation.
        let snapshot = self.world.snapshot();
        // Nor is one that counts against another App as it is persisted.
        let mut persisted: BTreeMap<(&Text, &Text, &Text, &Text), BTreeSet<App>> = BTreeMap::new();
        for it in self.world.kept.values() {
            for of in it.status.evidence.iter().filter(|of| of.cleared.is_none()) {
                let id = (&it.spec.app.namespace, &of.pod, &of.process, &of.node);
                persisted.entry(id).or_default().insert(App::from(&it.spec.app));
            }
        }
        let is_accused = |app: &App| {
            let of_tenant = snapshot.violations.iter().filter(|it| it.key.namespace == app.namespace);
            let mut uncleared = of_tenant.flat_map(|it| {
                let evidence =
                    it.evidence().filter(|of| of.fresh_at.is_some() && of.presence != Presence::Cleared);
                evidence.map(|of| (&it.key.namespace, &it.key.pod, &it.key.process, &of.node.0))
            });
            uncleared.any(|id| persisted.get(&id).is_none_or(|apps| apps.contains(app)))
        };
        let has_cleared = |it: &&Incident| {
            has_heard
                && !is_accused(&App::from(&it.spec.app))
                && it.status.evidence.iter().all(|of| of.cleared.as_ref().is_some_and(|it| it.ended))
        };
        let cleared: BTreeSet<App> =
            self.world.kept.values().filter(has_cleared).map(|it| App::from(&it.spec.app)).collect();
        let kept_before = self.world.kept.clone();
        let evaluation = self.world.evaluate();
        if is_restored {
            // What has been decided since is not known any more.
            self.blocked = apps(&evaluation);
        }
        let now = apps(&evaluation);
        // An operator has released these, and the time that the operator said is not over. By its wall clock the leader
        // before doubted that, so it opened nothing.
        let started = self.now();
        let is_released =
            |app: &App| self.operators.released_at.get(app).is_some_and(|at| started < at + RELEASE);
        let is_known =
            |app: &&App| self.leaders.uncertain.contains(*app) || cleared.contains(*app) || is_released(app);
        let lost: Vec<&App> = self.blocked.difference(&now).filter(|app| !is_known(app)).collect();
        if !lost.is_empty() {
            let lost: BTreeSet<App> = lost.into_iter().cloned().collect();
            let why: Vec<&Decision> =
                evaluation.decisions.iter().filter(|it| lost.contains(&it.app)).collect();
            let known: String = lost.iter().map(|app| self.known_of(tenant_in(&app.namespace))).collect();
            let kept = kept_before.values().filter(|it| lost.contains(&App::from(&it.spec.app)));
            let kept: Vec<_> = kept.map(|it| &it.status).collect();
            self.fail(&format!("released by a restart: {lost:?}: {why:?}\n{kept:?}\n{known}"));
        }
        self.judge(&evaluation);
        self.leaders.reopened.clear();
    }

    /// What has ended and says otherwise is written as ended, where it can be written.
    fn end_history(&mut self) {
        let (world, leaders) = (&mut self.world, &mut self.leaders);
        leaders.reopened.clear();
        for incident in world.kept.values_mut().filter(|it| it.status.state != IncidentState::Ended) {
            let app = App::from(&incident.spec.app);
            if world.incidents.name_of(&app).as_ref() == Some(&incident.name) {
                continue;
            }
            if world.unwritable.contains(&*app.namespace) {
                leaders.reopened.insert(app);
            } else {
                incident.status.end_again(world.now.wall());
                self.told.reopened += 1;
            }
        }
    }

    /// What is kept goes back to what it was: its leader sees it and writes it anew, or another one begins before it has.
    fn restore_backup(&mut self) {
        let Some((kept, plan)) = self.leaders.backup.clone() else { return };
        self.told.backups += 1;
        self.operators.released.clear();
        let before = std::mem::replace(&mut self.world.kept, kept);
        if self.random.once_in(2) {
            let kept = &self.world.kept;
            let is_other =
                |name: &str| kept.get(name).map(|it| &it.status) != before.get(name).map(|it| &it.status);
            self.world.incidents.mark_deleted(is_other);
            // Until it is written anew, where that can't be done now.
            let others = before.values().filter(|incident| is_other(&incident.name));
            self.leaders.uncertain.extend(others.map(|incident| App::from(&incident.spec.app)));
            self.end_history();
            return;
        }
        // Perhaps with everything else in the cluster's store.
        if self.random.once_in(2) {
            self.leaders.plan = plan;
        }
        let now = self.now();
        for tenant in &mut self.tenants {
            tenant.disturbed = now;
        }
        self.another_leader(true);
    }
}
