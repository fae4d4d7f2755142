//! The client of a connection: its stream, which is parked in the [`Slot`] of its worker while it waits for the
//! client. Another thread may evict it meanwhile: then what has arrived is read, and the stream ends.

use std::time::{Duration, Instant};

use crate::server::acceptor::Accepted;
use crate::server::buffers::Buffers;
use crate::server::deadlines::{Deadlines, IDLE_AFTER};
use crate::server::limit::ConnectionLimit;
use crate::server::parked::{Progress, Slot};
use crate::server::stream::{self, Failure, Stream};
use crate::sys;

/// A connected client.
#[derive(Debug)]
pub struct Client<'c> {
    stream: Stream,
    deadlines: &'c Deadlines,
    limit: &'c ConnectionLimit,
    slot: &'c Slot,
    progress: Progress,
    is_evicted: bool,
}

impl<'c> Client<'c> {
    /// The client of an accepted connection.
    pub fn new(
        accepted: Accepted,
        deadlines: &'c Deadlines,
        limit: &'c ConnectionLimit,
        slot: &'c Slot,
    ) -> Client<'c> {
        let stream = Stream::new(accepted.stream);
        slot.open(stream.descriptor(), accepted.client.ip());
        Client {
            stream,
            deadlines,
            limit,
            slot,
            progress: Progress {
                answered: 0,
                since: Instant::now(),
                received: None,
            },
            is_evicted: false,
        }
    }

    /// The deadlines of its connection.
    pub fn deadlines(&self) -> &'c Deadlines {
        self.deadlines
    }

    /// The limit to which its connection counts.
    pub fn limit(&self) -> &'c ConnectionLimit {
        self.limit
    }

    /// Whether another thread has evicted the connection.
    pub fn is_evicted(&self) -> bool {
        self.is_evicted
    }

    /// Whether it has been answered a request.
    pub fn is_answered(&self) -> bool {
        self.progress.answered > 0
    }

    /// Records that a request has begun, of which `received` bytes have arrived; returns the time.
    pub fn begin_request(&mut self, received: usize) -> Instant {
        let now = Instant::now();
        self.progress.since = now;
        self.progress.received = Some(received as u64);
        now
    }

    /// Records that the request has been answered; returns the time since it began.
    pub fn end_request(&mut self) -> Duration {
        let now = Instant::now();
        let took = now.saturating_duration_since(self.progress.since);
        self.progress = Progress {
            answered: self.progress.answered.saturating_add(1),
            since: now,
            received: None,
        };
        took
    }

    /// Waits for the first bytes of a request, of which `filled` have arrived. Meanwhile another thread may
    /// end the connection. A server ignores an empty line before a request (RFC 9112, 2.2).
    ///
    /// # Errors
    /// As [`Stream::read`]; `TimedOut` at the deadline.
    pub fn wait_for_request(
        &mut self,
        buffers: &mut Buffers,
        filled: &mut usize,
    ) -> Result<(), Failure> {
        let mut deadline = None;
        while let b"" | b"\r" | b"\r\n" = &buffers.input[..*filled] {
            if *filled > 0 {
                self.stream.acknowledge();
            }
            self.slot.park(&self.progress);
            let received = self.read_first(buffers, *filled, &mut deadline);
            self.unpark();
            *filled += received?;
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
        let limit = match self.is_answered() {
            true => self.deadlines.keep_alive,
            false => self.deadlines.first_byte,
        };
        let rest = limit.saturating_sub(IDLE_AFTER);
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
    ///
    /// # Errors
    /// As [`Stream::read_until`].
    pub fn receive(&mut self, deadline: Instant, buffer: &mut [u8]) -> Result<usize, Failure> {
        self.stream.acknowledge();
        self.slot.park(&self.progress);
        let received = self.stream.read_until(deadline, buffer);
        self.unpark();
        let length = received?;
        let before = self.progress.received.unwrap_or(0);
        self.progress.received = Some(before + length as u64);
        Ok(length)
    }

    /// Waits before the response. Meanwhile another thread may evict the connection: then no longer.
    pub fn delay(&mut self, delay: Duration) {
        if !delay.is_zero() && !self.is_evicted {
            self.limit.delay(self.slot, delay);
            self.unpark();
        }
    }

    /// Whether another thread has evicted the connection, and more has arrived than the request: a close would reset the
    /// connection.
    pub fn has_unread(&self) -> bool {
        self.is_evicted && stream::has_unread(self.stream.descriptor())
    }

    /// Writes a response, or a part of it. After the last one no more can be written.
    ///
    /// # Errors
    /// As [`Stream::write`].
    pub fn write(&mut self, response: &[u8], is_last: bool) -> Result<(), Failure> {
        match is_last {
            true => self.stream.write_last(response, self.deadlines.response),
            false => self.stream.write(response, self.deadlines.response),
        }
    }

    /// Lingers. Once the client has acknowledged the response, the connection may give way.
    pub fn linger(&mut self) {
        self.begin_request(0);
        self.slot.park(&self.progress);
        self.stream.linger(self.deadlines.linger);
        self.unpark();
    }

    /// Closes the connection.
    pub fn close(self) {
        self.stream.close();
        self.slot.clear();
    }
}
