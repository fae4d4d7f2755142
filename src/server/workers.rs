//! The worker threads: each accepts a connection, serves it to its end, and accepts the next.
//!
//! All idle workers wait at one [`Acceptor`]. The last idle one starts another before it serves. One that
//! has no client for `SPARE_TIMEOUT` ends, unless it is the last. The number of probe workers is fixed, and
//! the limit on connections does not apply to them.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::epoll::EpollTimeout;

use crate::error::words;
use crate::log::logger;
use crate::log::once::LogOnce;
use crate::server::acceptor::{Accepted, Acceptor, ReadyListener};
use crate::server::connection::{Buffers, Connection};
use crate::server::context::Context;
use crate::server::deadlines::{DEADLINES, DIRECT_DEADLINES, Deadlines};
use crate::server::idle_workers::IdleWorkers;
use crate::server::limit::{ConnectionLimit, EVICTION_TIMEOUT, PATIENCE};
use crate::server::parked::{ParkedConnections, Slot};
use crate::server::readiness::Readiness;

/// Probe workers for each direct listener.
const PROBE_WORKERS: usize = 4;

/// Stack size of a thread, in bytes. Buffers are on the heap.
const STACK_SIZE: usize = 64 * 1024;

/// Time without a client after which an idle worker ends, unless it is the last, in ms.
const SPARE_TIMEOUT: u16 = 1000;

/// Time without a new connection after which a drain ends parked connections. Until then a busy client
/// learns of the stop from its next response (`Connection: close`).
const QUIET: Duration = Duration::from_millis(300);

/// Interval between two looks at what is left to drain.
const DRAIN_INTERVAL: Duration = Duration::from_millis(10);

/// The workers, and what they share.
#[derive(Debug)]
pub struct Workers {
    context: Context,
    clients: Acceptor,
    probes: Acceptor,
    idle_workers: IdleWorkers,
    limit: ConnectionLimit,
    parked: ParkedConnections,
    limit_log: LogOnce,
    accept_log: LogOnce,
    spawn_log: LogOnce,
}

impl Workers {
    /// Starts the first worker and the probe workers.
    ///
    /// # Errors
    /// `EAGAIN`, or any other error of clone(2) or mmap(2).
    pub fn start(
        clients: Acceptor,
        probes: Acceptor,
        max_connections: usize,
    ) -> io::Result<Arc<Workers>> {
        let workers = Arc::new(Workers {
            context: Context::from_environment(),
            clients,
            probes,
            idle_workers: IdleWorkers::default(),
            limit: ConnectionLimit::new(max_connections),
            parked: ParkedConnections::default(),
            limit_log: LogOnce::default(),
            accept_log: LogOnce::default(),
            spawn_log: LogOnce::default(),
        });
        workers.ensure_idle_worker()?;
        for _ in 0..PROBE_WORKERS * workers.probes.listener_count() {
            let workers = Arc::clone(&workers);
            spawn(move || workers.serve_probes())?;
        }
        Ok(workers)
    }

    /// Whether everything is in place, as the guard says.
    pub fn readiness(&self) -> &Readiness {
        self.context.readiness()
    }

    fn ensure_idle_worker(self: &Arc<Workers>) -> io::Result<()> {
        self.idle_workers.ensure_one(|| self.spawn_worker())
    }

    fn spawn_worker(self: &Arc<Workers>) -> io::Result<()> {
        let workers = Arc::clone(self);
        spawn(move || workers.serve_clients())
    }

    /// Accepts and serves clients, until this worker is spare. It counts as idle from its start on.
    fn serve_clients(self: &Arc<Workers>) {
        logger::block_when_full();
        let slot = self.parked.add_slot();
        let mut buffers = Buffers::default();
        loop {
            let Some(listener) = self.clients.wait(EpollTimeout::from(SPARE_TIMEOUT)) else {
                match self.idle_workers.retire() {
                    true => break,
                    false => continue,
                }
            };
            // Before accept4(2), so that no connection exceeds the limit.
            self.limit.acquire(|| self.evict());
            if let Some(accepted) = self.accept(listener) {
                if let Err(error) = self.idle_workers.remove(|| self.spawn_worker()) {
                    self.log_spawn_error(&error);
                }
                self.serve(accepted, &DEADLINES, &slot, &mut buffers);
                // Before the release, or the worker that acquires next would be the last idle one, and
                // start another.
                self.idle_workers.add();
            }
            self.limit.release();
        }
        self.parked.remove_slot(&slot);
    }

    /// Accepts and serves direct connections, until the process exits.
    fn serve_probes(&self) {
        let slot = self.parked.add_slot();
        let mut buffers = Buffers::default();
        loop {
            let ready = self.probes.wait(EpollTimeout::NONE);
            if let Some(accepted) = ready.and_then(|listener| self.accept(listener)) {
                self.serve(accepted, &DIRECT_DEADLINES, &slot, &mut buffers);
            }
        }
    }

    /// Accepts a client; `None` if there is none any more. If accept4(2) fails, waits for a connection to
    /// end, and retries. Evicts an idle connection only after `EMFILE`, which an eviction is sure to
    /// end, and only if no connection has ended within [`PATIENCE`].
    fn accept(&self, listener: ReadyListener<'_>) -> Option<Accepted> {
        let mut may_evict = false;
        loop {
            let releases = self.limit.releases();
            let error = match listener.accept() {
                Ok(accepted) => return accepted,
                Err(error) => error,
            };
            if self.accept_log.should_log() {
                let reason = words(&error);
                log::warn!("Cannot accept a connection, clients wait: {reason}");
            }
            let lacks_file = error.raw_os_error() == Some(libc::EMFILE);
            let timeout = if may_evict && lacks_file && self.parked.evict_oldest() {
                EVICTION_TIMEOUT
            } else {
                PATIENCE
            };
            may_evict = !self.limit.wait_for_release(releases, timeout);
        }
    }

    /// Evicts an idle connection at the limit; returns `false` if none is idle.
    fn evict(&self) -> bool {
        if self.limit_log.should_log() {
            let size = self.limit.size();
            log::warn!("The limit of {size} connections is reached: clients wait");
        }
        self.parked.evict_oldest()
    }

    fn serve(&self, accepted: Accepted, deadlines: &Deadlines, slot: &Slot, buffers: &mut Buffers) {
        let client = accepted.client;
        match Connection::new(accepted, deadlines, &self.context, slot) {
            Ok(connection) => connection.serve(buffers),
            Err(error) => log::info!("Connection from {client} was lost: {}", words(&error)),
        }
    }

    /// Retries to start a worker if none is idle. If that fails and a client waits, evicts an idle
    /// connection, so that its worker can serve the client.
    pub fn maintain(self: &Arc<Workers>) {
        if let Err(error) = self.ensure_idle_worker() {
            self.log_spawn_error(&error);
            if self.clients.has_clients() {
                self.parked.evict_oldest();
            }
        }
    }

    fn log_spawn_error(&self, error: &io::Error) {
        if self.spawn_log.should_log() {
            log::warn!("Cannot start a thread, clients wait: {}", words(error));
        }
    }

    /// Drains: every connection ends with its next response, and parked ones end when no new connection has
    /// come for `QUIET`. Returns when no connection is left, or after `grace`.
    pub fn drain(self: &Arc<Workers>, grace: Duration) {
        self.context.start_draining();
        let deadline = Instant::now() + grace;
        let mut connections = self.context.connections();
        let mut quiet_since = Instant::now();
        while Instant::now() < deadline {
            thread::sleep(DRAIN_INTERVAL);
            self.maintain();
            let now = self.context.connections();
            if now != connections {
                connections = now;
                quiet_since = Instant::now();
            }
            if quiet_since.elapsed() >= QUIET {
                if !self.is_busy() {
                    break;
                }
                self.parked.shut_down_all();
            }
        }
        let left = self.limit.in_use();
        if left > 0 {
            let grace = grace.as_secs();
            log::warn!("Cut off {left} connections that did not end within {grace} s");
        }
        self.context.log_totals();
    }

    /// Whether a client waits or a connection is open. A worker acquires before it takes a client from the
    /// kernel's queue; asked in this order, no client is missed.
    fn is_busy(&self) -> bool {
        self.clients.has_clients() || self.limit.in_use() > 0
    }
}

fn spawn(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let thread = thread::Builder::new().stack_size(STACK_SIZE);
    thread.spawn(work).map(drop)
}
