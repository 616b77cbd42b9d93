//! Reads every incident at the beginning of a term. The versions of all are read anew, but an incident that the watch
//! has in the current version is not read again. So the time depends on the number of changed incidents, and not on
//! the number of all.

use futures_util::{StreamExt, stream};
use kube::ResourceExt;
use kube::api::ListParams;
use kube::core::DynamicObject;
use kube::core::metadata::PartialObjectMeta;

use super::known::{AllKnown, Known};
use super::objects::{app_of, is_version_of, plural, read_incident, was_written};
use super::{CONCURRENCY, Objects, PAGE_SIZE};
use crate::kubernetes::{Refusal, RefusalKind};
use crate::state::crd::Resource;
use crate::state::{Loaded, PersistedState, Unreadable};

/// How many objects one page of a list with metadata only has.
const METADATA_PAGE_SIZE: u32 = 2000;
/// The number of changed incidents up to which each is read by itself. More are listed.
const MAX_SINGLE_READS: usize = 500;

/// The result of reading all incidents.
#[derive(Default)]
pub(super) struct Read {
    pub(super) loaded: Loaded,
    pub(super) known: AllKnown,
    /// The marks of the leaders that wrote the incidents.
    pub(super) marks: Vec<String>,
}

impl Objects {
    /// Reads every incident as it is now. The watch has `seen` most of them.
    pub(super) async fn take_over(&self, seen: &PersistedState) -> Result<Read, Refusal> {
        let (mut read, mut changed) = (Read::default(), Vec::new());
        let (api, plural) = (self.api(Resource::Incident), plural(Resource::Incident));
        let mut page = ListParams::default().limit(METADATA_PAGE_SIZE);
        loop {
            let found = self.cluster.ask(self.ask("list", &plural), api.list_metadata(&page)).await?;
            changed.extend(found.items.into_iter().filter_map(|live| read.take_over(live, seen)));
            match found.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page = page.continue_token(&token),
                None => break,
            }
        }
        if changed.len() > MAX_SINGLE_READS {
            read = Read::default();
            self.pages(Resource::Incident, PAGE_SIZE, |live| read.take_in(&live)).await?;
        } else {
            let get = |name: String| async move { self.get(Resource::Incident, &name).await };
            let mut answers = stream::iter(changed).map(get).buffer_unordered(CONCURRENCY);
            while let Some(answer) = answers.next().await {
                match answer {
                    Ok(live) => read.take_in(&live),
                    // The incident was deleted meanwhile.
                    Err(refusal) if refusal.kind == RefusalKind::NotFound => {}
                    Err(refusal) => return Err(refusal),
                }
            }
        }
        read.loaded.incidents.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(read)
    }
}

impl Read {
    /// Takes over the watch's version of an incident if it is current. Otherwise returns the name, so that the
    /// incident is read. An incident with a command is read in any case, because the command is removed by its exact
    /// content.
    fn take_over(&mut self, live: PartialObjectMeta<DynamicObject>, seen: &PersistedState) -> Option<String> {
        let name = live.name_any();
        let incident = seen.incidents.get(&*name).filter(|incident| {
            !seen.unread.incidents.contains_key(&*name)
                && incident.requested.is_none()
                && is_version_of(incident.version, &live.metadata)
        });
        match incident.map(|incident| (incident, incident.document(&name))) {
            Some((incident, Ok(Some(document)))) => {
                let observed = document.status.observed;
                self.known.all.insert(name, Known::of_seen(live.metadata, incident.version, observed));
                self.marks.extend(document.status.writer.clone());
                self.loaded.incidents.push(document);
                None
            }
            _ => Some(name),
        }
    }

    fn take_in(&mut self, live: &DynamicObject) {
        let name = live.name_any();
        let mark = live.data.pointer("/status/writer").and_then(|mark| mark.as_str());
        self.marks.extend(mark.map(str::to_owned));
        let unreadable = |error| Unreadable { app: app_of(live), error };
        match read_incident(live).and_then(|incident| incident.document(&name)) {
            Ok(None) if was_written(live) => {
                let error = unreadable("its status was written, and is gone".to_owned());
                self.loaded.unreadable.insert(name, error);
            }
            // The program that created it ended before it decided anything about it.
            Ok(None) => {}
            Ok(Some(incident)) => {
                self.known.all.insert(name, Known::of(live));
                self.loaded.incidents.push(incident);
            }
            Err(error) => drop(self.loaded.unreadable.insert(name, unreadable(error))),
        }
    }
}
