//! An answer: content first, then the head in front of it, so that its length is known and one
//! write sends both.

use crate::http::head::{Persistence, Status};
use crate::log::buffer::Buffer;
use crate::log::text::Text;
use crate::log::timestamp::Timestamp;

/// Room for the head; the longest has 204 bytes.
const HEADROOM: usize = 256;

/// What is kept from one answer to the next, in bytes.
const KEPT: usize = 8 * 1024;

/// What asks the client to send the body that it holds back.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// A buffer for one answer after the other.
#[derive(Debug, Default)]
pub struct Response(Buffer);

impl Response {
    /// Forgets the last answer.
    pub fn clear(&mut self) {
        self.0.shrink(KEPT);
        self.0.clear(HEADROOM);
    }

    /// Where content is appended.
    pub fn content(&mut self) -> &mut Buffer {
        &mut self.0
    }

    /// The finished answer; to HEAD, only its head (RFC 9110, 9.3.2).
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
        // From the last to the first, so that the head ends where the content begins.
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
