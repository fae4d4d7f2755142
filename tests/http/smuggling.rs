//! Ambiguous requests (RFC 9112, 11.2): each is refused, or has only one meaning. The known attacks on other
//! servers are here by name: CL.TE, TE.CL, TE.TE, TERM.EXT.

use crate::lab::refusal::{SMUGGLED, assert_all_refused};
use crate::lab::{Lab, POD};
use tproxy_pod::http::body::Framing;
use tproxy_pod::http::head::{Head, HeadScanner};
use tproxy_pod::http::syntax::is_token_byte;

const BAD: &str = "400 Bad Request";
const EXPECTATION: &str = "417 Expectation Failed";
const LARGE: &str = "413 Content Too Large";
const UNKNOWN: &str = "501 Not Implemented";
const VERSION: &str = "505 HTTP Version Not Supported";

/// Sends the requests that `whole` builds from their middle parts; each must be refused.
fn assert_refused(middles: &[(&str, &'static str)], whole: impl Fn(&str) -> String) {
    let requests: Vec<_> = middles
        .iter()
        .map(|(middle, status)| (whole(middle).into_bytes(), *status))
        .collect();
    assert_all_refused(&requests);
}

/// Content-Length that is not exactly one number of digits.
const LENGTHS: &[(&str, &str)] = &[
    ("Content-Length: +5", BAD),
    ("Content-Length: -0", BAD),
    ("Content-Length: 5,5", BAD),
    ("Content-Length: 5, 5", BAD),
    ("Content-Length: 5\r\nContent-Length: 5", BAD),
    ("content-length: 5\r\nX: y\r\nCONTENT-LENGTH: 6", BAD),
    ("Content-Length: 5,", BAD),
    ("Content-Length: ,5", BAD),
    ("Content-Length: 5;", BAD),
    ("Content-Length: 0x5", BAD),
    ("Content-Length: 5h", BAD),
    ("Content-Length: 5.0", BAD),
    ("Content-Length: 5e0", BAD),
    ("Content-Length: 0_5", BAD),
    ("Content-Length: \"5\"", BAD),
    ("Content-Length: %35", BAD),
    ("Content-Length: \u{ff15}", BAD),
    ("Content-Length: \u{a0}5", BAD),
    ("Content-Length: \x0b5", BAD),
    ("Content-Length: 5\x0c", BAD),
    ("Content-Length: 5\0", BAD),
    ("Content-Length: 5\r", BAD),
    ("Content-Length:\r\n 5", BAD),
    ("Content-Length: 1\r\n 5", BAD),
    ("Content-Length: 18446744073709551621", LARGE),
    ("Content-Length : 5", BAD),
    ("Content-Length\t: 5", BAD),
    ("Content-Length\0: 5", BAD),
    ("Content-Length\r: 5", BAD),
    ("Content-Length\n: 5", BAD),
    ("Content-Length\x0b: 5", BAD),
    ("Content-Length\u{a0}: 5", BAD),
    ("Content-Length 5", BAD),
    ("\tContent-Length: 5", BAD),
    (" X: y\r\nContent-Length: 5", BAD),
    (": y\r\nContent-Length: 5", BAD),
    ("X: y\nContent-Length: 5", BAD),
    ("X: y\rContent-Length: 5", BAD),
    ("X: y\0Content-Length: 5", BAD),
];

#[test]
fn a_length_that_can_be_read_in_two_ways_is_refused() {
    assert_refused(LENGTHS, |field| {
        format!("POST / HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\nhello")
    });
}

/// A Transfer-Encoding that is not exactly one `chunked`, or that comes with a length.
const CODINGS: &[(&str, &str)] = &[
    ("Transfer-Encoding: ,chunked", BAD),
    ("Transfer-Encoding: chunked,", BAD),
    ("Transfer-Encoding: chunked, ,", BAD),
    ("Transfer-Encoding: ,", BAD),
    ("Transfer-Encoding: chunked;q=1", UNKNOWN),
    ("Transfer-Encoding: chunked;", UNKNOWN),
    ("Transfer-Encoding: \"chunked\"", UNKNOWN),
    ("Transfer-Encoding: chunked chunked", UNKNOWN),
    ("Transfer-Encoding: chunkedx", UNKNOWN),
    ("Transfer-Encoding: \u{a0}chunked", UNKNOWN),
    ("Transfer-Encoding: chun\u{212a}ed", UNKNOWN),
    ("Transfer-Encoding: identity", UNKNOWN),
    ("Transfer-Encoding: identity, chunked", UNKNOWN),
    ("Transfer-Encoding: chunked, identity", BAD),
    ("Transfer-Encoding: \x0bchunked", BAD),
    ("Transfer-Encoding: \x0cchunked", BAD),
    ("Transfer-Encoding: chunked\x0b", BAD),
    ("Transfer-Encoding: chunked\0", BAD),
    ("Transfer-Encoding: chunked\r", BAD),
    ("Transfer-Encoding: chunked\x7f", BAD),
    ("Transfer-Encoding:\r\n chunked", BAD),
    ("Transfer-Encoding: chunked\r\n , gzip", BAD),
    ("Transfer-Encoding : chunked", BAD),
    ("Transfer-Encoding\t: chunked", BAD),
    ("Transfer-Encoding\0: chunked", BAD),
    ("Transfer-Encoding\r\n: chunked", BAD),
    ("Transfer-Encoding\r: chunked", BAD),
    ("Transfer Encoding: chunked", BAD),
    (" Transfer-Encoding: chunked", BAD),
    ("X: y\nTransfer-Encoding: chunked", BAD),
    ("X: y\rTransfer-Encoding: chunked", BAD),
    (
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        BAD,
    ),
    (
        "Transfer-Encoding: identity\r\ntransfer-encoding: chunked",
        BAD,
    ),
    ("Transfer-Encoding: x\r\nContent-Length: 5", BAD),
    ("Content-Length: 5\r\nTransfer-Encoding: identity", BAD),
    ("Content-Length: 5\r\nTransfer-Encoding:", BAD),
    ("Content-Length: 0\r\nTransfer-Encoding: chunked", BAD),
    ("Content-Length: 5\r\nTransfer-Encoding : chunked", BAD),
    ("Content-Length: x\r\nTransfer-Encoding: chunked", BAD),
];

#[test]
fn a_coding_that_can_be_read_in_two_ways_is_refused() {
    assert_refused(CODINGS, |field| {
        format!("POST / HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n0\r\n\r\n")
    });
    assert_refused(&[("close", BAD), ("keep-alive", BAD)], |connection| {
        let fields = format!("Connection: {connection}\r\nTransfer-Encoding: chunked\r\n");
        format!("POST / HTTP/1.0\r\nHost: a\r\n{fields}\r\n0\r\n\r\n")
    });
}

/// Chunks that end elsewhere for a lenient parser.
const CHUNKS: &[(&str, &str)] = &[
    ("+1\r\nx\r\n0\r\n\r\n", BAD),
    ("-1\r\nx\r\n0\r\n\r\n", BAD),
    ("0x1\r\nx\r\n0\r\n\r\n", BAD),
    ("1_\r\nx\r\n0\r\n\r\n", BAD),
    (" 1\r\nx\r\n0\r\n\r\n", BAD),
    ("1\0\r\nx\r\n0\r\n\r\n", BAD),
    ("\r\n1\r\nx\r\n0\r\n\r\n", BAD),
    (";a\r\n0\r\n\r\n", BAD),
    ("10000000000000000\r\n", LARGE),
    ("10000000000000001\r\nx\r\n0\r\n\r\n", LARGE),
    ("ffffffffffffffff\r\n", LARGE),
    ("7fffffffffffffff\r\n", LARGE),
    // TERM.EXT, EXT.TERM: for some parsers a line feed in an extension ends the line.
    ("1;\nx\r\n0\r\n\r\n", BAD),
    ("1;a\nx\r\n0\r\n\r\n", BAD),
    ("1;a=\"\n\"\r\nx\r\n0\r\n\r\n", BAD),
    ("1;a\rb\r\nx\r\n0\r\n\r\n", BAD),
    // For some parsers a quoted string goes on behind the end of the line, or a quoted pair has one.
    ("1;a=\"\r\nx\r\n0\r\n\r\n\"\r\n", BAD),
    ("1;a=\"\\\r\n\"\r\nx\r\n0\r\n\r\n", BAD),
    ("1;a=\"\\\n\"\r\nx\r\n0\r\n\r\n", BAD),
    ("1;a=\"\\\"\r\nx\r\n0\r\n\r\n", BAD),
    ("0;a=\"\r\n\r\n", BAD),
    ("0;\n\r\n\r\n", BAD),
    ("1\nx\r\n0\r\n\r\n", BAD),
    ("1\r\rx\r\n0\r\n\r\n", BAD),
    // TERM.SPILL: not CRLF but two other bytes follow the chunk.
    ("1\r\nx\n0\r\n\r\n", BAD),
    ("1\r\nx\n\n0\r\n\r\n", BAD),
    ("1\r\nx\r\r0\r\n\r\n", BAD),
    ("1\r\nxyz0\r\n\r\n", BAD),
    ("1\r\nx0\r\n\r\n", BAD),
    ("0\n\n", BAD),
    ("0\r\n\n", BAD),
    ("0\r\n\r\r\n", BAD),
    ("0\r\nX: y\n\r\n", BAD),
    ("0\r\nX: y\r\n z\r\n\r\n", BAD),
    ("0\r\nX : y\r\n\r\n", BAD),
    ("0\r\n: y\r\n\r\n", BAD),
    ("0\r\nX: \0\r\n\r\n", BAD),
];

#[test]
fn chunks_that_can_be_read_in_two_ways_are_refused() {
    let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_refused(CHUNKS, |chunks| format!("{head}{chunks}"));
    let long = [
        (format!("1;{}\r\nx\r\n0\r\n\r\n", "a".repeat(1 << 20)), BAD),
        (format!("{}1\r\nx\r\n0\r\n\r\n", "0".repeat(5000)), BAD),
    ];
    assert_all_refused(&long.map(|(body, status)| (format!("{head}{body}").into_bytes(), status)));
}

#[test]
fn unknown_expectations_are_refused() {
    let expect = |value: &str| {
        format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: {value}\r\n\r\n")
    };
    assert_refused(
        &[
            ("y 100-continue", EXPECTATION),
            ("100-continue;x", EXPECTATION),
            ("100-continue=x", EXPECTATION),
            ("\"100-continue\"", EXPECTATION),
            ("\"\"", EXPECTATION),
            (",,x,", EXPECTATION),
            (", 100-continue, x", EXPECTATION),
            ("x, 100-continue", EXPECTATION),
            ("x=\"y, 100-continue, z\"", EXPECTATION),
            ("100-continue\r\nExpect: x", EXPECTATION),
            ("x\r\nExpect: 100-continue", EXPECTATION),
            ("\r\nExpect: x", EXPECTATION),
            ("x\r\nExpect:", EXPECTATION),
            // No interim response precedes an error.
            ("100-continue\r\nTransfer-Encoding: chunked", BAD),
            ("100-continue\r\nContent-Length: 6", BAD),
        ],
        expect,
    );
    assert_refused(
        &[
            ("GET /\r\n", BAD),
            ("GET / HTTP/1.1\r\n\r\n", BAD),
            ("GET / HTTP/0.9\r\n\r\n", VERSION),
            ("GET / HTTP/2\r\n\r\n", BAD),
            ("GET / HTTP/1.1\0\r\nHost: a\r\n\r\n", BAD),
            ("GET / HTTP/+1.1\r\nHost: a\r\n\r\n", BAD),
            ("GET /\x0bHTTP/1.1\r\nHost: a\r\n\r\n", BAD),
            ("GET / HTTP/1.1\r\r\nHost: a\r\n\r\n", BAD),
            ("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", BAD),
            ("\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", BAD),
            ("PROXY TCP4 192.0.2.2 10.244.0.5 1 8180\r\n", BAD),
            ("\r\n\r\n\0\r\nQUIT\n", BAD),
            ("SSH-2.0-OpenSSH_9.2\r\n", BAD),
        ],
        str::to_owned,
    );
}

#[test]
fn ten_thousand_fields_are_refused() {
    let fields = "X: y\r\n".repeat(10_000);
    let request = format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
    assert_all_refused(&[(request.into(), "431 Request Header Fields Too Large")]);
}

#[test]
fn what_looks_like_a_request_in_a_body_is_content() {
    let lab = Lab::new();
    let mut daemon = lab.start(&[]);
    let mut connection = lab.client.http(POD);
    let length = SMUGGLED.len();
    let chunk = format!("{length:x}\r\n{SMUGGLED}\r\n0\r\n");
    let by_length = ["GET", "DELETE", "PATCH", "PUT", "POST"].map(|method| {
        format!("{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: \t{length} \r\n\r\n{SMUGGLED}")
    });
    let by_chunks = [
        "",
        "Content-Length: 1\r\nTransfer-Encoding: gzip\r\nHost: b\r\nConnection: close\r\n",
        "Trailer: Content-Length\r\n",
    ]
    .map(|trailers| {
        let fields = "Transfer-Encoding: \tCHUNKED\t\r\nConnection: transfer-encoding, host\r\n";
        format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n{chunk}{trailers}\r\n")
    });
    for request in by_length.iter().chain(&by_chunks) {
        let answer = connection.request(request);
        assert_eq!(answer.status, "200 OK", "{request}");
        assert_eq!(answer.other_fields(), [""; 0], "{request}");
        assert!(answer.text().ends_with(SMUGGLED), "{request}: {answer:?}");
    }
    daemon.stop();
    daemon.wait_for("Served 8 requests on 1 connections");
    assert!(!daemon.log().contains("/smuggled"), "{}", daemon.log());
}

/// Framing of the body of a request with these fields; none if it is refused.
fn framing(fields: &[u8]) -> Option<Framing> {
    let head = [b"POST / HTTP/1.1\r\nHost: a\r\n", fields, b"\r\n\r\n"].concat();
    let span = HeadScanner::default().scan(&head).ok()??;
    let framing = Head::parse(&head, &span).ok()?.framing;
    assert_eq!(span.range.end, head.len(), "{}", head.escape_ascii());
    Some(framing)
}

/// Checks the framing for a field with one byte inserted at each position. `value` is the expected framing for
/// a position after the colon. A byte in the name makes another field, without framing, or a malformed one.
fn assert_framing_with_each_byte(field: &str, value: impl Fn(usize, u8) -> Option<Framing>) {
    let name = field.find(':').unwrap();
    for at in 0..=field.len() {
        for byte in 0..=u8::MAX {
            let is_in_name = at <= name && is_token_byte(byte);
            let ends_name = (1..name).contains(&at) && byte == b':';
            let expected = match at.checked_sub(name + 1) {
                Some(at) => value(at, byte),
                None => (is_in_name || ends_name).then_some(Framing::None),
            };
            let (before, behind) = field.as_bytes().split_at(at);
            let framed = framing(&[before, &[byte], behind].concat());
            assert_eq!(framed, expected, "{:?} at {at}", char::from(byte));
        }
    }
}

#[test]
fn a_byte_more_in_a_length_is_a_digit_or_a_blank_or_refused() {
    assert_framing_with_each_byte("Content-Length: 5", |at, byte| match (at, byte) {
        (_, b'\t' | b' ') => Some(Framing::Length(5)),
        (1, b'0'..=b'9') => Some(Framing::Length(u64::from(byte - b'0') * 10 + 5)),
        (2, b'0'..=b'9') => Some(Framing::Length(50 + u64::from(byte - b'0'))),
        _ => None,
    });
}

#[test]
fn a_byte_more_in_a_coding_is_a_blank_or_refused() {
    let end = " chunked".len();
    assert_framing_with_each_byte("Transfer-Encoding: chunked", |at, byte| match byte {
        b'\t' | b' ' if at < 2 || at == end => Some(Framing::Chunked),
        _ => None,
    });
}

#[test]
fn a_control_character_is_refused_anywhere_in_a_field() {
    for length in 1..70 {
        for name in ["X: ", ""] {
            let field = format!("{name}{}: b", "a".repeat(length)).into_bytes();
            assert_eq!(framing(&field), Some(Framing::None));
            for at in 0..=length {
                for byte in (0..b' ').chain([0x7f]).filter(|byte| *byte != b'\t') {
                    let mut field = field.clone();
                    field.insert(name.len() + at, byte);
                    assert_eq!(framing(&field), None, "{}", field.escape_ascii());
                }
            }
        }
    }
}
