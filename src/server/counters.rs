//! What the server counts of captured connections: for the log, the state page and the metrics. A request adds to
//! three numbers, which are atomic: it takes no lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::http::status::Status;

/// The upper bounds of the buckets of durations, but for the last one, which has none: in µs, and in s as text.
pub const BOUNDS: [(u64, &str); 6] = [
    (100, "0.0001"),
    (1000, "0.001"),
    (10_000, "0.01"),
    (100_000, "0.1"),
    (1_000_000, "1"),
    (10_000_000, "10"),
];

/// The numbers since the start.
#[derive(Debug)]
pub struct Counters {
    connections: AtomicU64,
    /// Answered requests, by the time that they took.
    durations: [AtomicU64; BOUNDS.len() + 1],
    /// The sum of these times, in µs.
    total_duration: AtomicU64,
    /// Answered requests.
    pub answered: Codes,
    /// Refused requests.
    pub refused: Codes,
    lost: AtomicU64,
}

/// A number for each status code.
#[derive(Debug)]
pub struct Codes([AtomicU64; 600]);

impl Default for Counters {
    fn default() -> Counters {
        Counters {
            connections: AtomicU64::new(0),
            durations: [const { AtomicU64::new(0) }; BOUNDS.len() + 1],
            total_duration: AtomicU64::new(0),
            answered: Codes([const { AtomicU64::new(0) }; 600]),
            refused: Codes([const { AtomicU64::new(0) }; 600]),
            lost: AtomicU64::new(0),
        }
    }
}

impl Counters {
    /// Counts a connection.
    pub fn count_connection(&self) {
        add(&self.connections, 1);
    }

    /// Counts a request that was answered in this time.
    pub fn count_answered(&self, status: Status, took: Duration) {
        let took = took.as_micros() as u64;
        let bucket = BOUNDS.iter().position(|(bound, _)| took <= *bound);
        add(&self.durations[bucket.unwrap_or(BOUNDS.len())], 1);
        add(&self.total_duration, took);
        self.answered.count(status);
    }

    /// Counts a request that was refused.
    pub fn count_refused(&self, status: Status) {
        self.refused.count(status);
    }

    /// Counts a request that was lost.
    pub fn count_lost(&self) {
        add(&self.lost, 1);
    }

    /// Connections.
    pub fn connections(&self) -> u64 {
        read(&self.connections)
    }

    /// Requests that were lost.
    pub fn lost(&self) -> u64 {
        read(&self.lost)
    }

    /// Answered requests in each bucket of [`BOUNDS`], and in the last one.
    pub fn durations(&self) -> [u64; BOUNDS.len() + 1] {
        self.durations.each_ref().map(read)
    }

    /// The sum of all durations, in µs.
    pub fn total_duration(&self) -> u64 {
        read(&self.total_duration)
    }
}

impl Codes {
    fn count(&self, status: Status) {
        if let Some(number) = self.0.get(usize::from(status.code())) {
            add(number, 1);
        }
    }

    /// Each code, in order, with its number.
    pub fn numbers(&self) -> impl Iterator<Item = (u64, u64)> {
        (0..).zip(self.0.iter().map(read))
    }

    /// The sum over all codes.
    #[inline(never)]
    pub fn total(&self) -> u64 {
        self.0.iter().map(read).sum()
    }
}

fn add(number: &AtomicU64, more: u64) {
    number.fetch_add(more, Ordering::Relaxed);
}

fn read(number: &AtomicU64) -> u64 {
    number.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_counts_in_the_first_bucket_whose_bound_is_not_below_it() {
        let counters = Counters::default();
        for micros in [0, 100, 101, 1000, 10_000_000, 10_000_001, 90_000_000] {
            counters.count_answered(Status::OK, Duration::from_micros(micros));
        }
        assert_eq!(counters.durations(), [2, 2, 0, 0, 0, 1, 2]);
        assert_eq!(counters.total_duration(), 110_001_202);
        assert_eq!(counters.answered.total(), 7);
    }

    #[test]
    fn every_code_has_a_number_of_its_own() {
        let counters = Counters::default();
        for code in 200..=599 {
            counters.count_refused(Status::new(code).unwrap());
        }
        let counted = counters.refused.numbers().filter(|(_, number)| *number > 0);
        assert!(counted.eq((200..=599).map(|code| (code, 1))));
        assert_eq!(counters.answered.total(), 0);
    }
}
