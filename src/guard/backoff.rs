//! When the reconciler may act, and whether it logs each restore: a debounce after a loss, a minimum
//! interval between two restores, and the state "contended" while another process removes entries again
//! and again. Knows no clock: callers pass the time.

use std::time::{Duration, Instant};

/// Debounce: the time between the notification of a loss and the restore. `ip route flush` lists and
/// deletes until it finds no more routes, and would never end if they came back at once.
const DEBOUNCE: Duration = Duration::from_millis(10);

/// The time after a restore in which no notification is read. With [`DEBOUNCE`] that is at most 25
/// restores a second.
const PAUSE: Duration = Duration::from_millis(30);

/// The most consecutive losses that are logged one by one.
const BURST: u64 = 10;

/// The time without a loss after which the next one is not consecutive.
const GAP: Duration = Duration::from_secs(1);

/// The time without a loss that ends contention.
const CALM: Duration = Duration::from_secs(10);

/// Counts consecutive losses.
#[derive(Debug)]
pub struct Backoff {
    /// Consecutive losses.
    losses: u64,
    /// When they are forgotten, unless another loss comes.
    calm_at: Instant,
    /// The end of the present pause.
    pause_end: Option<Instant>,
}

impl Backoff {
    /// Without losses, and not paused.
    pub fn new(now: Instant) -> Backoff {
        Backoff {
            losses: 0,
            calm_at: now,
            pause_end: None,
        }
    }

    /// Counts a loss. Returns whether contention begins with it.
    pub fn record_loss(&mut self, now: Instant) -> bool {
        self.losses += 1;
        self.calm_at = now + if self.is_contended() { CALM } else { GAP };
        self.losses == BURST + 1
    }

    /// Pauses for `DEBOUNCE`.
    pub fn debounce(&mut self, now: Instant) {
        self.pause_end = Some(now + DEBOUNCE);
    }

    /// Pauses for `PAUSE`.
    pub fn record_restore(&mut self, now: Instant) {
        self.pause_end = Some(now + PAUSE);
    }

    /// Forgets the losses if there was none for `GAP`, or for `CALM` while contended. If contention ends so,
    /// returns the losses since it began.
    pub fn reset_if_calm(&mut self, now: Instant) -> Option<u64> {
        if now < self.calm_at {
            return None;
        }
        std::mem::take(&mut self.losses).checked_sub(BURST + 1)
    }

    /// Whether there were more than `BURST` consecutive losses.
    pub fn is_contended(&self) -> bool {
        self.losses > BURST
    }

    /// When contention ends, unless another loss comes.
    pub fn contention_end(&self) -> Option<Instant> {
        self.is_contended().then_some(self.calm_at)
    }

    /// Whether a pause lasts; ends it if its time is over.
    pub fn is_paused(&mut self, now: Instant) -> bool {
        self.pause_end = self.pause_end.filter(|end| now < *end);
        self.pause_end.is_some()
    }

    /// The end of the present pause, until [`Backoff::is_paused`] has ended it.
    pub fn pause_end(&self) -> Option<Instant> {
        self.pause_end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(60);

    /// After so many losses, a step apart, and the time of the next.
    fn after(losses: u32, step: Duration) -> (Backoff, Instant) {
        let mut now = Instant::now();
        let mut backoff = Backoff::new(now);
        for _ in 0..losses {
            assert_eq!(backoff.reset_if_calm(now), None);
            backoff.record_loss(now);
            backoff.debounce(now);
            now += step;
        }
        (backoff, now)
    }

    #[test]
    fn ten_losses_are_debounced_and_no_contention() {
        let (backoff, now) = after(10, DEBOUNCE);
        assert_eq!(
            (backoff.pause_end(), backoff.contention_end()),
            (Some(now), None)
        );
    }

    #[test]
    fn a_loss_every_second_is_no_contention() {
        let (backoff, _) = after(1000, Duration::from_secs(1));
        assert!(!backoff.is_contended());
    }

    #[test]
    fn more_than_ten_consecutive_losses_begin_contention_once() {
        let (mut backoff, now) = after(10, STEP);
        let begun: u32 = (0..100).map(|_| u32::from(backoff.record_loss(now))).sum();
        assert_eq!(begun, 1);
    }

    #[test]
    fn two_restores_are_at_least_40_ms_apart() {
        let (mut backoff, restored) = after(1, DEBOUNCE);
        backoff.record_restore(restored);
        let pause_end = backoff.pause_end().unwrap();
        assert!(backoff.is_paused(pause_end - Duration::from_millis(1)));
        assert!(!backoff.is_paused(pause_end));
        backoff.debounce(pause_end);
        let interval = Duration::from_millis(40);
        assert_eq!(backoff.pause_end(), Some(restored + interval));
    }

    #[test]
    fn contention_ends_ten_seconds_after_the_last_loss_however_long_it_was() {
        let (mut backoff, next) = after(500, STEP);
        let end = next - STEP + CALM;
        assert_eq!(backoff.contention_end(), Some(end));
        assert_eq!(backoff.reset_if_calm(end - STEP), None);
        assert_eq!(backoff.reset_if_calm(end), Some(489));
        assert_eq!(
            (backoff.reset_if_calm(end), backoff.contention_end()),
            (None, None)
        );
    }
}
