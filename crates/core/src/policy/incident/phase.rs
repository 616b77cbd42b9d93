//! What has come of an incident.

use crate::Moment;
use crate::policy::Brake;

/// What has come of an incident.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing yet: not due, or exempt.
    Watched,
    /// The tenant is told, and will be blocked.
    Grace {
        /// When.
        until: Moment,
    },
    /// A brake holds the block: only an approval blocks it.
    Held,
    /// Blocked.
    Blocked {
        /// Since when.
        since: Moment,
        /// Decided in dry-run, and so without effect.
        dry_run: bool,
        /// Since when a brake holds its release; `None` if none does.
        release_held: Option<Moment>,
    },
    /// Over. Kept for a while, because offending again continues it.
    Ended {
        /// Since when.
        at: Moment,
    },
}

/// What the brakes and an operator have said of the block of an App. It outlasts the phase: an incident that ends and begins again is
/// still held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::policy) enum Hold {
    /// No brake holds the block.
    #[default]
    Free,
    /// A brake holds it since that moment. Boxed, because few incidents are held.
    Held(Box<(Moment, Brake)>),
    /// An operator has approved it: neither the brakes nor the grace are asked again for this offence.
    Approved,
}

impl Hold {
    /// Held by `brake` since `since`.
    pub(in crate::policy) fn by(brake: Brake, since: Moment) -> Self {
        Self::Held(Box::new((since, brake)))
    }

    /// The brake that holds the block, and since when; `None` if none does.
    pub(in crate::policy) fn brake(&self) -> Option<&(Moment, Brake)> {
        match self {
            Self::Held(held) => Some(held),
            Self::Free | Self::Approved => None,
        }
    }

    /// Whether an operator has approved the block.
    pub(in crate::policy) fn is_approved(&self) -> bool {
        *self == Self::Approved
    }

    /// Ends an approval: what was approved was one offence. A brake's hold stays.
    pub(in crate::policy) fn end_approval(&mut self) {
        if self.is_approved() {
            *self = Self::Free;
        }
    }
}
