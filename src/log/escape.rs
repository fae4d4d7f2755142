//! Escaping of bytes that a peer sent, for log lines and error messages.

use std::fmt;

use crate::log::buffer::Buffer;

/// The longest escaped value, in bytes. A log line has up to five values, and stays within `PIPE_BUF`.
pub const MAX_ESCAPED: usize = 512;

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
