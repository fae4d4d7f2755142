//! Log lines on stderr: the time, the level, the message. The level is `RUST_LOG`, `info` if unset.
//!
//! Lines of two processes do not mix: a write is whole lines, and at most `PIPE_BUF` bytes (pipe(7)),
//! unless to a file.

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
use crate::log::queue::{Full, LogQueue};
use crate::log::text::Text;
use crate::log::timestamp::Timestamp;

static QUEUE: LogQueue = LogQueue::empty();

/// Whether there is a thread that writes what is in the queue.
static IS_QUEUED: AtomicBool = AtomicBool::new(false);

/// How many bytes stderr takes at once, without those of another process between them.
static LONGEST: AtomicUsize = AtomicUsize::new(libc::PIPE_BUF);

thread_local! {
    /// What becomes of this thread's lines while nobody reads the log.
    static FULL: Cell<Full> = const { Cell::new(Full::Lose) };
}

/// Starts logging, each line with a write of its own.
pub fn start() {
    let stderr = io::stderr().as_fd().try_clone_to_owned().map(File::from);
    let is_file = stderr.and_then(|stderr| Ok(stderr.metadata()?.is_file()));
    if matches!(is_file, Ok(true)) {
        LONGEST.store(usize::MAX, Ordering::SeqCst);
    }
    let level = env_logger::Env::default().default_filter_or("info");
    let filter = env_logger::Builder::from_env(level).build();
    log::set_max_level(filter.filter());
    // Nobody has set another one: a program starts once.
    let _ = log::set_logger(Box::leak(Box::new(Lines { filter })));
}

/// Records as lines.
struct Lines {
    filter: env_logger::Logger,
}

impl Log for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.filter.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.filter.matches(record) {
            return;
        }
        let beginning = beginning(record.level());
        match IS_QUEUED.load(Ordering::SeqCst) {
            true => QUEUE.push(FULL.get(), |lines, lost| {
                if lost > 0 {
                    let notice = format_args!("Lost {lost} log lines: nobody read the log");
                    write(lines, &self::beginning(Level::Warn), &notice);
                }
                write(lines, &beginning, record.args());
            }),
            false => {
                let mut line = Buffer::EMPTY;
                write(&mut line, &beginning, record.args());
                write_out(line.bytes());
            }
        }
    }

    fn flush(&self) {
        QUEUE.flush();
    }
}

/// The time and the level.
fn beginning(level: Level) -> Text<31> {
    let mut beginning = Text::EMPTY;
    beginning.push(Timestamp::now().rfc3339().as_str());
    beginning.push(match level {
        Level::Error => " ERROR ",
        Level::Warn => " WARN  ",
        Level::Info => " INFO  ",
        Level::Debug => " DEBUG ",
        Level::Trace => " TRACE ",
    });
    beginning
}

fn write(line: &mut Buffer, beginning: &Text<31>, message: &fmt::Arguments<'_>) {
    line.push(beginning.as_bytes());
    let written = line.write_fmt(*message);
    debug_assert!(written.is_ok(), "memory takes every byte");
    line.push(b"\n");
}

/// Writes lines together from here on, a few milliseconds later: who ends this process has to flush
/// the logger. Logging waits for nobody then, and lines are lost while nobody reads them. To be called
/// once.
///
/// # Errors
/// What the kernel answers to a new thread.
pub fn gather() -> io::Result<()> {
    let longest = LONGEST.load(Ordering::SeqCst);
    thread::Builder::new().spawn(move || QUEUE.write_lines(longest, write_out))?;
    IS_QUEUED.store(true, Ordering::SeqCst);
    Ok(())
}

/// Has this thread wait while nobody reads the log, so that none of its lines is lost.
pub fn wait_for_readers() {
    FULL.set(Full::Wait);
}

/// Writes to stderr, also where somebody made it non-blocking. What it refuses is lost.
fn write_out(mut lines: &[u8]) {
    let stderr = io::stderr();
    while !lines.is_empty() {
        // Without the lock that a panic's message needs: this may wait for long.
        match nix::unistd::write(&stderr, lines).map_err(io::Error::from) {
            Ok(written @ 1..) => lines = &lines[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let mut room = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
                // What keeps it from waiting, the next write reports.
                let _ = poll(&mut room, PollTimeout::NONE);
            }
            Ok(_) | Err(_) => return,
        }
    }
}

/// The most characters of a value that a log line shows: with five of them it stays within
/// `PIPE_BUF` (limits.h), so that the lines of guard and server do not mix.
const SHOWN: usize = 512;

/// Bytes that somebody sent, safe to show: printable ASCII as it is, all else as `\n`, `\x1b`, `\"`;
/// `...` stands for what is too long.
pub fn escaped(bytes: &[u8]) -> impl fmt::Display {
    let shown = match bytes.len() {
        0..=LONGEST_SAFE => bytes.len(),
        _ => {
            let ends = bytes.iter().scan(0, |end, byte| {
                *end += std::ascii::escape_default(*byte).len();
                Some(*end)
            });
            ends.take_while(|end| *end <= SHOWN).count()
        }
    };
    let dots = if shown < bytes.len() { "..." } else { "" };
    fmt::from_fn(move |f| write!(f, "{}{dots}", bytes[..shown].escape_ascii()))
}

/// Appends them, mostly as they are.
pub fn push_escaped(line: &mut Buffer, bytes: &[u8]) {
    let is_plain = |byte: &u8| matches!(byte, b' '..=b'~') && !b"\"'\\".contains(byte);
    match bytes.len() <= SHOWN && bytes.iter().all(is_plain) {
        true => line.push(bytes),
        false => line.push(escaped(bytes).to_string().as_bytes()),
    }
}

/// So many bytes fit however they are escaped: a byte takes four characters at most.
const LONGEST_SAFE: usize = SHOWN / 4;
