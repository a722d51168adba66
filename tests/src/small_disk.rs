//! A small disk of a test's own.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::process::run;

/// A file system in a mount namespace of its own, seen through `/proc`; it is gone with the process that holds it.
#[derive(Debug)]
pub struct SmallDisk {
    holder: Child,
    mounted_at: PathBuf,
    directory: tempfile::TempDir,
}

impl SmallDisk {
    /// One of this size.
    ///
    /// # Panics
    /// When it can not be mounted.
    #[must_use]
    pub fn new(megabytes: u32) -> Self {
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
        Self { holder, mounted_at, directory }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.mounted_at
    }

    /// Where processes find it that were started by [`Self::enter`].
    #[must_use]
    pub fn inside(&self) -> &Path {
        self.directory.path()
    }

    /// The command, run where the disk is mounted.
    #[must_use]
    pub fn enter(&self, command: &Command) -> Command {
        let mut entering = Command::new("nsenter");
        entering.args([&format!("--target={}", self.holder.id()), "--mount", "--"]);
        entering.arg(command.get_program()).args(command.get_args()).env_clear();
        entering.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        entering.env("PATH", std::env::var_os("PATH").unwrap_or_default()).stdin(Stdio::null());
        entering
    }

    /// Gives it another size.
    ///
    /// # Panics
    /// When that fails.
    pub fn grow(&self, megabytes: u32) {
        let target = format!("--target={}", self.holder.id());
        let output = run(Command::new("nsenter")
            .args([&target, "--mount", "mount", "-o", &format!("remount,size={megabytes}m")])
            .arg(self.directory.path()));
        assert!(output.status.success(), "{output:?}");
    }

    fn ballast(&self) -> PathBuf {
        self.mounted_at.join("ballast")
    }

    /// Takes all the room that is left, and returns how many bytes that was.
    ///
    /// # Panics
    /// When the disk is full already, or refuses for another reason.
    pub fn fill(&self) -> u64 {
        let mut file = File::create(self.ballast()).expect("a file");
        for chunk in [1 << 20, 1 << 12, 1] {
            loop {
                match file.write(&vec![1; chunk]) {
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::StorageFull => break,
                    Err(error) => panic!("another failure: {error}"),
                }
            }
        }
        let filled = file.metadata().expect("its length").len();
        assert!(filled > 0, "the disk was full before");
        filled
    }

    /// Gives back the room that was taken.
    ///
    /// # Panics
    /// When none was.
    pub fn make_room(&self) {
        std::fs::remove_file(self.ballast()).expect("what was taken");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
