//! The error of a failed request to the kernel: the attempt, its cause, and a hint. Displayed as one line,
//! such as `add rule fwmark 0x1/0x1 lookup 100: Operation not permitted (CAP_NET_ADMIN is needed)`.

use std::fmt;
use std::io;

use libc::c_int;

/// A request that the kernel refused.
#[derive(Debug)]
pub struct Error {
    attempt: String,
    cause: io::Error,
    hint: Option<String>,
}

impl Error {
    /// `attempt` failed because of `cause`.
    pub fn new(attempt: impl Into<String>, cause: impl Into<io::Error>) -> Error {
        Error {
            attempt: attempt.into(),
            cause: cause.into(),
            hint: None,
        }
    }

    /// `attempt` failed with an error number, such as `EPERM`.
    pub fn numbered(attempt: impl Into<String>, errno: c_int) -> Error {
        Error::new(attempt, io::Error::from_raw_os_error(errno))
    }

    /// Adds a hint, shown in parentheses. The first hint of an error stays.
    pub fn hint(mut self, hint: impl Into<String>) -> Error {
        self.hint.get_or_insert(hint.into());
        self
    }

    /// The error number; 0 if the cause is not one of the kernel.
    pub fn errno(&self) -> c_int {
        self.cause.raw_os_error().unwrap_or(0)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.attempt, words(&self.cause))?;
        match &self.hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

/// The text of an error (strerror(3)), without the ` (os error NUMBER)` that the standard library appends.
pub fn words(error: &io::Error) -> String {
    let mut text = error.to_string();
    if error.raw_os_error().is_some() {
        text.truncate(text.rfind('(').unwrap_or(text.len()));
        text.truncate(text.trim_end().len());
    }
    text
}
