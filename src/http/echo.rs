//! The echo, which is the content of a response, and the log line of a request.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use crate::http::head::Head;
use crate::http::status::{Rejection, Status};
use crate::log::buffer::Buffer;
use crate::log::escape::{escaped, push_escaped};
use crate::log::timestamp::Timestamp;

/// The largest content that is echoed, in bytes. The rest is read and counted.
pub const MAX_ECHO: usize = 64 * 1024;

/// The addresses and ports of a connection, as text.
#[derive(Clone, Debug)]
pub struct Endpoints {
    client: String,
    destination: String,
}

impl Endpoints {
    /// The client's address, and the address to which it connected, which is not the listener's.
    pub fn new(client: SocketAddr, destination: SocketAddr) -> Endpoints {
        Endpoints {
            client: client.to_string(),
            destination: destination.to_string(),
        }
    }
}

impl fmt::Display for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "client={} destination={}", self.client, self.destination)
    }
}

/// Begins the echo of a request: the first line, the endpoints, the node, the time, and the head as
/// received. The content of the request follows.
pub fn begin(echo: &mut Buffer, head: &Head<'_>, endpoints: &Endpoints, node: Option<&str>) {
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

/// Ends the echo of a request whose content has `received` bytes: says how many are not echoed.
pub fn end(echo: &mut Buffer, received: u64) {
    if let Some(more @ 1..) = received.checked_sub(MAX_ECHO as u64) {
        let note = format!("\n[{more} more bytes of {received} are not echoed]\n");
        echo.push(note.as_bytes());
    }
}

/// Writes the content of a response that refuses a request.
pub fn refusal(content: &mut Buffer, rejection: Rejection) {
    let text = format!("{}: {}\n", rejection.status.line(), rejection.reason);
    content.push(text.as_bytes());
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
        line.clear(0);
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
        line.push(self.status.code().as_bytes());
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
