//! The threads that serve clients: one per core, each with its own executor, so that a request never changes its core.

use std::net::TcpListener;
use std::thread::JoinHandle;

use futures_util::future::join_all;
use muster_api::server::{HttpService, Limits, Part, serve_tcp};
use tokio::runtime::Builder;

use crate::exit::Failure;

/// More threads than this do not make a gateway faster, and a large machine has other work for its cores.
const LIMIT: usize = 16;

/// How many threads serve a listener.
pub fn count() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(LIMIT)
}

/// What a thread serves on a listener.
pub struct Share<S> {
    /// Its own handles of the listening sockets. All threads take from one queue: whoever is idle comes first.
    pub doors: Vec<Door>,
    /// What answers there.
    pub service: S,
    /// What the clients of this thread may use at each socket.
    pub limits: Limits,
}

/// A socket that clients come to.
pub struct Door {
    /// It.
    pub listener: TcpListener,
    /// How serving there ends.
    pub part: Part,
}

/// Threads that serve until they are told to stop.
pub struct Workers(Vec<JoinHandle<()>>);

impl Workers {
    /// Starts threads, each of which serves two, and does something else beside.
    ///
    /// # Errors
    /// When there can be no more threads, or a listener can not be used.
    pub fn start<A: HttpService, B: HttpService, P: Future<Output = ()> + Send + 'static>(
        shares: Vec<(Share<A>, Share<B>, P)>,
    ) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| Failure::other(format!("no threads for clients: {error}"));
        let mut threads = Vec::new();
        for (first, second, beside) in shares {
            let runtime = Builder::new_current_thread().enable_all().build().map_err(failed)?;
            let (first, second) = {
                let _context = runtime.enter();
                (serve(first).map_err(failed)?, serve(second).map_err(failed)?)
            };
            let run = move || {
                runtime.block_on(async { tokio::join!(first, second, beside) });
                runtime.shutdown_background();
            };
            threads.push(std::thread::Builder::new().name("client".to_owned()).spawn(run).map_err(failed)?);
        }
        Ok(Self(threads))
    }

    /// Waits until they have ended.
    pub async fn ended(self) {
        let waiting = tokio::task::spawn_blocking(move || {
            for thread in self.0 {
                if thread.join().is_err() {
                    tracing::error!("a thread for clients has failed");
                }
            }
        });
        let _ = waiting.await;
    }
}

fn serve<S: HttpService>(share: Share<S>) -> std::io::Result<impl Future<Output = ()> + Send> {
    let Share { doors, service, limits } = share;
    let serve_one = |Door { listener, part }| {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        Ok(serve_tcp(listener, service.clone(), limits, part))
    };
    let serving: Vec<_> = doors.into_iter().map(serve_one).collect::<std::io::Result<_>>()?;
    Ok(async { drop(join_all(serving).await) })
}
