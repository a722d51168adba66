//! Child processes that never outlive their test, and waiting for a condition.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

pub use rustix::process::Signal;

/// A child process that is killed when the test lets go of it.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts it.
    ///
    /// # Panics
    /// When it can not be started.
    #[must_use]
    pub fn start(command: &mut Command) -> Self {
        match command.spawn() {
            Ok(child) => Self { child },
            Err(error) => panic!("{command:?} does not start: {error}"),
        }
    }

    /// The status, once it has ended.
    ///
    /// # Panics
    /// When the operating system does not say.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("the status of a child")
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        wait_for(limit, "the process to end", || self.ended())
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to end (SIGTERM).
    ///
    /// # Panics
    /// When the operating system refuses.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// When the operating system refuses.
    pub fn signal(&self, signal: Signal) {
        let process = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(process, signal).expect("sending a child a signal");
    }

    /// Stops it (SIGSTOP) and waits until no part of it runs any more.
    ///
    /// # Panics
    /// When it does not stop in time.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
        let tasks = PathBuf::from(format!("/proc/{}/task", self.id()));
        wait_for(Duration::from_secs(5), "the process to stop", || {
            let mut tasks = std::fs::read_dir(&tasks).ok()?;
            tasks
                .all(|task| {
                    let status = task.and_then(|task| std::fs::read_to_string(task.path().join("status")));
                    status.is_ok_and(|status| status.lines().any(|line| line.starts_with("State:\tT")))
                })
                .then_some(())
        });
    }

    /// Lets it go on (SIGCONT).
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Kills it with signal 9 and waits until it is gone.
    ///
    /// # Panics
    /// When the operating system refuses.
    pub fn kill(&mut self) {
        self.child.kill().expect("killing a child");
        self.child.wait().expect("waiting for a killed child");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Looks again and again until the condition has a value.
///
/// # Panics
/// When the limit has passed.
pub fn wait_for<T>(limit: Duration, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {limit:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A binary of this workspace, as built for these tests.
///
/// # Panics
/// When the test binary does not lie in a build directory.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the path of the test");
    let profile = test.parent().and_then(Path::parent).expect("a build directory");
    let path = profile.join(name);
    assert!(
        path.exists(),
        "{} is not built; run the tests with `make test` or build the workspace first",
        path.display()
    );
    path
}

/// The library that stands between a process and its disk, built once for all tests.
///
/// # Panics
/// When the C compiler refuses.
pub fn disk_library() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| library("disk"))
}

/// The library that stands between a process and the time of day, built once for all tests.
///
/// # Panics
/// When the C compiler refuses.
pub fn clock_library() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| library("clock"))
}

fn library(name: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("shim/{name}.c"));
    let library = binary("store-worker").with_file_name(format!("libmuster-{name}.so"));
    // Under a name of its own first: other tests may be loading the library this very moment.
    let own = library.with_extension(format!("{}", std::process::id()));
    let status = Command::new("cc")
        .args(["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"])
        .arg(&own)
        .arg(&source)
        .args(["-ldl", "-lpthread"])
        .status()
        .expect("the C compiler starts");
    assert!(status.success(), "the library {name} does not build");
    std::fs::rename(&own, &library).expect("the library gets its name");
    library
}

/// Runs a command to its end.
///
/// # Panics
/// When it can not be started.
#[must_use]
pub fn run(command: &mut Command) -> Output {
    match command.output() {
        Ok(output) => output,
        Err(error) => panic!("{command:?} does not start: {error}"),
    }
}

/// A number from the environment, for repeating a run (`SEED`) or doing more of it (`RUNS`).
///
/// # Panics
/// When something else stands there.
#[must_use]
pub fn number(name: &str, otherwise: u64) -> u64 {
    match std::env::var(name) {
        Ok(value) => value.parse().unwrap_or_else(|_| panic!("{name}={value} is not a number")),
        Err(_) => otherwise,
    }
}
