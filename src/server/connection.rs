//! The life of a connection: read a request, write its response, log it, until a side ends the connection.
//!
//! `http` parses and formats; this file reads and writes, within the [`Deadlines`] of each step. A
//! connection is parked in its worker's [`Slot`] while it waits for the client's bytes: another thread may
//! evict it meanwhile. It costs little memory once it is idle.

use std::net::SocketAddr;
use std::ops::Range;
use std::time::Instant;

use crate::http::body::{Decoder, Framing};
use crate::http::echo::{self, Endpoints, Served};
use crate::http::fields::Persistence;
use crate::http::head::{Head, HeadScanner, Span};
use crate::http::response::CONTINUE;
use crate::http::status::{Rejection, Status};
use crate::log::buffer::Buffer;
use crate::server::acceptor::Accepted;
use crate::server::buffers::{Buffers, enlarge};
use crate::server::context::Context;
use crate::server::deadlines::{Deadlines, IDLE_AFTER};
use crate::server::limit::ConnectionLimit;
use crate::server::parked::{Progress, Slot};
use crate::server::stream::{Failure, Stream};
use crate::sys;

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
    limit: &'c ConnectionLimit,
    slot: &'c Slot,
    progress: Progress,
    /// Whether another thread has evicted the connection: what has arrived is read, and then it ends.
    is_evicted: bool,
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
        limit: &'c ConnectionLimit,
        slot: &'c Slot,
    ) -> std::io::Result<Connection<'c>> {
        let destination: SocketAddr = accepted.stream.local_addr()?;
        let is_direct = destination == accepted.listener;
        if !is_direct {
            context.count_connection();
        }
        let stream = Stream::new(accepted.stream);
        slot.open(stream.descriptor(), accepted.client.ip());
        Ok(Connection {
            stream,
            endpoints: Endpoints::new(accepted.client, destination),
            is_direct,
            deadlines,
            context,
            limit,
            slot,
            progress: Progress {
                answered: 0,
                since: Instant::now(),
                received: None,
            },
            is_evicted: false,
        })
    }

    /// Serves requests until the connection ends, and closes it.
    pub fn serve(mut self, buffers: &mut Buffers) {
        let mut filled = 0;
        loop {
            let arrived = self.wait_for_request(buffers, &mut filled);
            match arrived.and_then(|()| self.exchange(buffers, &mut filled)) {
                Ok(Persistence::Close) if filled > 0 || self.context.is_draining() => {
                    break self.linger();
                }
                Ok(Persistence::Close) => break,
                Ok(_) => {}
                Err(End::Rejected(rejection)) => break self.refuse(rejection, buffers, filled),
                Err(End::NoRequest) if self.progress.answered > 0 || self.is_direct => break,
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
        self.slot.clear();
    }

    /// Reads one request, whose first `filled` bytes are in the input buffer, and responds. Afterwards the
    /// first `filled` bytes are those that followed the request.
    ///
    /// Not inlined: its frame would add to the stack of a connection that waits.
    #[inline(never)]
    fn exchange(&mut self, buffers: &mut Buffers, filled: &mut usize) -> Result<Persistence, End> {
        let Buffers { input, response } = buffers;
        let started = Instant::now();
        self.progress.since = started;
        self.progress.received = Some(*filled as u64);
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
        let ends = self.is_direct || self.is_evicted || self.context.is_draining();
        let persistence = match ends {
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
        self.progress = Progress {
            answered: self.progress.answered.saturating_add(1),
            since: started + served.took,
            received: None,
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
            if *filled > 0 {
                self.stream.acknowledge();
            }
            self.slot.park(&self.progress);
            let received = self.read_first(buffers, *filled, &mut deadline);
            self.unpark();
            *filled += received.map_err(|_| End::NoRequest)?;
        }
        Ok(())
    }

    /// Reads after the first `filled` bytes of the input buffer. After [`IDLE_AFTER`] the deadline starts
    /// to count, and the connection becomes idle, unless its last response is not acknowledged yet: it frees
    /// its buffers and its stack.
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

    fn unpark(&mut self) {
        self.is_evicted |= self.limit.unpark(self.slot);
    }

    /// Reads more of a request. Meanwhile another thread may evict the connection.
    fn receive(&mut self, part: &Part, deadline: Instant, buffer: &mut [u8]) -> Result<usize, End> {
        self.stream.acknowledge();
        self.slot.park(&self.progress);
        let received = self.stream.read_until(deadline, buffer);
        self.unpark();
        let length = received.map_err(|failure| match failure {
            Failure::Closed if self.is_evicted => late(part.gave_way),
            Failure::TimedOut => late(part.took_too_long),
            failure => End::Lost(format!("the {} is not complete: {failure}", part.name)),
        })?;
        let received = self.progress.received.unwrap_or(0);
        self.progress.received = Some(received + length as u64);
        Ok(length)
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
            *filled += self.receive(&HEAD, deadline, &mut input[*filled..])?;
        }
    }

    /// Writes the content of a response up to the request's body: an echo, or all of it for a direct
    /// connection. Returns the status.
    fn begin_response(&self, content: &mut Buffer, head: &Head<'_>) -> Status {
        if !self.is_direct {
            echo::begin(content, head, &self.endpoints, self.context.node());
            return Status::OK;
        }
        let (status, text) = self.context.probe_answer(head.target);
        content.push(text.as_bytes());
        content.push(b"\n");
        status
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
            unread = 0..self.receive(&BODY, deadline, input)?;
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
            self.linger();
        }
    }

    /// Lingers. Once the client has acknowledged the response, the connection may give way.
    fn linger(&mut self) {
        self.progress.since = Instant::now();
        self.progress.received = Some(0);
        self.slot.park(&self.progress);
        self.stream.linger(self.deadlines.linger);
        self.unpark();
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

/// What is said of a part of a request that does not come to its end.
struct Part {
    name: &'static str,
    took_too_long: &'static str,
    gave_way: &'static str,
}

const HEAD: Part = Part {
    name: "head",
    took_too_long: "the head took too long",
    gave_way: "the head took too long while clients wait",
};

const BODY: Part = Part {
    name: "body",
    took_too_long: "the body took too long",
    gave_way: "the body took too long while clients wait",
};

fn late(reason: &'static str) -> End {
    End::Rejected(Rejection::new(Status::REQUEST_TIMEOUT, reason))
}
