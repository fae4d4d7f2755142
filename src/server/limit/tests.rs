//! Tests of the limit.

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
    let before = Instant::now();
    limit.make_way(seen, 1);
    assert!(before.elapsed() >= RETRY);
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
