//! An answer: content first, then the head in front of it, so that its length is known and one
//! write sends both.

use crate::clock::Moment;
use crate::http::{Persistence, Status};
use crate::text::Text;

/// Room for the head; the longest has 204 bytes.
const HEADROOM: usize = 256;

/// What is kept between two answers, in bytes.
const KEPT: usize = 8 * 1024;

/// What asks the client to send the body that it holds back.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// A buffer for one answer after the other.
#[derive(Debug)]
pub struct Answer {
    bytes: Vec<u8>,
}

impl Answer {
    /// An answer without content.
    pub fn new() -> Answer {
        Answer {
            bytes: vec![0; HEADROOM],
        }
    }

    /// Forgets the last answer.
    pub fn clear(&mut self) {
        self.bytes.truncate(HEADROOM);
        self.bytes.shrink_to(KEPT);
    }

    /// Where content is appended.
    pub fn content(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// The finished answer; to HEAD, only its head (RFC 9110, 9.3.2).
    pub fn finish(&mut self, status: Status, persistence: Persistence, to_head: bool) -> &[u8] {
        let length = self.bytes.len() - HEADROOM;
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
        let mut head = Text::<HEADROOM>::EMPTY;
        [
            "HTTP/1.1 ",
            status.line(),
            "\r\nDate: ",
            Moment::now().imf_fixdate().as_str(),
            "\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: ",
            Text::<20>::of(length).as_str(),
            "\r\n",
            allow,
            connection,
            "\r\n",
        ]
        .into_iter()
        .for_each(|part| head.push(part));
        let head = head.as_str().as_bytes();
        let start = HEADROOM - head.len();
        self.bytes[start..HEADROOM].copy_from_slice(head);
        let end = if to_head { HEADROOM } else { self.bytes.len() };
        &self.bytes[start..end]
    }
}

impl Default for Answer {
    fn default() -> Answer {
        Answer::new()
    }
}
