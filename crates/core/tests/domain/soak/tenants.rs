//! The real processes and Pods that the laws compare with.

use std::collections::{BTreeMap, BTreeSet};

use super::MINUTE;
use super::random::Random;
use super::services::Shut;
use procscan_core::names::{App, Text};

/// The Apps of a tenant, as the labels of its Pods name them.
pub(super) const ALL_APPS: [&str; 3] = ["web", "shop", INNOCENT];
/// The Apps that may offend, and whose Pods change their labels.
pub(super) const APPS: [&str; 2] = ["web", "shop"];
/// No process ever offends in a Pod that is or was of this App. But such a Pod may take the place, and the name, of
/// one that offended.
pub(super) const INNOCENT: &str = "blog";
/// The Service that exposes all Apps of a tenant.
pub(super) const SHARED: &str = "all";

/// One tenant, which has a namespace of its own.
#[allow(clippy::struct_excessive_bools)] // The flags are independent of each other.
pub(super) struct Tenant {
    /// All Pods, present and removed.
    pub(super) pods: Vec<Pod>,
    /// The places of the present Pods.
    pub(super) alive: Vec<usize>,
    /// Which Apps each of its Services selects: none, if it has no selector.
    pub(super) services: BTreeMap<String, BTreeSet<String>>,
    /// Which Pods each of its Services has ever selected.
    pub(super) exposed: BTreeMap<String, BTreeSet<usize>>,
    /// A Pod that replaces another one has its name.
    pub(super) keeps_names: bool,
    /// Its processes have another name in each scan.
    pub(super) renames: bool,
    /// Its Pods have another label every few minutes.
    pub(super) relabels: bool,
    /// The controller of a Pod makes its successor, too, whatever App the successor belongs to.
    pub(super) keeps_origins: bool,
    pub(super) is_terminating: bool,
    /// When something other than a node last prevented a block.
    pub(super) disturbed: u64,
    /// How many reports of an App there were when it was last released.
    pub(super) released_after: BTreeMap<String, usize>,
    /// The Apps that a Service has ever exposed together with others.
    pub(super) has_shared: BTreeSet<String>,
    /// The Services that have ever been closed for an App.
    pub(super) closed: BTreeMap<String, BTreeSet<Text>>,
    /// The Services that are closed for an App that is blocked now.
    pub(super) shut: BTreeMap<String, Shut>,
}

/// One Pod, by its UID.
pub(super) struct Pod {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) node: usize,
    pub(super) created: u64,
    /// When it has a node and its image. Until then it is `Pending`.
    pub(super) starts: u64,
    pub(super) removed: Option<u64>,
    /// The App that its labels name now, and all that they have named.
    pub(super) app: String,
    pub(super) apps: BTreeSet<String>,
    /// The controller that made it.
    pub(super) origin: String,
    pub(super) running: Option<Running>,
    /// When a scan last found something in it.
    pub(super) last_found: Option<u64>,
    /// The last fresh evidence that each replica received: the leader first.
    pub(super) reported: [Option<Reported>; 2],
    /// The leader's last fresh evidence that could be persisted.
    pub(super) persisted: Option<Reported>,
    /// All records of it that any replica has received.
    pub(super) reported_all: BTreeSet<(String, i64)>,
    /// When a new record of it was last listed undisturbed, whether it could be judged then or not.
    pub(super) accused_at: Option<u64>,
    /// The last report came without the agent's clock, so its age is not known.
    pub(super) is_dateless: bool,
    /// The last report was perhaps no evidence, because the cluster could not be read.
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

/// The last fresh evidence that has been applied.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reported {
    pub(super) at: u64,
    /// How many answers the node had given by then.
    pub(super) answered: u64,
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

    /// Whether traffic reaches it.
    pub(super) fn runs(&self, now: u64) -> bool {
        self.is_alive() && self.starts <= now
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
            shut: BTreeMap::new(),
        }
    }

    pub(super) fn living(&self) -> impl Iterator<Item = &Pod> {
        self.alive.iter().map(|place| &self.pods[*place])
    }

    pub(super) fn running(&self) -> impl Iterator<Item = (&Pod, &Running)> {
        self.living().filter_map(|pod| Some((pod, pod.running.as_ref()?)))
    }

    /// The name of a process of the tenant that is found at the time `at`.
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

    /// How many reports of an App there have been.
    pub(super) fn reported_of(&self, app: &str) -> usize {
        self.of(app).map(|pod| pod.reported_all.len()).sum()
    }

    /// Drops the reports of an App's removed Pods, because it is proven that none of them is left.
    pub(super) fn forget_dead(&mut self, app: &str) {
        for pod in self.pods.iter_mut().filter(|pod| !pod.is_alive() && pod.apps.contains(app)) {
            (pod.reported, pod.persisted) = ([None; 2], None);
        }
    }

    /// Notes which Pods the Services select now.
    pub(super) fn note_exposed(&mut self) {
        for (service, selected) in &self.services {
            let exposed = self.alive.iter().filter(|place| selected.contains(&self.pods[**place].app));
            self.exposed.entry(service.clone()).or_default().extend(exposed.copied());
        }
    }
}
