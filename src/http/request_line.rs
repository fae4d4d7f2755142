//! The request line (RFC 9112, 3): what of it is malformed, and which version it speaks.

use super::fields::is_host;
use super::head::{MAX_REQUEST_LINE, Rejection, Status, Version, bad, reject};

/// `METHOD TARGET HTTP/1.x`, as the lengths of its first two words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RequestLine {
    pub(super) method: usize,
    pub(super) target: usize,
    pub(super) version: Version,
}

impl RequestLine {
    /// What can be said before the line is complete.
    pub(super) fn check_beginning(line: &[u8]) -> Result<(), Rejection> {
        match line {
            [0x16, ..] => return Err(bad("the client speaks TLS, not HTTP")),
            [first, ..] if !is_token_byte(*first) && *first != b'\r' => {
                return Err(bad("this is not HTTP"));
            }
            _ => {}
        }
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        match line.get(..=MAX_REQUEST_LINE) {
            None => Ok(()),
            Some(beginning) if beginning.contains(&b' ') => {
                reject(Status::UriTooLong, "the request line is longer than 8 KiB")
            }
            _ => Err(bad("the method does not end")),
        }
    }

    pub(super) fn parse(line: &[u8]) -> Result<RequestLine, Rejection> {
        let mut words = line.splitn(4, |byte| *byte == b' ');
        let (Some(method), Some(target), Some(version), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(bad("the request line is not METHOD TARGET VERSION"));
        };
        let version = match version {
            [b'H', b'T', b'T', b'P', b'/', b'1', b'.', minor] if minor.is_ascii_digit() => {
                match minor {
                    b'0' => Version::Http10,
                    _ => Version::Http11,
                }
            }
            b"HTTP/2.0" if method == b"PRI" => {
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
        if method == b"CONNECT" {
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
            && rest.strip_prefix(b"://").is_some_and(has_authority)
    };
    let visible = target
        .iter()
        .all(|byte| !byte.is_ascii_control() && *byte != b' ');
    visible && (target.starts_with(b"/") || (target == b"*" && method == b"OPTIONS") || absolute())
}

/// Whether this begins with a host, and a port or none, as a Host field has it: without one a target is
/// invalid (RFC 9110, 4.2.1), and userinfo is an error (RFC 9110, 4.2.4).
fn has_authority(hierarchy: &[u8]) -> bool {
    let mut parts = hierarchy.split(|byte| b"/?#".contains(byte));
    parts
        .next()
        .is_some_and(|authority| is_host(authority) && !matches!(authority, b"" | b":"))
}

/// `tchar` (RFC 9110, 5.6.2).
pub fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
