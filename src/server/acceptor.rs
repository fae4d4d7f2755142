//! An epoll(7) instance at which idle workers wait for the clients of several listeners, so that any worker
//! serves any family.
//!
//! A thread that waits in epoll_wait(2) holds no descriptor; accept4(2) reserves one before it waits. Each
//! listener is armed for one event (`EPOLLONESHOT`): a client wakes one thread, and no other thread accepts
//! from that listener until it is armed again.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::server::listener::Listeners;
use crate::sys;

/// What connections a listener takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerKind {
    /// Captured connections.
    Transparent,
    /// Connections of the node itself to the listener's own address.
    Direct,
    /// Connections to the address of `--metrics`.
    Metrics,
}

/// Listeners of one kind in one epoll instance.
#[derive(Debug)]
pub struct Acceptor {
    kind: ListenerKind,
    epoll: Epoll,
    listeners: Vec<Listener>,
}

/// A non-blocking listening socket.
#[derive(Debug)]
struct Listener {
    socket: TcpListener,
    address: SocketAddr,
}

/// An accepted connection.
#[derive(Debug)]
pub struct Accepted {
    /// The connected socket.
    pub stream: TcpStream,
    /// The client's address and port.
    pub client: SocketAddr,
    /// The kind of its listener.
    pub kind: ListenerKind,
    /// The listener's own address. It is the destination of a direct connection.
    pub listener: SocketAddr,
}

impl Acceptor {
    /// An acceptor for these sockets, which become non-blocking.
    ///
    /// # Errors
    /// `EMFILE`, `ENOMEM`, or any other error of epoll_create1(2), epoll_ctl(2) or getsockname(2).
    pub fn new(kind: ListenerKind, sockets: Vec<TcpListener>) -> io::Result<Acceptor> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let mut listeners = Vec::new();
        for (number, socket) in sockets.into_iter().enumerate() {
            socket.set_nonblocking(true)?;
            epoll.add(&socket, one_shot(number))?;
            listeners.push(Listener {
                address: socket.local_addr()?,
                socket,
            });
        }
        Ok(Acceptor {
            kind,
            epoll,
            listeners,
        })
    }

    /// The number of listeners.
    pub fn listener_count(&self) -> usize {
        self.listeners.len()
    }

    /// Waits for a client, and returns its listener; `None` after the time-out. A signal restarts the
    /// time-out.
    pub fn wait(&self, timeout: EpollTimeout) -> Option<ReadyListener<'_>> {
        let mut events = [EpollEvent::empty()];
        loop {
            match self.epoll.wait(&mut events, timeout) {
                Ok(0) => return None,
                Ok(_) => {
                    return Some(ReadyListener {
                        acceptor: self,
                        number: events[0].data() as usize,
                    });
                }
                Err(Errno::EINTR) => {}
                Err(_) => unreachable!("epoll_wait(2) has no other error with a valid descriptor"),
            }
        }
    }

    /// Clients in the accept queues of all listeners: what `TCP_INFO` has as `tcpi_unacked` of a listening
    /// socket (`tcp_get_info`, net/ipv4/tcp.c).
    pub fn waiting(&self) -> usize {
        let queue = |listener: &Listener| {
            let info = sys::tcp_info(listener.socket.as_raw_fd());
            info.map_or(0, |info| info.tcpi_unacked as usize)
        };
        self.listeners.iter().map(queue).sum()
    }
}

/// The acceptors of all kinds of listeners.
#[derive(Debug)]
pub struct Acceptors {
    /// For clients.
    pub clients: Acceptor,
    /// For the node itself.
    pub direct: Acceptor,
    /// For the metrics; without a listener if `--metrics` is not given.
    pub metrics: Acceptor,
}

impl Acceptors {
    /// An acceptor for each kind of listener.
    ///
    /// # Errors
    /// As [`Acceptor::new`].
    pub fn new(listeners: Listeners) -> io::Result<Acceptors> {
        let metrics = listeners.metrics.into_iter().collect();
        Ok(Acceptors {
            clients: Acceptor::new(ListenerKind::Transparent, listeners.transparent)?,
            direct: Acceptor::new(ListenerKind::Direct, listeners.direct)?,
            metrics: Acceptor::new(ListenerKind::Metrics, metrics)?,
        })
    }
}

/// A listener that has a client. When it is dropped, the listener is armed again; until then no other thread
/// accepts from it.
#[derive(Debug)]
pub struct ReadyListener<'a> {
    acceptor: &'a Acceptor,
    number: usize,
}

impl ReadyListener<'_> {
    /// Accepts a client without waiting; `None` if there is none any more.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`, `ENOBUFS`, `ENOMEM`, or any other error of accept4(2); then the client still waits.
    pub fn accept(&self) -> io::Result<Option<Accepted>> {
        let listener = self.listener();
        match listener.socket.accept() {
            Ok((stream, client)) => Ok(Some(Accepted {
                stream,
                client,
                kind: self.kind(),
                listener: listener.address,
            })),
            Err(error) if is_aborted(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What connections the listener takes.
    pub fn kind(&self) -> ListenerKind {
        self.acceptor.kind
    }

    fn listener(&self) -> &Listener {
        &self.acceptor.listeners[self.number]
    }
}

/// Whether an error means that the client has gone. accept4(2) also returns the pending network errors of the
/// new connection (accept(2), "Error handling").
fn is_aborted(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EAGAIN
                | libc::ECONNABORTED
                | libc::ENETDOWN
                | libc::EPROTO
                | libc::ENOPROTOOPT
                | libc::EHOSTDOWN
                | libc::ENONET
                | libc::EHOSTUNREACH
                | libc::EOPNOTSUPP
                | libc::ENETUNREACH
        )
    )
}

impl Drop for ReadyListener<'_> {
    fn drop(&mut self) {
        let event = &mut one_shot(self.number);
        let armed = self.acceptor.epoll.modify(&self.listener().socket, event);
        assert!(
            armed.is_ok(),
            "epoll_ctl(2) cannot fail for a socket that was added"
        );
    }
}

/// Arms the listener with this number for one event.
fn one_shot(number: usize) -> EpollEvent {
    EpollEvent::new(
        EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT,
        number as u64,
    )
}
