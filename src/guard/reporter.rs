//! Tells the server about the state of the interception, for `/readyz`, the state page and the metrics: a line for
//! each change, in the form of `server::report`.

use std::time::{Duration, Instant};

use crate::guard::reconciler::Reconciler;
use crate::guard::server_process::ServerProcess;
use crate::nftables::table::Tables;
use crate::server::report::{STOPPING, line};

/// Interval at which a line is sent again that the server's socket did not take.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Interval at which the kernel is asked for a table that has no owner (before Linux 5.12): another process can
/// remove it.
const TABLE_INTERVAL: Duration = Duration::from_secs(1);

/// What the server is told, and what it knows.
#[derive(Debug, Default)]
pub struct Reporter {
    /// A stop has begun.
    is_stopping: bool,
    /// Why the rules for bridges could not be refreshed.
    bridge_failure: Option<String>,
    /// Why there are no rules for bridges.
    not_redirected: Option<String>,
    /// Another process has removed the table of the rules.
    is_table_removed: bool,
    /// When the kernel is asked for the table again; `None` if the table has an owner.
    table_check_at: Option<Instant>,
    /// The last line that was sent.
    sent: Vec<u8>,
    /// When a line has to be sent again.
    retry_at: Option<Instant>,
}

impl Reporter {
    /// Records that a stop has begun.
    pub fn set_stopping(&mut self) {
        self.is_stopping = true;
    }

    /// Records why the rules for bridges could not be refreshed, or that they were.
    pub fn set_bridge_failure(&mut self, failure: Option<String>) {
        self.bridge_failure = failure;
    }

    /// Records why there are no rules for bridges.
    pub fn set_not_redirected(&mut self, reason: String) {
        self.not_redirected = Some(reason);
    }

    /// When [`Reporter::send`] has to be called, even without a change.
    pub fn deadline(&self) -> Option<Instant> {
        let times = [self.retry_at, self.table_check_at];
        times.into_iter().flatten().min()
    }

    /// Tells the server what has changed since the last line. `bridge_names` is shown unless there are no rules for
    /// bridges. Called only once everything is installed. Never waits: what a server that hangs does not take is sent
    /// again later, and only its last state then.
    pub fn send(
        &mut self,
        reconciler: &Reconciler,
        tables: &mut Tables,
        bridge_names: &[u8],
        server: &ServerProcess,
    ) {
        self.retry_at = None;
        self.check_table(tables);
        let names_or_reason = match &self.not_redirected {
            Some(reason) => reason.as_bytes(),
            None => bridge_names,
        };
        let reason = self.reason(reconciler.failure());
        let line = line(reconciler.restored(), names_or_reason, reason.as_bytes());
        if self.sent == line {
            return;
        }
        match server.send(&line) {
            Ok(()) => self.sent = line,
            Err(_) => self.retry_at = Some(Instant::now() + RETRY_INTERVAL),
        }
    }

    fn check_table(&mut self, tables: &mut Tables) {
        let now = Instant::now();
        if !tables.is_owned() && self.table_check_at.is_none_or(|at| now >= at) {
            self.is_table_removed = tables.is_removed();
            self.table_check_at = Some(now + TABLE_INTERVAL);
        }
    }

    /// Why not everything is in place; empty if it is. `lost` says it of rules and routes.
    fn reason(&self, lost: Option<String>) -> String {
        if self.is_stopping {
            return STOPPING.to_owned();
        }
        if self.is_table_removed {
            return "another process removed the table of the rules".to_owned();
        }
        lost.or_else(|| self.bridge_failure.clone())
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_ready_only_without_any_reason_against_it_and_gives_the_gravest() {
        let lost = || Some("a route is lost".to_owned());
        let mut report = Reporter::default();
        assert_eq!(report.reason(None), "");
        report.set_bridge_failure(Some("cannot follow the bridges".to_owned()));
        assert_eq!(report.reason(None), "cannot follow the bridges");
        assert_eq!(report.reason(lost()), "a route is lost");
        report.set_bridge_failure(None);
        assert_eq!(report.reason(None), "");
        report.is_table_removed = true;
        assert!(report.reason(lost()).contains("removed the table"));
        report.set_stopping();
        assert_eq!(report.reason(lost()), STOPPING);
    }
}
