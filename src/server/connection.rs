//! The life of a connection: read a request, write its response, log it, until a side ends the connection.
//!
//! `http` parses and formats, [`Client`] reads and writes; this file decides what comes next, within the
//! [`Deadlines`] of each step.

use std::net::SocketAddr;
use std::ops::Range;
use std::time::{Duration, Instant};

use log::Level;

use crate::http::body::{Decoder, Framing};
use crate::http::directives::Directives;
use crate::http::echo::{self, Echo};
use crate::http::endpoints::Endpoints;
use crate::http::fields::Persistence;
use crate::http::head::{Head, HeadScanner, Span};
use crate::http::log_lines::{self, Served};
use crate::http::response::{CONTINUE, Content, Description};
use crate::http::status::{Rejection, Status};
use crate::log::buffer::Buffer;
use crate::log::line::Line;
use crate::log::logger;
use crate::server::acceptor::{Accepted, ListenerKind};
use crate::server::buffers::{Buffers, enlarge};
use crate::server::client::Client;
use crate::server::context::Context;
use crate::server::deadlines::Deadlines;
use crate::server::limit::ConnectionLimit;
use crate::server::pages;
use crate::server::parked::Slot;
use crate::server::stream::Failure;

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
    client: Client<'c>,
    endpoints: Endpoints,
    kind: ListenerKind,
    context: &'c Context,
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
        // It may have come before the direct listener was there.
        let kind = match accepted.kind {
            ListenerKind::Transparent if destination == accepted.listener => ListenerKind::Direct,
            kind => kind,
        };
        if kind == ListenerKind::Transparent {
            context.counters().count_connection();
        }
        Ok(Connection {
            endpoints: Endpoints::new(accepted.client, destination),
            client: Client::new(accepted, deadlines, limit, slot),
            kind,
            context,
        })
    }

    fn is_captured(&self) -> bool {
        self.kind == ListenerKind::Transparent
    }

    /// Serves requests until the connection ends, and closes it.
    pub fn serve(mut self, buffers: &mut Buffers) {
        let mut filled = 0;
        loop {
            let arrived = self.client.wait_for_request(buffers, &mut filled);
            let arrived = arrived.map_err(|_| End::NoRequest);
            match arrived.and_then(|()| self.exchange(buffers, &mut filled)) {
                Ok(Persistence::Close)
                    if filled > 0 || self.context.is_draining() || self.client.has_unread() =>
                {
                    break self.client.linger();
                }
                Ok(Persistence::Close) => break,
                Ok(_) => {}
                Err(End::Rejected(rejection)) => break self.refuse(rejection, buffers, filled),
                Err(End::NoRequest) if self.client.is_answered() || !self.is_captured() => break,
                Err(End::NoRequest) => {
                    let line = buffers.response.content();
                    let line = log_lines::without_request(line, logger::format(), &self.endpoints);
                    break self.log(Level::Info, line);
                }
                Err(End::Lost(reason)) => break self.lose(&reason, buffers, filled),
            }
        }
        self.client.close();
    }

    /// Reads one request, whose first `filled` bytes are in the input buffer, and responds. Afterwards the
    /// first `filled` bytes are those that followed the request.
    ///
    /// Not inlined: its frame would add to the stack of a connection that waits.
    #[inline(never)]
    fn exchange(&mut self, buffers: &mut Buffers, filled: &mut usize) -> Result<Persistence, End> {
        let Buffers { input, response } = buffers;
        let started = self.client.begin_request(*filled);
        let span = self.read_head(input, filled, started)?;
        let (mut bytes, mut rest) = input.split_at_mut(span.range.end);
        let mut head = Head::parse(bytes, &span)?;
        if head.framing != Framing::None {
            enlarge(input);
            (bytes, rest) = input.split_at_mut(span.range.end);
            head = Head::parse(bytes, &span)?;
        }
        response.clear();
        let begun = self.begin_response(response.content(), &head)?;
        let arrived = *filled - span.range.end;
        // The body is read into the rest of the buffer, over what has arrived of it.
        *filled = span.range.end;
        let body = self.read_body(&head, rest, arrived, &begun, response.content())?;
        self.client.delay(begun.delay);
        let ends = !self.is_captured() || self.client.is_evicted() || self.context.is_draining();
        let persistence = match ends {
            true => Persistence::Close,
            false => head.persistence,
        };
        let sent = response.finish(Description {
            status: begun.status,
            method: head.method,
            content: begun.content,
            persistence,
        });
        let written = self.client.write(sent, persistence == Persistence::Close);
        written
            .map_err(|failure| End::Lost(format!("the response could not be sent: {failure}")))?;
        let served = Served {
            head: &head,
            endpoints: &self.endpoints,
            received: body.received,
            status: begun.status,
            took: self.client.end_request(),
        };
        if self.is_captured() {
            let counters = self.context.counters();
            counters.count_answered(served.status, served.took);
        }
        // The response is sent: its buffer is free for the log line.
        self.log_served(&served, response.content());
        *filled = body.unread.len();
        let [start, end] = [body.unread.start, body.unread.end].map(|at| span.range.end + at);
        input.copy_within(start..end, 0);
        Ok(persistence)
    }

    /// Reads more of a request.
    fn receive(&mut self, part: &Part, deadline: Instant, buffer: &mut [u8]) -> Result<usize, End> {
        let received = self.client.receive(deadline, buffer);
        received.map_err(|failure| match failure {
            Failure::Closed if self.client.is_evicted() => late(part.gave_way),
            Failure::TimedOut => late(part.took_too_long),
            failure => End::Lost(format!("the {} is not complete: {failure}", part.name)),
        })
    }

    fn read_head(
        &mut self,
        input: &mut Vec<u8>,
        filled: &mut usize,
        started: Instant,
    ) -> Result<Span, End> {
        let mut scanner = HeadScanner::default();
        let deadline = started + self.client.deadlines().head;
        loop {
            if let Some(span) = scanner.scan(&input[..*filled])? {
                return Ok(span);
            }
            enlarge(input);
            *filled += self.receive(&HEAD, deadline, &mut input[*filled..])?;
        }
    }

    /// Writes the content of a response up to the request's body: an echo, or a whole page for a connection that is
    /// not captured.
    fn begin_response(&self, content: &mut Buffer, head: &Head<'_>) -> Result<Begun, Rejection> {
        if self.is_captured() {
            let Directives { status, delay } = head.echo_fields.or(self.context.directives())?;
            let echo = Echo::begin(content, head, &self.endpoints, self.context.node());
            return Ok(Begun {
                status,
                delay,
                content: echo.content(),
                echo: Some(echo),
            });
        }
        let limit = self.client.limit();
        let (status, kind) = pages::write(content, head.path(), self.kind, self.context, limit);
        Ok(Begun {
            status,
            delay: Duration::ZERO,
            content: kind,
            echo: None,
        })
    }

    /// Reads the body, whose first `filled` bytes are in `input`, and completes the echo with it in `content`.
    fn read_body(
        &mut self,
        head: &Head<'_>,
        input: &mut [u8],
        filled: usize,
        begun: &Begun,
        content: &mut Buffer,
    ) -> Result<ReadBody, End> {
        let mut decoder = Decoder::new(head.framing);
        let mut space = begun.echo.map_or(0, Echo::room);
        let mut unread = 0..filled;
        if head.expects_continue && !decoder.is_complete() && unread.is_empty() {
            self.write_continue()?;
        }
        let mut deadline = None;
        loop {
            unread.start += decoder.decode(&input[unread.clone()], |piece| {
                let shown = piece.len().min(space);
                content.push(&piece[..shown]);
                space -= shown;
            })?;
            if decoder.is_complete() {
                break;
            }
            let deadline =
                *deadline.get_or_insert_with(|| Instant::now() + self.client.deadlines().body);
            unread = 0..self.receive(&BODY, deadline, input)?;
        }
        let received = decoder.received();
        if let Some(echo) = begun.echo {
            echo.end(content, received);
        }
        Ok(ReadBody { received, unread })
    }

    fn write_continue(&mut self) -> Result<(), End> {
        let written = self.client.write(CONTINUE, false);
        written.map_err(|failure| End::Lost(format!("100 Continue could not be sent: {failure}")))
    }

    /// Logs a request. A probe is logged at level `debug` only, also where it says why the program is not ready:
    /// the guard has logged that.
    fn log_served(&self, served: &Served<'_>, line: &mut Buffer) {
        let level = match !self.is_captured() && served.status != Status::NOT_FOUND {
            true => Level::Debug,
            false => Level::Info,
        };
        self.log(level, served.line(line, logger::format()));
    }

    /// Logs a line at this level, and at `debug` only for the metrics: any client of the network reaches them, and
    /// must not take the place of the lines of captured requests.
    fn log(&self, level: Level, line: Line<'_>) {
        let level = match self.kind {
            ListenerKind::Metrics => Level::Debug,
            ListenerKind::Transparent | ListenerKind::Direct => level,
        };
        logger::log(level, module_path!(), line);
    }

    /// Counts and logs a request that was lost.
    fn lose(&self, reason: &str, buffers: &mut Buffers, filled: usize) {
        if self.is_captured() {
            self.context.counters().count_lost();
        }
        let (line, input) = (buffers.response.content(), &buffers.input[..filled]);
        let line = log_lines::lost(line, logger::format(), &self.endpoints, reason, input);
        self.log(Level::Info, line);
    }

    /// Responds to a request that is refused. The connection ends, because the start of the next request is
    /// unknown.
    fn refuse(&mut self, rejection: Rejection, buffers: &mut Buffers, filled: usize) {
        let Buffers { input, response } = buffers;
        let bytes = &input[..filled];
        let request = bytes.strip_prefix(b"\r\n").unwrap_or(bytes);
        response.clear();
        let content = echo::refusal(response.content(), rejection, request);
        let method = request.split(|byte| *byte == b' ').next();
        let sent = response.finish(Description {
            status: rejection.status,
            method: method.unwrap_or_default(),
            content,
            persistence: Persistence::Close,
        });
        let written = self.client.write(sent, true);
        if self.is_captured() {
            self.context.counters().count_refused(rejection.status);
        }
        let (line, format) = (response.content(), logger::format());
        let line = log_lines::refused(line, format, &self.endpoints, rejection, bytes);
        self.log(Level::Warn, line);
        if written.is_ok() {
            self.client.linger();
        }
    }
}

/// A response whose content is begun.
struct Begun {
    status: Status,
    /// How long the response waits once the request is read.
    delay: Duration,
    /// What the content is.
    content: Content,
    /// The echo; `None` if the content is complete.
    echo: Option<Echo>,
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
