//! Listening sockets. The transparent ones (`IP_TRANSPARENT`, ip(7)) are bound to loopback and take
//! connections to any address; the direct ones take connections that the node makes to the listener's own
//! address, such as the kubelet's probes; and that of `--metrics` takes connections to the address of that option.
//!
//! Accepted sockets inherit the options that are set here, and need no system call of their own:
//! `TCP_NODELAY`, `TCP_QUICKACK`, the buffer sizes and the time-outs (socket(7), tcp(7)).

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use libc::{c_int, sock_filter};
use nix::sys::socket::{self, Backlog, SockaddrStorage};

use crate::error::Error;
use crate::selectors::Family;
use crate::server::deadlines::{DEADLINES, DIRECT_DEADLINES, IDLE_AFTER};
use crate::sys;

/// Length of a transparent listener's accept queue: `net.core.somaxconn` (listen(2)), so that the node's
/// administrator decides. The kernel drops a SYN that finds the queue full, and the client sends it again.
const BACKLOG: Backlog = Backlog::MAXALLOWABLE;

/// Length of the accept queue of a direct listener and of that of `--metrics`.
const DIRECT_BACKLOG: i32 = 128;

/// Time that bind(2) is retried for. After a SIGKILL of the guard, the kernel kills the server too, but the
/// server may hold the port for a moment longer.
const BIND_RETRY: Duration = Duration::from_secs(1);

/// Interval between two attempts of bind(2).
const BIND_RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// Receive buffer of a connection, in bytes; the kernel doubles it (`SO_RCVBUF`, socket(7)). A fixed size
/// turns off auto-tuning, which allows MiBs for each connection (`tcp_rmem`, tcp(7)).
const RECEIVE_BUFFER: c_int = 64 * 1024;

/// Receive buffer of a connection to `--metrics`, in bytes; the kernel doubles it.
const METRICS_RECEIVE_BUFFER: c_int = 16 * 1024;

/// Send buffer of a connection, in bytes; the kernel doubles it (`SO_SNDBUF`).
const SEND_BUFFER: c_int = 32 * 1024;

/// Time by which `TCP_USER_TIMEOUT` exceeds the deadline of a response.
const USER_TIMEOUT_DELAY: Duration = Duration::from_secs(1);

/// Time that the kernel waits for the first bytes of a connection before it hands the connection to
/// accept4(2) without them, in seconds (`TCP_DEFER_ACCEPT`, tcp(7)).
const DEFER_ACCEPT: c_int = 1;

/// The listening sockets of all families.
#[derive(Debug)]
pub struct Listeners {
    /// Transparent listeners, for connections to captured addresses.
    pub transparent: Vec<TcpListener>,
    /// Direct listeners, for connections to the same addresses.
    pub direct: Vec<TcpListener>,
    /// The listener of `--metrics`.
    pub metrics: Option<TcpListener>,
}

/// Binds a transparent listener to the family's loopback address.
///
/// # Errors
/// `EADDRINUSE`, `EPERM`, `EACCES`, or any other error of socket(2), setsockopt(2), bind(2) or listen(2).
pub fn bind(family: Family, port: u16) -> Result<TcpListener, Error> {
    let address = SocketAddr::new(family.loopback(), port);
    let hint = "something else listens there; see --port";
    bind_with(address, hint, listen_transparent)
}

/// Binds the listener of `--metrics`.
///
/// # Errors
/// `EADDRINUSE`, `EADDRNOTAVAIL`, `EACCES`, or any other error of socket(2), setsockopt(2), bind(2) or listen(2).
pub fn bind_metrics(address: SocketAddr) -> Result<TcpListener, Error> {
    bind_with(address, "see --metrics", listen_metrics)
}

/// Binds with `listen`, and retries for [`BIND_RETRY`]. `hint` is for an address that is in use, or not of this node.
fn bind_with(
    address: SocketAddr,
    hint: &str,
    listen: fn(SocketAddr) -> io::Result<TcpListener>,
) -> Result<TcpListener, Error> {
    let deadline = Instant::now() + BIND_RETRY;
    let listener = loop {
        match listen(address) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < deadline => {
                thread::sleep(BIND_RETRY_INTERVAL);
            }
            result => break result,
        }
    };
    listener.map_err(|cause| {
        let error = Error::new(format!("bind {address}"), cause);
        match error.errno() {
            libc::EPERM => error.hint("CAP_NET_ADMIN is needed"),
            libc::EACCES => error.hint("CAP_NET_BIND_SERVICE is needed for ports below 1024"),
            libc::EADDRINUSE | libc::EADDRNOTAVAIL => error.hint(hint),
            _ => error,
        }
    })
}

/// Binds a direct listener to the address of a transparent one. Both get `SO_REUSEPORT`, so another program
/// of the same user can listen there too, and a filter that selects the direct one for connections to the
/// address itself.
///
/// # Errors
/// Any error of socket(2), setsockopt(2), bind(2) or listen(2).
pub fn bind_direct(transparent: &TcpListener) -> Result<TcpListener, Error> {
    let bound = listen_direct(transparent);
    bound.map_err(|cause| Error::new("bind a listener for probes", cause))
}

fn listen_direct(transparent: &TcpListener) -> io::Result<TcpListener> {
    let address = transparent.local_addr()?;
    let socket = sys::socket(domain(address), libc::SOCK_STREAM, 0)?;
    let fd = socket.as_fd();
    // Connections in TIME_WAIT must not block the address at the next start.
    sys::set_option(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1 as c_int)?;
    // Not before the first bind(2), which has to fail where another program listens.
    let reuse_port = |fd| sys::set_option(fd, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1 as c_int);
    reuse_port(transparent.as_fd())?;
    reuse_port(fd)?;
    set_timeouts(fd, DIRECT_DEADLINES.response)?;
    let direct = listen(socket, address, Backlog::new(DIRECT_BACKLOG)?)?;
    sys::set_reuseport_filter(direct.as_fd(), &selection(address.ip()))?;
    Ok(direct)
}

/// A filter (bpf(4), socket(7)) that returns the number of a socket in the group of those that listen to one
/// address, in the order of their listen(2): 1, the direct listener, for packets to `address`, and 0, the
/// transparent listener, for packets to any other. TPROXY looks up the listener with the packet's own
/// destination (`nf_tproxy_get_sock_v4`, net/ipv4/netfilter/nf_tproxy_ipv4.c).
fn selection(address: IpAddr) -> Vec<sock_filter> {
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const COMPARE: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    // The offset of the destination in the IP header (RFC 791, 3.1; RFC 8200, 3).
    let (offset, octets) = match address {
        IpAddr::V4(address) => (16, address.octets().to_vec()),
        IpAddr::V6(address) => (24, address.octets().to_vec()),
    };
    let words = octets.as_chunks().0.iter().copied().map(u32::from_be_bytes);
    let instruction = |code: u32, k| sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    };
    let mut filter = Vec::new();
    for (at, word) in (offset..).step_by(4).zip(words) {
        filter.push(instruction(LOAD, (libc::SKF_NET_OFF + at) as u32));
        // If equal, skips the next instruction.
        filter.push(sock_filter {
            jt: 1,
            ..instruction(COMPARE, word)
        });
        filter.push(instruction(RETURN, 0));
    }
    filter.push(instruction(RETURN, 1));
    filter
}

fn listen_transparent(address: SocketAddr) -> io::Result<TcpListener> {
    let (level, transparent) = match address {
        SocketAddr::V4(_) => (libc::SOL_IP, libc::IP_TRANSPARENT),
        SocketAddr::V6(_) => (libc::SOL_IPV6, libc::IPV6_TRANSPARENT),
    };
    let socket = sys::socket(domain(address), libc::SOCK_STREAM, 0)?;
    let fd = socket.as_fd();
    sys::set_option(fd, level, transparent, 1 as c_int)?;
    sys::set_option(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1 as c_int)?;
    sys::set_option(fd, libc::SOL_TCP, libc::TCP_NODELAY, 1 as c_int)?;
    sys::set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, RECEIVE_BUFFER)?;
    sys::set_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, SEND_BUFFER)?;
    sys::set_option(fd, libc::SOL_TCP, libc::TCP_DEFER_ACCEPT, DEFER_ACCEPT)?;
    set_timeouts(fd, DEADLINES.response)?;
    let listener = listen(socket, address, BACKLOG)?;
    // A response acknowledges its request (TCP_QUICKACK, tcp(7)). listen(2) resets it.
    sys::set_option(
        listener.as_fd(),
        libc::SOL_TCP,
        libc::TCP_QUICKACK,
        0 as c_int,
    )?;
    Ok(listener)
}

fn listen_metrics(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = sys::socket(domain(address), libc::SOCK_STREAM, 0)?;
    let fd = socket.as_fd();
    sys::set_option(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1 as c_int)?;
    // The network can fill the accept queue.
    sys::set_option(
        fd,
        libc::SOL_SOCKET,
        libc::SO_RCVBUF,
        METRICS_RECEIVE_BUFFER,
    )?;
    sys::set_option(fd, libc::SOL_TCP, libc::TCP_DEFER_ACCEPT, DEFER_ACCEPT)?;
    set_timeouts(fd, DIRECT_DEADLINES.response)?;
    listen(socket, address, Backlog::new(DIRECT_BACKLOG)?)
}

fn domain(address: SocketAddr) -> c_int {
    match address {
        SocketAddr::V4(_) => libc::AF_INET,
        SocketAddr::V6(_) => libc::AF_INET6,
    }
}

fn listen(socket: OwnedFd, address: SocketAddr, backlog: Backlog) -> io::Result<TcpListener> {
    socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    socket::listen(&socket, backlog)?;
    Ok(socket.into())
}

/// Sets the time-outs of a single read and a single write, and that of unacknowledged data.
fn set_timeouts(fd: BorrowedFd<'_>, response: Duration) -> io::Result<()> {
    let timeval = |duration: Duration| libc::timeval {
        tv_sec: duration.as_secs() as _,
        tv_usec: duration.subsec_micros() as _,
    };
    sys::set_option(fd, libc::SOL_SOCKET, libc::SO_RCVTIMEO, timeval(IDLE_AFTER))?;
    sys::set_option(fd, libc::SOL_SOCKET, libc::SO_SNDTIMEO, timeval(response))?;
    // Without TCP_USER_TIMEOUT the kernel keeps the unacknowledged data of a closed connection for minutes.
    // It drops a connection without a reset, so it has to expire after the server's own deadline.
    let user_timeout = (response + USER_TIMEOUT_DELAY).as_millis() as c_int;
    sys::set_option(fd, libc::SOL_TCP, libc::TCP_USER_TIMEOUT, user_timeout)
}
