//! The life of a connection: requests are read, answered and logged, one after the other, until a
//! side ends it.
//!
//! A whole head, a whole body and a whole answer have one deadline each: a client that sends or
//! takes a byte now and then does not extend them.

use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use crate::http::body::{Decoder, Framing};
use crate::http::echo::{self, Endpoints, Served};
use crate::http::fields::Persistence;
use crate::http::head::{Head, HeadScanner, MAX_HEAD, Span};
use crate::http::response::{CONTINUE, Response};
use crate::http::status::{Rejection, Status};
use crate::log::buffer::Buffer;
use crate::server::deadlines::{Deadlines, IDLE_AFTER};
use crate::server::idle::Seat;
use crate::server::stream::{Failure, Stream};
use crate::sys;

/// What all connections share.
#[derive(Debug)]
pub struct Context {
    /// The node's name, shown in every echo.
    pub node: Option<String>,
    /// Whether connections end after their next answer.
    pub draining: AtomicBool,
    /// Connections to captured addresses.
    pub connections: AtomicU64,
    /// Requests on them, refusals included.
    pub requests: AtomicU64,
}

/// What is read at once, in bytes: of a head at first, as most are short; then the longest head, and as
/// much again, so that what is read of a body is never little.
const FIRST: usize = 1024;
const INPUT: usize = 2 * MAX_HEAD;

/// What a thread keeps from one connection to the next; nothing takes memory until it is used.
#[derive(Debug, Default)]
pub struct Buffers {
    input: Vec<u8>,
    answer: Response,
}

impl Buffers {
    fn prepare(&mut self) {
        if self.input.is_empty() {
            self.input = vec![0; FIRST];
        }
    }
}

/// Makes room for whatever a request may need.
fn enlarge(input: &mut Vec<u8>) {
    if input.len() < INPUT {
        let mut large = vec![0; INPUT];
        large[..input.len()].copy_from_slice(input);
        *input = large;
    }
}

/// Why a connection ends before its next answer.
enum End {
    /// There was no request to answer.
    Unused,
    /// A request could not be read, or its answer not sent, to the end.
    Lost(String),
    /// A request is refused.
    Rejected(Rejection),
}

impl From<Rejection> for End {
    fn from(rejection: Rejection) -> End {
        End::Rejected(rejection)
    }
}

/// A connection, and who is at its ends.
pub struct Connection<'c> {
    wire: Stream,
    ends: Endpoints,
    /// Whether it was made to the listener's own address, from the node itself.
    direct: bool,
    deadlines: &'c Deadlines,
    context: &'c Context,
    seat: &'c Seat,
}

impl<'c> Connection<'c> {
    /// A connection that was accepted at `listener`, and has a read time-out of [`IDLE_AFTER`].
    ///
    /// # Errors
    /// What the kernel answers to getsockname(2).
    pub fn new(
        stream: TcpStream,
        client: SocketAddr,
        listener: SocketAddr,
        deadlines: &'c Deadlines,
        context: &'c Context,
        seat: &'c Seat,
    ) -> std::io::Result<Connection<'c>> {
        let destination = stream.local_addr()?;
        let ends = Endpoints::new(client, destination);
        let wire = Stream::new(stream, IDLE_AFTER);
        let direct = destination == listener;
        if !direct {
            context.connections.fetch_add(1, Ordering::Relaxed);
        }
        Ok(Connection {
            wire,
            ends,
            direct,
            deadlines,
            context,
            seat,
        })
    }

    /// Answers requests until the connection ends; returns it if it has yet to be closed.
    pub fn serve(mut self, buffers: &mut Buffers) -> Option<Stream> {
        let mut filled = 0;
        let mut used = false;
        loop {
            let arrived = self.wait(buffers, &mut filled);
            match arrived.and_then(|()| self.exchange(buffers, &mut filled)) {
                Ok(Persistence::Close) if filled > 0 || self.is_draining() => {
                    break self.wire.hear_out(self.deadlines.linger);
                }
                Ok(Persistence::Close) => break,
                Ok(_) => used = true,
                Err(End::Rejected(rejection)) => break self.refuse(rejection, buffers, filled),
                Err(End::Unused) if used || self.direct => break,
                Err(End::Unused) => {
                    break log::info!("Connection without a request : {}", self.ends);
                }
                Err(End::Lost(reason)) => {
                    let input = &buffers.input[..filled];
                    break log::info!("{}", echo::lost_line(&self.ends, &reason, input));
                }
            }
        }
        self.wire.leave()
    }

    /// Reads a request, of which the first `filled` bytes are in the input, and answers it. What came
    /// behind it is in the input then.
    #[inline(never)]
    fn exchange(&mut self, buffers: &mut Buffers, filled: &mut usize) -> Result<Persistence, End> {
        let Buffers { input, answer } = buffers;
        let started = Instant::now();
        let span = self.read_head(input, filled, started)?;
        let (mut bytes, mut rest) = input.split_at_mut(span.range.end);
        let mut head = Head::parse(bytes, &span)?;
        if head.framing != Framing::None {
            enlarge(input);
            (bytes, rest) = input.split_at_mut(span.range.end);
            head = Head::parse(bytes, &span)?;
        }
        answer.clear();
        let status = self.begin(answer.content(), &head);
        let begun = *filled - span.range.end;
        // What has come of a body takes the place of what came before.
        *filled = span.range.end;
        let body = self.read_body(&head, rest, begun, answer.content())?;
        let persistence = match self.direct || self.is_draining() {
            true => Persistence::Close,
            false => head.persistence,
        };
        let bytes = answer.finish(status, persistence, head.method == b"HEAD");
        let written = match persistence {
            Persistence::Close => self.wire.finish(bytes, self.deadlines.response),
            _ => self.wire.write(bytes, self.deadlines.response),
        };
        written.map_err(|failure| End::Lost(format!("the answer was not taken: {failure}")))?;
        let served = Served {
            head: &head,
            endpoints: &self.ends,
            received: body.received,
            status,
            took: started.elapsed(),
        };
        self.log(&served, answer.content());
        *filled = body.unread.len();
        input.copy_within(
            span.range.end + body.unread.start..span.range.end + body.unread.end,
            0,
        );
        Ok(persistence)
    }

    /// Waits for the first bytes of a request, of which `filled` are there. Meanwhile, somebody else
    /// may end the connection. An empty line begins no request: some clients end a body with one
    /// (RFC 9112, 2.2).
    fn wait(&mut self, buffers: &mut Buffers, filled: &mut usize) -> Result<(), End> {
        let mut deadline = None;
        while let b"" | b"\r" | b"\r\n" = &buffers.input[..*filled] {
            self.seat.take(self.wire.descriptor());
            let received = self.read_first(buffers, *filled, &mut deadline);
            self.seat.leave();
            *filled += received.map_err(|_| End::Unused)?;
        }
        Ok(())
    }

    /// Reads behind the first `filled` bytes of the input. A connection that lets us wait has a
    /// deadline from then on, costs little memory meanwhile, and gives way to others: one that pauses
    /// for less is busy, and so is one that is still taking its answer.
    fn read_first(
        &mut self,
        buffers: &mut Buffers,
        filled: usize,
        deadline: &mut Option<Instant>,
    ) -> Result<usize, Failure> {
        buffers.prepare();
        match self.wire.read(&mut buffers.input[filled..]) {
            Err(Failure::TimedOut) => {}
            received => return received,
        }
        let rest = self.deadlines.idle.saturating_sub(IDLE_AFTER);
        let deadline = *deadline.get_or_insert_with(|| Instant::now() + rest);
        if self.wire.wait_until_taken()? {
            self.seat.rest(Instant::now());
            // There is nothing yet but an empty line at most.
            let begun = [buffers.input[0], buffers.input[1]];
            *buffers = Buffers::default();
            sys::release_stack();
            self.wire.wait_until(deadline)?;
            buffers.prepare();
            buffers.input[..begun.len()].copy_from_slice(&begun);
        }
        self.wire.read(&mut buffers.input[filled..])
    }

    fn is_draining(&self) -> bool {
        self.context.draining.load(Ordering::SeqCst)
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
                .wire
                .read_until(deadline, &mut input[*filled..])
                .map_err(|failure| match failure {
                    Failure::TimedOut => End::Rejected(late("the head took too long")),
                    failure => End::Lost(format!("the head is not complete: {failure}")),
                })?;
        }
    }

    /// Begins the answer: an echo, or what the node itself asked for.
    fn begin(&self, answer: &mut Buffer, head: &Head<'_>) -> Status {
        if !self.direct {
            echo::begin(answer, head, &self.ends, self.context.node.as_deref());
            return Status::Ok;
        }
        let (status, text) = match head.target {
            b"/healthz" if self.is_draining() => (Status::ServiceUnavailable, "draining\n"),
            b"/healthz" => (Status::Ok, "ok\n"),
            _ => (
                Status::NotFound,
                "this is the listener itself, not a Pod: only /healthz is here\n",
            ),
        };
        answer.push(text.as_bytes());
        status
    }

    /// Reads the body, the first `filled` bytes of which are in `input`, and echoes it.
    fn read_body(
        &mut self,
        head: &Head<'_>,
        input: &mut [u8],
        filled: usize,
        echo: &mut Buffer,
    ) -> Result<ReadBody, End> {
        let mut decoder = Decoder::new(head.framing);
        let mut room = if self.direct { 0 } else { echo::MAX_ECHO };
        let mut unread = 0..filled;
        if head.expects_continue && !decoder.is_complete() && unread.is_empty() {
            self.wire
                .write(CONTINUE, self.deadlines.response)
                .map_err(|failure| End::Lost(format!("100 Continue was not taken: {failure}")))?;
        }
        let mut deadline = None;
        loop {
            unread.start += decoder.decode(&input[unread.clone()], |piece| {
                let shown = piece.len().min(room);
                echo.push(&piece[..shown]);
                room -= shown;
            })?;
            if decoder.is_complete() {
                break;
            }
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + self.deadlines.body);
            unread = 0..self
                .wire
                .read_until(deadline, input)
                .map_err(|failure| match failure {
                    Failure::TimedOut => End::Rejected(late("the body took too long")),
                    failure => End::Lost(format!("the body is not complete: {failure}")),
                })?;
        }
        let received = decoder.received();
        if !self.direct {
            echo::end(echo, received);
        }
        Ok(ReadBody { received, unread })
    }

    /// A probe of the node's says nothing about who calls whom.
    fn log(&self, served: &Served<'_>, line: &mut Buffer) {
        let line = served.line(line);
        match self.direct && served.status == Status::Ok {
            true => log::debug!("{line}"),
            false => log::info!("{line}"),
        }
        self.count();
    }

    fn count(&self) {
        if !self.direct {
            self.context.requests.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Answers what cannot be served, and ends the connection: where the next request would begin
    /// is not known.
    fn refuse(&mut self, rejection: Rejection, buffers: &mut Buffers, filled: usize) {
        let Buffers { input, answer } = buffers;
        let bytes = &input[..filled];
        answer.clear();
        echo::refusal(answer.content(), rejection);
        let bytes_out = answer.finish(
            rejection.status,
            Persistence::Close,
            bytes
                .strip_prefix(b"\r\n")
                .unwrap_or(bytes)
                .starts_with(b"HEAD "),
        );
        let written = self.wire.finish(bytes_out, self.deadlines.response);
        self.count();
        log::warn!("{}", echo::refused_line(&self.ends, rejection, bytes));
        if written.is_ok() {
            self.wire.hear_out(self.deadlines.linger);
        }
    }
}

/// A body that was read to its end.
struct ReadBody {
    /// The length of its content, in bytes.
    received: u64,
    /// What lies behind it in the input.
    unread: Range<usize>,
}

fn late(reason: &'static str) -> Rejection {
    Rejection {
        status: Status::RequestTimeout,
        reason,
    }
}
