//! The server: threads that accept a connection, serve it to its end, and accept the next.
//!
//! While there is room for another connection, a thread waits at every listener: the last one that
//! waits starts another before it serves. At the limit, clients wait in the kernel's queue. A thread
//! that nobody needed for a while ends. What the node itself asks has listeners and threads of its
//! own, beyond the limit: the answer says that this process lives, not that a client finds room.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use crate::connection::{Buffers, Connection, Context, DEADLINES, DIRECT_DEADLINES, Deadlines};
use crate::error::{Error, words};
use crate::idle::{Seat, Seats};
use crate::{sandbox, sys};

/// How long the server takes at most to finish what it has.
pub const GRACE: Duration = Duration::from_secs(10);

/// How long no connection must have come, when the server finishes, before the ones that wait for
/// a request are ended: a client that is busy hears of the end with its next answer.
const QUIET: Duration = Duration::from_millis(300);

/// Threads that may wait for a connection at each listener.
const SPARE: usize = 64;

/// Threads that answer the node itself, at each listener for it.
const ATTENDANTS: usize = 4;

/// A thread's stack, in bytes; the buffers are elsewhere.
const STACK: usize = 64 * 1024;

/// How long a thread waits when the kernel has no means for another connection.
const RECOVERY: Duration = Duration::from_millis(100);

/// Descriptors that are open beside those of the connections, at most.
const OTHER_FILES: u64 = 32;

/// What the server says when it can serve.
pub const READY: &[u8] = b"ready";

/// What connections come in by.
#[derive(Debug)]
pub struct Listeners {
    /// The transparent ones.
    pub transparent: Vec<TcpListener>,
    /// Those at the same addresses for the node itself, where the kernel has them.
    pub direct: Vec<TcpListener>,
}

/// Serves connections until the other end of `control` is shut down, then finishes what it has.
///
/// # Errors
/// What kept it from serving.
pub fn run(
    listeners: Listeners,
    mut control: UnixStream,
    guard: Pid,
    max_connections: usize,
) -> Result<(), Error> {
    sandbox::enter(guard)?;
    let fault = |attempt: &'static str| move |error: io::Error| Error::new(attempt, error);
    let files = max_connections as u64 + OTHER_FILES;
    match sys::allow_open_files(files) {
        Ok(allowed) if allowed >= files => {}
        Ok(allowed) => log::warn!(
            "Fewer connections at once than {max_connections}: only {allowed} files may be open"
        ),
        Err(error) => return Err(Error::new("raise the limit of open files", error)),
    }
    let Listeners {
        transparent,
        direct,
    } = listeners;
    let server = Arc::new(Server::new(transparent, max_connections).map_err(fault("listen"))?);
    server.spawn().map_err(fault("start a thread"))?;
    for listener in direct {
        let listener = Listener::new(listener, DIRECT_DEADLINES).map_err(fault("listen"))?;
        server.attend(listener).map_err(fault("start a thread"))?;
    }
    control.write_all(READY).map_err(fault("tell the guard"))?;
    control
        .read_to_end(&mut Vec::new())
        .map_err(fault("listen to the guard"))?;
    server.drain();
    Ok(())
}

#[derive(Debug)]
struct Server {
    context: Context,
    listeners: Vec<Listener>,
    max_connections: usize,
    load: Mutex<Load>,
    /// Somebody may wait for a connection to end.
    ended: Condvar,
    /// Connections that were accepted, probes included.
    accepted: AtomicU64,
    seats: Seats,
}

#[derive(Debug)]
struct Listener {
    socket: TcpListener,
    /// Where it is bound: what a direct connection has as its destination.
    address: SocketAddr,
    /// How long things may take on its connections.
    deadlines: Deadlines,
    /// Whether the kernel had no means for another connection when one was accepted last.
    starved: AtomicBool,
}

impl Listener {
    fn new(socket: TcpListener, deadlines: Deadlines) -> io::Result<Listener> {
        Ok(Listener {
            address: socket.local_addr()?,
            socket,
            deadlines,
            starved: AtomicBool::new(false),
        })
    }

    fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let accepted = self.socket.accept()?;
        self.starved.store(false, Ordering::Relaxed);
        Ok(accepted)
    }

    /// Where the kernel has no means for another connection, says so once, and waits until it may
    /// have them.
    fn wait_after(&self, error: &io::Error) {
        if [ErrorKind::WouldBlock, ErrorKind::Interrupted].contains(&error.kind()) {
            return;
        }
        if !self.starved.swap(true, Ordering::Relaxed) {
            log::warn!("Cannot accept a connection, clients wait: {}", words(error));
        }
        thread::sleep(RECOVERY);
    }
}

/// What the threads do.
#[derive(Debug)]
struct Load {
    /// Connections that were accepted and have not ended.
    open: usize,
    /// Those of them that are being served.
    served: usize,
    /// Threads that wait at each listener.
    waiting: Vec<usize>,
}

impl Load {
    /// A thread waits no longer at a listener; returns how many do.
    fn leave(&mut self, number: usize) -> usize {
        let waiting = &mut self.waiting[number];
        *waiting -= 1;
        *waiting
    }
}

impl Server {
    fn new(listeners: Vec<TcpListener>, max_connections: usize) -> io::Result<Server> {
        let context = Context {
            node: std::env::var("NODE_NAME")
                .ok()
                .filter(|name| !name.is_empty()),
            draining: AtomicBool::new(false),
            connections: AtomicU64::new(0),
            requests: AtomicU64::new(0),
        };
        let listeners = listeners
            .into_iter()
            .map(|socket| Listener::new(socket, DEADLINES))
            .collect::<io::Result<Vec<_>>>()?;
        let load = Mutex::new(Load {
            open: 0,
            served: 0,
            waiting: vec![0; listeners.len()],
        });
        Ok(Server {
            context,
            listeners,
            max_connections,
            load,
            ended: Condvar::new(),
            accepted: AtomicU64::new(0),
            seats: Seats::default(),
        })
    }

    /// The load is whole at any moment, also after a panic.
    fn load(&self) -> MutexGuard<'_, Load> {
        self.load.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spawn(self: &Arc<Server>) -> io::Result<()> {
        let server = Arc::clone(self);
        start(move || server.work())
    }

    /// Starts the threads that answer the node itself, each one connection after the other.
    fn attend(self: &Arc<Server>, listener: Listener) -> io::Result<()> {
        let listener = Arc::new(listener);
        for _ in 0..ATTENDANTS {
            let (server, listener) = (Arc::clone(self), Arc::clone(&listener));
            start(move || {
                let seat = server.seats.add();
                let mut buffers = Buffers::new();
                loop {
                    match listener.accept() {
                        Ok((stream, client)) => {
                            server.serve(&listener, stream, client, &seat, &mut buffers);
                        }
                        Err(error) => listener.wait_after(&error),
                    }
                }
            })?;
        }
        Ok(())
    }

    /// Starts a thread if there is room for a connection, but nobody to accept it.
    fn staff(self: &Arc<Server>, load: MutexGuard<'_, Load>) {
        let wanted = load.open < self.max_connections && load.waiting.contains(&0);
        drop(load);
        if let (true, Err(error)) = (wanted, self.spawn()) {
            log::warn!("Cannot start a thread, clients wait: {}", words(&error));
        }
    }

    /// The life of a thread.
    fn work(self: &Arc<Server>) {
        let seat = self.seats.add();
        let mut buffers = Buffers::new();
        while let Some((number, listener)) = self.queue() {
            match listener.accept() {
                Ok((stream, client)) => {
                    self.begin(number);
                    self.serve(listener, stream, client, &seat, &mut buffers);
                    self.end();
                }
                Err(error) => {
                    let others = self.load().leave(number);
                    if error.kind() == ErrorKind::WouldBlock && others > 0 {
                        break;
                    }
                    listener.wait_after(&error);
                }
            }
        }
        self.seats.remove(&seat);
    }

    /// Chooses the listener that needs a thread most to wait at; none, if there are enough.
    fn queue(self: &Arc<Server>) -> Option<(usize, &Listener)> {
        let mut load = self.load();
        let busy: usize = load.open + load.waiting.iter().sum::<usize>();
        let (number, waiting) = (0..).zip(&mut load.waiting).min_by_key(|(_, it)| **it)?;
        let wanted = match *waiting {
            0 => true,
            waiting => waiting < SPARE && busy < self.max_connections,
        };
        if !wanted {
            return None;
        }
        *waiting += 1;
        self.staff(load);
        Some((number, self.listeners.get(number)?))
    }

    /// Has room for a connection that was accepted, or waits for it: where there are two listeners,
    /// one connection more than allowed may have been accepted.
    fn begin(self: &Arc<Server>, number: usize) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
        let mut load = self.load();
        load.leave(number);
        load.open += 1;
        while load.served >= self.max_connections {
            load = self
                .ended
                .wait(load)
                .unwrap_or_else(PoisonError::into_inner);
        }
        load.served += 1;
        self.staff(load);
    }

    fn end(&self) {
        let mut load = self.load();
        load.open -= 1;
        load.served -= 1;
        if load.open > load.served {
            self.ended.notify_one();
        }
    }

    fn serve(
        &self,
        listener: &Listener,
        stream: TcpStream,
        client: SocketAddr,
        seat: &Seat,
        buffers: &mut Buffers,
    ) {
        let Listener {
            address, deadlines, ..
        } = listener;
        match Connection::new(stream, client, *address, *deadlines, &self.context, seat) {
            Ok(connection) => connection.serve(buffers),
            Err(error) => log::info!("Connection from {client} was lost: {}", words(&error)),
        }
    }

    /// Ends connections after their next answer, and waits until none is left and none comes.
    fn drain(&self) {
        self.context.draining.store(true, Ordering::SeqCst);
        let deadline = Instant::now() + GRACE;
        let mut accepted = self.accepted.load(Ordering::Relaxed);
        let mut quiet_since = Instant::now();
        // A thread may be on its way from one connection to the next that waits.
        let mut was_empty = false;
        while Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
            let now = self.accepted.load(Ordering::Relaxed);
            if now != accepted {
                accepted = now;
                quiet_since = Instant::now();
            }
            if quiet_since.elapsed() >= QUIET {
                let is_empty = self.load().open == 0;
                if is_empty && was_empty {
                    break;
                }
                was_empty = is_empty;
                self.seats.clear();
            }
        }
        let open = self.load().open;
        if open > 0 {
            log::warn!(
                "Cut off {open} connections that did not end within {} s",
                GRACE.as_secs()
            );
        }
        log::info!(
            "Served {} requests on {} connections",
            self.context.requests.load(Ordering::SeqCst),
            self.context.connections.load(Ordering::SeqCst)
        );
    }
}

/// Starts a thread.
fn start(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let thread = thread::Builder::new().stack_size(STACK);
    thread.spawn(work).map(drop)
}
