//! The grace that a tenant is given before a block.

use std::sync::Arc;

use crate::Moment;
use crate::report::Record;

/// A grace that has begun. It counts as given when its tenant has been told (see [`Incident::grace_told`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::policy) struct Grace {
    /// When it ends.
    pub(in crate::policy) until: Moment,
    /// What it was given for: an accusation that nothing covered then.
    pub(in crate::policy) record: Arc<Record>,
    /// Since when all that the App is accused of has been covered, although the incident goes on.
    pub(in crate::policy) idle_since: Option<Moment>,
}
