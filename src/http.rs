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

use crate::body::Framing;

/// The longest request line, in bytes, without its CRLF (RFC 9112, 3 asks for at least 8000).
pub const MAX_REQUEST_LINE: usize = 8192;

/// The longest head, in bytes, from the request line to the empty line.
pub const MAX_HEAD: usize = 16 * 1024;

/// The most field lines in a head.
pub const MAX_FIELDS: usize = 100;

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

fn reject<T>(status: Status, reason: &'static str) -> Result<T, Rejection> {
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
    /// The index of the request line: empty lines in front of it are skipped (RFC 9112, 2.2).
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
}

impl HeadScanner {
    /// Looks at `bytes`, which start with what was given before; `None` if the head goes on.
    ///
    /// # Errors
    /// As early as possible: what cannot become a head any more.
    pub fn scan(&mut self, bytes: &[u8]) -> Result<Option<Span>, Rejection> {
        while let Some(offset) = bytes[self.at..].iter().position(|byte| *byte == b'\n') {
            let end = self.at + offset;
            let line = bytes[self.line..end]
                .strip_suffix(b"\r")
                .ok_or(bad("a line does not end with CRLF"))?;
            self.at = end + 1;
            self.line = end + 1;
            match &self.request_line {
                None if line.is_empty() => self.start = self.at,
                None => self.request_line = Some(RequestLine::parse(line)?),
                Some(request_line) if line.is_empty() => {
                    let range = self.start..self.at;
                    check_size(range.len())?;
                    return Ok(Some(Span {
                        range,
                        request_line: *request_line,
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
        if self.request_line.is_none() {
            RequestLine::check_beginning(&bytes[self.line..])?;
        }
        check_size(bytes.len() - self.start)?;
        Ok(None)
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

/// `METHOD TARGET HTTP/1.x`, as the lengths of its first two words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct RequestLine {
    method: usize,
    target: usize,
    version: Version,
}

impl RequestLine {
    /// What can be said before the line is complete.
    fn check_beginning(line: &[u8]) -> Result<(), Rejection> {
        match line {
            [0x16, ..] => return Err(bad("the client speaks TLS, not HTTP")),
            [first, ..] if !is_token_byte(*first) && *first != b'\r' => {
                return Err(bad("this is not HTTP"));
            }
            _ => {}
        }
        match line.len() {
            0..=MAX_REQUEST_LINE => Ok(()),
            _ if line.contains(&b' ') => {
                reject(Status::UriTooLong, "the request line is longer than 8 KiB")
            }
            _ => Err(bad("the method does not end")),
        }
    }

    fn parse(line: &[u8]) -> Result<RequestLine, Rejection> {
        RequestLine::check_beginning(line)?;
        let words: Vec<&[u8]> = line.splitn(4, |byte| *byte == b' ').collect();
        let [method, target, version] = words.as_slice() else {
            return Err(bad("the request line is not METHOD TARGET VERSION"));
        };
        let version = match *version {
            [b'H', b'T', b'T', b'P', b'/', b'1', b'.', minor] if minor.is_ascii_digit() => {
                match minor {
                    b'0' => Version::Http10,
                    _ => Version::Http11,
                }
            }
            b"HTTP/2.0" if *method == b"PRI" => {
                return reject(
                    Status::HttpVersionNotSupported,
                    "the client speaks HTTP/2, not HTTP/1.1",
                );
            }
            [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
                if major.is_ascii_digit() && minor.is_ascii_digit() =>
            {
                return reject(
                    Status::HttpVersionNotSupported,
                    "the version is not HTTP/1.x",
                );
            }
            _ => return Err(bad("the version is malformed")),
        };
        if method.is_empty() || !method.iter().copied().all(is_token_byte) {
            return Err(bad("the method is malformed"));
        }
        if *method == b"CONNECT" {
            return reject(Status::MethodNotAllowed, "CONNECT is for proxies");
        }
        match is_target(method, target) {
            true => Ok(RequestLine {
                method: method.len(),
                target: target.len(),
                version,
            }),
            false => Err(bad("the target is malformed")),
        }
    }
}

/// RFC 9112, 3.2. Bytes beyond ASCII are let through, as curl sends what it is given.
fn is_target(method: &[u8], target: &[u8]) -> bool {
    let absolute = || {
        let colon = target.iter().position(|byte| *byte == b':').unwrap_or(0);
        let (scheme, rest) = target.split_at(colon);
        scheme.iter().all(u8::is_ascii_alphanumeric)
            && scheme.first().is_some_and(u8::is_ascii_alphabetic)
            && rest.starts_with(b"://")
            && rest.get(3).is_some_and(|byte| *byte != b'/')
    };
    let visible = target
        .iter()
        .all(|byte| !byte.is_ascii_control() && *byte != b' ');
    visible && (target.starts_with(b"/") || (target == b"*" && method == b"OPTIONS") || absolute())
}

/// `tchar` (RFC 9110, 5.6.2).
pub fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
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
        let mut storage = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let headers = match httparse::parse_headers(&bytes[line_end + 2..], &mut storage) {
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

/// The fields that a server has to look at.
#[derive(Default)]
struct Fields<'a> {
    host: Option<&'a [u8]>,
    user_agent: &'a [u8],
    content_length: Option<u64>,
    /// The transfer codings: none given, `chunked`, or what is wrong with them.
    transfer_coding: Option<Result<(), Rejection>>,
    expectation: Option<bool>,
    close: bool,
    keep_alive: bool,
}

impl<'a> Fields<'a> {
    fn read(&mut self, header: &httparse::Header<'a>) -> Result<(), Rejection> {
        let value = header.value.trim_ascii();
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        if is("host") {
            if self.host.replace(value).is_some() {
                return Err(bad("several Host fields"));
            }
            if !is_host(value) {
                return Err(bad("the Host field is malformed"));
            }
        } else if is("user-agent") {
            self.user_agent = value;
        } else if is("connection") {
            self.close |= tokens(value).any(|token| token.eq_ignore_ascii_case(b"close"));
            self.keep_alive |= tokens(value).any(|token| token.eq_ignore_ascii_case(b"keep-alive"));
        } else if is("content-length") {
            let length = digits(value).ok_or(bad("the Content-Length is malformed"))?;
            if self.content_length.replace(length).is_some() {
                return Err(bad("several Content-Length fields"));
            }
        } else if is("transfer-encoding") {
            let coding = match self.transfer_coding {
                None => transfer_coding(value),
                Some(_) => Err(bad("several Transfer-Encoding fields")),
            };
            self.transfer_coding = Some(coding);
        } else if is("expect") {
            let known = value.eq_ignore_ascii_case(b"100-continue");
            self.expectation = Some(known && self.expectation.unwrap_or(true));
        }
        Ok(())
    }

    /// RFC 9112, 3.2.
    fn host(&self, version: Version) -> Result<&'a [u8], Rejection> {
        match (self.host, version) {
            (Some(host), _) => Ok(host),
            (None, Version::Http10) => Ok(b""),
            (None, Version::Http11) => Err(bad("the Host field is missing")),
        }
    }

    /// RFC 9112, 6.1 to 6.3, at its strictest.
    fn framing(&self, version: Version) -> Result<Framing, Rejection> {
        match (self.transfer_coding, self.content_length) {
            (Some(_), Some(_)) => Err(bad("Content-Length with Transfer-Encoding")),
            (Some(_), None) if version == Version::Http10 => {
                Err(bad("Transfer-Encoding in HTTP/1.0"))
            }
            (Some(coding), None) => coding.map(|()| Framing::Chunked),
            (None, Some(length)) if length > MAX_CONTENT => {
                reject(Status::ContentTooLarge, "the content is longer than 1 GiB")
            }
            (None, Some(length)) => Ok(Framing::Length(length)),
            (None, None) => Ok(Framing::None),
        }
    }

    /// RFC 9110, 10.1.1; HTTP/1.0 knows no expectations.
    fn expects_continue(&self, version: Version) -> Result<bool, Rejection> {
        match self.expectation {
            Some(false) if version > Version::Http10 => reject(
                Status::ExpectationFailed,
                "only 100-continue can be expected",
            ),
            expectation => Ok(version > Version::Http10 && expectation.is_some()),
        }
    }

    fn persistence(&self, version: Version) -> Persistence {
        match version {
            _ if self.close => Persistence::Close,
            Version::Http11 => Persistence::Default,
            Version::Http10 if self.keep_alive => Persistence::KeepAlive,
            Version::Http10 => Persistence::Close,
        }
    }
}

/// The items of a comma-separated list, without the empty ones (RFC 9110, 5.6.1.2).
fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value
        .split(|byte| *byte == b',')
        .map(<[u8]>::trim_ascii)
        .filter(|token| !token.is_empty())
}

/// `1*DIGIT`: no sign, no list, no blank.
fn digits(value: &[u8]) -> Option<u64> {
    let all_digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    all_digits
        .then(|| std::str::from_utf8(value).ok()?.parse().ok())
        .flatten()
}

/// Whether the list is `chunked` alone. A coding that is not known is no fault of the client's,
/// unless chunked is not the last (RFC 9112, 6.1 and 6.3).
fn transfer_coding(value: &[u8]) -> Result<(), Rejection> {
    let codings: Vec<&[u8]> = tokens(value).collect();
    let is_chunked = |coding: &&[u8]| coding.eq_ignore_ascii_case(b"chunked");
    match (
        codings.as_slice(),
        codings.iter().filter(|coding| is_chunked(coding)).count(),
    ) {
        ([], _) => Err(bad("the Transfer-Encoding is empty")),
        ([only], 1) if is_chunked(only) => Ok(()),
        ([.., last], 1) if is_chunked(last) => unknown_coding(),
        (_, 0) => unknown_coding(),
        _ => Err(bad("chunked is not the last transfer coding, once")),
    }
}

fn unknown_coding<T>() -> Result<T, Rejection> {
    reject(Status::NotImplemented, "the transfer coding is not known")
}

/// `uri-host [ ":" port ]` (RFC 9110, 7.2; RFC 3986, 3.2.2), by its letters.
fn is_host(value: &[u8]) -> bool {
    let (host, port) = match value.iter().rposition(|byte| *byte == b':') {
        Some(colon) if !value.ends_with(b"]") => (&value[..colon], &value[colon + 1..]),
        _ => (value, &b""[..]),
    };
    let literal = host
        .strip_prefix(b"[")
        .and_then(|host| host.strip_suffix(b"]"));
    let letters = |extra: &'static [u8]| {
        move |byte: &u8| {
            byte.is_ascii_alphanumeric()
                || b"-._~!$&'()*+,;=%".contains(byte)
                || extra.contains(byte)
        }
    };
    let host_is_fine = match literal {
        Some(literal) => !literal.is_empty() && literal.iter().all(letters(b":")),
        None => host.iter().all(letters(b"")),
    };
    host_is_fine && port.iter().all(u8::is_ascii_digit) && (!host.is_empty() || port.is_empty())
}
