//! The simulated API server. It never shows an object that does not exist.

use std::collections::{BTreeMap, BTreeSet};

use jiff::SignedDuration;
use procscan_core::Moment;
use procscan_core::ledger::{Detection, Ledger};
use procscan_core::names::{App, NodeName, PodRef};
use procscan_core::plan::{Exposure, OtherApps, SharedService};
use procscan_core::policy::{AppFact, ClusterFacts, Lineage, LookupRequests, PodFact, PodIdentity, PodState};

use super::tenants::{ALL_APPS, Pod, Tenant, app_of, host, namespace, tenant_in};
use super::{MINUTE, Soak};

/// The present leader's knowledge of the cluster. A leader that has just begun knows nothing.
#[derive(Default)]
pub(super) struct Cluster {
    /// The API server does not answer until then.
    pub(super) deaf_until: u64,
    /// Which Pod was seen under a name, and when last; `None` once it is gone.
    lives: BTreeMap<PodRef, Option<(String, Moment)>>,
    /// Since when an App has had no Pod.
    empty: BTreeMap<App, u64>,
}

impl Cluster {
    pub(super) fn forget(&mut self) {
        (self.lives, self.empty) = (BTreeMap::new(), BTreeMap::new());
    }
}

fn name_of(tenant: usize, pod: &str) -> PodRef {
    PodRef { namespace: namespace(tenant).into(), pod: pod.into() }
}

impl Soak {
    /// Answers the policy's lookup requests.
    pub(super) fn look(&mut self) {
        if self.now() < self.cluster.deaf_until {
            return;
        }
        let now = self.world.now;
        let nothing = Ledger::new(Detection::default(), now).snapshot(now);
        let requests = self.world.incidents.lookup_requests(&nothing, &self.world.policy);
        let mut facts = ClusterFacts::default();
        for (number, tenant) in self.tenants.iter().enumerate() {
            if tenant.is_terminating && tenant.living().next().is_some() {
                facts.terminating.insert(namespace(number).into());
            }
            // Pods that are gone are looked up while they are accused. Pods of long ago are not accused any more.
            let dead = tenant.pods.iter().rev().filter(|pod| !pod.is_alive()).take(6);
            for pod in dead {
                let fact = PodFact { asked: now, state: PodState::Gone };
                facts.pods.insert(name_of(number, &pod.name), fact);
            }
            for pod in tenant.living() {
                let state = self.present(number, pod);
                facts.pods.insert(name_of(number, &pod.name), PodFact { asked: now, state });
            }
        }
        self.note_lives(&requests);
        let mut apps: BTreeSet<App> = requests.apps.keys().cloned().collect();
        apps.extend((0..self.tenants.len()).flat_map(|tenant| ALL_APPS.map(|app| app_of(tenant, app))));
        for app in apps {
            let fact = self.app(&app, &requests);
            if !fact.shared.is_empty() {
                self.tenants[tenant_in(&app.namespace)].has_shared.insert(app.name.to_string());
            }
            if fact.gone {
                // That is proof that the App is gone, so reports of its Pods do not count any more.
                self.tenants[tenant_in(&app.namespace)].forget_dead(&app.name);
            }
            facts.apps.insert(app, fact);
        }
        self.world.facts = facts;
    }

    fn present(&self, tenant: usize, pod: &Pod) -> PodState {
        let now = self.world.now;
        let age = self.now() - pod.created;
        let uptime = now.uptime().saturating_sub(std::time::Duration::from_secs(age));
        let wall = now.wall() - SignedDuration::from_secs(age.cast_signed());
        PodState::Present {
            uid: pod.uid.as_str().into(),
            created: Some(Moment::new(uptime, wall)),
            node: NodeName::new(self.nodes[pod.node].name.as_str()),
            host_ips: Vec::new(),
            app: app_of(tenant, &pod.app),
            lineage: Lineage { origin: Some(format!("ReplicaSet/{}", pod.origin).into()), earlier: None },
        }
    }

    /// Reports to the ledger which Pods have gone since the last look-up.
    fn note_lives(&mut self, requests: &LookupRequests) {
        let now = self.world.now;
        let mut gone: Vec<(PodRef, Moment)> = Vec::new();
        let mut there: BTreeMap<PodRef, String> = BTreeMap::new();
        for (number, tenant) in self.tenants.iter().enumerate() {
            there.extend(tenant.living().map(|pod| (name_of(number, &pod.name), pod.uid.clone())));
        }
        let accused = requests.apps.values().flatten().map(|accused| accused.pod.clone());
        let names: BTreeSet<PodRef> =
            accused.chain(there.keys().cloned()).chain(self.cluster.lives.keys().cloned()).collect();
        for name in names {
            match (self.cluster.lives.get(&name), there.get(&name)) {
                (Some(Some((known, last))), Some(uid)) if known != uid => gone.push((name.clone(), *last)),
                (None | Some(Some(_)), None) => gone.push((name.clone(), now)),
                _ => {}
            }
            let life = there.get(&name).map(|uid| (uid.clone(), now));
            self.cluster.lives.insert(name, life);
        }
        for (pod, until) in gone {
            self.world.ledger.pod_gone(&pod, until);
        }
    }

    fn app(&mut self, app: &App, requests: &LookupRequests) -> AppFact {
        let number = tenant_in(&app.namespace);
        let tenant = &self.tenants[number];
        let accused = requests.apps.get(app).map(Vec::as_slice).unwrap_or_default();
        let is_accused = |pod: &Pod| {
            let is_it = |which: &PodIdentity| matches!(which, PodIdentity::Uid(uid) if **uid == *pod.uid);
            accused.iter().any(|accused| is_it(&accused.which) && *accused.pod.pod == *pod.name)
        };
        let pods: Vec<&Pod> =
            tenant.living().filter(|pod| *pod.app == *app.name || is_accused(pod)).collect();
        // It may not be known which Pod of a name is accused. Then a Pod of that name may be the one.
        let may_be_there = accused.iter().any(|accused| {
            accused.which == PodIdentity::Unknown && tenant.living().any(|pod| *pod.name == *accused.pod.pod)
        });
        let now = self.now();
        let (fact, is_empty) = (reach(number, tenant, app, &pods, now), pods.is_empty() && !may_be_there);
        if !is_empty {
            self.cluster.empty.remove(app);
            return fact;
        }
        let since = *self.cluster.empty.entry(app.clone()).or_insert(now);
        AppFact { gone: now - since >= MINUTE, ..fact }
    }
}

/// How an App with these Pods is reached.
fn reach(number: usize, tenant: &Tenant, app: &App, pods: &[&Pod], now: u64) -> AppFact {
    if pods.is_empty() {
        return AppFact::default();
    }
    let exposing =
        tenant.services.iter().filter(|(_, selected)| pods.iter().any(|pod| selected.contains(&pod.app)));
    let mut shared = Vec::new();
    let mut services = Vec::new();
    for (service, selected) in exposing {
        services.push(host(number, service));
        let is_its_own = |pod: &Pod| *pod.app == *app.name || pods.iter().any(|own| own.uid == pod.uid);
        let others = tenant.living().filter(|pod| selected.contains(&pod.app) && !is_its_own(pod));
        let others: BTreeSet<App> = others.map(|pod| app_of(number, &pod.app)).collect();
        if !others.is_empty() {
            let others = OtherApps::of(others.iter().collect());
            shared.push(SharedService { service: host(number, service), others });
        }
    }
    let running: BTreeSet<&String> =
        tenant.living().filter(|pod| pod.runs(now)).map(|pod| &pod.app).collect();
    let selects_none = |selected: &BTreeSet<String>| !selected.iter().any(|app| running.contains(app));
    let selecting_none = tenant.services.iter().filter(|(_, selected)| selects_none(selected));
    let selecting_none = selecting_none.map(|(service, _)| host(number, service)).collect();
    AppFact { exposure: Some(Exposure::plain(services)), shared, selecting_none, ..AppFact::default() }
}
