//! A response: its content is written first, then its head in front of it, because the head has the
//! length of the content. One write then sends both.

use crate::http::fields::Persistence;
use crate::http::status::Status;
use crate::log::buffer::Buffer;
use crate::log::timestamp::Timestamp;

/// The space that is reserved for the head, in bytes. The longest head has 290: with status 511, for OPTIONS of
/// HTTP/1.0.
const HEADROOM: usize = 384;

/// The most memory that is kept between two responses, in bytes.
const MAX_KEPT: usize = 8 * 1024;

/// Time without a request after which the server closes a connection that was answered, in seconds. A response to
/// HTTP/1.0 states it in Keep-Alive (RFC 2068, 19.7.1.1). A load balancer should be the first to close an idle
/// connection: those of AWS do so after 60 s.
pub const KEEP_ALIVE_TIMEOUT: u64 = 75;

/// The interim response to `Expect: 100-continue` (RFC 9110, 15.2.1).
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// The methods of a resource (RFC 9110, 10.2.1).
const ALLOW: &[u8] = b"\r\nAllow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

/// The product that answers, by which a client tells it from a Pod (RFC 9110, 10.2.4). A response depends on all of its
/// request: no cache may store it (RFC 9111, 5.2.2.5).
const FIXED_FIELDS: &str = concat!(
    "\r\nServer: tproxy-pod/",
    env!("CARGO_PKG_VERSION"),
    "\r\nCache-Control: no-store"
);

/// What the content of a response is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Text.
    Text,
    /// JSON.
    Json,
    /// Metrics in the text format of Prometheus.
    Metrics,
}

impl Content {
    fn content_type(self) -> &'static [u8] {
        match self {
            Content::Text => b"\r\nContent-Type: text/plain; charset=utf-8",
            Content::Json => b"\r\nContent-Type: application/json",
            Content::Metrics => b"\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// What the head of a response depends on, beside the length of the content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Description<'a> {
    /// The status.
    pub status: Status,
    /// The method of the request; empty if it is not known.
    pub method: &'a [u8],
    /// What the content is.
    pub content: Content,
    /// Whether the connection persists.
    pub persistence: Persistence,
}

/// A buffer for the responses of a connection, one after the other.
#[derive(Debug, Default)]
pub struct Response(Buffer);

impl Response {
    /// Begins a response without content.
    pub fn clear(&mut self) {
        self.0.shrink(MAX_KEPT);
        self.0.resize(HEADROOM);
    }

    /// The buffer to which the content is appended.
    pub fn content(&mut self) -> &mut Buffer {
        &mut self.0
    }

    /// The complete response; to a HEAD request, and with a status that has no content, only its head (RFC 9110,
    /// 9.3.2, 15.3.5, 15.3.6, 15.4.5). The head is appended to the content, whose length it states, and then copied
    /// in front of it.
    pub fn finish(&mut self, description: Description<'_>) -> &[u8] {
        let Description {
            status,
            method,
            content,
            persistence,
        } = description;
        let has_content = !matches!(
            status,
            Status::NO_CONTENT | Status::RESET_CONTENT | Status::NOT_MODIFIED
        );
        let is_to_head = method == b"HEAD";
        let end = self.0.len();
        self.0.push(b"HTTP/1.1 ");
        status.push_line(&mut self.0);
        self.0.push(b"\r\nDate: ");
        Timestamp::now().push_imf_fixdate(&mut self.0);
        self.0.push(FIXED_FIELDS.as_bytes());
        if has_content {
            self.0.push(content.content_type());
        }
        // The echo of a HEAD request has another length than that of a GET, which is the one to be stated or left out
        // (RFC 9110, 8.6).
        if has_content && !is_to_head {
            self.0.push(b"\r\nContent-Length: ");
            self.0.push_number((end - HEADROOM) as u64);
        } else if status == Status::RESET_CONTENT {
            self.0.push(b"\r\nContent-Length: 0");
        }
        if status == Status::METHOD_NOT_ALLOWED || method == b"OPTIONS" {
            self.0.push(ALLOW);
        }
        match persistence {
            Persistence::Default => {}
            Persistence::KeepAlive => {
                self.0
                    .push(b"\r\nConnection: keep-alive\r\nKeep-Alive: timeout=");
                self.0.push_number(KEEP_ALIVE_TIMEOUT);
            }
            Persistence::Close => self.0.push(b"\r\nConnection: close"),
        }
        self.0.push(b"\r\n\r\n");
        let bytes = self.0.bytes();
        let start = HEADROOM - (bytes.len() - end);
        bytes.copy_within(end.., start);
        let end = match has_content && !is_to_head {
            true => end,
            false => HEADROOM,
        };
        &bytes[start..end]
    }
}
