//! The actions of tenants, minute by minute.

use std::collections::BTreeSet;

use super::services::{BY_HAND, selected_by};
use super::tenants::{ALL_APPS, APPS, INNOCENT, Pod, Running, SHARED};
use super::{MINUTE, NODES, OFFENDERS, Soak, TENANTS, TICK};
use crate::common::HOUR;

/// An event at a tenant. Pods are given by their places.
#[derive(Clone, Debug)]
pub(super) enum Event {
    Start(usize, usize, Running),
    Stop(usize, usize),
    Remove(usize, usize),
    Create {
        tenant: usize,
        name: String,
        app: String,
        /// The name of the Pod's owner, if that is not the name of its App.
        origin: Option<String>,
        node: usize,
    },
    Relabel(usize, usize, String),
    /// The selector of a Service is changed, or removed.
    Select(usize, String, BTreeSet<String>),
    /// The Service that all Apps share is created, or deleted.
    Share(usize, bool),
    /// The namespace and everything in it is deleted, and later it is gone.
    Terminate(usize),
    Gone(usize),
    /// The namespace is there again.
    Settle(usize),
}

impl Soak {
    /// Creates the tenant's namespace with everything in it.
    pub(super) fn settle(&mut self, tenant: usize) {
        self.tenants[tenant].is_terminating = false;
        self.tenants[tenant].services.insert(BY_HAND.to_owned(), BTreeSet::new());
        for app in ALL_APPS {
            let service = format!("{app}-x7k2");
            let selected = selected_by(&service);
            self.tenants[tenant].services.insert(service, selected);
            let (now, node) = (self.now(), self.random.below(NODES));
            self.take(
                Event::Create { tenant, name: format!("{app}-0"), app: app.to_owned(), origin: None, node },
                now,
            );
        }
    }

    pub(super) fn stop_all(&mut self, tenant: usize) {
        self.tenants[tenant].pods.iter_mut().for_each(|pod| pod.running = None);
    }

    pub(super) fn plan(&mut self, at: u64, event: Event) {
        self.coming.entry(at).or_default().push(event);
    }

    /// A random time in this minute.
    pub(super) fn some_time(&mut self) -> u64 {
        let ticks = usize::try_from(MINUTE / TICK).unwrap();
        self.now() - TICK * u64::try_from(self.random.below(ticks)).unwrap()
    }

    /// Plans the events of tenants in this minute.
    pub(super) fn events(&mut self) {
        for tenant in 0..TENANTS {
            if self.random.once_in(200) {
                let (at, exists) = (self.some_time(), self.random.once_in(2));
                self.plan(at, Event::Share(tenant, exists));
            }
            if self.random.once_in(100) {
                self.reselect(tenant);
            }
            if self.random.once_in(4000) && !self.tenants[tenant].is_terminating {
                let at = self.some_time();
                let gone = at + self.random.seconds(10, 5 * MINUTE);
                let back = gone + self.random.seconds(MINUTE, HOUR);
                self.plan(at, Event::Terminate(tenant));
                self.plan(gone, Event::Gone(tenant));
                self.plan(back, Event::Settle(tenant));
            } else if self.random.once_in(1500) {
                // The tenant's App is deleted, and made anew after a while.
                let app = self.any_app();
                let at = self.some_time();
                let back = at + self.random.seconds(10, HOUR);
                for pod in self.places(tenant, |pod| pod.app == app) {
                    self.replace(tenant, pod, at, back, app.clone());
                }
                self.counts.deleted += 1;
            }
            for pod in self.places(tenant, |_| true) {
                self.event_of(tenant, pod);
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

    fn event_of(&mut self, tenant: usize, pod: usize) {
        let at = self.some_time();
        if self.random.once_in(500) {
            // The Pod is deleted, and another one takes its place: at once or after a while, and perhaps of another
            // App.
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
            self.plan(at, Event::Relabel(tenant, pod, app));
        }
        // The second App of most is innocent.
        let is_offender =
            tenant < OFFENDERS && (self.tenants[tenant].pods[pod].app == APPS[0] || tenant.is_multiple_of(4));
        match &self.tenants[tenant].pods[pod].running {
            None if is_offender && self.random.once_in(120) => {
                let pid = u32::try_from(2 + self.random.below(60_000)).unwrap();
                let running = Running { since: at, pid, is_slow: self.random.once_in(8) };
                self.plan(at, Event::Start(tenant, pod, running));
            }
            Some(_) if self.random.once_in(150) => self.plan(at, Event::Stop(tenant, pod)),
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
        self.counts.moves += 1;
        self.counts.recreated += u64::from(keeps_name);
        self.plan(at, Event::Remove(tenant, pod));
        let it = &self.tenants[tenant];
        let origin = it.keeps_origins.then(|| it.pods[pod].origin.clone());
        self.plan(back, Event::Create { tenant, name, app, origin, node });
    }

    pub(super) fn take(&mut self, event: Event, at: u64) {
        let now = self.now();
        match event {
            Event::Start(tenant, pod, running) => {
                let pod = &mut self.tenants[tenant].pods[pod];
                if pod.is_alive() && pod.running.is_none() {
                    pod.running = Some(running);
                }
            }
            Event::Stop(tenant, pod) => self.tenants[tenant].pods[pod].running = None,
            Event::Remove(tenant, pod) => {
                let it = &mut self.tenants[tenant];
                it.alive.retain(|place| *place != pod);
                it.pods[pod].running = None;
                it.pods[pod].removed.get_or_insert(at);
            }
            Event::Create { tenant, name, app, origin, node } => {
                let origin = origin.unwrap_or_else(|| app.clone());
                self.create(tenant, name, app, origin, node, at);
            }
            Event::Relabel(tenant, pod, app) => self.relabel(tenant, pod, app),
            Event::Select(tenant, service, selected) => {
                let it = &mut self.tenants[tenant];
                it.services.entry(service).and_modify(|before| *before = selected);
                it.note_exposed();
            }
            Event::Share(tenant, exists) => self.share(tenant, exists),
            Event::Terminate(tenant) => {
                self.tenants[tenant].is_terminating = true;
                self.counts.deleted += 1;
            }
            Event::Gone(tenant) => {
                for pod in self.places(tenant, |_| true) {
                    self.take(Event::Remove(tenant, pod), at);
                }
                self.tenants[tenant].services.clear();
                self.tenants[tenant].disturbed = now;
            }
            Event::Settle(tenant) => self.settle(tenant),
        }
    }

    fn create(&mut self, tenant: usize, name: String, app: String, origin: String, node: usize, at: u64) {
        let it = &mut self.tenants[tenant];
        if it.is_terminating || it.living().any(|pod| pod.name == name) {
            return;
        }
        self.pods += 1;
        // Some Pods that never offend wait for a node or an image.
        let is_slow = app == INNOCENT && self.random.once_in(2);
        let starts = at + if is_slow { self.random.seconds(0, HOUR) } else { 0 };
        it.alive.push(it.pods.len());
        it.pods.push(Pod {
            name,
            uid: format!("uid-{}", self.pods),
            node,
            created: at,
            starts,
            removed: None,
            apps: BTreeSet::from([app.clone()]),
            origin,
            app,
            running: None,
            last_found: None,
            reported: [None; 2],
            persisted: None,
            reported_all: BTreeSet::new(),
            accused_at: None,
            is_dateless: false,
            is_unjudged: false,
            disturbed: 0,
        });
        it.note_exposed();
    }

    fn relabel(&mut self, tenant: usize, pod: usize, app: String) {
        let it = &mut self.tenants[tenant];
        if it.pods[pod].is_alive() && it.pods[pod].app != app {
            it.pods[pod].apps.insert(app.clone());
            it.pods[pod].app = app;
            it.note_exposed();
            self.counts.relabelled += 1;
        }
    }

    fn share(&mut self, tenant: usize, exists: bool) {
        let it = &mut self.tenants[tenant];
        if exists && !it.is_terminating {
            it.services.insert(SHARED.to_owned(), selected_by(SHARED));
            self.counts.shared += 1;
        } else {
            it.services.remove(SHARED);
        }
        it.note_exposed();
    }
}
