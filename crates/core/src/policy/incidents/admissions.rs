//! The decisions about exemptions: whether each takes effect.

use std::collections::BTreeMap;

#[cfg(doc)]
use crate::exemption::Exemption;

/// Which exemptions may open blocked Apps.
#[derive(Clone, Debug, Default)]
pub(in crate::policy) struct Admissions {
    /// By [`Exemption::identity`]: `None` if it took effect, otherwise why it is withheld.
    pub(in crate::policy) known: BTreeMap<String, Option<Withheld>>,
    /// Why Apps that are blocked in namespaces which may not be blocked stay closed, and of how many tenants they
    /// are.
    pub(in crate::policy) refusals: Option<(Withheld, usize)>,
}

/// An exemption that has no effect because it would open too many tenants.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Withheld {
    /// Where it is declared; see [`Exemption::place`].
    pub place: String,
    /// How many tenants it would open, and what an operator can do.
    pub reason: String,
}
