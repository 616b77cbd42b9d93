//! What really runs where, and what tenants do: the truth that the laws compare with.

use std::collections::{BTreeMap, BTreeSet};

use super::random::Random;
use super::{MINUTE, NODES, OFFENDERS, Soak, TENANTS, TICK};
use crate::common::HOUR;
use procscan_core::names::{App, Text};

/// The Apps of a tenant, as the labels of its Pods name them.
pub(super) const ALL_APPS: [&str; 3] = ["web", "shop", INNOCENT];
/// Those that may offend, and whose Pods change their labels.
const APPS: [&str; 2] = ["web", "shop"];
/// Nothing ever runs in a Pod that is or was of this one; but one may take the place, and the name, of one that offended.
const INNOCENT: &str = "blog";
/// A Service of all of them.
const SHARED: &str = "all";

/// One tenant, which has a namespace of its own.
#[allow(clippy::struct_excessive_bools)] // Each is a habit or a state of its own.
pub(super) struct Tenant {
    /// Those that there are, and those that there were.
    pub(super) pods: Vec<Pod>,
    /// The places of those that there are.
    pub(super) alive: Vec<usize>,
    /// Which Apps each of its Services selects.
    pub(super) services: BTreeMap<String, BTreeSet<String>>,
    /// Which Pods each of its Services has ever selected.
    pub(super) exposed: BTreeMap<String, BTreeSet<usize>>,
    /// A Pod that takes the place of another has its name.
    keeps_names: bool,
    /// Its processes have another name in each scan.
    pub(super) renames: bool,
    /// Its Pods have another label every few minutes.
    relabels: bool,
    /// What made a Pod makes its successor too, whatever App that is of.
    keeps_origins: bool,
    pub(super) is_terminating: bool,
    /// When something other than a node last stood in the way of a block.
    pub(super) disturbed: u64,
    /// How much had been heard of an App when it was last released.
    pub(super) released_after: BTreeMap<String, usize>,
    /// The Apps that a Service has ever exposed together with others.
    pub(super) has_shared: BTreeSet<String>,
    /// What has ever been closed for an App.
    pub(super) closed: BTreeMap<String, BTreeSet<Text>>,
}

/// One Pod, by its UID.
pub(super) struct Pod {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) node: usize,
    pub(super) created: u64,
    removed: Option<u64>,
    /// The App that its labels name now, and all that they have named.
    pub(super) app: String,
    pub(super) apps: BTreeSet<String>,
    /// What made it.
    pub(super) origin: String,
    pub(super) running: Option<Running>,
    /// When a scan last found something in it.
    pub(super) last_found: Option<u64>,
    /// By the leader, and by the other replica.
    pub(super) heard: [Option<Heard>; 2],
    /// By the leader, as far as it could be kept.
    pub(super) kept: Option<Heard>,
    /// What has been heard of it by any replica, as listed.
    pub(super) heard_all: BTreeSet<(String, i64)>,
    /// When something new was last listed of it in peace, whether it could be judged then or not.
    pub(super) accused_at: Option<u64>,
    /// The last that was heard was without the agent's clock, so it is not known how old it was.
    pub(super) is_dateless: bool,
    /// It may have been no evidence then for another reason: the cluster could not be asked.
    pub(super) is_unjudged: bool,
    /// When another process on its node was last listed instead of its own.
    pub(super) disturbed: u64,
}

/// A process that offends.
#[derive(Clone, Debug)]
pub(super) struct Running {
    pub(super) since: u64,
    pub(super) pid: u32,
    pub(super) is_slow: bool,
}

/// The last fresh evidence that has been taken in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heard {
    pub(super) at: u64,
    /// How many answers the node had given by then.
    pub(super) answered: u64,
}

/// Something that happens at a tenant. Pods by their places.
#[derive(Clone, Debug)]
pub(super) enum Deed {
    Start(usize, usize, Running),
    Stop(usize, usize),
    Remove(usize, usize),
    Create {
        tenant: usize,
        name: String,
        app: String,
        /// What makes it, if it is not called like its App.
        origin: Option<String>,
        node: usize,
    },
    Relabel(usize, usize, String),
    /// The Service that all Apps share is made, or deleted.
    Share(usize, bool),
    /// The namespace and everything in it goes, and later it is gone.
    Terminate(usize),
    Gone(usize),
    /// It is there again.
    Settle(usize),
}

pub(super) fn namespace(tenant: usize) -> String {
    format!("ns-t{tenant:02}")
}

pub(super) fn tenant_in(namespace: &str) -> usize {
    namespace.strip_prefix("ns-t").unwrap().parse().unwrap()
}

pub(super) fn host(tenant: usize, service: &str) -> Text {
    format!("{service}.{}.svc", namespace(tenant)).into()
}

pub(super) fn app_of(tenant: usize, app: &str) -> App {
    App::new(namespace(tenant), "app", app)
}

impl Pod {
    pub(super) fn is_alive(&self) -> bool {
        self.removed.is_none()
    }

    /// A scan has found something in it.
    pub(super) fn has_offended(&self) -> bool {
        self.last_found.is_some()
    }
}

impl Tenant {
    pub(super) fn new(random: &mut Random) -> Self {
        Self {
            pods: Vec::new(),
            alive: Vec::new(),
            services: BTreeMap::new(),
            exposed: BTreeMap::new(),
            keeps_names: random.once_in(2),
            renames: random.once_in(6),
            relabels: random.once_in(6),
            keeps_origins: random.once_in(2),
            is_terminating: false,
            disturbed: 0,
            released_after: BTreeMap::new(),
            has_shared: BTreeSet::new(),
            closed: BTreeMap::new(),
        }
    }

    pub(super) fn living(&self) -> impl Iterator<Item = &Pod> {
        self.alive.iter().map(|place| &self.pods[*place])
    }

    pub(super) fn running(&self) -> impl Iterator<Item = (&Pod, &Running)> {
        self.living().filter_map(|pod| Some((pod, pod.running.as_ref()?)))
    }

    /// What a process of it is called when it is found `at` that time.
    pub(super) fn process_name(&self, at: u64) -> String {
        if self.renames { format!("x{}", at / MINUTE) } else { "xmrig".to_owned() }
    }

    /// The Pod that had that name then.
    pub(super) fn pod_of(&self, name: &str, at: u64) -> usize {
        let was_there =
            |pod: &Pod| pod.name == name && pod.created <= at && pod.removed.is_none_or(|end| at <= end);
        self.pods.iter().position(was_there).unwrap()
    }

    /// The Pods that have ever been of that App.
    pub(super) fn of<'a>(&'a self, app: &'a str) -> impl Iterator<Item = &'a Pod> {
        self.pods.iter().filter(move |pod| pod.apps.contains(app))
    }

    /// How much has been heard of an App by now.
    pub(super) fn heard_of(&self, app: &str) -> usize {
        self.of(app).map(|pod| pod.heard_all.len()).sum()
    }

    /// What has been heard of the Pods of an App is over: it is proven that none of them is left.
    pub(super) fn forget_dead(&mut self, app: &str) {
        for pod in self.pods.iter_mut().filter(|pod| !pod.is_alive() && pod.apps.contains(app)) {
            (pod.heard, pod.kept) = ([None; 2], None);
        }
    }

    /// Notes which Pods the Services select now.
    fn note_exposed(&mut self) {
        for (service, selected) in &self.services {
            let exposed = self.alive.iter().filter(|place| selected.contains(&self.pods[**place].app));
            self.exposed.entry(service.clone()).or_default().extend(exposed.copied());
        }
    }
}

impl Soak {
    /// Its namespace is there, with everything in it.
    pub(super) fn settle(&mut self, tenant: usize) {
        self.tenants[tenant].is_terminating = false;
        for app in ALL_APPS {
            let services = &mut self.tenants[tenant].services;
            services.insert(format!("{app}-x7k2"), BTreeSet::from([app.to_owned()]));
            let (now, node) = (self.now(), self.random.below(NODES));
            self.take(
                Deed::Create { tenant, name: format!("{app}-0"), app: app.to_owned(), origin: None, node },
                now,
            );
        }
    }

    pub(super) fn stop_all(&mut self, tenant: usize) {
        self.tenants[tenant].pods.iter_mut().for_each(|pod| pod.running = None);
    }

    fn plan(&mut self, at: u64, deed: Deed) {
        self.coming.entry(at).or_default().push(deed);
    }

    /// At some time in this minute.
    fn some_time(&mut self) -> u64 {
        let ticks = usize::try_from(MINUTE / TICK).unwrap();
        self.now() - TICK * u64::try_from(self.random.below(ticks)).unwrap()
    }

    /// What tenants do in this minute.
    pub(super) fn deeds(&mut self) {
        for tenant in 0..TENANTS {
            if self.random.once_in(200) {
                let (at, exists) = (self.some_time(), self.random.once_in(2));
                self.plan(at, Deed::Share(tenant, exists));
            }
            if self.random.once_in(4000) && !self.tenants[tenant].is_terminating {
                let at = self.some_time();
                let gone = at + self.random.seconds(10, 5 * MINUTE);
                let back = gone + self.random.seconds(MINUTE, HOUR);
                self.plan(at, Deed::Terminate(tenant));
                self.plan(gone, Deed::Gone(tenant));
                self.plan(back, Deed::Settle(tenant));
            } else if self.random.once_in(1500) {
                // Its App is deleted, and made anew after a while.
                let app = self.any_app();
                let at = self.some_time();
                let back = at + self.random.seconds(10, HOUR);
                for pod in self.places(tenant, |pod| pod.app == app) {
                    self.replace(tenant, pod, at, back, app.clone());
                }
                self.told.deleted += 1;
            }
            for pod in self.places(tenant, |_| true) {
                self.deed_of(tenant, pod);
            }
        }
    }

    fn any_app(&mut self) -> String {
        ALL_APPS[self.random.below(ALL_APPS.len())].to_owned()
    }

    fn places(&self, tenant: usize, is_it: impl Fn(&Pod) -> bool) -> Vec<usize> {
        let it = &self.tenants[tenant];
        it.alive.iter().copied().filter(|place| is_it(&it.pods[*place])).collect()
    }

    fn deed_of(&mut self, tenant: usize, pod: usize) {
        let at = self.some_time();
        if self.random.once_in(500) {
            // It is deleted, and another takes its place: at once or after a while, and perhaps of another App.
            let pause = if self.random.once_in(2) { TICK } else { self.random.seconds(TICK, 5 * MINUTE) };
            let app = match self.random.below(4) {
                0 => self.any_app(),
                _ => self.tenants[tenant].pods[pod].app.clone(),
            };
            self.replace(tenant, pod, at, at + pause, app);
            return;
        }
        if self.tenants[tenant].pods[pod].app == INNOCENT {
            return;
        }
        if self.random.once_in(if self.tenants[tenant].relabels { 20 } else { 1000 }) {
            let app = APPS[self.random.below(APPS.len())].to_owned();
            self.plan(at, Deed::Relabel(tenant, pod, app));
        }
        // The second App of most is innocent.
        let is_offender =
            tenant < OFFENDERS && (self.tenants[tenant].pods[pod].app == APPS[0] || tenant.is_multiple_of(4));
        match &self.tenants[tenant].pods[pod].running {
            None if is_offender && self.random.once_in(120) => {
                let pid = u32::try_from(2 + self.random.below(60_000)).unwrap();
                let running = Running { since: at, pid, is_slow: self.random.once_in(8) };
                self.plan(at, Deed::Start(tenant, pod, running));
            }
            Some(_) if self.random.once_in(150) => self.plan(at, Deed::Stop(tenant, pod)),
            _ => {}
        }
    }

    fn replace(&mut self, tenant: usize, pod: usize, at: u64, back: u64, app: String) {
        self.pods += 1;
        let keeps_name = self.tenants[tenant].keeps_names;
        let name = if keeps_name {
            self.tenants[tenant].pods[pod].name.clone()
        } else {
            format!("{app}-{}", self.pods)
        };
        let node = self.random.below(NODES);
        self.told.moves += 1;
        self.told.recreated += u64::from(keeps_name);
        self.plan(at, Deed::Remove(tenant, pod));
        let it = &self.tenants[tenant];
        let origin = it.keeps_origins.then(|| it.pods[pod].origin.clone());
        self.plan(back, Deed::Create { tenant, name, app, origin, node });
    }

    pub(super) fn take(&mut self, deed: Deed, at: u64) {
        let now = self.now();
        match deed {
            Deed::Start(tenant, pod, running) => {
                let pod = &mut self.tenants[tenant].pods[pod];
                if pod.is_alive() && pod.running.is_none() {
                    pod.running = Some(running);
                }
            }
            Deed::Stop(tenant, pod) => self.tenants[tenant].pods[pod].running = None,
            Deed::Remove(tenant, pod) => {
                let it = &mut self.tenants[tenant];
                it.alive.retain(|place| *place != pod);
                it.pods[pod].running = None;
                it.pods[pod].removed.get_or_insert(at);
            }
            Deed::Create { tenant, name, app, origin, node } => {
                let it = &mut self.tenants[tenant];
                if it.is_terminating || it.living().any(|pod| pod.name == name) {
                    return;
                }
                self.pods += 1;
                it.alive.push(it.pods.len());
                it.pods.push(Pod {
                    name,
                    uid: format!("uid-{}", self.pods),
                    node,
                    created: at,
                    removed: None,
                    apps: BTreeSet::from([app.clone()]),
                    origin: origin.unwrap_or_else(|| app.clone()),
                    app,
                    running: None,
                    last_found: None,
                    heard: [None; 2],
                    kept: None,
                    heard_all: BTreeSet::new(),
                    accused_at: None,
                    is_dateless: false,
                    is_unjudged: false,
                    disturbed: 0,
                });
                it.note_exposed();
            }
            Deed::Relabel(tenant, pod, app) => {
                let it = &mut self.tenants[tenant];
                if it.pods[pod].is_alive() && it.pods[pod].app != app {
                    it.pods[pod].apps.insert(app.clone());
                    it.pods[pod].app = app;
                    it.note_exposed();
                    self.told.relabelled += 1;
                }
            }
            Deed::Share(tenant, exists) => {
                let it = &mut self.tenants[tenant];
                if exists && !it.is_terminating {
                    let all = ALL_APPS.map(str::to_owned);
                    it.services.insert(SHARED.to_owned(), BTreeSet::from(all));
                    self.told.shared += 1;
                } else {
                    it.services.remove(SHARED);
                }
                it.note_exposed();
            }
            Deed::Terminate(tenant) => {
                self.tenants[tenant].is_terminating = true;
                self.told.deleted += 1;
            }
            Deed::Gone(tenant) => {
                for pod in self.places(tenant, |_| true) {
                    self.take(Deed::Remove(tenant, pod), at);
                }
                self.tenants[tenant].services.clear();
                self.tenants[tenant].disturbed = now;
            }
            Deed::Settle(tenant) => self.settle(tenant),
        }
    }
}
