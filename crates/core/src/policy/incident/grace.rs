//! The grace that a tenant is given before a block.

use std::sync::Arc;

use crate::Moment;
use crate::report::Record;

/// A grace that has begun. It counts as given when its warning has been written (see
/// [`super::Incident::grace_written_at`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::policy) struct Grace {
    /// When it ends.
    pub(in crate::policy) until: Moment,
    /// The accusation that it was given for. Nothing covered it then.
    pub(in crate::policy) record: Arc<Record>,
    /// Since when all accusations of the App have been covered, although the incident goes on.
    pub(in crate::policy) idle_since: Option<Moment>,
}
