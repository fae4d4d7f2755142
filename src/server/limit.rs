//! The limit on connections: a counting semaphore with a queue.
//!
//! At the limit `acquire` waits. If no connection ends within [`PATIENCE`], it evicts an idle one. Threads
//! acquire in the order in which they ask: each draws a ticket. At most one for each listener asks at a time
//! ([`Acceptor`](crate::server::acceptor::Acceptor)), and the tickets keep those of one family from always
//! overtaking the other.

use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

use crate::lock::unpoisoned;

/// Time to wait for a connection to end before an idle one is evicted.
pub const PATIENCE: Duration = Duration::from_millis(10);

/// Time to wait for an evicted connection to end before the next one is evicted.
pub const EVICTION_TIMEOUT: Duration = Duration::from_millis(300);

/// A limit on connections.
#[derive(Debug)]
pub struct ConnectionLimit {
    size: usize,
    state: Mutex<State>,
    /// Signals a release, or the next ticket.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Acquired and not released: the connections that are open.
    open: usize,
    /// Number of releases so far.
    releases: usize,
    /// The next ticket to draw.
    next_ticket: usize,
    /// The ticket whose thread acquires next.
    now_serving: usize,
    /// Threads that wait at the condition variable.
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

    /// The largest number of connections.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Connections that are open, and threads that wait in [`ConnectionLimit::acquire`].
    pub fn in_use(&self) -> usize {
        let state = self.lock();
        state.open + (state.next_ticket - state.now_serving)
    }

    /// Waits in the queue, and at the limit until a connection ends; then counts one more. `evict` ends an
    /// idle connection, and returns `false` if none is idle.
    pub fn acquire(&self, evict: impl Fn() -> bool) {
        let mut state = self.lock();
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        state = self.wait_while(state, Duration::MAX, |state| state.now_serving != ticket);
        let is_full = |state: &State| state.open >= self.size;
        let mut timeout = PATIENCE;
        loop {
            state = self.wait_while(state, timeout, is_full);
            if !is_full(&state) {
                break;
            }
            drop(state);
            timeout = if evict() { EVICTION_TIMEOUT } else { PATIENCE };
            state = self.lock();
        }
        state.open += 1;
        state.now_serving += 1;
        self.notify(&state);
    }

    /// Counts one connection less.
    pub fn release(&self) {
        let mut state = self.lock();
        state.open -= 1;
        state.releases += 1;
        self.notify(&state);
    }

    /// The number of releases so far, for [`ConnectionLimit::wait_for_release`].
    pub fn releases(&self) -> usize {
        self.lock().releases
    }

    /// Waits for a release after the first `seen`; returns `false` after the time-out.
    pub fn wait_for_release(&self, seen: usize, timeout: Duration) -> bool {
        let state = self.wait_while(self.lock(), timeout, |state| state.releases == seen);
        state.releases != seen
    }

    fn wait_while<'s>(
        &self,
        mut state: MutexGuard<'s, State>,
        timeout: Duration,
        condition: impl Fn(&State) -> bool,
    ) -> MutexGuard<'s, State> {
        state.waiting += 1;
        let waited = self
            .changed
            .wait_timeout_while(state, timeout, |state| condition(state));
        let (mut state, _) = unpoisoned(waited);
        state.waiting -= 1;
        state
    }

    /// Wakes the threads that wait. Without any, it saves the system call.
    fn notify(&self, state: &State) {
        if state.waiting > 0 {
            self.changed.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        unpoisoned(self.state.lock())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Instant;

    use super::*;

    fn wait_until_in_use(limit: &ConnectionLimit, count: usize) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while limit.in_use() != count {
            assert!(Instant::now() < deadline, "{limit:?}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn the_limit_is_never_exceeded_and_every_thread_acquires() {
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
        assert_eq!((visits.into_inner(), limit.in_use()), (80_000, 0));
    }

    #[test]
    fn threads_acquire_in_the_order_in_which_they_ask() {
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
                wait_until_in_use(limit, number + 2);
            }
            limit.release();
        });
        let expected: Vec<_> = (0..20).collect();
        assert_eq!(order.into_inner().unwrap(), expected);
    }

    #[test]
    fn a_thread_that_evicts_a_connection_acquires_in_its_place() {
        let limit = ConnectionLimit::new(2);
        (0..2).for_each(|_| limit.acquire(|| false));
        let acquire = || {
            let evicted = AtomicUsize::new(0);
            limit.acquire(|| {
                evicted.fetch_add(1, Ordering::SeqCst);
                limit.release();
                true
            });
            evicted.into_inner()
        };
        let evicted = std::thread::scope(|scope| {
            let threads = [(); 2].map(|()| scope.spawn(acquire));
            threads.map(|thread| thread.join().unwrap())
        });
        assert_eq!(evicted, [1, 1]);
    }
}
