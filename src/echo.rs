//! What a client reads, and what the log says about it.

use std::fmt;
use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use crate::clock::Moment;
use crate::http::{Head, Rejection, Status};
use crate::logging::escaped;
use crate::text::Text;

/// The most content that is echoed, in bytes; the rest is read and counted.
pub const MAX_ECHO: usize = 64 * 1024;

/// The two ends of a connection, as they are shown: addresses with their ports.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    client: Text<LONGEST_END>,
    destination: Text<LONGEST_END>,
}

/// `[IPv6 address%scope]:port`, at its longest.
const LONGEST_END: usize = 64;

impl Ends {
    /// Who connected, and where to: the address that the client knows, not the listener's.
    pub fn new(client: SocketAddr, destination: SocketAddr) -> Ends {
        Ends {
            client: Text::of(client),
            destination: Text::of(destination),
        }
    }
}

impl fmt::Display for Ends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "client={} destination={}", self.client, self.destination)
    }
}

/// Begins the echo of a request: the first line, who and where, and the head as it came.
pub fn begin(echo: &mut Vec<u8>, head: &Head<'_>, ends: &Ends, node: Option<&str>) {
    let parts: [&[u8]; 10] = [
        b"Request received from ",
        head.host,
        b" destination ",
        head.target,
        b" : ",
        head.method,
        b" ",
        head.target,
        b" ",
        head.version,
    ];
    parts
        .into_iter()
        .for_each(|part| echo.extend_from_slice(part));
    let (label, node) = node.map_or(("", ""), |node| ("\nNode: ", node));
    [
        "\nClient: ",
        ends.client.as_str(),
        "\nDestination: ",
        ends.destination.as_str(),
        label,
        node,
        "\nTime: ",
        Moment::now().rfc3339().as_str(),
        "\n\n",
    ]
    .into_iter()
    .for_each(|part| echo.extend_from_slice(part.as_bytes()));
    echo.extend_from_slice(head.bytes);
}

/// Ends the echo, with a word on what it leaves out.
pub fn end(echo: &mut Vec<u8>, received: u64) {
    if let Some(more @ 1..) = received.checked_sub(MAX_ECHO as u64) {
        append(
            echo,
            format_args!("\n[{more} more bytes of {received} are not echoed]\n"),
        );
    }
}

/// The text of an answer that refuses a request.
pub fn refusal(answer: &mut Vec<u8>, rejection: Rejection) {
    append(
        answer,
        format_args!("{}: {}\n", rejection.status.line(), rejection.reason),
    );
}

/// Appends text; a `Vec` takes everything.
pub fn append(bytes: &mut Vec<u8>, text: fmt::Arguments<'_>) {
    let written = bytes.write_fmt(text);
    debug_assert!(written.is_ok(), "memory takes every byte");
}

/// A request that was answered.
pub struct Served<'a> {
    /// The head of the request.
    pub head: &'a Head<'a>,
    /// The two ends of its connection.
    pub ends: &'a Ends,
    /// The length of its content, in bytes.
    pub received: u64,
    /// How it was answered.
    pub status: Status,
    /// From its first byte to the answer's last.
    pub took: Duration,
}

impl fmt::Display for Served<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Served {
            head,
            ends,
            received,
            status,
            took,
        } = self;
        write!(
            f,
            "Received request to {target} : {ends} method={} target={target} version={} host=\"{}\" \
             user_agent=\"{}\" body={received} status={} took={}us",
            escaped(head.method),
            escaped(head.version),
            escaped(head.host),
            escaped(head.user_agent),
            status.code(),
            took.as_micros() as u64,
            target = escaped(head.target),
        )
    }
}

/// How many bytes of a request that was not answered the log shows.
const SHOWN: usize = 64;

/// A request that was refused.
pub struct Refused<'a> {
    /// The two ends of its connection.
    pub ends: &'a Ends,
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
    pub ends: &'a Ends,
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
