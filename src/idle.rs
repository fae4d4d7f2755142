//! Connections that wait between two requests, so that somebody else can end them.
//!
//! A connection takes its thread's seat while it waits. Whoever clears the seats ends only
//! connections that sit in one: under the seat's lock, so that the descriptor is still theirs.

use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::socket::{Shutdown, shutdown};

/// The seat of one thread: the descriptor of the connection that waits in it.
#[derive(Debug, Default)]
pub struct Seat(Mutex<Option<RawFd>>);

impl Seat {
    /// The connection waits from here on.
    pub fn take(&self, descriptor: RawFd) {
        *lock(&self.0) = Some(descriptor);
    }

    /// The connection does not wait any more.
    pub fn leave(&self) {
        *lock(&self.0) = None;
    }

    /// Ends the connection that waits here, if there is one: what it has received already can
    /// still be read, then it reads the end.
    fn clear(&self) {
        if let Some(descriptor) = *lock(&self.0) {
            // A client that is gone already (ENOTCONN) needs no ending.
            let _ = shutdown(descriptor, Shutdown::Read);
        }
    }
}

/// The seats of all threads.
#[derive(Debug, Default)]
pub struct Seats(Mutex<Vec<Arc<Seat>>>);

impl Seats {
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
        lock(&self.0).iter().for_each(|seat| seat.clear());
    }
}

/// What the locks guard is whole at any moment, also after a panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
