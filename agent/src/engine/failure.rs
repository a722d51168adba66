//! Why an engine has failed, and what helps.

use std::fmt;

use crate::runtime::Exit;

/// How many of the last lines of a log are looked at for the reason.
pub const WINDOW: u64 = 300;

/// The reasons that are recognised. Where a log shows several, the first in this order counts: the later ones are often
/// what follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FailureClass {
    /// The GPU's memory does not suffice.
    GpuOom,
    /// Nothing, or not enough for one request, is left for the cache.
    KvCacheTooSmall,
    /// The engine sees no GPU.
    NoGpu,
    /// The kernel ended it because the machine's memory ran out.
    HostOom,
    /// There is too little shared memory.
    ShmTooSmall,
    /// The hub refuses access.
    HfAuth,
    /// The hub can not be reached, and the model is not on the node.
    HubUnreachable,
    /// There is no such model.
    ModelNotFound,
    /// Its address is taken.
    PortConflict,
    /// The disk is full.
    DiskFull,
    /// It can not sleep on this machine.
    SleepUnsupported,
    /// It does not take its command line, or lacks a module.
    BadArgs,
}

impl FailureClass {
    /// All of them, in their order.
    pub const ALL: [Self; 12] = [
        Self::GpuOom,
        Self::KvCacheTooSmall,
        Self::NoGpu,
        Self::HostOom,
        Self::ShmTooSmall,
        Self::HfAuth,
        Self::HubUnreachable,
        Self::ModelNotFound,
        Self::PortConflict,
        Self::DiskFull,
        Self::SleepUnsupported,
        Self::BadArgs,
    ];

    /// As the API spells it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::GpuOom => "gpu_oom",
            Self::KvCacheTooSmall => "kv_cache_too_small",
            Self::NoGpu => "no_gpu",
            Self::HostOom => "host_oom",
            Self::ShmTooSmall => "shm_too_small",
            Self::HfAuth => "hf_auth",
            Self::HubUnreachable => "hub_unreachable",
            Self::ModelNotFound => "model_not_found",
            Self::PortConflict => "port_conflict",
            Self::DiskFull => "disk_full",
            Self::SleepUnsupported => "sleep_unsupported",
            Self::BadArgs => "bad_args",
        }
    }

    /// What has happened.
    #[must_use]
    pub fn cause(self) -> &'static str {
        match self {
            Self::GpuOom => "the GPU's memory did not suffice",
            Self::KvCacheTooSmall => "the GPU memory left for the KV cache is too small",
            Self::NoGpu => "the engine sees no GPU",
            Self::HostOom => "the machine's memory ran out",
            Self::ShmTooSmall => "the shared memory (/dev/shm) is too small",
            Self::HfAuth => "the model hub refuses access to the model",
            Self::HubUnreachable => "the model is not on the node and the model hub can not be reached",
            Self::ModelNotFound => "the model, or a file that it needs, was not found",
            Self::PortConflict => "the address that the engine listens on is taken",
            Self::DiskFull => "the node's disk is full",
            Self::SleepUnsupported => "the engine does not support sleep mode on this machine",
            Self::BadArgs => "the engine does not accept its arguments",
        }
    }

    /// What helps.
    #[must_use]
    pub fn remedy(self) -> &'static str {
        match self {
            Self::GpuOom => {
                "Stop what else uses the GPU, change gpu_memory_fraction, lower max_model_len or max_num_seqs, use a quantized \
                 model, or more GPUs with tensor_parallel_size"
            }
            Self::KvCacheTooSmall => "Raise gpu_memory_fraction, lower max_model_len, or use more GPUs",
            Self::NoGpu => {
                "Check that the driver works on the node (nvidia-smi), that the container runtime has GPU access, and that the \
                 image fits the GPU"
            }
            Self::HostOom => "Free memory on the node, use a smaller model, or limit what sleeps there",
            Self::ShmTooSmall => "Give the engine more shared memory, or run it with fewer ranks",
            Self::HfAuth => {
                "Check the model's name, accept its terms at the hub, and set HF_TOKEN to a token that may read it"
            }
            Self::HubUnreachable => "Connect the node to the hub, or put the model on the node first",
            Self::ModelNotFound => {
                "Check model_name, the revision and the LoRA paths: a directory must exist on the node"
            }
            Self::PortConflict => "Start it again, or choose another port",
            Self::DiskFull => "Delete models or images that are not needed on the node",
            Self::SleepUnsupported => "Set engine_args.disable_sleep_mode, or run it on another node",
            Self::BadArgs => {
                "Check engine_args and extra_args against the version of the engine, and the packages that they need"
            }
        }
    }
}

impl fmt::Display for FailureClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How an engine has failed. Its text quotes nothing of the log, which may hold secrets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Why, where it was recognised.
    pub class: Option<FailureClass>,
    /// How the unit ended.
    pub exit: Exit,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.class, self.exit.code, self.exit.signal) {
            (Some(class), ..) => write!(f, "{}. {}", class.cause(), class.remedy()),
            (None, _, Some(signal)) => write!(f, "the engine was ended by signal {signal}. Its log may say why"),
            (None, Some(code), None) => write!(f, "the engine ended with exit code {code}. Its log may say why"),
            (None, None, None) => f.write_str("the engine ended. Its log may say why"),
        }
    }
}

/// What the last lines of a log give as reason. It keeps no text.
#[derive(Clone, Debug, Default)]
pub struct Clues {
    lines: u64,
    /// For each class, the number of the last line that shows it; 0 is none.
    last: [u64; FailureClass::ALL.len()],
}

impl Clues {
    /// Takes the next line in, with what it shows.
    pub fn line(&mut self, shows: Option<FailureClass>) {
        self.lines += 1;
        if let Some(class) = shows {
            self.last[class as usize] = self.lines;
        }
    }

    /// The first class that one of the last [`WINDOW`] lines shows.
    #[must_use]
    pub fn class(&self) -> Option<FailureClass> {
        let recent = |class: &FailureClass| {
            let last = self.last[*class as usize];
            last > 0 && self.lines - last < WINDOW
        };
        FailureClass::ALL.into_iter().find(recent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_listed_in_their_order_and_have_names_and_remedies_of_their_own() {
        assert!(FailureClass::ALL.is_sorted());
        for (at, class) in FailureClass::ALL.into_iter().enumerate() {
            assert_eq!(class as usize, at);
            for other in &FailureClass::ALL[at + 1..] {
                assert!(class.name() != other.name() && class.remedy() != other.remedy());
            }
        }
    }

    #[test]
    fn the_first_class_counts_and_not_the_last_line() {
        let mut clues = Clues::default();
        assert_eq!(clues.class(), None);
        clues.line(Some(FailureClass::BadArgs));
        assert_eq!(clues.class(), Some(FailureClass::BadArgs));
        clues.line(Some(FailureClass::GpuOom));
        clues.line(Some(FailureClass::ModelNotFound));
        assert_eq!(clues.class(), Some(FailureClass::GpuOom));
    }

    #[test]
    fn what_was_said_long_before_the_end_is_not_the_reason() {
        let mut clues = Clues::default();
        clues.line(Some(FailureClass::GpuOom));
        for _ in 1..WINDOW {
            clues.line(None);
        }
        assert_eq!(clues.class(), Some(FailureClass::GpuOom));
        clues.line(None);
        assert_eq!(clues.class(), None);
    }

    #[test]
    fn a_failure_says_what_is_known() {
        let exit = Exit { code: Some(1), signal: None, out_of_memory: false };
        let known = Failure { class: Some(FailureClass::NoGpu), exit }.to_string();
        assert!(known.starts_with("the engine sees no GPU. Check"), "{known}");
        let code = Failure { class: None, exit }.to_string();
        assert!(code.contains("exit code 1"), "{code}");
        let signal = Failure { class: None, exit: Exit { signal: Some(9), ..exit } }.to_string();
        assert!(signal.contains("signal 9"), "{signal}");
        let nothing = Failure { class: None, exit: Exit { code: None, ..exit } }.to_string();
        assert!(nothing.starts_with("the engine ended."), "{nothing}");
    }
}
