//! Measures time, and how much of it this process has lost, because it was stopped or the machine was busy:
//! so late the program may be as well, or the test that looks at it.

use std::sync::{LazyLock, Mutex, Once};
use std::thread;
use std::time::{Duration, Instant};

use super::PATIENCE;

/// The longest delay of what has its time, beside the time that was lost: 3 s, or more where the machine is
/// emulated.
pub static TOLERANCE: LazyLock<Duration> = LazyLock::new(|| *PATIENCE * 3 / 10);

/// The interval at which a thread wakes up to find out how late it is. A few milliseconds, as on every busy
/// machine, count little then.
const TICK: Duration = Duration::from_millis(100);

/// When the thread last woke up, and how much time it had lost by then.
static LAST: LazyLock<Mutex<(Instant, Duration)>> =
    LazyLock::new(|| Mutex::new((Instant::now(), Duration::ZERO)));

/// How much time was lost so far. That the thread is late at this moment counts, too.
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

/// Measures from when it is started.
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

    /// How much of it was lost.
    pub fn lost(&self) -> Duration {
        lost().saturating_sub(self.lost)
    }

    /// The rest of it.
    pub fn used(&self) -> Duration {
        self.elapsed().saturating_sub(self.lost())
    }

    /// Checks that something took its time meanwhile: not less, and not much more.
    pub fn check(&self, what: &str, took: Duration, limit: Duration) {
        assert!(took >= limit, "{what}: {took:?} instead of {limit:?}");
        self.check_longest(what, took, limit);
    }

    /// Checks that something took not much longer than its time meanwhile.
    pub fn check_longest(&self, what: &str, took: Duration, limit: Duration) {
        let lost = self.lost();
        assert!(
            took < limit + *TOLERANCE + lost,
            "{what}: {took:?} instead of {limit:?}, {lost:?} were lost"
        );
    }
}
