//! ProcScan Aggregator: collects forbidden-process reports from ProcScan agents, blocks the offending apps at the Higress
//! gateway, and notifies their tenants.
//!
//! Data flows in one direction:
//!
//! ```text
//! discovery ─► collector ─► ledger_task ─► policy_task ─► output
//!                               │           ▲    │
//!                               │           │    ▼
//!                               │        cluster_facts
//!                               └────────────────┴────────► api
//! ```
//!
//! Six channels go back, such as Pods that are gone and written notices: `docs/architecture.md` lists them.
//!
//! Each arrow is a bounded channel or a `watch`. One task owns each mutable state. [`run`] is the only place that
//! knows all modules. The rules are in [`procscan_core`].

// `println!` and `eprintln!` panic when the reader has closed the output; `commands/printed.rs` does not.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod api;
mod args;
mod clock;
mod cluster_facts;
mod collector;
mod commands;
pub mod config;
mod counters;
mod decided;
mod discovery;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod hex;
pub mod kubernetes;
pub mod leader;
pub mod ledger_task;
mod metrics;
mod open_files;
pub mod output;
mod plain_file;
mod policy_task;
mod progress;
mod reason;
mod reload;
pub mod run;
pub mod state;
mod telemetry;
mod time_argument;
mod tls;
mod views;
mod wire_names;
mod worker;

pub use commands::main;
