//! Apps that are called otherwise than before: their tenant has changed labels, or this program names Apps by other rules than it did.
//!
//! What operators have said of an App is meant for its workload. So an App is linked with those of its tenant whose Pods were made by
//! the same controller, and with the one that its Pods were taken for by earlier versions: a release, an exemption and a hold of these
//! keep it from being blocked anew. A tenant gains nothing by it: whatever it labels like a released App is of that App anyway.

use std::collections::{BTreeMap, BTreeSet};

use super::book::Book;
use super::facts::Lineage;
use super::incident::{Incident, MAX_NAMES, Standing, StickyRelease};
use crate::names::{App, Text};

impl Book {
    /// Notes by what a Pod of `app`, which has just been accused, is known under other names.
    pub(super) fn note_lineage(&mut self, app: &App, lineage: Lineage) {
        let Some(incident) = self.incidents.get(app) else { return };
        let is_new = |origin: &Text| !incident.origins.contains(origin) && incident.origins.len() < MAX_NAMES;
        let origin = lineage.origin.filter(is_new);
        let mut names: BTreeSet<App> = lineage.earlier.into_iter().collect();
        if let Some(origin) = &origin {
            let others = self.of_tenant(&app.namespace).filter(|(_, other)| other.origins.contains(origin));
            names.extend(others.flat_map(|(name, other)| other.formerly.iter().chain([name]).cloned()));
        }
        names.retain(|name| name != app && !incident.formerly.contains(name));
        if origin.is_none() && names.is_empty() {
            return;
        }
        let held = names.iter().filter_map(|name| self.incidents.get(name)).find_map(|other| {
            let is_held = !other.approved && !matches!(other.standing, Standing::Blocked { .. });
            other.held.clone().filter(|_| is_held)
        });
        let Some(incident) = self.incidents.get_mut(app) else { return };
        let is_undecided = matches!(incident.standing, Standing::Watched | Standing::Grace { .. });
        let file = incident.file();
        if let Some(origin) = &origin {
            file.note_origin(origin);
        }
        for name in names {
            file.note_name(name);
        }
        if is_undecided && file.held.is_none() && !file.approved {
            file.held = held;
        }
    }

    /// The incidents of a tenant's Apps.
    fn of_tenant<'a>(&'a self, namespace: &'a Text) -> impl Iterator<Item = (&'a App, &'a Incident)> {
        let from = App::new(namespace.clone(), "", "");
        self.incidents.range(from..).take_while(move |(app, _)| app.namespace == *namespace)
    }

    /// What operators have released, by the names that Apps had before.
    pub(super) fn released_before(&self) -> BTreeMap<App, Vec<StickyRelease>> {
        let names = self.incidents.values().flat_map(|incident| incident.formerly.iter());
        let released = names.filter_map(|name| {
            let releases = &self.incidents.get(name)?.releases;
            (!releases.is_empty()).then(|| (name.clone(), releases.clone()))
        });
        released.collect()
    }
}
