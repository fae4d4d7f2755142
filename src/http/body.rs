//! Where a body ends (RFC 9112, 6 and 7): a decoder that is fed bytes in whatever pieces, hands on
//! the content, and stops exactly at the end.

use crate::http::head::{MAX_CONTENT, Rejection, Status, bad, is_token_byte};

/// The longest line of a chunk size with its extensions and its CRLF, in bytes.
pub const MAX_CHUNK_LINE: usize = 4096;

/// The longest trailer section, in bytes.
pub const MAX_TRAILERS: usize = 8192;

/// How the end of a body is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    None,
    /// By its length, in bytes.
    Length(u64),
    /// By the chunked transfer coding.
    Chunked,
}

/// A body that is being read.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    /// The content so far, in bytes.
    received: u64,
    /// The length of the chunk line, or of the trailers, so far.
    overhead: usize,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// So many bytes of content, then nothing.
    Length(u64),
    /// The first digit of a chunk size.
    FirstDigit,
    /// More digits of a chunk size, or what ends them.
    Size(u64),
    /// Blanks in front of a `;`.
    Blank(u64),
    /// Blanks in front of an extension's name.
    ExtensionStart(u64),
    /// An extension, up to its CR.
    Extension(u64),
    /// The LF of a chunk's line.
    SizeLf(u64),
    /// So many bytes of a chunk.
    Data(u64),
    /// The CR behind a chunk.
    DataCr,
    /// The LF behind a chunk.
    DataLf,
    /// A trailer field, or the CR of the last line.
    TrailerStart,
    /// The name of a trailer field.
    TrailerName,
    /// The value of a trailer field.
    TrailerValue,
    /// The LF of a trailer field.
    TrailerLf,
    /// The LF of the last line.
    LastLf,
    /// Nothing.
    Done,
}

impl Decoder {
    /// A decoder at the first byte of a body.
    pub fn new(framing: Framing) -> Decoder {
        let state = match framing {
            Framing::None | Framing::Length(0) => State::Done,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::FirstDigit,
        };
        Decoder {
            state,
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

    /// Reads as much of `input` as belongs to the body, hands its content to `content`, and returns
    /// how many bytes it was: all of them, unless the body is complete.
    ///
    /// # Errors
    /// 400 for malformed framing, 413 for more than 1 GiB of content, 431 for long trailers.
    pub fn decode(
        &mut self,
        input: &[u8],
        mut content: impl FnMut(&[u8]),
    ) -> Result<usize, Rejection> {
        let mut rest = input;
        while let Some(first) = rest.first().copied() {
            match self.state {
                State::Done => break,
                State::Length(left) | State::Data(left) => {
                    let take =
                        usize::try_from(left).map_or(rest.len(), |left| left.min(rest.len()));
                    let (data, behind) = rest.split_at(take);
                    content(data);
                    self.received += take as u64;
                    self.state = self.state.after_content(left - take as u64);
                    rest = behind;
                }
                state => {
                    self.state = self.step(state, first)?;
                    rest = &rest[1..];
                }
            }
        }
        Ok(input.len() - rest.len())
    }

    /// One byte that is not content.
    fn step(&mut self, state: State, byte: u8) -> Result<State, Rejection> {
        self.count(state)?;
        Ok(match (state, byte) {
            (State::FirstDigit, byte) if byte.is_ascii_hexdigit() => {
                State::Size(self.longer(0, byte)?)
            }
            (State::Size(size), byte) if byte.is_ascii_hexdigit() => {
                State::Size(self.longer(size, byte)?)
            }
            (State::Size(size) | State::Extension(size), b'\r') => State::SizeLf(size),
            (State::Size(size) | State::Blank(size), b' ' | b'\t') => State::Blank(size),
            (State::Size(size) | State::Blank(size), b';') => State::ExtensionStart(size),
            (State::ExtensionStart(size), b' ' | b'\t') => State::ExtensionStart(size),
            (State::ExtensionStart(size), byte) if is_token_byte(byte) => State::Extension(size),
            (State::FirstDigit | State::Size(_) | State::Blank(_), _) => {
                return Err(bad("the chunk size is malformed"));
            }
            (State::Extension(size), byte) if is_text(byte) => State::Extension(size),
            (State::ExtensionStart(_) | State::Extension(_), _) => {
                return Err(bad("a chunk extension is malformed"));
            }
            (State::SizeLf(0), b'\n') => self.next_line(State::TrailerStart),
            (State::SizeLf(size), b'\n') => self.next_line(State::Data(size)),
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => self.next_line(State::FirstDigit),
            (State::DataCr | State::DataLf, _) => {
                return Err(bad("a chunk is longer than its size"));
            }
            (State::TrailerStart, b'\r') => State::LastLf,
            (State::TrailerStart | State::TrailerName, byte) if is_token_byte(byte) => {
                State::TrailerName
            }
            (State::TrailerName, b':') => State::TrailerValue,
            (State::TrailerValue, b'\r') => State::TrailerLf,
            (State::TrailerValue, byte) if is_text(byte) => State::TrailerValue,
            (State::TrailerLf, b'\n') => State::TrailerStart,
            (State::LastLf, b'\n') => State::Done,
            (State::SizeLf(_), _) => return Err(bad("a line does not end with CRLF")),
            _ => return Err(bad("a trailer field is malformed")),
        })
    }

    /// Bounds what a client can send without sending content.
    fn count(&mut self, state: State) -> Result<(), Rejection> {
        self.overhead += 1;
        let trailers = matches!(
            state,
            State::TrailerStart
                | State::TrailerName
                | State::TrailerValue
                | State::TrailerLf
                | State::LastLf
        );
        match trailers {
            false if self.overhead > MAX_CHUNK_LINE => {
                Err(bad("a chunk's line is longer than 4 KiB"))
            }
            true if self.overhead > MAX_TRAILERS => Err(Rejection {
                status: Status::RequestHeaderFieldsTooLarge,
                reason: "the trailers are longer than 8 KiB",
            }),
            _ => Ok(()),
        }
    }

    fn next_line(&mut self, state: State) -> State {
        self.overhead = 0;
        state
    }

    /// A chunk size with one more digit, which the rest of the content must have room for.
    fn longer(&self, size: u64, digit: u8) -> Result<u64, Rejection> {
        let size = (size << 4) + u64::from(char::from(digit).to_digit(16).unwrap_or_default());
        match self.received + size <= MAX_CONTENT {
            true => Ok(size),
            false => Err(Rejection {
                status: Status::ContentTooLarge,
                reason: "the content is longer than 1 GiB",
            }),
        }
    }
}

impl State {
    fn after_content(self, left: u64) -> State {
        match (self, left) {
            (State::Data(_), 0) => State::DataCr,
            (State::Data(_), left) => State::Data(left),
            (_, 0) => State::Done,
            (_, left) => State::Length(left),
        }
    }
}

/// What a field value or an extension is made of (RFC 9110, 5.5).
fn is_text(byte: u8) -> bool {
    byte == b'\t' || !byte.is_ascii_control()
}
