//! How the program ends when it does not end well: one sentence and one code. Code 2, for a wrong command line, is clap's.

use std::fmt;
use std::process::ExitCode;

/// Why a command failed, for the person or the script that gave it.
#[derive(Debug)]
pub struct Failure {
    kind: Kind,
    message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Other,
    Usage,
    NotFound,
    Denied,
    NoQuorum,
}

impl Failure {
    /// It did not work.
    pub fn other(message: impl Into<String>) -> Self {
        Self { kind: Kind::Other, message: message.into() }
    }

    /// It was asked for in a way that makes no sense.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { kind: Kind::Usage, message: message.into() }
    }

    /// What it was asked about does not exist.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self { kind: Kind::NotFound, message: message.into() }
    }

    /// It may not be done with this credential.
    pub fn denied(message: impl Into<String>) -> Self {
        Self { kind: Kind::Denied, message: message.into() }
    }

    /// Too few voters of the fleet are up.
    pub fn no_quorum(message: impl Into<String>) -> Self {
        Self { kind: Kind::NoQuorum, message: message.into() }
    }

    /// The code that scripts see.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self.kind {
            Kind::Other => 1,
            Kind::Usage => 2,
            Kind::NotFound => 3,
            Kind::Denied => 4,
            Kind::NoQuorum => 5,
        })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
