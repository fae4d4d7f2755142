//! The guard process: installs the routing and the tables once the server is ready, restores what other
//! processes remove, and undoes everything at the end. It reads nothing that a client sent.
//!
//! - `server_process`: the server as the guard's child: ready, requested to stop, ended.
//! - `reconciler`: keeps the mark rules and routes in place; `backoff` says how soon.
//! - `block_monitor`: logs captured blocks into which no route leads.
//! - `reporter`: tells the server what is in place, for `/readyz`, the state page and the metrics.
//!
//! From SIGTERM to the end of both processes:
//!
//! ```text
//!     guard                                          server: Workers::drain (server/workers.rs)
//!     SIGTERM
//!      │ Guard::drain: tells it that a stop begins ─▶ serves; /readyz answers 503
//!      │ TPROXY rules become ACCEPT
//!      │ "Stopping: new connections go to the Pods"
//!      │ destroys sockets in TIME_WAIT
//!      │ waits until handshakes have ended [≤ 3 s]   accepts their connections
//!      ├─ shutdown(control, SHUT_WR) ──────────────▶ reads the end of the stream
//!      │                                              │ responses say "Connection: close"
//!      │ keeps restoring rules and routes             │ no new connection for 300 ms: closes parked ones
//!      │                                              │ waits until none is open [≤ 10 s]; cuts off the rest
//!      │                                              │ "Served N requests on M connections"
//!      ◀── end of the stream ────────────────────────┘ flushes the log [≤ 5 s], exits with 0
//!      │ waits until all responses are acknowledged [≤ 19 s in all]
//!      │ destroys the sockets that the server closed
//!      │ Guard::undo: removes the tables, then mark rules and routes
//!      ▼ exits with 0
//! ```
//!
//! A server that has not exited after [`LONGEST_STOP`], 19 s, is killed. If it ends before it was requested to,
//! or not with status 0, the guard skips the rest of `drain`, undoes everything and exits with 1. A stop signal
//! before the server is ready undoes what there is at once, and the server dies with the guard.

pub mod backoff;
pub mod block_monitor;
pub mod reconciler;
pub mod reporter;
pub mod server_process;

use std::fmt;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::error::Error;
use crate::guard::block_monitor::BlockMonitor;
use crate::guard::reconciler::Reconciler;
use crate::guard::reporter::Reporter;
use crate::guard::server_process::{ServerExit, ServerProcess};
use crate::log::queue::MAX_FLUSH;
use crate::nftables::bridge::BridgeRedirect;
use crate::nftables::ruleset::Ruleset;
use crate::nftables::table::Tables;
use crate::routing::bridges::BridgeMonitor;
use crate::routing::sock_diag::{SockDiag, TcpStates};
use crate::server::GRACE;

/// The signals that request an orderly stop.
const STOP_SIGNALS: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];

/// Time that handshakes have to end which began before TPROXY rules became ACCEPT: a lost packet is
/// retransmitted after 1 s, and then after 2 s (RFC 6298, 2.1).
pub const HANDSHAKES: Duration = Duration::from_secs(3);

/// Time of a stop beside [`HANDSHAKES`] and [`GRACE`]: the server writes its last log lines, and exits.
const MARGIN: Duration = MAX_FLUSH.saturating_add(Duration::from_secs(1));

/// The longest time from a stop signal until the guard waits for no client any more. The process that
/// stops it, such as the kubelet, should wait longer before SIGKILL.
pub const LONGEST_STOP: Duration = HANDSHAKES.saturating_add(GRACE).saturating_add(MARGIN);

/// Interval at which the kernel is asked for the sockets of connections that end.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Blocks the stop signals, and returns the descriptor from which they are read. Called before the fork:
/// the server must not die of a Ctrl-C, which the terminal sends to both.
///
/// # Errors
/// `EMFILE`, or any other error of signalfd(2).
pub fn block_signals() -> Result<SignalFd, Error> {
    let signals: SigSet = STOP_SIGNALS.into_iter().collect();
    let fault = |errno| Error::new("block signals", errno);
    signals.thread_block().map_err(fault)?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(fault)
}

/// The guard, and what it installs and undoes.
#[derive(Debug)]
pub struct Guard {
    /// Stop signals.
    pub signals: SignalFd,
    /// The server, its child.
    pub server: ServerProcess,
    /// What the server is told of the state.
    pub reporter: Reporter,
    /// The nf_tables tables.
    pub tables: Tables,
    /// The mark rules and AnyIP routes.
    pub reconciler: Reconciler,
    /// The kernel's sockets of captured connections.
    pub sock_diag: SockDiag,
    /// The rules of the scripts.
    pub rules: Ruleset,
    /// The rules that replace them when a stop begins.
    pub draining_rules: Ruleset,
    /// The rules for bridges.
    pub bridge_redirect: BridgeRedirect,
    /// The bridges that they are for.
    pub bridge_monitor: BridgeMonitor,
    /// The captured blocks without a route of the node.
    pub block_monitor: BlockMonitor,
}

/// Why the guard could not run to an orderly stop.
#[derive(Debug)]
pub enum Failure {
    /// The kernel refused a request.
    System(Error),
    /// The server ended before it was requested to, or with an error, which it has logged.
    Server(ServerExit),
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
            Failure::Server(exit) => exit.fmt(f),
        }
    }
}

/// A reason to return from [`Guard::watch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    StopSignal,
    ServerExit(ServerExit),
    Deadline,
}

/// What [`Guard::poll`] found; both may come at once.
#[derive(Clone, Copy, Debug)]
struct Ready {
    /// A stop signal came. It has been read.
    signal: bool,
    /// The server's control socket is readable.
    control: bool,
}

impl Guard {
    /// Runs until a stop signal or the end of the server, then undoes everything.
    ///
    /// # Errors
    /// The first request that the kernel refused, or how the server ended.
    pub fn run(mut self) -> Result<(), Failure> {
        let outcome = match self.wait_until_ready() {
            Ok(true) => self.install_and_run(),
            Ok(false) => Ok(()),
            Err(failure) => Err(failure),
        };
        let undone = self.undo().map_err(Failure::from);
        first_error(outcome, undone)
    }

    /// Waits until the server is ready; `false` if a stop signal comes first.
    fn wait_until_ready(&mut self) -> Result<bool, Failure> {
        loop {
            let ready = self.poll(None, None)?;
            if ready.signal {
                return Ok(false);
            }
            if ready.control {
                return match self.server.read_ready()? {
                    None => Ok(true),
                    Some(exit) => Err(Failure::Server(exit)),
                };
            }
        }
    }

    /// Installs everything, the tables last, and runs to the end of the server.
    fn install_and_run(&mut self) -> Result<(), Failure> {
        self.reconciler.install()?;
        self.install_tables()?;
        let outcome = self.watch_until_signal().and_then(|()| self.drain());
        self.destroy_sockets(TcpStates::CLOSED_LOCALLY);
        outcome
    }

    fn install_tables(&mut self) -> Result<(), Error> {
        self.bridge_monitor.refresh()?;
        let bridge_table = self.bridge_redirect.table(self.bridge_monitor.topology());
        let not_redirected = self.tables.install(&self.rules, &bridge_table)?;
        self.bridge_monitor.mark_applied();
        for table in self.tables.installed() {
            match self.tables.is_owned() {
                true => log::info!(
                    "Created table {table}, owned: the kernel removes it with this process"
                ),
                false => log::warn!(
                    "Created table {table}, not owned (before Linux 5.12): SIGKILL would leave it"
                ),
            }
        }
        if let Some(reason) = not_redirected {
            log::warn!("Not capturing between Pods of one bridge: {reason}");
            self.reporter
                .set_not_redirected(format!("not captured: {reason}"));
        }
        Ok(())
    }

    fn watch_until_signal(&mut self) -> Result<(), Failure> {
        loop {
            match self.watch(None)? {
                Event::StopSignal => return Ok(()),
                Event::ServerExit(exit) => return Err(Failure::Server(exit)),
                Event::Deadline => {}
            }
        }
    }

    /// Turns TPROXY rules to ACCEPT: new connections go to the Pods. Waits for the end of open ones. `/readyz`
    /// says so first: it shall not promise what the rules do not keep.
    fn drain(&mut self) -> Result<(), Failure> {
        self.reporter.set_stopping();
        self.report();
        self.rules = mem::take(&mut self.draining_rules);
        self.tables
            .update(&self.rules, &self.bridge_redirect.draining())?;
        log::info!("Stopping: new connections go to the Pods");
        let start = Instant::now();
        self.destroy_sockets(TcpStates::TIME_WAIT);
        self.wait_for_sockets(TcpStates::SYN_RECV, start + HANDSHAKES)?;
        self.server.request_stop()?;
        let deadline = start + LONGEST_STOP;
        self.wait_for_server(deadline)?;
        self.wait_for_sockets(TcpStates::FIN_UNACKNOWLEDGED, deadline)
    }

    fn wait_for_server(&mut self, deadline: Instant) -> Result<(), Failure> {
        loop {
            match self.watch(Some(deadline))? {
                Event::ServerExit(ServerExit::Status(0)) => return Ok(()),
                Event::ServerExit(exit) => return Err(Failure::Server(exit)),
                Event::Deadline => return Err(Failure::Server(self.server.kill()?)),
                Event::StopSignal => {}
            }
        }
    }

    /// Waits until no orphaned socket of a captured connection is in one of these states, or until the
    /// deadline.
    fn wait_for_sockets(&mut self, states: TcpStates, deadline: Instant) -> Result<(), Failure> {
        while Instant::now() < deadline {
            match self.sock_diag.has_any(states) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    log::warn!("{error}");
                    break;
                }
            }
            let next = deadline.min(Instant::now() + POLL_INTERVAL);
            if let Event::ServerExit(exit) = self.watch(Some(next))? {
                return Err(Failure::Server(exit));
            }
        }
        Ok(())
    }

    /// Removes captured connections in these states from the kernel: without the rules, their clients'
    /// packets would not reach the Pods.
    fn destroy_sockets(&mut self, states: TcpStates) {
        if let Err(error) = self.sock_diag.destroy(states) {
            log::warn!("{error}");
        }
    }

    /// Removes the tables before the routing: no packet is marked any more when its route goes.
    fn undo(&mut self) -> Result<(), Error> {
        let tables = self.tables.installed();
        let removed = self.tables.remove();
        if removed.is_ok() {
            for table in tables {
                log::info!("Removed table {table}");
            }
        }
        first_error(removed, self.reconciler.remove())
    }

    /// Restores the routing and refreshes the rules for bridges, until an event.
    fn watch(&mut self, until: Option<Instant>) -> Result<Event, Error> {
        loop {
            self.reconciler.reconcile(self.block_monitor.unrouted());
            self.block_monitor.refresh(self.reconciler.has_new_route());
            self.refresh_bridges();
            self.report();
            let deadlines = [
                until,
                self.reconciler.deadline(),
                self.bridge_monitor.deadline(),
                self.block_monitor.deadline(),
                self.reporter.deadline(),
            ];
            let timeout = deadlines.into_iter().flatten().min();
            let ready = self.poll(self.reconciler.notifications(), timeout)?;
            if ready.control {
                return self.server.read_exit().map(Event::ServerExit);
            }
            if until.is_some_and(|until| Instant::now() >= until) {
                return Ok(Event::Deadline);
            }
            if ready.signal {
                return Ok(Event::StopSignal);
            }
        }
    }

    /// Tells the server what has changed.
    fn report(&mut self) {
        let names = self.bridge_monitor.names();
        self.reporter
            .send(&self.reconciler, &mut self.tables, names, &self.server);
    }

    /// Refreshes the rules for bridges when that is due. A failure is tried again, and logged as
    /// [`LogOnce`](crate::log::once::LogOnce) allows.
    fn refresh_bridges(&mut self) {
        if self.reconciler.have_devices_changed() {
            self.bridge_monitor.schedule_refresh();
        }
        if !self.bridge_monitor.is_due() {
            return;
        }
        let failed = self.replace_bridge_rules().err();
        if let Some(error) = &failed
            && self.bridge_monitor.should_log_error()
        {
            log::warn!("Cannot follow the bridges: {error}");
        }
        let reason = failed.map(|error| format!("cannot follow the bridges: {error}"));
        self.reporter.set_bridge_failure(reason);
    }

    /// Replaces the rules for bridges if bridges, their ports or their subnets have changed.
    fn replace_bridge_rules(&mut self) -> Result<(), Error> {
        self.bridge_monitor.refresh()?;
        if self.bridge_monitor.is_stale() {
            let topology = self.bridge_monitor.topology();
            let change = self.bridge_redirect.changed_bridges(topology);
            self.tables.update(&self.rules, &change)?;
            self.bridge_monitor.mark_applied();
        }
        Ok(())
    }

    /// Waits for a stop signal, the server, a notification, or the deadline.
    fn poll(
        &self,
        notifications: Option<BorrowedFd<'_>>,
        deadline: Option<Instant>,
    ) -> Result<Ready, Error> {
        let timeout = deadline.map_or(PollTimeout::NONE, |deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX)
        });
        let control = self.server.control();
        let signals = Some(self.signals.as_fd());
        let fds = [control, signals, notifications].into_iter().flatten();
        let mut fds: Vec<PollFd<'_>> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(Error::new("wait for events", errno)),
        }
        Ok(Ready {
            signal: matches!(self.signals.read_signal(), Ok(Some(_))),
            control: control.is_some() && fds[0].any() != Some(false),
        })
    }
}

/// The first of two errors; the second is logged then.
fn first_error<E: fmt::Display>(first: Result<(), E>, second: Result<(), E>) -> Result<(), E> {
    if let (Err(_), Err(error)) = (&first, &second) {
        log::error!("{error}");
    }
    first.and(second)
}
