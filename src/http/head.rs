//! The head of a request: the request line, the field lines and the empty line after them.
//!
//! `HeadScanner` looks for the end of a head in input that arrives in pieces, and refuses it as soon as
//! it cannot become one. `Head::parse` then reads the complete head.

use std::ops::Range;

use crate::http::body::Framing;
use crate::http::directives::EchoFields;
use crate::http::fields::{Fields, Persistence};
use crate::http::request_line::{RequestLine, authority, path};
use crate::http::status::{Rejection, Status, bad};

/// The longest head, in bytes, from the request line to the empty line.
pub const MAX_HEAD: usize = 16 * 1024;

/// The largest number of field lines in a head.
pub const MAX_FIELDS: usize = 100;

/// A number of field lines that most heads do not exceed. Only a longer head takes the stack and the
/// time that space for [`MAX_FIELDS`] costs.
const USUAL_FIELDS: usize = 16;

/// Finds the end of a head in input that arrives in pieces. It examines each byte once.
#[derive(Debug, Default)]
pub struct HeadScanner {
    /// The index of the first byte that is not examined yet.
    position: usize,
    /// The index of the first byte of the current line.
    line_start: usize,
    /// The index of the request line: one empty line in front of it is skipped (RFC 9112, 2.2).
    head_start: usize,
    request_line: Option<RequestLine>,
    /// The number of field lines.
    fields: usize,
}

/// Where a complete head is, and what the scanner knows about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The indexes of its bytes, the empty line included.
    pub range: Range<usize>,
    request_line: RequestLine,
    /// The number of field lines.
    fields: usize,
}

impl HeadScanner {
    /// Continues in `input`, which begins with the input of the call before; `None` if the head is
    /// incomplete.
    ///
    /// # Errors
    /// 400, 405, 414, 431 or 505 for the request line, bare line feeds and the length of the head.
    pub fn scan(&mut self, input: &[u8]) -> Result<Option<Span>, Rejection> {
        while let Some(offset) = input[self.position..]
            .iter()
            .position(|byte| *byte == b'\n')
        {
            let end = self.position + offset;
            self.check(&input[..end], end + 1)?;
            let line = input[self.line_start..end]
                .strip_suffix(b"\r")
                .ok_or(bad("a line does not end with CRLF"))?;
            let next = end + 1;
            match self.request_line {
                None if line.is_empty() && self.head_start == 0 => self.head_start = next,
                // As long as no more is known, this line is examined again.
                None if line.is_empty() => {
                    return RequestLine::check_empty_lines(input).map(|()| None);
                }
                None => self.request_line = Some(RequestLine::parse(line)?),
                Some(request_line) if line.is_empty() => {
                    return Ok(Some(Span {
                        range: self.head_start..next,
                        request_line,
                        fields: self.fields,
                    }));
                }
                Some(_) if self.fields == MAX_FIELDS => {
                    return Err(Rejection::new(
                        Status::REQUEST_HEADER_FIELDS_TOO_LARGE,
                        "more than 100 header fields",
                    ));
                }
                Some(_) => self.fields += 1,
            }
            self.position = next;
            self.line_start = next;
        }
        self.position = input.len();
        self.check(input, input.len())?;
        Ok(None)
    }

    /// Checks what does not need a complete line: the beginning of the request line, and the length of
    /// a head that ends at `end` or later.
    fn check(&self, input: &[u8], end: usize) -> Result<(), Rejection> {
        if self.request_line.is_none() {
            RequestLine::check_beginning(&input[self.line_start..])?;
        }
        match end - self.head_start {
            0..=MAX_HEAD => Ok(()),
            _ => Err(Rejection::new(
                Status::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "the head is longer than 16 KiB",
            )),
        }
    }
}

/// The head of a valid request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head<'a> {
    /// Its bytes as received, from the request line to the empty line.
    pub bytes: &'a [u8],
    /// The method, a token.
    pub method: &'a [u8],
    /// The target, in any form.
    pub target: &'a [u8],
    /// The version, `HTTP/1.x`.
    pub version: &'a [u8],
    /// The field lines and the empty line after them.
    pub lines: &'a [u8],
    /// The host and port for which the request is: the authority of a target in absolute-form, else the Host
    /// field (RFC 9112, 3.2.2); empty if a request of HTTP/1.0 has neither.
    pub host: &'a [u8],
    /// The User-Agent field; empty if absent.
    pub user_agent: &'a [u8],
    /// The framing of the body.
    pub framing: Framing,
    /// Whether the client waits for `100 Continue`.
    pub expects_continue: bool,
    /// Whether the client wants the connection to persist.
    pub persistence: Persistence,
    /// Whether the client prefers the echo as JSON.
    pub prefers_json: bool,
    /// The status and the delay for which the client asks.
    pub echo_fields: EchoFields,
}

impl<'a> Head<'a> {
    /// Reads the head that a scanner found in `input`.
    ///
    /// # Errors
    /// 400, 413, 417 or 501 for malformed, contradictory or unsupported fields.
    pub fn parse(input: &'a [u8], span: &Span) -> Result<Head<'a>, Rejection> {
        let bytes = &input[span.range.clone()];
        let [method, target, version, lines] = span.request_line.split(bytes);
        let fields = match span.fields {
            0..=USUAL_FIELDS => parse_fields::<USUAL_FIELDS>(lines)?,
            _ => parse_fields::<MAX_FIELDS>(lines)?,
        };
        let http = span.request_line.version;
        let host = fields.host(http)?;
        let authority = match target {
            [b'/', ..] => None,
            _ => authority(target),
        };
        Ok(Head {
            bytes,
            method,
            target,
            version,
            lines,
            host: authority.unwrap_or(host),
            user_agent: fields.user_agent,
            framing: fields.framing(http)?,
            expects_continue: fields.expects_continue(http)?,
            persistence: fields.persistence(http),
            prefers_json: fields.accept.prefers_json(),
            echo_fields: fields.echo,
        })
    }

    /// The path of the target, without scheme, authority and query; `*` of the asterisk-form.
    pub fn path(&self) -> &'a [u8] {
        path(self.target)
    }
}

/// Reads at most `N` field lines and the empty line after them. Not inlined, so that only a call with
/// a large `N` needs a large stack frame.
#[inline(never)]
fn parse_fields<const N: usize>(lines: &[u8]) -> Result<Fields<'_>, Rejection> {
    let mut storage = [httparse::EMPTY_HEADER; N];
    let headers = match httparse::parse_headers(lines, &mut storage) {
        Ok(httparse::Status::Complete((_, headers))) => headers,
        Ok(httparse::Status::Partial) => return Err(bad("the head is malformed")),
        Err(httparse::Error::HeaderName) => return Err(bad(name_reason(lines))),
        Err(httparse::Error::HeaderValue) => return Err(bad("a field value is malformed")),
        Err(_) => return Err(bad("a field line is malformed")),
    };
    let mut fields = Fields::default();
    for header in headers {
        fields.add(header)?;
    }
    Ok(fields)
}

/// Why a field name is malformed: a line that begins with whitespace is folded (RFC 9112, 5.2), or follows
/// the request line (2.2).
fn name_reason(lines: &[u8]) -> &'static str {
    let is_blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    let mut lines = lines.split(|byte| *byte == b'\n').map(<[u8]>::first);
    if is_blank(lines.next().flatten()) {
        "whitespace precedes the first field line"
    } else if lines.any(is_blank) {
        "a field line is folded (obs-fold)"
    } else {
        "a field name is malformed"
    }
}
