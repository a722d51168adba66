//! What the kernel says of processes, and signals that reach only the process that is meant.
//!
//! Process ids are used again. A process is known by its id together with the time at which it started; a signal goes through
//! a descriptor of the process that is checked after it was opened, so that it can not hit another one.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process, pidfd_open, pidfd_send_signal, waitid,
};
use serde::{Deserialize, Serialize};

/// An environment can be this large at most, as far as anybody looks.
const ENVIRONMENT_LIMIT: u64 = 4 << 20;

/// How often is looked whether a process has ended.
const POLL: Duration = Duration::from_millis(100);

/// A process for as long as the machine is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Identity {
    /// The process id.
    pub(super) pid: i32,
    /// When it started, in clock ticks since boot.
    pub(super) started: u64,
}

/// A row of the process table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) identity: Identity,
    pub(super) parent: i32,
    pub(super) group: i32,
    pub(super) session: i32,
    /// Whether it runs; one that has ended stays until its parent has asked how.
    pub(super) alive: bool,
}

/// How a child has ended: its code, or the signal that ended it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Code(i32),
    Signal(i32),
}

/// This boot of the machine.
pub(super) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// The process with this id, if there is one.
pub(super) fn look(pid: i32) -> Option<Entry> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    parse_stat(&String::from_utf8_lossy(&stat))
}

/// Whether exactly this process runs.
pub(super) fn runs(process: Identity) -> bool {
    look(process.pid).is_some_and(|entry| entry.identity == process && entry.alive)
}

/// All processes that this one can see.
pub(super) fn all() -> io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Ok(entry) = entry else { continue };
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // It may have ended since the directory was read.
        entries.extend(look(pid));
    }
    Ok(entries)
}

/// The name in the second field can hold anything, a closing parenthesis too: the last one ends it.
fn parse_stat(stat: &str) -> Option<Entry> {
    let (head, tail) = stat.rsplit_once(')')?;
    let pid = head.split_once(' ')?.0.parse().ok()?;
    let mut fields = tail.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let group = fields.next()?.parse().ok()?;
    let session = fields.next()?.parse().ok()?;
    // The session is field 6 and the start field 22.
    let started = fields.nth(15)?.parse().ok()?;
    Some(Entry {
        identity: Identity { pid, started },
        parent,
        group,
        session,
        alive: !matches!(state, "Z" | "X" | "x"),
    })
}

/// Whether a process belongs to this user.
pub(super) fn is_of(pid: i32, uid: u32) -> bool {
    fs::metadata(format!("/proc/{pid}")).is_ok_and(|about| about.uid() == uid)
}

/// Whether a process was started with this entry (`NAME=value`) in its environment.
pub(super) fn carries(pid: i32, mark: &str) -> bool {
    let mut environment = Vec::new();
    let read = File::open(format!("/proc/{pid}/environ"))
        .and_then(|file| file.take(ENVIRONMENT_LIMIT).read_to_end(&mut environment));
    read.is_ok() && environment.split(|byte| *byte == 0).any(|entry| entry == mark.as_bytes())
}

/// Whether a process says what it says into this file (device and number).
pub(super) fn writes_to(pid: i32, file: (u64, u64)) -> bool {
    [1, 2].iter().any(|descriptor| {
        let link = PathBuf::from(format!("/proc/{pid}/fd/{descriptor}"));
        fs::metadata(link).is_ok_and(|about| (about.dev(), about.ino()) == file)
    })
}

/// Sends a signal to exactly this process. `false`: it is not there any more.
pub(super) fn signal(process: Identity, signal: Signal) -> io::Result<bool> {
    let Some(pid) = Pid::from_raw(process.pid) else { return Ok(false) };
    let sent = match pidfd_open(pid, PidfdFlags::empty()) {
        // The id can not go to another process between the look and the signal as far as the descriptor is concerned.
        Ok(descriptor) if runs(process) => pidfd_send_signal(&descriptor, signal),
        Ok(_) => return Ok(false),
        Err(Errno::NOSYS) if runs(process) => kill_process(pid, signal),
        Err(Errno::NOSYS) => return Ok(false),
        Err(error) => Err(error),
    };
    match sent {
        Ok(()) => Ok(true),
        Err(Errno::SRCH) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Waits until exactly this process has ended. It is looked for again and again: tokio has no safe way to wait for a
/// descriptor that it does not know.
pub(super) async fn gone(process: Identity) {
    while runs(process) {
        tokio::time::sleep(POLL).await;
    }
}

/// How a child of this process has ended; it stays in the process table. `None`: it runs, or it is not a child.
pub(super) fn ending(process: Identity) -> Option<Ending> {
    let status = wait(process, WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT)?;
    let code = status.exit_status().map(Ending::Code);
    code.or_else(|| status.terminating_signal().map(Ending::Signal))
}

/// Takes an ended child out of the process table. Others are not touched.
pub(super) fn reap(process: Identity) {
    wait(process, WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
}

fn wait(process: Identity, options: WaitIdOptions) -> Option<rustix::process::WaitIdStatus> {
    // A child's id is not used again before it has been reaped, so this check holds for the call below.
    if look(process.pid)?.identity != process {
        return None;
    }
    waitid(WaitId::Pid(Pid::from_raw(process.pid)?), options).ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_and_spaces_does_not_move_the_fields() {
        let stat = "77 (a) b (c)) S 5 70 60 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 991 100 200";
        let expected =
            Entry { identity: Identity { pid: 77, started: 991 }, parent: 5, group: 70, session: 60, alive: true };
        assert_eq!(parse_stat(stat), Some(expected));
        assert!(!parse_stat(&stat.replace(" S ", " Z ")).unwrap().alive);
    }

    #[test]
    fn what_is_no_row_of_the_process_table_is_none() {
        for text in ["", "77", "77 (x)", "77 (x) S 1 2", "x (x) S 5 70 60 0 -1 0 1 2 3 4 5 6 7 8 20 0 1 0 991"] {
            assert_eq!(parse_stat(text), None, "{text}");
        }
    }

    #[test]
    fn this_process_is_found_with_its_own_start() {
        let own = i32::try_from(std::process::id()).unwrap();
        let entry = look(own).unwrap();
        assert!(runs(entry.identity));
        assert!(all().unwrap().iter().any(|row| row.identity == entry.identity));
        assert!(!runs(Identity { started: entry.identity.started + 1, ..entry.identity }));
    }
}
