//! The commands of operators against a fake API: their requests, their output, and their errors.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod closed;
mod commands;
mod fake_api;
mod reading;
mod trouble;
