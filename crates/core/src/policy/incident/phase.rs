//! The phase of an incident, and the hold on its block.

use crate::Moment;
use crate::policy::Brake;

/// The phase of an incident.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The App is accused, and neither warned, held nor blocked: not due, or exempt.
    Watched,
    /// The tenant is warned, and its App will be blocked.
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
        /// The block was decided in dry-run, so it has no effect.
        dry_run: bool,
        /// Since when a brake holds its release; `None` if none does.
        release_held: Option<Moment>,
    },
    /// Over. The incident is remembered for a while, because offending again continues it.
    Ended {
        /// Since when.
        at: Moment,
    },
}

/// Whether a brake holds the block of an App, or an operator has approved it. It outlasts the phase: an incident that
/// ends and begins again is still held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::policy) enum Hold {
    /// No brake holds the block.
    #[default]
    Free,
    /// A brake holds it since that moment. Boxed, because few incidents are held.
    Held(Box<(Moment, Brake)>),
    /// An operator has approved the block. Neither the brakes nor the grace apply for this offence.
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

    /// Ends an approval, because it was for one offence. A brake's hold stays.
    pub(in crate::policy) fn end_approval(&mut self) {
        if self.is_approved() {
            *self = Self::Free;
        }
    }
}
