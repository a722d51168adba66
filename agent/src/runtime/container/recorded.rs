//! A daemon for tests that plays back answers, for what the versions at hand can not do.

use std::collections::HashMap;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::task::JoinSet;

/// Which answers there are to `METHOD /path`, without the version of the API and without the query. Several are given one
/// after the other, and the last of them from then on.
type Answers = HashMap<String, Vec<(u16, String)>>;

/// A request that came.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    /// The method, the path with the version of the API, and the query.
    pub(super) line: String,
    pub(super) body: Bytes,
}

pub(super) struct Recorded {
    directory: TempDir,
    asked: Arc<Mutex<Vec<Asked>>>,
    _tasks: JoinSet<()>,
}

impl Recorded {
    pub(super) fn new(answers: &[(&str, u16, &str)]) -> Self {
        let mut kept = Answers::new();
        for (line, status, body) in answers {
            kept.entry((*line).to_owned()).or_default().push((*status, (*body).to_owned()));
        }
        let directory = tempfile::tempdir().expect("a directory");
        let listener = UnixListener::bind(directory.path().join("d.sock")).expect("a socket");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, Arc::new(Mutex::new(kept)), Arc::clone(&asked)));
        Self { directory, asked, _tasks: tasks }
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.directory.path().join("d.sock")
    }

    pub(super) fn directory(&self) -> PathBuf {
        self.directory.path().to_owned()
    }

    /// Nobody listens from now on.
    pub(super) fn stop(self) -> TempDir {
        self.directory
    }

    /// The requests that began like this, with the version of the API left out.
    pub(super) fn asked(&self, start: &str) -> Vec<Asked> {
        let asked = self.asked.lock().expect("no test has failed with it");
        asked.iter().filter(|asked| plain(&asked.line).starts_with(start)).cloned().collect()
    }
}

async fn serve(listener: UnixListener, answers: Arc<Mutex<Answers>>, asked: Arc<Mutex<Vec<Asked>>>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (answers, asked) = (Arc::clone(&answers), Arc::clone(&asked));
        connections.spawn(async move {
            let service = service_fn(move |request| answer(request, Arc::clone(&answers), Arc::clone(&asked)));
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            let _ = connection.await;
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    answers: Arc<Mutex<Answers>>,
    asked: Arc<Mutex<Vec<Asked>>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let line = format!("{} {}", request.method(), request.uri());
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    asked.lock().expect("no test has failed with it").push(Asked { line: line.clone(), body });
    let path = plain(&line);
    let path = path.split_once('?').map_or(path.as_str(), |(path, _)| path);
    let mut answers = answers.lock().expect("no test has failed with it");
    let (status, body) = match answers.get_mut(path) {
        Some(list) if list.len() > 1 => list.remove(0),
        Some(list) => list[0].clone(),
        None => (404, format!(r#"{{"message":"nothing is recorded for {path}"}}"#)),
    };
    Ok(Response::builder().status(status).body(Full::new(Bytes::from(body))).expect("an answer"))
}

/// `GET /v1.41/x` as `GET /x`.
fn plain(line: &str) -> String {
    match line.split_once(" /v1.") {
        Some((method, rest)) => {
            let path = rest.split_once('/').map_or("", |(_, path)| path);
            format!("{method} /{path}")
        }
        None => line.to_owned(),
    }
}
