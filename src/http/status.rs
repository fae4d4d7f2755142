//! The status codes that the server sends, and the reasons for which it refuses a request.

/// A status code with its reason phrase (RFC 9110, 15; 431: RFC 6585, 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(&'static str);

#[allow(missing_docs, reason = "each is named after its reason phrase")]
impl Status {
    pub const OK: Status = Status("200 OK");
    pub const BAD_REQUEST: Status = Status("400 Bad Request");
    pub const NOT_FOUND: Status = Status("404 Not Found");
    pub const METHOD_NOT_ALLOWED: Status = Status("405 Method Not Allowed");
    pub const REQUEST_TIMEOUT: Status = Status("408 Request Timeout");
    pub const CONTENT_TOO_LARGE: Status = Status("413 Content Too Large");
    pub const URI_TOO_LONG: Status = Status("414 URI Too Long");
    pub const EXPECTATION_FAILED: Status = Status("417 Expectation Failed");
    pub const REQUEST_HEADER_FIELDS_TOO_LARGE: Status =
        Status("431 Request Header Fields Too Large");
    pub const NOT_IMPLEMENTED: Status = Status("501 Not Implemented");
    pub const SERVICE_UNAVAILABLE: Status = Status("503 Service Unavailable");
    pub const HTTP_VERSION_NOT_SUPPORTED: Status = Status("505 HTTP Version Not Supported");
}

impl Status {
    /// The code and the reason phrase.
    pub fn line(self) -> &'static str {
        self.0
    }

    /// The three digits.
    pub fn code(self) -> &'static str {
        &self.0[..3]
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
