//! Links Apps with their earlier names: the tenant has changed labels, or this version names Apps by other rules.
//!
//! Operators' commands for an App are meant for its workload. So an App is linked with the Apps of its tenant whose
//! Pods the same controller made. It is also linked with the App that earlier versions assigned its Pods to. A
//! release, an exemption or a hold of these prevents that the App is newly blocked. Each is an earlier name of the
//! other, because a workload may come back to a name that it had before. A tenant gains nothing by that, because any
//! Pod with the labels of a released App belongs to the released App anyway.

use super::context::{Holds, Releases};
use std::collections::BTreeSet;

use super::context::EvaluationContext;
use crate::names::{App, Text};
use crate::policy::cluster_facts::Lineage;
use crate::policy::incident::{Hold, Incident, MAX_NAMES, Phase};
use crate::policy::incidents::Incidents;

impl Incidents {
    /// Notes what links a Pod of `app`, which has just been accused, with earlier names.
    pub(in crate::policy) fn note_lineage(
        &mut self,
        app: &App,
        lineage: Lineage,
        context: &EvaluationContext<'_>,
    ) {
        if lineage.origin.is_none() && lineage.earlier.is_none() {
            return;
        }
        let Some(incident) = self.by_app.get(app) else { return };
        let is_new = |origin: &Text| {
            !incident.persisted.origins.contains(origin) && incident.persisted.origins.len() < MAX_NAMES
        };
        let mut names: BTreeSet<App> = lineage.earlier.into_iter().collect();
        // A workload may come back to a name that it had before, so a known origin is looked at, too.
        if let Some(origin) = &lineage.origin {
            let others =
                self.of_tenant(&app.namespace).filter(|(_, other)| other.persisted.origins.contains(origin));
            names.extend(
                others
                    .flat_map(|(name, other)| other.persisted.rare().formerly.iter().chain([name]).cloned()),
            );
        }
        let origin = lineage.origin.filter(is_new);
        let has_room = incident.persisted.rare().formerly.len() < MAX_NAMES;
        names.retain(|name| has_room && name != app && !incident.persisted.rare().formerly.contains(name));
        if origin.is_none() && names.is_empty() {
            return;
        }
        // Only the App's own controller counts, so that no other workload is taken for one that was warned.
        let given =
            origin.as_ref().and_then(|origin| self.given_before(app, origin, context.policy, context.now));
        let Some(incident) = self.by_app.get_mut(app) else { return };
        if let Some((grace, written_at)) = given
            && incident.persisted.decided == 0
            && incident.persisted.rare().releases.is_empty()
        {
            incident.persisted_mut().grace = Some(Box::new(grace));
            incident.grace_written_at = Some(written_at);
        }
        let persisted = incident.persisted_mut();
        if let Some(origin) = origin {
            persisted.origins.insert(origin);
        }
        for name in names {
            persisted.note_name(name);
        }
    }

    /// The incidents of a tenant's Apps.
    pub(in crate::policy) fn of_tenant<'a>(
        &'a self,
        namespace: &'a Text,
    ) -> impl Iterator<Item = (&'a App, &'a Incident)> {
        let from = App::new(namespace.clone(), "", "");
        self.by_app.range(from..).take_while(move |(app, _)| app.namespace == *namespace)
    }

    /// Operators' releases, and the holds of brakes, by the earlier names of Apps.
    pub(in crate::policy) fn of_earlier_names(&self) -> (Releases, Holds) {
        let (mut releases, mut holds) = (Releases::new(), Holds::new());
        for name in self.by_app.values().flat_map(|incident| incident.persisted.rare().formerly.iter()) {
            let Some(other) = self.by_app.get(name) else { continue };
            if !other.persisted.rare().releases.is_empty() {
                releases.insert(name.clone(), other.persisted.rare().releases.clone());
            }
            let is_held = !matches!(other.phase(), Phase::Blocked { .. });
            if let Some(held) = other.persisted.hold.brake().cloned().filter(|_| is_held) {
                holds.insert(name.clone(), held);
            }
        }
        (releases, holds)
    }
}

impl Incident {
    /// Takes over the hold of an earlier name, unless the incident has a hold of its own or an operator has approved
    /// its block.
    pub(in crate::policy) fn take_earlier_hold(&mut self, by_name: &Holds) {
        if self.persisted.hold != Hold::Free {
            return;
        }
        let held = self.persisted.rare().formerly.iter().find_map(|name| by_name.get(name).cloned());
        if let Some((since, brake)) = held {
            self.persisted_mut().hold = Hold::by(brake, since);
        }
    }
}
