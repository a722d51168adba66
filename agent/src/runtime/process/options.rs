//! What the node's configuration says of processes: which programs there are, and who runs them.

use std::collections::HashMap;
use std::path::PathBuf;

use nix::unistd::{Uid, User};

use crate::runtime::{EngineKind, RuntimeError, RuntimeKind};

/// What is run for one kind of engine. It comes from the node's configuration and never from the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Its absolute path.
    pub path: PathBuf,
    /// What stands before the engine's own arguments.
    pub arguments: Vec<String>,
}

/// A user of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserName {
    /// By name.
    Name(String),
    /// By number.
    Uid(u32),
}

impl UserName {
    /// Where the user's own files lie. `None`: the machine does not know the user.
    #[must_use]
    pub fn home(&self) -> Option<PathBuf> {
        let found = match self {
            Self::Name(name) => User::from_name(name),
            Self::Uid(uid) => User::from_uid(Uid::from_raw(*uid)),
        };
        found.ok().flatten().map(|user| user.dir).filter(|home| home.is_absolute())
    }
}

/// How processes are run on this node. Without a program none are.
#[derive(Clone, Debug)]
pub struct ProcessOptions {
    /// The data directory; units live in `units` below it.
    pub directory: PathBuf,
    /// The program of each kind of engine that may run here.
    pub programs: HashMap<EngineKind, Program>,
    /// Who runs engines. Without it, whoever runs this process. Another one needs root.
    pub user: Option<UserName>,
}

impl ProcessOptions {
    /// The program for a kind of engine.
    ///
    /// # Errors
    /// When the configuration has none that could be run, with the key that it belongs to.
    pub(super) fn program(&self, engine: EngineKind) -> Result<&Program, RuntimeError> {
        let key = format!("engine_{}", engine.name());
        let Some(program) = self.programs.get(&engine) else {
            return Err(RuntimeError::Unsuitable(format!(
                "this node has no program for {}: set {key} in the node's configuration",
                engine.name()
            )));
        };
        let shown = program.path.display();
        if !program.path.is_absolute() {
            return Err(RuntimeError::Unsuitable(format!("{key} must be an absolute path, not {shown}")));
        }
        if !program.path.is_file() {
            return Err(RuntimeError::Unsuitable(format!("the program of {key} is not there: {shown}")));
        }
        Ok(program)
    }
}

/// Who runs engines, as the kernel needs it.
#[derive(Clone, Debug)]
pub(super) struct Account {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) name: Option<String>,
    pub(super) home: Option<PathBuf>,
    /// Whether it is somebody else than this process.
    pub(super) other: bool,
}

impl Account {
    /// Looks the user up. It may ask a directory service and block.
    pub(super) fn resolve(user: Option<&UserName>) -> Result<Self, RuntimeError> {
        let own = Uid::effective();
        let found = match user {
            None => User::from_uid(own),
            Some(UserName::Name(name)) => User::from_name(name),
            Some(UserName::Uid(uid)) => User::from_uid(Uid::from_raw(*uid)),
        };
        let found = found.map_err(|error| RuntimeError::Io {
            what: "looking up the user that runs engines",
            source: error.into(),
        })?;
        let Some(found) = found else {
            // Who runs this process need not have an entry: containers do without.
            return match user {
                None => Ok(Self {
                    uid: own.as_raw(),
                    gid: nix::unistd::Gid::effective().as_raw(),
                    name: None,
                    home: None,
                    other: false,
                }),
                Some(_) => Err(unavailable("the user that the configuration names for engines does not exist")),
            };
        };
        let other = found.uid != own;
        if other && !own.is_root() {
            return Err(unavailable("engines can be run as another user only by root"));
        }
        let gid = if other { found.gid } else { nix::unistd::Gid::effective() };
        Ok(Self { uid: found.uid.as_raw(), gid: gid.as_raw(), name: Some(found.name), home: Some(found.dir), other })
    }
}

pub(super) fn unavailable(why: &str) -> RuntimeError {
    RuntimeError::Unavailable { runtime: RuntimeKind::Process, why: why.to_owned() }
}
