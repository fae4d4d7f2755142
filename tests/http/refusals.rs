//! Refused requests, with their status; a connection is closed after a refusal.

use crate::lab::refusal::{SMUGGLED, assert_all_refused, refused};
use crate::lab::{Lab, POD};

/// Malformed requests, each with its status.
pub const MALFORMED: &[(&str, &str)] = &[
    // The request line (RFC 9112, 3).
    ("GET\r\nHost: a\r\n\r\n", "400 Bad Request"),
    ("GET /\r\nHost: a\r\n\r\n", "400 Bad Request"),
    ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", "400 Bad Request"),
    ("GET / HTTP/1.1 \r\nHost: a\r\n\r\n", "400 Bad Request"),
    ("GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", "400 Bad Request"),
    ("GET\t/\tHTTP/1.1\r\nHost: a\r\n\r\n", "400 Bad Request"),
    (" GET / HTTP/1.1\r\nHost: a\r\n\r\n", "400 Bad Request"),
    ("G(T / HTTP/1.1\r\nHost: a\r\n\r\n", "400 Bad Request"),
    ("GET a HTTP/1.1\r\nHost: a\r\n\r\n", "400 Bad Request"),
    ("GET * HTTP/1.1\r\nHost: a\r\n\r\n", "400 Bad Request"),
    (
        "GET http:///a HTTP/1.1\r\nHost: a\r\n\r\n",
        "400 Bad Request",
    ),
    (
        "GET http://?a HTTP/1.1\r\nHost: a\r\n\r\n",
        "400 Bad Request",
    ),
    (
        "GET http://:80/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "400 Bad Request",
    ),
    (
        "GET http://a@b/ HTTP/1.1\r\nHost: b\r\n\r\n",
        "400 Bad Request",
    ),
    (
        "GET http://a:b/ HTTP/1.1\r\nHost: b\r\n\r\n",
        "400 Bad Request",
    ),
    ("GET /\x7f HTTP/1.1\r\nHost: a\r\n\r\n", "400 Bad Request"),
    ("GET / http/1.1\r\nHost: a\r\n\r\n", "400 Bad Request"),
    ("GET / HTTP/1\r\nHost: a\r\n\r\n", "400 Bad Request"),
    ("GET / HTTP/1.10\r\nHost: a\r\n\r\n", "400 Bad Request"),
    ("GET / HTTP/1.1\nHost: a\n\n", "400 Bad Request"),
    // Field lines (RFC 9112, 5).
    ("GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n", "400 Bad Request"),
    (
        "GET / HTTP/1.1\r\nHost: a\r\nX: y\rz\r\n\r\n",
        "400 Bad Request",
    ),
    (
        "GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n z\r\n\r\n",
        "400 Bad Request",
    ),
    ("GET / HTTP/1.1\r\n Host: a\r\n\r\n", "400 Bad Request"),
    (
        "GET / HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n",
        "400 Bad Request",
    ),
    ("GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n", "400 Bad Request"),
    (
        "GET / HTTP/1.1\r\nHost: a\r\n: y\r\n\r\n",
        "400 Bad Request",
    ),
    (
        "GET / HTTP/1.1\r\nHost: a\r\nX y: z\r\n\r\n",
        "400 Bad Request",
    ),
    (
        "GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n",
        "400 Bad Request",
    ),
    // Host (RFC 9112, 3.2).
    ("GET / HTTP/1.1\r\n\r\n", "400 Bad Request"),
    ("GET http://a/ HTTP/1.1\r\n\r\n", "400 Bad Request"),
    (
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "400 Bad Request",
    ),
    (
        "GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n",
        "400 Bad Request",
    ),
    (
        "GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n",
        "400 Bad Request",
    ),
    ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", "400 Bad Request"),
    ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", "400 Bad Request"),
    ("GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", "400 Bad Request"),
    ("GET / HTTP/1.1\r\nHost: a:b\r\n\r\n", "400 Bad Request"),
    ("GET / HTTP/1.1\r\nHost: fd00::5\r\n\r\n", "400 Bad Request"),
    // Content-Length (RFC 9112, 6.3; RFC 9110, 8.6).
    (
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n",
        "400 Bad Request",
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
        "400 Bad Request",
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        "400 Bad Request",
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\nx",
        "400 Bad Request",
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1 1\r\n\r\nx",
        "400 Bad Request",
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x1\r\n\r\nx",
        "400 Bad Request",
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 2\r\n\r\nx",
        "400 Bad Request",
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        "400 Bad Request",
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "400 Bad Request",
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        "400 Bad Request",
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1073741825\r\n\r\n",
        "413 Content Too Large",
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n",
        "413 Content Too Large",
    ),
    // Transfer-Encoding (RFC 9112, 6.1).
    (
        "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "400 Bad Request",
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        "400 Bad Request",
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
        "400 Bad Request",
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "400 Bad Request",
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n\r\n0\r\n\r\n",
        "400 Bad Request",
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "501 Not Implemented",
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "501 Not Implemented",
    ),
    // Chunks (RFC 9112, 7.1).
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
        "400 Bad Request",
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\nx\n0\n\n",
        "400 Bad Request",
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxy\r\n0\r\n\r\n",
        "400 Bad Request",
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1 \r\nx\r\n0\r\n\r\n",
        "400 Bad Request",
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1; \r\nx\r\n0\r\n\r\n",
        "400 Bad Request",
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;\0\r\nx\r\n0\r\n\r\n",
        "400 Bad Request",
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;bad[=x\r\nhello\r\n0\r\n\r\n",
        "400 Bad Request: a chunk extension is malformed\n",
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;a=\"b\r\nhello\r\n0\r\n\r\n",
        "400 Bad Request: a chunk extension is malformed\n",
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nno trailer\r\n\r\n",
        "400 Bad Request",
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n40000001\r\n",
        "413 Content Too Large",
    ),
    // Expect (RFC 9110, 10.1.1).
    (
        "POST / HTTP/1.1\r\nHost: a\r\nExpect: tea\r\nContent-Length: 1\r\n\r\nx",
        "417 Expectation Failed",
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue, tea\r\nContent-Length: 1\r\n\r\nx",
        "417 Expectation Failed",
    ),
    // Versions (RFC 9110, 15.6.6).
    (
        "GET / HTTP/2.0\r\nHost: a\r\n\r\n",
        "505 HTTP Version Not Supported",
    ),
    (
        "GET / HTTP/0.9\r\nHost: a\r\n\r\n",
        "505 HTTP Version Not Supported",
    ),
    (
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "505 HTTP Version Not Supported",
    ),
];

#[test]
fn malformed_requests_are_refused() {
    let requests: Vec<_> = MALFORMED
        .iter()
        .map(|(request, status)| (request.as_bytes().to_vec(), *status))
        .collect();
    assert_all_refused(&requests);
}

#[test]
fn what_is_too_long_is_refused() {
    let head = |line: &str, fields: &str| {
        format!("{line} HTTP/1.1\r\nHost: a\r\n{fields}\r\n").into_bytes()
    };
    let chunked = "Transfer-Encoding: chunked\r\n";
    let body = |bytes: &str| [head("POST /", chunked), bytes.as_bytes().to_vec()].concat();
    let long = "a".repeat(20_000);
    let too_large = "431 Request Header Fields Too Large";
    assert_all_refused(&[
        (
            head(&format!("GET /{}", &long[..8179]), ""),
            "414 URI Too Long",
        ),
        (head(&format!("GET /{long}"), ""), "414 URI Too Long"),
        (head("GET /", &format!("A: {long}\r\n")), too_large),
        (head("GET /", &"A: b\r\n".repeat(100)), too_large),
        (body(&format!("1;{}\r\n", &long[..5000])), "400 Bad Request"),
        (
            body(&format!("0\r\nA: {}\r\n\r\n", &long[..9000])),
            too_large,
        ),
    ]);
}

const PROXY: &str = "400 Bad Request: the client speaks the PROXY protocol, not HTTP\n";

/// The signature of version 2 of the PROXY protocol.
const PROXY_V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

#[test]
fn other_protocols_are_refused_by_name() {
    // The start of a ClientHello; most have a line feed among their random bytes.
    let hello = |random: u8| {
        let random = [random; 32];
        [
            b"\x16\x03\x01\x00\xf8\x01\x00\x00\xf4\x03\x03",
            random.as_slice(),
        ]
        .concat()
    };
    let tls = "400 Bad Request: the client speaks TLS, not HTTP\n";
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    let http_2 = "505 HTTP Version Not Supported: the client speaks HTTP/2, not HTTP/1.1\n";
    let other = b"\0\x01\x02\n\n".to_vec();
    let proxy_v1 = |line: &str| format!("PROXY {line}\r\n").into_bytes();
    let addresses = b"\x21\x11\0\x0c\xc0\0\x02\x01\x0a\xf4\0\x05\x15\xb3\x1f\xf4";
    let proxy_v2 = |header: &[u8]| [PROXY_V2, header].concat();
    assert_all_refused(&[
        (hello(0xa5), tls),
        (hello(b'\n'), tls),
        (preface, http_2),
        (proxy_v1("TCP4 192.0.2.1 10.244.0.5 5555 8180"), PROXY),
        (proxy_v1("TCP6 2001:db8::1 fd00::5 5555 8180"), PROXY),
        (proxy_v1("UNKNOWN"), PROXY),
        (proxy_v1("UNKNOWN anything"), PROXY),
        (proxy_v1("UNKNOWN 2001:db8::1 fd00::5 5555 8180"), PROXY),
        (proxy_v2(addresses), PROXY),
        // LOCAL, of the proxy itself.
        (proxy_v2(b"\x20\0\0\0"), PROXY),
        (other, "400 Bad Request: this is not HTTP\n"),
    ]);
}

#[test]
fn the_proxy_protocol_is_recognised_in_pieces() {
    let lab = Lab::new();
    let daemon = lab.start(&[]);
    for cut in [1, 2, 3, 4, 5, 7, 11] {
        let mut connection = lab.client.http(POD);
        let (first, rest) = PROXY_V2.split_at(cut);
        connection.send(first);
        connection.assert_no_response_yet();
        assert_eq!(refused(&mut connection, rest).text(), PROXY, "cut at {cut}");
        let client = format!("client={} ", connection.client());
        let line = daemon.wait_for(&client);
        let reason = "reason=\"the client speaks the PROXY protocol, not HTTP\" bytes=\"";
        assert!(line.contains(reason), "{line}");
    }
}

#[test]
fn what_only_looks_like_the_proxy_protocol_is_not_taken_for_it() {
    let lab = Lab::new();
    let _daemon = lab.start(&[]);
    let mut connection = lab.client.http(POD);
    for line in ["PROXY / HTTP/1.1", "PROXY UNKNOWN://a/TCP4 HTTP/1.1"] {
        let answer = connection.request(format!("{line}\r\nHost: a\r\n\r\n"));
        assert_eq!(answer.status, "200 OK", "{line}");
    }
    let empty = "400 Bad Request: more than one empty line precedes the request\n";
    let words = "400 Bad Request: the request line is not METHOD TARGET VERSION\n";
    assert_all_refused(&[
        (b"\r\n\r\n".to_vec(), empty),
        (b"\r\n\r\n\0\r\nQUIT\r\n".to_vec(), empty),
        (b"PROXY\r\n".to_vec(), words),
        (b"PROXY TCP5 a b 1 2\r\n".to_vec(), words),
        (b"proxy TCP4 a b 1 2\r\n".to_vec(), words),
    ]);
}

#[test]
fn folded_lines_are_refused_by_name() {
    let head = |fields: &str| format!("GET / HTTP/1.1\r\n{fields}\r\n\r\n").into_bytes();
    let trailers = |lines: &str| {
        let fields = "Host: a\r\nTransfer-Encoding: chunked";
        [head(fields), format!("0\r\n{lines}\r\n\r\n").into()].concat()
    };
    let folded = "400 Bad Request: a field line is folded (obs-fold)\n";
    let first = "400 Bad Request: whitespace precedes the first field line\n";
    let trailer = "400 Bad Request: a trailer field is folded (obs-fold)\n";
    let name = "400 Bad Request: a field name is malformed\n";
    assert_all_refused(&[
        (head("Host: x\r\nX: a\r\n b"), folded),
        (head("Host: x\r\nX:\r\n\tb"), folded),
        (head("Host: x\r\n \t"), folded),
        (head("Host: x\r\n Y: b"), folded),
        (head(" Host: x"), first),
        (head("\t\r\nHost: x"), first),
        (head("Host: x\r\nX y: z"), name),
        (head("Host: x\r\n: z"), name),
        (trailers("X: a\r\n b"), trailer),
        (trailers("X: a\r\n\tY: b"), trailer),
        (
            trailers(" X: a"),
            "400 Bad Request: a trailer field is malformed\n",
        ),
    ]);
}

#[test]
fn connect_and_trace_are_refused_with_the_methods_that_are_allowed() {
    let lab = Lab::new();
    let _daemon = lab.start(&[]);
    for request in [
        "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n",
        "TRACE / HTTP/1.1\r\nHost: a\r\nCookie: secret\r\n\r\n",
    ] {
        let answer = refused(&mut lab.client.http(POD), request);
        assert_eq!(answer.status, "405 Method Not Allowed");
        let allowed = "Allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";
        assert_eq!(answer.other_fields(), [allowed, "Connection: close"]);
        assert!(!answer.text().contains("secret"), "{answer:?}");
    }
}

#[test]
fn a_refused_head_has_no_content() {
    let lab = Lab::new();
    let _daemon = lab.start(&[]);
    for request in ["HEAD / HTTP/1.1\r\n\r\n", "\r\nHEAD / HTTP/1.1\r\n\r\n"] {
        let mut connection = lab.client.http(POD);
        connection.send(request);
        let answer = connection.response_to_head();
        assert_eq!(answer.status, "400 Bad Request", "{request:?}");
        connection.assert_closed();
    }
}

#[test]
fn endless_empty_lines_are_refused() {
    let lab = Lab::new();
    let _daemon = lab.start(&[]);
    let mut connection = lab.client.http(POD);
    let answer = refused(&mut connection, "\r\n".repeat(40_000));
    assert_eq!(answer.status, "400 Bad Request");
}

#[test]
fn a_second_empty_line_is_refused_even_if_it_comes_later() {
    let lab = Lab::new();
    let _daemon = lab.start(&[]);
    let mut connection = lab.client.http(POD);
    connection.send("\r\n");
    connection.assert_no_response_yet();
    assert_eq!(refused(&mut connection, "\r\n").status, "400 Bad Request");
}

#[test]
fn requests_in_front_of_a_refused_one_are_answered() {
    let lab = Lab::new();
    let _daemon = lab.start(&[]);
    let mut connection = lab.client.http(POD);
    let good = "GET /good HTTP/1.1\r\nHost: a\r\n\r\n";
    connection.send(format!("{good}{good}nonsense\r\n\r\n{SMUGGLED}"));
    for _ in 0..2 {
        assert_eq!(connection.response().status, "200 OK");
    }
    assert_eq!(connection.response().status, "400 Bad Request");
    connection.assert_closed();
}

#[test]
fn a_body_that_is_refused_late_does_not_hide_its_answer() {
    let lab = Lab::new();
    let _daemon = lab.start(&[]);
    let mut connection = lab.client.http(POD);
    connection.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n");
    assert_eq!(connection.response().status, "400 Bad Request");
    // The server discards what the client still sends, and sends no RST.
    connection.send("a".repeat(100_000));
    connection.shutdown_write();
    connection.assert_closed();
}
