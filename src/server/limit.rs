//! A limit on connections: a counting semaphore that threads acquire in the order in which they ask.
//!
//! At the limit `acquire` waits; if no connection ends within [`PATIENCE`], it has an idle one evicted.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The time that connections have to end by themselves: where they are short, one does, and no idle one
/// is evicted.
pub const PATIENCE: Duration = Duration::from_millis(10);

/// The time that an evicted connection has to end.
pub const EVICTION_TIMEOUT: Duration = Duration::from_millis(300);

/// A limit on connections.
#[derive(Debug)]
pub struct ConnectionLimit {
    size: usize,
    state: Mutex<State>,
    /// A connection has ended, or another ticket is served.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Connections that count.
    acquired: usize,
    /// Connections that have counted and ended so far.
    ended: usize,
    /// The next ticket to be drawn: threads acquire in the order of their tickets.
    next_ticket: usize,
    /// The ticket of the thread that acquires next.
    now_serving: usize,
    /// Threads that wait for a change.
    waiting: usize,
}

impl ConnectionLimit {
    /// A limit of `size` connections.
    pub fn new(size: usize) -> ConnectionLimit {
        ConnectionLimit {
            size,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// The limit.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Connections that count, and those that wait to.
    pub fn present(&self) -> usize {
        let state = self.state();
        state.acquired + (state.next_ticket - state.now_serving)
    }

    /// Counts one connection more, and waits at the limit, or where other threads wait, until it may.
    /// `evict` ends an idle connection, and returns whether there is one.
    pub fn acquire(&self, evict: impl Fn() -> bool) {
        let mut state = self.state();
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        let is_behind = |state: &State| state.now_serving != ticket;
        state = self.wait(state, Duration::MAX, is_behind);
        let is_full = |state: &State| state.acquired >= self.size;
        let mut patience = PATIENCE;
        loop {
            state = self.wait(state, patience, is_full);
            if !is_full(&state) {
                break;
            }
            drop(state);
            patience = if evict() { EVICTION_TIMEOUT } else { PATIENCE };
            state = self.state();
        }
        state.acquired += 1;
        state.now_serving += 1;
        self.notify(&state);
    }

    /// Counts one connection less.
    pub fn release(&self) {
        let mut state = self.state();
        state.acquired -= 1;
        state.ended += 1;
        self.notify(&state);
    }

    /// How many connections have ended so far.
    pub fn ended(&self) -> usize {
        self.state().ended
    }

    /// Waits until more connections have ended than `ended`, up to a time-out; returns whether they have.
    pub fn wait_for_end(&self, ended: usize, timeout: Duration) -> bool {
        let has_none = |state: &State| state.ended == ended;
        !has_none(&self.wait(self.state(), timeout, has_none))
    }

    /// Waits for as long as `is_blocked`, up to a time-out.
    fn wait<'s>(
        &self,
        mut state: MutexGuard<'s, State>,
        timeout: Duration,
        is_blocked: impl Fn(&State) -> bool,
    ) -> MutexGuard<'s, State> {
        state.waiting += 1;
        let waited = self
            .changed
            .wait_timeout_while(state, timeout, |state| is_blocked(state));
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.waiting -= 1;
        state
    }

    /// A system call only where a thread waits.
    fn notify(&self, state: &State) {
        if state.waiting > 0 {
            self.changed.notify_all();
        }
    }

    /// The state is whole at any moment, also after a panic.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Instant;

    use super::*;

    /// Waits until so many connections count or wait to.
    fn wait_until_present(limit: &ConnectionLimit, count: usize) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while limit.present() != count {
            assert!(Instant::now() < deadline, "{limit:?}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn never_more_count_than_the_limit_and_all_do_in_the_end() {
        let limit = ConnectionLimit::new(3);
        let (inside, visits) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..10_000 {
                        limit.acquire(|| false);
                        assert!(inside.fetch_add(1, Ordering::SeqCst) < 3);
                        inside.fetch_sub(1, Ordering::SeqCst);
                        limit.release();
                        visits.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!((visits.into_inner(), limit.present()), (80_000, 0));
    }

    #[test]
    fn threads_that_wait_acquire_in_the_order_in_which_they_came() {
        let limit = ConnectionLimit::new(1);
        limit.acquire(|| false);
        let order = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for number in 0..20 {
                let (limit, order) = (&limit, &order);
                scope.spawn(move || {
                    limit.acquire(|| false);
                    order.lock().unwrap().push(number);
                    limit.release();
                });
                wait_until_present(limit, number + 2);
            }
            limit.release();
        });
        let expected: Vec<_> = (0..20).collect();
        assert_eq!(order.into_inner().unwrap(), expected);
    }

    #[test]
    fn a_thread_that_has_a_connection_evicted_acquires_in_its_place() {
        let limit = ConnectionLimit::new(2);
        (0..2).for_each(|_| limit.acquire(|| false));
        let come = || {
            let evicted = AtomicUsize::new(0);
            limit.acquire(|| {
                evicted.fetch_add(1, Ordering::SeqCst);
                limit.release();
                true
            });
            evicted.into_inner()
        };
        let evicted = std::thread::scope(|scope| {
            let threads = [(); 2].map(|()| scope.spawn(come));
            threads.map(|thread| thread.join().unwrap())
        });
        assert_eq!(evicted, [1, 1]);
    }
}
