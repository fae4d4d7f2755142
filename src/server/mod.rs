//! The server process: it accepts connections, answers their requests, and drains them at a stop.
//!
//! A new client, from its SYN to its first request; files are in parentheses:
//!
//! ```text
//!  SYN
//!   │ the kernel queues the connection (listener); if the queue is full, it drops the SYN, and the client
//!   │     sends it again
//!   │ epoll_wait(2) wakes one idle worker (acceptor)
//!   │ ConnectionLimit::acquire (limit): takes a place, below --max-connections at once.
//!   │     At the limit it waits; this client and those after it stay in the kernel's queue. It logs "The
//!   │     limit of … connections is reached", evicts as many connections as clients wait, up to 64 that
//!   │     have yet to end (counts), in the order in which they give way (eviction), and looks again at each
//!   │     release, and after RETRY.
//!   │ accept4(2). Without a free descriptor: evicts, and waits for a release
//!   │ ConnectionLimit::occupy: the last idle worker starts another now. Without a thread: evicts, and waits
//!   │     for a release
//!   │ Connection::serve (connection): reads requests from the stream, within deadlines; parked while it
//!   ▼     waits for the client's bytes
//! ```
//!
//! A worker is a thread (`workers`); it is *idle* until it serves a client. A connection is *parked* while its
//! worker waits for bytes: another thread may evict it. After 1 s without a request, and with all responses
//! acknowledged, it is *idle*: it keeps little memory. An eviction shuts down the side that reads: a request
//! that has arrived is answered, and then the connection ends.
//!
//! - `listener`: sockets with `IP_TRANSPARENT` on loopback, direct ones for the node's own probes, and that of
//!   `--metrics`.
//! - `acceptor`: an epoll(7) instance, one for each kind of listener, at which idle workers wait.
//! - `workers`, and their `scheduling`; `limit`, `counts`, `parked`, `eviction`: as above.
//! - `connection`: reads requests, writes responses and logs them, with the `deadlines` of each step, in the
//!   `buffers` of its worker.
//! - `client`: the stream of a connection, parked while it waits; `stream`: the connected socket, its deadlines, and
//!   its lingering close.
//! - `context`: what all connections share: the `config`, the `counters`, and `report`, which is what the guard says
//!   of the interception.
//! - `pages`: the answers to connections that are not captured: health, `state`, `metrics`.
//!
//! Direct connections from the node have their own listeners and workers, outside the limit: a probe shows
//! that the process lives, not that a client is served at once. So have connections to `--metrics`, which delay
//! neither probes nor clients.

pub mod acceptor;
pub mod buffers;
pub mod client;
pub mod config;
pub mod connection;
pub mod context;
pub mod counters;
pub mod counts;
pub mod deadlines;
mod eviction;
pub mod limit;
pub mod listener;
mod metrics;
mod pages;
pub mod parked;
pub mod report;
mod scheduling;
mod state;
pub mod stream;
pub mod workers;

use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Pid;

use crate::error::Error;
use crate::log::logger;
use crate::sandbox;
use crate::server::acceptor::Acceptors;
use crate::server::config::Config;
use crate::server::listener::Listeners;
use crate::server::report::LineReader;
use crate::server::workers::Workers;

/// Longest time that the server drains connections at a stop.
pub const GRACE: Duration = Duration::from_secs(10);

/// Message to the guard that the server is ready to serve.
pub const READY: &[u8] = b"ready";

/// Interval between two calls of [`Workers::maintain`].
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(1);

/// Largest number of open files beside those of captured connections: a dozen of the server's own, one for
/// each worker outside the limit, of which there are ten, and some that the parent process left open.
const OTHER_FILES: usize = 34;

/// Mappings of memory for each connection: a stack, its guard page, and one more for buffers. With the longest
/// requests on 3,000 connections 2.04 were seen: the kernel merges most of the others.
const MAPPINGS_PER_CONNECTION: usize = 3;

/// The kernel's limit on the mappings of a process (proc_sys_vm(5))
const MAX_MAP_COUNT: &str = "/proc/sys/vm/max_map_count";

/// Serves until the guard shuts down its end of `control`, then drains the connections.
///
/// # Errors
/// `EMFILE`, `ENOMEM`, `EAGAIN`, or any other error of the system calls that start the server, or of
/// read(2) from `control`.
pub fn run(
    listeners: Listeners,
    mut control: UnixStream,
    guard: Pid,
    config: Config,
) -> Result<(), Error> {
    let fault = |attempt: &'static str| move |error: io::Error| Error::new(attempt, error);
    let files = allow_open_files((config.max_connections + OTHER_FILES) as u64)
        .map_err(fault("raise the limit of open files"))?;
    let mappings = allowed_mappings();
    let acceptors = Acceptors::new(listeners).map_err(fault("listen"))?;
    sandbox::enter_server(guard)?;
    // Not before the sandbox: a full log would block this process, which could then outlive the guard.
    logger::start_writer().map_err(fault("start a thread"))?;
    let max_connections = cap_connections(config.max_connections, files, mappings);
    let workers =
        Workers::start(acceptors, max_connections, config).map_err(fault("start a thread"))?;
    control.write_all(READY).map_err(fault("tell the guard"))?;
    control
        .set_read_timeout(Some(MAINTENANCE_INTERVAL))
        .map_err(fault("listen to the guard"))?;
    let mut lines = LineReader::default();
    let mut buffer = [0; 1024];
    while let Some(bytes) =
        receive(&mut control, &mut buffer).map_err(fault("listen to the guard"))?
    {
        lines.read(bytes, workers.report());
        workers.maintain();
    }
    workers.drain(GRACE);
    // The exit of this process closes it, after the last log lines are written.
    mem::forget(control);
    Ok(())
}

/// Raises the soft limit of open files to `wanted`, or to the hard limit if that is lower; returns it.
fn allow_open_files(wanted: u64) -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let limit = wanted.min(hard).max(soft);
    setrlimit(Resource::RLIMIT_NOFILE, limit, hard)?;
    Ok(limit)
}

/// The largest number of mappings of memory that this process may have, if it can be read.
fn allowed_mappings() -> Option<usize> {
    let limit = std::fs::read_to_string(MAX_MAP_COUNT).ok()?;
    limit.trim_end().parse().ok()
}

/// The number of connections that `files` open files and `mappings` suffice for, at most `wanted`.
fn cap_connections(wanted: usize, files: u64, mappings: Option<usize>) -> usize {
    let by_files = usize::try_from(files).unwrap_or(usize::MAX);
    let by_files = by_files.saturating_sub(OTHER_FILES).clamp(1, wanted);
    if by_files < wanted {
        log::warn!(
            "At most {by_files} connections at once, not {wanted}: {files} files may be open"
        );
    }
    let mappings = mappings.unwrap_or(usize::MAX);
    let by_mappings = (mappings / MAPPINGS_PER_CONNECTION).clamp(1, by_files);
    if by_mappings < by_files {
        log::warn!(
            "At most {by_mappings} connections at once, not {by_files}: vm.max_map_count is {mappings}"
        );
    }
    by_mappings
}

/// Waits for bytes from the guard, until the read time-out; `None` once the guard has shut down its end.
fn receive<'b>(control: &mut UnixStream, buffer: &'b mut [u8]) -> io::Result<Option<&'b [u8]>> {
    match control.read(buffer) {
        Ok(0) => Ok(None),
        Ok(length) => Ok(Some(&buffer[..length])),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
            Ok(Some(&[]))
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_mappings_limit_the_connections() {
        let ample = u64::MAX;
        assert_eq!(cap_connections(20_000, ample, None), 20_000);
        assert_eq!(cap_connections(20_000, ample, Some(65_530)), 20_000);
        assert_eq!(cap_connections(30_000, ample, Some(65_530)), 21_843);
        assert_eq!(cap_connections(30_000, 1034, Some(65_530)), 1000);
        assert_eq!(cap_connections(1024, 0, Some(0)), 1);
    }
}
