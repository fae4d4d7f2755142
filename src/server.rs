//! The server: threads that accept a connection, serve it to its end, and accept the next.
//!
//! A thread waits at every listener: the last one that waits starts another before it serves. At the
//! limit, it waits for room for the connection that it has accepted, and idle connections give way to
//! that; the next clients wait in the kernel's queue. Of the threads that wait for clients in vain for a
//! while, one stays at each listener. What the node itself asks has listeners and threads of its own,
//! beyond the limit: the answer says that this process lives, not that a client finds room.

use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use crate::closing::Closing;
use crate::connection::{
    Buffers, Connection, Context, DEADLINES, DIRECT_DEADLINES, Deadlines, PROMPT,
};
use crate::error::{Error, words};
use crate::idle::{Seat, Seats};
use crate::room::Room;
use crate::shortage::Shortage;
use crate::{logging, sandbox, sys};

/// How long the server takes at most to finish what it has.
pub const GRACE: Duration = Duration::from_secs(10);

/// How long no connection must have come, when the server finishes, before the ones that wait for
/// a request are ended: a client that is busy hears of the end with its next answer.
const QUIET: Duration = Duration::from_millis(300);

/// Threads that answer the node itself, at each listener for it.
const ATTENDANTS: usize = 4;

/// A thread's stack, in bytes; the buffers are elsewhere.
const STACK: usize = 64 * 1024;

/// How long a thread waits when the kernel has no means for another connection.
const RECOVERY: Duration = Duration::from_millis(100);

/// How often the first thread looks whether the listeners lack a thread.
const ROUND: Duration = Duration::from_secs(1);

/// Descriptors that are open beside those of the connections, or set aside by an accept4(2) that
/// waits, at most: 20 of ours, and some that whoever started us left open.
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
    sandbox::enter_server(guard)?;
    let Listeners {
        transparent,
        direct,
    } = listeners;
    // Nothing is logged before: it would wait for the log's reader, and outlive the guard meanwhile.
    logging::gather().map_err(fault("start a thread"))?;
    let connections = with_files(allowed, max_connections);
    let server = Arc::new(Server::new(transparent, connections).map_err(fault("listen"))?);
    server.staff().map_err(fault("start a thread"))?;
    for listener in direct {
        let listener = Listener::new(listener, DIRECT_DEADLINES).map_err(fault("listen"))?;
        server.attend(listener).map_err(fault("start a thread"))?;
    }
    control.write_all(READY).map_err(fault("tell the guard"))?;
    control
        .set_read_timeout(Some(ROUND))
        .map_err(fault("listen to the guard"))?;
    while !has_ended(&mut control).map_err(fault("listen to the guard"))? {
        server.tend();
    }
    server.drain();
    // It is closed by this process's end: the last log lines come before.
    mem::forget(control);
    Ok(())
}

/// The files that so many connections need, with those that are closing.
fn files_for(connections: usize) -> u64 {
    (connections + Closing::beside(connections)) as u64 + OTHER_FILES
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
    listeners: Vec<Listener>,
    room: Room,
    /// Connections that were accepted, probes excluded.
    accepted: AtomicU64,
    seats: Seats,
    closing: Closing,
    /// Of room.
    full: Shortage,
    /// Of what the kernel needs for another connection.
    means: Shortage,
    /// Of threads that can be started.
    threads: Shortage,
}

#[derive(Debug)]
struct Listener {
    socket: TcpListener,
    /// Where it is bound: what a direct connection has as its destination.
    address: SocketAddr,
    /// How long things may take on its connections.
    deadlines: Deadlines,
    /// Threads that wait here for a connection, or for room for the one that came.
    waiting: AtomicUsize,
}

impl Listener {
    fn new(socket: TcpListener, deadlines: Deadlines) -> io::Result<Listener> {
        Ok(Listener {
            address: socket.local_addr()?,
            socket,
            deadlines,
            waiting: AtomicUsize::new(0),
        })
    }

    /// A thread stops waiting here, unless it is the only one.
    fn spare(&self) -> bool {
        let fewer = |waiting: usize| (waiting > 1).then(|| waiting - 1);
        self.waiting
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, fewer)
            .is_ok()
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
        Ok(Server {
            context,
            listeners,
            room: Room::new(max_connections),
            accepted: AtomicU64::new(0),
            seats: Seats::default(),
            closing: Closing::new(Closing::beside(max_connections)),
            full: Shortage::default(),
            means: Shortage::default(),
            threads: Shortage::default(),
        })
    }

    /// Starts the threads that answer the node itself, each one connection after the other.
    fn attend(self: &Arc<Server>, listener: Listener) -> io::Result<()> {
        let listener = Arc::new(listener);
        for _ in 0..ATTENDANTS {
            let (server, listener) = (Arc::clone(self), Arc::clone(&listener));
            start(move || {
                let seat = server.seats.add();
                let mut buffers = Buffers::default();
                loop {
                    let accepted = listener.socket.accept().and_then(|(stream, client)| {
                        stream.set_read_timeout(Some(PROMPT))?;
                        stream.set_write_timeout(Some(listener.deadlines.answer))?;
                        Ok((stream, client))
                    });
                    match accepted {
                        Ok((stream, client)) => {
                            server.serve(&listener, stream, client, &seat, &mut buffers);
                        }
                        Err(error) => server.wait_after(&error),
                    }
                }
            })?;
        }
        Ok(())
    }

    /// Has a thread wait at each listener.
    fn staff(self: &Arc<Server>) -> io::Result<()> {
        for (number, listener) in self.listeners.iter().enumerate() {
            let first = |waiting| (waiting == 0).then_some(1);
            let waiting = &listener.waiting;
            let order = Ordering::SeqCst;
            if waiting.fetch_update(order, order, first).is_ok() {
                self.spawn(number).inspect_err(|_| {
                    waiting.fetch_sub(1, order);
                })?;
            }
        }
        Ok(())
    }

    /// Staffs the listeners after a thread has moved; returns whether each has a thread. What fails is
    /// tried again when the next moves, or in the next round.
    fn staff_again(self: &Arc<Server>) -> bool {
        let staffed = self.staff();
        if let Err(error) = &staffed
            && self.threads.is_news()
        {
            log::warn!("Cannot start a thread, clients wait: {}", words(error));
        }
        staffed.is_ok()
    }

    /// Has a thread wait at each listener, where one could not be started when it was needed: if it still
    /// cannot, that of an idle connection. Closes what may be closed.
    fn tend(self: &Arc<Server>) {
        self.closing.sweep();
        if !self.staff_again() {
            self.seats.clear_longest_idle();
        }
    }

    /// Starts a thread that waits at a listener.
    fn spawn(self: &Arc<Server>, number: usize) -> io::Result<()> {
        let server = Arc::clone(self);
        start(move || server.work(number))
    }

    /// The life of a thread, which waits at a listener first, and then where it is needed most.
    fn work(self: &Arc<Server>, number: usize) {
        logging::wait_for_readers();
        let seat = self.seats.add();
        let mut buffers = Buffers::default();
        let mut at = self.listeners.get(number);
        while let Some(listener) = at {
            match listener.socket.accept() {
                Ok((stream, client)) => {
                    self.accepted.fetch_add(1, Ordering::Relaxed);
                    // In this order: while it waits for room, no other thread is needed here.
                    self.room.take(|| self.make_room());
                    listener.waiting.fetch_sub(1, Ordering::SeqCst);
                    self.staff_again();
                    self.serve(listener, stream, client, &seat, &mut buffers);
                    self.room.leave();
                    at = self.queue();
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if listener.spare() {
                        break;
                    }
                    self.staff_again();
                }
                Err(error) => self.wait_after(&error),
            }
        }
        self.seats.remove(&seat);
    }

    /// Has an idle connection give way to one that waits for room.
    fn make_room(&self) -> bool {
        if self.full.is_news() {
            let size = self.room.size();
            log::warn!("There are {size} connections, as many as may be: clients wait");
        }
        self.seats.clear_longest_idle()
    }

    /// Where the kernel has no means for another connection, says so once, and waits until some could
    /// be closed, or a moment.
    fn wait_after(&self, error: &io::Error) {
        if error.kind() == ErrorKind::Interrupted {
            return;
        }
        if self.means.is_news() {
            log::warn!("Cannot accept a connection, clients wait: {}", words(error));
        }
        for _ in 0..10 {
            thread::sleep(RECOVERY / 10);
            if self.closing.sweep() > 0 {
                return;
            }
        }
    }

    /// Chooses the listener at which the fewest threads wait; none if those that wait are enough for
    /// all the room: each takes a descriptor while it waits. At the limit, one more may wait than has
    /// to: the other is about to take the room that was left now, and would start a thread.
    fn queue(self: &Arc<Server>) -> Option<&Listener> {
        let waiting = |listener: &&Listener| listener.waiting.load(Ordering::SeqCst);
        let all: usize = self.listeners.iter().map(|it| waiting(&it)).sum();
        let listener = self.listeners.iter().min_by_key(waiting)?;
        if waiting(&listener) > 1 && self.room.is_full_with(all) {
            return None;
        }
        listener.waiting.fetch_add(1, Ordering::SeqCst);
        self.staff_again();
        Some(listener)
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
        match Connection::new(stream, client, *address, deadlines, &self.context, seat) {
            Ok(connection) => {
                if let Some(wire) = connection.serve(buffers) {
                    self.closing.add(wire);
                }
            }
            Err(error) => log::info!("Connection from {client} was lost: {}", words(&error)),
        }
    }

    /// Connections that have not ended, or are not closed yet. A thread may be on its way from the one to
    /// the other.
    fn open(&self) -> usize {
        self.room.present() + self.closing.left()
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
                self.closing.sweep();
                let is_empty = self.open() == 0;
                if is_empty && was_empty {
                    break;
                }
                was_empty = is_empty;
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
