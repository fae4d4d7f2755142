//! A connected socket with deadlines: a read, a write, or the end of both.
//!
//! Reads and writes are bounded by the time-outs that the socket has already, as most inherit them from
//! their listener. Only for a client that is slow the read time-out is changed.

use std::fmt;
use std::io::{self, ErrorKind, Read};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};

use crate::error::words;

/// Why nothing was read or written.
#[derive(Debug)]
pub enum Failure {
    /// The other side has ended its side.
    Closed,
    /// The deadline has passed.
    TimedOut,
    /// The kernel reports an error.
    Broken(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Failure::TimedOut,
            _ => Failure::Broken(error),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Closed => f.write_str("the client closed the connection"),
            Failure::TimedOut => f.write_str("the client was too slow"),
            Failure::Broken(error) => f.write_str(&words(error)),
        }
    }
}

/// A connected socket.
#[derive(Debug)]
pub struct Wire {
    stream: TcpStream,
    /// The read time-out that the socket inherited.
    inherited: Duration,
    /// Whether the read time-out is another one now.
    changed: bool,
}

impl Wire {
    /// A socket that inherited the read time-out `inherited`.
    pub fn new(stream: TcpStream, inherited: Duration) -> Wire {
        Wire {
            stream,
            inherited,
            changed: false,
        }
    }

    /// The descriptor, to end the connection from another thread.
    pub fn descriptor(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    /// Reads for as long as the first time-out allows.
    ///
    /// # Errors
    /// Why there is nothing to read.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Failure> {
        if self.changed {
            self.stream.set_read_timeout(Some(self.inherited))?;
            self.changed = false;
        }
        self.read_once(buffer)
    }

    /// Reads until the deadline.
    ///
    /// # Errors
    /// Why there is nothing to read.
    pub fn read_until(&mut self, deadline: Instant, buffer: &mut [u8]) -> Result<usize, Failure> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Failure::TimedOut);
        }
        self.stream.set_read_timeout(Some(left))?;
        self.changed = true;
        self.read_once(buffer)
    }

    fn read_once(&mut self, buffer: &mut [u8]) -> Result<usize, Failure> {
        loop {
            match self.stream.read(buffer) {
                Ok(0) => return Err(Failure::Closed),
                Ok(length) => return Ok(length),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits until there is something to read, or the deadline has passed.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn wait_until(&self, deadline: Instant) -> Result<(), Failure> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
            let mut descriptors = [PollFd::new(self.stream.as_fd(), PollFlags::POLLIN)];
            match poll(&mut descriptors, timeout) {
                Ok(0) => return Err(Failure::TimedOut),
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(io::Error::from(errno).into()),
            }
        }
    }

    /// Writes everything, within about `limit`: a single write may wait for the inherited time-out.
    ///
    /// # Errors
    /// Why not everything was written.
    pub fn write(&mut self, bytes: &[u8], limit: Duration) -> Result<(), Failure> {
        self.send(bytes, limit, MsgFlags::empty())
    }

    /// Writes everything as [`Wire::write`] does, and ends our side with it: the kernel holds the
    /// last packet back (MSG_MORE, send(2)), so that it carries the end too.
    ///
    /// # Errors
    /// Why not everything was written.
    pub fn finish(&mut self, bytes: &[u8], limit: Duration) -> Result<(), Failure> {
        self.send(bytes, limit, MsgFlags::from_bits_retain(libc::MSG_MORE))?;
        Ok(self.stream.shutdown(Shutdown::Write)?)
    }

    fn send(&self, mut bytes: &[u8], limit: Duration, flags: MsgFlags) -> Result<(), Failure> {
        let deadline = Instant::now() + limit;
        loop {
            match send(self.descriptor(), bytes, flags | MsgFlags::MSG_NOSIGNAL) {
                Ok(written) if written == bytes.len() => return Ok(()),
                Ok(written) => bytes = &bytes[written..],
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(io::Error::from(errno).into()),
            }
            if Instant::now() >= deadline {
                return Err(Failure::TimedOut);
            }
        }
    }

    /// Lets the client read what was written last, after our side has ended: closing with bytes
    /// unread would reset the connection (RFC 9112, 9.6). What the client sends until it ends its
    /// side, at most until `limit` has passed, is thrown away.
    pub fn part(mut self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let mut scrap = [0; 1024];
        while self.read_until(deadline, &mut scrap).is_ok() {}
    }
}
