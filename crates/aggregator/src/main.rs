//! Calls the library, which has all the code, so that tests can use it.

#![deny(clippy::print_stdout, clippy::print_stderr)]

use std::process::ExitCode;

/// Snapshots and plans consist of many small pieces that one thread makes and another thread drops. The C library's
/// allocator never gives back the memory of such pieces.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    procscan_aggregator::main()
}
