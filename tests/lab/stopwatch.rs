//! Measures time, and the part of it in which this process did not run because it was stopped or the machine
//! was busy. The program, or the test that observes it, may be late by as much.

use std::sync::{LazyLock, Mutex, Once};
use std::thread;
use std::time::{Duration, Instant};

use super::PATIENCE;

/// The longest delay of a timed event beside the lost time: 3 s, or more on emulated machines.
pub static TOLERANCE: LazyLock<Duration> = LazyLock::new(|| *PATIENCE * 3 / 10);

/// The interval at which a thread wakes up to measure its delay: long beside the usual delays of a few
/// milliseconds.
const TICK: Duration = Duration::from_millis(100);

/// The time at which the thread last woke up, and the time lost by then.
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
    /// Starts it.
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

    /// The time since the start.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// The lost part of it.
    pub fn lost(&self) -> Duration {
        lost().saturating_sub(self.lost)
    }

    /// The rest of it.
    pub fn used(&self) -> Duration {
        self.elapsed().saturating_sub(self.lost())
    }

    /// Asserts that an event took its time: not less, and not much more.
    pub fn check(&self, what: &str, took: Duration, limit: Duration) {
        assert!(took >= limit, "{what}: {took:?} instead of {limit:?}");
        self.check_longest(what, took, limit);
    }

    /// Asserts that an event did not take much longer than its time.
    pub fn check_longest(&self, what: &str, took: Duration, limit: Duration) {
        let lost = self.lost();
        assert!(
            took < limit + *TOLERANCE + lost,
            "{what}: {took:?} instead of {limit:?}, {lost:?} were lost"
        );
    }
}
