//! Logging. A line takes this way from a request to stderr:
//!
//! 1. `server/connection.rs` has answered a request, gets the [`line`] from `http/log_lines.rs`, with a message and
//!    fields in the [`LogFormat`] of the options, and passes it to `logger`. Other lines are messages alone, from
//!    the macros of the `log` crate.
//! 2. `logger` filters by level and adds the time and the level.
//! 3. `logger` appends the line to `queue`, and the thread of the request goes on. If the queue is full,
//!    a thread that serves clients waits until there is space. After 1 s it discards the line, and then all
//!    threads do at once, as those do always that serve no clients, until half of the queue is written.
//! 4. The writer thread takes the oldest block of queued lines, 4 ms after the first of them or when they are
//!    128 KiB, and passes them to `logger::write_stderr`: one write(2) for many lines, of at most `PIPE_BUF` bytes
//!    unless stderr is a file. Before them it says how many lines were lost since it said so last.
//!
//! Before the writer thread has started, step 3 writes the line to stderr at once. The guard and the
//! server are two processes, and each has a queue and a writer thread of its own.
//!
//! `once` limits how often a line is logged. `buffer`, `timestamp`, `escape` and `json` are what log lines, and
//! responses, are built from.

pub mod buffer;
pub mod escape;
pub mod json;
pub mod line;
pub mod logger;
pub mod once;
pub mod queue;
pub mod timestamp;

/// The format of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// The time, the level and the message.
    #[default]
    Text,
    /// A JSON object (RFC 8259).
    Json,
}
