//! Bytes put together piece by piece. What is pushed is mostly short and often literal: here that is
//! a few moves, where `Vec` calls a function of the C library for each.

use std::fmt;

/// A buffer that grows.
#[derive(Debug, Default)]
pub struct Buffer {
    /// Those up to `length` are in use.
    bytes: Vec<u8>,
    length: usize,
}

impl Buffer {
    /// Nothing.
    pub const EMPTY: Buffer = Buffer {
        bytes: Vec::new(),
        length: 0,
    };

    /// How many bytes are in use.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Starts anew, behind `headroom` bytes that mean nothing yet.
    pub fn clear(&mut self, headroom: usize) {
        if self.bytes.len() < headroom {
            self.grow(headroom);
        }
        self.length = headroom;
    }

    /// Gives memory back but for `kept` bytes; what is in use is lost.
    pub fn shrink(&mut self, kept: usize) {
        self.length = 0;
        self.bytes.truncate(kept);
        self.bytes.shrink_to(kept);
    }

    /// Appends bytes.
    #[inline(always)]
    pub fn push(&mut self, piece: &[u8]) {
        let end = self.length + piece.len();
        if end > self.bytes.len() {
            self.grow(end);
        }
        if let Some(room) = self.bytes.get_mut(self.length..end) {
            room.copy_from_slice(piece);
            self.length = end;
        }
    }

    /// What is in use.
    pub fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.length]
    }

    #[cold]
    #[inline(never)]
    fn grow(&mut self, length: usize) {
        self.bytes.resize(length.next_power_of_two().max(1024), 0);
    }
}

impl fmt::Write for Buffer {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push(text.as_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_follow_each_other_and_a_large_use_is_not_kept() {
        let mut buffer = Buffer::default();
        buffer.clear(3);
        buffer.bytes().copy_from_slice(b"abc");
        buffer.push(b"");
        buffer.push(&[b'x'; 100_000]);
        buffer.push(b"end");
        let expected = [&b"abc"[..], &[b'x'; 100_000], b"end"].concat();
        assert_eq!(buffer.bytes(), expected);
        buffer.shrink(100);
        assert_eq!(buffer.bytes(), b"");
        assert!(buffer.bytes.capacity() <= 100);
    }
}
