//! Which Services stay closed when tenants remove their selectors, or change them. A tenant may then route the
//! traffic by endpoints of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use procscan_core::names::Text;
use procscan_core::plan::Block;
use procscan_core::policy::Evaluation;

use super::events::Event;
use super::tenants::{ALL_APPS, SHARED, Tenant, host, namespace};
use super::{HOUR, MINUTE, Soak, TENANTS};

/// A Service that has never had a selector, and is never closed.
pub(super) const BY_HAND: &str = "by-hand";
/// An App of which there is never a Pod.
const NONE: &str = "none";

/// The Services that are closed for one App, while it is blocked.
#[derive(Default)]
pub(super) struct Shut {
    now: BTreeSet<Text>,
    /// The Services that were closed at any time since its block began.
    ever: BTreeSet<Text>,
}

/// Which Apps a Service selects as long as its tenant changes nothing.
pub(super) fn selected_by(service: &str) -> BTreeSet<String> {
    let is_its = |app: &&str| service == SHARED || service.strip_suffix("-x7k2") == Some(*app);
    ALL_APPS.iter().filter(|app| is_its(app)).map(ToString::to_string).collect()
}

impl Tenant {
    /// Whether traffic reaches no Pod by the selector of that Service. Without a selector it selects none.
    fn selects_none(&self, service: &str, now: u64) -> bool {
        let selected = self.services.get(service);
        selected.is_some_and(|apps| !self.living().any(|pod| pod.runs(now) && apps.contains(&pod.app)))
    }
}

impl Soak {
    /// A tenant changes the selector of a Service, and some time later changes it back.
    pub(super) fn reselect(&mut self, tenant: usize) {
        let services: Vec<String> = self.tenants[tenant].services.keys().cloned().collect();
        let services: Vec<String> = services.into_iter().filter(|service| service != BY_HAND).collect();
        if services.is_empty() {
            return;
        }
        let service = services[self.random.below(services.len())].clone();
        let selected = match self.random.below(5) {
            0 | 1 => BTreeSet::new(),
            2 => BTreeSet::from([NONE.to_owned()]),
            _ => BTreeSet::from([ALL_APPS[self.random.below(ALL_APPS.len())].to_owned()]),
        };
        let at = self.some_time();
        let back = at + self.random.seconds(MINUTE, 3 * HOUR);
        let usual = selected_by(&service);
        self.plan(at, Event::Select(tenant, service.clone(), selected));
        self.plan(back, Event::Select(tenant, service, usual));
        self.counts.selectors += 1;
    }

    /// While a process of a blocked App runs, its closed Services stay closed as long as they select no running Pod.
    /// A Service that selects only running Pods of other Apps is open.
    pub(super) fn closed_rightly(&mut self, evaluation: &Evaluation) {
        for tenant in 0..TENANTS {
            let is_its = |block: &&Arc<Block>| *block.app.namespace == *namespace(tenant);
            let blocks: BTreeMap<String, &Block> = evaluation
                .plan
                .blocks
                .iter()
                .filter(is_its)
                .map(|block| (block.app.name.to_string(), &**block))
                .collect();
            let mut shut = std::mem::take(&mut self.tenants[tenant].shut);
            shut.retain(|app, _| blocks.contains_key(app));
            for (app, block) in blocks {
                self.others_are_open(tenant, &app, block);
                let it = shut.entry(app.clone()).or_default();
                self.stays_closed(tenant, &app, block, it);
                it.now = block.exposure.services.iter().cloned().collect();
                it.ever.extend(it.now.iter().cloned());
            }
            self.tenants[tenant].shut = shut;
        }
    }

    /// Whether the leader knows how the Pods of that App are reached, and can persist the result.
    fn knows_reach(&self, tenant: usize, app: &str) -> bool {
        !self.is_hindered(tenant)
            && !self.world.facts.apps.is_empty()
            && self.tenants[tenant].living().any(|pod| pod.app == app)
    }

    fn stays_closed(&mut self, number: usize, app: &str, block: &Block, shut: &Shut) {
        let (now, tenant) = (self.now(), &self.tenants[number]);
        if !tenant.running().any(|(pod, _)| pod.apps.contains(app)) {
            return;
        }
        // A Service that was closed, and open in between, is closed again if it is known that the App is there.
        let closed = if self.knows_reach(number, app) { &shut.ever } else { &shut.now };
        let selecting_none = tenant.services.keys().filter(|service| tenant.selects_none(service, now));
        let hosts: Vec<Text> = selecting_none.map(|service| host(number, service)).collect();
        let mut stayed = 0;
        for service in hosts.iter().filter(|service| closed.contains(*service)) {
            if !block.exposure.services.contains(service) {
                self.fail(&format!("{app} runs, and {service} is open, which selects no running Pod"));
            }
            stayed += 1;
        }
        self.counts.stayed += stayed;
    }

    fn others_are_open(&self, number: usize, app: &str, block: &Block) {
        if !self.knows_reach(number, app) {
            return;
        }
        let (now, tenant) = (self.now(), &self.tenants[number]);
        for (service, selected) in &tenant.services {
            let is_closed = block.exposure.services.contains(&host(number, service));
            let is_its = tenant.living().any(|pod| pod.apps.contains(app) && selected.contains(&pod.app));
            if is_closed && !is_its && !tenant.selects_none(service, now) {
                self.fail(&format!("{app} of {number} closes {service}, which selects {selected:?} only"));
            }
        }
    }

    /// A restored backup has only the Services that were closed when it was made.
    pub(super) fn forget_closed(&mut self) {
        self.tenants.iter_mut().for_each(|tenant| tenant.shut.clear());
    }

    /// Forgets which Services were closed once for Apps whose persisted state is not certain. The next leader may
    /// know only those that are closed now.
    pub(super) fn forget_uncertain(&mut self) {
        for app in &self.leaders.uncertain {
            let shut = &mut self.tenants[super::tenants::tenant_in(&app.namespace)].shut;
            if let Some(shut) = shut.get_mut(&*app.name) {
                shut.ever.clone_from(&shut.now);
            }
        }
    }
}
