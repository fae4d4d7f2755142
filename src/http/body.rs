//! The body of a request (RFC 9112, 6 and 7). `Decoder` takes input in pieces of any size, passes the
//! content on, and stops exactly at the end of the body.

use crate::http::status::{Rejection, Status, bad};
use crate::http::syntax::{is_text_byte, is_token_byte};

/// The largest content, in bytes.
pub const MAX_CONTENT: u64 = 1 << 30;

/// The longest chunk size with its extensions and its CRLF, in bytes.
pub const MAX_CHUNK_LINE: usize = 4096;

/// The longest trailer section, in bytes.
pub const MAX_TRAILERS: usize = 8192;

/// How the length of a body is determined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    None,
    /// By Content-Length, in bytes.
    Length(u64),
    /// By the chunked transfer coding.
    Chunked,
}

/// Decodes one body.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    /// The bytes that are left of the body, or of the current chunk; while a chunk size is read, its
    /// value so far.
    left: u64,
    /// The content so far, in bytes.
    received: u64,
    /// The length of the current chunk line, or of the trailer section, so far, in bytes.
    overhead: usize,
}

/// What comes next in the input, in the order of a body. The names are those of the grammar (RFC 9112,
/// 7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
enum State {
    /// Content of a body with a known length.
    Content,
    /// The first digit of a chunk size.
    FirstDigit,
    /// More digits of a chunk size, or what follows it.
    Size,
    /// Whitespace in front of a `;`.
    Whitespace,
    /// The name of a chunk extension, or whitespace in front of it.
    ExtensionStart,
    /// More of the name, or what follows it.
    ExtensionName,
    /// Whitespace behind the name, in front of a `=` or a `;`.
    ExtensionNameEnd,
    /// The value of a chunk extension, or whitespace in front of it.
    ValueStart,
    /// More of a value that is a token, or what follows it.
    Token,
    /// More of a value that is a quoted string, or its end.
    Quoted,
    /// The byte behind a `\` in a quoted string.
    QuotedPair,
    /// What follows a quoted string.
    QuotedEnd,
    /// The LF after a chunk size and its extensions.
    SizeLf,
    /// Content of a chunk.
    ChunkData,
    /// The CR after the content of a chunk.
    ChunkCr,
    /// The LF after the content of a chunk.
    ChunkLf,
    /// A trailer field, or the CR of the empty line after them.
    TrailerStart,
    /// The name of a trailer field.
    TrailerName,
    /// The value of a trailer field.
    TrailerValue,
    /// The LF after a trailer field.
    TrailerLf,
    /// The LF of the empty line.
    LastLf,
    /// Nothing: the body is complete.
    Done,
}

impl Decoder {
    /// A decoder at the first byte of a body.
    pub fn new(framing: Framing) -> Decoder {
        let (state, left) = match framing {
            Framing::None | Framing::Length(0) => (State::Done, 0),
            Framing::Length(length) => (State::Content, length),
            Framing::Chunked => (State::FirstDigit, 0),
        };
        Decoder {
            state,
            left,
            received: 0,
            overhead: 0,
        }
    }

    /// Whether the body has ended.
    pub fn is_complete(&self) -> bool {
        self.state == State::Done
    }

    /// The content so far, in bytes.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Decodes the part of `input` that belongs to the body, passes its content to `content`, and
    /// returns the length of that part, which is shorter than `input` only if the body is complete.
    ///
    /// # Errors
    /// 400 for malformed framing or more than [`MAX_CHUNK_LINE`], 413 for more than [`MAX_CONTENT`],
    /// 431 for more than [`MAX_TRAILERS`].
    pub fn decode(
        &mut self,
        input: &[u8],
        mut content: impl FnMut(&[u8]),
    ) -> Result<usize, Rejection> {
        let mut rest = input;
        while let Some(byte) = rest.first().copied() {
            match self.state {
                State::Done => break,
                State::Content | State::ChunkData => {
                    let length =
                        usize::try_from(self.left).map_or(rest.len(), |left| left.min(rest.len()));
                    let (data, after) = rest.split_at(length);
                    content(data);
                    self.count_content(length as u64);
                    rest = after;
                }
                _ => {
                    self.count_overhead()?;
                    self.state = self.next_state(byte)?;
                    rest = &rest[1..];
                }
            }
        }
        Ok(input.len() - rest.len())
    }

    fn count_content(&mut self, length: u64) {
        self.received += length;
        self.left -= length;
        if self.left == 0 {
            self.state = match self.state {
                State::ChunkData => State::ChunkCr,
                _ => State::Done,
            };
        }
    }

    /// The state after a byte that is not content.
    fn next_state(&mut self, byte: u8) -> Result<State, Rejection> {
        Ok(match (self.state, byte) {
            (State::FirstDigit | State::Size, byte) if byte.is_ascii_hexdigit() => {
                self.add_digit(byte)?;
                State::Size
            }
            (State::FirstDigit, _) => return Err(bad("the chunk size is malformed")),
            (state, byte) if state < State::SizeLf => state_in_extensions(state, byte)?,
            (State::SizeLf, b'\n') => {
                self.overhead = 0;
                match self.left {
                    0 => State::TrailerStart,
                    _ => State::ChunkData,
                }
            }
            (State::SizeLf, _) => return Err(bad("a line does not end with CRLF")),
            (State::ChunkCr, b'\r') => State::ChunkLf,
            (State::ChunkLf, b'\n') => {
                self.overhead = 0;
                State::FirstDigit
            }
            (State::ChunkCr | State::ChunkLf, _) => {
                return Err(bad("a chunk is longer than its size"));
            }
            (State::TrailerStart, b'\r') => State::LastLf,
            // Not the first line: it cannot be folded.
            (State::TrailerStart, b' ' | b'\t') if self.overhead > 1 => {
                return Err(bad("a trailer field is folded (obs-fold)"));
            }
            (State::TrailerStart | State::TrailerName, byte) if is_token_byte(byte) => {
                State::TrailerName
            }
            (State::TrailerName, b':') => State::TrailerValue,
            (State::TrailerValue, b'\r') => State::TrailerLf,
            (State::TrailerValue, byte) if is_text_byte(byte) => State::TrailerValue,
            (State::TrailerLf, b'\n') => State::TrailerStart,
            (State::LastLf, b'\n') => State::Done,
            _ => return Err(bad("a trailer field is malformed")),
        })
    }

    /// Limits what a client may send besides content.
    fn count_overhead(&mut self) -> Result<(), Rejection> {
        self.overhead += 1;
        match self.state >= State::TrailerStart {
            true if self.overhead > MAX_TRAILERS => Err(Rejection::new(
                Status::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "the trailers are longer than 8 KiB",
            )),
            false if self.overhead > MAX_CHUNK_LINE => {
                Err(bad("a chunk's line is longer than 4 KiB"))
            }
            _ => Ok(()),
        }
    }

    /// Adds a hexadecimal digit to the chunk size. The content, with this chunk, must be within
    /// [`MAX_CONTENT`].
    fn add_digit(&mut self, digit: u8) -> Result<(), Rejection> {
        let digit = char::from(digit).to_digit(16).unwrap_or_default();
        self.left = self.left << 4 | u64::from(digit);
        match self.received + self.left <= MAX_CONTENT {
            true => Ok(()),
            false => Err(Rejection::new(
                Status::CONTENT_TOO_LARGE,
                "the content is longer than 1 GiB",
            )),
        }
    }
}

/// The state after a byte that follows the digits of a chunk size, up to the CR (RFC 9112, 7.1.1). No
/// whitespace precedes the CR. A quoted string, quoted pairs included, contains no CR and no LF (RFC 9110,
/// 5.6.4): the line ends at the same byte for a parser that does not read extensions.
fn state_in_extensions(state: State, byte: u8) -> Result<State, Rejection> {
    use State::*;
    Ok(match (state, byte) {
        (Size | ExtensionName | Token | QuotedEnd, b'\r') => SizeLf,
        (Size | Whitespace | Token | QuotedEnd, b' ' | b'\t') => Whitespace,
        (Size | Whitespace | ExtensionName | ExtensionNameEnd | Token | QuotedEnd, b';') => {
            ExtensionStart
        }
        (Size, _) => return Err(bad("the chunk size is malformed")),
        (ExtensionStart, b' ' | b'\t') => ExtensionStart,
        (ExtensionStart | ExtensionName, byte) if is_token_byte(byte) => ExtensionName,
        (ExtensionName | ExtensionNameEnd, b' ' | b'\t') => ExtensionNameEnd,
        (ExtensionName | ExtensionNameEnd, b'=') => ValueStart,
        (ValueStart, b' ' | b'\t') => ValueStart,
        (ValueStart, b'"') => Quoted,
        (ValueStart | Token, byte) if is_token_byte(byte) => Token,
        (Quoted, b'"') => QuotedEnd,
        (Quoted, b'\\') => QuotedPair,
        (Quoted | QuotedPair, byte) if is_text_byte(byte) => Quoted,
        _ => return Err(bad("a chunk extension is malformed")),
    })
}
