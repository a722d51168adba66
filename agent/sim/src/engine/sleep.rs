//! Sleeping and pausing. Both hold the requests; sleep also lets go of memory.

use serde::Serialize;

use super::{Engine, locked};

/// What happens to the requests under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// They end at once, with `abort`.
    Abort,
    /// They end by themselves first.
    Wait,
    /// They stand still, and go on later.
    Keep,
}

impl Mode {
    /// As vLLM spells it.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "abort" => Some(Self::Abort),
            "wait" => Some(Self::Wait),
            "keep" => Some(Self::Keep),
            _ => None,
        }
    }
}

/// An engine's sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sleep {
    /// 0 keeps everything, 1 offloads the weights, 2 discards them.
    pub level: u8,
    /// Whether the weights are back.
    pub weights: bool,
    /// Whether the key-value cache is back.
    pub kv_cache: bool,
}

/// What waking came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Woken {
    /// Something is still missing.
    Sleeping,
    /// Nothing is.
    Awake,
}

impl Engine {
    /// Holds all requests, in [`Mode::Wait`] after those under way have ended. The ones that it aborts may still be on
    /// their way to their clients when it returns: how fast those read is their business.
    pub async fn pause(&self, mode: Mode) {
        let next = locked(&self.open).next;
        self.control.send_modify(|control| {
            let held = if mode == Mode::Keep { 0 } else { next };
            control.held_from = Some(control.held_from.map_or(held, |before| before.min(held)));
            if mode == Mode::Abort {
                control.aborted_below = next;
            }
        });
        if mode == Mode::Wait {
            // Those that were held before do not end; nobody waits for them.
            let held = self.control.borrow().held_from.unwrap_or(next);
            self.ended_below(held).await;
        }
    }

    /// [`pause`](Self::pause), then sleep.
    pub async fn fall_asleep(&self, level: u8, mode: Mode) {
        self.pause(mode).await;
        *locked(&self.sleep) = Some(Sleep { level, weights: false, kv_cache: false });
    }

    /// Brings back what the tags name, everything if there are none, and goes on when nothing is missing.
    pub fn wake_up(&self, tags: &[&str]) -> Woken {
        let mut sleep = locked(&self.sleep);
        if let Some(sleep) = sleep.as_mut() {
            sleep.weights |= tags.is_empty() || tags.contains(&"weights");
            sleep.kv_cache |= tags.is_empty() || tags.contains(&"kv_cache");
            if !(sleep.weights && sleep.kv_cache) {
                return Woken::Sleeping;
            }
        }
        *sleep = None;
        drop(sleep);
        self.control.send_modify(|control| control.held_from = None);
        Woken::Awake
    }

    /// Ends a pause, not a sleep.
    pub fn resume(&self) {
        if self.sleep().is_none() {
            self.control.send_modify(|control| control.held_from = None);
        }
    }

    /// Its sleep, if it sleeps.
    #[must_use]
    pub fn sleep(&self) -> Option<Sleep> {
        *locked(&self.sleep)
    }

    /// Whether requests are held, by a pause or by sleep.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.control.borrow().held_from.is_some()
    }

    /// The memory that it says it holds: all while awake; asleep at level 1 or 2 half of it for what has been woken of
    /// weights and cache, if `--enable-sleep-mode` is set.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        let bytes = self.settings.arguments.gpu_memory_mib << 20;
        match self.sleep() {
            Some(sleep) if sleep.level > 0 && self.settings.arguments.enable_sleep_mode => {
                bytes / 2 * (u64::from(sleep.weights) + u64::from(sleep.kv_cache))
            }
            _ => bytes,
        }
    }
}
