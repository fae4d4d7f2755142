//! Request heads of HTTP/1 (RFC 9110, RFC 9112), as far as an origin server that echoes must read
//! them. Nothing here knows a socket: bytes come in, in whatever pieces.
//!
//! Supported:
//! - HTTP/1.0 and every HTTP/1.x (a higher minor version is read as 1.1: RFC 9110, 2.5)
//! - origin-form, absolute-form and, for OPTIONS, asterisk-form of the target
//! - framing by Content-Length or by the chunked transfer coding
//! - keep-alive in both versions, `Expect: 100-continue`
//!
//! Refused, with the status that the RFCs ask for:
//! - what is not HTTP/1: TLS, HTTP/2, HTTP/0.9
//! - lines that do not end with CRLF, folded fields, blanks in front of a colon, several Hosts,
//!   and every form of framing that two readers could understand differently
//! - CONNECT, transfer codings other than chunked, expectations other than 100-continue

use std::ops::Range;

use crate::http::body::Framing;

use super::fields::Fields;
use super::request_line::RequestLine;
pub use super::request_line::is_token_byte;

/// The longest request line, in bytes, without its CRLF (RFC 9112, 3 asks for at least 8000).
pub const MAX_REQUEST_LINE: usize = 8192;

/// The longest head, in bytes, from the request line to the empty line.
pub const MAX_HEAD: usize = 16 * 1024;

/// The most field lines in a head.
pub const MAX_FIELDS: usize = 100;

/// So many fields most heads have at most: room for more is made for those that have more.
const FEW_FIELDS: usize = 16;

/// The most content that is read, in bytes.
pub const MAX_CONTENT: u64 = 1 << 30;

/// A status code (RFC 9110, 15).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// 200
    Ok,
    /// 400
    BadRequest,
    /// 404
    NotFound,
    /// 405
    MethodNotAllowed,
    /// 408
    RequestTimeout,
    /// 413
    ContentTooLarge,
    /// 414
    UriTooLong,
    /// 417
    ExpectationFailed,
    /// 431 (RFC 6585, 5)
    RequestHeaderFieldsTooLarge,
    /// 501
    NotImplemented,
    /// 503
    ServiceUnavailable,
    /// 505
    HttpVersionNotSupported,
}

impl Status {
    /// The number and the reason phrase.
    pub fn line(self) -> &'static str {
        match self {
            Status::Ok => "200 OK",
            Status::BadRequest => "400 Bad Request",
            Status::NotFound => "404 Not Found",
            Status::MethodNotAllowed => "405 Method Not Allowed",
            Status::RequestTimeout => "408 Request Timeout",
            Status::ContentTooLarge => "413 Content Too Large",
            Status::UriTooLong => "414 URI Too Long",
            Status::ExpectationFailed => "417 Expectation Failed",
            Status::RequestHeaderFieldsTooLarge => "431 Request Header Fields Too Large",
            Status::NotImplemented => "501 Not Implemented",
            Status::ServiceUnavailable => "503 Service Unavailable",
            Status::HttpVersionNotSupported => "505 HTTP Version Not Supported",
        }
    }

    /// The number.
    pub fn code(self) -> &'static str {
        &self.line()[..3]
    }
}

/// Why a request is refused. Nothing more is read from its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The status of the answer.
    pub status: Status,
    /// A line of text, for the client and the log.
    pub reason: &'static str,
}

/// A request that is malformed.
pub fn bad(reason: &'static str) -> Rejection {
    Rejection {
        status: Status::BadRequest,
        reason,
    }
}

pub(super) fn reject<T>(status: Status, reason: &'static str) -> Result<T, Rejection> {
    Err(Rejection { status, reason })
}

/// The minor version of HTTP/1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub enum Version {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1 and what came after
    Http11,
}

/// Finds the end of a head in bytes that arrive piece by piece; looks at each byte once.
#[derive(Debug, Default)]
pub struct HeadScanner {
    /// The index from where we look next.
    at: usize,
    /// The index of the first byte of the line that is being read.
    line: usize,
    /// The index of the request line: an empty line in front of it is skipped (RFC 9112, 2.2).
    start: usize,
    request_line: Option<RequestLine>,
    fields: usize,
}

/// A head that is complete, but not read yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The indexes of its bytes, the empty line included.
    pub range: Range<usize>,
    request_line: RequestLine,
    /// How many field lines it has.
    fields: usize,
}

impl HeadScanner {
    /// Looks at `bytes`, which start with what was given before; `None` if the head goes on.
    ///
    /// # Errors
    /// As early as possible: what cannot become a head any more.
    pub fn scan(&mut self, bytes: &[u8]) -> Result<Option<Span>, Rejection> {
        while let Some(offset) = bytes[self.at..].iter().position(|byte| *byte == b'\n') {
            let end = self.at + offset;
            self.check(&bytes[..end], end + 1)?;
            let line = bytes[self.line..end]
                .strip_suffix(b"\r")
                .ok_or(bad("a line does not end with CRLF"))?;
            self.at = end + 1;
            self.line = end + 1;
            match &self.request_line {
                None if line.is_empty() && self.start == 0 => self.start = self.at,
                None => self.request_line = Some(RequestLine::parse(line)?),
                Some(request_line) if line.is_empty() => {
                    return Ok(Some(Span {
                        range: self.start..self.at,
                        request_line: *request_line,
                        fields: self.fields,
                    }));
                }
                Some(_) => self.fields += 1,
            }
            if self.fields > MAX_FIELDS {
                return reject(
                    Status::RequestHeaderFieldsTooLarge,
                    "more than 100 header fields",
                );
            }
        }
        self.at = bytes.len();
        self.check(bytes, bytes.len())?;
        Ok(None)
    }

    /// What can be said before the last line of `bytes`, a head up to its byte `end`, is complete.
    fn check(&self, bytes: &[u8], end: usize) -> Result<(), Rejection> {
        if self.request_line.is_none() {
            RequestLine::check_beginning(&bytes[self.line..])?;
        }
        check_size(end - self.start)
    }
}

fn check_size(length: usize) -> Result<(), Rejection> {
    match length {
        0..=MAX_HEAD => Ok(()),
        _ => reject(
            Status::RequestHeaderFieldsTooLarge,
            "the head is longer than 16 KiB",
        ),
    }
}

/// A request head that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head<'a> {
    /// As it came, from the request line to the empty line.
    pub bytes: &'a [u8],
    /// The method, a token.
    pub method: &'a [u8],
    /// The target, in whichever form.
    pub target: &'a [u8],
    /// The version word, as it came.
    pub version: &'a [u8],
    /// The Host field; empty if HTTP/1.0 has none.
    pub host: &'a [u8],
    /// The User-Agent field; empty if there is none.
    pub user_agent: &'a [u8],
    /// Where the body ends.
    pub framing: Framing,
    /// Whether the client waits for `100 Continue`.
    pub expects_continue: bool,
    /// What becomes of the connection.
    pub persistence: Persistence,
}

/// What becomes of a connection after the answer, and how the answer says so (RFC 9112, 9.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persistence {
    /// It stays, which HTTP/1.1 need not say.
    Default,
    /// It stays because an HTTP/1.0 client asked for it.
    KeepAlive,
    /// It ends.
    Close,
}

impl<'a> Head<'a> {
    /// Reads the head that `span` found in `bytes`.
    ///
    /// # Errors
    /// A malformed field, or fields that contradict each other.
    pub fn parse(bytes: &'a [u8], span: &Span) -> Result<Head<'a>, Rejection> {
        let bytes = &bytes[span.range.clone()];
        let line_end = bytes
            .iter()
            .position(|byte| *byte == b'\r')
            .unwrap_or(bytes.len());
        let RequestLine {
            method,
            target,
            version,
        } = span.request_line;
        let lines = &bytes[line_end + 2..];
        let fields = match span.fields {
            0..=FEW_FIELDS => read_fields::<FEW_FIELDS>(lines)?,
            _ => read_fields::<MAX_FIELDS>(lines)?,
        };
        Ok(Head {
            bytes,
            method: &bytes[..method],
            target: &bytes[method + 1..method + 1 + target],
            version: &bytes[method + target + 2..line_end],
            host: fields.host(version)?,
            user_agent: fields.user_agent,
            framing: fields.framing(version)?,
            expects_continue: fields.expects_continue(version)?,
            persistence: fields.persistence(version),
        })
    }
}

/// Reads at most `N` field lines and the empty line behind them. A function of its own: the stack
/// has room for many fields only while there are many.
#[inline(never)]
fn read_fields<const N: usize>(lines: &[u8]) -> Result<Fields<'_>, Rejection> {
    let mut storage = [httparse::EMPTY_HEADER; N];
    let headers = match httparse::parse_headers(lines, &mut storage) {
        Ok(httparse::Status::Complete((_, headers))) => headers,
        Ok(httparse::Status::Partial) => return Err(bad("the head is malformed")),
        Err(httparse::Error::HeaderName) => return Err(bad("a field name is malformed")),
        Err(httparse::Error::HeaderValue) => return Err(bad("a field value is malformed")),
        Err(_) => return Err(bad("a field line is malformed")),
    };
    let mut fields = Fields::default();
    for header in headers.iter() {
        fields.read(header)?;
    }
    Ok(fields)
}
