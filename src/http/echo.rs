//! The echo, which is the content of a response, and the log line of a request. `json_echo` has the echo as JSON.

use std::time::Duration;

use crate::http::endpoints::Endpoints;
use crate::http::head::Head;
use crate::http::json_echo;
use crate::http::response::Content;
use crate::http::status::{Rejection, Status};
use crate::log::buffer::Buffer;
use crate::log::escape::{escaped, push_escaped};
use crate::log::timestamp::Timestamp;

/// The largest content that is echoed, in bytes. The rest is read and counted.
pub const MAX_ECHO: usize = 64 * 1024;

/// An echo that is being written: the request's content is appended between its beginning and its end.
#[derive(Clone, Copy, Debug)]
pub struct Echo {
    is_json: bool,
    /// The index of the first byte of the request's content.
    start: usize,
}

impl Echo {
    /// Begins the echo of a request, in the form that its client prefers.
    pub fn begin(
        echo: &mut Buffer,
        head: &Head<'_>,
        endpoints: &Endpoints,
        node: Option<&str>,
    ) -> Echo {
        match head.prefers_json {
            true => json_echo::begin(echo, head, endpoints, node),
            false => begin_text(echo, head, endpoints, node),
        }
        Echo {
            is_json: head.prefers_json,
            start: echo.len(),
        }
    }

    /// The most bytes of the request's content that may be appended.
    pub fn room(self) -> usize {
        match self.is_json {
            true => MAX_ECHO.min(json_echo::room(self.start)),
            false => MAX_ECHO,
        }
    }

    /// Ends the echo of a request whose content has `received` bytes.
    pub fn end(self, echo: &mut Buffer, received: u64) {
        match self.is_json {
            true => json_echo::end(echo, self.start, received),
            false => end_text(echo, received),
        }
    }

    /// What it is in a response.
    pub fn content(self) -> Content {
        match self.is_json {
            true => Content::JsonEcho,
            false => Content::TextEcho,
        }
    }
}

/// The first line, the endpoints, the node, the time, and the head as received.
fn begin_text(echo: &mut Buffer, head: &Head<'_>, endpoints: &Endpoints, node: Option<&str>) {
    echo.push(b"Request received from ");
    echo.push(head.host);
    echo.push(b" destination ");
    echo.push(head.target);
    echo.push(b" : ");
    echo.push(head.method);
    echo.push(b" ");
    echo.push(head.target);
    echo.push(b" ");
    echo.push(head.version);
    echo.push(b"\nClient: ");
    echo.push(endpoints.client.as_bytes());
    echo.push(b"\nDestination: ");
    echo.push(endpoints.destination.as_bytes());
    if let Some(node) = node {
        echo.push(b"\nNode: ");
        echo.push(node.as_bytes());
    }
    echo.push(b"\nTime: ");
    Timestamp::now().push_rfc3339(echo);
    echo.push(b"\n\n");
    echo.push(head.bytes);
}

/// Says how many of the content's bytes are not echoed.
fn end_text(echo: &mut Buffer, received: u64) {
    if let Some(more @ 1..) = received.checked_sub(MAX_ECHO as u64) {
        let note = format!("\n[{more} more bytes of {received} are not echoed]\n");
        echo.push(note.as_bytes());
    }
}

/// Writes the content of a response that refuses a request.
pub fn refusal(content: &mut Buffer, rejection: Rejection) {
    rejection.status.push_line(content);
    content.push(b": ");
    content.push(rejection.reason.as_bytes());
    content.push(b"\n");
}

/// A request that was answered, for its log line.
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
    /// The log line, written into `line`.
    pub fn line<'l>(&self, line: &'l mut Buffer) -> &'l str {
        let Served {
            head, endpoints, ..
        } = self;
        line.resize(0);
        line.push(b"Received request to ");
        push_escaped(line, head.target);
        line.push(b" : client=");
        line.push(endpoints.client.as_bytes());
        line.push(b" destination=");
        line.push(endpoints.destination.as_bytes());
        line.push(b" method=");
        push_escaped(line, head.method);
        line.push(b" target=");
        push_escaped(line, head.target);
        line.push(b" version=");
        line.push(head.version);
        line.push(b" host=\"");
        push_escaped(line, head.host);
        line.push(b"\" user_agent=\"");
        push_escaped(line, head.user_agent);
        line.push(b"\" body=");
        line.push_number(self.received);
        line.push(b" status=");
        self.status.push_code(line);
        line.push(b" took=");
        line.push_number(self.took.as_micros() as u64);
        line.push(b"us");
        str::from_utf8(line.bytes()).unwrap_or_default()
    }
}

/// The number of bytes that the log line of a refused or lost request shows.
const SHOWN: usize = 64;

/// The log line of a request that was refused; `input` is what has arrived of it.
pub fn refused_line(endpoints: &Endpoints, rejection: Rejection, input: &[u8]) -> String {
    format!(
        "Refused request : {endpoints} status={} reason=\"{}\" bytes=\"{}\"",
        rejection.status.code(),
        rejection.reason,
        escaped(&input[..input.len().min(SHOWN)]),
    )
}

/// The log line of a request that could not be read or answered to its end; `input` is what has arrived
/// of it.
pub fn lost_line(endpoints: &Endpoints, reason: &str, input: &[u8]) -> String {
    format!(
        "Lost request : {endpoints} reason=\"{reason}\" bytes=\"{}\"",
        escaped(&input[..input.len().min(SHOWN)]),
    )
}
