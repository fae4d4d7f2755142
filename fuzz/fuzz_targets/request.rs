//! A stream of requests is read alike, however it is cut: the same requests, of the same length,
//! with the same content, and the same refusal behind them. Each ends where RFC 9112 says, and what
//! is answered and logged is whole and safe to show, whatever was sent.

#![no_main]

#[path = "../../tests/http/stream.rs"]
mod stream;

use std::net::SocketAddr;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use stream::{Outcome, read};
use tproxy_pod::http::body::Framing;
use tproxy_pod::http::echo::{self, Endpoints, Lost, Refused, Served};
use tproxy_pod::http::head::{
    Head, HeadScanner, MAX_FIELDS, MAX_HEAD, Persistence, Rejection, Status,
};
use tproxy_pod::http::response::Response;
use tproxy_pod::log::buffer::Buffer;
use tproxy_pod_fuzz::framing;

/// So many of the last bytes of an input are the lengths of pieces, over and over.
const CUTS: usize = 4;

fuzz_target!(|input: &[u8]| {
    let (input, cuts) = input.split_at(input.len().saturating_sub(CUTS));
    let stream = unfold(input);
    let outcomes = read([stream.as_slice()]);
    assert_eq!(read(stream.chunks(1)), outcomes, "byte by byte");
    assert_eq!(read(pieces(&stream, cuts)), outcomes, "cut by {cuts:?}");
    let mut rest = stream.as_slice();
    for outcome in &outcomes {
        match outcome {
            Outcome::Request {
                content, length, ..
            } => {
                accepted(rest, content, *length);
                rest = &rest[*length..];
            }
            Outcome::Refused(rejection) => refused(rest, *rejection),
            Outcome::Unfinished => lost(rest),
        }
    }
});

/// Limits are far away: 0xff and a number stand for more of the byte in front, 0xfe and a number for
/// more of the line in front.
fn unfold(input: &[u8]) -> Vec<u8> {
    let mut stream = Vec::new();
    let mut bytes = input.iter();
    while let Some(byte) = bytes.next() {
        let again = match byte {
            0xff => stream.last().copied().into_iter().collect(),
            0xfe => last_line(&stream).to_vec(),
            byte => {
                stream.push(*byte);
                continue;
            }
        };
        let times = usize::from(bytes.next().copied().unwrap_or(0));
        let times = if *byte == 0xff { 70 * times } else { times };
        if stream.len() + again.len() * times < 32 * 1024 {
            stream.extend(again.repeat(times));
        }
    }
    stream
}

fn last_line(stream: &[u8]) -> &[u8] {
    let ends = stream.strip_suffix(b"\n").unwrap_or(stream);
    let start = ends.iter().rposition(|byte| *byte == b'\n');
    &stream[start.map_or(0, |at| at + 1)..]
}

/// Pieces of these lengths, over and over; 0 is a long one.
fn pieces<'s>(mut stream: &'s [u8], cuts: &[u8]) -> Vec<&'s [u8]> {
    let lengths = cuts.iter().map(|cut| match *cut {
        0 => 5000,
        cut => usize::from(cut),
    });
    let mut pieces = Vec::new();
    for length in lengths.cycle() {
        let (piece, rest) = stream.split_at(length.min(stream.len()));
        pieces.push(piece);
        stream = rest;
        if stream.is_empty() {
            break;
        }
    }
    pieces
}

fn ends() -> Endpoints {
    let address: SocketAddr = "[2001:db8:1::2]:40001".parse().unwrap();
    Endpoints::new(address, address)
}

fn accepted(stream: &[u8], content: &[u8], length: usize) {
    let reference = framing::first(stream).expect("what is accepted has an end");
    assert_eq!(reference.length, length);
    assert_eq!(reference.content, content);
    let span = HeadScanner::default().scan(stream).unwrap().unwrap();
    let head = Head::parse(stream, &span).unwrap();
    assert!(head.bytes.len() <= MAX_HEAD && reference.lines.len() <= MAX_FIELDS + 1);
    let request_line = [head.method, head.target, head.version].join(&b' ');
    assert_eq!(reference.lines[0], request_line);
    if let Framing::Length(length) = head.framing {
        assert_eq!(length, content.len() as u64);
    }
    echoed(&head, content);
    let mut line = Buffer::EMPTY;
    let served = Served {
        head: &head,
        ends: &ends(),
        received: content.len() as u64,
        status: Status::Ok,
        took: Duration::from_micros(1234),
    };
    assert_is_safe(served.line(&mut line));
    assert!(!line.is_empty());
}

/// The echo is the content of one answer, and repeats the head as it came.
fn echoed(head: &Head<'_>, content: &[u8]) {
    let mut answer = Response::default();
    answer.clear();
    let before = answer.content().len();
    echo::begin(answer.content(), head, &ends(), Some("node"));
    answer
        .content()
        .push(&content[..content.len().min(echo::MAX_ECHO)]);
    echo::end(answer.content(), content.len() as u64);
    let echoed = answer.content().bytes()[before..].to_vec();
    assert!(
        echoed
            .windows(head.bytes.len())
            .any(|part| part == head.bytes)
    );
    let to_head = head.method == b"HEAD";
    let bytes = answer.finish(Status::Ok, head.persistence, to_head);
    assert_is_answer(bytes, &echoed, to_head);
}

fn refused(stream: &[u8], rejection: Rejection) {
    let plain = framing::first(stream).is_some_and(|request| request.is_plain());
    assert!(!plain, "refused without a reason: {rejection:?}");
    let mut answer = Response::default();
    answer.clear();
    let before = answer.content().len();
    echo::refusal(answer.content(), rejection);
    let text = answer.content().bytes()[before..].to_vec();
    let bytes = answer.finish(rejection.status, Persistence::Close, false);
    assert_is_answer(bytes, &text, false);
    let refused = Refused {
        ends: &ends(),
        rejection,
        bytes: stream,
    };
    assert_is_safe(&refused.to_string());
}

fn lost(stream: &[u8]) {
    let plain = framing::first(stream).is_some_and(|request| request.is_plain());
    assert!(!plain, "it has an end");
    let lost = Lost {
        ends: &ends(),
        reason: "the head is not complete",
        bytes: stream,
    };
    assert_is_safe(&lost.to_string());
}

/// A status line, fields, and content of the length that they say.
fn assert_is_answer(answer: &[u8], content: &[u8], to_head: bool) {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
    let (head, sent) = answer.split_at(end.unwrap() + 4);
    let head = str::from_utf8(head).unwrap();
    assert!(head.starts_with("HTTP/1.1 "), "{head}");
    let length = format!("\r\nContent-Length: {}\r\n", content.len());
    assert!(head.contains(&length), "{head}");
    assert_eq!(sent, if to_head { b"" } else { content });
}

/// One line of printable ASCII, which with time and level is within `PIPE_BUF`.
fn assert_is_safe(line: &str) {
    assert!(line.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
    assert!((1..libc::PIPE_BUF - 32).contains(&line.len()), "{line}");
}
