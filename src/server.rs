//! The server: threads that accept a connection, serve it to its end, and accept the next.
//!
//! There is always one thread more than there are connections, up to the limit: the last one that
//! waits starts another before it serves. At the limit, clients wait in the kernel's queue. Threads
//! that wait in excess end.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use crate::connection::{Buffers, Connection, Context, DEADLINES};
use crate::error::{Error, words};
use crate::idle::{Seat, Seats};
use crate::sandbox;

/// How long the server takes at most to finish what it has.
pub const GRACE: Duration = Duration::from_secs(10);

/// How long no connection must have come before the server believes that none is on its way: a
/// handshake that has begun when the rules change takes one round trip to be accepted.
const QUIET: Duration = Duration::from_millis(300);

/// Threads that may wait for a connection at each listener.
const SPARE: usize = 64;

/// A thread's stack, in bytes; the buffers are elsewhere.
const STACK: usize = 64 * 1024;

/// How long a thread waits when the kernel has no means for another connection.
const RECOVERY: Duration = Duration::from_millis(100);

/// What the server says when it can serve.
pub const READY: &[u8] = b"ready";

/// Serves connections until the other end of `control` is shut down, then finishes what it has.
///
/// # Errors
/// What kept it from serving.
pub fn run(
    listeners: Vec<TcpListener>,
    mut control: UnixStream,
    guard: Pid,
    max_connections: usize,
) -> Result<(), Error> {
    sandbox::enter(guard)?;
    let fault = |attempt: &'static str| move |error: io::Error| Error::new(attempt, error);
    let server = Arc::new(Server::new(max_connections));
    for listener in listeners {
        let address = listener
            .local_addr()
            .map_err(fault("read the listener's address"))?;
        let pool = Arc::new(Pool {
            listener,
            address,
            waiting: AtomicUsize::new(0),
        });
        server.threads.fetch_add(1, Ordering::SeqCst);
        server.spawn(&pool).map_err(fault("start a thread"))?;
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
    max_threads: usize,
    threads: AtomicUsize,
    /// Connections that are being served.
    open: AtomicUsize,
    /// Connections that were accepted.
    accepted: AtomicU64,
    seats: Seats,
}

/// The threads of one listener.
#[derive(Debug)]
struct Pool {
    listener: TcpListener,
    /// Where it is bound: what a direct connection has as its destination.
    address: SocketAddr,
    /// Threads that wait for a connection.
    waiting: AtomicUsize,
}

impl Server {
    fn new(max_threads: usize) -> Server {
        let context = Context {
            node: std::env::var("NODE_NAME")
                .ok()
                .filter(|name| !name.is_empty()),
            deadlines: DEADLINES,
            draining: AtomicBool::new(false),
            requests: AtomicU64::new(0),
        };
        Server {
            context,
            max_threads,
            threads: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            accepted: AtomicU64::new(0),
            seats: Seats::default(),
        }
    }

    /// Starts a thread that `threads` counts already.
    fn spawn(self: &Arc<Server>, pool: &Arc<Pool>) -> io::Result<()> {
        let (server, pool) = (Arc::clone(self), Arc::clone(pool));
        let work = move || server.work(&pool);
        thread::Builder::new()
            .stack_size(STACK)
            .spawn(work)
            .map(drop)
    }

    /// Starts a thread more, if the limit allows it.
    fn grow(self: &Arc<Server>, pool: &Arc<Pool>) {
        let room = |threads| (threads < self.max_threads).then_some(threads + 1);
        if self
            .threads
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, room)
            .is_err()
        {
            return;
        }
        if let Err(error) = self.spawn(pool) {
            self.threads.fetch_sub(1, Ordering::SeqCst);
            log::warn!("Cannot start a thread, clients wait: {}", words(&error));
        }
    }

    /// The life of a thread.
    fn work(self: &Arc<Server>, pool: &Arc<Pool>) {
        let seat = self.seats.add();
        let mut buffers = Buffers::new();
        while pool.waiting.fetch_add(1, Ordering::SeqCst) < SPARE {
            let accepted = pool.listener.accept();
            let last = pool.waiting.fetch_sub(1, Ordering::SeqCst) == 1;
            match accepted {
                Ok((stream, client)) => {
                    self.open.fetch_add(1, Ordering::SeqCst);
                    self.accepted.fetch_add(1, Ordering::SeqCst);
                    if last {
                        self.grow(pool);
                    }
                    self.serve(pool, stream, client, &seat, &mut buffers);
                    self.open.fetch_sub(1, Ordering::SeqCst);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => {
                    log::warn!(
                        "Cannot accept a connection, clients wait: {}",
                        words(&error)
                    );
                    thread::sleep(RECOVERY);
                }
            }
        }
        pool.waiting.fetch_sub(1, Ordering::SeqCst);
        self.seats.remove(&seat);
        self.threads.fetch_sub(1, Ordering::SeqCst);
    }

    fn serve(
        &self,
        pool: &Pool,
        stream: TcpStream,
        client: SocketAddr,
        seat: &Seat,
        buffers: &mut Buffers,
    ) {
        match Connection::new(stream, client, pool.address, &self.context, seat) {
            Ok(connection) => connection.serve(buffers),
            Err(error) => log::info!("Connection from {client} was lost: {}", words(&error)),
        }
    }

    /// Ends connections after their next answer, and waits until none is left and none comes.
    fn drain(&self) {
        self.context.draining.store(true, Ordering::SeqCst);
        self.seats.clear();
        let deadline = Instant::now() + GRACE;
        let mut quiet_since = Instant::now();
        let mut accepted = self.accepted.load(Ordering::SeqCst);
        while Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
            let now = self.accepted.load(Ordering::SeqCst);
            if now != accepted || self.open.load(Ordering::SeqCst) > 0 {
                accepted = now;
                quiet_since = Instant::now();
            } else if quiet_since.elapsed() >= QUIET {
                break;
            }
        }
        let open = self.open.load(Ordering::SeqCst);
        if open > 0 {
            log::warn!(
                "Cut off {open} connections that did not end within {} s",
                GRACE.as_secs()
            );
        }
        log::info!(
            "Served {} requests on {} connections",
            self.context.requests.load(Ordering::SeqCst),
            self.accepted.load(Ordering::SeqCst)
        );
    }
}
