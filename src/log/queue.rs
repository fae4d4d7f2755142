//! A bounded queue of log lines between the threads that log and the writer thread. The writer takes
//! many lines at once: a system call for each would be the largest cost of a request.
//!
//! The queue knows neither the format of a line nor where it is written. If the writer is slow, the queue
//! fills; then a thread either waits until lines are written, or discards its line at once. If a thread has
//! waited too long, the writer is stuck: no thread waits any more until half of the queue is written. The queue
//! counts what is lost, and the writer says how much. A flush gives up after a time limit.

use std::collections::VecDeque;
use std::mem;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use crate::lock::unpoisoned;
use crate::log::buffer::Buffer;

/// The capacity of the queue, in bytes that are not written. What is being written is part of it.
const CAPACITY: usize = 2 * 1024 * 1024;

/// The size of a block, in bytes. There is one, unless the writer does not keep up.
const BLOCK: usize = 256 * 1024;

/// The space for a line, in bytes.
const LINE: usize = libc::PIPE_BUF;

/// The size of the queue, in bytes, at which the writer does not wait for more lines.
const BATCH: usize = BLOCK / 2;

/// The longest time for which the writer waits for more lines.
const BATCH_DELAY: Duration = Duration::from_millis(4);

/// The longest time for which a thread waits for space. After it the writer is stuck.
const STUCK: Duration = Duration::from_secs(1);

/// The time after which a flush looks at the progress again.
const FLUSH_POLL: Duration = Duration::from_millis(1);

/// The time without a write after which a flush gives up.
const STALL: Duration = Duration::from_secs(1);

/// The longest time that a flush takes, even if lines are being written.
pub const MAX_FLUSH: Duration = Duration::from_secs(5);

/// What a thread does with a line for which the queue has no space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// It waits for space, for at most `STUCK`, and not at all while the writer is stuck. Then it discards
    /// the line.
    Block,
    /// It discards the line.
    Discard,
    /// It queues the line beyond the capacity. For a few last lines.
    Exceed,
}

/// The queue.
#[derive(Debug)]
pub struct LogQueue {
    lines: Mutex<Lines>,
    /// Notified when the first line is queued, and when `BATCH` bytes are.
    not_empty: Condvar,
    /// Notified when the queue has space for a line, and when the writer is stuck.
    not_full: Condvar,
    /// The threads that wait for space. Changed under the lock.
    waiting: AtomicUsize,
    /// The queued bytes that were written, or could not be, since the start.
    bytes_written: AtomicU64,
}

#[derive(Debug)]
struct Lines {
    /// The lines that the writer has not taken, the oldest first. The last block is being filled. While there
    /// are none, it may be an empty one, kept for its memory.
    blocks: VecDeque<Buffer>,
    /// The bytes in the blocks.
    length: usize,
    /// The bytes that were queued since the start.
    bytes_queued: u64,
    /// A thread has waited for `STUCK` in vain, and no half of the queue was written since.
    is_stuck: bool,
    /// The lines that were discarded, or could not be written, since the start.
    lost: u64,
}

impl Lines {
    /// The block with space for a line.
    fn block(&mut self) -> &mut Buffer {
        let last = self.blocks.back().map(Buffer::len);
        if last.is_none_or(|length| length + LINE > BLOCK) {
            self.blocks.push_back(Buffer::EMPTY);
        }
        let end = self.blocks.len() - 1;
        &mut self.blocks[end]
    }
}

impl LogQueue {
    /// A queue without lines.
    pub const fn empty() -> LogQueue {
        LogQueue {
            lines: Mutex::new(Lines {
                blocks: VecDeque::new(),
                length: 0,
                bytes_queued: 0,
                is_stuck: false,
                lost: 0,
            }),
            not_empty: Condvar::new(),
            not_full: Condvar::new(),
            waiting: AtomicUsize::new(0),
            bytes_written: AtomicU64::new(0),
        }
    }

    /// Calls `append` with the buffer of the queue, unless this line is discarded.
    pub fn push(&self, when_full: WhenFull, append: impl FnOnce(&mut Buffer)) {
        let mut lines = self.lock();
        if lines.is_stuck {
            lines.is_stuck = self.backlog(&lines) > CAPACITY / 2;
        }
        // Behind those that wait: in turn none of them waits much longer than others.
        let must_wait = self.is_full(&lines) || self.waiting.load(Ordering::SeqCst) > 0;
        if must_wait && when_full == WhenFull::Block && !lines.is_stuck {
            lines = self.wait_for_space(lines);
        }
        if when_full != WhenFull::Exceed && self.is_full(&lines) {
            lines.lost += 1;
            return;
        }
        let block = lines.block();
        let start = block.len();
        append(block);
        let added = block.len() - start;
        let before = lines.length;
        lines.length += added;
        lines.bytes_queued += added as u64;
        if before == 0 || (before < BATCH && lines.length >= BATCH) {
            self.not_empty.notify_one();
        }
        self.wake_next(lines);
    }

    /// The bytes that were queued and are not written.
    fn backlog(&self, lines: &Lines) -> usize {
        (lines.bytes_queued - self.bytes_written.load(Ordering::SeqCst)) as usize
    }

    fn is_full(&self, lines: &Lines) -> bool {
        self.backlog(lines) + LINE > CAPACITY
    }

    /// Waits until a thread that queues a line, or the writer, leaves space for one; for `STUCK` at most. Then the
    /// writer is stuck, and no other thread waits any more.
    #[cold]
    fn wait_for_space<'l>(&'l self, mut lines: MutexGuard<'l, Lines>) -> MutexGuard<'l, Lines> {
        let start = Instant::now();
        // Before the queue is looked at: the writer counts what it has written before it looks for threads.
        let others = self.waiting.fetch_add(1, Ordering::SeqCst);
        let mut must_wait = others > 0 || self.is_full(&lines);
        while must_wait {
            let left = STUCK.saturating_sub(start.elapsed());
            lines = unpoisoned(self.not_full.wait_timeout(lines, left)).0;
            must_wait = self.is_full(&lines) && !lines.is_stuck;
            if must_wait && start.elapsed() >= STUCK {
                lines.is_stuck = true;
                self.not_full.notify_all();
                must_wait = false;
            }
        }
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        lines
    }

    /// Wakes one thread that waits if there is space for its line. It wakes the next when its line is queued.
    fn wake_next(&self, lines: MutexGuard<'_, Lines>) {
        let has_next = self.waiting.load(Ordering::SeqCst) > 0 && !self.is_full(&lines);
        drop(lines);
        if has_next {
            self.not_full.notify_one();
        }
    }

    /// The number of lines that were discarded, or could not be written, since the start.
    pub fn lost(&self) -> u64 {
        self.lock().lost
    }

    /// Passes lines to `write` as they are queued, forever: whole lines, at most `max_write` bytes at
    /// once. `write` returns how many bytes it could write. If lines were lost, a line from `notice`, which gets
    /// their number, precedes those that are taken next.
    pub fn write_lines(
        &self,
        max_write: usize,
        notice: fn(&mut Buffer, u64),
        write: impl FnMut(&[u8]) -> usize,
    ) -> ! {
        let mut output = Output::new(write);
        let (mut batch, mut notices) = (Buffer::EMPTY, Buffer::EMPTY);
        let mut noticed = 0;
        loop {
            let lost = self.take_batch(&mut batch);
            if lost > noticed {
                notices.resize(0);
                notice(&mut notices, lost - noticed);
                if output.write(notices.bytes()) == 0 {
                    noticed = lost;
                }
            }
            for lines in split_lines(batch.bytes(), max_write) {
                let lost = output.write(lines);
                if lost > 0 {
                    self.lock().lost += lost;
                }
                self.bytes_written
                    .fetch_add(lines.len() as u64, Ordering::SeqCst);
                if self.waiting.load(Ordering::SeqCst) > 0 {
                    self.wake_next(self.lock());
                }
            }
            batch.resize(0);
        }
    }

    /// Waits for lines, then for more of them, and puts the first block in place of the empty `batch`. The
    /// memory of `batch` is used again, unless there are more blocks. Returns the number of lost lines.
    fn take_batch(&self, batch: &mut Buffer) -> u64 {
        let is_empty = |lines: &mut Lines| lines.length == 0;
        let is_small = |lines: &mut Lines| lines.length < BATCH;
        let lines = unpoisoned(self.not_empty.wait_while(self.lock(), is_empty));
        let waited = self
            .not_empty
            .wait_timeout_while(lines, BATCH_DELAY, is_small);
        let mut lines = unpoisoned(waited).0;
        let first = lines.blocks.pop_front().unwrap_or_default();
        lines.length -= first.len();
        let written = mem::replace(batch, first);
        if lines.blocks.is_empty() {
            lines.blocks.push_back(written);
        }
        lines.lost
    }

    /// Waits until the lines that are queued now are written. Gives up if nothing is written for
    /// `STALL`, and after `MAX_FLUSH`.
    pub fn flush(&self) {
        let last = self.lock().bytes_queued;
        let start = Instant::now();
        let mut written = self.bytes_written.load(Ordering::SeqCst);
        let mut progress = start;
        while written < last && progress.elapsed() < STALL && start.elapsed() < MAX_FLUSH {
            thread::sleep(FLUSH_POLL);
            let now = self.bytes_written.load(Ordering::SeqCst);
            if now != written {
                (written, progress) = (now, Instant::now());
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        unpoisoned(self.lines.lock())
    }
}

/// Where lines are written.
struct Output<W> {
    write: W,
    /// Only a part of a line was written, as when the disk is full.
    is_cut: bool,
}

impl<W: FnMut(&[u8]) -> usize> Output<W> {
    fn new(write: W) -> Output<W> {
        let is_cut = false;
        Output { write, is_cut }
    }

    /// Writes lines, and returns how many of them are lost. After a part of a line they begin a new one.
    fn write(&mut self, lines: &[u8]) -> u64 {
        if self.is_cut {
            self.is_cut = (self.write)(b"\n") == 0;
        }
        let written = match self.is_cut {
            true => return count_lines(lines),
            false => (self.write)(lines),
        };
        let is_whole = written == lines.len();
        self.is_cut = !is_whole && lines[..written].last().is_some_and(|byte| *byte != b'\n');
        // A line of which only the end is missing gets that with the next lines.
        count_lines(&lines[written..][usize::from(self.is_cut)..])
    }
}

fn count_lines(lines: &[u8]) -> u64 {
    lines.iter().filter(|byte| **byte == b'\n').count() as u64
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
mod tests;
