//! The OpenAI-compatible routes: what requests may say, and the shapes of the answers.

mod answer;
mod bounded;
mod chat;
mod embeddings;
mod error;
mod generate;
mod models;
mod prompt;
mod request;
mod stream;
mod tokenize;

pub use chat::{chat, completions};
pub use embeddings::embeddings;
pub use error::ApiError;
pub use models::models;
pub use tokenize::{detokenize, tokenize};

/// What answers say instead of the name of a build of vLLM.
pub const FINGERPRINT: &str = concat!("muster-sim-", env!("CARGO_PKG_VERSION"));
