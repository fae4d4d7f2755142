//! The guard: installs the routing and the table once the server is ready, keeps the routing in
//! place, and undoes everything in the end. It reads nothing that came over the network.

use std::fmt;
use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::error::Error;
use crate::nftables::{TABLE, Table};
use crate::routing::Routing;
use crate::script::Script;
use crate::server::{GRACE, READY};
use crate::sockets::{Sockets, States};
use crate::watch::Watch;

/// What ends the guard in order.
const STOP: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];

/// How long handshakes are waited for that had begun before the rules changed: a lost packet is
/// sent again after 1 s, and then after 2 s (RFC 6298, 2.1).
const HANDSHAKES: Duration = Duration::from_secs(3);

/// What a stop may take beside waiting for handshakes and for the server.
const MARGIN: Duration = Duration::from_secs(2);

/// How long a stop waits for clients at most. Who stops it, as the kubelet does, should wait longer
/// before SIGKILL.
pub const LONGEST_STOP: Duration = HANDSHAKES.saturating_add(GRACE).saturating_add(MARGIN);

/// How often the kernel is asked for the sockets of connections that end.
const STEP: Duration = Duration::from_millis(20);

/// The signals of [`STOP`] as something to wait for. They are blocked before the fork: the server
/// shall not die of a Ctrl-C that is meant for the guard.
///
/// # Errors
/// What the kernel answers.
pub fn block_signals() -> Result<SignalFd, Error> {
    let signals: SigSet = STOP.into_iter().collect();
    let fault = |errno| Error::new("block signals", errno);
    signals.thread_block().map_err(fault)?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(fault)
}

/// Why the guard ended out of order.
#[derive(Debug)]
pub enum Failure {
    /// The kernel refused something.
    System(Error),
    /// The server ended by itself; it has said why, unless a signal killed it.
    Server(WaitStatus),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::System(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::System(error) => error.fmt(f),
            Failure::Server(WaitStatus::Exited(_, status)) => {
                write!(f, "the server ended with status {status}")
            }
            Failure::Server(WaitStatus::Signaled(_, Signal::SIGSYS, _)) => f.write_str(
                "the server was killed by SIGSYS: it aborted, or made a call that its sandbox forbids",
            ),
            Failure::Server(WaitStatus::Signaled(_, signal, _)) => {
                write!(f, "the server was killed by {signal}")
            }
            Failure::Server(_) => f.write_str("the server ended"),
        }
    }
}

/// The server process, as the guard sees it.
#[derive(Debug)]
pub struct Server {
    /// Its process id.
    pub pid: Pid,
    /// It says when it is ready, hears when it shall finish, and is closed by its death.
    pub control: UnixStream,
}

/// All that the guard looks after.
#[derive(Debug)]
pub struct Guard {
    /// What stops it.
    pub signals: SignalFd,
    /// What it intercepts for.
    pub server: Server,
    /// The table that it owns.
    pub table: Table,
    /// The mark rule and the AnyIP routes.
    pub routing: Routing,
    /// What would be left of captured connections.
    pub sockets: Sockets,
    /// What becomes of the routing.
    pub watch: Watch,
    /// The rules.
    pub scripts: Vec<Script>,
}

/// What the guard waits for.
enum Event {
    Signal,
    ServerSpoke,
    RoutingChanged,
    TimedOut,
}

impl Guard {
    /// Intercepts until a signal or the server's death, and undoes everything.
    ///
    /// # Errors
    /// What could not be installed or undone, or how the server died.
    pub fn run(mut self) -> Result<(), Failure> {
        let outcome = match self.server_is_ready() {
            Ok(true) => self.intercept(),
            Ok(false) => Ok(()),
            Err(failure) => Err(failure),
        };
        let undone = self.undo().map_err(Failure::from);
        first(outcome, undone)
    }

    /// Waits for the server; `false` if a signal comes first.
    fn server_is_ready(&mut self) -> Result<bool, Failure> {
        loop {
            match self.wait(None)? {
                Event::ServerSpoke => return self.hear_server().map(|()| true),
                Event::Signal => return Ok(false),
                // Nothing of ours is there yet that could be lost.
                Event::RoutingChanged => drop(self.watch.has_lost(&self.routing)),
                Event::TimedOut => {}
            }
        }
    }

    fn intercept(&mut self) -> Result<(), Failure> {
        for entry in self.routing.install()? {
            log::info!("Added {entry}");
        }
        self.table.replace(&self.scripts)?;
        match self.table.is_owned() {
            true => log::info!(
                "Created table inet {TABLE}, owned: the kernel removes it with this process"
            ),
            false => log::warn!(
                "Created table inet {TABLE}, not owned (before Linux 5.12): SIGKILL would leave it"
            ),
        }
        let outcome = self.watch_over();
        self.forget(States::CLOSED);
        outcome
    }

    fn watch_over(&mut self) -> Result<(), Failure> {
        loop {
            match self.wait(None)? {
                Event::Signal => return self.drain(),
                Event::RoutingChanged => self.heal(),
                Event::ServerSpoke => self.hear_server()?,
                Event::TimedOut => {}
            }
        }
    }

    fn wait(&self, deadline: Option<Instant>) -> Result<Event, Error> {
        let timeout = deadline.map_or(PollTimeout::NONE, |deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX)
        });
        loop {
            let fds = [
                self.server.control.as_fd(),
                self.signals.as_fd(),
                self.watch.as_fd(),
            ];
            let mut fds = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            match poll(&mut fds, timeout) {
                Ok(0) => return Ok(Event::TimedOut),
                Ok(_) => {}
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(Error::new("wait for events", errno)),
            }
            match fds.map(|fd| fd.any().unwrap_or(true)) {
                [true, _, _] => return Ok(Event::ServerSpoke),
                [_, true, _] if matches!(self.signals.read_signal(), Ok(Some(_))) => {
                    return Ok(Event::Signal);
                }
                [_, _, true] => return Ok(Event::RoutingChanged),
                _ => {}
            }
        }
    }

    /// Reads that the server is ready or, where there is nothing to read, that it has ended.
    fn hear_server(&mut self) -> Result<(), Failure> {
        match self.server.control.read(&mut [0; READY.len()]) {
            Ok(0) => Err(self.server_death()),
            Ok(_) => Ok(()),
            Err(error) => Err(Error::new("listen to the server", error).into()),
        }
    }

    fn server_death(&self) -> Failure {
        match waitpid(self.server.pid, None) {
            Ok(status) => Failure::Server(status),
            Err(errno) => Error::new("wait for the server", errno).into(),
        }
    }

    /// Puts back what somebody removed. What cannot be put back now, as on a device that is down,
    /// is tried again when something changes.
    fn heal(&mut self) {
        if !self.watch.has_lost(&self.routing) {
            return;
        }
        match self.routing.install() {
            Ok(restored) => restored
                .iter()
                .for_each(|entry| log::warn!("Put back {entry}, which somebody removed")),
            Err(error) => log::warn!("Cannot put back what somebody removed: {error}"),
        }
    }

    /// New connections go to the Pods from here on; those that are open are finished.
    fn drain(&mut self) -> Result<(), Failure> {
        let draining: Vec<Script> = self.scripts.iter().map(Script::draining).collect();
        self.table.replace(&draining)?;
        log::info!("Stopping: new connections go to the Pods");
        let start = Instant::now();
        self.forget(States::TIME_WAIT);
        self.wait_for_end(States::HANDSHAKE, start + HANDSHAKES);
        let fault = |error: io::Error| Error::new("tell the server to finish", error);
        self.server
            .control
            .shutdown(Shutdown::Write)
            .map_err(fault)?;
        let deadline = start + LONGEST_STOP;
        loop {
            match self.wait(Some(deadline))? {
                Event::ServerSpoke => match self.hear_server() {
                    Err(Failure::Server(WaitStatus::Exited(_, 0))) => break,
                    heard => heard?,
                },
                Event::RoutingChanged => self.heal(),
                Event::Signal => {}
                Event::TimedOut => {
                    log::warn!("The server does not end: killing it");
                    // It may have ended in this moment.
                    let _ = kill(self.server.pid, Signal::SIGKILL);
                    return Err(self.server_death());
                }
            }
        }
        self.wait_for_end(States::SENDING, deadline);
        Ok(())
    }

    /// Waits until no captured connection is in one of these states.
    fn wait_for_end(&mut self, states: States, deadline: Instant) {
        while Instant::now() < deadline {
            match self.sockets.exist(states) {
                Ok(true) => thread::sleep(STEP),
                Ok(false) => return,
                Err(error) => return log::warn!("{error}"),
            }
        }
    }

    /// Makes the kernel forget connections that would keep clients from reaching the Pods.
    fn forget(&mut self, states: States) {
        if let Err(error) = self.sockets.destroy(states) {
            log::warn!("{error}");
        }
    }

    /// Removes the table before the routing: a mark without a route is harmless, a route without
    /// a mark too.
    fn undo(&mut self) -> Result<(), Error> {
        let had_rules = self.table.has_rules();
        let table = self.table.remove();
        if table.is_ok() && had_rules {
            log::info!("Removed table inet {TABLE}");
        }
        let (removed, routing) = self.routing.remove();
        removed
            .iter()
            .for_each(|entry| log::info!("Removed {entry}"));
        first(table, routing)
    }
}

/// The first failure; if there is a second, it is logged.
fn first<E: fmt::Display>(earlier: Result<(), E>, later: Result<(), E>) -> Result<(), E> {
    if let (Err(_), Err(error)) = (&earlier, &later) {
        log::error!("{error}");
    }
    earlier.and(later)
}
