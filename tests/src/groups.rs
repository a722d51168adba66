//! Groups of tests that need something of the machine. A group that can not run is skipped with a reason that ends up in
//! the table of `make test`, and fails instead where `MUSTER_TEST_REQUIRE` names it.

use std::fs::OpenOptions;
use std::io::Write;
use std::process::{Command, Stdio};

/// A group of tests, named like its test binary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Starts real processes and kills them.
    Process,
    /// Replays losses of power from a recording; needs a C compiler for the recorder.
    Powercut,
    /// Mounts small file systems; needs root.
    Tmpfs,
}

impl Group {
    /// The name in the table and in `MUSTER_TEST_REQUIRE`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Powercut => "powercut",
            Self::Tmpfs => "tmpfs",
        }
    }

    /// Whether the calling test can run. If not, the reason is written down; a required group fails here.
    ///
    /// # Panics
    /// When the group is required and can not run.
    #[must_use]
    pub fn can_run(self) -> bool {
        let Err(why) = self.check() else { return true };
        let required = std::env::var("MUSTER_TEST_REQUIRE").unwrap_or_default();
        assert!(
            !required.split(',').any(|name| name.trim() == self.name()),
            "the group {} is required here, but {why}",
            self.name()
        );
        println!("skipped: {} ({why})", self.name());
        if let Ok(path) = std::env::var("MUSTER_TEST_SKIPPED")
            && let Ok(mut file) = OpenOptions::new().create(true).append(true).open(path)
        {
            let _ = writeln!(file, "{}\t{why}", self.name());
        }
        false
    }

    fn check(self) -> Result<(), String> {
        match self {
            Self::Process => Ok(()),
            Self::Powercut => runs("cc", &["--version"], "there is no C compiler (cc)"),
            Self::Tmpfs => runs(
                "unshare",
                &["--mount", "sh", "-c", "mount -t tmpfs -o size=1m tmpfs /mnt"],
                "no file system can be mounted (root needed)",
            ),
        }
    }
}

fn runs(program: &str, arguments: &[&str], otherwise: &str) -> Result<(), String> {
    let outcome = Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
    match outcome {
        Ok(status) if status.success() => Ok(()),
        _ => Err(otherwise.to_owned()),
    }
}
