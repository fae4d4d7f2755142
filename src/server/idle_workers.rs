//! The count of idle workers: threads that wait for a client, or at the limit. There is at least one whenever
//! the kernel lets a thread start.

use std::io;
use std::sync::{Mutex, MutexGuard};

use crate::lock::unpoisoned;

/// The number of idle workers.
#[derive(Debug, Default)]
pub struct IdleWorkers(Mutex<usize>);

impl IdleWorkers {
    /// Counts the calling thread, which is about to wait.
    pub fn add(&self) {
        *self.lock() += 1;
    }

    /// Counts the calling thread no more, which is about to serve. If it was the last, `spawn` starts
    /// another, which is counted at once.
    ///
    /// # Errors
    /// The error of `spawn`; then no worker is idle.
    pub fn remove(&self, spawn: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut count = self.lock();
        *count -= 1;
        ensure_one(&mut count, spawn)
    }

    /// Starts a worker with `spawn` if none is idle. The lock is held meanwhile, so that no other thread
    /// counts on a worker that may yet fail to start.
    ///
    /// # Errors
    /// The error of `spawn`; then no worker is idle.
    pub fn ensure_one(&self, spawn: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        ensure_one(&mut self.lock(), spawn)
    }

    /// Counts the calling thread no more, unless it is the last; returns whether it may end.
    pub fn retire(&self) -> bool {
        let mut count = self.lock();
        let is_spare = *count > 1;
        *count -= usize::from(is_spare);
        is_spare
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        unpoisoned(self.0.lock())
    }
}

fn ensure_one(count: &mut usize, spawn: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    if *count == 0 {
        spawn()?;
        *count = 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_may_yet_fail_to_start_is_not_counted() {
        let workers = IdleWorkers::default();
        let fail = || {
            assert!(workers.0.try_lock().is_err(), "the lock is held");
            Err(io::Error::from_raw_os_error(libc::EAGAIN))
        };
        assert!(workers.ensure_one(fail).is_err());
        assert!(workers.ensure_one(fail).is_err());
        workers.add();
        assert!(workers.remove(fail).is_err());
        assert!(workers.ensure_one(fail).is_err());
    }

    #[test]
    fn the_last_idle_worker_starts_another_before_it_serves() {
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
