//! An answer: content first, then the head in front of it, so that its length is known and one
//! write sends both.

use std::io::Write;

use crate::clock::Moment;
use crate::http::{Persistence, Status};

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
        let mut head = [0; HEADROOM];
        let mut room = head.as_mut_slice();
        let written = write!(
            room,
            "HTTP/1.1 {}\r\nDate: {}\r\nContent-Type: text/plain; charset=utf-8\r\n\
             Content-Length: {length}\r\n{allow}{connection}\r\n",
            status.line(),
            Moment::now().imf_fixdate(),
        );
        debug_assert!(written.is_ok(), "the head fits into its room");
        let used = HEADROOM - room.len();
        self.bytes[HEADROOM - used..HEADROOM].copy_from_slice(&head[..used]);
        let end = if to_head { HEADROOM } else { self.bytes.len() };
        &self.bytes[HEADROOM - used..end]
    }
}

impl Default for Answer {
    fn default() -> Answer {
        Answer::new()
    }
}
