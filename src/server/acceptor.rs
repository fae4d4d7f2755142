//! Where threads wait for the clients of several listeners at once.
//!
//! All wait in one epoll(7) instance, so that any thread serves a client of any family. A thread that
//! waits there holds no descriptor, as it would in accept4(2), which reserves one before it waits. Each
//! listener is armed for one event (`EPOLLONESHOT`): a client wakes one thread, and no other thread
//! accepts from that listener until the first has.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// Listeners, and the threads that wait for their clients.
#[derive(Debug)]
pub struct Acceptor {
    epoll: Epoll,
    listeners: Vec<Listener>,
}

/// A listening socket that does not block.
#[derive(Debug)]
struct Listener {
    socket: TcpListener,
    address: SocketAddr,
}

/// A connection that was accepted.
#[derive(Debug)]
pub struct Accepted {
    /// The connection.
    pub stream: TcpStream,
    /// The client's address and port.
    pub client: SocketAddr,
    /// The address of its listener: the destination of a direct connection.
    pub listener: SocketAddr,
}

impl Acceptor {
    /// An acceptor for these sockets, which do not block from here on.
    ///
    /// # Errors
    /// `EMFILE`, `ENOMEM`, or any other error of epoll_create1(2), epoll_ctl(2) or getsockname(2).
    pub fn new(sockets: Vec<TcpListener>) -> io::Result<Acceptor> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let mut listeners = Vec::new();
        for (number, socket) in sockets.into_iter().enumerate() {
            socket.set_nonblocking(true)?;
            epoll.add(&socket, one_event_of(number))?;
            listeners.push(Listener {
                address: socket.local_addr()?,
                socket,
            });
        }
        Ok(Acceptor { epoll, listeners })
    }

    /// How many listeners there are.
    pub fn listeners(&self) -> usize {
        self.listeners.len()
    }

    /// Waits for a client, and returns its listener; `None` after the time-out, which starts again after a
    /// signal.
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

    /// Whether a client waits in the kernel's queue of a listener.
    pub fn has_clients(&self) -> bool {
        let sockets = self.listeners.iter().map(|it| it.socket.as_fd());
        let mut fds: Vec<_> = sockets
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        !matches!(poll(&mut fds, PollTimeout::ZERO), Ok(0))
    }
}

/// A listener that has a client. Until this is dropped, no other thread accepts from the listener.
#[derive(Debug)]
pub struct ReadyListener<'a> {
    acceptor: &'a Acceptor,
    number: usize,
}

impl ReadyListener<'_> {
    /// Accepts a client without waiting for one; `None` if there is none, or if it has gone.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`, `ENOBUFS`, `ENOMEM`, or any other error of accept4(2): the client still waits.
    pub fn accept(&self) -> io::Result<Option<Accepted>> {
        let listener = self.listener();
        match listener.socket.accept() {
            Ok((stream, client)) => Ok(Some(Accepted {
                stream,
                client,
                listener: listener.address,
            })),
            Err(error) if is_aborted(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn listener(&self) -> &Listener {
        &self.acceptor.listeners[self.number]
    }
}

/// Whether there is no client, or none any more: Linux hands on what has happened to a connection before
/// it was accepted (accept(2), "Error handling").
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
        let event = &mut one_event_of(self.number);
        let armed = self.acceptor.epoll.modify(&self.listener().socket, event);
        assert!(
            armed.is_ok(),
            "epoll_ctl(2) finds what was added, and nothing else can fail"
        );
    }
}

/// The next event of the listener with this number, and no other after it.
fn one_event_of(number: usize) -> EpollEvent {
    EpollEvent::new(
        EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT,
        number as u64,
    )
}
