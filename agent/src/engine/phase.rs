//! How far an engine has come while it loads.

use std::fmt;

/// What an engine is doing before it can be used, as far as its log tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Files of the model come from the hub.
    Downloading,
    /// The weights go into memory.
    LoadingWeights,
    /// Code is made for the model, and its cache laid out.
    Compiling,
    /// It says that it has started.
    Ready,
}

impl Phase {
    /// As the API spells it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Downloading => "downloading",
            Self::LoadingWeights => "loading_weights",
            Self::Compiling => "compiling",
            Self::Ready => "ready",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
