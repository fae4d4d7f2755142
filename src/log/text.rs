//! Short text without memory of its own: what is written often is put together in place.

use std::fmt;

/// Text of at most `N` bytes.
#[derive(Clone, Copy, Debug)]
pub struct Text<const N: usize> {
    bytes: [u8; N],
    length: usize,
}

impl<const N: usize> Text<N> {
    /// No text.
    pub const EMPTY: Text<N> = Text {
        bytes: [0; N],
        length: 0,
    };

    /// The text that a value shows as; what has no room is left out.
    pub fn of(value: impl fmt::Display) -> Text<N> {
        let mut text = Text::EMPTY;
        let written = fmt::write(&mut text, format_args!("{value}"));
        debug_assert!(written.is_ok(), "{value} has more than {N} bytes");
        text
    }

    /// A number.
    pub fn of_number(number: u64) -> Text<N> {
        let mut text = Text::EMPTY;
        text.push_number(number);
        text
    }

    /// The bytes of the text.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        str::from_utf8(self.as_bytes()).unwrap_or_default()
    }

    /// Appends a number with `width` digits, the last ones of it.
    pub fn push_digits(&mut self, number: u64, width: usize) {
        if let Some(room) = self.bytes.get_mut(self.length..self.length + width) {
            let digits = room.iter_mut().rev();
            digits.fold(number, |number, digit| {
                *digit = b'0' + (number % 10) as u8;
                number / 10
            });
            self.length += width;
        }
    }

    /// Appends a number.
    pub fn push_number(&mut self, number: u64) {
        let width = number.checked_ilog10().unwrap_or(0) as usize + 1;
        self.push_digits(number, width);
    }

    /// Appends text, if it has room.
    #[inline(always)]
    pub fn push(&mut self, text: &str) {
        if let Some(room) = self.bytes.get_mut(self.length..self.length + text.len()) {
            room.copy_from_slice(text.as_bytes());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_padded_and_cut() {
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
