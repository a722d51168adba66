//! `muster init` and `muster serve`.

use tokio_util::sync::CancellationToken;

use crate::cli::Output;
use crate::config::Config;
use crate::exit::Failure;
use crate::node::{Runtimes, Secrets, found_fleet, serve, stop_on_signal};
use crate::output::print;

/// Makes this machine the first node of a new fleet.
pub fn init(config: &Config, output: Output) -> Result<(), Failure> {
    let runtimes = Runtimes::start()?;
    show(&found_fleet(&config.values, &runtimes)?, output)
}

fn show(secrets: &Secrets, output: Output) -> Result<(), Failure> {
    print(output, secrets, ["WHAT", "VALUE"], |secrets| {
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
    if let Some(file) = &secrets.admin_token_file {
        eprintln!("The admin token is also in {}; delete that file once you have it.", file.display());
    }
    Ok(())
}

/// Runs the node of this machine.
pub fn run(config: &Config, bootstrap: bool, output: Output) -> Result<(), Failure> {
    let runtimes = Runtimes::start()?;
    if bootstrap {
        show(&found_fleet(&config.values, &runtimes)?, output)?;
    }
    let values = config.values.clone();
    runtimes.http().block_on(async {
        let stop = CancellationToken::new();
        let again = stop_on_signal(stop.clone())?;
        let serving = serve(values, &runtimes, stop).await?;
        tokio::select! {
            ended = serving.ended() => ended,
            _ = again => Err(Failure::other("stopped before everything was finished")),
        }
    })
}
