//! The server process, as the guard sees it: it says once that it is ready, and then nothing more.
//! Who has taken it over can neither keep the guard busy nor keep it waiting.

use std::fmt;
use std::io::Read;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::error::Error;
use crate::server::READY;

/// How long the server takes at most from the end of its work to the end of its process: it writes
/// the last lines of its log.
const PARTING: Duration = Duration::from_secs(2);

/// How often the kernel is asked whether it has ended.
const STEP: Duration = Duration::from_millis(2);

/// Why the guard ended out of order.
#[derive(Debug)]
pub enum Failure {
    /// The kernel refused something.
    System(Error),
    /// The server ended by itself; it has said why, unless a signal killed it.
    Server(WaitStatus),
    /// The server said what it never says, and was killed.
    Breach,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::System(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::System(error) => error.fmt(f),
            Failure::Server(WaitStatus::Exited(_, status)) => {
                write!(f, "the server ended with status {status}")
            }
            Failure::Server(WaitStatus::Signaled(_, Signal::SIGSYS, _)) => f.write_str(
                "the server was killed by SIGSYS: it aborted, or made a call that its sandbox forbids",
            ),
            Failure::Server(WaitStatus::Signaled(_, signal, _)) => {
                write!(f, "the server was killed by {signal}")
            }
            Failure::Server(_) => f.write_str("the server ended"),
            Failure::Breach => {
                f.write_str("the server does not behave like itself, and was killed")
            }
        }
    }
}

/// The server process.
#[derive(Debug)]
pub struct ServerProcess {
    pid: Pid,
    /// It says when it is ready, hears when it shall finish, and is closed by its end: then `None`.
    control: Option<UnixStream>,
}

impl ServerProcess {
    /// The process `pid`, which has the other end of `control`.
    pub fn new(pid: Pid, control: UnixStream) -> ServerProcess {
        ServerProcess {
            pid,
            control: Some(control),
        }
    }

    /// What can be read when it has something to say, or has ended.
    pub fn control(&self) -> Option<BorrowedFd<'_>> {
        self.control.as_ref().map(AsFd::as_fd)
    }

    /// Reads that it is ready.
    ///
    /// # Errors
    /// How it has ended.
    pub fn hear_ready(&mut self) -> Result<(), Failure> {
        match self.read().as_slice() {
            READY => Ok(()),
            [] => Err(self.end()),
            _ => Err(self.breach()),
        }
    }

    /// Reads that it has ended, and how.
    pub fn hear_end(&mut self) -> Failure {
        match self.read().is_empty() {
            true => self.end(),
            false => self.breach(),
        }
    }

    /// Tells it to finish what it has.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn finish(&self) -> Result<(), Error> {
        let shutdown = |control: &UnixStream| control.shutdown(Shutdown::Write);
        let told = self.control.as_ref().map_or(Ok(()), shutdown);
        told.map_err(|error| Error::new("tell the server to finish", error))
    }

    /// Kills it, because it does not end.
    pub fn kill(&mut self) -> Failure {
        log::warn!("The server does not end: killing it");
        self.reap()
    }

    /// A few bytes, none when there will be no more.
    fn read(&mut self) -> Vec<u8> {
        let mut bytes = vec![0; READY.len()];
        let read = self.control.as_mut().map(|it| it.read(&mut bytes));
        bytes.truncate(read.and_then(Result::ok).unwrap_or(0));
        bytes
    }

    fn breach(&mut self) -> Failure {
        match self.reap() {
            Failure::Server(_) => Failure::Breach,
            failure => failure,
        }
    }

    /// The control socket closes a moment before the process ends, unless somebody closed it.
    fn end(&mut self) -> Failure {
        self.control = None;
        let deadline = Instant::now() + PARTING;
        while Instant::now() < deadline {
            match waitpid(self.pid, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => thread::sleep(STEP),
                waited => return ended(waited),
            }
        }
        self.kill()
    }

    fn reap(&mut self) -> Failure {
        self.control = None;
        // It may have ended in this moment.
        let _ = kill(self.pid, Signal::SIGKILL);
        ended(waitpid(self.pid, None))
    }
}

fn ended(waited: nix::Result<WaitStatus>) -> Failure {
    match waited {
        Ok(status) => Failure::Server(status),
        Err(errno) => Error::new("wait for the server", errno).into(),
    }
}
