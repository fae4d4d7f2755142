//! Keeps the mark rules and the AnyIP routes in place: restores what another process removes.
//! `routing::policy` knows which entries are needed, and `routing::monitor` learns of losses from the
//! notifications of rtnetlink(7).

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use log::Level;

use crate::error::Error;
use crate::guard::backoff::Backoff;
use crate::routing::monitor::Monitor;
use crate::routing::policy::Routing;
use crate::selectors::Cidr;
use crate::server::report::Restored;

/// Interval at which a failed restore is tried again: not everything that lets it succeed causes a
/// notification.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// The routing, and what is known of its losses.
#[derive(Debug)]
pub struct Reconciler {
    routing: Routing,
    monitor: Monitor,
    backoff: Backoff,
    /// Why a rule or route may be missing: restore it after the debounce.
    suspicion: Option<Suspicion>,
    /// Devices or their addresses have changed.
    have_devices_changed: bool,
    /// A route has appeared that may lead into a block which had none.
    has_new_route: bool,
    retry: Option<Retry>,
    restored: Restored,
}

/// Why a rule or route may be missing.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Suspicion {
    /// A notification of a loss, which is counted.
    Loss,
    /// Notifications were lost. That is no loss of a rule or route, however often it happens, unless one is
    /// missing.
    Overflow,
}

/// A restore that failed.
#[derive(Debug)]
struct Retry {
    reason: String,
    at: Instant,
}

impl Reconciler {
    /// Reconciles this routing. Nothing is installed yet.
    pub fn new(routing: Routing, monitor: Monitor) -> Reconciler {
        Reconciler {
            routing,
            monitor,
            backoff: Backoff::new(Instant::now()),
            suspicion: None,
            have_devices_changed: false,
            has_new_route: false,
            retry: None,
            restored: Restored::default(),
        }
    }

    /// Installs the routing.
    ///
    /// # Errors
    /// `EEXIST` if a rule or route of another program uses the mark or the table, or the error of the
    /// first request that the kernel refuses.
    pub fn install(&mut self) -> Result<(), Error> {
        let (added, outcome) = self.routing.install();
        added.iter().for_each(|entry| log::info!("Added {entry}"));
        outcome
    }

    /// Removes the routing.
    ///
    /// # Errors
    /// The error of the first request that the kernel refuses.
    pub fn remove(&mut self) -> Result<(), Error> {
        let (removed, outcome) = self.routing.remove();
        removed
            .iter()
            .for_each(|entry| log::info!("Removed {entry}"));
        outcome
    }

    /// The socket to poll for notifications; `None` during a pause, in which they wait in the kernel.
    pub fn notifications(&self) -> Option<BorrowedFd<'_>> {
        match self.backoff.pause_end() {
            None => Some(self.monitor.as_fd()),
            Some(_) => None,
        }
    }

    /// When [`Reconciler::reconcile`] has to be called, even without a notification.
    pub fn deadline(&self) -> Option<Instant> {
        let retry_at = self.retry.as_ref().map(|retry| retry.at);
        let unpaused = [retry_at, self.backoff.contention_end()];
        let pause_end = self.backoff.pause_end();
        pause_end.or_else(|| unpaused.into_iter().flatten().min())
    }

    /// Whether devices or their addresses have changed since the last call.
    pub fn have_devices_changed(&mut self) -> bool {
        std::mem::take(&mut self.have_devices_changed)
    }

    /// Whether a route has appeared since the last call that may lead into a block which had none.
    pub fn has_new_route(&mut self) -> bool {
        std::mem::take(&mut self.has_new_route)
    }

    /// How many rules and routes were restored.
    pub fn restored(&self) -> Restored {
        self.restored
    }

    /// Why rules or routes are missing: they could not be restored, or another process removes them again and
    /// again.
    pub fn failure(&self) -> Option<String> {
        let contended = || "another process removes rules and routes again and again".to_owned();
        match &self.retry {
            Some(Retry { reason, .. }) => Some(format!(
                "cannot restore what another process removed: {reason}"
            )),
            None => self.backoff.is_contended().then(contended),
        }
    }

    /// Reads notifications. Restores what was found lost before, or what could not be restored then. `unrouted`
    /// are the captured blocks without a route of the node.
    pub fn reconcile(&mut self, unrouted: &[Cidr]) {
        let now = Instant::now();
        if self.backoff.is_paused(now) {
            return;
        }
        if let Some(losses) = self.backoff.reset_if_calm(now) {
            log::info!("Rules and routes are left alone again, after {losses} more changes");
            self.log_retry(Level::Warn);
        }
        let changes = self.monitor.changes(&self.routing, unrouted);
        self.have_devices_changed |= changes.devices;
        self.has_new_route |= changes.routes;
        if self.suspicion.is_some() {
            self.restore();
        } else if changes.loss {
            self.suspicion = Some(Suspicion::Loss);
            self.count_loss(now);
            self.backoff.debounce(now);
        } else if changes.overflow {
            self.suspicion = Some(Suspicion::Overflow);
            self.backoff.debounce(now);
        } else if self.retry.as_ref().is_some_and(|retry| now >= retry.at) {
            self.restore();
        }
    }

    /// Counts a loss, and logs if contention begins with it.
    fn count_loss(&mut self, now: Instant) {
        if self.backoff.record_loss(now) {
            log::warn!(
                "Rules and routes change again and again: restoring them at most 25 times a second, and \
                 without a line for each"
            );
        }
    }

    /// Adds what is missing. What the kernel refuses, as a route to a device that is down, is tried
    /// again at the next loss or after [`RETRY_INTERVAL`].
    fn restore(&mut self) {
        let suspicion = self.suspicion.take();
        let (restored, outcome) = self.routing.restore();
        let now = Instant::now();
        if suspicion == Some(Suspicion::Overflow) && !restored.is_empty() {
            self.count_loss(now);
        }
        let level = match self.backoff.is_contended() {
            true => Level::Debug,
            false => Level::Warn,
        };
        self.backoff.record_restore(now);
        for entry in restored {
            match entry.is_route() {
                true => self.restored.routes += 1,
                false => self.restored.rules += 1,
            }
            log::log!(level, "Restored {entry}, which another process removed");
        }
        let known = self.retry.take().map(|retry| retry.reason);
        let reason = outcome.err().map(|error| error.to_string());
        let is_new = reason != known;
        let at = now + RETRY_INTERVAL;
        self.retry = reason.map(|reason| Retry { reason, at });
        if is_new {
            self.log_retry(level);
        }
    }

    fn log_retry(&self, level: Level) {
        if let Some(Retry { reason, .. }) = &self.retry {
            log::log!(
                level,
                "Cannot restore what another process removed: {reason}"
            );
        }
    }
}
