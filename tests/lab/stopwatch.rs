//! Measures time, and the lost part of it: when this process did not run, because it was stopped or the machine
//! was busy. The program and its test may be late by as much.

use std::sync::{LazyLock, Mutex, Once};
use std::thread;
use std::time::{Duration, Instant};

use super::PATIENCE;

/// Longest delay of a timed event beyond the lost time: 3 s, or more on emulated machines.
pub static TOLERANCE: LazyLock<Duration> = LazyLock::new(|| *PATIENCE * 3 / 10);

/// Interval at which a thread measures its wake-up delay, usually a few milliseconds.
const TICK: Duration = Duration::from_millis(100);

/// Time of the thread's last wake-up, and the time lost until then.
static LAST: LazyLock<Mutex<(Instant, Duration)>> =
    LazyLock::new(|| Mutex::new((Instant::now(), Duration::ZERO)));

/// The time lost so far, with the thread's present delay.
fn lost() -> Duration {
    let (woken, lost) = *LAST.lock().unwrap();
    lost + woken.elapsed().saturating_sub(TICK)
}

fn tick() {
    loop {
        thread::sleep(TICK);
        let mut last = LAST.lock().unwrap();
        let (woken, lost) = *last;
        let now = Instant::now();
        *last = (now, lost + (now - woken).saturating_sub(TICK));
    }
}

/// Measures from its start.
#[derive(Clone, Copy)]
pub struct Stopwatch {
    start: Instant,
    lost: Duration,
}

impl Stopwatch {
    pub fn start() -> Stopwatch {
        static TICKING: Once = Once::new();
        TICKING.call_once(|| {
            LazyLock::force(&LAST);
            thread::spawn(tick);
        });
        Stopwatch {
            start: Instant::now(),
            lost: lost(),
        }
    }

    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Lost time since the start.
    pub fn lost(&self) -> Duration {
        lost().saturating_sub(self.lost)
    }

    /// Time since the start, without the lost time.
    pub fn used(&self) -> Duration {
        self.elapsed().saturating_sub(self.lost())
    }

    /// Asserts that an event took as long as `limit`: not less, and not more than the tolerance above.
    pub fn check(&self, what: &str, took: Duration, limit: Duration) {
        assert!(took >= limit, "{what}: {took:?} instead of {limit:?}");
        self.check_longest(what, took, limit);
    }

    /// Asserts that an event took `limit` and the tolerance at most.
    pub fn check_longest(&self, what: &str, took: Duration, limit: Duration) {
        let lost = self.lost();
        assert!(
            took < limit + *TOLERANCE + lost,
            "{what}: {took:?} instead of {limit:?}, {lost:?} were lost"
        );
    }
}
