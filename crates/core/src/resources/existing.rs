//! The permanent objects that exist. The drafts must contain them again.

use std::collections::{BTreeMap, BTreeSet};

use super::kind::{ExistingObject, Kind};
use crate::names::{App, Text};
use crate::policy::InheritedBlock;

/// The permanent objects that exist, by the names of their kinds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Existing(BTreeMap<&'static str, Vec<ExistingObject>>);

impl Existing {
    /// Adds an object.
    pub fn add(&mut self, kind: Kind, name: impl Into<String>, note: u8) {
        self.0.entry(kind.name()).or_default().push(ExistingObject { name: name.into(), note });
    }

    /// The objects of a kind.
    pub fn of(&self, kind: Kind) -> &[ExistingObject] {
        self.0.get(kind.name()).map_or(&[], Vec::as_slice)
    }
}

/// What objects of several kinds block, each App once, ordered.
pub fn union(blocks: impl IntoIterator<Item = InheritedBlock>) -> Vec<InheritedBlock> {
    let mut all: BTreeMap<App, InheritedBlock> = BTreeMap::new();
    for block in blocks {
        match all.remove(&block.app) {
            Some(before) => all.insert(block.app.clone(), both(before, block)),
            None => all.insert(block.app.clone(), block),
        };
    }
    all.into_values().collect()
}

/// What two objects of different kinds block of one App.
fn both(a: InheritedBlock, b: InheritedBlock) -> InheritedBlock {
    // If one object closes a Service on every route, the Service counts as closed on every route.
    let is_plain = |block: &InheritedBlock, service: &Text| {
        block.services.contains(service) && !block.on_ingresses.services.contains(service)
    };
    let mut on_ingresses = a.on_ingresses.clone();
    on_ingresses.services.extend(b.on_ingresses.services.iter().cloned());
    on_ingresses.services.retain(|service| !is_plain(&a, service) && !is_plain(&b, service));
    on_ingresses.ingresses.extend(b.on_ingresses.ingresses.iter().cloned());
    let services: BTreeSet<_> = a.services.into_iter().chain(b.services).collect();
    InheritedBlock {
        app: a.app,
        notified_at: a.notified_at.max(b.notified_at),
        accused: a.accused.into_iter().chain(b.accused).collect(),
        is_guess: a.is_guess && b.is_guess,
        services: services.into_iter().collect(),
        on_ingresses,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::Key;
    use crate::policy::OnIngresses;

    fn texts<T: FromIterator<Text>>(names: &[&str]) -> T {
        names.iter().map(|name| Text::from(*name)).collect()
    }

    #[test]
    fn what_two_kinds_block_of_one_app_is_blocked_in_either_way() {
        let block = |name: &str, services: &[&str], on_ingresses: &[&str], pod: &str| InheritedBlock {
            app: App::new("ns-a", "app", name),
            notified_at: None,
            accused: [Key::new("ns-a", pod, "xmrig")].into(),
            is_guess: false,
            services: texts(services),
            on_ingresses: OnIngresses { services: texts(on_ingresses), ingresses: texts(&["ns-a/in"]) },
        };
        let first = block("web", &["a", "b", "c"], &["a", "b"], "web-0");
        let second = block("web", &["b", "d"], &["d"], "web-1");
        let other = block("blog", &["x"], &[], "blog-0");
        let all = union([first.clone(), other.clone(), second]);
        let expected = InheritedBlock {
            accused: ["web-0", "web-1"].map(|pod| Key::new("ns-a", pod, "xmrig")).into(),
            ..block("web", &["a", "b", "c", "d"], &["a", "d"], "")
        };
        assert_eq!(all, [other, expected]);
        assert_eq!(union([first.clone()]), std::slice::from_ref(&first));
        // An App that one of the kinds names for certain is no guess.
        let guess = InheritedBlock { is_guess: true, ..first.clone() };
        assert!(union([guess.clone(), guess.clone()])[0].is_guess);
        assert!(!union([guess, first])[0].is_guess);
    }
}
