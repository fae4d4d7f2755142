//! The header fields that the server interprets: Host, User-Agent, those that decide about the framing of the
//! request and about its connection, and those by which a client chooses its echo. Contradictions are refused,
//! never resolved.

use crate::http::accept::Accept;
use crate::http::body::{Framing, MAX_CONTENT};
use crate::http::directives::EchoFields;
use crate::http::request_line::Version;
use crate::http::status::{Rejection, Status, bad};
use crate::http::syntax::is_host;

/// Whether the connection persists after the response, and which Connection field the response has
/// (RFC 9112, 9.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persistence {
    /// It persists by default: no field (HTTP/1.1).
    Default,
    /// It persists at the client's request: `keep-alive` (HTTP/1.0).
    KeepAlive,
    /// It does not persist: `close`.
    Close,
}

/// The values of those fields.
#[derive(Default)]
pub(super) struct Fields<'a> {
    host: Option<&'a [u8]>,
    /// User-Agent; empty if absent.
    pub(super) user_agent: &'a [u8],
    content_length: Option<u64>,
    /// Transfer-Encoding: `Ok` if it is `chunked`. The error is reported last, because others have
    /// precedence.
    transfer_encoding: Option<Result<(), Rejection>>,
    /// Expect: whether each member is `100-continue`; none if all are empty. HTTP/1.0 ignores it.
    expectation: Option<bool>,
    pub(super) accept: Accept,
    pub(super) echo: EchoFields,
    /// Connection has `close`.
    close: bool,
    /// Connection has `keep-alive`.
    keep_alive: bool,
}

impl<'a> Fields<'a> {
    /// Adds a field line.
    pub(super) fn add(&mut self, header: &httparse::Header<'a>) -> Result<(), Rejection> {
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
        } else if is("accept") {
            self.accept.add(value);
        } else if is("x-echo-status") {
            self.echo.add_status(value);
        } else if is("x-echo-delay") {
            self.echo.add_delay(value);
        } else if is("connection") {
            let has = |option: &[u8]| members(value).any(|it| it.eq_ignore_ascii_case(option));
            self.close |= has(b"close");
            self.keep_alive |= has(b"keep-alive");
        } else if is("content-length") {
            let length = parse_length(value).ok_or(bad("the Content-Length is malformed"))?;
            if self.content_length.replace(length).is_some() {
                return Err(bad("several Content-Length fields"));
            }
        } else if is("transfer-encoding") {
            self.transfer_encoding = Some(match self.transfer_encoding {
                None => check_chunked(value),
                Some(_) => Err(bad("several Transfer-Encoding fields")),
            });
        } else if is("expect") {
            for member in members(value).filter(|member| !member.is_empty()) {
                let is_continue = member.eq_ignore_ascii_case(b"100-continue");
                self.expectation = Some(is_continue && self.expectation.unwrap_or(true));
            }
        }
        Ok(())
    }

    /// The Host field, which HTTP/1.1 requires (RFC 9112, 3.2); empty if absent.
    pub(super) fn host(&self, version: Version) -> Result<&'a [u8], Rejection> {
        match (self.host, version) {
            (Some(host), _) => Ok(host),
            (None, Version::Http10) => Ok(b""),
            (None, Version::Http11) => Err(bad("the Host field is missing")),
        }
    }

    /// The framing of the body (RFC 9112, 6.1 to 6.3); what these sections let a server repair is
    /// refused.
    pub(super) fn framing(&self, version: Version) -> Result<Framing, Rejection> {
        match (self.transfer_encoding, self.content_length) {
            (Some(_), Some(_)) => Err(bad("Content-Length with Transfer-Encoding")),
            (Some(_), None) if version == Version::Http10 => {
                Err(bad("Transfer-Encoding in HTTP/1.0"))
            }
            (Some(chunked), None) => chunked.map(|()| Framing::Chunked),
            (None, Some(length)) if length > MAX_CONTENT => Err(Rejection::new(
                Status::CONTENT_TOO_LARGE,
                "the content is longer than 1 GiB",
            )),
            (None, Some(length)) => Ok(Framing::Length(length)),
            (None, None) => Ok(Framing::None),
        }
    }

    /// Whether the client waits for `100 Continue` (RFC 9110, 10.1.1).
    pub(super) fn expects_continue(&self, version: Version) -> Result<bool, Rejection> {
        match (self.expectation, version) {
            (None, _) | (_, Version::Http10) => Ok(false),
            (Some(true), _) => Ok(true),
            (Some(false), _) => Err(Rejection::new(
                Status::EXPECTATION_FAILED,
                "only 100-continue can be expected",
            )),
        }
    }

    /// Whether the connection persists.
    pub(super) fn persistence(&self, version: Version) -> Persistence {
        match version {
            _ if self.close => Persistence::Close,
            Version::Http11 => Persistence::Default,
            Version::Http10 if self.keep_alive => Persistence::KeepAlive,
            Version::Http10 => Persistence::Close,
        }
    }
}

/// The members of a comma-separated list (RFC 9110, 5.6.1), empty ones included.
fn members(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

/// `1*DIGIT`: no sign, no list, no whitespace. A number that does not fit is not malformed (RFC 9110,
/// 8.6): it becomes `u64::MAX`.
fn parse_length(value: &[u8]) -> Option<u64> {
    let add = |number: u64, digit: &u8| {
        let digit = u64::from(digit.wrapping_sub(b'0'));
        number.saturating_mul(10).saturating_add(digit)
    };
    let is_number = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    is_number.then(|| value.iter().fold(0, add))
}

/// Checks that a Transfer-Encoding is `chunked` alone. An unknown coding is 501, but chunked anywhere
/// except at the end is 400 (RFC 9112, 6.1 and 6.3). Empty members are refused although a recipient of
/// a list ignores them (RFC 9110, 5.6.1.2): not every parser takes `,chunked` for chunked.
fn check_chunked(value: &[u8]) -> Result<(), Rejection> {
    if members(value).any(<[u8]>::is_empty) {
        return Err(bad("a transfer coding is empty"));
    }
    let mut codings = members(value);
    let chunked = codings.position(|coding| coding.eq_ignore_ascii_case(b"chunked"));
    match (chunked, codings.count()) {
        (Some(0), 0) => Ok(()),
        (Some(_), 1..) => Err(bad("chunked is not the last transfer coding, once")),
        _ => Err(Rejection::new(
            Status::NOT_IMPLEMENTED,
            "the transfer coding is not known",
        )),
    }
}
