//! Measures the aggregator on this machine, beside the limits of the machine: a bare loop over raw sockets for the rounds, nginx
//! for the API. It also kills the aggregator and checks the remaining files, and attacks it with hostile agents, tenants and
//! clients. Every part runs in its own process, because its CPU time and memory are measured alone.

mod aggregator;
mod api;
mod attack;
mod bare;
mod fleet;
mod load;
mod nginx;
mod process;
mod rounds;
mod soak;
mod table;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Measures the aggregator beside the limits of this machine")]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Rounds over simulated fleets, beside a bare loop over the same fleets
    Rounds(rounds::Options),
    /// The API, beside nginx with the same bytes as files
    Api(api::Options),
    /// Kills while the fleet misbehaves, and checks of the output after each
    Soak(soak::Options),
    /// Faulty agents, flooding tenants and hostile clients at once, and their effect on healthy nodes and probes
    Attack(attack::Options),
    /// Hostile clients of the API
    #[command(hide = true)]
    Clients(attack::ClientOptions),
    /// A simulated fleet that takes commands from its standard input
    #[command(hide = true)]
    Fleet(fleet::Options),
    /// One pass over a fleet by raw sockets
    #[command(hide = true)]
    Bare(bare::Options),
}

fn main() -> ExitCode {
    let done = match Args::parse().what {
        What::Rounds(options) => rounds::run(&options),
        What::Api(options) => api::run(&options),
        What::Soak(options) => soak::run(&options),
        What::Attack(options) => attack::run(&options),
        What::Clients(options) => attack::run_clients(&options),
        What::Fleet(options) => fleet::run(&options),
        What::Bare(options) => bare::run(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
