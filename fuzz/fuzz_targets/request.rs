//! A stream of requests is parsed alike, however it is split: the same requests, lengths and content, and the
//! same refusal after them. Each request ends where RFC 9112 defines. Responses are well-formed, and log lines
//! printable, for any input.

#![no_main]

#[path = "../../tests/http/stream.rs"]
mod stream;

use std::net::SocketAddr;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use stream::{Outcome, read};
use tproxy_pod::http::body::Framing;
use tproxy_pod::http::echo::{self, Echo};
use tproxy_pod::http::endpoints::Endpoints;
use tproxy_pod::http::fields::Persistence;
use tproxy_pod::http::head::{Head, HeadScanner, MAX_FIELDS, MAX_HEAD};
use tproxy_pod::http::log_lines::{self, Served};
use tproxy_pod::http::response::{Content, Description, Response};
use tproxy_pod::http::status::{Rejection, Status};
use tproxy_pod::log::LogFormat;
use tproxy_pod::log::buffer::Buffer;
use tproxy_pod::log::line::Line;
use tproxy_pod_fuzz::framing;

/// Number of bytes at the end of an input that are the lengths of pieces.
const CUTS: usize = 4;

fuzz_target!(|input: &[u8]| {
    let (input, cuts) = input.split_at(input.len().saturating_sub(CUTS));
    let stream = expand(input);
    let outcomes = read([stream.as_slice()]);
    assert_eq!(read(stream.chunks(1)), outcomes, "byte by byte");
    assert_eq!(read(pieces(&stream, cuts)), outcomes, "split by {cuts:?}");
    let mut rest = stream.as_slice();
    for outcome in &outcomes {
        match outcome {
            Outcome::Request {
                content, length, ..
            } => {
                check_accepted(rest, content, *length);
                rest = &rest[*length..];
            }
            Outcome::Refused(rejection) => check_refused(rest, *rejection),
            Outcome::Unfinished => check_lost(rest),
        }
    }
});

/// Expands an input, as limits are large: 0xff and a number repeat the previous byte, 0xfe and a number the
/// previous line.
fn expand(input: &[u8]) -> Vec<u8> {
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

/// Splits a stream into pieces of these lengths, in turn; 0 is 5000.
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

fn endpoints() -> Endpoints {
    let address: SocketAddr = "[2001:db8:1::2]:40001".parse().unwrap();
    Endpoints::new(address, address)
}

fn check_accepted(stream: &[u8], content: &[u8], length: usize) {
    let reference = framing::first(stream).expect("an accepted request is complete");
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
    check_echo(&head, content);
    let served = Served {
        head: &head,
        endpoints: &endpoints(),
        received: content.len() as u64,
        status: Status::OK,
        took: Duration::from_micros(1234),
    };
    check_line(|buffer, format| served.line(buffer, format));
}

/// Asserts that the echo is the content of one response, and contains the head as received; in JSON, what was sent.
fn check_echo(head: &Head<'_>, content: &[u8]) {
    let text = echo_of(head, content, false);
    assert!(
        text.windows(head.bytes.len())
            .any(|part| part == head.bytes)
    );
    let json = echo_of(head, content, true);
    let json: Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(json["method"].as_str().unwrap().as_bytes(), head.method);
    assert_eq!(json["target"], *shown(head.target));
    assert_eq!(json["host"], *shown(head.host));
    let fields = json["headers"].as_object().unwrap();
    let values = fields.values().map(|it| it.as_array().unwrap().len());
    let lines = head.lines.iter().filter(|byte| **byte == b'\n').count();
    assert_eq!(values.sum::<usize>() + 1, lines);
    assert_eq!(json["body_bytes"], content.len());
    let echoed = match &json["body"] {
        Value::String(text) => text.as_bytes().to_vec(),
        _ => decoded(json["body_base64"].as_str().unwrap()),
    };
    assert!(content.starts_with(&echoed));
    assert_eq!(json["truncated"], echoed.len() < content.len());
}

/// The content of a response with an echo in this form.
fn echo_of(head: &Head<'_>, content: &[u8], prefers_json: bool) -> Vec<u8> {
    let head = &Head {
        prefers_json,
        ..head.clone()
    };
    let mut response = Response::default();
    response.clear();
    let before = response.content().len();
    let echo = Echo::begin(response.content(), head, &endpoints(), Some("node"));
    response
        .content()
        .push(&content[..content.len().min(echo.room())]);
    echo.end(response.content(), content.len() as u64);
    let written = response.content().bytes()[before..].to_vec();
    let bytes = response.finish(Description {
        status: Status::OK,
        method: head.method,
        content: echo.content(),
        persistence: head.persistence,
    });
    assert_is_response(bytes, &written, head.method == b"HEAD");
    written
}

/// A value as a JSON string has it: as it is if it is UTF-8.
fn shown(value: &[u8]) -> String {
    match str::from_utf8(value) {
        Ok(text) => text.to_owned(),
        Err(_) => value.escape_ascii().to_string(),
    }
}

/// The bytes of a text in Base64.
fn decoded(text: &str) -> Vec<u8> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits = text.trim_end_matches('=').bytes();
    let digits = digits.map(|digit| DIGITS.iter().position(|it| *it == digit).unwrap());
    let bits: Vec<_> = digits
        .flat_map(|digit| (0..6).rev().map(move |bit| digit >> bit & 1))
        .collect();
    let bytes = bits.chunks_exact(8);
    bytes
        .map(|byte| byte.iter().fold(0, |value, bit| value << 1 | *bit as u8))
        .collect()
}

fn check_refused(stream: &[u8], rejection: Rejection) {
    let plain = framing::first(stream).is_some_and(|request| request.is_plain());
    assert!(!plain, "refused without a reason: {rejection:?}");
    let mut response = Response::default();
    response.clear();
    let before = response.content().len();
    let content = echo::refusal(response.content(), rejection, stream);
    let text = response.content().bytes()[before..].to_vec();
    if content == Content::Json {
        let json: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(json["error"], rejection.reason);
    }
    let bytes = response.finish(Description {
        status: rejection.status,
        method: b"",
        content,
        persistence: Persistence::Close,
    });
    assert_is_response(bytes, &text, false);
    check_line(|buffer, format| {
        log_lines::refused(buffer, format, &endpoints(), rejection, stream)
    });
}

fn check_lost(stream: &[u8]) {
    let plain = framing::first(stream).is_some_and(|request| request.is_plain());
    assert!(!plain, "a plain request is complete");
    let reason = "the head is not complete";
    check_line(|buffer, format| log_lines::lost(buffer, format, &endpoints(), reason, stream));
}

/// Asserts a status line, fields, and content of the length in Content-Length; to a HEAD request neither.
fn assert_is_response(response: &[u8], content: &[u8], to_head: bool) {
    let end = response.windows(4).position(|four| four == b"\r\n\r\n");
    let (head, sent) = response.split_at(end.unwrap() + 4);
    let head = str::from_utf8(head).unwrap();
    assert!(head.starts_with("HTTP/1.1 "), "{head}");
    let length = format!("\r\nContent-Length: {}\r\n", content.len());
    assert_eq!(head.contains(&length), !to_head, "{head}");
    assert_eq!(sent, if to_head { b"" } else { content });
}

/// Asserts that a line of the log is printable ASCII, within `PIPE_BUF` with its time and level, and in JSON has the
/// members of an object.
fn check_line(write: impl for<'b> Fn(&'b mut Buffer, LogFormat) -> Line<'b>) {
    for format in [LogFormat::Text, LogFormat::Json] {
        let mut buffer = Buffer::EMPTY;
        let mut line = write(&mut buffer, format);
        let line = str::from_utf8(line.content()).unwrap();
        assert!(line.bytes().all(|byte| matches!(byte, b' '..=b'~')));
        assert!((1..libc::PIPE_BUF - 64).contains(&line.len()), "{line}");
        if format == LogFormat::Json {
            let object = serde_json::from_str(&format!("{{{line}}}"));
            let _: serde_json::Map<String, Value> = object.unwrap();
        }
    }
}
