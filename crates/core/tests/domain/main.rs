//! The domain's tests. They are one program, because each program takes long to link.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod agent_traps;
mod answers;
mod aside;
mod bad_rule;
mod brakes;
mod clocks;
mod common;
mod decoys;
mod examined;
mod gone;
mod hearing;
mod keep;
mod ledger_laws;
mod misnamed;
mod notices;
mod one_of_several;
mod outlasted;
mod pods;
mod policy;
mod policy_laws;
mod proof;
mod reasons;
mod refreshes;
mod refused;
mod renamed;
mod resources;
mod sharing;
mod simulate;
mod soak;
mod storm;
mod survivors;
mod taken_over;
mod unlearned;
mod unreached;
mod withheld;
