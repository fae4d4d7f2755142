//! What the guard tells the server about the state of the interception, for `/readyz`: a line for each change,
//! in the form of `server::readiness`.

use std::time::{Duration, Instant};

use crate::guard::reconciler::Reconciler;
use crate::guard::server_process::ServerProcess;
use crate::server::readiness::{STOPPING, line};

/// Interval at which a line is sent again that the server's socket did not take.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Why not everything is in place, and what the server knows of it.
#[derive(Debug, Default)]
pub struct ReadinessReport {
    /// A stop has begun.
    is_stopping: bool,
    /// Why the rules for bridges could not be refreshed.
    bridges: Option<String>,
    /// The last reason that was sent.
    sent: Option<String>,
    /// When a line has to be sent again.
    retry_at: Option<Instant>,
}

impl ReadinessReport {
    /// Records that a stop has begun.
    pub fn set_stopping(&mut self) {
        self.is_stopping = true;
    }

    /// Records why the rules for bridges could not be refreshed, or that they were.
    pub fn set_bridges(&mut self, failure: Option<String>) {
        self.bridges = failure;
    }

    /// When [`ReadinessReport::send`] has to be called, even without a change.
    pub fn deadline(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Tells the server what has changed since the last line. Called only once everything is installed. Never
    /// waits: what a server that hangs does not take is sent again later, and only its last state then.
    pub fn send(&mut self, reconciler: &Reconciler, server: &ServerProcess) {
        self.retry_at = None;
        let reason = self.reason(reconciler);
        if self.sent.as_ref() == Some(&reason) {
            return;
        }
        match server.send(&line(&reason)) {
            Ok(()) => self.sent = Some(reason),
            Err(_) => self.retry_at = Some(Instant::now() + RETRY_INTERVAL),
        }
    }

    /// Why not everything is in place; empty if it is.
    fn reason(&self, reconciler: &Reconciler) -> String {
        if self.is_stopping {
            return STOPPING.to_owned();
        }
        let lost = reconciler.failure();
        lost.or_else(|| self.bridges.clone()).unwrap_or_default()
    }
}
