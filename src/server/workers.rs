//! The threads that wait for clients, counted: there is one whenever one can be had.

use std::io;
use std::sync::{Mutex, MutexGuard};

use crate::lock::unpoisoned;

/// The number of threads that wait for a client.
#[derive(Debug, Default)]
pub struct IdleWorkers {
    waiting: Mutex<usize>,
}

impl IdleWorkers {
    /// Counts the calling thread, which is about to wait.
    pub fn add(&self) {
        *self.waiting() += 1;
    }

    /// Counts the calling thread no more: it serves from here on. If it was the last, `spawn` starts
    /// another, which counts at once.
    ///
    /// # Errors
    /// The error of `spawn`: no thread waits then.
    pub fn remove(&self, spawn: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut waiting = self.waiting();
        *waiting -= 1;
        ensure_one(&mut waiting, spawn)
    }

    /// Has `spawn` start a thread if none waits. The lock is held meanwhile, and no thread that has served
    /// can be added: a thread that may yet fail to start is never taken for one that waits.
    ///
    /// # Errors
    /// The error of `spawn`: no thread waits then.
    pub fn ensure_one(&self, spawn: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        ensure_one(&mut self.waiting(), spawn)
    }

    /// Counts the calling thread no more, unless it is the last; returns whether it may end.
    pub fn retire(&self) -> bool {
        let mut waiting = self.waiting();
        let is_spare = *waiting > 1;
        *waiting -= usize::from(is_spare);
        is_spare
    }

    fn waiting(&self) -> MutexGuard<'_, usize> {
        unpoisoned(self.waiting.lock())
    }
}

fn ensure_one(waiting: &mut usize, spawn: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    if *waiting == 0 {
        spawn()?;
        *waiting = 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_may_yet_fail_to_start_is_not_taken_for_one_that_waits() {
        let workers = IdleWorkers::default();
        let fail = || {
            assert!(workers.waiting.try_lock().is_err(), "others cannot look");
            Err(io::Error::from_raw_os_error(libc::EAGAIN))
        };
        assert!(workers.ensure_one(fail).is_err());
        assert!(workers.ensure_one(fail).is_err());
        workers.add();
        assert!(workers.remove(fail).is_err());
        assert!(workers.ensure_one(fail).is_err());
    }

    #[test]
    fn the_last_thread_that_waits_has_another_started_before_it_serves() {
        let workers = IdleWorkers::default();
        let mut started = 0;
        let mut start = || {
            started += 1;
            Ok(())
        };
        workers.ensure_one(&mut start).unwrap();
        workers.ensure_one(&mut start).unwrap();
        workers.add();
        workers.remove(&mut start).unwrap();
        workers.remove(&mut start).unwrap();
        assert_eq!(started, 2);
        assert!(!workers.retire());
        workers.add();
        assert!(workers.retire() && !workers.retire());
    }
}
