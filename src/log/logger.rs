//! The logger of the `log` crate. A line is the time, the level and the message, and goes to stderr.
//! The level is `RUST_LOG`, `info` if unset.
//!
//! Lines of the guard and of the server do not mix: each write has whole lines of at most `PIPE_BUF` bytes
//! together, which a pipe takes in one piece (pipe(7)). A file takes any length in one piece.

use std::cell::Cell;
use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use log::{Level, Log, Metadata, Record};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::log::buffer::Buffer;
use crate::log::queue::{LogQueue, WhenFull};
use crate::log::timestamp::Timestamp;

static QUEUE: LogQueue = LogQueue::empty();

/// Whether the writer thread has started.
static HAS_WRITER: AtomicBool = AtomicBool::new(false);

/// The longest write that stderr takes in one piece, in bytes.
static MAX_WRITE: AtomicUsize = AtomicUsize::new(libc::PIPE_BUF);

thread_local! {
    /// What this thread does with a line for which the queue has no space.
    static WHEN_FULL: Cell<WhenFull> = const { Cell::new(WhenFull::Discard) };
}

/// Starts logging. Until [`start_writer`], each line is written before the call that logs it returns.
pub fn start() {
    let stderr = io::stderr().as_fd().try_clone_to_owned().map(File::from);
    let is_file = stderr.and_then(|stderr| Ok(stderr.metadata()?.is_file()));
    if matches!(is_file, Ok(true)) {
        MAX_WRITE.store(usize::MAX, Ordering::SeqCst);
    }
    let level = env_logger::Env::default().default_filter_or("info");
    let filter = env_logger::Builder::from_env(level).build();
    log::set_max_level(filter.filter());
    // Fails only if a logger is set, and a process starts logging once.
    let _ = log::set_logger(Box::leak(Box::new(Logger { filter })));
}

/// Starts the writer thread: from now on lines are queued, and written a few milliseconds later. Before
/// the process exits it has to flush the logger. To be called once per process.
///
/// # Errors
/// `EAGAIN`, or any other error of clone(2).
pub fn start_writer() -> io::Result<()> {
    let max_write = MAX_WRITE.load(Ordering::SeqCst);
    thread::Builder::new().spawn(move || QUEUE.write_lines(max_write, write_stderr))?;
    HAS_WRITER.store(true, Ordering::SeqCst);
    Ok(())
}

/// Makes this thread wait for a while if the queue is full. Other threads discard their lines.
pub fn block_when_full() {
    WHEN_FULL.set(WhenFull::Block);
}

/// The number of lines of this process that were lost since the start, because the log was not read.
pub fn lost_lines() -> u64 {
    QUEUE.lost()
}

struct Logger {
    filter: env_logger::Logger,
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.filter.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.filter.matches(record) {
            return;
        }
        let (time, level) = (Timestamp::now(), record.level());
        if HAS_WRITER.load(Ordering::SeqCst) {
            QUEUE.push(WHEN_FULL.get(), |lines, lost| {
                if lost > 0 {
                    let notice = format_args!("Lost {lost} log lines: the log was not read");
                    push_line(lines, time, Level::Warn, &notice);
                }
                push_line(lines, time, level, record.args());
            });
        } else {
            let mut line = Buffer::EMPTY;
            push_line(&mut line, time, level, record.args());
            write_stderr(line.bytes());
        }
    }

    fn flush(&self) {
        QUEUE.flush();
    }
}

fn push_line(lines: &mut Buffer, time: Timestamp, level: Level, message: &fmt::Arguments<'_>) {
    time.push_rfc3339(lines);
    lines.push(match level {
        Level::Error => b" ERROR ",
        Level::Warn => b" WARN  ",
        Level::Info => b" INFO  ",
        Level::Debug => b" DEBUG ",
        Level::Trace => b" TRACE ",
    });
    let written = lines.write_fmt(*message);
    debug_assert!(written.is_ok(), "a buffer grows");
    lines.push(b"\n");
}

/// Writes lines to stderr, and waits while it is full. After an error the rest is lost.
fn write_stderr(mut lines: &[u8]) {
    let stderr = io::stderr();
    while !lines.is_empty() {
        // Not through `Stderr`, whose lock a panic message needs: this call may block for long.
        match nix::unistd::write(&stderr, lines).map_err(io::Error::from) {
            Ok(written @ 1..) => lines = &lines[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Another process that shares the open file may have set O_NONBLOCK.
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let mut stderr = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
                // An error of poll(2) is one of the next write(2), too.
                let _ = poll(&mut stderr, PollTimeout::NONE);
            }
            Ok(_) | Err(_) => return,
        }
    }
}
