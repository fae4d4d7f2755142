//! The request line (RFC 9112, 3): `METHOD TARGET HTTP/1.x`.
//!
//! `httparse` does not read it: it refuses targets with bytes beyond ASCII, which clients send, and
//! HTTP/1.2 to 1.9, which a server reads as 1.1 (RFC 9110, 2.5). It reads the field lines.

use crate::http::status::{Rejection, Status, bad};
use crate::http::syntax::{is_host, is_token_byte};

/// The longest request line, in bytes, without its CRLF (RFC 9112, 3 asks for at least 8000).
pub const MAX_REQUEST_LINE: usize = 8192;

/// The signature of version 2 of the PROXY protocol (HAProxy's proxy-protocol.txt, 2.2).
const PROXY_V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Why a request is refused that begins with either version of it.
const SPEAKS_PROXY: &str = "the client speaks the PROXY protocol, not HTTP";

/// The length of `HTTP/1.x`, in bytes.
const VERSION_LENGTH: usize = 8;

/// The minor version of HTTP/1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub(super) enum Version {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1 to HTTP/1.9
    Http11,
}

/// A valid request line. It has lengths instead of slices because the input buffer may move before the
/// head is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RequestLine {
    /// The length of the method, in bytes.
    method: usize,
    /// The length of the target, in bytes.
    target: usize,
    pub(super) version: Version,
}

impl RequestLine {
    /// Checks the beginning of a line whose end has not arrived.
    pub(super) fn check_beginning(line: &[u8]) -> Result<(), Rejection> {
        match line {
            // The content type of a TLS handshake record (RFC 8446, 5.1).
            [0x16, ..] => return Err(bad("the client speaks TLS, not HTTP")),
            [first, ..] if !is_token_byte(*first) && *first != b'\r' => {
                return Err(bad("this is not HTTP"));
            }
            _ => {}
        }
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        match line.get(..=MAX_REQUEST_LINE) {
            None => Ok(()),
            Some(beginning) if beginning.contains(&b' ') => Err(Rejection::new(
                Status::URI_TOO_LONG,
                "the request line is longer than 8 KiB",
            )),
            _ => Err(bad("the method does not end")),
        }
    }

    /// Checks input that begins with two empty lines: no request does. Input that may become the
    /// signature of the PROXY protocol is not refused yet.
    pub(super) fn check_empty_lines(input: &[u8]) -> Result<(), Rejection> {
        match input.get(..PROXY_V2.len()) {
            Some(PROXY_V2) => Err(bad(SPEAKS_PROXY)),
            None if PROXY_V2.starts_with(input) => Ok(()),
            _ => Err(bad("more than one empty line precedes the request")),
        }
    }

    /// Reads a complete line, without its CRLF.
    pub(super) fn parse(line: &[u8]) -> Result<RequestLine, Rejection> {
        if is_proxy_v1(line) {
            return Err(bad(SPEAKS_PROXY));
        }
        let mut words = line.splitn(4, |byte| *byte == b' ');
        let (Some(method), Some(target), Some(version), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(bad("the request line is not METHOD TARGET VERSION"));
        };
        let version = parse_version(version, method)?;
        if method.is_empty() || !method.iter().copied().all(is_token_byte) {
            return Err(bad("the method is malformed"));
        }
        if method == b"CONNECT" {
            return Err(Rejection::new(
                Status::METHOD_NOT_ALLOWED,
                "CONNECT is for proxies",
            ));
        }
        // Reported as a security hole where it is answered (RFC 9110, 9.3.8).
        if method == b"TRACE" {
            return Err(Rejection::new(
                Status::METHOD_NOT_ALLOWED,
                "TRACE is not supported",
            ));
        }
        if !is_target(target, method) {
            return Err(bad("the target is malformed"));
        }
        Ok(RequestLine {
            method: method.len(),
            target: target.len(),
            version,
        })
    }

    /// Splits the bytes of a head, which begin with this line, into method, target, version, and the
    /// lines that follow.
    pub(super) fn split<'a>(&self, head: &'a [u8]) -> [&'a [u8]; 4] {
        let (method, rest) = head.split_at(self.method);
        let (target, rest) = rest[1..].split_at(self.target);
        let (version, rest) = rest[1..].split_at(VERSION_LENGTH);
        [method, target, version, &rest[2..]]
    }
}

/// `PROXY` and a transport protocol (proxy-protocol.txt, 2.1). A request with the method PROXY is another:
/// none of these is a target.
fn is_proxy_v1(line: &[u8]) -> bool {
    let transport = line
        .strip_prefix(b"PROXY ")
        .and_then(|rest| rest.split(|byte| *byte == b' ').next());
    matches!(transport, Some(b"TCP4" | b"TCP6" | b"UNKNOWN"))
}

/// `HTTP/1.x`. The preface of HTTP/2 is a request with the method PRI (RFC 9113, 3.4).
fn parse_version(version: &[u8], method: &[u8]) -> Result<Version, Rejection> {
    let [major @ b'0'..=b'9', b'.', minor @ b'0'..=b'9'] =
        version.strip_prefix(b"HTTP/").unwrap_or_default()
    else {
        return Err(bad("the version is malformed"));
    };
    let reason = match (major, minor) {
        (b'1', b'0') => return Ok(Version::Http10),
        (b'1', _) => return Ok(Version::Http11),
        (b'2', b'0') if method == b"PRI" => "the client speaks HTTP/2, not HTTP/1.1",
        _ => "the version is not HTTP/1.x",
    };
    Err(Rejection::new(Status::HTTP_VERSION_NOT_SUPPORTED, reason))
}

/// Whether a target is in origin-form, in absolute-form or, for OPTIONS, in asterisk-form (RFC 9112,
/// 3.2). Bytes beyond ASCII are accepted: curl sends them as they are given to it.
fn is_target(target: &[u8], method: &[u8]) -> bool {
    let is_visible = |byte: &u8| !byte.is_ascii_control() && *byte != b' ';
    target.iter().all(is_visible)
        && (target.starts_with(b"/")
            || (target == b"*" && method == b"OPTIONS")
            || authority(target).is_some())
}

/// The authority of a target in absolute-form.
pub(super) fn authority(target: &[u8]) -> Option<&[u8]> {
    split_absolute(target).map(|(authority, _)| authority)
}

/// The path of a target in origin-form or absolute-form, without the query; `*` of the asterisk-form. An empty path
/// is `/` (RFC 9110, 4.2.3).
pub(super) fn path(target: &[u8]) -> &[u8] {
    let target = split_absolute(target).map_or(target, |(_, rest)| rest);
    let mut parts = target.split(|byte| b"?#".contains(byte));
    match parts.next().unwrap_or_default() {
        b"" => b"/",
        path => path,
    }
}

/// Splits a target in absolute-form, `scheme "://" authority` and any path and query, into the authority and what
/// follows it. An empty host is invalid (RFC 9110, 4.2.1), and userinfo is an error (RFC 9110, 4.2.4), so the
/// authority is what a Host field may contain.
fn split_absolute(target: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = target.iter().position(|byte| *byte == b':')?;
    let (scheme, rest) = target.split_at(colon);
    let [first, others @ ..] = scheme else {
        return None;
    };
    let is_scheme = first.is_ascii_alphabetic() && others.iter().all(u8::is_ascii_alphanumeric);
    let rest = rest.strip_prefix(b"://").filter(|_| is_scheme)?;
    let end = rest.iter().position(|byte| b"/?#".contains(byte));
    let (authority, rest) = rest.split_at(end.unwrap_or(rest.len()));
    (is_host(authority) && !matches!(authority, b"" | b":")).then_some((authority, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_neither_scheme_and_authority_nor_query() {
        for (target, expected) in [
            ("/metrics", "/metrics"),
            ("/metrics?a=b?c", "/metrics"),
            ("/metrics#a", "/metrics"),
            ("/a://b/c", "/a://b/c"),
            ("//b/c", "//b/c"),
            ("/?http://a/b", "/"),
            ("*", "*"),
            ("http://192.0.2.2:9180/metrics", "/metrics"),
            ("HTTP://[::1]:1/healthz?x", "/healthz"),
            ("http://a", "/"),
            ("http://a?/metrics", "/"),
            ("http://a/?b://c", "/"),
        ] {
            let path = path(target.as_bytes());
            assert_eq!(str::from_utf8(path), Ok(expected), "{target}");
        }
    }
}
