//! A time of day of a process's own (`shim/clock.c`), which is put forward and back while the process runs.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use crate::process::clock_library;

/// The time of day of a process.
#[derive(Debug)]
pub struct WallClock {
    // Mapped by the process: written over in place, never made anew.
    file: File,
    path: PathBuf,
}

impl WallClock {
    /// A right one, kept in this file, which is made.
    ///
    /// # Panics
    /// When the file can not be made.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        let file = File::options().create(true).truncate(true).write(true).open(&path).expect("the file of a clock");
        let clock = Self { file, path };
        clock.put(0);
        clock
    }

    /// What a process must have in its environment to go by it.
    #[must_use]
    pub fn variables(&self) -> [(&'static str, PathBuf); 2] {
        [("LD_PRELOAD", clock_library().to_owned()), ("CLOCK_FILE", self.path.clone())]
    }

    /// Puts it so far ahead of the machine's.
    pub fn ahead(&self, by: Duration) {
        self.put(milliseconds(by));
    }

    /// Puts it so far behind the machine's.
    pub fn behind(&self, by: Duration) {
        self.put(-milliseconds(by));
    }

    fn put(&self, milliseconds: i64) {
        self.file.write_all_at(&milliseconds.to_ne_bytes(), 0).expect("the clock is put");
    }
}

fn milliseconds(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).expect("less than an age")
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;
    use crate::groups::Need;
    use crate::process::run;

    #[test]
    fn a_process_goes_by_a_clock_that_is_put_forward_and_back() {
        if !Need::Compiler.is_met("unit") {
            return;
        }
        let directory = tempfile::tempdir().expect("a directory");
        let clock = WallClock::new(directory.path().join("clock"));
        let day = 24 * 3600;
        let shown = || {
            let output = run(Command::new("date").arg("+%s").envs(clock.variables()));
            let seconds: i64 = String::from_utf8_lossy(&output.stdout).trim().parse().expect("seconds");
            let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
            seconds - i64::try_from(now).expect("few")
        };
        let about = |seconds: i64| (seconds - 2..=seconds).contains(&shown());
        assert!(about(0));
        clock.ahead(Duration::from_secs(60 * day));
        assert!(about(60 * day as i64));
        clock.behind(Duration::from_millis(1_500));
        assert!(about(-1), "{}", shown());
    }
}
