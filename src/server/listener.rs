//! Listening sockets with IP_TRANSPARENT: bound to loopback, they take connections to any address.
//!
//! What is set here is inherited by every accepted connection, which then needs no call of its own:
//! TCP_NODELAY, the buffers' sizes, and the time-outs: of a single read or write, and of what the client
//! does not take (ip(7), ipv6(7), tcp(7), socket(7)).

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd};
use std::thread;
use std::time::{Duration, Instant};

use libc::c_int;

use crate::error::Error;
use crate::selectors::Family;
use crate::sys;

/// Connections that wait to be accepted, and as many handshakes: what is beyond goes to the Pods. That
/// many are never wanted, but the kernel caps it at net.core.somaxconn, which is the node's to choose.
const BACKLOG: c_int = 65_535;

/// How long a server may hold the port after its guard was killed: the kernel ends it then, but
/// not in the same moment.
const RELEASE: Duration = Duration::from_secs(1);

/// How many bytes of a connection wait in the kernel to be read, and to be sent; it takes twice as
/// much, for what it needs beside (socket(7)). Clients that send and do not read would make it as
/// much as `tcp_rmem` and `tcp_wmem` allow (tcp(7)): MiBs each.
const RECEIVED: c_int = 64 * 1024;
const SENT: c_int = 32 * 1024;

/// How much later than its own time-out the kernel gives a connection up.
const LATER: Duration = Duration::from_secs(1);

/// What a single call waits for at most.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// For something to read.
    pub receive: Duration,
    /// For room to write, and for the client to take what was written.
    pub send: Duration,
}

/// Connections from the node itself that wait to be accepted.
const DIRECT_BACKLOG: c_int = 128;

/// How long a connection waits in the kernel for its first bytes, in seconds: it is accepted when
/// they come, or at the first chance after that time (TCP_DEFER_ACCEPT, tcp(7)).
const FIRST_BYTES: c_int = 1;

/// Binds a transparent listener to the family's loopback address.
///
/// # Errors
/// The address, and what the kernel answers.
pub fn bind(family: Family, port: u16, timeouts: Timeouts) -> Result<TcpListener, Error> {
    let address = SocketAddr::new(family.loopback(), port);
    let deadline = Instant::now() + RELEASE;
    let listener = loop {
        match listen(family, address, timeouts) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < deadline => {
                thread::sleep(RELEASE / 100);
            }
            result => break result,
        }
    };
    listener.map_err(|cause| {
        let error = Error::new(format!("bind {address}"), cause);
        match error.errno() {
            libc::EPERM => error.hint("CAP_NET_ADMIN is needed"),
            libc::EACCES => error.hint("CAP_NET_BIND_SERVICE is needed for ports below 1024"),
            libc::EADDRINUSE => error.hint("something else listens there; see --port"),
            _ => error,
        }
    })
}

/// A second listener at the address of a transparent one, which takes the connections that the node
/// itself makes there: what comes in by `lo` finds the socket that is bound to it first
/// (`compute_score`, net/ipv4/inet_hashtables.c). Both have SO_REUSEPORT then: another program of the
/// same user that asks for it can listen there too.
///
/// # Errors
/// What the kernel answers; EPERM before Linux 5.7, where binding to a device needs CAP_NET_RAW.
pub fn bind_direct(listener: &TcpListener) -> Result<TcpListener, Error> {
    listen_beside(listener).map_err(|cause| {
        let error = Error::new("bind to lo for probes", cause);
        match error.errno() {
            libc::EPERM => error.hint("before Linux 5.7 CAP_NET_RAW is needed"),
            _ => error,
        }
    })
}

fn listen_beside(listener: &TcpListener) -> std::io::Result<TcpListener> {
    let address = listener.local_addr()?;
    let domain = match address {
        SocketAddr::V4(_) => libc::AF_INET,
        SocketAddr::V6(_) => libc::AF_INET6,
    };
    let socket = sys::socket(domain, libc::SOCK_STREAM, 0)?;
    let fd = socket.as_fd();
    sys::set_option(fd, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, *b"lo\0")?;
    // What is left of its connections shall not keep the next start from the address.
    sys::set_option(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1 as c_int)?;
    // Only now: the transparent listener had to find out whether somebody else listens there.
    sys::set_option(
        listener.as_fd(),
        libc::SOL_SOCKET,
        libc::SO_REUSEPORT,
        1 as c_int,
    )?;
    sys::set_option(fd, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1 as c_int)?;
    sys::bind(fd, address)?;
    sys::listen(fd, DIRECT_BACKLOG)?;
    Ok(socket.into())
}

fn listen(family: Family, address: SocketAddr, timeouts: Timeouts) -> std::io::Result<TcpListener> {
    let (domain, level, transparent) = match family {
        Family::V4 => (libc::AF_INET, libc::SOL_IP, libc::IP_TRANSPARENT),
        Family::V6 => (libc::AF_INET6, libc::SOL_IPV6, libc::IPV6_TRANSPARENT),
    };
    let socket = sys::socket(domain, libc::SOCK_STREAM, 0)?;
    let fd = socket.as_fd();
    sys::set_option(fd, level, transparent, 1 as c_int)?;
    sys::set_option(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1 as c_int)?;
    sys::set_option(fd, libc::SOL_TCP, libc::TCP_NODELAY, 1 as c_int)?;
    sys::set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, RECEIVED)?;
    sys::set_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, SENT)?;
    sys::set_option(fd, libc::SOL_TCP, libc::TCP_DEFER_ACCEPT, FIRST_BYTES)?;
    set_timeouts(fd, timeouts)?;
    sys::bind(fd, address)?;
    sys::listen(fd, BACKLOG)?;
    Ok(socket.into())
}

fn set_timeouts(fd: BorrowedFd<'_>, timeouts: Timeouts) -> std::io::Result<()> {
    let timeval = |duration: Duration| libc::timeval {
        tv_sec: duration.as_secs() as _,
        tv_usec: duration.subsec_micros() as _,
    };
    let (receive, send) = (timeval(timeouts.receive), timeval(timeouts.send));
    sys::set_option(fd, libc::SOL_SOCKET, libc::SO_RCVTIMEO, receive)?;
    sys::set_option(fd, libc::SOL_SOCKET, libc::SO_SNDTIMEO, send)?;
    // Without it, what a client never takes stays in the kernel for minutes after the connection's end.
    // It ends the connection without a word to the client, so whoever waits to send shall be first.
    let untaken = (timeouts.send.as_millis() + LATER.as_millis()) as c_int;
    sys::set_option(fd, libc::SOL_TCP, libc::TCP_USER_TIMEOUT, untaken)
}
