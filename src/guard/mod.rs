//! The guard: installs the routing and the table once the server is ready, keeps the routing in
//! place, and undoes everything in the end. It reads nothing that came over the network.

pub mod backoff;
pub mod reconciler;
pub mod server_process;

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::WaitStatus;

use crate::error::Error;
use crate::guard::reconciler::Reconciler;
use crate::guard::server_process::{Failure, ServerProcess};
use crate::nftables::bridge::{BridgeRedirect, Bridges};
use crate::nftables::compile::compile;
use crate::nftables::table::Table;
use crate::routing::bridges::BridgeMonitor;
use crate::routing::sock_diag::{SockDiag, States};
use crate::rules::script::Script;
use crate::server::GRACE;

/// What ends the guard in order.
const STOP: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];

/// How long handshakes are waited for that had begun before the rules changed: a lost packet is
/// sent again after 1 s, and then after 2 s (RFC 6298, 2.1).
pub const HANDSHAKES: Duration = Duration::from_secs(3);

/// What a stop may take beside waiting for handshakes and for the server's connections: the server
/// writes the last lines of its log.
const MARGIN: Duration = Duration::from_secs(3);

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

/// All that the guard looks after.
#[derive(Debug)]
pub struct Guard {
    /// What stops it.
    pub signals: SignalFd,
    /// What it intercepts for.
    pub server: ServerProcess,
    /// The table that it owns.
    pub table: Table,
    /// What keeps the mark rule and the AnyIP routes in place.
    pub keeper: Reconciler,
    /// What would be left of captured connections.
    pub sockets: SockDiag,
    /// The rules.
    pub scripts: Vec<Script>,
    /// The rules that redirect frames of bridges.
    pub redirect: BridgeRedirect,
    /// The bridges.
    pub bridges: BridgeMonitor,
}

/// What the guard waits for, beside changes of the routing and the end of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Signal,
    TimedOut,
}

/// What there is to hear. Several things may come at once, and none hides another.
#[derive(Clone, Copy, Debug)]
struct Events {
    signal: bool,
    server: bool,
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
            // Nothing of ours is there yet that could be lost.
            let heard = self.wait(None, None)?;
            if heard.signal {
                return Ok(false);
            }
            if heard.server {
                return self.server.hear_ready().map(|()| true);
            }
        }
    }

    fn intercept(&mut self) -> Result<(), Failure> {
        self.keeper.install()?;
        self.bridges.look()?;
        let bridge_table = self.redirect.table(&self.known_bridges());
        let no_bridge = self.table.install(&compile(&self.scripts), &bridge_table)?;
        self.bridges.are_followed();
        for table in self.table.installed() {
            match self.table.is_owned() {
                true => log::info!(
                    "Created table {table}, owned: the kernel removes it with this process"
                ),
                false => log::warn!(
                    "Created table {table}, not owned (before Linux 5.12): SIGKILL would leave it"
                ),
            }
        }
        if let Some(reason) = no_bridge {
            log::warn!("Not capturing between Pods of one bridge: {reason}");
        }
        let outcome = self.watch_over();
        self.forget(States::CLOSED);
        outcome
    }

    fn watch_over(&mut self) -> Result<(), Failure> {
        self.tend(None)?;
        self.drain()
    }

    /// Keeps the routing in place until a signal comes, or that moment.
    ///
    /// # Errors
    /// How the server ended.
    fn tend(&mut self, until: Option<Instant>) -> Result<Event, Failure> {
        loop {
            self.keeper.reconcile();
            self.follow_bridges();
            let bridges = self
                .bridges
                .deadline()
                .filter(|_| self.table.has_bridge_table());
            let deadlines = [until, self.keeper.deadline(), bridges];
            let deadline = deadlines.into_iter().flatten().min();
            let heard = self.wait(self.keeper.notifications(), deadline)?;
            if heard.server {
                return Err(self.server.hear_end());
            }
            if until.is_some_and(|until| Instant::now() >= until) {
                return Ok(Event::TimedOut);
            }
            if heard.signal {
                return Ok(Event::Signal);
            }
        }
    }

    /// The bridges as they were when they were last read.
    fn known_bridges(&self) -> Bridges {
        let ports = self.bridges.ports().iter();
        let neighbours = |family| (family, self.bridges.neighbours(family).clone());
        Bridges {
            ports: ports.map(|port| (port.index, port.hardware)).collect(),
            addresses: self.bridges.own().clone(),
            neighbours: self.redirect.families().map(neighbours).collect(),
        }
    }

    /// Updates the rules that redirect frames, if the bridges have changed.
    fn follow_bridges(&mut self) {
        let have_changed = self.keeper.have_devices_changed();
        if !self.table.has_bridge_table() || !self.bridges.are_due(have_changed) {
            return;
        }
        let followed = self.bridges.look().and_then(|is_behind| match is_behind {
            true => {
                let change = self.redirect.changed_bridges(&self.known_bridges());
                self.table
                    .update(&compile(&self.scripts), &change)
                    .map(Some)
            }
            false => Ok(None),
        });
        match followed {
            Ok(Some(())) => self.bridges.are_followed(),
            Ok(None) => {}
            Err(error) if self.bridges.is_news() => {
                log::warn!("Cannot follow the bridges: {error}");
            }
            Err(_) => {}
        }
    }

    /// Waits for a signal, the server, something to read from `notifications`, or the deadline.
    fn wait(
        &self,
        notifications: Option<BorrowedFd<'_>>,
        deadline: Option<Instant>,
    ) -> Result<Events, Error> {
        let timeout = deadline.map_or(PollTimeout::NONE, |deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX)
        });
        let (control, signals) = (self.server.control(), self.signals.as_fd());
        let fds = [control, notifications, Some(signals)];
        // What is not there to be waited for leaves its place to the signals.
        let mut fds = fds.map(|fd| PollFd::new(fd.unwrap_or(signals), PollFlags::POLLIN));
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(Error::new("wait for events", errno)),
        }
        Ok(Events {
            server: control.is_some() && fds[0].any() != Some(false),
            signal: matches!(self.signals.read_signal(), Ok(Some(_))),
        })
    }

    /// New connections go to the Pods from here on; those that are open are finished.
    fn drain(&mut self) -> Result<(), Failure> {
        self.scripts = self.scripts.iter().map(Script::draining).collect();
        self.table
            .update(&compile(&self.scripts), &self.redirect.draining())?;
        log::info!("Stopping: new connections go to the Pods");
        let start = Instant::now();
        self.forget(States::TIME_WAIT);
        self.wait_for_end(States::HANDSHAKE, start + HANDSHAKES)?;
        self.server.finish()?;
        let deadline = start + LONGEST_STOP;
        loop {
            match self.tend(Some(deadline)) {
                Err(Failure::Server(WaitStatus::Exited(_, 0))) => break,
                Err(failure) => return Err(failure),
                Ok(Event::Signal) => {}
                Ok(Event::TimedOut) => return Err(self.server.kill()),
            }
        }
        self.wait_for_end(States::SENDING, deadline)
    }

    /// Waits until no captured connection is in one of these states.
    fn wait_for_end(&mut self, states: States, deadline: Instant) -> Result<(), Failure> {
        while Instant::now() < deadline {
            match self.sockets.exist(states) {
                Ok(true) => self.tend(Some(deadline.min(Instant::now() + STEP)))?,
                Ok(false) => break,
                Err(error) => {
                    log::warn!("{error}");
                    break;
                }
            };
        }
        Ok(())
    }

    /// Makes the kernel forget connections that would keep clients from reaching the Pods.
    fn forget(&mut self, states: States) {
        if let Err(error) = self.sockets.destroy(states) {
            log::warn!("{error}");
        }
    }

    /// Removes the tables before the routing: a mark without a route is harmless, a route without
    /// a mark too.
    fn undo(&mut self) -> Result<(), Error> {
        let tables = self.table.installed();
        let removed = self.table.remove();
        if removed.is_ok() {
            for table in tables {
                log::info!("Removed table {table}");
            }
        }
        first(removed, self.keeper.remove())
    }
}

/// The first failure; if there is a second, it is logged.
fn first<E: fmt::Display>(earlier: Result<(), E>, later: Result<(), E>) -> Result<(), E> {
    if let (Err(_), Err(error)) = (&earlier, &later) {
        log::error!("{error}");
    }
    earlier.and(later)
}
