//! A simulator of vLLM's HTTP API: what starts, supervises and calls vLLM can be tested without a model or a GPU.
//!
//! It behaves as vLLM 0.32 was observed to, weaknesses included, and does the same thing each time. Open first:
//! `arguments` for what can be set, `http/routes` for what is answered, `engine` for what a request goes through.

mod arguments;
mod engine;
mod http;
mod ignored;
mod lora;
mod metrics;
mod openai;
mod settings;
mod signals;
mod words;

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime;
use tokio::time::{sleep, timeout};

use crate::arguments::Arguments;
use crate::engine::Engine;
use crate::http::{Listener, Server};
use crate::settings::Settings;
use crate::signals::Signals;

/// How long the process outlives its engine.
const AFTER_DEATH: Duration = Duration::from_secs(4);

/// What a shell says of a Python that was interrupted, as vLLM is by a signal while it loads.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let arguments = match arguments::parse(std::env::args_os().skip(1)) {
        Ok(arguments) => arguments,
        Err(refusal) => return refusal.report(),
    };
    let dev_mode = std::env::var_os("VLLM_SERVER_DEV_MODE").is_some_and(|value| value == "1");
    let served = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .and_then(|runtime| runtime.block_on(run(Settings { arguments, dev_mode })));
    served.unwrap_or_else(|error| {
        say(&mut io::stderr(), &format!("OSError: {error}"));
        ExitCode::FAILURE
    })
}

/// One line. That nobody reads it is no reason to fail.
fn say(to: &mut impl Write, line: &str) {
    let _ = writeln!(to, "{line}").and_then(|()| to.flush());
}

async fn run(settings: Settings) -> io::Result<ExitCode> {
    let mut signals = Signals::new()?;
    let arguments = settings.arguments.clone();
    say(&mut io::stderr(), &format!("(Worker) Starting to load model {}...", settings.root()));
    tokio::select! {
        () = signals.stop() => return Ok(ExitCode::from(INTERRUPTED)),
        () = sleep(arguments.load_seconds) => {}
    }
    if arguments.fail_start {
        say(&mut io::stderr(), "(EngineCore) ValueError: the simulator was told to fail.");
        let last = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}";
        say(&mut io::stderr(), last);
        return Ok(ExitCode::FAILURE);
    }
    let listener = listen(&arguments).await?;
    say(&mut io::stderr(), "INFO:     Application startup complete.");
    let engine = Engine::new(settings);
    serve(Server::new(listener, Arc::clone(&engine)), &engine, &mut signals).await
}

async fn listen(arguments: &Arguments) -> io::Result<Listener> {
    let (listener, place) = match &arguments.uds {
        Some(path) => (Listener::unix(path)?, format!("unix:{}", path.display())),
        None => {
            let (listener, address) = Listener::tcp((arguments.host, arguments.port).into()).await?;
            (listener, format!("http://{address}"))
        }
    };
    say(&mut io::stdout(), &format!("listening on {place}"));
    Ok(listener)
}

/// Serves until a signal or the engine's death.
async fn serve(mut server: Server, engine: &Engine, signals: &mut Signals) -> io::Result<ExitCode> {
    tokio::select! {
        never = server.run() => match never {},
        () = drained(engine, signals) => {}
        () = died(engine) => return Ok(ExitCode::FAILURE),
    }
    // From here on what is still under way stands still, and the process is there for as long as its clients are.
    engine.freeze();
    tokio::select! {
        () = server.close() => {}
        () = signals.interrupt() => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// Ends when a signal has come and the requests under way have ended, or had their time.
async fn drained(engine: &Engine, signals: &mut Signals) {
    signals.stop().await;
    engine.drain();
    let _ = timeout(engine.settings().arguments.shutdown_timeout, engine.idle()).await;
}

async fn died(engine: &Engine) {
    engine.died().await;
    say(&mut io::stderr(), "(APIServer) EngineDeadError: EngineCore encountered an issue.");
    sleep(AFTER_DEATH).await;
}
