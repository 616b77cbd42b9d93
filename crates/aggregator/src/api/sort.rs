//! The order of lists, and which of their entries are on a page.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use jiff::Timestamp;
use procscan_core::names::Text;
use serde::{Deserialize, Serialize};

use super::parameters::{Given, MAX_LIMIT, Order};
use super::problem::Problem;

/// A value by which lists are ordered.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum SortValue {
    /// Comes before every other value.
    None,
    /// A number, or a time in microseconds.
    Number(i64),
    /// A text, ordered by its bytes.
    Text(Text),
}

impl From<&Text> for SortValue {
    fn from(text: &Text) -> Self {
        Self::Text(text.clone())
    }
}

impl From<&str> for SortValue {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl From<Timestamp> for SortValue {
    fn from(time: Timestamp) -> Self {
        Self::Number(time.as_microsecond())
    }
}

impl From<usize> for SortValue {
    fn from(number: usize) -> Self {
        Self::Number(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl<T: Into<Self>> From<Option<T>> for SortValue {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::None, T::into)
    }
}

/// The place of an entry: its value, and what tells it from entries with the same one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Place(pub(super) Vec<SortValue>);

/// The place of the last entry of a page, and the order that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Cursor {
    by: String,
    after: Place,
}

/// The page that a query asks for.
#[derive(Clone, Debug)]
pub(super) struct Paging {
    /// The order of the list.
    pub(super) order: Order,
    /// How many entries the page has at most.
    pub(super) limit: usize,
    /// The place of the last entry of the page before.
    pub(super) after: Option<Place>,
}

impl Paging {
    /// As `given`, in this `default` order without a `sort`.
    pub(super) fn of(given: &Given, default: Order) -> Result<Self, Problem> {
        Self::with_limit(given, default, MAX_LIMIT)
    }

    /// The same with so many entries without a `limit`.
    pub(super) fn with_limit(given: &Given, default: Order, entries: usize) -> Result<Self, Problem> {
        let order = given.order(default);
        let cursor = given.cursor(|cursor: &Cursor| cursor.by == name_of(order))?;
        Ok(Self { order, limit: given.limit(entries), after: cursor.map(|cursor| cursor.after) })
    }

    /// The cursor of the page after the entry at `place`.
    pub(super) fn cursor(&self, place: Place) -> Cursor {
        Cursor { by: name_of(self.order), after: place }
    }

    /// Whether the entry at `place` comes after the page before.
    pub(super) fn is_new(&self, place: &Place) -> bool {
        self.after.as_ref().is_none_or(|after| self.compare(place, after) == Ordering::Greater)
    }

    fn compare(&self, a: &Place, b: &Place) -> Ordering {
        let order = a.cmp(b);
        if self.order.is_descending { order.reverse() } else { order }
    }
}

/// The order as requests write it.
fn name_of(Order { by, is_descending }: Order) -> String {
    if is_descending { format!("-{by}") } else { by.to_owned() }
}

/// The entries of one page, while the list is looked through. No more of them are in memory at any time.
#[derive(Debug)]
pub(super) struct Selection<T> {
    paging: Paging,
    entries: BTreeMap<Place, T>,
    /// How many entries were given that belong on this page or a later one.
    count: usize,
}

impl<T> Selection<T> {
    /// No entry yet.
    pub(super) fn new(paging: Paging) -> Self {
        Self { paging, entries: BTreeMap::new(), count: 0 }
    }

    /// Takes an entry. Of two at one place the later one counts.
    pub(super) fn add(&mut self, place: Place, entry: T) {
        if !self.paging.is_new(&place) {
            return;
        }
        if self.entries.insert(place, entry).is_none() {
            self.count += 1;
        }
        if self.entries.len() > self.paging.limit {
            if self.paging.order.is_descending {
                self.entries.pop_first();
            } else {
                self.entries.pop_last();
            }
        }
    }

    /// How many entries were given that belong on this page or a later one.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// The last entry of the page, once the page is full and another entry follows it.
    pub(super) fn last_of_full(&self) -> Option<&T> {
        let last = if self.paging.order.is_descending {
            self.entries.first_key_value()
        } else {
            self.entries.last_key_value()
        };
        last.filter(|_| self.count > self.paging.limit).map(|(_, entry)| entry)
    }

    /// The entries in their order, with their places.
    pub(super) fn into_entries(self) -> Vec<(Place, T)> {
        let entries = self.entries.into_iter();
        if self.paging.order.is_descending { entries.rev().collect() } else { entries.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_follow_one_another_in_both_directions_and_no_entry_is_missed_or_shown_twice() {
        let place = |n: usize| Place(vec![SortValue::from(n / 3), SortValue::from(&*format!("{n:02}"))]);
        for is_descending in [false, true] {
            for limit in 1..=22 {
                let (mut seen, mut after) = (Vec::new(), None);
                loop {
                    let paging = Paging { order: Order::of("n", is_descending), limit, after: after.take() };
                    let mut selection = Selection::new(paging);
                    // In no order.
                    (0..20).for_each(|n| selection.add(place(n * 7 % 20), n * 7 % 20));
                    let (count, is_full) = (selection.count(), selection.last_of_full().is_some());
                    assert_eq!(is_full, count > limit);
                    let page = selection.into_entries();
                    assert_eq!(page.len(), count.min(limit));
                    after = page.last().map(|(place, _)| place.clone());
                    seen.extend(page.into_iter().map(|(_, n)| n));
                    if !is_full {
                        break;
                    }
                }
                let mut expected: Vec<usize> = (0..20).collect();
                if is_descending {
                    expected.reverse();
                }
                assert_eq!(seen, expected, "{limit} {is_descending}");
            }
        }
    }

    #[test]
    fn no_value_comes_first_and_all_values_are_read_as_they_were_written() {
        let values = [SortValue::None, SortValue::Number(-1), SortValue::Number(7), SortValue::from("a")];
        assert!(values.is_sorted());
        for value in values {
            let written = serde_json::to_string(&value).unwrap();
            assert_eq!(serde_json::from_str::<SortValue>(&written).unwrap(), value, "{written}");
        }
    }
}
