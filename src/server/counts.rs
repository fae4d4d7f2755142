//! The numbers by which the limit decides, and its decisions. They know no thread, lock or descriptor: `model`, a
//! test, goes through all states of a small server.

#[cfg(test)]
mod model;

use std::io;

/// Largest number of evicted connections that have yet to end, unless the limit is low.
const MAX_BURST: usize = 64;

/// Connections and workers. Each method is one step under the lock.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Counts {
    /// Places that are acquired and not given back.
    pub open: usize,
    /// Workers that wait: for a client, for a place, or for a successor.
    pub idle: usize,
    /// Connections that were evicted to make way, and for which no place was given back yet.
    pub evicted: usize,
}

/// Why a client has to wait.
#[derive(Debug)]
pub enum Shortage {
    /// As many connections are open as the limit allows.
    Places,
    /// No other worker would be idle, and the kernel starts none.
    Workers(io::Error),
}

impl Counts {
    /// Acquires a place for the next client of an idle worker, if fewer than `size` are taken.
    ///
    /// # Errors
    /// [`Shortage::Places`]
    pub fn acquire(&mut self, size: usize) -> Result<(), Shortage> {
        if self.open >= size {
            return Err(Shortage::Places);
        }
        self.open += 1;
        Ok(())
    }

    /// Gives back a place for which there is no client.
    pub fn cancel(&mut self) {
        self.open -= 1;
    }

    /// Lets an idle worker serve the client in its place. If no other one is idle, `spawn` starts another. If that
    /// fails, the worker has to wait, unless there is no other connection, whose end would make one idle.
    ///
    /// # Errors
    /// [`Shortage::Workers`]
    pub fn occupy(&mut self, spawn: impl FnOnce() -> io::Result<()>) -> Result<(), Shortage> {
        if self.idle == 1 {
            match spawn() {
                Ok(()) => self.idle += 1,
                Err(error) if self.open > 1 => return Err(Shortage::Workers(error)),
                Err(_) => {}
            }
        }
        self.idle -= 1;
        Ok(())
    }

    /// Gives back the place of a connection that has ended. Its worker is idle again.
    pub fn release(&mut self) {
        self.open -= 1;
        self.idle += 1;
        self.evicted = self.evicted.saturating_sub(1);
    }

    /// Lets an idle worker end, unless it is the last idle one; returns whether it may.
    pub fn retire(&mut self) -> bool {
        let is_spare = self.idle > 1;
        self.idle -= usize::from(is_spare);
        is_spare
    }

    /// Forgets evictions that freed no place in time: others have to.
    pub fn expire(&mut self) {
        self.evicted = 0;
    }

    /// How many connections may be evicted for `waiting` clients.
    pub fn to_evict(&self, size: usize, waiting: usize) -> usize {
        let burst = (size / 16).clamp(1, MAX_BURST);
        waiting.min(burst).saturating_sub(self.evicted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_connections_are_evicted_as_clients_wait_up_to_a_burst() {
        let evicted = |size, waiting, evicted| {
            let counts = Counts {
                evicted,
                ..Counts::default()
            };
            counts.to_evict(size, waiting)
        };
        assert_eq!(
            [0, 1, 64, 65].map(|it| evicted(1024, it, 0)),
            [0, 1, 64, 64]
        );
        assert_eq!(
            [1, 16, 320, 20_000].map(|it| evicted(it, 100, 0)),
            [1, 1, 20, 64]
        );
        assert_eq!([5, 10, 11].map(|it| evicted(1024, 10, it)), [5, 0, 0]);
        assert_eq!([63, 64].map(|it| evicted(1024, 100, it)), [1, 0]);
    }
}
