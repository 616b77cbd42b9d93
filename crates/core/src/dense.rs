//! Rebuilds trees that have grown, so that their nodes are full.
//!
//! A tree that has grown is half empty, because each node that is full becomes two. If a tree has an entry for each
//! App or record, the empty half takes as much memory as the entries. A tree that is made at once has only full
//! nodes.

use std::collections::BTreeMap;

/// A tree is rebuilt when it has grown by one in so many entries, so that rebuilds are rare.
const MIN_GROWTH_SHARE: usize = 8;

/// How many entries a tree had when it was last rebuilt, or has had since if that is less.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Dense(usize);

impl Dense {
    /// Rebuilds `tree` if it has grown.
    pub(crate) fn fill<K: Ord, V>(&mut self, tree: &mut BTreeMap<K, V>) {
        if tree.len() <= self.0 + self.0 / MIN_GROWTH_SHARE {
            self.0 = self.0.min(tree.len());
            return;
        }
        *tree = std::mem::take(tree).into_iter().collect();
        self.0 = tree.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_rebuilt_only_when_it_has_grown_and_has_the_same_entries() {
        let (mut dense, mut tree, mut times) = (Dense::default(), BTreeMap::new(), 0);
        for n in 0..10_000 {
            tree.insert(n, n.to_string());
            let before = dense.0;
            dense.fill(&mut tree);
            times += usize::from(dense.0 != before);
            assert!(dense.0 <= tree.len() && tree.len() <= dense.0 + dense.0 / MIN_GROWTH_SHARE);
        }
        assert!(times < 100, "{times}");
        assert!(tree.iter().map(|(n, text)| (*n, text.clone())).eq((0..10_000).map(|n| (n, n.to_string()))));
        tree.retain(|n, _| *n < 10);
        dense.fill(&mut tree);
        assert_eq!(dense.0, 10);
    }
}
