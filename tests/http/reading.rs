//! Requests are read alike wherever the stream is cut, and exactly up to their limits.

use crate::stream::{Outcome, read};
use tproxy_pod::http::body::{Decoder, Framing, MAX_CHUNK_LINE, MAX_CONTENT, MAX_TRAILERS};
use tproxy_pod::http::head::{Head, HeadScanner, MAX_FIELDS, MAX_HEAD};
use tproxy_pod::http::request_line::MAX_REQUEST_LINE;
use tproxy_pod::http::status::{Rejection, Status};

/// An outcome in one word: the content of a request, or the status of a refusal.
fn word(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Request { content, .. } => format!("{:?}", String::from_utf8_lossy(content)),
        Outcome::Refused(rejection) => rejection.status.code().to_string(),
        Outcome::Unfinished => "unfinished".to_owned(),
    }
}

/// Streams, and the outcomes of their requests.
pub const STREAMS: &[(&[u8], &[&str])] = &[
    (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", &[r#""""#]),
    (b"GET / HTTP/1.0\r\n\r\n", &[r#""""#]),
    (b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", &[r#""""#]),
    (b"OPTIONS * HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", &[r#""""#]),
    (
        b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: b\r\n\r\nGET /3 HTTP/1.1\r\nHost: c\r\n\r\n",
        &[r#""""#, r#""""#, r#""""#],
    ),
    (
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        &[r#""hello""#, r#""""#],
    ),
    (
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nG\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        &[r#""G\r\n""#, r#""""#],
    ),
    (
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        &[r#""""#, "400"],
    ),
    (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n",
        &[r#""hello world""#],
    ),
    (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n00A ;a=\"b;c\" ; d\r\n0123456789\r\n000;last\r\nA: b\r\nC:\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        &[r#""0123456789""#, r#""""#],
    ),
    (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;a=\"\\\";b\\\\\" ; c\t= d\r\nx\r\n0\r\n\r\n",
        &[r#""x""#],
    ),
    (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;a=\"\\\r\nx\r\n0\r\n\r\n",
        &["400"],
    ),
    (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        &[r#""""#, r#""""#],
    ),
    (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
        &["unfinished"],
    ),
    (
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhel",
        &["unfinished"],
    ),
    (b"GET / HTTP/1.1\r\nHost: a\r\n", &["unfinished"]),
    (b"GET / HTTP/1.1\nHost: a\n\n", &["400"]),
    (b"GET / HTTP/1.1\r\nHost: a\n\r\n", &["400"]),
    (b"GET / HTTP/1.1\r\nHost: a\r\n\n", &["400"]),
    (b"GET / HTTP/1.1\r\rHost: a\r\n\r\n", &["400"]),
    (b"\rGET / HTTP/1.1\r\nHost: a\r\n\r\n", &["400"]),
    (b"GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n", &["400"]),
    (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", &["400"]),
    (b"GET / HTTP/1.1\r\nHost: a\r\nA: b\rc\r\n\r\n", &["400"]),
    (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", &["400"]),
    (b"GET / HTTP/3.0\r\nHost: a\r\n\r\n", &["505"]),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &["505"]),
    (b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", &["405"]),
    (b"\x16\x03\x01\x00\x08\x01\x00\x00\x04\x03\x03\r\n", &["400"]),
    (b"\x16\x03\x01\x00\x08\x01\n\x00\x04\x03\x03\r\n", &["400"]),
    (b"\x00\x01\x02\n\r\n\r\n", &["400"]),
    (b"PROXY TCP4 a b 1 2\r\nGET / HTTP/1.1\r\n", &["400"]),
    (b"PROXY UNKNOWN a\r\nGET / HTTP/1.1\r\n", &["400"]),
    (b"PROXY / HTTP/1.1\r\nHost: a\r\n\r\n", &[r#""""#]),
    (b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0", &["400"]),
    (b"\r\n\r\n\0\r\nQUIT\r\n", &["400"]),
    (b"\r\n\r\n\0\r\nQUIT", &["unfinished"]),
    (b"\r\n\r\n", &["unfinished"]),
    (b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", &["400"]),
    (b"\r\n\r\n\r\n", &["400"]),
    (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        &["501"],
    ),
    (
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        &["400"],
    ),
    (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxx\r\n0\r\n\r\n",
        &["400"],
    ),
    (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\nx\n0\n\n",
        &["400"],
    ),
    (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n40000001\r\nx",
        &["413"],
    ),
    (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA b: c\r\n\r\n",
        &["400"],
    ),
    (
        b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nnonsense\r\n\r\nGET /3 HTTP/1.1\r\nHost: a\r\n\r\n",
        &[r#""""#, "400"],
    ),
];

#[test]
fn a_stream_is_read_as_its_requests() {
    for (stream, expected) in STREAMS {
        let words: Vec<String> = read([*stream]).iter().map(word).collect();
        assert_eq!(words, *expected, "{}", stream.escape_ascii());
    }
}

#[test]
fn a_stream_is_read_alike_byte_by_byte() {
    for (stream, _) in STREAMS {
        assert_eq!(
            read(stream.chunks(1)),
            read([*stream]),
            "{}",
            stream.escape_ascii()
        );
    }
}

#[test]
fn a_stream_is_read_alike_wherever_it_is_cut_twice() {
    for (stream, _) in STREAMS {
        let whole = read([*stream]);
        for first in 0..=stream.len() {
            for second in first..=stream.len() {
                let pieces = [&stream[..first], &stream[first..second], &stream[second..]];
                assert_eq!(
                    read(pieces),
                    whole,
                    "{} cut at {first} and {second}",
                    stream.escape_ascii()
                );
            }
        }
    }
}

/// The outcome of a stream: whole, cut before its last byte, and byte by byte.
fn outcome(stream: &[u8]) -> String {
    let [whole, cut, bytes] = [
        read([stream]),
        read([&stream[..stream.len() - 1], &stream[stream.len() - 1..]]),
        read(stream.chunks(1)),
    ];
    assert_eq!(whole, cut);
    assert_eq!(whole, bytes);
    assert_eq!(whole.len(), 1);
    word(&whole[0])
}

/// A head whose request line has this length, without its CRLF.
fn head_with_line(length: usize) -> Vec<u8> {
    let target = "a".repeat(length - "GET / HTTP/1.1".len());
    format!("GET /{target} HTTP/1.1\r\nHost: a\r\n\r\n").into_bytes()
}

/// A head of this length.
fn head_of(length: usize) -> Vec<u8> {
    let without = "GET / HTTP/1.1\r\nHost: a\r\nA: \r\n\r\n".len();
    let value = "a".repeat(length - without);
    format!("GET / HTTP/1.1\r\nHost: a\r\nA: {value}\r\n\r\n").into_bytes()
}

#[test]
fn a_request_line_may_have_8192_bytes() {
    assert_eq!(MAX_REQUEST_LINE, 8192);
    assert_eq!(outcome(&head_with_line(8192)), r#""""#);
    assert_eq!(outcome(&head_with_line(8193)), "414");
}

#[test]
fn a_request_line_that_is_too_long_is_refused_before_it_ends() {
    let stream = head_with_line(9000);
    assert_eq!(outcome(&stream[..8193]), "414");
    assert_eq!(outcome(&[b'A'; 8193]), "400", "a method that does not end");
    let mut late_blank = vec![b'A'; 8194];
    late_blank.extend_from_slice(b" / HTTP/1.1\r\n\r\n");
    assert_eq!(outcome(&late_blank), "400", "it never was a target");
}

#[test]
fn a_head_may_have_16_kib() {
    assert_eq!(MAX_HEAD, 16 * 1024);
    assert_eq!(outcome(&head_of(MAX_HEAD)), r#""""#);
    assert_eq!(outcome(&head_of(MAX_HEAD + 1)), "431");
}

#[test]
fn bytes_beyond_the_limit_of_a_head_are_not_read() {
    let mut stream = head_of(MAX_HEAD + 100);
    let end = stream.len() - 4;
    stream[end] = b'a';
    assert_eq!(outcome(&stream), "431", "not 400 for its end");
    let mut fields = head_of(MAX_HEAD + 100);
    fields.truncate(MAX_HEAD + 98);
    fields.extend_from_slice("B: b\r\n".repeat(MAX_FIELDS).as_bytes());
    assert_eq!(outcome(&fields), "431");
}

#[test]
fn a_head_may_have_100_fields() {
    assert_eq!(MAX_FIELDS, 100);
    let head = |fields: usize| {
        let others = "A: b\r\n".repeat(fields - 1);
        format!("GET / HTTP/1.1\r\nHost: a\r\n{others}\r\n").into_bytes()
    };
    assert_eq!(outcome(&head(100)), r#""""#);
    assert_eq!(outcome(&head(101)), "431");
}

#[test]
fn empty_lines_in_front_of_a_head_are_bounded() {
    let outcomes = read("\r\n".repeat(MAX_HEAD).as_bytes().chunks(1000));
    let refused = matches!(outcomes.as_slice(), [Outcome::Refused(_)]);
    assert!(refused, "32 KiB of nothing are no head: {outcomes:?}");
}

#[test]
fn content_may_have_1_gib() {
    assert_eq!(MAX_CONTENT, 1 << 30);
    let framing = |length: &str| {
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n");
        let span = HeadScanner::default()
            .scan(head.as_bytes())
            .unwrap()
            .unwrap();
        let status = |rejection: Rejection| rejection.status;
        Head::parse(head.as_bytes(), &span)
            .map(|head| head.framing)
            .map_err(status)
    };
    assert_eq!(framing("1073741824"), Ok(Framing::Length(1 << 30)));
    assert_eq!(framing("1073741825"), Err(Status::CONTENT_TOO_LARGE));
    assert_eq!(framing("0000000000000000000000005"), Ok(Framing::Length(5)));
    assert_eq!(
        framing("99999999999999999999999999"),
        Err(Status::CONTENT_TOO_LARGE),
        "a number, however long, is not malformed (RFC 9110, 8.6)"
    );
}

/// Decodes a chunked body, whole and byte by byte: content length and completeness, or the status.
fn decode(body: &[u8]) -> Result<(u64, bool), u16> {
    let decode = |size: usize| {
        let mut decoder = Decoder::new(Framing::Chunked);
        for piece in body.chunks(size) {
            decoder
                .decode(piece, |_| {})
                .map_err(|rejection| rejection.status.code())?;
        }
        Ok((decoder.received(), decoder.is_complete()))
    };
    let whole = decode(body.len());
    assert_eq!(decode(1), whole, "{}", body.escape_ascii());
    whole
}

#[test]
fn chunks_are_read_to_their_end() {
    for (body, content) in [
        ("0\r\n\r\n", 0),
        ("000000\r\n\r\n", 0),
        ("1\r\nx\r\n0\r\n\r\n", 1),
        ("a\r\n0123456789\r\nA\r\n0123456789\r\n0\r\n\r\n", 20),
        ("2\r\n\r\n\r\n0\r\n\r\n", 2),
        ("1;a\r\nx\r\n0;b=c;d=\"e\"\r\n\r\n", 1),
        ("1 ; a\r\nx\r\n0\t;b\r\n\r\n", 1),
        ("1;a \t= b;c\t;d=\t\"e\" \t;\tf\r\nx\r\n0\r\n\r\n", 1),
        ("1;a=\"\";b=\"; c=d\te\";f\r\nx\r\n0\r\n\r\n", 1),
        (
            "1;a=\"\\\"\";b=\"\\\\\";c=\"\\ \\\t\\;\\d\"\r\nx\r\n0\r\n\r\n",
            1,
        ),
        (
            "1;a=\"\u{e9}\\\u{e9}\";!#$%&'*+-.^_`|~=0\r\nx\r\n0\r\n\r\n",
            1,
        ),
        ("0\r\nDigest: a\r\nEmpty:\r\nObs: \u{e9}\r\n\r\n", 0),
    ] {
        assert_eq!(decode(body.as_bytes()), Ok((content, true)), "{body:?}");
    }
}

#[test]
fn malformed_chunks_are_refused() {
    for body in [
        "\r\n",
        "x",
        "-1\r\n",
        "+1\r\n",
        " 1\r\n",
        "0x1\r\n",
        "1_0\r\n",
        "1\n",
        "1\rx",
        "1 1\r\n",
        ";a\r\n",
        "1;a\n",
        "1;\x00\r\n",
        "1\r\nxy",
        "1\r\nx\n",
        "1\r\nx\ry",
        "1\r\nx0\r\n",
        "0\r\nx",
        "0\r\n\rx",
        "0\r\n\n",
        "0\r\n: a\r\n",
        "0\r\nA : b\r\n",
        "0\r\nA\r\n",
        "0\r\n A: b\r\n",
        "0\r\nA: b\n",
        "0\r\nA: \x00\r\n",
        "0\r\nA: b\r\n c\r\n",
    ] {
        let body = format!("{body}0\r\n\r\n");
        assert_eq!(decode(body.as_bytes()), Err(400), "{body:?}");
    }
}

#[test]
fn malformed_chunk_extensions_are_refused() {
    for extensions in [
        "\t",
        ";",
        ";;a",
        ";a;",
        ";a ",
        ";a b",
        ";a[",
        ";\"a\"",
        ";\u{e9}",
        ";=a",
        ";a=",
        ";a= ;b",
        ";a==b",
        ";a=b=c",
        ";a=b c",
        ";a=b ",
        ";a=b\"c\"",
        ";a=\u{e9}",
        ";a=\"b",
        ";a=\"b\"\"",
        ";a=\"b\"c",
        ";a=\"b\" ",
        ";a=\"b\n\"",
        ";a=\"\x7f\"",
        ";a=\"\\\"",
        ";a=\"\\",
        ";a=\"\\\r\n\"",
        ";a=\"\\\n\"",
        ";a=\"\\\x00\"",
        ";a=\\b",
    ] {
        let body = format!("1{extensions}\r\nx\r\n0\r\n\r\n");
        assert_eq!(decode(body.as_bytes()), Err(400), "{body:?}");
    }
}

#[test]
fn a_chunk_line_may_have_4096_bytes() {
    assert_eq!(MAX_CHUNK_LINE, 4096);
    let line = |length: usize| format!("1;{}\r\n", "a".repeat(length - "1;\r\n".len()));
    let first = |length| decode(format!("{}x\r\n0\r\n\r\n", line(length)).as_bytes());
    assert_eq!(first(4096), Ok((1, true)));
    assert_eq!(first(4097), Err(400));
    let second = |length| decode(format!("1\r\nx\r\n{}x\r\n0\r\n\r\n", line(length)).as_bytes());
    assert_eq!(second(4096), Ok((2, true)), "as long as the first");
    assert_eq!(second(4097), Err(400));
}

#[test]
fn trailers_may_have_8192_bytes() {
    assert_eq!(MAX_TRAILERS, 8192);
    let trailers = |length: usize| {
        let value = "a".repeat(length - "A: \r\nB: c\r\n\r\n".len());
        decode(format!("0\r\nA: {value}\r\nB: c\r\n\r\n").as_bytes())
    };
    assert_eq!(trailers(8192), Ok((0, true)));
    assert_eq!(trailers(8193), Err(431));
}

#[test]
fn chunks_may_have_1_gib_together() {
    assert_eq!(decode(b"40000000\r\n"), Ok((0, false)));
    assert_eq!(decode(b"40000001\r\n"), Err(413));
    assert_eq!(decode(b"ffffffffffffffffffff\r\n"), Err(413));
    assert_eq!(decode(b"1\r\nx\r\n3fffffff\r\n"), Ok((1, false)));
    assert_eq!(decode(b"1\r\nx\r\n40000000\r\n"), Err(413));
}
