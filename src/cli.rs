//! The command line. The comments here are its manual.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::config::NodeRole;
use crate::node::Seed;
use crate::tailnet::Tailscale;

/// Muster makes a fleet of GPU machines act as one.
#[derive(Debug, Parser)]
#[command(name = "muster", version, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    /// What is printed on standard output: a table for people, or JSON for programs.
    #[arg(short, long, value_enum, default_value_t, global = true)]
    pub output: Output,
    #[command(flatten)]
    pub node: NodeArguments,
    #[command(flatten)]
    pub client: ClientArguments,
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
    /// [default: info,openraft=error].
    #[arg(long, value_name = "FILTER", global = true)]
    pub log: Option<String>,
}

/// Which node a command talks to. By default it is the one of this machine, through the socket in its data directory, which
/// lets in root and the user that the node runs as.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Client")]
pub struct ClientArguments {
    /// The API of a node, such as http://gpu1:8000.
    #[arg(long, value_name = "URL", env = "MUSTER_ENDPOINT", global = true)]
    pub endpoint: Option<String>,
    /// The key to show there.
    #[arg(long, value_name = "KEY", env = "MUSTER_TOKEN", hide_env_values = true, global = true)]
    pub token: Option<String>,
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

/// A first port that leaves room for the ports below and above it.
fn base_port(text: &str) -> Result<u16, String> {
    let port = text.parse().map_err(|_| "must be a port".to_owned())?;
    match port {
        0 | 5024..=65_000 => Ok(port),
        _ => Err("must be 0 or from 5024 to 65000: the proxy is 4000 below, and the next nodes are above".to_owned()),
    }
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs a fleet of simulated machines in this process, to try Muster out.
    Dev(DevArguments),
    /// Makes this machine the first node of a new fleet. The node must not be running.
    ///
    /// Prints the administrator's token, a key for the gateway and the recovery key, once. The environment variable
    /// MUSTER_ADMIN_TOKEN presets the token, with at least 20 characters.
    Init(ServeArguments),
    /// Runs the node of this machine.
    ///
    /// A node that belongs to no fleet waits until it does.
    Serve {
        #[command(flatten)]
        serve: ServeArguments,
        /// Found a new fleet first, as `muster init` does. Refused when this machine belongs to one.
        #[arg(long, conflicts_with = "join")]
        bootstrap: bool,
        /// Take the place of the process that serves this data directory, without a request that fails. If there is none,
        /// start as usual.
        ///
        /// The running process makes another node the leader if it leads itself, lets requests finish, closes its data and
        /// hands its listening sockets over; it goes on with answers that it has begun for at most `drain_seconds` (120)
        /// and ends. If the new process fails before it serves, the old one goes on as before. Configuration may differ
        /// in everything but the addresses.
        #[arg(long, conflicts_with_all = ["join", "bootstrap"])]
        take_over: bool,
        #[command(flatten)]
        join: JoinArguments,
    },
    /// Who leads, who votes, and how far the node is.
    Status,
    /// The nodes of the fleet.
    Nodes,
    /// The model registry.
    #[command(subcommand)]
    Models(ModelsCommand),
    /// Keys for people and programs.
    #[command(subcommand)]
    Credentials(CredentialsCommand),
    /// Lets other machines join the fleet.
    #[command(subcommand)]
    Token(TokenCommand),
    /// The state of the fleet as a file.
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
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

/// What a node needs to serve. Each can also stand in the configuration file or in the environment, as MUSTER_API for --api.
#[derive(Clone, Debug, Default, Args)]
pub struct ServeArguments {
    /// What the fleet calls this node [default: the machine's name].
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Where the API listens [default: port 8000 of this machine's address in its tailnet and of 127.0.0.1; without Tailscale of
    /// 127.0.0.1 alone].
    #[arg(long, value_name = "ADDRESS")]
    pub api: Option<SocketAddr>,
    /// Where other nodes reach this one [default: port 7946 of this machine's address in its tailnet; without Tailscale of
    /// 127.0.0.1].
    #[arg(long, value_name = "ADDRESS")]
    pub mesh: Option<SocketAddr>,
    /// The address of the proxy: models alone, with and without /v1 [env: MUSTER_PROXY] [default: port 4000, where the API's
    /// default is].
    #[arg(long, value_name = "ADDR")]
    pub proxy: Option<SocketAddr>,
    /// The host or address at which others reach this node [default: where it listens].
    #[arg(long, value_name = "HOST")]
    pub advertise: Option<String>,
    /// Whether this node wants to vote: auto leaves it to the fleet, voter prefers it to others [default: auto].
    #[arg(long, value_enum)]
    pub role: Option<NodeRole>,
    /// Whether Tailscale is used: auto where it runs, off, or the path of tailscaled's socket, which must answer then
    /// [default: auto].
    #[arg(long, value_name = "HOW")]
    pub tailscale: Option<Tailscale>,
    /// The tag of the machines that --join tailscale asks [default: tag:muster].
    #[arg(long, value_name = "TAG")]
    pub tailscale_tag: Option<String>,
    /// Serve without TLS although strangers can reach the address.
    #[arg(long)]
    pub insecure_http: bool,
}

/// How a node becomes a member of a fleet. A node that is one already needs none of it.
#[derive(Clone, Debug, Default, Args)]
#[group(id = "joining")]
pub struct JoinArguments {
    /// Join the fleet of these nodes: where their mesh listens, separated by commas. Names are looked up at each attempt.
    /// `tailscale` stands for every machine in the tailnet that is online and has the tag, at the port of this node's mesh.
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    pub join: Vec<Seed>,
    /// The token that `muster token create` printed on a member.
    #[arg(long, value_name = "TOKEN", env = "MUSTER_JOIN_TOKEN", hide_env_values = true, requires = "join")]
    pub join_token: Option<String>,
    /// A file that holds the token.
    #[arg(long, value_name = "FILE", requires = "join", conflicts_with = "join_token")]
    pub join_token_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct DevArguments {
    /// How many nodes.
    #[arg(long, value_name = "NUMBER", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=9))]
    pub nodes: u16,
    /// The first port: the API of the first node; the next nodes are 10 apart, the mesh 54 and the proxy 4000 below. 0 takes
    /// free ones.
    #[arg(long, value_name = "PORT", default_value_t = 8000, value_parser = base_port)]
    pub base_port: u16,
}

#[derive(Debug, Subcommand)]
pub enum ModelsCommand {
    /// Lists every model, newest first.
    List,
    /// Shows one model.
    Get {
        /// Its id or exact name.
        model: String,
    },
    /// Registers a model.
    Add(AddModel),
    /// Removes a model.
    Rm {
        /// Its id or exact name.
        model: String,
    },
}

#[derive(Debug, Args)]
pub struct AddModel {
    /// What people call it.
    pub name: String,
    /// The provider: openai-compatible for Ollama, vLLM, Groq, LM Studio and their like.
    #[arg(long, default_value = "openai-compatible")]
    pub provider: String,
    /// What the provider calls it.
    #[arg(long, value_name = "ID")]
    pub model_id: String,
    /// Where it is reached; with /v1 if the backend needs it.
    #[arg(long, value_name = "URL")]
    pub base_url: Option<String>,
    /// What it is.
    #[arg(long, value_name = "TEXT")]
    pub description: Option<String>,
    /// A file with the provider's key; - for standard input. It is sealed and never shown again.
    #[arg(long, value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum CredentialsCommand {
    /// Lists every credential.
    List,
    /// Makes a credential and prints its key, once.
    Create {
        /// What it is for.
        label: String,
        /// What may be done with it: admin, operator, viewer, or gateway for calling models.
        #[arg(long, value_enum)]
        role: KeyRole,
        /// How many seconds it lives [default: until it is removed].
        #[arg(long, value_name = "SECONDS")]
        ttl: Option<u64>,
    },
    /// Revokes a credential.
    Rm {
        /// Its number.
        id: u64,
    },
}

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Makes a token with which machines can join, and prints it, once.
    Create {
        /// How many seconds it can be used [default: a day].
        #[arg(long, value_name = "SECONDS")]
        ttl: Option<u64>,
        /// How many machines can use it [default: any number].
        #[arg(long, value_name = "NUMBER")]
        uses: Option<u32>,
    },
}

/// What a key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KeyRole {
    /// Everything.
    Admin,
    /// Deployments and nodes.
    Operator,
    /// Reading.
    Viewer,
    /// Calling models.
    Gateway,
}

#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Writes everything that a node has of the fleet's state into a file. Secrets in it are sealed; with the recovery key
    /// they can be opened.
    Save {
        /// The file.
        file: PathBuf,
    },
    /// Checks a file and says what is in it.
    Inspect {
        /// The file.
        file: PathBuf,
    },
    /// Begins the fleet again on this machine, from a file. The machine must belong to no fleet, and whatever is left of the
    /// fleet elsewhere is not spoken to any more.
    Restore {
        /// The file.
        file: PathBuf,
        #[command(flatten)]
        key: RecoveryKeyArguments,
        #[command(flatten)]
        serve: Box<ServeArguments>,
    },
}

/// The key that `muster init` printed once.
#[derive(Clone, Debug, Default, Args)]
pub struct RecoveryKeyArguments {
    /// A file that holds the recovery key.
    #[arg(long, value_name = "FILE")]
    pub recovery_key_file: Option<PathBuf>,
    /// The recovery key itself.
    #[arg(
        long,
        value_name = "KEY",
        env = "MUSTER_RECOVERY_KEY",
        hide_env_values = true,
        conflicts_with = "recovery_key_file"
    )]
    pub recovery_key: Option<String>,
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
    /// Sets the settings of the fleet that a file names, all of them or none, and prints what has changed.
    ///
    /// The file is TOML with the names of /api/settings as keys, for example `gateway_timeout_seconds = 300`. What it does not
    /// name stays as it is.
    Import {
        /// The file.
        file: PathBuf,
        /// Prints what would change, and changes nothing.
        #[arg(long)]
        check: bool,
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
    /// The members of Raft: who holds the log, and who votes.
    #[command(subcommand)]
    Raft(RaftCommand),
    /// Begins the fleet again from the data of this machine, when most of those that vote are lost for good. The node must not
    /// be running.
    ///
    /// What only the others knew is lost, and they are not spoken to any more: they join again with empty data directories.
    Recover {
        /// Says that the others are gone and will not come back.
        #[arg(long, required = true)]
        the_others_are_lost: bool,
        #[command(flatten)]
        serve: ServeArguments,
    },
}

#[derive(Debug, Subcommand)]
pub enum RaftCommand {
    /// Lists them.
    ListPeers,
    /// Takes a node out of the fleet for good, and replaces the keys that it has seen.
    RemovePeer {
        /// Its number or name.
        node: String,
    },
    /// Has another node lead.
    TransferLeader {
        /// Its number or name [default: whichever voter has come furthest].
        node: Option<String>,
    },
    /// Has a node vote as soon as it can, in the place of one of which nobody said so.
    AddVoter {
        /// Its number or name.
        node: String,
    },
}
