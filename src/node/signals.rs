//! Being told by the operating system to stop.

use std::io;

use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::exit::Failure;

/// Cancels `stop` at the first signal. At the second the process ends at once.
///
/// A thread of its own listens, and it does nothing that could wait: whatever hangs elsewhere must not keep it.
pub fn stop_on_signal(stop: CancellationToken) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::other(format!("signals can not be heard: {error}"));
    let runtime = Builder::new_current_thread().enable_io().build().map_err(failed)?;
    let (mut terminate, mut interrupt) = {
        let _context = runtime.enter();
        let listen = |kind| signal(kind).map_err(failed);
        (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?)
    };
    let listen = move || {
        runtime.block_on(async {
            next(&mut terminate, &mut interrupt).await;
            stop.cancel();
            next(&mut terminate, &mut interrupt).await;
            std::process::exit(1);
        });
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(listen).map_err(failed)?;
    Ok(())
}

async fn next(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
