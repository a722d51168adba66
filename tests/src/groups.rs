//! What some tests need of the machine. A test that can not run is skipped with a reason that ends up in the table of
//! `make test`, and fails instead where `MUSTER_TEST_REQUIRE` names its group, which is its test binary.

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io::Write;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::containers;

/// Something that not every machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// A C compiler, for the library that stands between a process and its disk.
    Compiler,
    /// The right to mount a file system in a mount namespace.
    Mounts,
    /// That nobody has the ports on loopback that a node has by default. Other tests do not use them.
    UsualPorts,
    /// The client library of OpenAI, which `tests/prepare test` installs.
    OpenAiSdk,
    /// A real llama-server with a tiny model, which `tests/prepare test` builds.
    Llama,
    /// A Docker Engine of the tests' own, and the simulator for its images.
    Docker,
    /// A Podman of the tests' own, and the simulator for its images.
    Podman,
    /// The right to make network namespaces, and the tools to join and to cut them.
    Networks,
}

impl Need {
    /// Whether the calling test of this group can run. If not, the reason is written down.
    ///
    /// # Panics
    /// When the group is required and this test of it can not run.
    #[must_use]
    pub fn is_met(self, group: &str) -> bool {
        let Err(why) = self.check() else { return true };
        let required = std::env::var("MUSTER_TEST_REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|name| name.trim() == group), "the group {group} is required here, but {why}");
        println!("skipped: {group} ({why})");
        if let Ok(path) = std::env::var("MUSTER_TEST_SKIPPED")
            && let Ok(mut file) = OpenOptions::new().create(true).append(true).open(path)
        {
            let _ = writeln!(file, "{group}\t{why}");
        }
        false
    }

    fn check(self) -> Result<(), &'static str> {
        match self {
            Self::Compiler => runs("cc", &["--version"], "there is no C compiler (cc)"),
            Self::Mounts => runs(
                "unshare",
                &["--mount", "sh", "-c", "mount -t tmpfs -o size=1m tmpfs /mnt"],
                "no file system can be mounted (root needed)",
            ),
            Self::UsualPorts => match [8000, 4000].map(|port| TcpListener::bind(("127.0.0.1", port))) {
                [Ok(_), Ok(_)] => Ok(()),
                _ => Err("somebody has port 8000 or 4000 of 127.0.0.1"),
            },
            Self::OpenAiSdk => {
                runs(sdk_python(), &["-c", "import openai"], "the library of OpenAI is not there (tests/prepare test)")
            }
            Self::Llama => {
                runs(llama("llama-server"), &["--version"], "there is no llama-server (tests/prepare test builds one)")
            }
            Self::Docker => {
                daemon(containers::DOCKER, "there is no Docker Engine of the tests' own (make test, as root)")
            }
            Self::Podman => daemon(containers::PODMAN, "there is no Podman of the tests' own (make test, as root)"),
            Self::Networks => runs(
                "unshare",
                &["--net", "sh", "-c", crate::net::TRIAL],
                "no network can be made and cut (root, iproute2 and nftables needed)",
            ),
        }
    }
}

/// The Python that has the client library of OpenAI, where it is installed.
///
/// # Panics
/// When the test binary does not lie in a build directory.
#[must_use]
pub fn sdk_python() -> PathBuf {
    prepared("sdk/bin/python")
}

/// A file of the real llama-server, where it is built.
///
/// # Panics
/// When the test binary does not lie in a build directory.
#[must_use]
pub fn llama(file: &str) -> PathBuf {
    prepared("llama").join(file)
}

fn prepared(what: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the path of the test");
    test.ancestors().nth(3).expect("a build directory").join(what)
}

fn daemon(variable: &str, otherwise: &'static str) -> Result<(), &'static str> {
    let is_set = |variable| std::env::var_os(variable).is_some_and(|value| !value.is_empty());
    if is_set(variable) && is_set(containers::SIMULATOR) { Ok(()) } else { Err(otherwise) }
}

fn runs(program: impl AsRef<OsStr>, arguments: &[&str], otherwise: &'static str) -> Result<(), &'static str> {
    let outcome = Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
    match outcome {
        Ok(status) if status.success() => Ok(()),
        _ => Err(otherwise),
    }
}
