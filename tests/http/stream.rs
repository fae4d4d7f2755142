//! Reads a stream of requests as a connection does, without a socket; the fuzz targets use it, too.

use tproxy_pod::http::body::Decoder;
use tproxy_pod::http::head::{Head, HeadScanner};
use tproxy_pod::http::status::Rejection;

/// Outcome of a request in a stream.
#[derive(Debug, PartialEq)]
pub enum Outcome {
    /// An accepted request.
    Request {
        /// Fields of its head.
        head: String,
        /// Content of its body.
        content: Vec<u8>,
        /// Its length in bytes, with a preceding empty line.
        length: usize,
    },
    /// A refused request.
    Refused(Rejection),
    /// The stream ends within the request.
    Unfinished,
}

/// Reads a stream that arrives in pieces.
pub fn read<'p>(pieces: impl IntoIterator<Item = &'p [u8]>) -> Vec<Outcome> {
    let mut pieces = pieces.into_iter();
    let mut outcomes = Vec::new();
    let mut input = Vec::new();
    loop {
        match read_one(&mut input, &mut pieces) {
            Ok(Some(request)) => outcomes.push(request),
            Ok(None) if input.is_empty() => return outcomes,
            end => {
                outcomes.push(end.map_or_else(Outcome::Refused, |_| Outcome::Unfinished));
                return outcomes;
            }
        }
    }
}

/// Reads a request, and leaves later bytes in `input`.
fn read_one<'p>(
    input: &mut Vec<u8>,
    pieces: &mut impl Iterator<Item = &'p [u8]>,
) -> Result<Option<Outcome>, Rejection> {
    let mut scanner = HeadScanner::default();
    let span = loop {
        if let Some(span) = scanner.scan(input)? {
            break span;
        }
        let Some(piece) = pieces.next() else {
            return Ok(None);
        };
        input.extend_from_slice(piece);
    };
    let head = Head::parse(input, &span)?;
    let described = describe(&head);
    let mut decoder = Decoder::new(head.framing);
    let mut content = Vec::new();
    let mut used = span.range.end;
    loop {
        used += decoder.decode(&input[used..], |piece| content.extend_from_slice(piece))?;
        if decoder.is_complete() {
            assert_eq!(decoder.received(), content.len() as u64);
            input.drain(..used);
            return Ok(Some(Outcome::Request {
                head: described,
                content,
                length: used,
            }));
        }
        assert_eq!(used, input.len(), "it takes all there is");
        let Some(piece) = pieces.next() else {
            return Ok(None);
        };
        input.extend_from_slice(piece);
    }
}

/// All fields of a head.
fn describe(head: &Head<'_>) -> String {
    let texts = [
        head.bytes,
        head.method,
        head.target,
        head.version,
        head.host,
        head.user_agent,
    ];
    format!(
        "{:?} {:?} {} {:?}",
        texts.map(String::from_utf8_lossy),
        head.framing,
        head.expects_continue,
        head.persistence
    )
}
