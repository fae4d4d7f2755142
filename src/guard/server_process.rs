//! The server process, as the guard sees it. The control socket between them carries one message of the server,
//! [`READY`], lines of the guard (`server::report`), and the end of each direction: the guard shuts its side
//! down to request a stop, the kernel closes the server's side when the server exits. A server that a client
//! has taken over can neither keep the guard busy nor block it: more than that message, or a closed socket of a
//! process that does not exit, gets it killed.

use std::fmt;
use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{MsgFlags, send};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::error::Error;
use crate::server::READY;

/// Time that the server has to exit after it has closed the control socket.
const EXIT_TIMEOUT: Duration = Duration::from_secs(2);

/// Interval at which waitpid(2) asks whether it has exited.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// How the server ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerExit {
    /// It exited with this status; 0 after an orderly stop.
    Status(i32),
    /// A signal killed it.
    Signal(Signal),
    /// It wrote to the control socket what it must not, and the guard killed it.
    ProtocolViolation,
}

impl fmt::Display for ServerExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ServerExit::Status(status) => write!(f, "the server ended with status {status}"),
            ServerExit::Signal(Signal::SIGSYS) => f.write_str(
                "the server was killed by SIGSYS: it aborted, or made a call that its sandbox forbids",
            ),
            ServerExit::Signal(signal) => write!(f, "the server was killed by {signal}"),
            ServerExit::ProtocolViolation => {
                f.write_str("the server violated the protocol with the guard, and was killed")
            }
        }
    }
}

/// The server process.
#[derive(Debug)]
pub struct ServerProcess {
    pid: Pid,
    control: UnixStream,
    is_running: bool,
}

impl ServerProcess {
    /// The child `pid`, which has the other end of `control`.
    pub fn new(pid: Pid, control: UnixStream) -> ServerProcess {
        ServerProcess {
            pid,
            control,
            is_running: true,
        }
    }

    /// The control socket, to poll for input; `None` once the server has ended.
    pub fn control(&self) -> Option<BorrowedFd<'_>> {
        self.is_running.then(|| self.control.as_fd())
    }

    /// Reads from the control socket that the server is ready: `None`, or how it has ended instead.
    ///
    /// # Errors
    /// `ECHILD`, or any other error of waitpid(2).
    pub fn read_ready(&mut self) -> Result<Option<ServerExit>, Error> {
        match self.read().as_slice() {
            READY => Ok(None),
            [] => self.wait_for_exit().map(Some),
            _ => self.kill_for_violation().map(Some),
        }
    }

    /// Reads from the control socket that the server has ended, and returns how.
    ///
    /// # Errors
    /// `ECHILD`, or any other error of waitpid(2).
    pub fn read_exit(&mut self) -> Result<ServerExit, Error> {
        match self.read().is_empty() {
            true => self.wait_for_exit(),
            false => self.kill_for_violation(),
        }
    }

    /// Sends the server a line, without waiting. A short line is one buffer of the kernel, and is sent whole or
    /// not at all (`unix_stream_sendmsg`, net/unix/af_unix.c).
    ///
    /// # Errors
    /// `EAGAIN` if the server has not read earlier lines, `EPIPE`, or any other error of send(2).
    pub fn send(&self, line: &[u8]) -> nix::Result<()> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        send(self.control.as_raw_fd(), line, flags).map(drop)
    }

    /// Requests the server to finish its connections and exit.
    ///
    /// # Errors
    /// Any error of shutdown(2).
    pub fn request_stop(&self) -> Result<(), Error> {
        let shut_down = self.control.shutdown(Shutdown::Write);
        shut_down.map_err(|error| Error::new("request the server to stop", error))
    }

    /// Kills the server because it does not exit.
    ///
    /// # Errors
    /// `ECHILD`, or any other error of waitpid(2).
    pub fn kill(&mut self) -> Result<ServerExit, Error> {
        log::warn!("The server does not end: killing it");
        self.kill_and_reap()
    }

    /// At most as many bytes as [`READY`] has; none at the end of the stream, or where it failed.
    fn read(&mut self) -> Vec<u8> {
        let mut bytes = vec![0; READY.len()];
        let length = self.control.read(&mut bytes).unwrap_or(0);
        bytes.truncate(length);
        bytes
    }

    fn kill_for_violation(&mut self) -> Result<ServerExit, Error> {
        self.kill_and_reap()?;
        Ok(ServerExit::ProtocolViolation)
    }

    /// The control socket is closed a moment before the process can be waited for.
    fn wait_for_exit(&mut self) -> Result<ServerExit, Error> {
        let deadline = Instant::now() + EXIT_TIMEOUT;
        while Instant::now() < deadline {
            match waitpid(self.pid, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => thread::sleep(POLL_INTERVAL),
                waited => return self.ended(waited),
            }
        }
        self.kill()
    }

    fn kill_and_reap(&mut self) -> Result<ServerExit, Error> {
        // It may have exited meanwhile: then it is a zombie, and the signal has no effect.
        let _ = kill(self.pid, Signal::SIGKILL);
        self.ended(waitpid(self.pid, None))
    }

    fn ended(&mut self, waited: nix::Result<WaitStatus>) -> Result<ServerExit, Error> {
        self.is_running = false;
        let fault = |cause: io::Error| Error::new("wait for the server", cause);
        match waited {
            Ok(WaitStatus::Exited(_, status)) => Ok(ServerExit::Status(status)),
            Ok(WaitStatus::Signaled(_, signal, _)) => Ok(ServerExit::Signal(signal)),
            Ok(_) => Err(fault(io::Error::other("it has not ended"))),
            Err(errno) => Err(fault(errno.into())),
        }
    }
}
