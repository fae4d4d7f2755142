//! Log lines on stderr: the time, the level, the message. The level is `RUST_LOG`, `info` if unset.

use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use log::{Level, Log, Metadata, Record};

use crate::buffer::Buffer;
use crate::clock::Moment;
use crate::log_queue::LogQueue;
use crate::text::Text;

static QUEUE: LogQueue = LogQueue::empty();

/// Whether there is a thread that writes what is in the queue.
static IS_QUEUED: AtomicBool = AtomicBool::new(false);

/// Starts logging, each line with a write of its own.
pub fn start() {
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
            true => QUEUE.push(|lines| write(lines, &beginning, record.args())),
            false => {
                let mut line = Buffer::EMPTY;
                write(&mut line, &beginning, record.args());
                // There is nobody to tell that there is nobody to tell.
                let _ = io::stderr().write_all(line.bytes());
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
    beginning.push(Moment::now().rfc3339().as_str());
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
/// the logger. To be called once.
///
/// # Errors
/// What the kernel answers to a new thread.
pub fn gather() -> io::Result<()> {
    thread::Builder::new().spawn(|| QUEUE.write_lines())?;
    IS_QUEUED.store(true, Ordering::SeqCst);
    Ok(())
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
