//! See the library: everything is there, so that tests can reach it.

use std::process::ExitCode;

fn main() -> ExitCode {
    procscan_aggregator::main()
}
