//! The command line. The comments here are its manual.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

/// Muster makes a fleet of GPU machines act as one.
#[derive(Debug, Parser)]
#[command(name = "muster", version, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    /// What is printed on standard output: a table for people, or JSON for programs.
    #[arg(short, long, value_enum, default_value_t, global = true)]
    pub output: Output,
    #[command(flatten)]
    pub node: NodeArguments,
    #[command(subcommand)]
    pub command: Command,
}

/// Settings of this node. Each can also stand in the environment or in the configuration file; a flag wins over the
/// environment, the environment over the file, the file over the default.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Node")]
pub struct NodeArguments {
    /// The configuration file, in TOML [env: MUSTER_CONFIG].
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Where the node keeps its data [env: MUSTER_DATA_DIR] [default: /var/lib/muster as root, else
    /// ~/.local/share/muster].
    #[arg(long, value_name = "DIR", global = true)]
    pub data_dir: Option<PathBuf>,
    /// What the program says on standard error, as a filter: "warn", "info", "muster_cluster=debug" [env: MUSTER_LOG]
    /// [default: info].
    #[arg(long, value_name = "FILTER", global = true)]
    pub log: Option<String>,
}

/// The form of what is printed on standard output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Columns for people.
    #[default]
    Table,
    /// One JSON document for programs.
    Json,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// What this node is configured to do, and why.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// What an operator needs when something is wrong.
    #[command(subcommand)]
    Operator(OperatorCommand),
    /// Prints a completion script for a shell.
    Completion {
        /// The shell.
        shell: Shell,
    },
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Prints the effective value of every key and where it came from.
    Show,
    /// Checks a configuration file without using it.
    Check {
        /// The file.
        file: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub enum OperatorCommand {
    /// Opens the data directory of a stopped node and says whether it can be trusted.
    ///
    /// Every entry of the log, every record of the state and every snapshot is read and compared with its checksum, and
    /// the log with the floor file. It does what the node does when it starts, no less: an unfinished write at the end of a
    /// database is cut off, and a damaged copy of the state is set aside to be rebuilt. A log that can not be trusted is
    /// left where it is.
    CheckStorage,
}
