//! Full disks, on a small file system of the test's own.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use muster_tests::groups::Need;
use muster_tests::process::{Process, run};
use muster_tests::workload::{History, PATIENCE, worker};

/// A file system in a mount namespace of its own, seen through `/proc`; it is gone with the process that holds it.
struct SmallDisk {
    holder: Child,
    mounted_at: PathBuf,
    _directory: tempfile::TempDir,
}

impl SmallDisk {
    fn new(megabytes: u32) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let script = format!("mount -t tmpfs -o size={megabytes}m tmpfs \"$0\" && echo mounted && read line");
        let mut holder = Command::new("unshare")
            .args(["--mount", "sh", "-c", &script])
            .arg(directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare starts");
        let mut line = String::new();
        BufReader::new(holder.stdout.take().expect("a pipe")).read_line(&mut line).expect("reads");
        assert_eq!(line, "mounted\n");
        let inside = directory.path().strip_prefix("/").expect("an absolute path");
        let mounted_at = Path::new("/proc").join(holder.id().to_string()).join("root").join(inside);
        Self { holder, mounted_at, _directory: directory }
    }

    fn grow(&self, megabytes: u32) {
        let target = format!("--target={}", self.holder.id());
        let output = run(Command::new("nsenter")
            .args([&target, "--mount", "mount", "-o", &format!("remount,size={megabytes}m")])
            .arg(self._directory.path()));
        assert!(output.status.success(), "{output:?}");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

#[test]
fn a_full_disk_stops_the_store_cleanly_and_it_goes_on_when_there_is_room() {
    if !Need::Mounts.is_met("tmpfs") {
        return;
    }
    // From too small for the databases to be made, to full in the middle of work.
    for megabytes in [1, 3, 5, 7, 9, 12] {
        let disk = SmallDisk::new(megabytes);
        let elsewhere = tempfile::tempdir().expect("a directory");
        let (data, acks) = (disk.mounted_at.join("data"), elsewhere.path().join("lines.acks"));
        let status = Process::start(worker(&data, &acks, 1, 1_000_000).stderr(Stdio::null())).wait(PATIENCE);
        assert_eq!(status.code(), Some(70), "{megabytes} MiB: the worker ended with {status}");
        disk.grow(megabytes + 100);
        let history = History::read(&acks).expect("every promise held while it ran");
        history.check(&data).unwrap_or_else(|why| panic!("{megabytes} MiB: {why}"));
        let status = Process::start(&mut worker(&data, &acks, 2, 200)).wait(PATIENCE);
        assert!(status.success(), "{megabytes} MiB: with room again, the worker ended with {status}");
        let after = History::read(&acks).expect("every promise holds");
        assert!(after.acknowledgements() > history.acknowledgements());
        println!("{megabytes} MiB: {} operations acknowledged before the disk was full", history.acknowledgements());
    }
}
