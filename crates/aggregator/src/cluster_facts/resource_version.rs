//! The order of resourceVersions.

use std::cmp::Ordering;

/// Compares resourceVersions. They are numbers; of others only equality is known.
pub(super) fn compare(version: &str, other: &str) -> Option<Ordering> {
    if version == other {
        return Some(Ordering::Equal);
    }
    Some(version.parse::<u64>().ok()?.cmp(&other.parse::<u64>().ok()?))
}

/// Whether `version` is `other` or a later one.
pub(super) fn reaches(version: &str, other: &str) -> bool {
    !version.is_empty() && compare(version, other).is_some_and(Ordering::is_ge)
}
