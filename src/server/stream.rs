//! A connected TCP socket whose reads, writes and close have deadlines. It knows no HTTP.
//!
//! A single read or write ends after the time-out that the socket inherits from its listener; only a
//! deadline that differs costs a setsockopt(2). `close` waits until a long response is acknowledged: the
//! kernel keeps what a closed socket has yet to send, and no limit of the server covers that.

use std::fmt;
use std::io::{self, ErrorKind, Read};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv, send};

use crate::error::words;
use crate::server::deadlines::IDLE_AFTER;
use crate::sys;

/// Why a read or a write failed.
#[derive(Debug)]
pub enum Failure {
    /// The client has closed its side.
    Closed,
    /// The deadline has passed.
    TimedOut,
    /// Any other error of recv(2), send(2), poll(2), setsockopt(2) or shutdown(2).
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

/// Largest amount written to a connection that is closed without waiting for acknowledgements, in bytes.
const MAX_UNACKNOWLEDGED: usize = 4096;

/// Shortest and longest interval between two looks at what is acknowledged.
const MIN_PAUSE: Duration = Duration::from_millis(1);
const MAX_PAUSE: Duration = Duration::from_millis(128);

/// `TCP_CLOSE` (include/net/tcp_states.h)
const TCP_CLOSE: u8 = 7;

/// A connected socket with a read time-out of [`IDLE_AFTER`].
#[derive(Debug)]
pub struct Stream {
    socket: TcpStream,
    /// When the client must have acknowledged all that was written.
    acknowledge_by: Instant,
    /// Bytes written so far.
    written: usize,
    /// Whether the read time-out is not [`IDLE_AFTER`] now.
    has_other_timeout: bool,
}

impl Stream {
    /// A stream on an accepted socket.
    pub fn new(socket: TcpStream) -> Stream {
        Stream {
            socket,
            acknowledge_by: Instant::now(),
            written: 0,
            has_other_timeout: false,
        }
    }

    /// The file descriptor.
    pub fn descriptor(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Reads for up to [`IDLE_AFTER`], and after a signal for up to as long again.
    ///
    /// # Errors
    /// `Closed`, `TimedOut`, or `Broken` by an error of recv(2) or setsockopt(2).
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Failure> {
        if self.has_other_timeout {
            self.socket.set_read_timeout(Some(IDLE_AFTER))?;
            self.has_other_timeout = false;
        }
        match self.read_once(buffer)? {
            Some(length) => Ok(length),
            None => self.read_until(Instant::now() + IDLE_AFTER, buffer),
        }
    }

    /// Reads until the deadline.
    ///
    /// # Errors
    /// `Closed`, `TimedOut`, or `Broken` by an error of recv(2) or setsockopt(2).
    pub fn read_until(&mut self, deadline: Instant, buffer: &mut [u8]) -> Result<usize, Failure> {
        self.has_other_timeout = true;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Failure::TimedOut);
            }
            self.socket.set_read_timeout(Some(left))?;
            if let Some(length) = self.read_once(buffer)? {
                return Ok(length);
            }
        }
    }

    /// Reads once; `None` after a signal. The kernel does not restart a read that has a time-out, not even
    /// after SIGCONT (signal(7)); if it did, the whole time-out would start again.
    fn read_once(&mut self, buffer: &mut [u8]) -> Result<Option<usize>, Failure> {
        match self.socket.read(buffer) {
            Ok(0) => Err(Failure::Closed),
            Ok(length) => Ok(Some(length)),
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Acknowledges at once what has arrived, which otherwise the response does: a client that has not set
    /// `TCP_NODELAY` may wait for it with the rest of a request (RFC 9293, 3.7.4).
    pub fn acknowledge(&self) {
        let fd = self.socket.as_fd();
        // Should setsockopt(2) fail, the kernel acknowledges within 200 ms.
        let _ = sys::set_option(fd, libc::SOL_TCP, libc::TCP_QUICKACK, 1 as libc::c_int);
    }

    /// Waits until the socket is readable.
    ///
    /// # Errors
    /// `TimedOut` at the deadline, or `Broken` by an error of poll(2).
    pub fn wait_readable(&self, deadline: Instant) -> Result<(), Failure> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
            let mut descriptors = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            match poll(&mut descriptors, timeout) {
                Ok(0) => return Err(Failure::TimedOut),
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(io::Error::from(errno).into()),
            }
        }
    }

    /// Waits until the client has acknowledged all that was written; returns `false` if the socket is
    /// readable before.
    ///
    /// # Errors
    /// `TimedOut` if the client is too slow, or `Broken` by an error of poll(2).
    pub fn wait_acknowledged(&self) -> Result<bool, Failure> {
        let mut pause = MIN_PAUSE;
        while !self.is_acknowledged() {
            let now = Instant::now();
            if now >= self.acknowledge_by {
                return Err(Failure::TimedOut);
            }
            match self.wait_readable(now + pause) {
                Err(Failure::TimedOut) => pause = MAX_PAUSE.min(2 * pause),
                readable => return readable.map(|()| false),
            }
        }
        Ok(true)
    }

    fn is_acknowledged(&self) -> bool {
        sys::tcp_info(self.descriptor()).map_or(true, |info| is_acknowledged(&info))
    }

    /// Writes all of `bytes`. The client has `limit` to acknowledge them. The last send(2) may exceed it by
    /// the socket's write time-out.
    ///
    /// # Errors
    /// `TimedOut`, or `Broken` by an error of send(2).
    pub fn write(&mut self, bytes: &[u8], limit: Duration) -> Result<(), Failure> {
        self.send(bytes, limit, MsgFlags::empty())
    }

    /// Writes all of `bytes` like [`Stream::write`], and shuts down the write side. `MSG_MORE` (send(2))
    /// holds the last segment back until it can carry the FIN.
    ///
    /// # Errors
    /// `TimedOut`, or `Broken` by an error of send(2) or shutdown(2).
    pub fn write_last(&mut self, bytes: &[u8], limit: Duration) -> Result<(), Failure> {
        self.send(bytes, limit, MsgFlags::from_bits_retain(libc::MSG_MORE))?;
        Ok(self.socket.shutdown(Shutdown::Write)?)
    }

    fn send(&mut self, mut bytes: &[u8], limit: Duration, flags: MsgFlags) -> Result<(), Failure> {
        self.acknowledge_by = Instant::now() + limit;
        self.written = self.written.saturating_add(bytes.len());
        loop {
            match send(self.descriptor(), bytes, flags | MsgFlags::MSG_NOSIGNAL) {
                Ok(written) if written == bytes.len() => return Ok(()),
                Ok(written) => bytes = &bytes[written..],
                Err(Errno::EINTR) => {}
                // TCP_USER_TIMEOUT has expired.
                Err(Errno::ETIMEDOUT) => return Err(Failure::TimedOut),
                Err(errno) => return Err(io::Error::from(errno).into()),
            }
            if Instant::now() >= self.acknowledge_by {
                return Err(Failure::TimedOut);
            }
        }
    }

    /// Lingers: reads and discards until the client closes its side, for up to `limit`. A close with unread
    /// data in the receive buffer is a reset, which may cost the client the end of its response (RFC 9112,
    /// 9.6).
    #[inline(never)]
    pub fn linger(&mut self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let mut discarded = [0; 1024];
        while self.read_until(deadline, &mut discarded).is_ok() {}
    }

    /// Closes the connection. After a short response at once. Otherwise it first shuts down the write side
    /// and waits until all is acknowledged; if the client is too slow, it resets the connection.
    ///
    /// `SO_LINGER` with a time-out does not replace this: during such a close(2) the kernel resets the
    /// connection if the client sends anything, and after the time-out it still keeps the data.
    #[inline(never)]
    pub fn close(mut self) {
        if self.written <= MAX_UNACKNOWLEDGED || self.is_acknowledged() {
            return;
        }
        if Instant::now() >= self.acknowledge_by {
            return self.reset();
        }
        // Fails with ENOTCONN if the client has gone.
        let _ = self.socket.shutdown(Shutdown::Write);
        let mut discarded = [0; 1024];
        let mut pause = MIN_PAUSE;
        while !self.is_acknowledged() {
            let now = Instant::now();
            if now >= self.acknowledge_by {
                return self.reset();
            }
            match self.read_until(self.acknowledge_by.min(now + pause), &mut discarded) {
                Ok(_) => continue,
                Err(Failure::TimedOut) => {}
                Err(Failure::Closed) => thread::sleep(pause),
                Err(Failure::Broken(_)) => return,
            }
            pause = MAX_PAUSE.min(2 * pause);
        }
    }

    /// Closes the connection with a reset (`SO_LINGER` with a time-out of 0, socket(7)). Should
    /// setsockopt(2) fail, `TCP_USER_TIMEOUT` ends the connection later.
    fn reset(self) {
        let linger = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        let _ = sys::set_option(
            self.socket.as_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            linger,
        );
    }
}

/// Whether the client of a connection has acknowledged all that was sent, a FIN included. A connection that is
/// reset has nothing left to send, but keeps its counters.
pub fn is_acknowledged(info: &libc::tcp_info) -> bool {
    info.tcpi_state == TCP_CLOSE || (info.tcpi_unacked == 0 && info.tcpi_notsent_bytes == 0)
}

/// Whether the kernel waited for the first byte of a connection before accept4(2) (`TCP_DEFER_ACCEPT`, tcp(7)): it
/// sent the SYN-ACK again then. After a handshake by SYN cookie it does not wait.
pub fn was_deferred(info: &libc::tcp_info) -> bool {
    info.tcpi_total_retrans > 0
}

/// Whether bytes have arrived on a connection that are not read yet.
pub fn has_unread(descriptor: RawFd) -> bool {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    recv(descriptor, &mut [0], flags).is_ok_and(|length| length > 0)
}
