//! Connections that have ended, but whose clients have not taken long answers yet. If they were
//! closed at once, the kernel would keep the answers of as many as come, beyond every limit of ours.
//! Most are taken when the next few have ended; those that are not have their deadline.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::server::stream::Stream;

/// For so many connections at once, one that is closing.
const SHARE: usize = 16;

/// Connections that are closing, a limited number.
#[derive(Debug)]
pub struct LingeringConnections {
    size: usize,
    wires: Mutex<Vec<Stream>>,
}

impl LingeringConnections {
    /// How many are closing at most, beside so many connections.
    pub const fn beside(connections: usize) -> usize {
        connections / SHARE + 1
    }

    /// Room for so many.
    pub fn new(size: usize) -> LingeringConnections {
        LingeringConnections {
            size,
            wires: Mutex::new(Vec::new()),
        }
    }

    /// Has a connection closed by the next [`LingeringConnections::sweep`] that finds that it may be. Where too many
    /// are closing, this waits for it.
    pub fn add(&self, wire: Stream) {
        let is_full = self.left() >= self.size;
        if is_full {
            self.sweep();
        }
        let mut wires = self.wires();
        match wires.len() < self.size {
            true => wires.push(wire),
            false => {
                drop(wires);
                wire.close();
            }
        }
    }

    /// Closes those that may be closed; returns how many they were.
    pub fn sweep(&self) -> usize {
        // The kernel closes them without the lock.
        let settled: Vec<Stream> = {
            let mut wires = self.wires();
            wires.extract_if(.., Stream::settle).collect()
        };
        settled.len()
    }

    /// How many are left.
    pub fn left(&self) -> usize {
        self.wires().len()
    }

    /// They are whole at any moment, also after a panic.
    fn wires(&self) -> MutexGuard<'_, Vec<Stream>> {
        self.wires.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
