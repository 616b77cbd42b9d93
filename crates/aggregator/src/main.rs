//! See the library: everything is there, so that tests can reach it.

#![deny(clippy::print_stdout, clippy::print_stderr)]

use std::process::ExitCode;

/// Snapshots and plans are many small pieces, made on one thread and dropped on another: the C library's allocator keeps what they
/// took for ever.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    procscan_aggregator::main()
}
