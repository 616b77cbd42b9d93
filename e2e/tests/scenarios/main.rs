//! The whole service against a real Kubernetes API server. Started by `e2e/run`, which makes the network for it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, unreachable_pub)]

mod stage;

mod control_plane;
mod enforcement;
mod failover;
mod fleet;
mod handover;
mod history;
mod hostile;
mod kinds;
mod many_namespaces;
mod monitoring;
mod objects;
mod operators;
mod recovery;
mod scale;
mod state;
mod upgrade;
mod world;
