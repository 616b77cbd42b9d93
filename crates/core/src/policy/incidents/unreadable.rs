//! Apps whose persisted incidents can't be read. Nothing is decided about them, and what the gateway closes of them
//! stays closed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::Moment;
use crate::names::{App, Text};
use crate::plan::Block;
use crate::policy::incidents::inherited::InheritedBlock;

/// The Apps whose incidents can't be read, with the block that the gateway's objects show for each.
#[derive(Clone, Debug, Default)]
pub(in crate::policy) struct UnreadableIncidents {
    apps: BTreeMap<App, Option<Arc<Block>>>,
    /// There is an incident whose App can't be read.
    pub(in crate::policy) has_unknown: bool,
}

impl UnreadableIncidents {
    pub(in crate::policy) fn insert(&mut self, app: App) {
        self.apps.entry(app).or_default();
    }

    pub(in crate::policy) fn contains(&self, app: &App) -> bool {
        self.apps.contains_key(app)
    }

    /// All Apps whose incidents can't be read.
    pub(in crate::policy) fn apps(&self) -> BTreeSet<App> {
        self.apps.keys().cloned().collect()
    }

    /// Keeps closed what was found closed of an App. The objects do not say which Service belongs to which App. So
    /// Services `known` to belong to other Apps are left to those, unless that would leave none.
    pub(in crate::policy) fn close(&mut self, found: &InheritedBlock, known: &BTreeSet<Text>, now: Moment) {
        let InheritedBlock { app, accused, services, .. } = found;
        let own: Vec<Text> = services.iter().filter(|service| !known.contains(*service)).cloned().collect();
        let exposure = found.exposure(if own.is_empty() { services.clone() } else { own });
        let block = Block {
            app: app.clone(),
            since: now.wall(),
            grounds: Box::default(),
            left: accused.iter().cloned().collect(),
            exposure: Arc::new(exposure),
            reason: "it was found blocked, and its persisted incident can't be read".into(),
        };
        self.apps.insert(app.clone(), Some(Arc::new(block)));
    }

    /// The blocks that stay.
    pub(in crate::policy) fn blocks(&self) -> impl Iterator<Item = &Arc<Block>> {
        self.apps.values().flatten()
    }

    /// Adds the blocks that stay to `blocks`, which are ordered by App.
    pub(in crate::policy) fn add_to(&self, blocks: &mut Vec<Arc<Block>>) {
        if self.apps.is_empty() {
            return;
        }
        blocks.extend(self.blocks().cloned());
        blocks.sort_by(|a, b| a.app.cmp(&b.app));
    }
}
