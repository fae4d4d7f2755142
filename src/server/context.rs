//! What all connections share: what the server was started with, what the guard reports, whether the server
//! drains, and the counters.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::http::directives::Directives;
use crate::log::timestamp::Timestamp;
use crate::server::config::Config;
use crate::server::counters::Counters;
use crate::server::report::LastReport;

/// State that all connections share.
#[derive(Debug)]
pub struct Context {
    node: Option<String>,
    started: Timestamp,
    config: Config,
    report: LastReport,
    draining: AtomicBool,
    counters: Counters,
}

impl Context {
    /// The state at the start, with the node's name from `NODE_NAME`.
    pub fn new(config: Config) -> Context {
        let node = std::env::var("NODE_NAME").ok();
        Context {
            node: node.filter(|name| !name.is_empty()),
            started: Timestamp::now(),
            config,
            report: LastReport::default(),
            draining: AtomicBool::new(false),
            counters: Counters::default(),
        }
    }

    /// The node's name.
    pub fn node(&self) -> Option<&str> {
        self.node.as_deref()
    }

    /// When the server started.
    pub fn started(&self) -> Timestamp {
        self.started
    }

    /// What the server was started with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The status and the delay of an echo, unless the request has others.
    pub fn directives(&self) -> Directives {
        self.config.directives
    }

    /// What the guard reports.
    pub fn report(&self) -> &LastReport {
        &self.report
    }

    /// What was counted since the start.
    pub fn counters(&self) -> &Counters {
        &self.counters
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

    /// Logs the totals.
    pub fn log_totals(&self) {
        let counters = self.counters();
        log::info!(
            "Served {} requests on {} connections",
            counters.answered.total() + counters.refused.total(),
            counters.connections()
        );
    }
}
