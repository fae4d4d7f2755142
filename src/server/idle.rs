//! Connections that wait for a request, so that somebody else can end them.
//!
//! A connection takes its thread's seat while it waits. Whoever clears a seat ends only the
//! connection that sits in it: under the seat's lock, so that the descriptor is still its own.

use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use nix::sys::socket::{Shutdown, shutdown};

/// The seat of one thread: the connection that waits in it.
#[derive(Debug, Default)]
pub struct Seat(Mutex<Option<Waiting>>);

#[derive(Debug)]
struct Waiting {
    descriptor: RawFd,
    /// Since when it gives way to others.
    idle: Option<Instant>,
}

impl Waiting {
    /// What it has received already can still be read, then it reads the end.
    fn end(&mut self) {
        self.idle = None;
        // A client that is gone already (ENOTCONN) needs no ending.
        let _ = shutdown(self.descriptor, Shutdown::Read);
    }
}

impl Seat {
    /// The connection waits from here on.
    pub fn take(&self, descriptor: RawFd) {
        *lock(&self.0) = Some(Waiting {
            descriptor,
            idle: None,
        });
    }

    /// The connection gives way to others from here on.
    pub fn rest(&self, now: Instant) {
        if let Some(waiting) = &mut *lock(&self.0) {
            waiting.idle = Some(now);
        }
    }

    /// The connection does not wait any more.
    pub fn leave(&self) {
        *lock(&self.0) = None;
    }

    /// Since when the connection gives way to others, if it does.
    fn idle(&self) -> Option<Instant> {
        lock(&self.0).as_ref()?.idle
    }
}

/// The seats of all threads.
#[derive(Debug, Default)]
pub struct IdleConnections(Mutex<Vec<Arc<Seat>>>);

impl IdleConnections {
    /// A new seat.
    pub fn add(&self) -> Arc<Seat> {
        let seat = Arc::new(Seat::default());
        lock(&self.0).push(Arc::clone(&seat));
        seat
    }

    /// Takes a seat away.
    pub fn remove(&self, seat: &Arc<Seat>) {
        lock(&self.0).retain(|other| !Arc::ptr_eq(other, seat));
    }

    /// Ends every connection that waits.
    pub fn clear(&self) {
        for seat in &*lock(&self.0) {
            if let Some(waiting) = &mut *lock(&seat.0) {
                waiting.end();
            }
        }
    }

    /// Ends the connection that has been idle longest; returns whether one was idle.
    pub fn clear_longest_idle(&self) -> bool {
        let seats = lock(&self.0);
        let idle = |seat| Some((Seat::idle(seat)?, seat));
        let longest = seats
            .iter()
            .filter_map(|seat| idle(seat))
            .min_by_key(|it| it.0);
        if let Some((since, seat)) = longest
            && let Some(waiting) = &mut *lock(&seat.0)
            // It may be busy by now.
            && waiting.idle == Some(since)
        {
            waiting.end();
            return true;
        }
        false
    }
}

/// What the locks guard is whole at any moment, also after a panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_longest_idle_gives_way_first_and_who_is_busy_never() {
        let seats = IdleConnections::default();
        let pairs: Vec<_> = (0..3).map(|_| UnixStream::pair().unwrap()).collect();
        let sitting = pairs.iter().map(|(stream, _)| {
            stream.set_nonblocking(true).unwrap();
            let seat = seats.add();
            seat.take(stream.as_raw_fd());
            seat
        });
        let sitting: Vec<_> = sitting.collect();
        let now = Instant::now();
        sitting[1].rest(now);
        sitting[2].rest(now - Duration::from_millis(1));
        let ended = || -> Vec<bool> {
            let ended = |(stream, _): &(UnixStream, _)| (&*stream).read(&mut [0]).is_ok();
            pairs.iter().map(ended).collect()
        };
        let steps: Vec<_> = (0..3)
            .map(|_| {
                seats.clear_longest_idle();
                ended()
            })
            .collect();
        let expected = [
            [false, false, true],
            [false, true, true],
            [false, true, true],
        ];
        assert_eq!(steps, expected);
    }
}
