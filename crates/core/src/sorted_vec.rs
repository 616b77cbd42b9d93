//! An ordered map and an ordered set for few entries, because nearly every App has one accusation by one node.
//!
//! A `BTreeMap` makes room for eleven entries with the first one, which would be most of an incident's memory. With
//! many entries these types are slower, but not by much, because values are boxed and little is moved.

use std::cmp::Ordering;
use std::fmt;

/// Up to so many entries, a [`SortedVecMap`] makes room for one at a time.
const GROW_BY_ONE_UP_TO: usize = 4;

/// An ordered map that takes no more memory than its entries.
#[derive(Clone)]
pub(crate) struct SortedVecMap<K, V>(Vec<(K, Box<V>)>);

impl<K: Ord, V> SortedVecMap<K, V> {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.0.get(self.find(key).ok()?).map(|(_, value)| &**value)
    }

    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.find_mut(|other| other.cmp(key)).map(|(_, value)| value)
    }

    /// The entry for whose key `place` returns `Equal`. For other keys `place` returns on which side they are.
    pub(crate) fn find_mut(&mut self, place: impl Fn(&K) -> Ordering) -> Option<(&K, &mut V)> {
        let at = self.0.binary_search_by(|(other, _)| place(other)).ok()?;
        self.0.get_mut(at).map(|(key, value)| (&*key, &mut **value))
    }

    /// Returns the value before, if there was one.
    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        match self.find(&key) {
            Ok(at) => self.0.get_mut(at).map(|(_, old)| std::mem::replace(&mut **old, value)),
            Err(at) => {
                if self.0.len() < GROW_BY_ONE_UP_TO {
                    self.0.reserve_exact(1);
                }
                self.0.insert(at, (key, Box::new(value)));
                None
            }
        }
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        let at = self.find(key).ok()?;
        Some(*self.0.remove(at).1)
    }

    /// Removes the entries for which `stays` returns false.
    pub(crate) fn retain(&mut self, mut stays: impl FnMut(&K, &V) -> bool) {
        self.0.retain(|(key, value)| stays(key, value));
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.0.iter().map(|(key, value)| (key, &**value))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (&K, &mut V)> {
        self.0.iter_mut().map(|(key, value)| (&*key, &mut **value))
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &K> {
        self.0.iter().map(|(key, _)| key)
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.0.iter().map(|(_, value)| &**value)
    }

    fn find(&self, key: &K) -> Result<usize, usize> {
        self.0.binary_search_by(|(other, _)| other.cmp(key))
    }
}

impl<K, V> Default for SortedVecMap<K, V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for SortedVecMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.0.iter().map(|(key, value)| (key, value))).finish()
    }
}

/// An ordered set that allocates exactly what its items need. Each change reallocates, so it suits sets of few items
/// that seldom change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SortedVecSet<T>(Box<[T]>);

impl<T: Ord> SortedVecSet<T> {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn contains(&self, item: &T) -> bool {
        self.0.binary_search(item).is_ok()
    }

    pub(crate) fn insert(&mut self, item: T) {
        if let Err(at) = self.0.binary_search(&item) {
            let mut items = std::mem::take(&mut self.0).into_vec();
            items.reserve_exact(1);
            items.insert(at, item);
            self.0 = items.into_boxed_slice();
        }
    }

    pub(crate) fn remove(&mut self, item: &T) {
        if let Ok(at) = self.0.binary_search(item) {
            let mut items = std::mem::take(&mut self.0).into_vec();
            items.remove(at);
            self.0 = items.into_boxed_slice();
        }
    }

    pub(crate) fn iter(&self) -> std::slice::Iter<'_, T> {
        self.0.iter()
    }
}

impl<T> Default for SortedVecSet<T> {
    fn default() -> Self {
        Self(Box::default())
    }
}

impl<T: Ord> FromIterator<T> for SortedVecSet<T> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        let mut items: Vec<T> = items.into_iter().collect();
        items.sort_unstable();
        items.dedup();
        Self(items.into_boxed_slice())
    }
}

impl<T> IntoIterator for SortedVecSet<T> {
    type Item = T;
    type IntoIter = std::vec::IntoIter<T>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_vec().into_iter()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_an_ordered_set(first in vec(0..9_u8, 0..9), operations in vec((any::<bool>(), 0..9_u8), 0..60)) {
            let (mut few, mut model) = (SortedVecSet::from_iter(first.clone()), BTreeSet::from_iter(first));
            for (is_new, item) in operations {
                if is_new {
                    few.insert(item);
                    model.insert(item);
                } else {
                    few.remove(&item);
                    model.remove(&item);
                }
                prop_assert!(few.iter().eq(model.iter()) && few.clone().into_iter().eq(model.clone()));
                prop_assert_eq!((few.len(), few.is_empty()), (model.len(), model.is_empty()));
                prop_assert_eq!(few.contains(&item), model.contains(&item));
            }
        }

        #[test]
        fn it_is_an_ordered_map(operations in vec((0..4_u8, 0..12_u8, any::<u8>()), 0..60)) {
            let (mut few, mut model) = (SortedVecMap::default(), BTreeMap::new());
            for (operation, key, value) in operations {
                match operation {
                    0 => prop_assert_eq!(few.insert(key, value), model.insert(key, value)),
                    1 => prop_assert_eq!(few.remove(&key), model.remove(&key)),
                    2 => {
                        few.retain(|other, _| *other > key);
                        model.retain(|other, _| *other > key);
                    }
                    _ => {
                        let add = |n: &mut u8| *n = n.wrapping_add(value);
                        prop_assert_eq!(few.get_mut(&key).map(add), model.get_mut(&key).map(add));
                        let found = few.find_mut(|other| other.cmp(&key)).map(|(key, value)| (*key, *value));
                        prop_assert_eq!(found, model.get(&key).map(|value| (key, *value)));
                    }
                }
                prop_assert!(few.iter().eq(model.iter()) && few.keys().eq(model.keys()));
                prop_assert!(few.values().eq(model.values()) && few.iter_mut().eq(model.iter_mut()));
                prop_assert_eq!((few.len(), few.is_empty()), (model.len(), model.is_empty()));
                prop_assert_eq!(few.get(&key), model.get(&key));
            }
        }
    }
}
