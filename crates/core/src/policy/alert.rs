//! What an operator should look at now.

use super::brake::Brake;

/// Something that an operator should look at now. Raised once, not once per App.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Alert {
    /// A brake holds what the rules would have done.
    Brake {
        /// Which one.
        brake: Brake,
        /// What it holds and what to do, for people.
        message: String,
    },
    /// An exemption is withheld, because it would open too many tenants at once.
    Exemption {
        /// The exemption, the number of tenants, and what to do.
        message: String,
    },
    /// The wall clock says that a date has passed, but too little monotonic time has been measured.
    Clock {
        /// What follows from it.
        message: String,
    },
    /// More tenants are to be told than one round may.
    Notices {
        /// How many wait for the next round.
        waiting: usize,
    },
}
