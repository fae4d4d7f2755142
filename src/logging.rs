//! Log lines on stderr: the time, the level, the message. The level is `RUST_LOG`, `info` if unset.

use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use log::{Level, Record};

use crate::buffer::Buffer;
use crate::clock::Moment;
use crate::log_queue::LogQueue;

static QUEUE: LogQueue = LogQueue::empty();

/// Whether there is a thread that writes what is in the queue.
static IS_QUEUED: AtomicBool = AtomicBool::new(false);

/// Starts logging, each line with a write of its own.
pub fn start() {
    let level = env_logger::Env::default().default_filter_or("info");
    env_logger::Builder::from_env(level)
        .format(|out, record| match IS_QUEUED.load(Ordering::SeqCst) {
            true => {
                QUEUE.push(|lines| write(lines, record));
                Ok(())
            }
            false => {
                let mut line = Buffer::default();
                write(&mut line, record);
                out.write_all(line.bytes())
            }
        })
        .init();
}

fn write(line: &mut Buffer, record: &Record<'_>) {
    line.push(Moment::now().rfc3339().as_bytes());
    line.push(match record.level() {
        Level::Error => b" ERROR ",
        Level::Warn => b" WARN  ",
        Level::Info => b" INFO  ",
        Level::Debug => b" DEBUG ",
        Level::Trace => b" TRACE ",
    });
    let written = line.write_fmt(*record.args());
    debug_assert!(written.is_ok(), "memory takes every byte");
    line.push(b"\n");
}

/// Writes lines together from here on, a few milliseconds later: who ends this process has to
/// [`flush`]. To be called once.
///
/// # Errors
/// What the kernel answers to a new thread.
pub fn gather() -> io::Result<()> {
    thread::Builder::new().spawn(|| QUEUE.write_lines())?;
    IS_QUEUED.store(true, Ordering::SeqCst);
    Ok(())
}

/// Waits until every line is written.
pub fn flush() {
    QUEUE.flush();
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
