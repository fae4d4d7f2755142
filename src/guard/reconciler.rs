//! Keeps the mark rule and the AnyIP routes in place: what somebody removes is put back.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use log::Level;

use crate::error::Error;
use crate::guard::backoff::Backoff;
use crate::routing::monitor::Monitor;
use crate::routing::policy::Routing;

/// How long what could not be put back waits for the next attempt, whatever happens meanwhile: that it
/// can be put back now is not always told.
const RETRY: Duration = Duration::from_secs(1);

/// The routing, and what becomes of it.
#[derive(Debug)]
pub struct Reconciler {
    routing: Routing,
    watch: Monitor,
    pace: Backoff,
    /// Something may be missing.
    is_lost: bool,
    /// Devices or their addresses are others.
    have_devices_changed: bool,
    trouble: Option<Retry>,
}

/// Something could not be put back.
#[derive(Debug)]
struct Retry {
    reason: String,
    /// When it is tried again.
    again: Instant,
}

impl Reconciler {
    /// Keeps this routing in place, from when it is installed.
    pub fn new(routing: Routing, watch: Monitor) -> Reconciler {
        Reconciler {
            routing,
            watch,
            pace: Backoff::new(Instant::now()),
            is_lost: false,
            have_devices_changed: false,
            trouble: None,
        }
    }

    /// Installs the routing.
    ///
    /// # Errors
    /// The first request that the kernel refuses.
    pub fn install(&mut self) -> Result<(), Error> {
        let (added, outcome) = self.routing.install();
        added.iter().for_each(|entry| log::info!("Added {entry}"));
        outcome
    }

    /// Removes the routing.
    ///
    /// # Errors
    /// The first request that the kernel refuses.
    pub fn remove(&mut self) -> Result<(), Error> {
        let (removed, outcome) = self.routing.remove();
        removed
            .iter()
            .for_each(|entry| log::info!("Removed {entry}"));
        outcome
    }

    /// What can be read when something has changed; `None` while that has to wait.
    pub fn notifications(&self) -> Option<BorrowedFd<'_>> {
        (Instant::now() >= self.pace.pause()).then(|| self.watch.as_fd())
    }

    /// When [`Reconciler::tend`] has to be called, even if there is nothing to read.
    pub fn deadline(&self) -> Option<Instant> {
        let pause = self.pace.pause();
        let loss = self.is_lost.then_some(pause);
        let again = self.trouble.as_ref().map(|trouble| trouble.again);
        let first = [loss, again, self.pace.end_of_fight()];
        first.into_iter().flatten().min().map(|it| it.max(pause))
    }

    /// Whether devices or their addresses are others than when this was asked before.
    pub fn have_devices_changed(&mut self) -> bool {
        std::mem::take(&mut self.have_devices_changed)
    }

    /// Looks for losses, and puts back what somebody removed when its time has come.
    pub fn tend(&mut self) {
        let now = Instant::now();
        if now < self.pace.pause() {
            return;
        }
        let changes = self.watch.changes(&self.routing);
        self.have_devices_changed |= changes.devices;
        let is_lost = changes.loss;
        let is_due = self.trouble.as_ref().is_some_and(|it| now >= it.again);
        if self.is_lost || (is_due && !is_lost) {
            self.is_lost = false;
            self.heal();
        } else if is_lost {
            self.is_lost = true;
            if self.pace.count(now) {
                log::warn!(
                    "Rules and routes change again and again: looking after them at most 25 times \
                     a second, and without a line for each"
                );
            }
        } else if let Some(losses) = self.pace.peace(now) {
            log::info!("Rules and routes are left alone again, after {losses} more changes");
            self.say_trouble(Level::Warn);
        }
    }

    /// Puts back what is missing. What cannot be put back now, as on a device that is down, is
    /// tried again after a while, or when it is lost once more.
    fn heal(&mut self) {
        let level = match self.pace.is_fight() {
            true => Level::Debug,
            false => Level::Warn,
        };
        let (restored, outcome) = self.routing.restore();
        for entry in restored {
            log::log!(level, "Put back {entry}, which somebody removed");
        }
        let known = self.trouble.take().map(|trouble| trouble.reason);
        let reason = outcome.err().map(|error| error.to_string());
        let is_news = reason != known;
        let again = Instant::now() + RETRY;
        self.trouble = reason.map(|reason| Retry { reason, again });
        if is_news {
            self.say_trouble(level);
        }
    }

    fn say_trouble(&self, level: Level) {
        if let Some(Retry { reason, .. }) = &self.trouble {
            log::log!(level, "Cannot put back what somebody removed: {reason}");
        }
    }
}
