//! The leaders: restarts, their clocks, and which writes fail.

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
    /// A leader restarts, or another one begins, once in so many minutes.
    every: usize,
    /// When the leader began.
    pub(super) since: u64,
    pub(super) mute_until: u64,
    unwritable_until: u64,
    late_until: u64,
    /// A backup of the persisted incidents, and of the gateway's blocks at that time.
    backup: Option<(BTreeMap<String, Incident>, Option<Plan>)>,
    /// The blocks of the gateway.
    plan: Option<Plan>,
    /// The Apps whose persisted state is not certain: their decisions have been written, but the answer was an error.
    pub(super) uncertain: BTreeSet<App>,
    /// The Apps that are blocked in a restored backup, but not in fact. Their incidents can't be written, so the next
    /// leader takes them for blocked. They are in this set until then.
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
    /// Makes clocks jump, and writes of state and notifications fail.
    pub(super) fn trouble_of_leaders(&mut self) {
        let now = self.now();
        if self.random.once_in(300) {
            // The leader's clock jumps, but no agent's and no other replica's.
            let by = i64::try_from(self.random.seconds(0, 2 * MOST_BACK)).unwrap()
                - i64::try_from(MOST_BACK).unwrap();
            let now = self.world.now;
            self.world.now = Moment::new(now.uptime(), now.wall() + SignedDuration::from_secs(by));
            self.world.follower_ahead -= by;
            self.counts.jumps += 1;
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
            self.leaders.backup = Some((self.world.persisted.clone(), self.leaders.plan.clone()));
        }
        if self.random.once_in(150)
            && let Some((_, receives)) = &mut self.world.follower
        {
            *receives = !*receives;
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

    /// Whether a decision about that tenant may have no effect, or no known one.
    pub(super) fn is_hindered(&self, tenant: usize) -> bool {
        let now = self.now();
        let namespace = namespace(tenant);
        now < self.leaders.mute_until.max(self.cluster.deaf_until)
            || self.world.unwritable.contains(&namespace)
            || self.world.late.contains(&namespace)
    }

    /// The decisions that were written although the answer was an error.
    pub(super) fn note_late(&mut self) -> Vec<Decision> {
        let late = std::mem::take(&mut self.world.decided_late);
        self.counts.late_answers += u64::try_from(late.len()).unwrap();
        let (is_late, is_unwritable) = (&self.world.late, &self.world.unwritable);
        let is_in =
            |namespaces: &BTreeSet<String>, app: &App| namespaces.contains(&app.namespace.to_string());
        self.leaders.uncertain.retain(|app| is_in(is_late, app) || is_in(is_unwritable, app));
        self.leaders.uncertain.extend(late.iter().map(|decision| decision.app.clone()));
        late
    }

    /// Notes which Apps the gateway closes from now on.
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

    /// Perhaps lets another replica lead, or makes the leader read the persisted state again.
    pub(super) fn lead(&mut self) {
        self.end_history();
        if self.random.once_in(2000) && self.leaders.backup.is_some() {
            self.restore_backup();
        } else if !self.leaders.uncertain.is_empty() && self.random.once_in(3) {
            // The leader is not certain of the persisted state any more.
            self.world.closed = self.closed();
            self.world.read_again();
            self.begin(false, true);
        } else if self.random.once_in(self.leaders.every) {
            self.another_leader(false);
        }
    }

    /// Only the persisted state is left, or another replica leads.
    fn another_leader(&mut self, is_restored: bool) {
        self.world.closed = self.closed();
        if is_restored {
            self.forget_closed();
            for pod in self.tenants.iter_mut().flat_map(|tenant| &mut tenant.pods) {
                pod.persisted = None;
            }
        }
        let is_restart = self.random.once_in(2);
        if is_restart {
            self.world.restart();
            for pod in self.tenants.iter_mut().flat_map(|tenant| &mut tenant.pods) {
                pod.reported[LEADER] = pod.persisted;
            }
        } else {
            self.counts.other_clocks += u64::from(self.world.follower_ahead != 0);
            self.world.fail_over();
            if self.random.once_in(4) {
                // A new replica takes the place of the one that has gone.
                self.world.follower_ahead = Leaders::difference(&mut self.random);
            }
            // A report that the replica has not received itself is no evidence to it, unless it is persisted.
            for pod in self.tenants.iter_mut().flat_map(|tenant| &mut tenant.pods) {
                pod.reported = [pod.reported[OTHER], None];
            }
            self.counts.failovers += 1;
        }
        self.counts.restarts += 1;
        self.begin(is_restored, !is_restart);
    }

    /// A leader's first evaluation, before it knows anything of the cluster. `has_answers` is whether it has
    /// collected the nodes' answers before.
    fn begin(&mut self, is_restored: bool, has_answers: bool) {
        self.cluster.forget();
        self.forget_uncertain();
        self.leaders.since = self.now();
        self.world.facts = ClusterFacts::default();
        // All persisted evidence of these Apps has cleared. They wait for nodes' answers, because not all evidence
        // could be persisted. Or the leader before has begun since, and has not had their nodes' answers for the
        // clearing time. This leader may have had them, and then it releases the Apps at once. `judge` compares that
        // with the processes that really ran. It does not while it knows an accusation in the namespace that has not
        // cleared, because it has looked up no Pod yet. A record that never was fresh is no accusation.
        let snapshot = self.world.snapshot();
        // Persisted evidence that counts against another App is no accusation either.
        let mut persisted: BTreeMap<(&Text, &Text, &Text, &Text), BTreeSet<App>> = BTreeMap::new();
        for it in self.world.persisted.values() {
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
            has_answers
                && !is_accused(&App::from(&it.spec.app))
                && it.status.evidence.iter().all(|of| of.cleared.as_ref().is_some_and(|it| it.ended))
        };
        let cleared: BTreeSet<App> =
            self.world.persisted.values().filter(has_cleared).map(|it| App::from(&it.spec.app)).collect();
        let persisted_before = self.world.persisted.clone();
        let evaluation = self.world.evaluate();
        if is_restored {
            // Decisions since the backup are not known any more.
            self.blocked = apps(&evaluation);
        }
        let now = apps(&evaluation);
        // An operator has released these Apps, and the time of the release is not over. By its wall clock the leader
        // before doubted that, so the release opened nothing.
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
            let persisted = persisted_before.values().filter(|it| lost.contains(&App::from(&it.spec.app)));
            let persisted: Vec<_> = persisted.map(|it| &it.status).collect();
            self.fail(&format!("released by a restart: {lost:?}: {why:?}\n{persisted:?}\n{known}"));
        }
        self.judge(&evaluation);
        self.leaders.reopened.clear();
    }

    /// Incidents that have ended and whose documents are open are written as ended, if they can be written.
    fn end_history(&mut self) {
        let (world, leaders) = (&mut self.world, &mut self.leaders);
        leaders.reopened.clear();
        for incident in world.persisted.values_mut().filter(|it| it.status.state != IncidentState::Ended) {
            let app = App::from(&incident.spec.app);
            if world.incidents.name_of(&app).as_ref() == Some(&incident.name) {
                continue;
            }
            if world.unwritable.contains(&*app.namespace) {
                leaders.reopened.insert(app);
            } else {
                incident.status.end_again(world.now.wall());
                self.counts.reopened += 1;
            }
        }
    }

    /// Restores the backup of the persisted state. The leader sees it and writes anew, or another one begins before.
    fn restore_backup(&mut self) {
        let Some((persisted, plan)) = self.leaders.backup.clone() else { return };
        self.counts.backups += 1;
        self.operators.released.clear();
        let before = std::mem::replace(&mut self.world.persisted, persisted);
        if self.random.once_in(2) {
            let persisted = &self.world.persisted;
            let is_other = |name: &str| {
                persisted.get(name).map(|it| &it.status) != before.get(name).map(|it| &it.status)
            };
            self.world.incidents.mark_deleted(is_other);
            // The Apps stay uncertain until their incidents are written anew, if that can't be done now.
            let others = before.values().filter(|incident| is_other(&incident.name));
            self.leaders.uncertain.extend(others.map(|incident| App::from(&incident.spec.app)));
            self.end_history();
            return;
        }
        // Perhaps the backup also has everything else in the cluster's store.
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
