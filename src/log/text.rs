//! Text in a fixed array, for what is formatted often and must not allocate; and the escaping of bytes
//! that a peer sent.

use std::fmt;

use crate::log::buffer::Buffer;

/// Text of at most `N` bytes.
#[derive(Clone, Copy, Debug)]
pub struct Text<const N: usize> {
    bytes: [u8; N],
    length: usize,
}

impl<const N: usize> Text<N> {
    /// The empty text.
    pub const EMPTY: Text<N> = Text {
        bytes: [0; N],
        length: 0,
    };

    /// A value as it is displayed. What does not fit is left out.
    pub fn of(value: impl fmt::Display) -> Text<N> {
        let mut text = Text::EMPTY;
        let written = fmt::write(&mut text, format_args!("{value}"));
        debug_assert!(written.is_ok(), "{value} has more than {N} bytes");
        text
    }

    /// A decimal number.
    pub fn of_number(number: u64) -> Text<N> {
        let mut text = Text::EMPTY;
        text.push_number(number);
        text
    }

    /// The text, as bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        str::from_utf8(self.as_bytes()).unwrap_or_default()
    }

    /// Appends the last `width` digits of a number, with leading zeros.
    pub fn push_digits(&mut self, number: u64, width: usize) {
        if let Some(space) = self.bytes.get_mut(self.length..self.length + width) {
            let digits = space.iter_mut().rev();
            digits.fold(number, |number, digit| {
                *digit = b'0' + (number % 10) as u8;
                number / 10
            });
            self.length += width;
        }
    }

    /// Appends a decimal number.
    pub fn push_number(&mut self, number: u64) {
        let width = number.checked_ilog10().unwrap_or(0) as usize + 1;
        self.push_digits(number, width);
    }

    /// Appends text if it fits.
    #[inline(always)]
    pub fn push(&mut self, text: &str) {
        if let Some(space) = self.bytes.get_mut(self.length..self.length + text.len()) {
            space.copy_from_slice(text.as_bytes());
            self.length += text.len();
        }
    }
}

impl<const N: usize> fmt::Write for Text<N> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let before = self.length;
        self.push(text);
        match self.length == before + text.len() {
            true => Ok(()),
            false => Err(fmt::Error),
        }
    }
}

impl<const N: usize> fmt::Display for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The longest escaped value, in bytes. A log line has up to five values, and stays within `PIPE_BUF`.
const MAX_ESCAPED: usize = 512;

/// Bytes that a peer sent, as printable ASCII: others, quotes and backslashes as `\n`, `\x1b`, `\"`.
/// `...` stands for what exceeds `MAX_ESCAPED`.
pub fn escaped(bytes: &[u8]) -> impl fmt::Display {
    let lengths = bytes.iter().scan(0, |length, byte| {
        *length += std::ascii::escape_default(*byte).len();
        Some(*length)
    });
    let shown = lengths.take_while(|length| *length <= MAX_ESCAPED).count();
    let dots = if shown < bytes.len() { "..." } else { "" };
    fmt::from_fn(move |f| write!(f, "{}{dots}", bytes[..shown].escape_ascii()))
}

/// Appends [`escaped`] bytes to a line. Most values need no escaping and are copied.
pub fn push_escaped(line: &mut Buffer, bytes: &[u8]) {
    let is_plain = |byte: &u8| matches!(byte, b' '..=b'~') && !b"\"'\\".contains(byte);
    match bytes.len() <= MAX_ESCAPED && bytes.iter().all(is_plain) {
        true => line.push(bytes),
        false => line.push(escaped(bytes).to_string().as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_padded_and_truncated() {
        let mut text = Text::<9>::EMPTY;
        text.push_digits(7, 3);
        text.push("-");
        text.push_digits(12_345, 2);
        assert_eq!(text.as_str(), "007-45");
        text.push("toolong");
        assert_eq!(text.as_str(), "007-45");
        text.push("fit");
        assert_eq!(text.as_str(), "007-45fit");
    }
}
