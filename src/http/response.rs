//! A response: its content is written first, then its head in front of it, because the head has the
//! length of the content. One write then sends both.

use crate::http::fields::Persistence;
use crate::http::status::Status;
use crate::log::buffer::Buffer;
use crate::log::timestamp::Timestamp;

/// The space that is reserved for the head, in bytes. The longest head, of a 405, has 212.
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

    /// The complete response; to a HEAD request, only its head (RFC 9110, 9.3.2). The head is appended to
    /// the content, whose length it states, and then copied in front of it.
    pub fn finish(&mut self, status: Status, persistence: Persistence, to_head: bool) -> &[u8] {
        let end = self.0.len();
        self.0.push(b"HTTP/1.1 ");
        self.0.push(status.line().as_bytes());
        self.0.push(b"\r\nDate: ");
        Timestamp::now().push_imf_fixdate(&mut self.0);
        self.0
            .push(b"\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: ");
        self.0.push_number((end - HEADROOM) as u64);
        if status == Status::METHOD_NOT_ALLOWED {
            self.0
                .push(b"\r\nAllow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, TRACE");
        }
        self.0.push(match persistence {
            Persistence::Default => b"".as_slice(),
            Persistence::KeepAlive => b"\r\nConnection: keep-alive",
            Persistence::Close => b"\r\nConnection: close",
        });
        self.0.push(b"\r\n\r\n");
        let bytes = self.0.bytes();
        let start = HEADROOM - (bytes.len() - end);
        bytes.copy_within(end.., start);
        let end = if to_head { HEADROOM } else { end };
        &bytes[start..end]
    }
}
