//! The limit on connections, and the workers that serve them: one lock, a condition variable for releases, and one in
//! each slot for a delayed response.
//!
//! A worker acquires a place before it accepts a client, and serves it once another worker is idle, to wait for
//! the next one. At a shortage it evicts as many connections as clients wait, and waits for a release. A
//! request that is not delayed takes no lock: see [`Slot`].

#[cfg(test)]
mod tests;

use std::io;
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::lock::unpoisoned;
use crate::server::counts::{Counts, Shortage};
use crate::server::eviction;
use crate::server::parked::Slot;

/// Time after which a worker that waits looks again: other connections may give way by then.
const RETRY: Duration = Duration::from_millis(10);

/// A function that starts a worker with this slot, beside as many others.
pub trait Spawn: FnOnce(Arc<Slot>, usize) -> io::Result<()> {}
impl<F: FnOnce(Arc<Slot>, usize) -> io::Result<()>> Spawn for F {}

/// A limit on connections.
#[derive(Debug)]
pub struct ConnectionLimit {
    size: usize,
    start: Instant,
    state: Mutex<State>,
    /// Signals a release.
    released: Condvar,
}

#[derive(Debug, Default)]
struct State {
    counts: Counts,
    /// The slots of all workers.
    slots: Vec<Arc<Slot>>,
    /// Number of releases so far.
    releases: usize,
    /// Whether a thread may wait for a release.
    has_waiting: bool,
}

impl ConnectionLimit {
    /// A limit of `size` connections.
    pub fn new(size: usize) -> ConnectionLimit {
        ConnectionLimit {
            size,
            start: Instant::now(),
            state: Mutex::default(),
            released: Condvar::new(),
        }
    }

    /// The largest number of connections.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Connections that are open.
    pub fn open(&self) -> usize {
        self.lock().counts.open
    }

    /// The slot of a worker to which the limit does not apply: its connections are never evicted.
    pub fn unlimited_slot(&self) -> Slot {
        Slot::new(self.start)
    }

    /// Starts a worker with `spawn` if none is idle.
    ///
    /// # Errors
    /// The error of `spawn`.
    pub fn ensure_idle_worker(&self, spawn: impl Spawn) -> io::Result<()> {
        let state = &mut *self.lock();
        if state.counts.idle == 0 {
            start_worker(&mut state.slots, self.start, spawn)?;
            state.counts.idle = 1;
        }
        Ok(())
    }

    /// Acquires a place for the next client of an idle worker, or says why it has to wait.
    ///
    /// # Errors
    /// The shortage, and the number of releases so far, for [`ConnectionLimit::make_way`].
    pub fn acquire(&self) -> Result<(), (Shortage, usize)> {
        let state = &mut *self.lock();
        let acquired = state.counts.acquire(self.size);
        acquired.map_err(|shortage| (shortage, state.releases))
    }

    /// Lets an idle worker serve the client in its place. The lock is held while `spawn` starts another one, so
    /// that no other thread counts on a worker that may yet fail to start.
    ///
    /// # Errors
    /// The shortage, and the number of releases so far, for [`ConnectionLimit::make_way`].
    pub fn occupy(&self, spawn: impl Spawn) -> Result<(), (Shortage, usize)> {
        let state = &mut *self.lock();
        let State { counts, slots, .. } = state;
        let occupied = counts.occupy(|| start_worker(slots, self.start, spawn));
        occupied.map_err(|shortage| (shortage, state.releases))
    }

    /// Gives back a place for which there is no client.
    pub fn cancel(&self) {
        self.give_back(Counts::cancel);
    }

    /// Gives back the place of a connection, which is closed.
    pub fn release(&self) {
        self.give_back(Counts::release);
    }

    fn give_back(&self, step: impl FnOnce(&mut Counts)) {
        let mut state = self.lock();
        step(&mut state.counts);
        state.releases += 1;
        if mem::take(&mut state.has_waiting) {
            self.released.notify_all();
        }
    }

    /// The number of releases so far, for [`ConnectionLimit::make_way`].
    pub fn releases(&self) -> usize {
        self.lock().releases
    }

    /// Evicts connections for this number of clients, if some may give way, and waits for a release after the
    /// first `seen`, for up to [`RETRY`].
    pub fn make_way(&self, seen: usize, waiting: usize) {
        self.evict(waiting);
        self.wait(seen, RETRY);
    }

    /// Waits for a release after the first `seen`, for up to this time. Without one, evictions are forgotten.
    fn wait(&self, seen: usize, time: Duration) {
        let mut state = self.lock();
        state.has_waiting = true;
        let waited = self
            .released
            .wait_timeout_while(state, time, |state| state.releases == seen);
        state = unpoisoned(waited).0;
        if state.releases == seen {
            state.counts.expire();
        }
    }

    /// Evicts connections for this number of clients, if some may give way.
    pub fn evict(&self, waiting: usize) {
        let mut state = self.lock();
        let count = state.counts.to_evict(self.size, waiting);
        if count == 0 {
            return;
        }
        let evicted = eviction::evict(&state.slots, count, self.size, waiting);
        state.counts.evicted += evicted.len();
        drop(state);
        for slot in evicted {
            // Not for all of them at once: each worker that this wakes needs the lock, too.
            let _state = self.lock();
            slot.end();
        }
    }

    /// Evicts all connections that wait for a request to begin.
    pub fn evict_unbegun(&self) {
        let state = self.lock();
        let evicted = state.slots.iter().filter(|slot| slot.evict_unbegun());
        evicted.for_each(|slot| slot.end());
    }

    /// Waits for this time, or until the connection in a slot is evicted: its response is delayed.
    pub fn delay(&self, slot: &Slot, delay: Duration) {
        let state = self.lock();
        slot.park_delayed();
        slot.wait_evicted(state, delay);
    }

    /// Evicts all connections whose responses are delayed: they are sent at once.
    pub fn end_delays(&self) {
        let state = self.lock();
        let evicted = state.slots.iter().filter(|slot| slot.evict_delayed());
        evicted.for_each(|slot| slot.end());
    }

    /// Makes the connection in a slot busy again; returns whether it was evicted.
    pub fn unpark(&self, slot: &Slot) -> bool {
        let is_evicted = !slot.unpark();
        if is_evicted {
            // The thread that evicted it may be about to use its descriptor, under the lock.
            drop(self.lock());
        }
        is_evicted
    }

    /// Removes the slot of an idle worker, which is to end; returns `false` if it is the last idle one.
    pub fn retire(&self, slot: &Arc<Slot>) -> bool {
        let mut state = self.lock();
        let may_end = state.counts.retire();
        if may_end && let Some(at) = state.slots.iter().position(|it| Arc::ptr_eq(it, slot)) {
            state.slots.swap_remove(at);
        }
        may_end
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        unpoisoned(self.state.lock())
    }
}

/// Starts a worker, with a new slot.
fn start_worker(slots: &mut Vec<Arc<Slot>>, start: Instant, spawn: impl Spawn) -> io::Result<()> {
    let slot = Arc::new(Slot::new(start));
    spawn(Arc::clone(&slot), slots.len())?;
    slots.push(slot);
    Ok(())
}
