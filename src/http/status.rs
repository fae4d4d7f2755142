//! Status codes, and the reasons for which a request is refused.

use crate::log::buffer::Buffer;

/// A status code of a final response, from 200 to 599 (RFC 9110, 15).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(u16);

#[allow(missing_docs, reason = "each is named after its reason phrase")]
impl Status {
    pub const OK: Status = Status(200);
    pub const NO_CONTENT: Status = Status(204);
    pub const RESET_CONTENT: Status = Status(205);
    pub const NOT_MODIFIED: Status = Status(304);
    pub const BAD_REQUEST: Status = Status(400);
    pub const NOT_FOUND: Status = Status(404);
    pub const METHOD_NOT_ALLOWED: Status = Status(405);
    pub const REQUEST_TIMEOUT: Status = Status(408);
    pub const CONTENT_TOO_LARGE: Status = Status(413);
    pub const URI_TOO_LONG: Status = Status(414);
    pub const EXPECTATION_FAILED: Status = Status(417);
    pub const REQUEST_HEADER_FIELDS_TOO_LARGE: Status = Status(431);
    pub const NOT_IMPLEMENTED: Status = Status(501);
    pub const SERVICE_UNAVAILABLE: Status = Status(503);
    pub const HTTP_VERSION_NOT_SUPPORTED: Status = Status(505);
}

/// Codes with their reason phrases (RFC 9110, 15; IANA, HTTP Status Code Registry)
const REASONS: &str = "\
200 OK
201 Created
202 Accepted
203 Non-Authoritative Information
204 No Content
205 Reset Content
206 Partial Content
207 Multi-Status
208 Already Reported
226 IM Used
300 Multiple Choices
301 Moved Permanently
302 Found
303 See Other
304 Not Modified
305 Use Proxy
307 Temporary Redirect
308 Permanent Redirect
400 Bad Request
401 Unauthorized
402 Payment Required
403 Forbidden
404 Not Found
405 Method Not Allowed
406 Not Acceptable
407 Proxy Authentication Required
408 Request Timeout
409 Conflict
410 Gone
411 Length Required
412 Precondition Failed
413 Content Too Large
414 URI Too Long
415 Unsupported Media Type
416 Range Not Satisfiable
417 Expectation Failed
421 Misdirected Request
422 Unprocessable Content
423 Locked
424 Failed Dependency
425 Too Early
426 Upgrade Required
428 Precondition Required
429 Too Many Requests
431 Request Header Fields Too Large
451 Unavailable For Legal Reasons
500 Internal Server Error
501 Not Implemented
502 Bad Gateway
503 Service Unavailable
504 Gateway Timeout
505 HTTP Version Not Supported
506 Variant Also Negotiates
507 Insufficient Storage
508 Loop Detected
511 Network Authentication Required
";

impl Status {
    /// The status with this code; `None` if that is not from 200 to 599.
    pub fn new(code: u16) -> Option<Status> {
        matches!(code, 200..=599).then_some(Status(code))
    }

    /// The code.
    pub fn code(self) -> u16 {
        self.0
    }

    /// The reason phrase; empty if the code has none.
    pub fn reason(self) -> &'static str {
        let code = self.digits();
        let mut lines = REASONS.lines();
        let line = lines.find(|line| line.as_bytes().starts_with(&code));
        line.map_or("", |line| &line[4..])
    }

    /// Appends the code and the reason phrase, with the space that separates them in any case (RFC 9112, 4).
    pub fn push_line(self, text: &mut Buffer) {
        if self == Status::OK {
            return text.push(b"200 OK");
        }
        text.push(&self.digits());
        text.push(b" ");
        text.push(self.reason().as_bytes());
    }

    /// Appends the three digits.
    pub fn push_code(self, text: &mut Buffer) {
        text.push(&self.digits());
    }

    fn digits(self) -> [u8; 3] {
        [100, 10, 1].map(|unit| b'0' + (self.0 / unit % 10) as u8)
    }
}

/// Why a request is refused. No further request is read from its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The status of the response.
    pub status: Status,
    /// One line of text, for the client and the log.
    pub reason: &'static str,
}

impl Rejection {
    /// A rejection with this status, for this reason.
    pub fn new(status: Status, reason: &'static str) -> Rejection {
        Rejection { status, reason }
    }
}

/// The rejection of a malformed request: 400.
pub(super) fn bad(reason: &'static str) -> Rejection {
    Rejection::new(Status::BAD_REQUEST, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(code: u16) -> String {
        let mut text = Buffer::EMPTY;
        Status::new(code).unwrap().push_line(&mut text);
        String::from_utf8(text.bytes().to_vec()).unwrap()
    }

    #[test]
    fn a_code_has_its_reason_phrase_or_none() {
        assert_eq!(line(200), "200 OK");
        assert_eq!(line(511), "511 Network Authentication Required");
        assert_eq!(line(299), "299 ");
        assert_eq!([199, 600].map(Status::new), [None; 2]);
    }
}
