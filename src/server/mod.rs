//! The server: threads that accept a connection, serve it to its end, and accept the next.
//!
//! All wait for clients at one [`Acceptor`]: the last one that waits starts another before it serves. At
//! the limit, and where files have run out, the thread that is to accept waits until a connection ends, or
//! has an idle one evicted; the next clients wait in the kernel's queue. Threads that wait in vain for a
//! while end, but for one. What the node itself asks has listeners and threads of its own, beyond the
//! limit: the answer says that this process lives, not that a client is served at once.

pub mod acceptor;
pub mod connection;
pub mod deadlines;
pub mod idle;
pub mod limit;
pub mod lingering;
pub mod listener;
pub mod stream;
pub mod workers;

use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::epoll::EpollTimeout;
use nix::unistd::Pid;

use crate::error::{Error, words};
use crate::log::logger;
use crate::log::once::LogOnce;
use crate::server::acceptor::{Accepted, Acceptor, ReadyListener};
use crate::server::connection::{Buffers, Connection, Context};
use crate::server::deadlines::{DEADLINES, DIRECT_DEADLINES, Deadlines};
use crate::server::idle::{IdleConnections, Seat};
use crate::server::limit::{ConnectionLimit, EVICTION_TIMEOUT, PATIENCE};
use crate::server::lingering::LingeringConnections;
use crate::server::workers::IdleWorkers;
use crate::{sandbox, sys};

/// How long the server takes at most to finish what it has.
pub const GRACE: Duration = Duration::from_secs(10);

/// How long no connection must have come, when the server finishes, before the ones that wait for
/// a request are ended: a client that is busy hears of the end with its next answer.
const QUIET: Duration = Duration::from_millis(300);

/// Threads that answer probes, for each listener.
const PROBE_WORKERS: usize = 4;

/// A thread's stack, in bytes; the buffers are elsewhere.
const STACK: usize = 64 * 1024;

/// The time after which a thread that waits for a client ends, if others wait too, in ms.
const IDLE_TIMEOUT: u16 = 1000;

/// The interval at which the first thread makes sure that a thread waits for clients.
const ROUND: Duration = Duration::from_secs(1);

/// Descriptors that are open beside those of the clients' connections, at most: a dozen of ours, those of
/// the probes that are answered, and some that whatever started us left open.
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
    let fault = |attempt: &'static str| move |error: io::Error| Error::new(attempt, error);
    let allowed = sys::allow_open_files(files_for(max_connections))
        .map_err(fault("raise the limit of open files"))?;
    let clients = Acceptor::new(listeners.transparent).map_err(fault("listen"))?;
    let probes = Acceptor::new(listeners.direct).map_err(fault("listen"))?;
    sandbox::enter_server(guard)?;
    // Nothing is logged before: it would wait for the log's reader, and outlive the guard meanwhile.
    logger::start_writer().map_err(fault("start a thread"))?;
    let connections = with_files(allowed, max_connections);
    let server = Arc::new(Server::new(clients, probes, connections));
    server
        .ensure_worker()
        .and_then(|()| server.start_probe_workers())
        .map_err(fault("start a thread"))?;
    control.write_all(READY).map_err(fault("tell the guard"))?;
    control
        .set_read_timeout(Some(ROUND))
        .map_err(fault("listen to the guard"))?;
    while !has_ended(&mut control).map_err(fault("listen to the guard"))? {
        server.maintain();
    }
    server.drain();
    // It is closed by this process's end: the last log lines come before.
    mem::forget(control);
    Ok(())
}

/// The files that so many connections need, with those that are closing.
fn files_for(connections: usize) -> u64 {
    (connections + LingeringConnections::beside(connections)) as u64 + OTHER_FILES
}

/// For how many connections so many files are enough: `wanted` of them, or fewer.
fn with_files(allowed: u64, wanted: usize) -> usize {
    let enough = (1..=wanted).take_while(|connections| files_for(*connections) <= allowed);
    let enough = enough.last().unwrap_or(1);
    if enough < wanted {
        log::warn!(
            "At most {enough} connections at once, not {wanted}: {allowed} files may be open"
        );
    }
    enough
}

/// Waits for the other end to be shut down, until the read time-out.
fn has_ended(control: &mut UnixStream) -> io::Result<bool> {
    match control.read(&mut [0]) {
        Ok(length) => Ok(length == 0),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

#[derive(Debug)]
struct Server {
    context: Context,
    clients: Acceptor,
    probes: Acceptor,
    workers: IdleWorkers,
    limit: ConnectionLimit,
    /// Connections that were accepted, probes excluded.
    accepted: AtomicU64,
    seats: IdleConnections,
    closing: LingeringConnections,
    /// Of connections below the limit.
    full: LogOnce,
    /// Of what the kernel needs for another connection.
    shortage: LogOnce,
    /// Of threads that can be started.
    threads: LogOnce,
}

impl Server {
    fn new(clients: Acceptor, probes: Acceptor, max_connections: usize) -> Server {
        let context = Context {
            node: std::env::var("NODE_NAME")
                .ok()
                .filter(|name| !name.is_empty()),
            draining: AtomicBool::new(false),
            connections: AtomicU64::new(0),
            requests: AtomicU64::new(0),
        };
        Server {
            context,
            clients,
            probes,
            workers: IdleWorkers::default(),
            limit: ConnectionLimit::new(max_connections),
            accepted: AtomicU64::new(0),
            seats: IdleConnections::default(),
            closing: LingeringConnections::new(LingeringConnections::beside(max_connections)),
            full: LogOnce::default(),
            shortage: LogOnce::default(),
            threads: LogOnce::default(),
        }
    }

    /// Starts the threads that answer the node itself, each one connection after the other.
    fn start_probe_workers(self: &Arc<Server>) -> io::Result<()> {
        for _ in 0..PROBE_WORKERS * self.probes.listeners() {
            let server = Arc::clone(self);
            start(move || server.serve_probes())?;
        }
        Ok(())
    }

    /// The life of a thread that answers probes.
    fn serve_probes(&self) {
        let seat = self.seats.add();
        let mut buffers = Buffers::default();
        loop {
            let ready = self.probes.wait(EpollTimeout::NONE);
            let Some(accepted) = ready.and_then(|listener| self.accept(listener)) else {
                continue;
            };
            self.serve(accepted, &DIRECT_DEADLINES, &seat, &mut buffers);
        }
    }

    /// Starts a thread if none waits for clients.
    fn ensure_worker(self: &Arc<Server>) -> io::Result<()> {
        self.workers.ensure_one(|| self.spawn_worker())
    }

    fn spawn_worker(self: &Arc<Server>) -> io::Result<()> {
        let server = Arc::clone(self);
        start(move || server.worker())
    }

    /// Where a thread could not be started when it was needed, tries again; if it still cannot and clients
    /// wait, has an idle connection evicted. Closes what may be closed.
    fn maintain(self: &Arc<Server>) {
        self.closing.sweep();
        if let Err(error) = self.ensure_worker() {
            self.report_threads(&error);
            if self.clients.has_clients() {
                self.seats.clear_longest_idle();
            }
        }
    }

    fn report_threads(&self, error: &io::Error) {
        if self.threads.should_log() {
            log::warn!("Cannot start a thread, clients wait: {}", words(error));
        }
    }

    /// The life of a thread that serves clients, and counts as waiting at first.
    fn worker(self: &Arc<Server>) {
        logger::block_when_full();
        let seat = self.seats.add();
        let mut buffers = Buffers::default();
        loop {
            let Some(listener) = self.clients.wait(EpollTimeout::from(IDLE_TIMEOUT)) else {
                match self.workers.retire() {
                    true => break,
                    false => continue,
                }
            };
            // Before it is accepted, so that every connection counts. The next ones wait in the kernel's
            // queue meanwhile, in their order.
            self.limit.acquire(|| self.evict());
            if let Some(accepted) = self.accept(listener) {
                self.accepted.fetch_add(1, Ordering::Relaxed);
                if let Err(error) = self.workers.remove(|| self.spawn_worker()) {
                    self.report_threads(&error);
                }
                self.serve(accepted, &DEADLINES, &seat, &mut buffers);
                // Before the release: the thread that acquires next would find none, and start another.
                self.workers.add();
            }
            self.limit.release();
        }
        self.seats.remove(&seat);
    }

    /// Accepts a client; `None` if it has gone. Where the kernel lacks what that takes, waits for a
    /// connection to end, and tries again. Only `EMFILE` is surely ended by an eviction: an idle connection
    /// is evicted if no connection has ended within [`PATIENCE`].
    fn accept(&self, listener: ReadyListener<'_>) -> Option<Accepted> {
        let mut none_ended = false;
        loop {
            let ended = self.limit.ended();
            let error = match listener.accept() {
                Ok(accepted) => return accepted,
                Err(error) => error,
            };
            if self.shortage.should_log() {
                let reason = words(&error);
                log::warn!("Cannot accept a connection, clients wait: {reason}");
            }
            let may_evict = none_ended && error.raw_os_error() == Some(libc::EMFILE);
            let timeout = if may_evict && self.seats.clear_longest_idle() {
                EVICTION_TIMEOUT
            } else {
                PATIENCE
            };
            none_ended = self.closing.sweep() == 0 && !self.limit.wait_for_end(ended, timeout);
        }
    }

    /// Evicts an idle connection for one that waits at the limit.
    fn evict(&self) -> bool {
        if self.full.should_log() {
            let size = self.limit.size();
            log::warn!("There are {size} connections, as many as may be: clients wait");
        }
        self.seats.clear_longest_idle()
    }

    fn serve(&self, accepted: Accepted, deadlines: &Deadlines, seat: &Seat, buffers: &mut Buffers) {
        let Accepted {
            stream,
            client,
            listener,
        } = accepted;
        match Connection::new(stream, client, listener, deadlines, &self.context, seat) {
            Ok(connection) => {
                if let Some(wire) = connection.serve(buffers) {
                    self.closing.add(wire);
                }
            }
            Err(error) => lost(client, &error),
        }
    }

    /// Whether a client waits, or a connection has not ended or is not closed yet. A client counts before
    /// it leaves the kernel's queue, and a connection is closing before it counts no more: in this order
    /// nothing is missed.
    fn is_busy(&self) -> bool {
        self.clients.has_clients() || self.open() > 0
    }

    /// Connections that have not ended, or are not closed yet.
    fn open(&self) -> usize {
        self.limit.present() + self.closing.left()
    }

    /// Ends connections after their next answer, and waits until none is left and none comes.
    fn drain(self: &Arc<Server>) {
        self.context.draining.store(true, Ordering::SeqCst);
        let deadline = Instant::now() + GRACE;
        let mut accepted = self.accepted.load(Ordering::Relaxed);
        let mut quiet_since = Instant::now();
        while Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
            self.maintain();
            let now = self.accepted.load(Ordering::Relaxed);
            if now != accepted {
                accepted = now;
                quiet_since = Instant::now();
            }
            if quiet_since.elapsed() >= QUIET {
                if !self.is_busy() {
                    break;
                }
                self.seats.clear();
            }
        }
        let open = self.open();
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

fn lost(client: SocketAddr, error: &io::Error) {
    log::info!("Connection from {client} was lost: {}", words(error));
}
