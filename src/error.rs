//! What went wrong in a system call: what was attempted, what the kernel answered, what helps.

use std::fmt;
use std::io;

use nix::errno::Errno;

/// A request that the kernel refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    attempt: String,
    errno: Errno,
    hint: Option<String>,
}

impl Error {
    /// `attempt` failed with `errno`.
    pub fn new(attempt: impl Into<String>, errno: Errno) -> Error {
        Error {
            attempt: attempt.into(),
            errno,
            hint: None,
        }
    }

    /// Adds what helps, shown in parentheses; a hint that is there already stays.
    pub fn hint(mut self, hint: impl Into<String>) -> Error {
        self.hint.get_or_insert(hint.into());
        self
    }

    /// The kernel's answer.
    pub fn errno(&self) -> Errno {
        self.errno
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.attempt, self.errno.desc())?;
        match &self.hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

/// The error number of a failure of the standard library's.
pub fn errno(error: &io::Error) -> Errno {
    error
        .raw_os_error()
        .map_or(Errno::UnknownErrno, Errno::from_raw)
}
