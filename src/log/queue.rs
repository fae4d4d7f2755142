//! A bounded queue of log lines between the threads that log and the writer thread. The writer takes
//! many lines at once: a system call for each would be the largest cost of a request.
//!
//! The queue knows neither the format of a line nor where it is written. If the writer is blocked, the
//! queue fills; then a thread either waits or discards its line. A flush gives up after a time limit.

use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use crate::lock::unpoisoned;
use crate::log::buffer::Buffer;

/// The capacity of the queue, in bytes. The batch that is being written may have as many again.
const CAPACITY: usize = 256 * 1024;

/// The size of the queue, in bytes, at which the writer does not wait for more lines.
const BATCH: usize = CAPACITY / 2;

/// The longest time for which the writer waits for more lines.
const BATCH_DELAY: Duration = Duration::from_millis(4);

/// The time after which a flush looks at the progress again.
const FLUSH_POLL: Duration = Duration::from_millis(1);

/// The time without a write after which a flush gives up.
const STALL: Duration = Duration::from_secs(1);

/// The longest time that a flush takes, even if lines are being written.
const MAX_FLUSH: Duration = Duration::from_secs(2);

/// What a thread does with a line for which the queue has no space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// It waits for space.
    Block,
    /// It discards the line, and the queue counts it.
    Discard,
}

/// The queue.
#[derive(Debug)]
pub struct LogQueue {
    lines: Mutex<Lines>,
    /// Notified when the first line is queued, and when `BATCH` bytes are.
    not_empty: Condvar,
    /// Notified when the writer has taken the lines.
    not_full: Condvar,
    /// The bytes that were written since the start.
    bytes_written: AtomicU64,
}

#[derive(Debug)]
struct Lines {
    queued: Buffer,
    /// The bytes that were queued since the start.
    bytes_queued: u64,
    /// The lines that were discarded since the last one that was queued.
    lost: u64,
}

impl Lines {
    /// Whether there is no space for the longest line, which has `PIPE_BUF` bytes.
    fn is_full(&self) -> bool {
        self.queued.len() + libc::PIPE_BUF > CAPACITY
    }
}

impl LogQueue {
    /// A queue without lines.
    pub const fn empty() -> LogQueue {
        LogQueue {
            lines: Mutex::new(Lines {
                queued: Buffer::EMPTY,
                bytes_queued: 0,
                lost: 0,
            }),
            not_empty: Condvar::new(),
            not_full: Condvar::new(),
            bytes_written: AtomicU64::new(0),
        }
    }

    /// Calls `append` with the buffer of the queue and the number of lines that were discarded just
    /// before, unless this line is discarded.
    pub fn push(&self, when_full: WhenFull, append: impl FnOnce(&mut Buffer, u64)) {
        let mut lines = self.lock();
        while lines.is_full() {
            if when_full == WhenFull::Discard {
                lines.lost += 1;
                return;
            }
            lines = unpoisoned(self.not_full.wait(lines));
        }
        let before = lines.queued.len();
        let lost = mem::take(&mut lines.lost);
        append(&mut lines.queued, lost);
        let after = lines.queued.len();
        lines.bytes_queued += (after - before) as u64;
        if before == 0 || (before < BATCH && after >= BATCH) {
            self.not_empty.notify_one();
        }
    }

    /// Passes lines to `write` as they are queued, forever: whole lines, at most `max_write` bytes at
    /// once.
    pub fn write_lines(&self, max_write: usize, mut write: impl FnMut(&[u8])) -> ! {
        let mut batch = Buffer::EMPTY;
        loop {
            self.take_batch(&mut batch);
            for lines in split_lines(batch.bytes(), max_write) {
                write(lines);
                let length = lines.len() as u64;
                self.bytes_written.fetch_add(length, Ordering::Relaxed);
            }
            batch.resize(0);
        }
    }

    /// Waits for lines, then for more of them, and moves them into the empty `batch`.
    fn take_batch(&self, batch: &mut Buffer) {
        let is_empty = |lines: &mut Lines| lines.queued.is_empty();
        let is_small = |lines: &mut Lines| lines.queued.len() < BATCH;
        let lines = unpoisoned(self.not_empty.wait_while(self.lock(), is_empty));
        let waited = self
            .not_empty
            .wait_timeout_while(lines, BATCH_DELAY, is_small);
        let mut lines = unpoisoned(waited).0;
        mem::swap(&mut lines.queued, batch);
        drop(lines);
        self.not_full.notify_all();
    }

    /// Waits until the lines that are queued now are written. Gives up if nothing is written for
    /// `STALL`, and after `MAX_FLUSH`.
    pub fn flush(&self) {
        let last = self.lock().bytes_queued;
        let start = Instant::now();
        let mut written = self.bytes_written.load(Ordering::Relaxed);
        let mut progress = start;
        while written < last && progress.elapsed() < STALL && start.elapsed() < MAX_FLUSH {
            thread::sleep(FLUSH_POLL);
            let now = self.bytes_written.load(Ordering::Relaxed);
            if now != written {
                (written, progress) = (now, Instant::now());
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        unpoisoned(self.lines.lock())
    }
}

/// Splits lines into parts of whole lines, each of at most `max` bytes. A longer line is split, too.
fn split_lines(mut lines: &[u8], max: usize) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let fits = lines.get(..max).unwrap_or(lines);
        let end = fits.iter().rposition(|byte| *byte == b'\n');
        let (part, rest) = lines.split_at(end.map_or(fits.len(), |end| end + 1));
        lines = rest;
        (!part.is_empty()).then_some(part)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::sync::mpsc;

    use super::*;

    /// Fills a queue, and returns the number of lines that it accepted.
    fn fill(queue: &LogQueue) -> usize {
        let mut accepted = 0;
        for _ in 0..2 * CAPACITY / 1000 {
            queue.push(WhenFull::Discard, |lines, _| {
                accepted += 1;
                lines.push(&[b'\n'; 1000]);
            });
        }
        accepted
    }

    #[test]
    fn the_line_after_lost_lines_gets_their_number() {
        static QUEUE: LogQueue = LogQueue::empty();
        let lost = (2 * CAPACITY / 1000 - fill(&QUEUE)) as u64;
        assert!(lost > 0);
        thread::spawn(|| QUEUE.write_lines(usize::MAX, |_| {}));
        let numbers = [(); 2].map(|()| {
            let mut number = 0;
            QUEUE.push(WhenFull::Block, |lines, lost| {
                number = lost;
                lines.push(b"\n");
            });
            number
        });
        assert_eq!(numbers, [lost, 0]);
    }

    #[test]
    fn a_flush_gives_up_when_nothing_is_written() {
        static QUEUE: LogQueue = LogQueue::empty();
        fill(&QUEUE);
        let stuck = |_: &[u8]| thread::sleep(Duration::from_secs(3600));
        thread::spawn(move || QUEUE.write_lines(usize::MAX, stuck));
        let start = Instant::now();
        QUEUE.flush();
        assert!(start.elapsed() >= STALL);
    }

    #[test]
    fn a_flush_waits_while_something_is_written() {
        static QUEUE: LogQueue = LogQueue::empty();
        fill(&QUEUE);
        let written = AtomicU64::new(0);
        let written: &'static AtomicU64 = Box::leak(Box::new(written));
        let slow = |lines: &[u8]| {
            thread::sleep(STALL / 50);
            written.fetch_add(lines.len() as u64, Ordering::SeqCst);
        };
        let queued = QUEUE.lock().queued.len() as u64;
        thread::spawn(move || QUEUE.write_lines(CAPACITY / 12, slow));
        QUEUE.flush();
        assert_eq!(written.load(Ordering::SeqCst), queued);
    }

    #[test]
    fn a_flush_gives_up_when_lines_are_written_too_slowly() {
        static QUEUE: LogQueue = LogQueue::empty();
        fill(&QUEUE);
        let slow = |_: &[u8]| thread::sleep(STALL / 4);
        thread::spawn(move || QUEUE.write_lines(CAPACITY / 64, slow));
        let start = Instant::now();
        QUEUE.flush();
        let took = start.elapsed();
        assert!(took >= MAX_FLUSH && took < 2 * MAX_FLUSH, "{took:?}");
    }

    #[test]
    fn a_flush_ends_while_other_threads_log_without_end() {
        static QUEUE: LogQueue = LogQueue::empty();
        static IS_OVER: AtomicBool = AtomicBool::new(false);
        thread::spawn(|| QUEUE.write_lines(usize::MAX, |_| {}));
        let log = || {
            while !IS_OVER.load(Ordering::SeqCst) {
                QUEUE.push(WhenFull::Block, |lines, _| lines.push(&[b'\n'; 1000]));
            }
        };
        (0..2).for_each(|_| drop(thread::spawn(log)));
        let (sender, flushed) = mpsc::channel();
        thread::spawn(move || {
            (0..10).for_each(|_| QUEUE.flush());
            sender.send(())
        });
        let in_time = flushed.recv_timeout(Duration::from_secs(10));
        IS_OVER.store(true, Ordering::SeqCst);
        assert_eq!(in_time, Ok(()));
    }

    #[test]
    fn a_part_is_as_many_whole_lines_as_a_pipe_takes_at_once() {
        let line = |length: usize| format!("{}\n", "x".repeat(length - 1));
        let lines = [line(4000), line(96), line(1), line(5000), line(7)].concat();
        let lengths: Vec<usize> = split_lines(lines.as_bytes(), libc::PIPE_BUF)
            .map(<[u8]>::len)
            .collect();
        assert_eq!(lengths, [4096, 1, 4096, 904 + 7]);
        assert_eq!(
            split_lines(lines.as_bytes(), libc::PIPE_BUF)
                .collect::<Vec<_>>()
                .concat(),
            lines.as_bytes()
        );
        assert_eq!(split_lines(b"", libc::PIPE_BUF).count(), 0);
    }
}
