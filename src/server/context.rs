//! What all connections share: the node's name, whether everything is in place, whether the server drains, and
//! the totals for the log.

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::http::directives::Directives;
use crate::http::status::Status;
use crate::log::buffer::Buffer;
use crate::server::report::LastReport;

/// State that all connections share.
#[derive(Debug)]
pub struct Context {
    node: Option<String>,
    directives: Directives,
    report: LastReport,
    draining: AtomicBool,
    connections: AtomicU64,
    requests: AtomicU64,
}

impl Context {
    /// The state at the start, with the node's name from `NODE_NAME`.
    pub fn new(directives: Directives) -> Context {
        let node = std::env::var("NODE_NAME").ok();
        Context {
            node: node.filter(|name| !name.is_empty()),
            directives,
            report: LastReport::default(),
            draining: AtomicBool::new(false),
            connections: AtomicU64::new(0),
            requests: AtomicU64::new(0),
        }
    }

    /// The node's name.
    pub fn node(&self) -> Option<&str> {
        self.node.as_deref()
    }

    /// The status and the delay of an echo, unless the request has others.
    pub fn directives(&self) -> Directives {
        self.directives
    }

    /// What the guard reports.
    pub fn report(&self) -> &LastReport {
        &self.report
    }

    /// The answer to a direct connection, in one line: `/healthz` says that the process serves, `/readyz` that
    /// everything is in place.
    pub fn probe_answer(&self, target: &[u8]) -> (Status, Cow<'static, str>) {
        match target {
            b"/healthz" if self.is_draining() => (Status::SERVICE_UNAVAILABLE, "draining".into()),
            b"/healthz" => (Status::OK, "ok".into()),
            b"/readyz" => {
                let mut text = Buffer::EMPTY;
                let status = match self.report.push_readiness(&mut text) {
                    true => Status::OK,
                    false => Status::SERVICE_UNAVAILABLE,
                };
                let text = String::from_utf8_lossy(text.bytes()).into_owned();
                (status, text.into())
            }
            _ => (
                Status::NOT_FOUND,
                "this is the listener itself, not a Pod: only /healthz and /readyz are here".into(),
            ),
        }
    }

    /// Ends every connection after its next response.
    pub fn start_draining(&self) {
        self.report.set_stopping();
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
