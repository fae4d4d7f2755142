//! What a client reads, and what the log says about it.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use crate::http::head::{Head, Rejection, Status};
use crate::log::buffer::Buffer;
use crate::log::logger::{escaped, push_escaped};
use crate::log::text::Text;
use crate::log::timestamp::Timestamp;

/// The most content that is echoed, in bytes; the rest is read and counted.
pub const MAX_ECHO: usize = 64 * 1024;

/// The two ends of a connection, as they are shown: addresses with their ports.
#[derive(Clone, Copy, Debug)]
pub struct Endpoints {
    client: Text<LONGEST_END>,
    destination: Text<LONGEST_END>,
}

/// `[IPv6 address%scope]:port`, at its longest.
const LONGEST_END: usize = 64;

impl Endpoints {
    /// Who connected, and where to: the address that the client knows, not the listener's.
    pub fn new(client: SocketAddr, destination: SocketAddr) -> Endpoints {
        Endpoints {
            client: Text::of(client),
            destination: Text::of(destination),
        }
    }
}

impl fmt::Display for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "client={} destination={}", self.client, self.destination)
    }
}

/// Begins the echo of a request: the first line, who and where, and the head as it came.
pub fn begin(echo: &mut Buffer, head: &Head<'_>, ends: &Endpoints, node: Option<&str>) {
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
    echo.push(ends.client.as_bytes());
    echo.push(b"\nDestination: ");
    echo.push(ends.destination.as_bytes());
    if let Some(node) = node {
        echo.push(b"\nNode: ");
        echo.push(node.as_bytes());
    }
    echo.push(b"\nTime: ");
    echo.push(Timestamp::now().rfc3339().as_bytes());
    echo.push(b"\n\n");
    echo.push(head.bytes);
}

/// Ends the echo, with a word on what it leaves out.
pub fn end(echo: &mut Buffer, received: u64) {
    if let Some(more @ 1..) = received.checked_sub(MAX_ECHO as u64) {
        let left_out = format!("\n[{more} more bytes of {received} are not echoed]\n");
        echo.push(left_out.as_bytes());
    }
}

/// The text of an answer that refuses a request.
pub fn refusal(answer: &mut Buffer, rejection: Rejection) {
    let text = format!("{}: {}\n", rejection.status.line(), rejection.reason);
    answer.push(text.as_bytes());
}

/// A request that was answered.
pub struct Served<'a> {
    /// The head of the request.
    pub head: &'a Head<'a>,
    /// The two ends of its connection.
    pub ends: &'a Endpoints,
    /// The length of its content, in bytes.
    pub received: u64,
    /// How it was answered.
    pub status: Status,
    /// From its first byte to the answer's last.
    pub took: Duration,
}

impl Served<'_> {
    /// The line for the log.
    pub fn line<'l>(&self, line: &'l mut Buffer) -> &'l str {
        let Served { head, ends, .. } = self;
        let mut numbers = Text::<60>::EMPTY;
        numbers.push("\" body=");
        numbers.push_number(self.received);
        numbers.push(" status=");
        numbers.push(self.status.code());
        numbers.push(" took=");
        numbers.push_number(self.took.as_micros() as u64);
        numbers.push("us");
        line.clear(0);
        line.push(b"Received request to ");
        push_escaped(line, head.target);
        line.push(b" : client=");
        line.push(ends.client.as_bytes());
        line.push(b" destination=");
        line.push(ends.destination.as_bytes());
        line.push(b" method=");
        push_escaped(line, head.method);
        line.push(b" target=");
        push_escaped(line, head.target);
        line.push(b" version=");
        push_escaped(line, head.version);
        line.push(b" host=\"");
        push_escaped(line, head.host);
        line.push(b"\" user_agent=\"");
        push_escaped(line, head.user_agent);
        line.push(numbers.as_bytes());
        str::from_utf8(line.bytes()).unwrap_or_default()
    }
}

/// How many bytes of a request that was not answered the log shows.
const SHOWN: usize = 64;

/// A request that was refused.
pub struct Refused<'a> {
    /// The two ends of its connection.
    pub ends: &'a Endpoints,
    /// Why.
    pub rejection: Rejection,
    /// What came, from the first byte of the request.
    pub bytes: &'a [u8],
}

impl fmt::Display for Refused<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Refused {
            ends,
            rejection,
            bytes,
        } = self;
        write!(
            f,
            "Refused request : {ends} status={} reason=\"{}\" bytes=\"{}\"",
            rejection.status.code(),
            rejection.reason,
            escaped(&bytes[..bytes.len().min(SHOWN)]),
        )
    }
}

/// A request that was not answered.
pub struct Lost<'a> {
    /// The two ends of its connection.
    pub ends: &'a Endpoints,
    /// Why.
    pub reason: &'a str,
    /// What came, from the first byte of the request.
    pub bytes: &'a [u8],
}

impl fmt::Display for Lost<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Lost {
            ends,
            reason,
            bytes,
        } = self;
        write!(
            f,
            "Lost request : {ends} reason=\"{reason}\" bytes=\"{}\"",
            escaped(&bytes[..bytes.len().min(SHOWN)])
        )
    }
}
