//! Which accused namespaces have changed since they were looked up, according to the watches. Pure and shared: the
//! watches write, and the task reads.
//!
//! Of an object only a fingerprint of the fields that `lookup` reads is held, and only in accused namespaces. That is
//! enough to know that nothing has changed. Facts come from direct reads only.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use procscan_core::Moment;
use procscan_core::names::Text;

use super::listing::MAX_OBJECTS;
use super::resource_version::{compare, reaches};

/// A watch proves nothing if its bookmarks have not shown for this long that it has reported everything. The API server
/// sends a bookmark each minute, and each one covers the time up to the list after the bookmark before it.
pub(super) const MAX_SILENCE: Duration = Duration::from_mins(3);

/// The kinds of objects that are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Kind {
    /// Namespaces.
    Namespaces,
    /// Pods.
    Pods,
    /// Services.
    Services,
    /// Ingresses.
    Ingresses,
    /// Routes of the Gateway API, which some clusters do not have.
    HttpRoutes,
}

impl Kind {
    pub(super) const ALL: [Self; 5] =
        [Self::Namespaces, Self::Pods, Self::Services, Self::Ingresses, Self::HttpRoutes];
}

/// The state of one watch.
#[derive(Clone, Debug)]
enum Watched {
    /// It has reported everything up to a moment.
    Until {
        at: Moment,
        /// The version of the last bookmark.
        version: String,
        /// The version that the next bookmarks have to reach to prove a later moment.
        goal: Option<Goal>,
    },
    /// The cluster has no such kind.
    Absent,
}

/// A version that the cluster had at `at`, or reached later.
#[derive(Clone, Debug)]
struct Goal {
    version: String,
    at: Moment,
}

/// The reports of the watches.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// The accused namespaces: changes in these are noted.
    accused: BTreeSet<Text>,
    /// The namespaces with changes since the last look-up of them began.
    changed: BTreeSet<Text>,
    watches: BTreeMap<Kind, Watched>,
    fingerprints: HashMap<Text, HashMap<(Kind, Box<str>), u64>>,
}

impl Changes {
    /// Notes changes in these namespaces from now on, and in no others. Earlier changes in a new one are not known, and a
    /// look-up of it that runs already may not have seen them. So a new one counts as changed.
    pub(super) fn note_in<'a>(&mut self, accused: impl Iterator<Item = &'a Text>) {
        let before = std::mem::replace(&mut self.accused, accused.cloned().collect());
        let Self { accused, changed, fingerprints, .. } = self;
        changed.extend(accused.difference(&before).cloned());
        changed.retain(|namespace| accused.contains(namespace));
        fingerprints.retain(|namespace, _| accused.contains(namespace));
    }

    /// A watch begins. It does not report earlier changes, so all namespaces count as changed.
    pub(super) fn begin(&mut self, kind: Kind, at: Moment) {
        self.changed.clone_from(&self.accused);
        for of_namespace in self.fingerprints.values_mut() {
            of_namespace.retain(|(other, _), _| *other != kind);
        }
        self.watches.insert(kind, Watched::Until { at, version: String::new(), goal: None });
    }

    /// The cluster does not have this kind, so nothing of it changes.
    pub(super) fn is_absent(&mut self, kind: Kind) {
        self.watches.insert(kind, Watched::Absent);
    }

    /// A watch can't go on: changes from now on are not known.
    pub(super) fn end(&mut self, kind: Kind) {
        self.watches.remove(&kind);
    }

    /// Whether no new list is needed: bookmarks have not reached the version of the last one yet, or nothing is watched.
    pub(super) fn has_goal(&self, kind: Kind) -> bool {
        !matches!(self.watches.get(&kind), Some(Watched::Until { goal: None, .. }))
    }

    /// A list that began at `at` had that version: a bookmark that reaches it shows that everything up to `at` has been
    /// reported. Returns `false` if the cluster's versions have gone back, so that versions prove nothing.
    pub(super) fn expect(&mut self, kind: Kind, expected: String, at: Moment) -> bool {
        let Some(Watched::Until { version, goal, .. }) = self.watches.get_mut(&kind) else { return true };
        if compare(&expected, version).is_some_and(Ordering::is_lt) {
            return false;
        }
        *goal = Some(Goal { version: expected, at });
        true
    }

    /// A bookmark has come. Only bookmarks count: an event may be one of a backlog. Returns whether nothing more is
    /// expected.
    pub(super) fn reach(&mut self, kind: Kind, reached: &str) -> bool {
        let Some(Watched::Until { at, version, goal }) = self.watches.get_mut(&kind) else { return false };
        reached.clone_into(version);
        let is_reached = |goal: &mut Goal| reaches(reached, &goal.version);
        if let Some(goal) = goal.take_if(is_reached) {
            *at = goal.at;
        }
        goal.is_none()
    }

    /// The version that no bookmark has reached within [`MAX_SILENCE`]; `None` if they keep up.
    pub(super) fn behind(&self, kind: Kind, now: Moment) -> Option<&str> {
        match self.watches.get(&kind) {
            Some(Watched::Until { goal: Some(goal), .. }) if now.since(goal.at) > MAX_SILENCE => {
                Some(&goal.version)
            }
            _ => None,
        }
    }

    /// Notes an object with a fingerprint of its relevant fields; `None` if it is gone. Returns whether this marks its
    /// namespace as changed.
    pub(super) fn note(&mut self, kind: Kind, namespace: &str, name: &str, print: Option<u64>) -> bool {
        let Some(namespace) = self.accused.get(namespace).cloned() else { return false };
        let prints = self.fingerprints.entry(namespace.clone()).or_default();
        let key = (kind, Box::from(name));
        let before = match print {
            // An object without a place counts as a change each time.
            Some(print) if prints.len() < MAX_OBJECTS || prints.contains_key(&key) => {
                prints.insert(key, print)
            }
            _ => {
                prints.remove(&key);
                None
            }
        };
        (print.is_none() || before != print) && self.changed.insert(namespace)
    }

    /// A look-up of the namespace begins: changes from now on make another one necessary.
    pub(super) fn begin_lookup(&mut self, namespace: &Text) {
        self.changed.remove(namespace);
    }

    /// The look-up of the namespace failed, or has to be repeated.
    pub(super) fn mark_changed(&mut self, namespace: &Text) {
        if self.accused.contains(namespace) {
            self.changed.insert(namespace.clone());
        }
    }

    /// All accused namespaces have to be looked up again.
    pub(super) fn mark_all_changed(&mut self) {
        self.changed.clone_from(&self.accused);
    }

    /// Whether something may have changed in the namespace since the last look-up of it began.
    pub(super) fn has_changed(&self, namespace: &Text) -> bool {
        !self.accused.contains(namespace) || self.changed.contains(namespace)
    }

    /// The moment up to which all watches have reported everything; `None` if one of them has been silent for too long
    /// or is not possible.
    pub(super) fn reported_until(&self, now: Moment) -> Option<Moment> {
        let mut until: Option<Moment> = None;
        for kind in Kind::ALL {
            match self.watches.get(&kind)? {
                Watched::Absent => {}
                Watched::Until { at, .. } if now.since(*at) > MAX_SILENCE => return None,
                Watched::Until { at, .. } => until = Some(until.map_or(*at, |other| other.min(*at))),
            }
        }
        until
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::new(Duration::from_secs(seconds), Timestamp::UNIX_EPOCH)
    }

    fn watching() -> (Changes, Text) {
        let (mut changes, namespace) = (Changes::default(), Text::from("ns-a"));
        changes.note_in([&namespace].into_iter());
        for kind in Kind::ALL {
            changes.begin(kind, at(100));
        }
        (changes, namespace)
    }

    fn report_until(changes: &mut Changes, kind: Kind, seconds: u64) {
        changes.expect(kind, seconds.to_string(), at(seconds));
        changes.reach(kind, &seconds.to_string());
    }

    #[test]
    fn only_read_fields_make_a_change_and_only_in_accused_namespaces() {
        let (mut changes, namespace) = watching();
        assert!(changes.has_changed(&namespace), "changes before the watch began are not known");
        changes.begin_lookup(&namespace);
        assert!(changes.note(Kind::Pods, "ns-a", "web", Some(1)), "the first time");
        changes.begin_lookup(&namespace);
        assert!(!changes.note(Kind::Pods, "ns-a", "web", Some(1)) && !changes.has_changed(&namespace));
        assert!(!changes.note(Kind::Pods, "ns-b", "web", Some(2)), "not accused");
        for print in [Some(2), None, Some(2)] {
            assert!(changes.note(Kind::Pods, "ns-a", "web", print), "{print:?}");
            changes.begin_lookup(&namespace);
        }
        assert!(changes.note(Kind::Services, "ns-a", "web", Some(2)), "another kind");
        assert!(changes.has_changed(&namespace));
        assert!(changes.has_changed(&"ns-b".into()), "nothing is noted of it");
    }

    #[test]
    fn everything_is_reported_only_as_far_as_the_slowest_watch_has_reported() {
        let (mut changes, _) = watching();
        let reported =
            |changes: &Changes, now| changes.reported_until(at(now)).map(|until| until.uptime().as_secs());
        assert_eq!(reported(&changes, 110), Some(100));
        for kind in Kind::ALL.into_iter().skip(1) {
            report_until(&mut changes, kind, 150);
        }
        assert_eq!(reported(&changes, 160), Some(100));
        report_until(&mut changes, Kind::Namespaces, 140);
        assert_eq!(reported(&changes, 160), Some(140));
        assert_eq!(reported(&changes, 321), None, "silent for too long");
        changes.is_absent(Kind::HttpRoutes);
        assert_eq!(reported(&changes, 160), Some(140));
        changes.end(Kind::Pods);
        report_until(&mut changes, Kind::Pods, 170);
        assert_eq!(reported(&changes, 170), None, "it has to begin anew");
    }

    #[test]
    fn fingerprints_are_forgotten_with_their_namespace_and_with_their_watch() {
        let (mut changes, namespace) = watching();
        changes.note(Kind::Pods, "ns-a", "web", Some(1));
        changes.begin(Kind::Pods, at(200));
        changes.begin_lookup(&namespace);
        assert!(changes.note(Kind::Pods, "ns-a", "web", Some(1)));
        changes.note_in([].into_iter());
        assert!(changes.fingerprints.is_empty() && changes.changed.is_empty());
    }

    #[test]
    fn an_object_without_a_place_among_the_fingerprints_is_a_change_each_time() {
        let (mut changes, namespace) = watching();
        for n in 0..MAX_OBJECTS {
            changes.note(Kind::Pods, "ns-a", &n.to_string(), Some(1));
        }
        for _ in 0..2 {
            changes.begin_lookup(&namespace);
            assert!(changes.note(Kind::Pods, "ns-a", "one more", Some(1)));
        }
        assert_eq!(changes.fingerprints["ns-a"].len(), MAX_OBJECTS);
    }
}
