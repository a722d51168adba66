//! What the command line and the environment come to.

use std::time::Duration;

use crate::arguments::Arguments;
use crate::lora::Adapter;

/// The version of vLLM whose behaviour is simulated.
pub const VLLM_VERSION: &str = "0.32.0";

/// The settings of a process.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The command line.
    pub arguments: Arguments,
    /// Whether the routes for development are there.
    pub dev_mode: bool,
}

impl Settings {
    /// The model as it was given.
    #[must_use]
    pub fn root(&self) -> &str {
        self.arguments.model_tag.as_deref().unwrap_or(&self.arguments.model)
    }

    /// The base model's names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let served = self.arguments.served_model_name.iter().map(String::as_str);
        let root = self.arguments.served_model_name.is_empty().then(|| self.root());
        served.chain(root)
    }

    /// The name that answers and metrics carry.
    #[must_use]
    pub fn name(&self) -> &str {
        self.arguments.served_model_name.first().map_or_else(|| self.root(), String::as_str)
    }

    /// The adapters that are served.
    #[must_use]
    pub fn adapters(&self) -> &[Adapter] {
        if self.arguments.enable_lora { &self.arguments.lora_modules } else { &[] }
    }

    /// The name that the answer to a request for `model` carries, if there is such a model.
    #[must_use]
    pub fn answering<'a>(&'a self, model: Option<&str>) -> Option<&'a str> {
        let Some(model) = model else { return Some(self.name()) };
        if self.names().any(|name| name == model) {
            return Some(self.name());
        }
        self.adapters().iter().map(|adapter| adapter.name.as_str()).find(|name| *name == model)
    }

    /// The time between two tokens.
    #[must_use]
    pub fn interval(&self) -> Duration {
        let rate = self.arguments.tokens_per_second;
        if rate > 0.0 { Duration::from_secs_f64(rate.recip()) } else { Duration::ZERO }
    }
}
