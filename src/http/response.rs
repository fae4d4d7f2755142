//! A response: its content is written first, then its head in front of it, because the head has the
//! length of the content. One write then sends both.

use crate::http::fields::Persistence;
use crate::http::status::Status;
use crate::log::buffer::Buffer;
use crate::log::text::Text;
use crate::log::timestamp::Timestamp;

/// The space that is reserved for the head, in bytes. The longest head has 204.
const HEADROOM: usize = 256;

/// The most memory that is kept between two responses, in bytes.
const MAX_KEPT: usize = 8 * 1024;

/// The interim response to `Expect: 100-continue` (RFC 9110, 15.2.1).
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// A buffer for the responses of a connection, one after the other.
#[derive(Debug, Default)]
pub struct Response(Buffer);

impl Response {
    /// Begins a response without content.
    pub fn clear(&mut self) {
        self.0.shrink(MAX_KEPT);
        self.0.clear(HEADROOM);
    }

    /// The buffer to which the content is appended.
    pub fn content(&mut self) -> &mut Buffer {
        &mut self.0
    }

    /// The complete response; to a HEAD request, only its head (RFC 9110, 9.3.2).
    pub fn finish(&mut self, status: Status, persistence: Persistence, to_head: bool) -> &[u8] {
        let bytes = self.0.bytes();
        let length = bytes.len() - HEADROOM;
        let connection = match persistence {
            Persistence::Default => "",
            Persistence::KeepAlive => "Connection: keep-alive\r\n",
            Persistence::Close => "Connection: close\r\n",
        };
        let allow = match status {
            Status::MethodNotAllowed => {
                "Allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, TRACE\r\n"
            }
            _ => "",
        };
        let mut start = HEADROOM;
        // Backwards: the head ends where the content begins.
        for part in [
            "\r\n",
            connection,
            allow,
            "\r\n",
            Text::<20>::of_number(length as u64).as_str(),
            "\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: ",
            Timestamp::now().imf_fixdate().as_str(),
            "\r\nDate: ",
            status.line(),
            "HTTP/1.1 ",
        ] {
            let end = start;
            start -= part.len();
            bytes[start..end].copy_from_slice(part.as_bytes());
        }
        let end = if to_head { HEADROOM } else { bytes.len() };
        &bytes[start..end]
    }
}
