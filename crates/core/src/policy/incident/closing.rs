//! Decides what the gateway closes when an App is blocked, by the cluster facts and by what was closed for the App
//! before.

use std::borrow::Cow;

use super::PersistedIncident;
use crate::names::{App, Text};
use crate::plan::{Exposure, SharedServices};
use crate::policy::Policy;
use crate::policy::cluster_facts::{AppFact, ClusterFacts};

impl ClusterFacts {
    /// What is closed when `app` is blocked; `persisted` knows what has been closed already. `None` if it is not
    /// known at the moment how the App is reached.
    ///
    /// Without a cluster, the only guess that can't hit another App is a Service of the App's own name in its own
    /// namespace.
    pub(in crate::policy) fn to_close(
        &self,
        app: &App,
        policy: &Policy,
        persisted: &PersistedIncident,
    ) -> Option<Cow<'_, Exposure>> {
        let fact = self.apps.get(app);
        let mut exposure = Self::closed_of(app, fact, policy, persisted)?;
        // A Service that was closed for the App stays closed. Otherwise its tenant could open it by removing the
        // selector.
        let selecting_none = fact.map(|fact| &*fact.selecting_none).unwrap_or_default();
        for service in selecting_none.iter().filter(|service| persisted.has_closed(service)) {
            exposure.to_mut().add_unseen(service);
        }
        if let Some(why) = exposure.closes_nothing(policy.has_plain_list) {
            exposure.to_mut().nothing_closed = Some(why.into());
        }
        Some(exposure)
    }

    fn closed_of<'a>(
        app: &App,
        fact: Option<&'a AppFact>,
        policy: &Policy,
        persisted: &PersistedIncident,
    ) -> Option<Cow<'a, Exposure>> {
        let Some(fact) = fact else {
            let is_guess = !policy.verify_pods && crate::names::is_dns_label(&app.name);
            let guess = || Exposure::plain([format!("{}.{}.svc", app.name, app.namespace).into()]);
            return is_guess.then(|| Cow::Owned(guess()));
        };
        let exposure = fact.exposure.as_ref()?;
        if fact.shared.is_empty() {
            return Some(Cow::Borrowed(exposure));
        }
        let stays_open = |service: &Text| match policy.shared_services {
            SharedServices::Block => false,
            SharedServices::Skip => true,
            SharedServices::Hold => !persisted.hold.is_approved() && !persisted.has_closed(service),
        };
        Some(Cow::Owned(exposure.apart_from(&fact.shared, stays_open)))
    }
}
