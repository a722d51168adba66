//! Why there is no room for a model, in words for an operator.

use std::fmt;

use super::super::gpu::{Bytes, Share, ShortOfMemory};
use super::super::words::{Listed, Named, Seconds};
use crate::ids::PlacementId;

/// There is no room for a model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{cause}{retry}")]
pub struct Blocked {
    /// Why.
    pub cause: Cause,
    /// Whether it helps to wait.
    pub retry: Retry,
}

/// Why there is no room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The models that stay take too much of a GPU.
    NoRoom {
        /// The GPUs that lack something.
        gpus: Vec<ShortGpu>,
        /// The names of the models that would have been put to sleep, and were not enough.
        moved: Vec<String>,
        /// The models on those GPUs that stay.
        models: Vec<Stay>,
    },
    /// There is no memory in which the models could sleep.
    CacheFull(CacheFull),
    /// More models are in the way than one plan moves.
    TooMany,
}

/// What a GPU lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShortGpu {
    /// The GPU.
    pub gpu: u32,
    /// What it lacks: at least one thing.
    pub lacks: Vec<Lack>,
}

/// One thing that a GPU lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// The node has no such GPU.
    NotThere,
    /// The driver has lost it.
    Lost,
    /// The shares of models that stay and of the new one are more than one GPU.
    Shares {
        /// Those that stay.
        taken: Share,
        /// The new one.
        asked: Share,
    },
    /// By what has been measured, the memory is not there.
    Memory(ShortOfMemory),
}

/// A model that stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stay {
    /// Its placement.
    pub placement: PlacementId,
    /// What an operator knows it by.
    pub name: String,
    /// Why.
    pub why: Stays,
}

/// Why a model stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stays {
    /// It was started without sleep.
    NotWarm,
    /// It is protected.
    Pinned,
    /// It is on a GPU that shares the machine's memory.
    Unified,
    /// It is not up yet.
    Starting,
    /// It is not up yet.
    Loading,
    /// It is not up again yet.
    Waking,
    /// It goes by itself.
    Leaving,
    /// It works on so many requests.
    InFlight(u32),
    /// It was used a moment ago.
    JustUsed {
        /// How long ago, in milliseconds.
        ago_ms: u64,
        /// How much longer it is left alone for that, in milliseconds.
        left_ms: u64,
    },
    /// It became awake a moment ago.
    JustAwake {
        /// How long ago, in milliseconds.
        for_ms: u64,
        /// How much longer it is left alone for that, in milliseconds.
        left_ms: u64,
    },
}

impl Stays {
    /// Whether that ends without anybody changing anything.
    #[must_use]
    pub fn passes(self) -> bool {
        !matches!(self, Self::NotWarm | Self::Pinned | Self::Unified)
    }

    /// In how many milliseconds it ends, if nothing else comes: unknown for work under way.
    fn left_ms(self) -> Option<u64> {
        match self {
            Self::JustUsed { left_ms, .. } | Self::JustAwake { left_ms, .. } => Some(left_ms),
            _ => None,
        }
    }
}

/// How the limit for sleeping models stands in the way, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheFull {
    /// The limit.
    pub limit: u64,
    /// What they would take.
    pub needed: u64,
    /// What they would take if all sleepers that may be stopped were.
    pub least: u64,
}

/// Whether it helps to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Not before somebody changes something: what runs here, a pin, a limit.
    Never,
    /// It may.
    Later {
        /// In how many milliseconds the first model that stays may go. `None`: when work under way ends, and nobody can say when
        /// that is.
        after_ms: Option<u64>,
    },
}

/// When the first of the models that stay may go.
pub(super) fn first_change(cause: &Cause) -> Option<u64> {
    match cause {
        Cause::NoRoom { models, .. } => models.iter().filter_map(|stay| stay.why.left_ms()).min(),
        Cause::CacheFull(_) | Cause::TooMany => None,
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRoom { gpus, moved, models } => {
                if moved.is_empty() {
                    f.write_str("there is no room: ")?;
                } else {
                    write!(f, "there is no room even with {} asleep: ", Listed(moved, ", "))?;
                }
                write!(f, "{}", Listed(gpus, "; "))?;
                if !models.is_empty() {
                    write!(f, "; {}", Listed(models, "; "))?;
                } else if gpus.iter().flat_map(|gpu| &gpu.lacks).any(|lack| !lack.is_of_the_gpu()) {
                    f.write_str("; no model there could be put to sleep")?;
                }
                Ok(())
            }
            Self::CacheFull(CacheFull { limit, needed, least }) => {
                let (limit, needed, least) = (Bytes(*limit), Bytes(*needed), Bytes(*least));
                write!(
                    f,
                    "the GPU + RAM cache is full: with room for this one, sleeping models would take {needed} of memory, \
                     {least} if every other sleeper were stopped, and the node's limit is {limit}"
                )
            }
            Self::TooMany => f.write_str("there are too many models in the way"),
        }
    }
}

impl Lack {
    /// Whether the GPU itself is what is missing.
    fn is_of_the_gpu(self) -> bool {
        matches!(self, Self::NotThere | Self::Lost)
    }
}

impl fmt::Display for ShortGpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GPU {}: {}", self.gpu, Listed(&self.lacks, ", and "))
    }
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NotThere => f.write_str("this node has no such GPU"),
            Self::Lost => f.write_str("the driver has lost it"),
            Self::Shares { taken, asked } => {
                write!(f, "{taken} taken + {asked} requested = {} of 1", taken.plus(asked))
            }
            Self::Memory(short) => short.fmt(f),
        }
    }
}

impl fmt::Display for Stay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}) stays: {}", self.name, Named(self.placement), self.why)
    }
}

impl fmt::Display for Stays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NotWarm => f.write_str("it was started without sleep mode"),
            Self::Pinned => f.write_str("it is pinned"),
            Self::Unified => f.write_str("its GPU uses the machine's memory, so sleep would free nothing"),
            Self::Starting => f.write_str("it is busy starting"),
            Self::Loading => f.write_str("it is busy loading"),
            Self::Waking => f.write_str("it is busy waking up"),
            Self::Leaving => f.write_str("it is already on its way out"),
            Self::InFlight(1) => f.write_str("it is busy with 1 request"),
            Self::InFlight(requests) => write!(f, "it is busy with {requests} requests"),
            Self::JustUsed { ago_ms, left_ms } => {
                write!(f, "it is busy, used {} ago and kept for {} more", Seconds(ago_ms), Seconds(left_ms))
            }
            Self::JustAwake { for_ms, left_ms } => {
                write!(f, "it has been awake for {} and is kept for {} more", Seconds(for_ms), Seconds(left_ms))
            }
        }
    }
}

/// What follows the reason.
impl fmt::Display for Retry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Never => Ok(()),
            Self::Later { after_ms: Some(after_ms) } => write!(f, "; try again in {}", Seconds(after_ms)),
            Self::Later { after_ms: None } => f.write_str("; try again when they are done"),
        }
    }
}
