//! Look-ups in an ordered map for keys in ascending order.

use std::cmp::Ordering;
use std::collections::btree_map::{BTreeMap, Iter};
use std::iter::Peekable;

/// Looks up ascending keys. All look-ups together go through the map once. That costs less than a search for each key
/// if there are about as many keys as entries.
pub(crate) struct OrderedLookups<'a, K, V>(Peekable<Iter<'a, K, V>>);

impl<'a, K: Ord, V> OrderedLookups<'a, K, V> {
    pub(crate) fn new(map: &'a BTreeMap<K, V>) -> Self {
        Self(map.iter().peekable())
    }

    /// The value of `key`. Keys must not descend: for a key that is less than one before, the result may be `None`
    /// although the map has the key.
    pub(crate) fn get(&mut self, key: &K) -> Option<&'a V> {
        while let Some((known, value)) = self.0.peek() {
            match (*known).cmp(key) {
                Ordering::Less => drop(self.0.next()),
                Ordering::Equal => return Some(value),
                Ordering::Greater => break,
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_map, btree_set};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_finds_the_same_values_as_the_map(map in btree_map(0..40_u8, any::<u8>(), 0..20), keys in btree_set(0..40_u8, 0..20)) {
            let mut in_order = OrderedLookups::new(&map);
            for key in keys {
                prop_assert_eq!(in_order.get(&key), map.get(&key));
            }
        }
    }
}
