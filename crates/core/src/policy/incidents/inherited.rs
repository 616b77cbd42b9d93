//! Inherited blocks: what a new leader finds closed, and how long it stays closed.
//!
//! Everything that the gateway's objects close stays closed until every App that was blocked before has been looked
//! up in this term. A new way to reach an App is closed at once. Ways that do not exist any more are opened for all
//! Apps together at the end, so that the gateway is written once for them.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;

use crate::Moment;
use crate::decision::Mode;
use crate::decision::{Actor, Decision, DecisionKind};
use crate::names::{App, Key, Text};
use crate::plan::Exposure;
use crate::policy::Policy;
use crate::policy::cluster_facts::ClusterFacts;
use crate::policy::incident::{Incident, NotificationKind, Phase, SentNotification};
use crate::policy::incidents::Incidents;
use crate::policy::incidents::persist::Committed;

/// An App that was blocked before the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InheritedBlock {
    /// The App.
    pub app: App,
    /// When its tenant was notified, if that is known.
    pub notified_at: Option<Timestamp>,
    /// Its violations, as far as known.
    pub accused: BTreeSet<Key>,
    /// The object may name the App by a Service that is closed for another App. If persisted incidents name all of the Services,
    /// they count instead.
    pub is_guess: bool,
    /// The Services that are closed, as `service.namespace.svc`. They stay closed until the App's Services are known.
    pub services: Vec<Text>,
    /// The Services that are closed on some Ingresses only.
    pub on_ingresses: OnIngresses,
}

/// The Services that are closed on some Ingresses only: listed together with Ingresses, but not in the plain list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OnIngresses {
    /// The Services, as `service.namespace.svc`.
    pub services: BTreeSet<Text>,
    /// The Ingresses, as `namespace/name`.
    pub ingresses: BTreeSet<Text>,
}

impl InheritedBlock {
    /// The exposure that closes `services` in the way that was found.
    pub(in crate::policy) fn exposure(&self, services: impl IntoIterator<Item = Text>) -> Exposure {
        let mut exposure = Exposure::plain(services);
        exposure.otherwise.retain(|service| !self.on_ingresses.services.contains(service));
        exposure.ingresses = self.on_ingresses.ingresses.iter().cloned().collect();
        exposure
    }
}

/// The Apps that were blocked before this term, until all of them have been looked up in it.
#[derive(Clone, Debug, Default)]
pub(in crate::policy) struct BlockedBefore {
    blocked: BTreeSet<App>,
    /// The Apps that have not been looked up in this term.
    unseen: BTreeSet<App>,
}

impl BlockedBefore {
    /// Notes which Apps have been looked up by now, whatever the result. After the last one no App counts as blocked
    /// before.
    pub(in crate::policy) fn look(
        &mut self,
        policy: &Policy,
        facts: &ClusterFacts,
        is_blocked: impl Fn(&App) -> bool,
    ) {
        self.blocked.retain(is_blocked);
        let blocked = &self.blocked;
        self.unseen.retain(|app| blocked.contains(app) && !facts.apps.contains_key(app));
        // Without a cluster no App is looked up.
        if self.unseen.is_empty() || !policy.verify_pods {
            *self = Self::default();
        }
    }

    /// Whether the closed Services of `app` have to stay closed for now.
    pub(in crate::policy) fn has(&self, app: &App) -> bool {
        self.blocked.contains(app)
    }
}

/// The Services and Ingresses of blocked Apps, as far as they are known.
struct Known {
    services: BTreeSet<Text>,
    ingresses: BTreeSet<Text>,
}

impl Incidents {
    /// Takes over blocks of the gateway's objects that no persisted incident explains: an earlier version made them,
    /// or the incidents are lost. They stay, because our own start is no evidence that the processes are gone. A
    /// persisted incident counts more: one that has just ended is not reopened because its object could not be
    /// written in time.
    pub fn inherit(
        &mut self,
        blocked: impl IntoIterator<Item = InheritedBlock>,
        policy: &Policy,
        now: Moment,
    ) -> Vec<Decision> {
        let services = |incident: &Incident| incident.persisted.exposure.services.clone();
        let known: BTreeSet<Text> = self.by_app.values().flat_map(services).collect();
        // If a Service of an ended incident is still closed, it is closed for another App.
        let blocked_now = || self.by_app.values().filter(|incident| is_blocked(incident));
        let closed = Known {
            services: blocked_now().flat_map(services).collect(),
            ingresses: blocked_now()
                .flat_map(|incident| incident.persisted.exposure.ingresses.clone())
                .collect(),
        };
        let mut decisions = Vec::new();
        for found in blocked {
            if self.unreadable.contains(&found.app) {
                self.unreadable.close(&found, &closed.services, now);
                continue;
            }
            self.keep_closed(&found, &closed);
            let InheritedBlock { app, notified_at, accused, services, .. } = &found;
            let is_explained = !services.is_empty() && services.iter().all(|service| known.contains(service));
            let has_unknown = self.unreadable.has_unknown;
            let counts = |incident: &Incident| {
                let has_ended = matches!(incident.phase(), Phase::Ended { .. });
                let is_released = !incident.persisted.rare().releases.is_empty();
                is_released || !(has_unknown && has_ended || is_blocked_by_another(incident, policy, now))
            };
            let is_known = self.by_app.get(app).is_some_and(counts);
            if is_known || (found.is_guess && is_explained) {
                continue;
            }
            let notified_at = notified_at.unwrap_or(now.wall());
            let mut incident = Incident::new(now.at_wall(notified_at));
            for key in accused {
                incident.note_process(&key.process);
            }
            let persisted = incident.persisted_mut();
            persisted.phase = Phase::Blocked { since: now, dry_run: false, release_held: None };
            persisted.notification = Some(SentNotification {
                sent_at: notified_at.into(),
                kind: NotificationKind::Blocked,
                inherited: true,
            });
            persisted.exposure = Arc::new(found.exposure(services.iter().cloned()));
            persisted.reason = "it was blocked before anything was persisted of it".into();
            persisted.rare_mut().inherited = Some(accused.clone());
            incident.written_at = Some(now);
            let decision = Decision {
                at: now.wall(),
                app: app.clone(),
                kind: DecisionKind::Inherited,
                actor: Actor::Policy,
                reason: incident.persisted.reason.clone(),
                dry_run: policy.mode == Mode::DryRun,
            };
            incident.log_decision(&decision);
            decisions.push(decision);
            self.committed.insert(app.clone(), Committed::not_persisted(&incident));
            self.by_app.insert(app.clone(), incident);
        }
        let blocked = self.by_app.iter().filter(|(_, incident)| is_blocked(incident));
        let blocked: BTreeSet<App> = blocked.map(|(app, _)| app.clone()).collect();
        self.blocked_before = BlockedBefore { unseen: blocked.clone(), blocked };
        decisions
    }

    /// Keeps closed what the gateway closes for a blocked App beyond its persisted Services, until it is known how
    /// the App is reached. It is more than can be persisted, was closed last, or was not persisted by an earlier
    /// version. The objects do not say which Service belongs to which App. So a Service that is known to belong to
    /// another blocked App is left to that one.
    fn keep_closed(&mut self, found: &InheritedBlock, known: &Known) {
        let Some(incident) = self.by_app.get_mut(&found.app).filter(|incident| is_blocked(incident)) else {
            return;
        };
        let on = &found.on_ingresses;
        let mut exposure = (*incident.persisted.exposure).clone();
        let is_plain = !exposure.services.is_empty() && exposure.otherwise == exposure.services;
        if is_plain && exposure.services.iter().all(|service| on.services.contains(service)) {
            // The App was closed on some Ingresses only, which an earlier version did not persist.
            exposure.otherwise.clear();
            exposure.ingresses = on.ingresses.iter().cloned().collect();
        }
        let is_more = |known: &BTreeSet<Text>, name: &Text| !known.contains(name);
        let more = found.services.iter().filter(|name| is_more(&known.services, name)).cloned();
        let mut more = found.exposure(more);
        more.ingresses.retain(|name| is_more(&known.ingresses, name));
        let exposure = more.and(&exposure);
        if exposure == *incident.persisted.exposure {
            return;
        }
        incident.persisted_mut().exposure = Arc::new(exposure);
        let committed = Committed::not_persisted(incident);
        self.committed.insert(found.app.clone(), committed);
    }
}

/// Whether `known`, the last persisted incident of an App, ended so long ago that a later incident blocks the App, of
/// which nothing is persisted.
fn is_blocked_by_another(known: &Incident, policy: &Policy, now: Moment) -> bool {
    let Phase::Ended { at } = known.phase() else { return false };
    now.since(at) > policy.same_incident
}

fn is_blocked(incident: &Incident) -> bool {
    matches!(incident.phase(), Phase::Blocked { .. })
}
