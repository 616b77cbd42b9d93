//! The reference node agent, and a simulator of many.
//!
//! The aggregator is only as good as what it was tried against. This crate gives it two honest counterparts: a small
//! agent that looks at real processes and answers the wire contract as it was meant ([`server`]), and a fleet of
//! simulated nodes that misbehave on command, including the ways the agents in the field misbehave ([`simulate`]).

#![deny(clippy::print_stdout, clippy::print_stderr)]

#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod proc;
pub mod record;
pub mod rules;
pub mod server;
pub mod simulate;

#[cfg(test)]
mod testing;
