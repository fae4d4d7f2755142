//! Log lines that threads hand over, and that one thread writes to stderr, many at once: a system
//! call for each would cost a request more than anything else that is its own.
//!
//! Memory is bounded. While stderr takes nothing, threads wait for room. Lines of two processes do
//! not mix: a write is whole lines, and at most `PIPE_BUF` bytes (pipe(7)), unless to a file.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::mem;
use std::os::fd::AsFd;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::buffer::Buffer;

/// Bytes that may wait to be written; as many again may be in writing. A line has at most `PIPE_BUF`.
const CAPACITY: usize = 256 * 1024;

/// Bytes that are worth a write at once.
const MANY: usize = CAPACITY / 2;

/// How long lines are gathered, if they are not many before.
const GATHER: Duration = Duration::from_millis(4);

/// Lines on their way to stderr.
#[derive(Debug)]
pub struct LogQueue {
    lines: Mutex<Lines>,
    /// There are lines again.
    filled: Condvar,
    /// There is room again.
    taken: Condvar,
    /// A batch is written.
    written: Condvar,
}

#[derive(Debug)]
struct Lines {
    waiting: Buffer,
    /// How many batches were taken out to be written.
    taken: u64,
    /// How many of them are written.
    written: u64,
}

impl LogQueue {
    /// A queue without lines.
    pub const fn empty() -> LogQueue {
        LogQueue {
            lines: Mutex::new(Lines {
                waiting: Buffer::EMPTY,
                taken: 0,
                written: 0,
            }),
            filled: Condvar::new(),
            taken: Condvar::new(),
            written: Condvar::new(),
        }
    }

    /// Has `write` append a line; waits while there is no room for the longest.
    pub fn push(&self, write: impl FnOnce(&mut Buffer)) {
        let is_full = |lines: &mut Lines| lines.waiting.len() + libc::PIPE_BUF > CAPACITY;
        let mut lines = wait_while(&self.taken, self.lines(), is_full);
        let before = lines.waiting.len();
        write(&mut lines.waiting);
        if before == 0 || (before < MANY && lines.waiting.len() >= MANY) {
            self.filled.notify_one();
        }
    }

    /// Writes lines as they come, without end. What stderr refuses is lost.
    pub fn write_lines(&self) -> ! {
        let longest = longest_write();
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
                write_out(piece);
            }
            batch.clear(0);
            self.lines().written += 1;
            self.written.notify_all();
        }
    }

    /// Waits until every line is written that was handed over before.
    pub fn flush(&self) {
        let lines = self.lines();
        let last = lines.taken + u64::from(!lines.waiting.is_empty());
        drop(wait_while(&self.written, lines, |lines| {
            lines.written < last
        }));
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

/// How many bytes stderr takes at once, without those of another process between them.
fn longest_write() -> usize {
    let stderr = io::stderr().as_fd().try_clone_to_owned().map(File::from);
    let is_file = stderr.and_then(|stderr| Ok(stderr.metadata()?.is_file()));
    match is_file {
        Ok(true) => usize::MAX,
        _ => libc::PIPE_BUF,
    }
}

/// Writes to stderr, also where somebody made it non-blocking. What it refuses is lost.
fn write_out(mut lines: &[u8]) {
    let stderr = io::stderr();
    while !lines.is_empty() {
        match stderr.lock().write(lines) {
            Ok(written) => lines = &lines[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let mut room = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
                // What keeps it from waiting, the next write reports.
                let _ = poll(&mut room, PollTimeout::NONE);
            }
            Err(_) => return,
        }
    }
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
    use super::*;

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
