//! The subcommands, one file each, and what they share: exit codes and signals.

mod agent;
mod check_config;
mod client;
mod crds;
mod decisions;
mod demo;
mod emergency;
mod exempt;
mod incidents;
mod operator_commands;
mod plan;
mod printed;
mod run;
mod service;
mod simulate;
mod state_copy;
mod status;

use std::fmt;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use clap::error::Error as ArgumentError;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

use self::printed::note;
use crate::args::operators::Operate;
use crate::args::{Arguments, Command};
use crate::config::ConfigError;

/// How long the end waits for threads that are blocked in a system call.
const FLUSH_TIME: Duration = Duration::from_millis(200);

/// Why a command fails, which decides its exit code.
#[derive(Debug)]
enum CommandError {
    /// Arguments that are no command, as the parser explains it: exit code 2.
    Arguments(String),
    /// Bad usage or configuration: exit code 2, one line for each mistake.
    Usage(String),
    /// Anything else: exit code 1.
    Other(anyhow::Error),
    /// Nothing has failed, and something would change: exit code 3.
    Changes,
}

impl From<ConfigError> for CommandError {
    fn from(error: ConfigError) -> Self {
        Self::Usage(error.to_string())
    }
}

impl From<anyhow::Error> for CommandError {
    fn from(error: anyhow::Error) -> Self {
        Self::Other(error)
    }
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Arguments(message) | Self::Usage(message) => f.write_str(message),
            // The whole chain on one line.
            Self::Other(error) => write!(f, "{error:#}"),
            Self::Changes => Ok(()),
        }
    }
}

/// The program.
pub fn main() -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            note(format_args!("error: the runtime can't be started: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(async {
        // Before anything else, so that a signal at any moment ends the program in order.
        let stop = Stop::listen()?;
        match Arguments::try_parse() {
            Ok(arguments) => dispatch(arguments.command, stop).await,
            Err(error) => explain(&error),
        }
    });
    runtime.shutdown_timeout(FLUSH_TIME);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            match &error {
                CommandError::Arguments(explained) => note(explained.trim_end()),
                other => other.to_string().lines().for_each(|line| note(format_args!("error: {line}"))),
            }
            ExitCode::from(match error {
                CommandError::Other(_) => 1,
                CommandError::Arguments(_) | CommandError::Usage(_) => 2,
                CommandError::Changes => 3,
            })
        }
    }
}

/// Prints the help or the version. A mistake in the arguments is an error.
fn explain(error: &ArgumentError) -> Result<(), CommandError> {
    let text = error.render().to_string();
    if error.use_stderr() { Err(CommandError::Arguments(text)) } else { Ok(printed::print(&text)?) }
}

async fn dispatch(command: Command, stop: Stop) -> Result<(), CommandError> {
    match command {
        Command::Run(args) => run::run(&args.config, stop).await,
        Command::Demo(args) => demo::demo(args, stop).await,
        Command::CheckConfig(args) => check_config::check_config(&args.config),
        Command::Plan(args) => plan::plan(&args.config, stop).await,
        Command::UnblockAll(args) => emergency::unblock_all(&args.config).await,
        Command::Uninstall(args) => emergency::uninstall(&args.file.config, args.dry_run).await,
        Command::Simulate(args) => simulate::run(&args.file.config, args.since).await,
        Command::Crds => crds::crds(),
        Command::Agent(args) => agent::agent(args, stop).await,
        Command::Operate(command) => operate(command, stop).await,
    }
}

async fn operate(command: Operate, mut stop: Stop) -> Result<(), CommandError> {
    let done = async {
        match command {
            Operate::Decisions(args) => decisions::decisions(args).await,
            Operate::Incidents(args) => incidents::incidents(args).await,
            Operate::Status(args) => status::status(args).await,
            Operate::Approve(args) => operator_commands::approve(args).await,
            Operate::Release(args) => operator_commands::release(args).await,
            Operate::Exempt(args) => exempt::exempt(*args).await,
            Operate::Pause(args) => operator_commands::pause(args).await,
            Operate::Resume(args) => operator_commands::resume(args).await,
            Operate::Mode(args) => operator_commands::mode(args).await,
        }
    };
    tokio::select! {
        () = stop.wait() => Err(anyhow::anyhow!("interrupted").into()),
        done = done => done,
    }
}

/// SIGTERM, SIGINT and SIGHUP.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Stop {
    fn listen() -> Result<Self, CommandError> {
        let listen = |kind| signal(kind).map_err(|e| anyhow::anyhow!("signals can't be listened for: {e}"));
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    /// Waits for SIGTERM or SIGINT. SIGHUP has the configuration read again: operators send it for that, and a terminal sends it
    /// when it closes.
    async fn wait_as_a_service(&mut self, reload: &Notify) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                Some(()) = self.hangup.recv() => {
                    tracing::info!("SIGHUP: the configuration is read again");
                    reload.notify_one();
                }
            }
        }
    }

    /// Waits for any of the three signals: a command ends when its terminal closes.
    async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}
