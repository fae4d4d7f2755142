//! A byte buffer for log lines and responses. Most of what is appended is short: `Buffer` copies that with a few
//! instructions, where memcpy(3) of musl, which `Vec` calls, is made for long copies.

use std::fmt;

/// A growing buffer.
#[derive(Debug, Default)]
pub struct Buffer {
    /// The content is the first `length` bytes.
    bytes: Vec<u8>,
    length: usize,
}

impl Buffer {
    /// The empty buffer.
    pub const EMPTY: Buffer = Buffer {
        bytes: Vec::new(),
        length: 0,
    };

    /// The length of the content, in bytes.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there is no content.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Removes the content, and frees all memory but `kept` bytes.
    pub fn shrink(&mut self, kept: usize) {
        self.length = 0;
        self.bytes.truncate(kept);
        self.bytes.shrink_to(kept);
    }

    /// Makes the content `length` bytes long; new bytes are arbitrary.
    pub fn resize(&mut self, length: usize) {
        if self.bytes.len() < length {
            self.grow(length);
        }
        self.length = length;
    }

    /// Appends bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        let end = self.length + bytes.len();
        if end > self.bytes.len() {
            self.grow(end);
        }
        if let Some(space) = self.bytes.get_mut(self.length..end) {
            copy(space, bytes);
            self.length = end;
        }
    }

    /// Appends a decimal number.
    pub fn push_number(&mut self, number: u64) {
        let mut digits = [0; 20];
        let mut start = digits.len();
        let mut rest = number;
        while start == digits.len() || rest > 0 {
            start -= 1;
            digits[start] = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        self.push(&digits[start..]);
    }

    /// The content.
    pub fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.length]
    }

    #[cold]
    #[inline(never)]
    fn grow(&mut self, length: usize) {
        self.bytes.resize(length.next_power_of_two().max(1024), 0);
    }
}

/// Copies bytes between two slices of equal length.
fn copy(to: &mut [u8], from: &[u8]) {
    match from.len() {
        0 => {}
        1 => to[0] = from[0],
        2..4 => copy_ends::<2>(to, from),
        4..8 => copy_ends::<4>(to, from),
        8..16 => copy_ends::<8>(to, from),
        16..=32 => copy_ends::<16>(to, from),
        _ => to.copy_from_slice(from),
    }
}

/// Copies the first and the last `N` bytes, which may overlap.
fn copy_ends<const N: usize>(to: &mut [u8], from: &[u8]) {
    if let (Some(to), Some(from)) = (to.first_chunk_mut::<N>(), from.first_chunk()) {
        *to = *from;
    }
    if let (Some(to), Some(from)) = (to.last_chunk_mut::<N>(), from.last_chunk()) {
        *to = *from;
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
    fn pushed_bytes_are_appended_and_shrinking_frees_memory() {
        let mut buffer = Buffer::default();
        buffer.resize(3);
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

    #[test]
    fn bytes_of_any_length_are_copied() {
        let bytes: Vec<u8> = (0..100).collect();
        for length in 0..bytes.len() {
            let mut buffer = Buffer::default();
            buffer.push(b"<");
            buffer.push(&bytes[..length]);
            buffer.push(b">");
            assert_eq!(buffer.bytes(), [b"<", &bytes[..length], b">"].concat());
        }
    }

    #[test]
    fn a_number_has_its_digits() {
        let mut buffer = Buffer::default();
        for number in [0, 9, 10, u64::MAX] {
            buffer.resize(0);
            buffer.push_number(number);
            assert_eq!(buffer.bytes(), number.to_string().as_bytes());
        }
    }
}
