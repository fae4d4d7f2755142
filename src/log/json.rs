//! JSON strings (RFC 8259, 7) of bytes that a peer sent, for log lines and echoes.

use std::{ascii, fmt};

use crate::log::buffer::Buffer;

/// Appends a JSON string in printable ASCII, of at most `max` bytes between its quotes, and `...` for what exceeds
/// them. Bytes that are not UTF-8 as a whole are in the form of [`escaped`](crate::log::escape::escaped).
pub fn push_string(json: &mut Buffer, bytes: &[u8], max: usize) {
    json.push(b"\"");
    push_content(json, bytes, max);
    json.push(b"\"");
}

/// Appends what is between the quotes of such a string.
pub fn push_content(json: &mut Buffer, bytes: &[u8], max: usize) {
    let is_plain = |byte: &u8| matches!(byte, b' '..=b'~') && !b"\"\\".contains(byte);
    match bytes.len() <= max && bytes.iter().all(is_plain) {
        true => json.push(bytes),
        false => push_escaped(json, bytes, max),
    }
}

#[cold]
fn push_escaped(json: &mut Buffer, bytes: &[u8], max: usize) {
    let end = json.len().saturating_add(max);
    let is_whole = match str::from_utf8(bytes) {
        Ok(text) => text.chars().all(|it| push_char(json, it, end)),
        Err(_) => bytes.iter().all(|byte| {
            // Up to four characters, in one piece.
            let start = json.len();
            let is_whole = ascii::escape_default(*byte).all(|it| push_char(json, it.into(), end));
            if !is_whole {
                json.resize(start);
            }
            is_whole
        }),
    };
    if !is_whole {
        json.push(b"...");
    }
}

/// Appends a character, unless it would end behind `end`; returns whether it was appended.
fn push_char(json: &mut Buffer, character: char, end: usize) -> bool {
    let mut escape = [0; 12];
    let escape = escape_char(character, &mut escape);
    let fits = json.len() + escape.len() <= end;
    if fits {
        json.push(escape);
    }
    fits
}

/// A [`fmt::Write`] for what is between the quotes of a JSON string.
#[derive(Debug)]
pub struct Writer<'b>(pub &'b mut Buffer);

impl fmt::Write for Writer<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        push_content(self.0, text.as_bytes(), usize::MAX);
        Ok(())
    }
}

/// A character as it stands in a JSON string, in printable ASCII.
pub fn escape_char(character: char, escape: &mut [u8; 12]) -> &[u8] {
    let short = match character {
        '"' | '\\' => character as u8,
        '\n' => b'n',
        '\r' => b'r',
        '\t' => b't',
        ' '..='~' => {
            escape[0] = character as u8;
            return &escape[..1];
        }
        _ => {
            let mut length = 0;
            for unit in character.encode_utf16(&mut [0; 2]) {
                escape[length..length + 6].copy_from_slice(&escape_unit(*unit));
                length += 6;
            }
            return &escape[..length];
        }
    };
    escape[..2].copy_from_slice(&[b'\\', short]);
    &escape[..2]
}

/// A UTF-16 code unit as `\u00e9`.
fn escape_unit(unit: u16) -> [u8; 6] {
    let mut escape = *b"\\u0000";
    for (at, digit) in escape[2..].iter_mut().enumerate() {
        *digit = b"0123456789abcdef"[usize::from(unit >> (12 - 4 * at)) & 15];
    }
    escape
}

#[cfg(test)]
mod tests {
    use super::*;

    fn string(bytes: &[u8], max: usize) -> String {
        let mut json = Buffer::EMPTY;
        push_string(&mut json, bytes, max);
        String::from_utf8(json.bytes().to_vec()).unwrap()
    }

    #[test]
    fn a_reader_gets_the_text_that_was_sent() {
        for text in [
            "",
            "/a b'c",
            "\"\\\u{0}\u{1f}\u{7f}\n\r\t/",
            "é€\u{202e}\u{1f600}x",
        ] {
            let json = string(text.as_bytes(), usize::MAX);
            assert!(
                json.bytes().all(|byte| matches!(byte, b' '..=b'~')),
                "{json}"
            );
            assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
        }
    }

    #[test]
    fn bytes_that_are_not_utf_8_have_the_escape_of_the_log() {
        let json = string(b"caf\xe9 \"\\\n", usize::MAX);
        assert_eq!(
            serde_json::from_str::<String>(&json).unwrap(),
            r#"caf\xe9 \"\\\n"#
        );
    }

    #[test]
    fn a_long_string_ends_with_dots_behind_a_whole_escape() {
        assert_eq!(string(b"abcdef", 5), r#""abcde...""#);
        assert_eq!(string("é€".as_bytes(), 11), r#""\u00e9...""#);
        assert_eq!(string(b"a\xff\xff", 8), r#""a\\xff...""#);
        assert_eq!(string(&[b'x'; 512], 512).len(), 514);
    }
}
