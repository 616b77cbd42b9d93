//! The reference node agent, and a simulated fleet of agents.
//!
//! The agent ([`server`]) scans real processes and follows the wire contract. The nodes of the fleet ([`simulate`])
//! misbehave on command, also in the ways of the real agent.

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
