//! GPUs by NVIDIA's management library, which is loaded at run time: a machine without it has no GPUs, and a reason.

mod session;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

use super::{GpuSample, NoGpus, Reading};
use crate::asked::{Answer, Asked, Questions};
use session::Session;

/// How the library is used.
#[derive(Clone, Debug)]
pub struct NvmlOptions {
    /// The library. `None`: where the system has it.
    pub library: Option<PathBuf>,
    /// How long an asker waits for the driver.
    pub patience: Duration,
    /// How long a library that could not be opened, or has failed, is left alone. Opening it can make the system load the
    /// driver, which takes a while.
    pub retry: Duration,
}

impl Default for NvmlOptions {
    fn default() -> Self {
        Self { library: None, patience: Duration::from_secs(2), retry: Duration::from_secs(30) }
    }
}

/// The GPUs that NVIDIA's driver knows. Clones ask the same thread.
#[derive(Clone, Debug)]
pub struct NvmlGpus {
    asked: Asked<Known>,
}

/// What the driver says, or why it says nothing.
type Known = Result<Arc<[GpuSample]>, String>;

impl NvmlGpus {
    /// Begins to open the library, and returns at once.
    #[must_use]
    pub fn open(options: NvmlOptions) -> Self {
        let asked = Asked::start("gpu", options.patience, move |questions| serve(&options, questions));
        Self { asked }
    }

    /// The GPUs as they are now, or what is known if the driver does not answer in time.
    pub async fn read(&self) -> Reading {
        match self.asked.ask().await {
            Answer::Fresh(known) => reading(known, None),
            Answer::Stale { value, age } => reading(value, Some(age)),
            Answer::Missing { waited } => Reading::Nothing(NoGpus::Silent(waited)),
        }
    }

    /// What is known without asking the driver.
    #[must_use]
    pub fn last(&self) -> Option<Reading> {
        self.asked.last().map(|(known, age)| reading(known, Some(age)))
    }
}

fn reading(known: Known, age: Option<Duration>) -> Reading {
    match (known, age) {
        (Ok(gpus), None) => Reading::Fresh(gpus),
        (Ok(gpus), Some(age)) => Reading::Stale { gpus, age },
        (Err(why), _) => Reading::Nothing(NoGpus::NoDriver(why)),
    }
}

/// The thread: one session with the library after the other, each for as long as it works.
fn serve(options: &NvmlOptions, mut questions: Questions<Known>) {
    while let Some(why) = session(options, &mut questions) {
        tracing::debug!(why, "no GPUs");
        let retry = Instant::now() + options.retry;
        questions.answer(Err(why.clone()));
        loop {
            if questions.wait().is_none() {
                return;
            }
            if Instant::now() >= retry {
                break;
            }
            questions.answer(Err(why.clone()));
        }
    }
}

/// Answers questions until the library fails, and says how. `None`: nobody asks any more.
fn session(options: &NvmlOptions, questions: &mut Questions<Known>) -> Option<String> {
    let mut builder = Nvml::builder();
    if let Some(path) = &options.library {
        builder.lib_path(path.as_os_str());
    }
    let nvml = match builder.init() {
        Ok(nvml) => nvml,
        Err(NvmlError::LibloadingError(error)) => {
            return Some(format!("NVIDIA's management library is not on this node: {error}"));
        }
        Err(error) => return Some(failed(&error)),
    };
    let mut session = match Session::open(&nvml) {
        Ok(session) => session,
        Err(error) => return Some(failed(&error)),
    };
    loop {
        match session.read() {
            Ok(gpus) => questions.answer(Ok(gpus.into())),
            Err(error) => return Some(failed(&error)),
        }
        questions.wait()?;
    }
}

fn failed(error: &NvmlError) -> String {
    format!("NVIDIA's management library does not work: {error}")
}
