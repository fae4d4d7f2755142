//! A bounded queue of log lines between the threads that log and the writer thread. The writer takes
//! many lines at once: a system call for each would be the largest cost of a request.
//!
//! The queue knows neither the format of a line nor where it is written. If the writer is blocked, the
//! queue fills; then a thread either waits for a while or discards its line at once, and the queue counts
//! what is lost. A flush gives up after a time limit.

use std::collections::VecDeque;
use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use crate::lock::unpoisoned;
use crate::log::buffer::Buffer;

/// The capacity of the queue, in bytes. The writer may have a block more.
const CAPACITY: usize = 2 * 1024 * 1024;

/// The size of a block, in bytes. There is one, unless the writer does not keep up.
const BLOCK: usize = 256 * 1024;

/// The space for a line, in bytes: the longest has `PIPE_BUF`, and a notice of lost lines may precede it.
const LINE: usize = libc::PIPE_BUF + 256;

/// The size of the queue, in bytes, at which the writer does not wait for more lines.
const BATCH: usize = BLOCK / 2;

/// The longest time for which the writer waits for more lines.
const BATCH_DELAY: Duration = Duration::from_millis(4);

/// The time without progress of the writer after which it is stuck: no thread waits for it any more.
const STUCK: Duration = Duration::from_secs(1);

/// The time after which a flush looks at the progress again.
const FLUSH_POLL: Duration = Duration::from_millis(1);

/// The time without a write after which a flush gives up.
const STALL: Duration = Duration::from_secs(1);

/// The longest time that a flush takes, even if lines are being written.
const MAX_FLUSH: Duration = Duration::from_secs(2);

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
    /// Notified when the writer has taken lines.
    not_full: Condvar,
    /// The bytes that were written since the start.
    bytes_written: AtomicU64,
}

#[derive(Debug)]
struct Lines {
    /// The queued lines, the oldest first. The last block is being filled. While nothing is queued, it may be
    /// an empty one, kept for its memory.
    blocks: VecDeque<Buffer>,
    /// The bytes in the blocks.
    length: usize,
    /// When the writer last took lines, or a line was queued where none was, whichever is later.
    waiting_since: Option<Instant>,
    /// The bytes that were queued since the start.
    bytes_queued: u64,
    /// The lines that were discarded since the start.
    lost: u64,
    /// How many of them were when a line was queued last.
    lost_before: u64,
    /// The lines that were queued, but could not be written, since the start.
    unwritten: u64,
}

impl Lines {
    fn is_full(&self) -> bool {
        self.length + LINE > CAPACITY
    }

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
                waiting_since: None,
                bytes_queued: 0,
                lost: 0,
                lost_before: 0,
                unwritten: 0,
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
        if when_full == WhenFull::Block && lines.is_full() {
            lines = self.wait_for_space(lines);
        }
        if when_full != WhenFull::Exceed && lines.is_full() {
            lines.lost += 1;
            return;
        }
        let lost = lines.lost;
        let lost_before = mem::replace(&mut lines.lost_before, lost);
        let block = lines.block();
        let start = block.len();
        append(block, lost - lost_before);
        let added = block.len() - start;
        let before = lines.length;
        lines.length += added;
        lines.bytes_queued += added as u64;
        if before == 0 {
            lines.waiting_since = Some(Instant::now());
        }
        if before == 0 || (before < BATCH && lines.length >= BATCH) {
            self.not_empty.notify_one();
        }
    }

    /// Waits until a full queue has space, or [`STUCK`] after the last progress of the writer; never longer
    /// than that.
    #[cold]
    fn wait_for_space<'l>(&'l self, mut lines: MutexGuard<'l, Lines>) -> MutexGuard<'l, Lines> {
        let start = Instant::now();
        while lines.is_full() {
            let since = lines.waiting_since.map_or(start, |since| since.min(start));
            let left = STUCK.saturating_sub(since.elapsed());
            if left.is_zero() {
                break;
            }
            lines = unpoisoned(self.not_full.wait_timeout(lines, left)).0;
        }
        lines
    }

    /// The number of lines that were discarded, or could not be written, since the start.
    pub fn lost(&self) -> u64 {
        let lines = self.lock();
        lines.lost + lines.unwritten
    }

    /// Passes lines to `write` as they are queued, forever: whole lines, at most `max_write` bytes at
    /// once. `write` returns how many bytes it could write.
    pub fn write_lines(&self, max_write: usize, mut write: impl FnMut(&[u8]) -> usize) -> ! {
        let mut batch = Buffer::EMPTY;
        loop {
            self.take_batch(&mut batch);
            for lines in split_lines(batch.bytes(), max_write) {
                let written = write(lines);
                if written < lines.len() {
                    let ends = lines[written..].iter().filter(|byte| **byte == b'\n');
                    self.lock().unwritten += ends.count() as u64;
                }
                let length = lines.len() as u64;
                self.bytes_written.fetch_add(length, Ordering::Relaxed);
            }
            batch.resize(0);
        }
    }

    /// Waits for lines, then for more of them, and puts the first block in place of the empty `batch`. The
    /// memory of `batch` is used again, unless there are more blocks.
    fn take_batch(&self, batch: &mut Buffer) {
        let is_empty = |lines: &mut Lines| lines.length == 0;
        let is_small = |lines: &mut Lines| lines.length < BATCH;
        let lines = unpoisoned(self.not_empty.wait_while(self.lock(), is_empty));
        let waited = self
            .not_empty
            .wait_timeout_while(lines, BATCH_DELAY, is_small);
        let mut lines = unpoisoned(waited).0;
        let first = lines.blocks.pop_front().unwrap_or_default();
        lines.length -= first.len();
        lines.waiting_since = Some(Instant::now());
        let written = mem::replace(batch, first);
        if lines.blocks.is_empty() {
            lines.blocks.push_back(written);
        }
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
mod tests;
