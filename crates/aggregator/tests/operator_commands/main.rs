//! The operators' commands against an API that is played: what is asked, what is printed, and how refusals are told.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod acting;
mod closed;
mod played;
mod reading;
mod trouble;
