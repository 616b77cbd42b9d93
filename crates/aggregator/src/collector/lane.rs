//! The targets that wait to be asked, and the places that their requests take.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::time::Duration;

use procscan_core::names::Text;
use tokio::task;
use tokio::time::Instant;

/// A request without an answer for so long becomes a slow one: another request may take its place, and up to as many slow requests
/// wait as there are places. Agents answer within milliseconds or not at all. When many stop answering at once, the other targets
/// must not wait for their timeouts.
const SLOW_AFTER: Duration = Duration::from_secs(1);

/// Targets that wait to be asked, and the places that they may take.
#[derive(Debug)]
pub(super) struct Lane {
    /// The targets by the time when they are due. No list in it is empty. All targets of a slot are due at the same time.
    queue: BTreeMap<Instant, Vec<Text>>,
    places: usize,
    /// Requests that hold a place.
    holding: HashSet<task::Id>,
    /// When each of these requests began, in order. Some of them may be done.
    begun: VecDeque<(Instant, task::Id)>,
    /// Slow requests, whose places others may take; no more than there are places.
    slow: HashSet<task::Id>,
}

impl Lane {
    pub(super) fn new(places: usize) -> Self {
        Self {
            queue: BTreeMap::new(),
            places,
            holding: HashSet::new(),
            begun: VecDeque::new(),
            slow: HashSet::new(),
        }
    }

    pub(super) fn places(&self) -> usize {
        self.places
    }

    /// Whether no target waits.
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Lets `address` wait until `due`.
    pub(super) fn push(&mut self, due: Instant, address: Text) {
        self.queue.entry(due).or_default().push(address);
    }

    /// Takes the target that is due first, with its time.
    pub(super) fn pop(&mut self) -> Option<(Instant, Text)> {
        let mut first = self.queue.first_entry()?;
        let (due, address) = (*first.key(), first.get_mut().pop()?);
        if first.get().is_empty() {
            first.remove();
        }
        Some((due, address))
    }

    /// Removes waiting targets that are not wanted any more.
    pub(super) fn retain(&mut self, is_wanted: impl Fn(&Text) -> bool) {
        self.queue.retain(|_, addresses| {
            addresses.retain(&is_wanted);
            !addresses.is_empty()
        });
    }

    /// When the next target is to be asked. `None` while no place is free and no request can become a slow one.
    pub(super) fn next(&self) -> Option<Instant> {
        let (due, _) = self.queue.first_key_value()?;
        if self.holding.len() < self.places {
            return Some(*due);
        }
        let (begun, _) = self.begun.front().filter(|_| self.slow.len() < self.places)?;
        Some((*due).max(*begun + SLOW_AFTER))
    }

    /// Requests that have held their places for [`SLOW_AFTER`] become slow ones.
    pub(super) fn move_slow_aside(&mut self, now: Instant) {
        while self.slow.len() < self.places
            && let Some((_, id)) = self.begun.pop_front_if(|(begun, _)| *begun + SLOW_AFTER <= now)
        {
            if self.holding.remove(&id) {
                self.slow.insert(id);
            }
        }
    }

    /// A request takes a place at `now`.
    pub(super) fn begin(&mut self, id: task::Id, now: Instant) {
        self.holding.insert(id);
        self.begun.push_back((now, id));
    }

    pub(super) fn finished(&mut self, id: task::Id) {
        if !self.holding.remove(&id) {
            self.slow.remove(&id);
        }
    }

    /// The targets that wait.
    pub(super) fn waiting(&self) -> impl Iterator<Item = &Text> {
        self.queue.values().flatten()
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinSet;

    use super::*;

    #[test]
    fn the_target_that_is_due_first_is_asked_first_and_removed_ones_are_forgotten() {
        let (mut lane, begin) = (Lane::new(2), Instant::now());
        for (second, address) in [(2, "c"), (1, "a"), (2, "d"), (1, "b"), (3, "e")] {
            lane.push(begin + Duration::from_secs(second), address.into());
        }
        lane.retain(|address| !matches!(&**address, "b" | "e"));
        assert_eq!(lane.waiting().count(), 3);
        let mut order = Vec::new();
        while let Some((due, address)) = lane.pop() {
            order.push(((due - begin).as_secs(), address));
        }
        assert_eq!(order, [(1, "a".into()), (2, "d".into()), (2, "c".into())]);
        assert_eq!((lane.next(), lane.is_empty()), (None, true), "so that a round can end");
    }

    #[tokio::test]
    async fn a_request_without_an_answer_for_a_second_leaves_its_place_to_another() {
        let (mut lane, mut requests) = (Lane::new(2), JoinSet::new());
        let begin = Instant::now();
        let second = |n: u64| begin + Duration::from_secs(n);
        let mut ask_two = |lane: &mut Lane, at| {
            [(); 2].map(|()| {
                let id = requests.spawn(std::future::pending::<()>()).id();
                lane.begin(id, at);
                id
            })
        };
        lane.push(begin, "10.0.0.1:9000".into());
        assert_eq!(lane.next(), Some(begin));
        let [first, _] = ask_two(&mut lane, begin);
        assert_eq!(lane.next(), Some(second(1)), "all places are taken until then");
        lane.move_slow_aside(begin);
        assert_eq!((lane.holding.len(), lane.slow.len()), (2, 0));
        lane.move_slow_aside(second(1));
        assert_eq!((lane.holding.len(), lane.slow.len(), lane.next()), (0, 2, Some(begin)));
        let [done, _] = ask_two(&mut lane, second(1));
        lane.move_slow_aside(second(9));
        assert_eq!((lane.holding.len(), lane.next()), (2, None), "no more slow requests than places");
        lane.finished(first);
        assert_eq!(lane.next(), Some(second(2)));
        lane.finished(done);
        assert_eq!(lane.next(), Some(begin), "there is a place");
        lane.move_slow_aside(second(9));
        assert_eq!((lane.holding.len(), lane.slow.len(), lane.begun.len()), (0, 2, 0));
    }
}
