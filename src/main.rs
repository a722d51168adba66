//! The `muster` binary: command line, configuration, and the wiring of the crates.

mod cli;
mod client;
mod commands;
mod config;
mod exit;
mod node;
mod output;
#[cfg(test)]
mod scratch;
mod tailnet;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use crate::cli::{Cli, Command, ConfigCommand, OperatorCommand, ServeArguments, SnapshotCommand};
use crate::client::Client;
use crate::config::{Config, Needs};
use crate::exit::Failure;

/// Many threads allocate and free small things for each other here: glibc's allocator takes a seventh of the CPU of a
/// write, and keeps an arena for every thread.
#[cfg(target_arch = "x86_64")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("muster: {failure}");
            failure.exit_code()
        }
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    if let Command::Completion { shell } = cli.command {
        return commands::completion::run(shell);
    }
    if let Command::Config(ConfigCommand::Check { file }) = &cli.command {
        return commands::config::check(file);
    }
    let config = Config::load(&cli.node, serve_arguments(&cli.command), needs(&cli.command))?;
    start_log(&config)?;
    if let Some(warning) = &config.warning {
        tracing::warn!("{warning}");
    }
    let output = cli.output;
    let client = || Client::new(&cli.client, &config.values.data_dir);
    match &cli.command {
        Command::Dev(arguments) => commands::dev::run(arguments, &cli.node, output),
        Command::Init(_) => commands::serve::init(&config, output),
        Command::Serve { bootstrap, take_over, join, .. } => {
            let how = commands::serve::How { bootstrap: *bootstrap, take_over: *take_over };
            commands::serve::run(&config, how, join, output)
        }
        Command::Status => commands::client::status(&client()?, output),
        Command::Nodes => commands::client::nodes(&client()?, output),
        Command::Models(command) => commands::client::models(&client()?, command, output),
        Command::Token(command) => commands::client::token(&client()?, command, output),
        Command::Credentials(command) => commands::client::credentials(&client()?, command, output),
        Command::Config(ConfigCommand::Show) => commands::config::show(&config, output),
        Command::Config(ConfigCommand::Import { file, check }) => {
            commands::import::import(&client()?, file, *check, output)
        }
        Command::Snapshot(command) => commands::snapshot::run(command, &config, client, output),
        Command::Operator(OperatorCommand::CheckStorage) => commands::storage::check(&config, output),
        Command::Operator(OperatorCommand::Raft(command)) => commands::client::raft(&client()?, command, output),
        Command::Operator(OperatorCommand::Recover { .. }) => commands::snapshot::recovered(&config, output),
        // Answered above, because neither needs a configuration that loads.
        Command::Completion { .. } | Command::Config(ConfigCommand::Check { .. }) => Ok(()),
    }
}

fn serve_arguments(command: &Command) -> Option<&ServeArguments> {
    match command {
        Command::Init(serve)
        | Command::Serve { serve, .. }
        | Command::Operator(OperatorCommand::Recover { serve, .. }) => Some(serve),
        Command::Snapshot(SnapshotCommand::Restore { serve, .. }) => Some(serve),
        _ => None,
    }
}

/// Only who uses the addresses of this node, or shows them, asks Tailscale for them: it may take a while.
fn needs(command: &Command) -> Needs {
    match command {
        Command::Config(ConfigCommand::Show) => Needs::Addresses,
        command if serve_arguments(command).is_some() => Needs::Addresses,
        _ => Needs::Nothing,
    }
}

/// Sends what the program has to say to standard error; standard output is for data.
fn start_log(config: &Config) -> Result<(), Failure> {
    // Checked when the configuration was loaded.
    let filter = EnvFilter::try_new(&config.values.log).map_err(|error| Failure::other(error.to_string()))?;
    // Colours are for people: a file or a journal is searched.
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colours)
        .with_writer(std::io::stderr)
        .with_target(false)
        .try_init()
        .map_err(|error| Failure::other(format!("the log does not start: {error}")))
}
