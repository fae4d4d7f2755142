//! Something that the kernel, or the program, has no more of: told once, however often it is missed.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long nothing must have been missed, until it is told again.
const CALM: Duration = Duration::from_secs(10);

/// When something was missed last.
#[derive(Debug, Default)]
pub struct LogOnce(Mutex<Option<Instant>>);

impl LogOnce {
    /// It is missed now; returns whether that is worth telling.
    pub fn should_log(&self) -> bool {
        self.should_log_at(Instant::now())
    }

    fn should_log_at(&self, now: Instant) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = last.replace(now);
        before.is_none_or(|before| now.saturating_duration_since(before) >= CALM)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_should_log_again_after_it_was_not_missed_for_a_while() {
        let shortage = LogOnce::default();
        let start = Instant::now();
        let news = [0, 9, 18, 28, 29].map(|second| {
            let now = start + Duration::from_secs(second);
            shortage.should_log_at(now)
        });
        assert_eq!(news, [true, false, false, true, false]);
    }
}
