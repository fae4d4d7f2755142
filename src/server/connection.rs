//! The life of a connection: read a request, write its response, log it, until a side ends the connection.
//!
//! `http` parses and formats; this file reads and writes, within the [`Deadlines`] of each step. A
//! connection that waits for a request is parked in its worker's [`Slot`], and costs little memory once it
//! is idle.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::ops::Range;
use std::time::Instant;

use crate::http::body::{Decoder, Framing};
use crate::http::echo::{self, Endpoints, Served};
use crate::http::fields::Persistence;
use crate::http::head::{Head, HeadScanner, MAX_HEAD, Span};
use crate::http::response::{CONTINUE, Response};
use crate::http::status::{Rejection, Status};
use crate::log::buffer::Buffer;
use crate::server::acceptor::Accepted;
use crate::server::context::Context;
use crate::server::deadlines::{Deadlines, IDLE_AFTER};
use crate::server::parked::Slot;
use crate::server::stream::{Failure, Stream};
use crate::sys;

/// Initial length of the input buffer, in bytes: most request heads are shorter.
const INITIAL_INPUT: usize = 1024;

/// Full length of the input buffer, in bytes: a read of a body gets at least half of it, whatever the
/// length of the head.
const FULL_INPUT: usize = 2 * MAX_HEAD;

/// The buffers of a worker, reused for its next connection. They take no memory before their first use.
#[derive(Debug, Default)]
pub struct Buffers {
    input: Vec<u8>,
    response: Response,
}

impl Buffers {
    fn prepare(&mut self) {
        if self.input.is_empty() {
            self.input = vec![0; INITIAL_INPUT];
        }
    }
}

fn enlarge(input: &mut Vec<u8>) {
    if input.len() < FULL_INPUT {
        let mut large = vec![0; FULL_INPUT];
        large[..input.len()].copy_from_slice(input);
        *input = large;
    }
}

/// Why a connection ends without another response to a request.
enum End {
    /// The client closed the connection, or timed out, before a request began.
    NoRequest,
    /// A request could not be read to its end, or its response not be written, for this reason.
    Lost(String),
    /// A request is refused.
    Rejected(Rejection),
}

impl From<Rejection> for End {
    fn from(rejection: Rejection) -> End {
        End::Rejected(rejection)
    }
}

/// A connection.
pub struct Connection<'c> {
    stream: Stream,
    endpoints: Endpoints,
    /// Whether the node itself connected to the listener's own address.
    is_direct: bool,
    deadlines: &'c Deadlines,
    context: &'c Context,
    slot: &'c Slot,
}

impl<'c> Connection<'c> {
    /// A connection that was accepted.
    ///
    /// # Errors
    /// Any error of getsockname(2).
    pub fn new(
        accepted: Accepted,
        deadlines: &'c Deadlines,
        context: &'c Context,
        slot: &'c Slot,
    ) -> std::io::Result<Connection<'c>> {
        let destination: SocketAddr = accepted.stream.local_addr()?;
        let is_direct = destination == accepted.listener;
        if !is_direct {
            context.count_connection();
        }
        Ok(Connection {
            stream: Stream::new(accepted.stream),
            endpoints: Endpoints::new(accepted.client, destination),
            is_direct,
            deadlines,
            context,
            slot,
        })
    }

    /// Serves requests until the connection ends, and closes it.
    pub fn serve(mut self, buffers: &mut Buffers) {
        let mut filled = 0;
        let mut is_used = false;
        loop {
            let arrived = self.wait_for_request(buffers, &mut filled);
            match arrived.and_then(|()| self.exchange(buffers, &mut filled)) {
                Ok(Persistence::Close) if filled > 0 || self.context.is_draining() => {
                    break self.stream.linger(self.deadlines.linger);
                }
                Ok(Persistence::Close) => break,
                Ok(_) => is_used = true,
                Err(End::Rejected(rejection)) => break self.refuse(rejection, buffers, filled),
                Err(End::NoRequest) if is_used || self.is_direct => break,
                Err(End::NoRequest) => {
                    break log::info!("Connection without a request : {}", self.endpoints);
                }
                Err(End::Lost(reason)) => {
                    let input = &buffers.input[..filled];
                    break log::info!("{}", echo::lost_line(&self.endpoints, &reason, input));
                }
            }
        }
        self.stream.close();
    }

    /// Reads one request, whose first `filled` bytes are in the input buffer, and responds. Afterwards the
    /// first `filled` bytes are those that followed the request.
    ///
    /// Not inlined: its frame would add to the stack of a connection that waits.
    #[inline(never)]
    fn exchange(&mut self, buffers: &mut Buffers, filled: &mut usize) -> Result<Persistence, End> {
        let Buffers { input, response } = buffers;
        let started = Instant::now();
        let span = self.read_head(input, filled, started)?;
        let (mut bytes, mut rest) = input.split_at_mut(span.range.end);
        let mut head = Head::parse(bytes, &span)?;
        if head.framing != Framing::None {
            enlarge(input);
            (bytes, rest) = input.split_at_mut(span.range.end);
            head = Head::parse(bytes, &span)?;
        }
        response.clear();
        let status = self.begin_response(response.content(), &head);
        let begun = *filled - span.range.end;
        // The body is read into the rest of the buffer, over what has arrived of it.
        *filled = span.range.end;
        let body = self.read_body(&head, rest, begun, response.content())?;
        let persistence = match self.is_direct || self.context.is_draining() {
            true => Persistence::Close,
            false => head.persistence,
        };
        self.write(
            response.finish(status, persistence, head.method == b"HEAD"),
            persistence,
        )
        .map_err(|failure| End::Lost(format!("the response could not be sent: {failure}")))?;
        let served = Served {
            head: &head,
            endpoints: &self.endpoints,
            received: body.received,
            status,
            took: started.elapsed(),
        };
        // The response is sent: its buffer is free for the log line.
        self.log(&served, response.content());
        *filled = body.unread.len();
        let [start, end] = [body.unread.start, body.unread.end].map(|at| span.range.end + at);
        input.copy_within(start..end, 0);
        Ok(persistence)
    }

    /// Waits for the first bytes of a request, of which `filled` have arrived. Meanwhile another thread may
    /// end the connection. A server ignores an empty line before a request (RFC 9112, 2.2).
    fn wait_for_request(&mut self, buffers: &mut Buffers, filled: &mut usize) -> Result<(), End> {
        let mut deadline = None;
        while let b"" | b"\r" | b"\r\n" = &buffers.input[..*filled] {
            self.slot.park(self.stream.descriptor());
            let received = self.read_first(buffers, *filled, &mut deadline);
            self.slot.unpark();
            *filled += received.map_err(|_| End::NoRequest)?;
        }
        Ok(())
    }

    /// Reads after the first `filled` bytes of the input buffer. After [`IDLE_AFTER`] the deadline starts
    /// to count, and the connection becomes idle, unless its last response is not acknowledged yet: it frees
    /// its buffers and its stack, and may be evicted.
    fn read_first(
        &mut self,
        buffers: &mut Buffers,
        filled: usize,
        deadline: &mut Option<Instant>,
    ) -> Result<usize, Failure> {
        buffers.prepare();
        match self.stream.read(&mut buffers.input[filled..]) {
            Err(Failure::TimedOut) => {}
            received => return received,
        }
        let rest = self.deadlines.first_byte.saturating_sub(IDLE_AFTER);
        let deadline = *deadline.get_or_insert_with(|| Instant::now() + rest);
        if self.stream.wait_acknowledged()? {
            self.slot.set_idle(Instant::now());
            // At most an empty line has arrived.
            let begun = [buffers.input[0], buffers.input[1]];
            *buffers = Buffers::default();
            sys::release_stack();
            self.stream.wait_readable(deadline)?;
            buffers.prepare();
            buffers.input[..begun.len()].copy_from_slice(&begun);
        }
        self.stream.read(&mut buffers.input[filled..])
    }

    fn read_head(
        &mut self,
        input: &mut Vec<u8>,
        filled: &mut usize,
        started: Instant,
    ) -> Result<Span, End> {
        let mut scanner = HeadScanner::default();
        let deadline = started + self.deadlines.head;
        loop {
            if let Some(span) = scanner.scan(&input[..*filled])? {
                return Ok(span);
            }
            enlarge(input);
            *filled += self
                .stream
                .read_until(deadline, &mut input[*filled..])
                .map_err(|failure| match failure {
                    Failure::TimedOut => End::Rejected(late("the head took too long")),
                    failure => End::Lost(format!("the head is not complete: {failure}")),
                })?;
        }
    }

    /// Writes the content of a response up to the request's body: an echo, or all of it for a direct
    /// connection. Returns the status.
    fn begin_response(&self, content: &mut Buffer, head: &Head<'_>) -> Status {
        if !self.is_direct {
            echo::begin(content, head, &self.endpoints, self.context.node());
            return Status::OK;
        }
        let (status, text) = self.probe_answer(head.target);
        content.push(text.as_bytes());
        content.push(b"\n");
        status
    }

    /// The answer to a direct connection, in one line: `/healthz` says that the process serves, `/readyz` that
    /// everything is in place.
    fn probe_answer(&self, target: &[u8]) -> (Status, Cow<'static, str>) {
        match target {
            b"/healthz" if self.context.is_draining() => {
                (Status::SERVICE_UNAVAILABLE, "draining".into())
            }
            b"/healthz" => (Status::OK, "ok".into()),
            b"/readyz" => match self.context.readiness().reason() {
                None => (Status::OK, "ready".into()),
                Some(reason) => (
                    Status::SERVICE_UNAVAILABLE,
                    format!("not ready: {reason}").into(),
                ),
            },
            _ => (
                Status::NOT_FOUND,
                "this is the listener itself, not a Pod: only /healthz and /readyz are here".into(),
            ),
        }
    }

    /// Reads the body, whose first `filled` bytes are in `input`, and appends up to [`echo::MAX_ECHO`] bytes
    /// of it to `echo`.
    fn read_body(
        &mut self,
        head: &Head<'_>,
        input: &mut [u8],
        filled: usize,
        echo: &mut Buffer,
    ) -> Result<ReadBody, End> {
        let mut decoder = Decoder::new(head.framing);
        let mut space = if self.is_direct { 0 } else { echo::MAX_ECHO };
        let mut unread = 0..filled;
        if head.expects_continue && !decoder.is_complete() && unread.is_empty() {
            self.write_continue()?;
        }
        let mut deadline = None;
        loop {
            unread.start += decoder.decode(&input[unread.clone()], |piece| {
                let shown = piece.len().min(space);
                echo.push(&piece[..shown]);
                space -= shown;
            })?;
            if decoder.is_complete() {
                break;
            }
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + self.deadlines.body);
            unread =
                0..self
                    .stream
                    .read_until(deadline, input)
                    .map_err(|failure| match failure {
                        Failure::TimedOut => End::Rejected(late("the body took too long")),
                        failure => End::Lost(format!("the body is not complete: {failure}")),
                    })?;
        }
        let received = decoder.received();
        if !self.is_direct {
            echo::end(echo, received);
        }
        Ok(ReadBody { received, unread })
    }

    fn write_continue(&mut self) -> Result<(), End> {
        let written = self.stream.write(CONTINUE, self.deadlines.response);
        written.map_err(|failure| End::Lost(format!("100 Continue could not be sent: {failure}")))
    }

    /// Logs a request. A probe is logged at level `debug` only, also where it says why the program is not ready:
    /// the guard has logged that.
    fn log(&self, served: &Served<'_>, line: &mut Buffer) {
        let line = served.line(line);
        match self.is_direct && served.status != Status::NOT_FOUND {
            true => log::debug!("{line}"),
            false => log::info!("{line}"),
        }
        self.count();
    }

    fn count(&self) {
        if !self.is_direct {
            self.context.count_request();
        }
    }

    /// Responds to a request that is refused. The connection ends, because the start of the next request is
    /// unknown.
    fn refuse(&mut self, rejection: Rejection, buffers: &mut Buffers, filled: usize) {
        let Buffers { input, response } = buffers;
        let bytes = &input[..filled];
        let request = bytes.strip_prefix(b"\r\n").unwrap_or(bytes);
        response.clear();
        echo::refusal(response.content(), rejection);
        let is_head = request.starts_with(b"HEAD ");
        let sent = response.finish(rejection.status, Persistence::Close, is_head);
        let written = self.write(sent, Persistence::Close);
        self.count();
        log::warn!("{}", echo::refused_line(&self.endpoints, rejection, bytes));
        if written.is_ok() {
            self.stream.linger(self.deadlines.linger);
        }
    }

    fn write(&mut self, response: &[u8], persistence: Persistence) -> Result<(), Failure> {
        match persistence {
            Persistence::Close => self.stream.write_last(response, self.deadlines.response),
            _ => self.stream.write(response, self.deadlines.response),
        }
    }
}

/// A body that was read to its end.
struct ReadBody {
    /// Length of the decoded content, in bytes.
    received: u64,
    /// Bytes of the input buffer that follow the body.
    unread: Range<usize>,
}

fn late(reason: &'static str) -> Rejection {
    Rejection::new(Status::REQUEST_TIMEOUT, reason)
}
