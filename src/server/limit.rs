//! The limit on connections, and the workers that serve them: one lock, one condition variable.
//!
//! A worker acquires a place before it accepts a client, and serves it once another worker is idle, to wait for
//! the next one. At a shortage it evicts as many connections as clients wait, and waits for a release. A
//! request takes no lock: see [`Slot`].

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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;
    use std::net::IpAddr;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::thread;

    use nix::unistd::gettid;

    use super::*;
    use crate::server::parked::Progress;

    /// Time after which a test fails.
    const DEADLINE: Duration = Duration::from_secs(20);

    /// More time than any test has.
    const HOUR: Duration = Duration::from_secs(3600);

    fn wait_until(is_so: impl Fn() -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !is_so() {
            assert!(Instant::now() < deadline, "not within {DEADLINE:?}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Starts this number of workers that serve, and an idle one; returns their slots.
    fn start(limit: &ConnectionLimit, serving: usize) -> Vec<Arc<Slot>> {
        let mut slots = Vec::new();
        let mut spawn = |slot, _| {
            slots.push(slot);
            Ok(())
        };
        limit.ensure_idle_worker(&mut spawn).unwrap();
        for _ in 0..serving {
            limit.acquire().unwrap();
            limit.occupy(&mut spawn).unwrap();
        }
        slots
    }

    /// Parks a connection that may give way; returns its streams.
    fn park(slot: &Slot) -> (UnixStream, UnixStream) {
        let pair = UnixStream::pair().unwrap();
        slot.open(pair.0.as_raw_fd(), IpAddr::from([10, 0, 0, 1]));
        slot.park(&Progress {
            answered: 1,
            since: Instant::now() - Duration::from_secs(1),
            received: None,
        });
        pair
    }

    #[test]
    fn the_limit_is_never_exceeded_and_every_worker_gets_a_place() {
        let limit = ConnectionLimit::new(3);
        let (open, served) = (AtomicUsize::new(0), AtomicUsize::new(0));
        for _ in 0..8 {
            limit.lock().counts.idle += 1;
        }
        let work = || {
            for _ in 0..10_000 {
                while let Err((_, seen)) = limit.acquire() {
                    limit.make_way(seen, 1);
                }
                assert!(open.fetch_add(1, Ordering::SeqCst) < 3);
                limit.occupy(|_, _| Ok(())).unwrap();
                open.fetch_sub(1, Ordering::SeqCst);
                limit.release();
                served.fetch_add(1, Ordering::SeqCst);
            }
        };
        thread::scope(|scope| (0..8).for_each(|_| drop(scope.spawn(work))));
        assert_eq!((served.into_inner(), limit.open()), (80_000, 0));
    }

    #[test]
    fn a_worker_that_may_yet_fail_to_start_is_not_counted() {
        let limit = ConnectionLimit::new(3);
        let fail = |_, _| {
            assert!(limit.state.try_lock().is_err(), "the lock is held");
            Err(io::Error::from_raw_os_error(libc::EAGAIN))
        };
        assert!(limit.ensure_idle_worker(fail).is_err());
        let state = limit.lock();
        assert_eq!((state.counts.idle, state.slots.len()), (0, 0));
    }

    #[test]
    fn each_release_is_told_to_all_that_wait() {
        let limit = Arc::new(ConnectionLimit::new(2));
        let _slots = start(&limit, 1);
        limit.acquire().unwrap();
        let (returned, returns) = mpsc::channel();
        for release in [ConnectionLimit::cancel, ConnectionLimit::release] {
            let (_, seen) = limit.acquire().unwrap_err();
            for _ in 0..2 {
                // It is set again, under the lock, once this thread waits, too.
                limit.lock().has_waiting = false;
                let (shared, returned) = (Arc::clone(&limit), returned.clone());
                thread::spawn(move || {
                    shared.wait(seen, HOUR);
                    returned.send(())
                });
                wait_until(|| limit.lock().has_waiting);
            }
            release(&limit);
            for _ in 0..2 {
                returns.recv_timeout(DEADLINE).expect("it was told");
            }
            // One that has yet to wait when the release comes does not wait.
            let (shared, returned) = (Arc::clone(&limit), returned.clone());
            thread::spawn(move || {
                shared.wait(seen, HOUR);
                shared.acquire().unwrap();
                returned.send(())
            });
            returns.recv_timeout(DEADLINE).expect("it was told");
        }
    }

    #[test]
    fn as_many_connections_are_evicted_as_clients_wait_and_no_more_before_these_end() {
        let limit = ConnectionLimit::new(64);
        let slots = start(&limit, 3);
        let pairs: Vec<_> = slots[..3].iter().map(|slot| park(slot)).collect();
        limit.evict(2);
        limit.evict(2);
        let has_ended = |(stream, _): &(UnixStream, UnixStream)| {
            stream.set_nonblocking(true).unwrap();
            (&*stream).read(&mut [0]).is_ok()
        };
        assert_eq!(pairs.iter().filter(|it| has_ended(it)).count(), 2);
        let is_evicted = slots[..3].iter().filter(|slot| limit.unpark(slot));
        assert_eq!((is_evicted.count(), limit.lock().counts.evicted), (2, 2));
        limit.release();
        assert_eq!(limit.lock().counts.evicted, 1);
    }

    #[test]
    fn evictions_without_a_release_in_time_are_forgotten_and_others_are_evicted() {
        let limit = ConnectionLimit::new(1);
        let slots = start(&limit, 1);
        let _pair = park(&slots[0]);
        limit.lock().counts.evicted = 1;
        let (_, seen) = limit.acquire().unwrap_err();
        limit.make_way(seen, 1);
        assert!(!limit.unpark(&slots[0]));
        let _pair = park(&slots[0]);
        limit.make_way(seen, 1);
        assert!(limit.unpark(&slots[0]));

        limit.release();
        limit.lock().counts.evicted = 1;
        limit.make_way(seen, 1);
        assert_eq!(limit.lock().counts.evicted, 1, "there was a release");
    }

    #[test]
    fn an_evicted_connection_stays_open_while_its_descriptor_may_be_used() {
        let limit = ConnectionLimit::new(1);
        let slots = start(&limit, 1);
        let _pair = park(&slots[0]);
        limit.evict(1);
        let state = limit.lock();
        let (sender, receiver) = mpsc::channel();
        thread::scope(|scope| {
            let worker = scope.spawn(|| {
                sender.send(gettid()).unwrap();
                limit.unpark(&slots[0])
            });
            let stat = format!("/proc/self/task/{}/stat", receiver.recv().unwrap());
            let sleeps = || fs::read_to_string(&stat).is_ok_and(|it| it.contains(") S "));
            wait_until(|| sleeps() || worker.is_finished());
            assert!(!worker.is_finished(), "it waits for the lock");
            drop(state);
            assert!(worker.join().unwrap(), "it was evicted");
        });
    }

    #[test]
    fn a_worker_that_retires_leaves_no_slot_and_the_last_idle_one_does_not_retire() {
        let limit = ConnectionLimit::new(2);
        let slots = start(&limit, 2);
        assert!(!limit.retire(&slots[2]));
        limit.release();
        limit.release();
        let retired = [1, 0, 2].map(|at: usize| limit.retire(&slots[at]));
        assert_eq!(retired, [true, true, false]);
        let state = limit.lock();
        assert!(matches!(&state.slots[..], [slot] if Arc::ptr_eq(slot, &slots[2])));
    }
}
