//! The log lines of requests and connections.

use std::time::Duration;

use crate::http::endpoints::Endpoints;
use crate::http::head::Head;
use crate::http::status::{Rejection, Status};
use crate::log::LogFormat;
use crate::log::buffer::Buffer;
use crate::log::line::{FieldName, Line, field_name};

/// The number of bytes that the log line of a refused or lost request shows.
const SHOWN: usize = 64;

// docs/operations.md says what each is.
const CLIENT: FieldName = field_name!("client");
const DESTINATION: FieldName = field_name!("destination");
const METHOD: FieldName = field_name!("method");
const TARGET: FieldName = field_name!("target");
const VERSION: FieldName = field_name!("version");
const HOST: FieldName = field_name!("host");
const USER_AGENT: FieldName = field_name!("user_agent");
const BODY: FieldName = field_name!("body");
const STATUS: FieldName = field_name!("status");
const REASON: FieldName = field_name!("reason");
const BYTES: FieldName = field_name!("bytes");
const TOOK: FieldName = field_name!("took", "took_us");

/// A request that was answered.
pub struct Served<'a> {
    /// The head of the request.
    pub head: &'a Head<'a>,
    /// The endpoints of the connection.
    pub endpoints: &'a Endpoints,
    /// The length of the request's content, in bytes.
    pub received: u64,
    /// The status of the response.
    pub status: Status,
    /// The time from the first byte of the request to the last byte of the response.
    pub took: Duration,
}

impl Served<'_> {
    /// Its log line, written into `buffer`.
    pub fn line<'b>(&self, buffer: &'b mut Buffer, format: LogFormat) -> Line<'b> {
        let head = self.head;
        let mut line = Line::new(buffer, format, "Received request to ", head.target);
        push_endpoints(&mut line, self.endpoints);
        line.word(METHOD, head.method);
        line.word(TARGET, head.target);
        line.plain(VERSION, head.version);
        line.string(HOST, head.host);
        line.string(USER_AGENT, head.user_agent);
        line.number(BODY, self.received);
        line.number(STATUS, self.status.code().into());
        line.micros(TOOK, self.took.as_micros() as u64);
        line
    }
}

/// The line of a request that was refused; `input` is what has arrived of it.
pub fn refused<'b>(
    buffer: &'b mut Buffer,
    format: LogFormat,
    endpoints: &Endpoints,
    rejection: Rejection,
    input: &[u8],
) -> Line<'b> {
    let mut line = Line::new(buffer, format, "Refused request", b"");
    push_endpoints(&mut line, endpoints);
    line.number(STATUS, rejection.status.code().into());
    push_reason(&mut line, rejection.reason, input);
    line
}

/// The line of a request that could not be read or answered to its end; `input` is what has arrived of it.
pub fn lost<'b>(
    buffer: &'b mut Buffer,
    format: LogFormat,
    endpoints: &Endpoints,
    reason: &str,
    input: &[u8],
) -> Line<'b> {
    let mut line = Line::new(buffer, format, "Lost request", b"");
    push_endpoints(&mut line, endpoints);
    push_reason(&mut line, reason, input);
    line
}

/// The line of a connection that ended before a request began.
pub fn without_request<'b>(
    buffer: &'b mut Buffer,
    format: LogFormat,
    endpoints: &Endpoints,
) -> Line<'b> {
    let mut line = Line::new(buffer, format, "Connection without a request", b"");
    push_endpoints(&mut line, endpoints);
    line
}

fn push_endpoints(line: &mut Line<'_>, endpoints: &Endpoints) {
    line.plain(CLIENT, endpoints.client.as_bytes());
    line.plain(DESTINATION, endpoints.destination.as_bytes());
}

fn push_reason(line: &mut Line<'_>, reason: &str, input: &[u8]) {
    line.words(REASON, reason);
    line.string(BYTES, &input[..input.len().min(SHOWN)]);
}
