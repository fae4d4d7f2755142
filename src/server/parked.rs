//! Connections whose workers wait for a request, so that another thread can end them: the longest-idle one
//! at the limit, all of them at a stop.
//!
//! Each worker has a slot, in which it parks its connection while it waits. Another thread uses the
//! descriptor only under the slot's lock, so that the descriptor still belongs to that connection.

use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use nix::sys::socket::{Shutdown, shutdown};

use crate::lock::unpoisoned;

/// The slot of one worker. It holds a connection while the worker waits for a request.
#[derive(Debug, Default)]
pub struct Slot(Mutex<Option<Parked>>);

#[derive(Debug)]
struct Parked {
    descriptor: RawFd,
    /// When the connection became idle; `None` if it may not be evicted.
    idle_since: Option<Instant>,
}

impl Parked {
    /// Ends the connection: its worker reads what has arrived, and then the end of the stream.
    fn shut_down(&mut self) {
        self.idle_since = None;
        // Fails with ENOTCONN if the client has gone.
        let _ = shutdown(self.descriptor, Shutdown::Read);
    }
}

impl Slot {
    /// Parks a connection. It cannot be evicted yet.
    pub fn park(&self, descriptor: RawFd) {
        *self.lock() = Some(Parked {
            descriptor,
            idle_since: None,
        });
    }

    /// Lets the parked connection be evicted from now on.
    pub fn set_idle(&self, now: Instant) {
        if let Some(parked) = &mut *self.lock() {
            parked.idle_since = Some(now);
        }
    }

    /// Removes the connection from the slot.
    pub fn unpark(&self) {
        *self.lock() = None;
    }

    fn idle_since(&self) -> Option<Instant> {
        self.lock().as_ref()?.idle_since
    }

    fn lock(&self) -> MutexGuard<'_, Option<Parked>> {
        unpoisoned(self.0.lock())
    }
}

/// The slots of all workers.
#[derive(Debug, Default)]
pub struct ParkedConnections(Mutex<Vec<Arc<Slot>>>);

impl ParkedConnections {
    /// Adds a slot for a worker.
    pub fn add_slot(&self) -> Arc<Slot> {
        let slot = Arc::new(Slot::default());
        self.lock().push(Arc::clone(&slot));
        slot
    }

    /// Removes the slot of a worker that ends.
    pub fn remove_slot(&self, slot: &Arc<Slot>) {
        self.lock().retain(|other| !Arc::ptr_eq(other, slot));
    }

    /// Ends every parked connection.
    pub fn shut_down_all(&self) {
        for slot in &*self.lock() {
            if let Some(parked) = &mut *slot.lock() {
                parked.shut_down();
            }
        }
    }

    /// Ends the connection that has been idle longest; returns `false` if none is idle.
    pub fn evict_oldest(&self) -> bool {
        let slots = self.lock();
        let idle = slots
            .iter()
            .filter_map(|slot| Some((slot.idle_since()?, slot)));
        if let Some((since, slot)) = idle.min_by_key(|(since, _)| *since)
            && let Some(parked) = &mut *slot.lock()
            // A request may have arrived since the search.
            && parked.idle_since == Some(since)
        {
            parked.shut_down();
            return true;
        }
        false
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Slot>>> {
        unpoisoned(self.0.lock())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_longest_idle_connection_is_evicted_first_and_a_busy_one_never() {
        let connections = ParkedConnections::default();
        let pairs: Vec<_> = (0..3).map(|_| UnixStream::pair().unwrap()).collect();
        let slots = pairs.iter().map(|(stream, _)| {
            stream.set_nonblocking(true).unwrap();
            let slot = connections.add_slot();
            slot.park(stream.as_raw_fd());
            slot
        });
        let slots: Vec<_> = slots.collect();
        let now = Instant::now();
        slots[1].set_idle(now);
        slots[2].set_idle(now - Duration::from_millis(1));
        let ended = || -> Vec<bool> {
            let ended = |(stream, _): &(UnixStream, _)| (&*stream).read(&mut [0]).is_ok();
            pairs.iter().map(ended).collect()
        };
        let steps: Vec<_> = (0..3)
            .map(|_| {
                connections.evict_oldest();
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
