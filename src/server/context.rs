//! What all connections share: the node's name, whether everything is in place, whether the server drains, and
//! the totals for the log.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::server::readiness::{Readiness, STOPPING};

/// State that all connections share.
#[derive(Debug)]
pub struct Context {
    node: Option<String>,
    readiness: Readiness,
    draining: AtomicBool,
    connections: AtomicU64,
    requests: AtomicU64,
}

impl Context {
    /// The state at the start, with the node's name from `NODE_NAME`.
    pub fn from_environment() -> Context {
        let node = std::env::var("NODE_NAME").ok();
        Context {
            node: node.filter(|name| !name.is_empty()),
            readiness: Readiness::default(),
            draining: AtomicBool::new(false),
            connections: AtomicU64::new(0),
            requests: AtomicU64::new(0),
        }
    }

    /// The node's name.
    pub fn node(&self) -> Option<&str> {
        self.node.as_deref()
    }

    /// Whether everything is in place, as the guard says.
    pub fn readiness(&self) -> &Readiness {
        &self.readiness
    }

    /// Ends every connection after its next response.
    pub fn start_draining(&self) {
        self.readiness.set(STOPPING.to_owned());
        self.draining.store(true, Ordering::SeqCst);
    }

    /// Whether connections end after their next response.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// The number of connections to captured addresses so far.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::SeqCst)
    }

    /// Counts a connection to a captured address.
    pub fn count_connection(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a request on such a connection, answered or refused.
    pub fn count_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Logs the totals.
    pub fn log_totals(&self) {
        log::info!(
            "Served {} requests on {} connections",
            self.requests.load(Ordering::SeqCst),
            self.connections()
        );
    }
}
