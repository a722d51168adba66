//! Starting an engine's process: what it sees, and that it outlives this one.

use std::fs::File;
use std::io;
use std::os::unix::fs::{OpenOptionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::kernel::{self, Identity};
use super::options::{Account, Program};
use super::{directory, options::unavailable};
use crate::runtime::{Launch, Owner, RuntimeError, UnitId};

/// What of this process's environment an engine sees.
const INHERITED: [&str; 12] = [
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "TMPDIR",
    "USER",
    "LOGNAME",
    "LD_LIBRARY_PATH",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
];

/// Where the program that makes a session is.
const SETSID: [&str; 3] = ["/usr/bin/setsid", "/bin/setsid", "/usr/local/bin/setsid"];

/// The name of the entry in the environment by which a unit's processes are known.
const MARK: &str = "MUSTER_UNIT";

/// That entry, whole.
pub(super) fn mark(owner: &Owner, unit: UnitId) -> String {
    format!("{MARK}={}/{}/{unit}", owner.fleet, owner.node)
}

/// Refuses what the system would refuse, in words that tell no values.
pub(super) fn check(launch: &Launch) -> Result<(), RuntimeError> {
    for (name, value) in &launch.environment {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(RuntimeError::Unsuitable(format!("{name:?} is no name for an environment variable")));
        }
        if value.reveal().contains('\0') {
            return Err(RuntimeError::Unsuitable(format!("the value of {name} has a NUL in it")));
        }
    }
    if launch.arguments.iter().any(|argument| argument.contains('\0')) {
        return Err(RuntimeError::Unsuitable("an argument of the engine has a NUL in it".to_owned()));
    }
    Ok(())
}

/// Starts the process in a session of its own. Nobody waits for it.
pub(super) fn spawn(
    unit: &Path,
    socket_directory: &Path,
    program: &Program,
    account: &Account,
    owner: &Owner,
    launch: &Launch,
) -> Result<Identity, RuntimeError> {
    let start = |error: io::Error| RuntimeError::Start(format!("{}: {error}", program.path.display()));
    let log = open_log(&unit.join(directory::LOG), account).map_err(start)?;
    let mut command = in_a_session(&program.path);
    command
        .args(&program.arguments)
        .args(&launch.arguments)
        .current_dir(socket_directory)
        .stdin(Stdio::null())
        .stdout(log.try_clone().map_err(start)?)
        .stderr(log)
        .env_clear();
    for name in INHERITED {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    if account.other {
        command.uid(account.uid).gid(account.gid);
        if let Some(home) = &account.home {
            command.env("HOME", home);
        }
        if let Some(name) = &account.name {
            command.env("USER", name).env("LOGNAME", name);
        }
    }
    for (name, value) in &launch.environment {
        command.env(name, value.reveal());
    }
    let gpus: Vec<&str> = launch.gpus.iter().map(|gpu| gpu.uuid.as_str()).collect();
    command.env("CUDA_VISIBLE_DEVICES", gpus.join(","));
    let mark = mark(owner, launch.unit);
    command.env(MARK, mark.strip_prefix(MARK).and_then(|rest| rest.strip_prefix('=')).unwrap_or_default());
    let child = command.spawn().map_err(start)?;
    // It stays in the process table until this process has asked how it ended, which nobody has done yet.
    let entry = i32::try_from(child.id()).ok().and_then(kernel::look);
    entry.map(|entry| entry.identity).ok_or_else(|| unavailable("the process table can not be read"))
}

fn in_a_session(program: &PathBuf) -> Command {
    // It replaces itself by the program, so that the id stays.
    if let Some(setsid) = SETSID.iter().find(|path| Path::new(path).is_file()) {
        let mut command = Command::new(setsid);
        command.arg(program);
        return command;
    }
    let mut command = Command::new(program);
    command.process_group(0);
    command
}

/// Every write goes to the end, wherever that is, so that the file can be made shorter while the engine runs.
fn open_log(path: &Path, account: &Account) -> io::Result<File> {
    let log = File::options().create(true).append(true).mode(0o600).open(path)?;
    if account.other {
        // Programs open `/dev/stderr`, which asks again whether they may.
        chown(path, Some(account.uid), Some(account.gid))?;
    }
    Ok(log)
}
