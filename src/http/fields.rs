//! The fields that frame a request and its connection, and what they say together.

use crate::http::body::Framing;

use super::head::{MAX_CONTENT, Persistence, Rejection, Status, Version, bad, reject};

/// The fields that a server has to look at.
#[derive(Default)]
pub(super) struct Fields<'a> {
    host: Option<&'a [u8]>,
    pub(super) user_agent: &'a [u8],
    content_length: Option<u64>,
    /// The transfer codings: none given, `chunked`, or what is wrong with them.
    transfer_coding: Option<Result<(), Rejection>>,
    expectation: Option<bool>,
    close: bool,
    keep_alive: bool,
}

impl<'a> Fields<'a> {
    pub(super) fn read(&mut self, header: &httparse::Header<'a>) -> Result<(), Rejection> {
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
    pub(super) fn host(&self, version: Version) -> Result<&'a [u8], Rejection> {
        match (self.host, version) {
            (Some(host), _) => Ok(host),
            (None, Version::Http10) => Ok(b""),
            (None, Version::Http11) => Err(bad("the Host field is missing")),
        }
    }

    /// RFC 9112, 6.1 to 6.3, at its strictest.
    pub(super) fn framing(&self, version: Version) -> Result<Framing, Rejection> {
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
    pub(super) fn expects_continue(&self, version: Version) -> Result<bool, Rejection> {
        match self.expectation {
            Some(false) if version > Version::Http10 => reject(
                Status::ExpectationFailed,
                "only 100-continue can be expected",
            ),
            expectation => Ok(version > Version::Http10 && expectation.is_some()),
        }
    }

    pub(super) fn persistence(&self, version: Version) -> Persistence {
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

/// `1*DIGIT`: no sign, no list, no blank. A number that is too large to hold is not malformed
/// (RFC 9110, 8.6): it is read as the largest.
fn digits(value: &[u8]) -> Option<u64> {
    let add = |number: u64, digit: &u8| {
        let digit = u64::from(digit.wrapping_sub(b'0'));
        number.saturating_mul(10).saturating_add(digit)
    };
    let all_digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    all_digits.then(|| value.iter().fold(0, add))
}

/// Whether the list is `chunked` alone. A coding that is not known is no fault of the client's,
/// unless chunked is not the last (RFC 9112, 6.1 and 6.3). Empty items are not left out, as of other
/// lists (RFC 9110, 5.6.1.2): not every reader takes `,chunked` for chunked.
fn transfer_coding(value: &[u8]) -> Result<(), Rejection> {
    let items = value.split(|byte| *byte == b',');
    let codings: Vec<&[u8]> = items.map(<[u8]>::trim_ascii).collect();
    let is_chunked = |coding: &&[u8]| coding.eq_ignore_ascii_case(b"chunked");
    match (
        codings.as_slice(),
        codings.iter().filter(|coding| is_chunked(coding)).count(),
    ) {
        _ if codings.contains(&&b""[..]) => Err(bad("a transfer coding is empty")),
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
pub(super) fn is_host(value: &[u8]) -> bool {
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
