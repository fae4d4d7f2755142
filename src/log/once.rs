//! Rate-limited logging of a condition that persists, for example a lack of descriptors.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::lock::unpoisoned;

/// The time without an occurrence after which the next one is logged again.
const QUIET_PERIOD: Duration = Duration::from_secs(10);

/// The time of the last occurrence of a condition.
#[derive(Debug, Default)]
pub struct LogOnce(Mutex<Option<Instant>>);

impl LogOnce {
    /// Records an occurrence, and returns whether to log it: the first one, and the first one after
    /// `QUIET_PERIOD`.
    pub fn should_log(&self) -> bool {
        self.should_log_at(Instant::now())
    }

    fn should_log_at(&self, now: Instant) -> bool {
        let last = unpoisoned(self.0.lock()).replace(now);
        last.is_none_or(|last| now.saturating_duration_since(last) >= QUIET_PERIOD)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_occurrence_is_logged_again_after_a_quiet_period() {
        let condition = LogOnce::default();
        let start = Instant::now();
        let logged = [0, 9, 18, 28, 29].map(|second| {
            let now = start + Duration::from_secs(second);
            condition.should_log_at(now)
        });
        assert_eq!(logged, [true, false, false, true, false]);
    }
}
