//! A connected socket with deadlines: a read, a write, or the end of both.
//!
//! Reads and writes are bounded by the time-outs that the socket has already, as most inherit them from
//! their listener. Only for a client that is slow the read time-out is changed.
//!
//! A connection that is closed leaves little in the kernel that is still to be sent: that would be
//! nobody's, and no limit of ours would hold for it.

use std::fmt;
use std::io::{self, ErrorKind, Read};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};

use crate::error::words;
use crate::sys;

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
            ErrorKind::WouldBlock => Failure::TimedOut,
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

/// What a connection has sent at most that is left to the kernel when it is closed, in bytes: a few packets.
const LEFT: usize = 4096;

/// How long the kernel is not asked again whether all is taken: at first, and in the end.
const SHORT_PAUSE: Duration = Duration::from_millis(1);
const LONG_PAUSE: Duration = Duration::from_millis(128);

/// `TCP_CLOSE` (include/net/tcp_states.h)
const TCP_CLOSE: u8 = 7;

/// A connected socket.
#[derive(Debug)]
pub struct Stream {
    stream: TcpStream,
    /// When the client has to have taken all that was written.
    taken_by: Instant,
    /// How many bytes were written so far.
    written: usize,
    /// The read time-out that the socket inherited.
    inherited: Duration,
    /// Whether the read time-out is another one now.
    changed: bool,
}

impl Stream {
    /// A socket that inherited the read time-out `inherited`.
    pub fn new(stream: TcpStream, inherited: Duration) -> Stream {
        Stream {
            stream,
            taken_by: Instant::now(),
            written: 0,
            inherited,
            changed: false,
        }
    }

    /// The descriptor, to end the connection from another thread.
    pub fn descriptor(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    /// Reads for as long as the inherited time-out allows, and after a signal for as long once more.
    ///
    /// # Errors
    /// Why there is nothing to read.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Failure> {
        if self.changed {
            self.stream.set_read_timeout(Some(self.inherited))?;
            self.changed = false;
        }
        match self.read_once(buffer)? {
            Some(length) => Ok(length),
            None => self.read_until(Instant::now() + self.inherited, buffer),
        }
    }

    /// Reads until the deadline.
    ///
    /// # Errors
    /// Why there is nothing to read.
    pub fn read_until(&mut self, deadline: Instant, buffer: &mut [u8]) -> Result<usize, Failure> {
        self.changed = true;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Failure::TimedOut);
            }
            self.stream.set_read_timeout(Some(left))?;
            if let Some(length) = self.read_once(buffer)? {
                return Ok(length);
            }
        }
    }

    /// Reads once; `None` if a signal comes first. A call with a time-out is not begun again then, after
    /// SIGCONT either (signal(7)): it would wait for the whole time once more.
    fn read_once(&mut self, buffer: &mut [u8]) -> Result<Option<usize>, Failure> {
        match self.stream.read(buffer) {
            Ok(0) => Err(Failure::Closed),
            Ok(length) => Ok(Some(length)),
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(None),
            Err(error) => Err(error.into()),
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

    /// Waits until the client has taken all that was written, or, then it returns `false`, there is
    /// something to read.
    ///
    /// # Errors
    /// `TimedOut` if it has not in the time that it had for that, or what the kernel answers.
    pub fn wait_until_taken(&self) -> Result<bool, Failure> {
        let mut pause = SHORT_PAUSE;
        while self.is_untaken() {
            let now = Instant::now();
            if now >= self.taken_by {
                return Err(Failure::TimedOut);
            }
            match self.wait_until(now + pause) {
                Err(Failure::TimedOut) => pause = LONG_PAUSE.min(2 * pause),
                readable => return readable.map(|()| false),
            }
        }
        Ok(true)
    }

    /// Whether the client has yet to confirm something that was sent, the end of our side included.
    #[inline(never)]
    fn is_untaken(&self) -> bool {
        let info = sys::tcp_info(self.stream.as_fd());
        // A connection that has broken does not send, whatever its numbers are.
        info.is_ok_and(|info| {
            info.tcpi_state != TCP_CLOSE && (info.tcpi_unacked > 0 || info.tcpi_notsent_bytes > 0)
        })
    }

    /// Writes everything, within about `limit`: a single write may wait for the inherited time-out. As
    /// much time the client has to take it.
    ///
    /// # Errors
    /// Why not everything was written.
    pub fn write(&mut self, bytes: &[u8], limit: Duration) -> Result<(), Failure> {
        self.send(bytes, limit, MsgFlags::empty())
    }

    /// Writes everything as [`Stream::write`] does, and ends our side with it: the kernel holds the
    /// last packet back (MSG_MORE, send(2)), so that it carries the end too.
    ///
    /// # Errors
    /// Why not everything was written.
    pub fn finish(&mut self, bytes: &[u8], limit: Duration) -> Result<(), Failure> {
        self.send(bytes, limit, MsgFlags::from_bits_retain(libc::MSG_MORE))?;
        Ok(self.stream.shutdown(Shutdown::Write)?)
    }

    /// Ends our side, and closes the connection, unless much of what was written may still have to be
    /// taken: then it is returned.
    pub fn leave(mut self) -> Option<Stream> {
        if self.written <= LEFT || self.settle() {
            return None;
        }
        // A client that is gone by now (ENOTCONN), or our side that has ended, needs no ending.
        let _ = self.stream.shutdown(Shutdown::Write);
        Some(self)
    }

    fn send(&mut self, mut bytes: &[u8], limit: Duration, flags: MsgFlags) -> Result<(), Failure> {
        self.taken_by = Instant::now() + limit;
        self.written = self.written.saturating_add(bytes.len());
        loop {
            match send(self.descriptor(), bytes, flags | MsgFlags::MSG_NOSIGNAL) {
                Ok(written) if written == bytes.len() => return Ok(()),
                Ok(written) => bytes = &bytes[written..],
                Err(Errno::EINTR) => {}
                // The kernel has given up, see TCP_USER_TIMEOUT in listener.rs.
                Err(Errno::ETIMEDOUT) => return Err(Failure::TimedOut),
                Err(errno) => return Err(io::Error::from(errno).into()),
            }
            if Instant::now() >= self.taken_by {
                return Err(Failure::TimedOut);
            }
        }
    }

    /// Lets the client finish what it sends, after our side has ended: closing with bytes unread
    /// would reset the connection (RFC 9112, 9.6). What comes until it ends its side, at most until
    /// `limit` has passed, is thrown away.
    #[inline(never)]
    pub fn hear_out(&mut self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let mut scrap = [0; 1024];
        while self.read_until(deadline, &mut scrap).is_ok() {}
    }

    /// Whether it may be closed now, so that nothing is left to be sent: the client has taken all that
    /// was written, or has not in the time that it had for that. Then its close is a reset.
    pub fn settle(&mut self) -> bool {
        if !self.is_untaken() {
            return true;
        }
        let is_late = Instant::now() >= self.taken_by;
        if is_late {
            self.reset_when_closed();
        }
        is_late
    }

    /// Waits until it may be closed. What comes meanwhile is thrown away.
    #[inline(never)]
    pub fn close(mut self) {
        let mut scrap = [0; 1024];
        let mut pause = SHORT_PAUSE;
        while !self.settle() {
            match self.read(&mut scrap) {
                Ok(_) | Err(Failure::TimedOut) => {}
                Err(Failure::Closed) => {
                    thread::sleep(pause);
                    pause = LONG_PAUSE.min(2 * pause);
                }
                Err(Failure::Broken(_)) => return,
            }
        }
    }

    fn reset_when_closed(&self) {
        let at_once = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        // A kernel that refuses gives up by itself, later.
        let _ = sys::set_option(
            self.stream.as_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            at_once,
        );
    }
}
