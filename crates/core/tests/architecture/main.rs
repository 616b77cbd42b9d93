//! Tests that every crate of this workspace follows the rules of docs/architecture.md.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod layers;
mod modules;
mod sizes;
mod sources;

use std::path::{Path, PathBuf};

/// The crates of the workspace, by their folders.
const CRATES: [&str; 5] = ["crates/core", "crates/agent", "crates/aggregator", "bench", "e2e"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The sources of a crate; `None` where the crate is not there, as in a copy of a part of the workspace.
fn sources_of(folder: &str) -> Option<PathBuf> {
    Some(root().join(folder).join("src")).filter(|src| src.is_dir())
}
