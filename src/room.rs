//! Room for so many connections at once. Who finds none waits until another leaves, and asks others to
//! leave where none does of itself.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long who waits for room lets the others leave of themselves: where connections are short, one
/// ends in this time, and none that is idle has to.
const PATIENCE: Duration = Duration::from_millis(10);

/// How long it lets one leave that was asked to.
const FAREWELL: Duration = Duration::from_millis(300);

/// Room for connections.
#[derive(Debug)]
pub struct Room {
    size: usize,
    taken: AtomicUsize,
    /// Those that wait for room.
    waiting: AtomicUsize,
    /// Whose turn it is among them: the others wait for the lock.
    turn: Mutex<()>,
    /// Who leaves tells the one whose turn it is.
    farewell: Mutex<()>,
    left: Condvar,
}

impl Room {
    /// Room for `size` connections.
    pub fn new(size: usize) -> Room {
        Room {
            size,
            taken: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            turn: Mutex::new(()),
            farewell: Mutex::new(()),
            left: Condvar::new(),
        }
    }

    /// For how many there is room.
    pub fn size(&self) -> usize {
        self.size
    }

    /// How many are here: those that have room, and those that wait for it.
    pub fn present(&self) -> usize {
        self.waiting.load(Ordering::SeqCst) + self.taken.load(Ordering::SeqCst)
    }

    /// Whether nothing would be left with so many more.
    pub fn is_full_with(&self, more: usize) -> bool {
        self.present() + more >= self.size
    }

    /// Takes room for one, and waits for it where there is none, or where others wait. Where
    /// nobody leaves for a while, `ask` asks somebody to, and returns whether there is somebody.
    pub fn take(&self, ask: impl Fn() -> bool) {
        if self.waiting.load(Ordering::SeqCst) == 0 && self.try_take() {
            return;
        }
        // In this order, so that who leaves either sees us wait or has left before we look.
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let turn = lock(&self.turn);
        let mut patience = PATIENCE;
        while !self.try_take_within(patience) {
            patience = if ask() { FAREWELL } else { PATIENCE };
        }
        drop(turn);
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }

    fn try_take_within(&self, patience: Duration) -> bool {
        let is_full = |_: &mut ()| !self.try_take();
        let waited = self
            .left
            .wait_timeout_while(lock(&self.farewell), patience, is_full);
        let (_farewell, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        !waited.timed_out()
    }

    /// Gives the room of one back.
    pub fn leave(&self) {
        self.taken.fetch_sub(1, Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) > 0 {
            let _farewell = lock(&self.farewell);
            self.left.notify_one();
        }
    }

    fn try_take(&self) -> bool {
        let more = |taken| (taken < self.size).then_some(taken + 1);
        self.taken
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, more)
            .is_ok()
    }
}

/// The locks guard no data.
fn lock(mutex: &Mutex<()>) -> MutexGuard<'_, ()> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn never_more_are_inside_than_there_is_room_for_and_all_come_in() {
        let room = Room::new(3);
        let (inside, visits) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..10_000 {
                        room.take(|| false);
                        assert!(inside.fetch_add(1, Ordering::SeqCst) < 3);
                        inside.fetch_sub(1, Ordering::SeqCst);
                        room.leave();
                        visits.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!((visits.into_inner(), room.present()), (80_000, 0));
    }

    #[test]
    fn who_asks_somebody_to_leave_gets_that_room() {
        let room = Room::new(2);
        (0..2).for_each(|_| room.take(|| false));
        let come = || {
            let asked = AtomicUsize::new(0);
            room.take(|| {
                asked.fetch_add(1, Ordering::SeqCst);
                room.leave();
                true
            });
            asked.into_inner()
        };
        let asked = std::thread::scope(|scope| {
            let threads = [(); 2].map(|()| scope.spawn(come));
            threads.map(|thread| thread.join().unwrap())
        });
        assert_eq!(asked, [1, 1]);
    }
}
