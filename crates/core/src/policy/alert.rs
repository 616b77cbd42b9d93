//! Conditions that an operator should look at now.

use super::brake::Brake;

/// A condition that an operator should look at now. It is raised once, not once per App.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Alert {
    /// A brake holds blocks or releases that the rules would have made.
    Brake {
        /// Which brake.
        brake: Brake,
        /// What the brake holds and what the operator can do, for people.
        message: String,
    },
    /// An exemption has no effect, because it would open too many tenants at once.
    Exemption {
        /// The exemption, the number of tenants, and what the operator can do.
        message: String,
    },
    /// The wall clock says that a date has passed, but too little monotonic time has been measured.
    Clock {
        /// What follows from the doubt, for people.
        message: String,
    },
    /// More tenants are to be notified than one round allows.
    Notices {
        /// How many wait for the next round.
        waiting: usize,
    },
}
