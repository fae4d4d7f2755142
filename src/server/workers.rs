//! The worker threads: each accepts a connection, serves it to its end, and accepts the next.
//!
//! All idle workers wait at one [`Acceptor`]. The last idle one starts another before it serves. One that
//! has no client for `SPARE_TIMEOUT` ends, unless it is the last. Direct connections and those to `--metrics` have
//! workers of their own, whose number is fixed, and to which the limit on connections does not apply.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::epoll::EpollTimeout;

use crate::error::words;
use crate::log::logger;
use crate::log::once::LogOnce;
use crate::server::acceptor::{Accepted, Acceptor, Acceptors, ListenerKind, ReadyListener};
use crate::server::buffers::Buffers;
use crate::server::config::Config;
use crate::server::connection::Connection;
use crate::server::context::Context;
use crate::server::counts::Shortage;
use crate::server::deadlines::{DEADLINES, DIRECT_DEADLINES, Deadlines};
use crate::server::limit::ConnectionLimit;
use crate::server::parked::Slot;
use crate::server::report::LastReport;
use crate::server::scheduling;
use crate::sys;

/// Workers for each direct listener.
const DIRECT_WORKERS: usize = 4;

/// Workers for the listener of `--metrics`.
const METRICS_WORKERS: usize = 2;

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
    acceptors: Acceptors,
    limit: ConnectionLimit,
    limit_log: LogOnce,
    accept_log: LogOnce,
    spawn_log: LogOnce,
}

impl Workers {
    /// Starts the first worker, and those outside the limit.
    ///
    /// # Errors
    /// `EAGAIN`, or any other error of clone(2) or mmap(2).
    pub fn start(
        acceptors: Acceptors,
        max_connections: usize,
        config: Config,
    ) -> io::Result<Arc<Workers>> {
        let workers = Arc::new(Workers {
            context: Context::new(config),
            acceptors,
            limit: ConnectionLimit::new(max_connections),
            limit_log: LogOnce::default(),
            accept_log: LogOnce::default(),
            spawn_log: LogOnce::default(),
        });
        workers.ensure_idle_worker()?;
        workers.spawn_unlimited(DIRECT_WORKERS, |acceptors| &acceptors.direct)?;
        workers.spawn_unlimited(METRICS_WORKERS, |acceptors| &acceptors.metrics)?;
        Ok(workers)
    }

    /// What the guard reports.
    pub fn report(&self) -> &LastReport {
        self.context.report()
    }

    fn ensure_idle_worker(self: &Arc<Workers>) -> io::Result<()> {
        self.limit
            .ensure_idle_worker(|slot, others| self.spawn_worker(slot, others))
    }

    fn spawn_worker(self: &Arc<Workers>, slot: Arc<Slot>, others: usize) -> io::Result<()> {
        let workers = Arc::clone(self);
        spawn(move || {
            scheduling::apply(others);
            workers.serve_clients(&slot);
        })
    }

    /// Accepts and serves clients, until this worker is spare. It counts as idle from its start on.
    fn serve_clients(self: &Arc<Workers>, slot: &Arc<Slot>) {
        logger::block_when_full();
        let mut buffers = Buffers::default();
        loop {
            let Some(listener) = self
                .acceptors
                .clients
                .wait(EpollTimeout::from(SPARE_TIMEOUT))
            else {
                match self.limit.retire(slot) {
                    true => break,
                    false => continue,
                }
            };
            // Before accept4(2), so that no connection exceeds the limit.
            while let Err((shortage, seen)) = self.limit.acquire() {
                self.log_shortage(&shortage);
                self.limit.make_way(seen, self.acceptors.clients.waiting());
            }
            let Some(accepted) = self.accept(listener) else {
                self.limit.cancel();
                continue;
            };
            while let Err((shortage, seen)) = self
                .limit
                .occupy(|slot, others| self.spawn_worker(slot, others))
            {
                self.log_shortage(&shortage);
                // This client waits, too.
                self.limit
                    .make_way(seen, self.acceptors.clients.waiting() + 1);
            }
            self.serve(accepted, &DEADLINES, slot, &mut buffers);
            self.limit.release();
        }
    }

    /// Starts workers that serve the connections of an acceptor outside the limit.
    fn spawn_unlimited(
        self: &Arc<Workers>,
        count: usize,
        acceptor: fn(&Acceptors) -> &Acceptor,
    ) -> io::Result<()> {
        for _ in 0..count * acceptor(&self.acceptors).listener_count() {
            let workers = Arc::clone(self);
            spawn(move || workers.serve_unlimited(acceptor(&workers.acceptors)))?;
        }
        Ok(())
    }

    /// Accepts and serves connections outside the limit, until the process exits.
    fn serve_unlimited(&self, acceptor: &Acceptor) {
        let slot = self.limit.unlimited_slot();
        let mut buffers = Buffers::default();
        loop {
            let ready = acceptor.wait(EpollTimeout::NONE);
            if let Some(accepted) = ready.and_then(|listener| self.accept(listener)) {
                self.serve(accepted, &DIRECT_DEADLINES, &slot, &mut buffers);
            }
        }
    }

    /// Accepts a client; `None` if there is none any more. If accept4(2) fails twice, waits for a connection to
    /// end, and retries. Only `EMFILE` is sure to end by an eviction.
    fn accept(&self, listener: ReadyListener<'_>) -> Option<Accepted> {
        let mut attempt = self.try_accept(&listener);
        while attempt.is_err() {
            let seen = self.limit.releases();
            attempt = self.try_accept(&listener);
            if let Err(error) = &attempt {
                let lacks_file = error.raw_os_error() == Some(libc::EMFILE);
                // A probe waits at another listener. No client gives way to one of the metrics.
                let waiting = match lacks_file && listener.kind() != ListenerKind::Metrics {
                    true => self.acceptors.clients.waiting().max(1),
                    false => 0,
                };
                self.limit.make_way(seen, waiting);
            }
        }
        attempt.ok().flatten()
    }

    fn try_accept(&self, listener: &ReadyListener<'_>) -> io::Result<Option<Accepted>> {
        let accepted = listener.accept();
        if let Err(error) = &accepted
            && self.accept_log.should_log()
        {
            let reason = words(error);
            log::warn!("Cannot accept a connection, clients wait: {reason}");
        }
        accepted
    }

    fn serve(&self, accepted: Accepted, deadlines: &Deadlines, slot: &Slot, buffers: &mut Buffers) {
        let client = accepted.client;
        match Connection::new(accepted, deadlines, &self.context, &self.limit, slot) {
            Ok(connection) => connection.serve(buffers),
            Err(error) => log::info!("Connection from {client} was lost: {}", words(&error)),
        }
    }

    /// Retries to start a worker if none is idle. If that fails and clients wait, evicts connections, so that
    /// their workers can serve the clients.
    pub fn maintain(self: &Arc<Workers>) {
        if let Err(error) = self.ensure_idle_worker() {
            self.log_shortage(&Shortage::Workers(error));
            self.limit.evict(self.acceptors.clients.waiting());
        }
    }

    fn log_shortage(&self, shortage: &Shortage) {
        match shortage {
            Shortage::Places if self.limit_log.should_log() => {
                let size = self.limit.size();
                log::warn!("The limit of {size} connections is reached: clients wait");
            }
            Shortage::Workers(error) if self.spawn_log.should_log() => {
                log::warn!("Cannot start a thread, clients wait: {}", words(error));
            }
            _ => {}
        }
    }

    /// Drains: delayed responses are sent, every connection ends with its next response, and parked ones end when no
    /// new connection has come for `QUIET`. Returns when no connection is left, or after `grace`.
    pub fn drain(self: &Arc<Workers>, grace: Duration) {
        self.context.start_draining();
        let deadline = Instant::now() + grace;
        let mut connections = self.context.counters().connections();
        let mut quiet_since = Instant::now();
        while Instant::now() < deadline {
            thread::sleep(DRAIN_INTERVAL);
            self.limit.end_delays();
            self.maintain();
            let now = self.context.counters().connections();
            if now != connections {
                connections = now;
                quiet_since = Instant::now();
            }
            if quiet_since.elapsed() >= QUIET {
                if !self.is_busy() {
                    break;
                }
                self.limit.evict_unbegun();
            }
        }
        logger::exceed_when_full();
        let left = self.limit.open();
        if left > 0 {
            let grace = grace.as_secs();
            log::warn!("Cut off {left} connections that did not end within {grace} s");
        }
        self.context.log_totals();
    }

    /// Whether a client waits or a connection is open. A worker acquires a place before it takes a client from
    /// the kernel's queue; asked in this order, no client is missed.
    fn is_busy(&self) -> bool {
        self.acceptors.clients.waiting() > 0 || self.limit.open() > 0
    }
}

fn spawn(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    sys::spawn_detached(STACK_SIZE, work)
}
