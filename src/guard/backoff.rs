//! How long lost rules and routes wait before they are put back: a moment, so that one command of
//! somebody's is one loss, and a longer moment if they are removed again and again.

use std::time::{Duration, Instant};

/// How many losses are taken for accidents, if none is forgotten meanwhile.
const ACCIDENTS: u32 = 10;

/// How long a loss is remembered, one after the other.
const MEMORY: Duration = Duration::from_secs(1);

/// How long what follows a loss is awaited: `ip route flush` looks for more until it finds none, and
/// would fight with us.
const GATHER: Duration = Duration::from_millis(10);

/// The same while somebody fights.
const PAUSE: Duration = Duration::from_millis(40);

/// Counts losses, and slows down.
#[derive(Debug)]
pub struct Backoff {
    /// When all losses are forgotten.
    forgotten: Instant,
    /// Until when nothing is done: notifications wait in the kernel.
    pause: Instant,
    /// How many losses came since there were too many; `None` in peace.
    fight: Option<u64>,
}

impl Backoff {
    /// The pace of peace.
    pub fn new(now: Instant) -> Backoff {
        Backoff {
            forgotten: now,
            pause: now,
            fight: None,
        }
    }

    /// Counts a loss. Whether a fight begins with it.
    pub fn count(&mut self, now: Instant) -> bool {
        let longest = now + ACCIDENTS * MEMORY;
        self.forgotten = longest.min(self.forgotten.max(now) + MEMORY);
        match &mut self.fight {
            Some(losses) => *losses += 1,
            None if self.forgotten == longest => self.fight = Some(0),
            None => {}
        }
        self.pause = now + if self.is_fight() { PAUSE } else { GATHER };
        self.fight == Some(0)
    }

    /// How many losses a fight had that is over now.
    pub fn peace(&mut self, now: Instant) -> Option<u64> {
        self.fight.take_if(|_| now >= self.forgotten)
    }

    /// Whether somebody fights.
    pub fn is_fight(&self) -> bool {
        self.fight.is_some()
    }

    /// Until when nothing is to be done.
    pub fn pause(&self) -> Instant {
        self.pause
    }

    /// When a fight is over, if there is one and no loss comes.
    pub fn end_of_fight(&self) -> Option<Instant> {
        self.fight.map(|_| self.forgotten)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(60);

    /// A pace after this many losses, each a step after the other, and the time then.
    fn after(losses: u32, step: Duration) -> (Backoff, Instant) {
        let mut now = Instant::now();
        let mut pace = Backoff::new(now);
        for _ in 0..losses {
            pace.count(now);
            now += step;
        }
        (pace, now)
    }

    #[test]
    fn ten_losses_wait_for_a_moment_each() {
        let (pace, now) = after(10, GATHER);
        assert_eq!((pace.pause(), pace.end_of_fight()), (now, None));
    }

    #[test]
    fn a_loss_every_second_is_no_fight() {
        let (pace, _) = after(1000, MEMORY);
        assert!(!pace.is_fight());
    }

    #[test]
    fn more_than_ten_begin_one_fight_and_each_is_followed_by_a_pause() {
        let (mut pace, mut now) = after(10, STEP);
        let mut begun = 0;
        for _ in 0..100 {
            begun += u32::from(pace.count(now));
            now += PAUSE;
            assert_eq!(pace.pause(), now);
        }
        assert_eq!(begun, 1);
    }

    #[test]
    fn a_fight_is_over_when_ten_seconds_brought_no_loss_however_long_it_was() {
        let (mut pace, last) = after(500, STEP);
        let end = last - STEP + ACCIDENTS * MEMORY;
        assert_eq!(pace.end_of_fight(), Some(end));
        assert_eq!(pace.peace(end - STEP), None);
        assert_eq!(pace.peace(end), Some(489));
        assert_eq!((pace.peace(end), pace.end_of_fight()), (None, None));
    }
}
