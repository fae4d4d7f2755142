//! Log lines that threads hand over, and that one thread writes, many at once: a system call for each
//! would cost a request more than anything else that is its own.
//!
//! Memory is bounded. While nothing can be written, a thread waits for room, or its lines are lost: it
//! says which. A flush ends also then.

use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::log::buffer::Buffer;

/// Bytes that may wait to be written; as many again may be in writing. A line has at most `PIPE_BUF`.
const CAPACITY: usize = 256 * 1024;

/// Bytes that are worth a write at once.
const MANY: usize = CAPACITY / 2;

/// How long lines are gathered, if they are not many before.
const GATHER: Duration = Duration::from_millis(4);

/// How long nothing is written before a flush gives up.
const STALL: Duration = Duration::from_secs(1);

/// How long a flush takes at most, however slowly lines are written.
const LONGEST_FLUSH: Duration = Duration::from_secs(2);

/// What becomes of a line for which there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// It waits, and with it the thread.
    Wait,
    /// It is lost, and counted.
    Lose,
}

/// Lines on their way to where they are written.
#[derive(Debug)]
pub struct LogQueue {
    lines: Mutex<Lines>,
    /// There are lines again.
    filled: Condvar,
    /// There is room again.
    taken: Condvar,
    /// A batch is written.
    written: Condvar,
    /// How many writes have ended.
    writes: AtomicU64,
}

#[derive(Debug)]
struct Lines {
    waiting: Buffer,
    /// How many batches were taken out to be written.
    taken: u64,
    /// How many of them are written.
    written: u64,
    /// How many lines were lost since the last that was not.
    lost: u64,
}

impl LogQueue {
    /// A queue without lines.
    pub const fn empty() -> LogQueue {
        LogQueue {
            lines: Mutex::new(Lines {
                waiting: Buffer::EMPTY,
                taken: 0,
                written: 0,
                lost: 0,
            }),
            filled: Condvar::new(),
            taken: Condvar::new(),
            written: Condvar::new(),
            writes: AtomicU64::new(0),
        }
    }

    /// Has `write` append a line, if there is room for the longest, and say how many were lost just
    /// before it.
    pub fn push(&self, full: Full, write: impl FnOnce(&mut Buffer, u64)) {
        let is_full = |lines: &mut Lines| lines.waiting.len() + libc::PIPE_BUF > CAPACITY;
        let mut lines = self.lines();
        if full == Full::Lose && is_full(&mut lines) {
            lines.lost += 1;
            return;
        }
        lines = wait_while(&self.taken, lines, is_full);
        let before = lines.waiting.len();
        let lost = mem::take(&mut lines.lost);
        write(&mut lines.waiting, lost);
        if before == 0 || (before < MANY && lines.waiting.len() >= MANY) {
            self.filled.notify_one();
        }
    }

    /// Has `write` write lines as they come, without end: whole ones, as many as are within `longest`
    /// bytes.
    pub fn write_lines(&self, longest: usize, mut write: impl FnMut(&[u8])) -> ! {
        let mut batch = Buffer::EMPTY;
        loop {
            let is_idle = |lines: &mut Lines| lines.waiting.is_empty();
            let lines = wait_while(&self.filled, self.lines(), is_idle);
            let mut lines = self.gather(lines);
            mem::swap(&mut lines.waiting, &mut batch);
            lines.taken += 1;
            drop(lines);
            self.taken.notify_all();
            for piece in pieces(batch.bytes(), longest) {
                write(piece);
                self.writes.fetch_add(1, Ordering::Relaxed);
            }
            batch.clear(0);
            self.lines().written += 1;
            self.written.notify_all();
        }
    }

    /// Waits until every line is written that was handed over before, or until nothing was for
    /// [`STALL`]; [`LONGEST_FLUSH`] at most.
    pub fn flush(&self) {
        let mut lines = self.lines();
        let last = lines.taken + u64::from(!lines.waiting.is_empty());
        let mut writes = self.writes.load(Ordering::Relaxed);
        let begin = Instant::now();
        let mut moved = begin;
        while lines.written < last && moved.elapsed() < STALL && begin.elapsed() < LONGEST_FLUSH {
            let waited = self.written.wait_timeout(lines, STALL / 10);
            lines = waited.unwrap_or_else(PoisonError::into_inner).0;
            let now = self.writes.load(Ordering::Relaxed);
            if now != writes {
                (writes, moved) = (now, Instant::now());
            }
        }
    }

    fn gather<'l>(&self, lines: MutexGuard<'l, Lines>) -> MutexGuard<'l, Lines> {
        let are_few = |lines: &mut Lines| lines.waiting.len() < MANY;
        let gathered = self.filled.wait_timeout_while(lines, GATHER, are_few);
        gathered.unwrap_or_else(PoisonError::into_inner).0
    }

    /// The lines are whole at any moment, also after a panic.
    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn wait_while<'l>(
    condition: &Condvar,
    lines: MutexGuard<'l, Lines>,
    holds: impl FnMut(&mut Lines) -> bool,
) -> MutexGuard<'l, Lines> {
    condition
        .wait_while(lines, holds)
        .unwrap_or_else(PoisonError::into_inner)
}

/// Cuts lines into pieces of at most `longest` bytes. A line that is longer is cut as well.
fn pieces(mut lines: &[u8], longest: usize) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let fits = lines.get(..longest).unwrap_or(lines);
        let end = fits.iter().rposition(|byte| *byte == b'\n');
        let (piece, rest) = lines.split_at(end.map_or(fits.len(), |end| end + 1));
        lines = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    /// Fills a queue, and returns how many lines it has taken.
    fn fill(queue: &LogQueue) -> usize {
        let mut taken = 0;
        for _ in 0..2 * CAPACITY / 1000 {
            queue.push(Full::Lose, |lines, _| {
                taken += 1;
                lines.push(&[b'\n'; 1000]);
            });
        }
        taken
    }

    #[test]
    fn the_line_after_those_that_were_lost_hears_how_many_they_were() {
        static QUEUE: LogQueue = LogQueue::empty();
        let lost = (2 * CAPACITY / 1000 - fill(&QUEUE)) as u64;
        assert!(lost > 0);
        thread::spawn(|| QUEUE.write_lines(usize::MAX, |_| {}));
        let heard: Vec<u64> = (0..2)
            .map(|_| {
                let mut heard = 0;
                QUEUE.push(Full::Wait, |lines, lost| {
                    heard = lost;
                    lines.push(b"\n");
                });
                heard
            })
            .collect();
        assert_eq!(heard, [lost, 0]);
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
        let handed_over = QUEUE.lines().waiting.len() as u64;
        thread::spawn(move || QUEUE.write_lines(CAPACITY / 12, slow));
        QUEUE.flush();
        assert_eq!(written.load(Ordering::SeqCst), handed_over);
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
        assert!(
            took >= LONGEST_FLUSH && took < 2 * LONGEST_FLUSH,
            "{took:?}"
        );
    }

    #[test]
    fn a_flush_ends_while_others_log_without_end() {
        static QUEUE: LogQueue = LogQueue::empty();
        static IS_OVER: AtomicBool = AtomicBool::new(false);
        thread::spawn(|| QUEUE.write_lines(usize::MAX, |_| {}));
        let log = || {
            while !IS_OVER.load(Ordering::SeqCst) {
                QUEUE.push(Full::Wait, |lines, _| lines.push(&[b'\n'; 1000]));
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
    fn a_piece_is_whole_lines_as_many_as_a_pipe_takes_at_once() {
        let line = |length: usize| format!("{}\n", "x".repeat(length - 1));
        let lines = [line(4000), line(96), line(1), line(5000), line(7)].concat();
        let lengths: Vec<usize> = pieces(lines.as_bytes(), libc::PIPE_BUF)
            .map(<[u8]>::len)
            .collect();
        assert_eq!(lengths, [4096, 1, 4096, 904 + 7]);
        assert_eq!(
            pieces(lines.as_bytes(), libc::PIPE_BUF)
                .collect::<Vec<_>>()
                .concat(),
            lines.as_bytes()
        );
        assert_eq!(pieces(b"", libc::PIPE_BUF).count(), 0);
    }
}
