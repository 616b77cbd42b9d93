//! Apps of which what is kept can't be read: nothing is decided about them, and what is closed of them stays closed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::inherited::Inherited;
use crate::Moment;
use crate::names::{App, Text};
use crate::plan::Block;

/// The Apps that are set aside, with the block that was found of each.
#[derive(Clone, Debug, Default)]
pub(super) struct Aside(BTreeMap<App, Option<Arc<Block>>>);

impl Aside {
    pub(super) fn insert(&mut self, app: App) {
        self.0.entry(app).or_default();
    }

    pub(super) fn contains(&self, app: &App) -> bool {
        self.0.contains_key(app)
    }

    /// Keeps closed what was found closed of `app`. The objects do not say which Service is which App's: those that are `known` to be
    /// others' are left to them, unless none is left then.
    pub(super) fn close(&mut self, found: &Inherited, known: &BTreeSet<Text>, now: Moment) {
        let Inherited { app, accused, services, .. } = found;
        let own: Vec<Text> = services.iter().filter(|service| !known.contains(*service)).cloned().collect();
        let exposure = found.exposure(if own.is_empty() { services.clone() } else { own });
        let block = Block {
            app: app.clone(),
            since: now.wall(),
            grounds: Vec::new(),
            left: accused.iter().cloned().collect(),
            exposure: Arc::new(exposure),
            reason: "it was found blocked, and what is kept of it can't be read".into(),
        };
        self.0.insert(app.clone(), Some(Arc::new(block)));
    }

    /// What stays closed.
    pub(super) fn blocks(&self) -> impl Iterator<Item = &Arc<Block>> {
        self.0.values().flatten()
    }

    /// Adds what stays closed to `blocks`, which are ordered by App.
    pub(super) fn add_to(&self, blocks: &mut Vec<Arc<Block>>) {
        if self.0.is_empty() {
            return;
        }
        blocks.extend(self.blocks().cloned());
        blocks.sort_by(|a, b| a.app.cmp(&b.app));
    }
}
