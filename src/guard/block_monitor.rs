//! Logs captured blocks into which no route of the node leads, once at the start, and when one appears.
//! Such a block is not an error: the first Pod of a node may bring the first route.
//!
//! Routes are listed at the start, and then only while a block is without one and a notification says that a
//! new route may lead there: a node with BGP can have 100,000 routes that change all the time.

use std::time::{Duration, Instant};

use crate::error::Error;
use crate::log::once::LogOnce;
use crate::netlink::socket::Socket;
use crate::routing::block_survey::survey;
use crate::selectors::Cidr;

/// Shortest interval between two lists of the routes.
const MIN_INTERVAL: Duration = Duration::from_secs(1);

/// The blocks without a route, and the time of the next list.
#[derive(Debug)]
pub struct BlockMonitor {
    socket: Socket,
    /// The routing table of tproxy-pod.
    table: u32,
    /// The blocks into which no route is known to lead.
    unrouted: Vec<Cidr>,
    /// When the routes were listed the last time; `None` before the first list.
    listed_at: Option<Instant>,
    /// When the next list is due; `None` until a route appears.
    due: Option<Instant>,
    errors: LogOnce,
}

impl BlockMonitor {
    /// Monitors these blocks, all of which are without a known route. Opens a socket.
    ///
    /// # Errors
    /// `EMFILE`, or any other error of socket(2).
    pub fn open(blocks: &[Cidr], table: u32) -> Result<BlockMonitor, Error> {
        Ok(BlockMonitor {
            socket: Socket::open(libc::NETLINK_ROUTE)?,
            table,
            unrouted: blocks.to_vec(),
            listed_at: None,
            due: Some(Instant::now()),
            errors: LogOnce::default(),
        })
    }

    /// The blocks into which no route is known to lead.
    pub fn unrouted(&self) -> &[Cidr] {
        &self.unrouted
    }

    /// When [`BlockMonitor::refresh`] has to be called.
    pub fn deadline(&self) -> Option<Instant> {
        self.due
    }

    /// Lists the routes when that is due, and logs what is new. `has_new_route` says that a route which may
    /// lead into a block has appeared since the last call.
    pub fn refresh(&mut self, has_new_route: bool) {
        let now = Instant::now();
        if has_new_route {
            self.schedule(now);
        }
        if self.due.is_none_or(|due| now < due) {
            return;
        }
        self.due = None;
        if let Err(error) = self.list(now) {
            self.due = Some(now + MIN_INTERVAL);
            if self.errors.should_log() {
                log::warn!("Cannot tell which captured blocks hold Pods: {error}");
            }
        }
    }

    /// Schedules a list because a route has appeared; not if all blocks have one.
    fn schedule(&mut self, now: Instant) {
        if !self.unrouted.is_empty() {
            let soon = self.listed_at.map_or(now, |at| now.max(at + MIN_INTERVAL));
            self.due = Some(self.due.map_or(soon, |due| due.min(soon)));
        }
    }

    fn list(&mut self, now: Instant) -> Result<(), Error> {
        let survey = survey(&mut self.socket, &self.unrouted, self.table)?;
        let is_first = self.listed_at.replace(now).is_none();
        self.unrouted.retain(|block| match survey.warning(*block) {
            Some(warning) => {
                if is_first {
                    log::warn!("{warning}");
                }
                true
            }
            None => {
                if !is_first {
                    log::info!("A route of this node leads into {block} now");
                }
                false
            }
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(300);

    fn listed(unrouted: &[Cidr], now: Instant) -> BlockMonitor {
        let monitor = BlockMonitor::open(unrouted, 100).unwrap();
        BlockMonitor {
            listed_at: Some(now),
            due: None,
            ..monitor
        }
    }

    #[test]
    fn new_routes_cause_a_list_at_most_once_a_second() {
        let start = Instant::now();
        let mut monitor = listed(&["10.244.0.0/16".parse().unwrap()], start);
        for step in 1..=3 {
            monitor.schedule(start + step * STEP);
            assert_eq!(monitor.deadline(), Some(start + MIN_INTERVAL));
        }
        monitor.due = None;
        monitor.schedule(start + 10 * STEP);
        assert_eq!(monitor.deadline(), Some(start + 10 * STEP));
    }

    #[test]
    fn new_routes_cause_no_list_if_all_blocks_have_one() {
        let start = Instant::now();
        let mut monitor = listed(&[], start);
        monitor.schedule(start + STEP);
        assert_eq!(monitor.deadline(), None);
    }
}
