//! An answer: content first, then the head in front of it, so that its length is known and one
//! write sends both.

use std::mem;
use std::ops::{Deref, DerefMut};
use std::sync::Mutex;

use crate::buffer::Buffer;
use crate::clock::Moment;
use crate::http::{Persistence, Status};
use crate::text::Text;

/// Room for the head; the longest has 204 bytes.
const HEADROOM: usize = 256;

/// What asks the client to send the body that it holds back.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// A buffer for one answer after the other.
#[derive(Debug, Default)]
pub struct Answer(Buffer);

impl Answer {
    /// Forgets the last answer.
    pub fn clear(&mut self) {
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
            Moment::now().imf_fixdate().as_str(),
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

/// Buffers for answers, which threads borrow: the same few are used again and again, and stay in the
/// processor's caches.
#[derive(Debug, Default)]
pub struct Answers(Mutex<Vec<Answer>>);

impl Answers {
    /// Lends a buffer for a while.
    pub fn borrow(&self) -> Borrowed<'_> {
        let free = self.0.try_lock().ok().and_then(|mut free| free.pop());
        Borrowed {
            answer: free.unwrap_or_default(),
            owner: self,
        }
    }
}

/// So many buffers are kept that nobody uses.
const FREE: usize = 16;

/// A buffer that goes back to its owner.
#[derive(Debug)]
pub struct Borrowed<'o> {
    answer: Answer,
    owner: &'o Answers,
}

impl Deref for Borrowed<'_> {
    type Target = Answer;

    fn deref(&self) -> &Answer {
        &self.answer
    }
}

impl DerefMut for Borrowed<'_> {
    fn deref_mut(&mut self) -> &mut Answer {
        &mut self.answer
    }
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        if let Ok(mut free) = self.owner.0.try_lock()
            && free.len() < FREE
        {
            self.answer.0.shrink();
            free.push(mem::take(&mut self.answer));
        }
    }
}
