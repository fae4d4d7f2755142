//! The logger of the `log` crate, and of [`Line`]s with fields. A line is the time, the level and the message, as
//! text or as a JSON object, and goes to stderr. The level is `RUST_LOG`, `info` if unset.
//!
//! Lines of the guard and of the server do not mix: each write has whole lines of at most `PIPE_BUF` bytes
//! together, which a pipe takes in one piece (pipe(7)). A file takes any length in one piece.

use std::cell::Cell;
use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use log::{Level, Log, Metadata, Record};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::log::LogFormat;
use crate::log::buffer::Buffer;
use crate::log::json;
use crate::log::line::Line;
use crate::log::queue::{LogQueue, WhenFull};
use crate::log::timestamp::Timestamp;

static QUEUE: LogQueue = LogQueue::empty();

static LOGGER: OnceLock<Logger> = OnceLock::new();

/// Whether the writer thread has started.
static HAS_WRITER: AtomicBool = AtomicBool::new(false);

/// The longest write that stderr takes in one piece, in bytes.
static MAX_WRITE: AtomicUsize = AtomicUsize::new(libc::PIPE_BUF);

thread_local! {
    /// What this thread does with a line for which the queue has no space.
    static WHEN_FULL: Cell<WhenFull> = const { Cell::new(WhenFull::Discard) };
}

/// Starts logging. Until [`start_writer`], each line is written before the call that logs it returns.
pub fn start(format: LogFormat) {
    let stderr = io::stderr().as_fd().try_clone_to_owned().map(File::from);
    let is_file = stderr.and_then(|stderr| Ok(stderr.metadata()?.is_file()));
    if matches!(is_file, Ok(true)) {
        MAX_WRITE.store(usize::MAX, Ordering::SeqCst);
    }
    let level = env_logger::Env::default().default_filter_or("info");
    let filter = env_logger::Builder::from_env(level).build();
    log::set_max_level(filter.filter());
    // Fails only if a logger is set, and a process starts logging once.
    let _ = log::set_logger(LOGGER.get_or_init(|| Logger { filter, format }));
}

/// The format of log lines.
pub fn format() -> LogFormat {
    LOGGER.get().map_or(LogFormat::Text, |logger| logger.format)
}

/// Logs a line with fields, for a module.
pub fn log(level: Level, module: &'static str, mut line: Line<'_>) {
    let Some(logger) = LOGGER.get() else { return };
    let fields = line.content();
    let text = fmt::from_fn(|f| f.write_str(str::from_utf8(fields).unwrap_or_default()));
    let is_logged = logger.filter.matches(
        &Record::builder()
            .level(level)
            .target(module)
            .module_path_static(Some(module))
            .args(format_args!("{text}"))
            .build(),
    );
    if is_logged {
        logger.write(level, Content::Fields(fields));
    }
}

/// Starts the writer thread: from now on lines are queued, and written a few milliseconds later. Before
/// the process exits it has to flush the logger. To be called once per process.
///
/// # Errors
/// `EAGAIN`, or any other error of clone(2).
pub fn start_writer() -> io::Result<()> {
    let max_write = MAX_WRITE.load(Ordering::SeqCst);
    thread::Builder::new()
        .spawn(move || QUEUE.write_lines(max_write, push_notice, write_stderr))?;
    HAS_WRITER.store(true, Ordering::SeqCst);
    Ok(())
}

/// Makes this thread wait for a while if the queue is full. Other threads discard their lines.
pub fn block_when_full() {
    WHEN_FULL.set(WhenFull::Block);
}

/// Makes this thread log even if the queue is full: the last lines of a process, of which there are few.
pub fn exceed_when_full() {
    WHEN_FULL.set(WhenFull::Exceed);
}

/// The number of lines of this process that were lost since the start, because they could not be written.
pub fn lost_lines() -> u64 {
    QUEUE.lost()
}

struct Logger {
    filter: env_logger::Logger,
    format: LogFormat,
}

/// What follows the time and the level.
#[derive(Clone, Copy)]
enum Content<'a> {
    Message(fmt::Arguments<'a>),
    /// What a [`Line`] has.
    Fields(&'a [u8]),
}

impl Logger {
    fn write(&self, level: Level, content: Content<'_>) {
        let time = Timestamp::now();
        if HAS_WRITER.load(Ordering::SeqCst) {
            QUEUE.push(WHEN_FULL.get(), |lines| {
                self.push_line(lines, time, level, content);
            });
        } else {
            let mut line = Buffer::EMPTY;
            self.push_line(&mut line, time, level, content);
            write_stderr(line.bytes());
        }
    }

    fn push_line(&self, lines: &mut Buffer, time: Timestamp, level: Level, content: Content<'_>) {
        match self.format {
            LogFormat::Text => push_text(lines, time, level, content),
            LogFormat::Json => push_object(lines, time, level, content),
        }
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.filter.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if self.filter.matches(record) {
            self.write(record.level(), Content::Message(*record.args()));
        }
    }

    fn flush(&self) {
        QUEUE.flush();
    }
}

/// Appends the line that says how many lines are lost, whatever `RUST_LOG` is.
fn push_notice(lines: &mut Buffer, lost: u64) {
    if let Some(logger) = LOGGER.get() {
        let text = format_args!("Lost {lost} log lines: they could not be written");
        let content = Content::Message(text);
        logger.push_line(lines, Timestamp::now(), Level::Warn, content);
    }
}

fn push_text(lines: &mut Buffer, time: Timestamp, level: Level, content: Content<'_>) {
    time.push_rfc3339(lines);
    lines.push(match level {
        Level::Error => b" ERROR ",
        Level::Warn => b" WARN  ",
        Level::Info => b" INFO  ",
        Level::Debug => b" DEBUG ",
        Level::Trace => b" TRACE ",
    });
    match content {
        Content::Message(message) => push_message(lines, message),
        Content::Fields(fields) => lines.push(fields),
    }
    lines.push(b"\n");
}

fn push_object(lines: &mut Buffer, time: Timestamp, level: Level, content: Content<'_>) {
    lines.push(b"{\"time\":\"");
    time.push_rfc3339(lines);
    lines.push(match level {
        Level::Error => b"\",\"level\":\"ERROR\",",
        Level::Warn => b"\",\"level\":\"WARN\",",
        Level::Info => b"\",\"level\":\"INFO\",",
        Level::Debug => b"\",\"level\":\"DEBUG\",",
        Level::Trace => b"\",\"level\":\"TRACE\",",
    });
    match content {
        Content::Message(message) => {
            lines.push(b"\"message\":\"");
            push_message(&mut json::Writer(lines), message);
            lines.push(b"\"");
        }
        Content::Fields(fields) => lines.push(fields),
    }
    lines.push(b"}\n");
}

fn push_message(lines: &mut impl fmt::Write, message: fmt::Arguments<'_>) {
    let written = lines.write_fmt(message);
    debug_assert!(written.is_ok(), "a buffer grows");
}

/// Writes lines to stderr, and waits while it is full. Returns how many bytes are written: after an error the rest is
/// lost.
fn write_stderr(lines: &[u8]) -> usize {
    let stderr = io::stderr();
    let mut length = 0;
    while length < lines.len() {
        // Not through `Stderr`, whose lock a panic message needs: this call may block for long.
        match nix::unistd::write(&stderr, &lines[length..]).map_err(io::Error::from) {
            Ok(written @ 1..) => length += written,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Another process that shares the open file may have set O_NONBLOCK.
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let mut stderr = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
                // An error of poll(2) is one of the next write(2), too.
                let _ = poll(&mut stderr, PollTimeout::NONE);
            }
            Ok(_) | Err(_) => break,
        }
    }
    length
}
