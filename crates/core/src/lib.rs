//! The domain of ProcScan Aggregator, pure: no I/O, no tasks, no clock.
//!
//! Data flows in one direction:
//!
//! ```text
//! report ─► ledger ─► snapshot ─► policy ─► plan ─► resources
//! ```
//!
//! * [`report`]: the answer of one agent in one round, decoded tolerantly and within limits.
//! * [`ledger`]: the evidence of every violation over time; presence and absence both need evidence.
//! * [`snapshot`]: the immutable read view of the ledger, with its coverage.
//! * [`identity`]: which App a Pod belongs to, by the Pod's own labels and owners.
//! * [`policy`]: decides which Apps are blocked and which tenants are notified, with a reason for each decision.
//! * [`plan`]: the desired blocks and notifications.
//! * [`resources`]: the plan as Kubernetes objects.
//! * `shares`: how a limited amount is shared among many.
//! * [`size`]: sizes in bytes as operators write them.
//! * [`state`]: the persisted form of incidents, exemptions and the mode, so that a restart forgets nothing.
//!
//! Time is always passed in, as a [`Moment`]: the caller reads the clocks.

#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod clearing;
pub mod decision;
pub mod exemption;
mod hash;
pub mod identity;
pub mod ledger;
pub mod names;
mod ordered_lookups;
pub mod plan;
pub mod policy;
pub mod report;
pub mod resources;
mod shares;
pub mod size;
pub mod snapshot;
mod sorted_vec;
pub mod state;
pub mod time;

pub use time::Moment;
