//! `muster init` and `muster serve`.

use muster_cluster::node::JoinToken;
use tokio_util::sync::CancellationToken;

use crate::cli::{JoinArguments, Output};
use crate::config::Config;
use crate::exit::Failure;
use crate::node::{
    JoinWish, Runtimes, Secrets, Seed, Start, Succession, found_fleet, preset_token, serve, stop_on_signal,
};
use crate::output::print_once;
use crate::tailnet::Tailscale;

/// Makes this machine the first node of a new fleet.
pub fn init(config: &Config, output: Output) -> Result<(), Failure> {
    let runtimes = Runtimes::start()?;
    show(&found_fleet(&config.values, &runtimes, preset_token()?)?, output)
}

fn show(secrets: &Secrets, output: Output) -> Result<(), Failure> {
    if let Some(file) = &secrets.admin_token_file {
        eprintln!("The admin token is also in {}; delete that file once you have it.", file.display());
    }
    print_once(output, secrets, ["WHAT", "VALUE"], |secrets| {
        vec![
            ["fleet".to_owned(), secrets.fleet_id.clone()],
            ["admin token".to_owned(), secrets.admin_token.clone()],
            ["gateway key".to_owned(), secrets.gateway_key.clone()],
            ["recovery key".to_owned(), secrets.recovery_key.clone()],
        ]
    })?;
    eprintln!(
        "\nThese are shown only now. Keep the recovery key where no node is: it opens a backup when all are lost."
    );
    Ok(())
}

/// The fleet that the arguments say to join.
fn wish(arguments: &JoinArguments, tailscale: &Tailscale) -> Result<Option<JoinWish>, Failure> {
    if arguments.join.is_empty() {
        return Ok(None);
    }
    if arguments.join.contains(&Seed::Tailscale) && *tailscale == Tailscale::Off {
        return Err(Failure::usage("--join tailscale needs Tailscale, and it is off (tailscale = off)"));
    }
    let text = match (&arguments.join_token, &arguments.join_token_file) {
        (Some(token), _) => token.clone(),
        (None, Some(file)) => std::fs::read_to_string(file)
            .map_err(|error| Failure::other(format!("{} can not be read: {error}", file.display())))?,
        (None, None) => return Err(Failure::usage("--join needs --join-token-file or --join-token")),
    };
    let malformed = || Failure::usage("this is no join token; `muster token create` on a member prints one");
    let token = JoinToken::parse(&text).ok_or_else(malformed)?;
    Ok(Some(JoinWish { seeds: arguments.join.clone(), token }))
}

/// What comes before serving.
#[derive(Clone, Copy, Debug)]
pub struct How {
    /// A fleet is founded.
    pub bootstrap: bool,
    /// The running process is replaced.
    pub take_over: bool,
}

/// Runs the node of this machine.
pub fn run(config: &Config, how: How, join: &JoinArguments, output: Output) -> Result<(), Failure> {
    let join = wish(join, &config.values.tailscale)?;
    let runtimes = Runtimes::start()?;
    if how.bootstrap {
        show(&found_fleet(&config.values, &runtimes, preset_token()?)?, output)?;
    }
    let values = config.values.clone();
    let outcome = runtimes.http().block_on(async {
        let stop = CancellationToken::new();
        stop_on_signal(stop.clone())?;
        let succession = if how.take_over { Succession::TakeOver } else { Succession::Offer };
        match serve(values, Start { join, succession }, &runtimes, stop.clone()).await {
            Ok(serving) => serving.ended().await,
            Err(_) if stop.is_cancelled() => Ok(()),
            Err(failure) => Err(failure),
        }
    });
    runtimes.end();
    outcome
}
