//! HTTP/1 of an origin server: responses, their framing, and the persistence of connections.

use std::fmt::Write as _;

use crate::lab::{Daemon, Lab, POD, PROGRAM, peak_memory, wait_until};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// Content that an echo ends with, after the empty line of the request's head.
fn echoed_body(echo: &str) -> &str {
    let (_, request) = echo.split_once("\n\n").unwrap();
    request.split_once("\r\n\r\n").unwrap().1
}

#[test]
fn a_connection_stays_open_for_the_next_request() {
    let lab = Lab::new();
    let _daemon = lab.start(&[]);
    let mut connection = lab.client.http(POD);
    for _ in 0..3 {
        let answer = connection.request(GET);
        assert_eq!(answer.status, "200 OK");
        assert_eq!(answer.other_fields(), [""; 0]);
    }
    connection.shutdown_write();
    connection.assert_closed();
}

#[test]
fn a_request_with_connection_close_is_the_last() {
    let lab = Lab::new();
    let mut daemon = lab.start(&[]);
    for field in ["close", "CLOSE", "keep-alive, close", "x,, close ,y"] {
        let mut connection = lab.client.http(POD);
        let request = format!("GET /last HTTP/1.1\r\nHost: a\r\nConnection: {field}\r\n\r\n{GET}");
        let answer = connection.request(request);
        assert_eq!(answer.other_fields(), ["Connection: close"], "{field}");
        connection.assert_closed();
    }
    daemon.stop();
    daemon.wait_for("Served 4 requests on 4 connections");
}

#[test]
fn http_1_0_ends_after_one_answer() {
    let lab = Lab::new();
    let _daemon = lab.start(&[]);
    let mut connection = lab.client.http(POD);
    let answer = connection.request(format!("GET /old HTTP/1.0\r\n\r\n{GET}"));
    assert_eq!(answer.status, "200 OK");
    assert_eq!(answer.other_fields(), ["Connection: close"]);
    let first = "Request received from  destination /old : GET /old HTTP/1.0\n";
    assert!(answer.text().starts_with(first), "{answer:?}");
    connection.assert_closed();
}

#[test]
fn http_1_0_stays_open_with_keep_alive() {
    let lab = Lab::new();
    let _daemon = lab.start(&[]);
    let mut connection = lab.client.http(POD);
    for _ in 0..2 {
        let answer = connection.request("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n");
        assert_eq!(
            answer.other_fields(),
            ["Connection: keep-alive", "Keep-Alive: timeout=75"]
        );
    }
    let answer = connection.request("GET / HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n");
    assert_eq!(answer.other_fields(), ["Connection: close"]);
    connection.assert_closed();
}

#[test]
fn head_is_answered_without_content_and_without_a_length_that_get_has_not() {
    let lab = Lab::new();
    let _daemon = lab.start(&[]);
    let mut connection = lab.client.http(POD);
    connection.send("HEAD /same HTTP/1.1\r\nHost: a\r\n\r\n");
    let head = connection.response_to_head();
    assert_eq!(head.status, "200 OK");
    assert_eq!(head.other_fields(), [""; 0]);
    let lines = head.fields.iter();
    assert_eq!(
        lines
            .filter(|line| line.starts_with("Content-Length"))
            .count(),
        0
    );
    assert_eq!(
        connection.request(GET).status,
        "200 OK",
        "it follows at once"
    );
}

#[test]
fn the_date_of_an_answer_is_now() {
    let lab = Lab::new();
    let _daemon = lab.start(&[]);
    let seconds = |when: &str| {
        let mut date = std::process::Command::new("date");
        let output = date
            .args(["--utc", "+%s", "--date", when])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.trim().parse::<i64>().unwrap()
    };
    let before = seconds("now");
    let answer = lab.client.http(POD).request(GET);
    let after = seconds("now");
    let date = seconds(answer.field("Date"));
    assert!(
        (before..=after).contains(&date),
        "{before} {answer:?} {after}"
    );
}

#[test]
fn the_echo_has_the_request_as_it_came() {
    let lab = Lab::new();
    let _daemon = lab.start(&[]);
    let mut connection = lab.client.http(POD);
    let request = "PATCH /a%20b?c=d HTTP/1.1\r\nhOsT:   web.test:81\t\r\nX-Empty:\r\nx-twice: 1\r\n\
                   X-Twice: 2\r\nContent-Length: 12\r\n\r\nline\r\n\r\nline";
    let answer = connection.request(request);
    let (before, rest) = answer.text().split_once("\nTime: ").unwrap();
    let (time, after) = rest.split_once("\n\n").unwrap();
    let expected = format!(
        "Request received from web.test:81 destination /a%20b?c=d : PATCH /a%20b?c=d HTTP/1.1\n\
         Client: {}\nDestination: {POD}\nNode: lab",
        connection.client()
    );
    assert_eq!(before, expected);
    assert!(time.ends_with('Z') && !time.contains('\n'), "{time}");
    assert_eq!(after, request);
}

#[test]
fn a_node_without_a_name_is_not_in_the_echo() {
    let lab = Lab::new();
    for name in [None, Some("")] {
        let mut command = lab.node.command(PROGRAM);
        command.env_remove("NODE_NAME");
        command.envs(name.map(|name| ("NODE_NAME", name)));
        let mut daemon = Daemon::spawn(command);
        daemon.wait_for("Created table");
        let echo = lab.client.get(POD, "/");
        assert!(!echo.contains("Node:"), "{echo}");
        assert!(
            echo.contains(&format!("\nDestination: {POD}\nTime: ")),
            "{echo}"
        );
        daemon.stop();
    }
}

#[test]
fn options_is_answered_with_the_methods_that_are_allowed() {
    let lab = Lab::new();
    let _daemon = lab.start(&[]);
    let mut connection = lab.client.http(POD);
    for target in ["/", "*"] {
        let answer = connection.request(format!("OPTIONS {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!(answer.status, "200 OK");
        let allowed = "Allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";
        assert_eq!(answer.other_fields(), [allowed]);
    }
}

#[test]
fn a_target_in_absolute_form_says_for_which_host_a_request_is() {
    let lab = Lab::new();
    let daemon = lab.start(&[]);
    let mut connection = lab.client.http(POD);
    let request = "GET http://a.test:81/x HTTP/1.1\r\nHost: b.test\r\n";
    let answer = connection.request(format!("{request}\r\n"));
    let first = "Request received from a.test:81 destination http://a.test:81/x : ";
    assert!(answer.text().starts_with(first), "{answer:?}");
    let answer = connection.request(format!("{request}Accept: application/json\r\n\r\n"));
    assert!(
        answer.text().contains("\"host\":\"a.test:81\""),
        "{answer:?}"
    );
    daemon.wait_for("host=\"a.test:81\" ");
    let answer = connection.request("GET http://a.test HTTP/1.0\r\n\r\n");
    assert!(
        answer.text().starts_with("Request received from a.test "),
        "{answer:?}"
    );
}

#[test]
fn unusual_requests_are_answered() {
    let lab = Lab::new();
    let _daemon = lab.start(&[]);
    let mut connection = lab.client.http(POD);
    for (request, first) in [
        (
            "GET http://web.test/a HTTP/1.1\r\nHost: other\r\n\r\n",
            "from web.test destination http://web.test/a : GET http://web.test/a HTTP/1.1",
        ),
        (
            "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
            "from a destination * : OPTIONS * HTTP/1.1",
        ),
        (
            "WHAT'S-UP / HTTP/1.1\r\nHost: a\r\n\r\n",
            "from a destination / : WHAT'S-UP / HTTP/1.1",
        ),
        (
            "GET / HTTP/1.2\r\nHost: [fd00::5]:8180\r\n\r\n",
            "from [fd00::5]:8180 destination / : GET / HTTP/1.2",
        ),
        (
            "GET / HTTP/1.1\r\nHost:\r\n\r\n",
            "from  destination / : GET / HTTP/1.1",
        ),
        (
            "\r\nGET /\u{e9} HTTP/1.1\r\nHost: a\r\nX: \u{e9}\r\n\r\n",
            "from a destination /\u{e9} : GET /\u{e9} HTTP/1.1",
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 000\r\nExpect: 100-continue\r\n\r\n",
            "from a destination / : GET / HTTP/1.1",
        ),
    ] {
        let answer = connection.request(request);
        assert_eq!(answer.status, "200 OK", "{request}");
        let line = answer.text().lines().next().unwrap();
        assert_eq!(line, format!("Request received {first}"), "{request}");
    }
}

#[test]
fn chunks_are_joined_and_extensions_and_trailers_left_out() {
    let lab = Lab::new();
    let daemon = lab.start(&[]);
    let mut connection = lab.client.http(POD);
    let head = "POST /chunked HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunks = "5;a=b\r\nhello\r\n006 ;c=\"\\\";d\" ; e = f\r\n world\r\n0;last\r\nX-Sum: 1\r\nX-Empty:\r\n\r\n";
    let answer = connection.request(format!("{head}{chunks}"));
    assert_eq!(answer.status, "200 OK");
    assert!(
        answer.text().ends_with(&format!("\n\n{head}hello world")),
        "{answer:?}"
    );
    let line = daemon.wait_for("Received request to /chunked : ");
    let (_, took) = line.split_once(" body=11 status=200 took=").unwrap();
    let took = took.strip_suffix("us").unwrap().parse::<u64>();
    assert!(took.is_ok(), "{line}");
    assert_eq!(
        connection.request(GET).status,
        "200 OK",
        "it follows at once"
    );
}

#[test]
fn a_client_that_waits_with_its_body_gets_100_continue() {
    let lab = Lab::new();
    let _daemon = lab.start(&[]);
    let mut connection = lab.client.http(POD);
    for (framing, body) in [
        ("Content-Length: 5", "hello"),
        ("Transfer-Encoding: chunked", "5\r\nhello\r\n0\r\n\r\n"),
    ] {
        connection.send(format!(
            "PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\n{framing}\r\n\r\n"
        ));
        let interim = connection.response_to_head();
        assert_eq!(interim.status, "100 Continue", "{framing}");
        assert_eq!(interim.fields, [""; 0], "{framing}");
        let answer = connection.request(body);
        assert_eq!(answer.status, "200 OK", "{framing}");
        assert_eq!(echoed_body(answer.text()), "hello", "{framing}");
    }
}

#[test]
fn empty_and_repeated_members_of_an_expectation_make_no_difference() {
    let lab = Lab::new();
    let _daemon = lab.start(&[]);
    let mut connection = lab.client.http(POD);
    for value in [
        ",100-continue",
        "100-continue ,\t, ",
        "100-continue, 100-CONTINUE",
        "100-continue\r\nExpect: 100-continue",
        "\r\nExpect: ,\r\nExpect: 100-continue\r\nExpect:",
    ] {
        connection.send(format!(
            "PUT / HTTP/1.1\r\nHost: a\r\nExpect: {value}\r\nContent-Length: 5\r\n\r\n"
        ));
        let interim = connection.response_to_head();
        assert_eq!(interim.status, "100 Continue", "{value:?}");
        let answer = connection.request("hello");
        assert_eq!(answer.status, "200 OK", "{value:?}");
        assert_eq!(echoed_body(answer.text()), "hello", "{value:?}");
    }
}

#[test]
fn an_expectation_of_empty_members_is_none() {
    let lab = Lab::new();
    let _daemon = lab.start(&[]);
    for value in ["", ",", " , ,\t", "\r\nExpect: ,"] {
        let mut connection = lab.client.http(POD);
        connection.send(format!(
            "PUT / HTTP/1.1\r\nHost: a\r\nExpect:{value}\r\nContent-Length: 5\r\n\r\n"
        ));
        connection.assert_no_response_yet();
        let answer = connection.request("hello");
        assert_eq!(answer.status, "200 OK", "{value:?}");
        assert_eq!(echoed_body(answer.text()), "hello", "{value:?}");
    }
}

#[test]
fn a_client_that_has_sent_its_body_gets_no_100_continue() {
    let lab = Lab::new();
    let _daemon = lab.start(&[]);
    let mut connection = lab.client.http(POD);
    for fields in [
        "HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello",
        "HTTP/1.0\r\nConnection: keep-alive\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello",
    ] {
        assert_eq!(
            connection.request(format!("PUT / {fields}")).status,
            "200 OK",
            "{fields}"
        );
    }
    connection.send("PUT / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
    connection.shutdown_write();
    connection.assert_closed();
}

#[test]
fn a_body_is_echoed_up_to_64_kib() {
    let lab = Lab::new();
    let daemon = lab.start(&[]);
    let mut connection = lab.client.http(POD);
    let limit = 64 * 1024;
    // No part of it repeats.
    let numbers: String = (0..40_000).map(|number| format!("{number},")).collect();
    for (length, word) in [
        (limit - 1, ""),
        (limit, ""),
        (limit + 1, "\n[1 more bytes of 65537 are not echoed]\n"),
        (200_000, "\n[134464 more bytes of 200000 are not echoed]\n"),
    ] {
        let body = &numbers[..length];
        let mut chunks = String::new();
        for chunk in body.as_bytes().chunks(1000) {
            let chunk = std::str::from_utf8(chunk).unwrap();
            write!(chunks, "{:x}\r\n{chunk}\r\n", chunk.len()).unwrap();
        }
        chunks += "0\r\n\r\n";
        for (target, framing, content) in [
            (
                format!("/length/{length}"),
                format!("Content-Length: {length}"),
                body,
            ),
            (
                format!("/chunks/{length}"),
                "Transfer-Encoding: chunked".to_owned(),
                &chunks,
            ),
        ] {
            let head = format!("POST {target} HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n");
            let answer = connection.request(format!("{head}{content}"));
            assert_eq!(answer.status, "200 OK", "{target}");
            let echo = format!("\n\n{head}{}{word}", &body[..length.min(limit)]);
            assert!(answer.text().ends_with(&echo), "{target}");
            let line = daemon.wait_for(&format!("Received request to {target} : "));
            assert!(
                line.contains(&format!(" body={length} status=200 ")),
                "{line}"
            );
        }
    }
    connection.shutdown_write();
    connection.assert_closed();
}

#[test]
fn a_pipelined_burst_is_answered_in_order() {
    let lab = Lab::new();
    let _daemon = lab.start(&[]);
    let mut connection = lab.client.http(POD);
    let mut burst = String::new();
    for number in 0..60 {
        let body = "GET /no HTTP/1.1\r\n\r\n".repeat(number);
        match number % 3 {
            0 => write!(burst, "GET /{number} HTTP/1.1\r\nHost: a\r\n\r\n"),
            1 => write!(
                burst,
                "POST /{number} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            ),
            _ => write!(
                burst,
                "POST /{number} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{:X}\r\n{body}\r\n0\r\n\r\n",
                body.len()
            ),
        }
        .unwrap();
    }
    connection.send(burst);
    for number in 0..60 {
        let answer = connection.response();
        let first = format!("Request received from a destination /{number} : ");
        assert!(answer.text().starts_with(&first), "{number}: {answer:?}");
    }
    connection.shutdown_write();
    connection.assert_closed();
}

#[test]
fn heads_may_come_byte_by_byte() {
    let lab = Lab::new();
    let _daemon = lab.start(&[]);
    let mut connection = lab.client.http(POD);
    for number in 0..3 {
        let request = format!("PUT /{number} HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody");
        for byte in request.as_bytes() {
            connection.send([*byte]);
        }
        let answer = connection.response();
        assert!(
            answer.text().ends_with(&format!("\n\n{request}")),
            "{answer:?}"
        );
    }
}

#[test]
fn a_client_that_shuts_down_its_side_still_gets_its_response() {
    let lab = Lab::new();
    let _daemon = lab.start(&[]);
    for request in [
        GET,
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi",
    ] {
        let mut connection = lab.client.http(POD);
        connection.send(request);
        connection.shutdown_write();
        assert_eq!(connection.response().status, "200 OK", "{request}");
        connection.assert_closed();
    }
}

#[test]
fn an_empty_line_behind_a_body_is_no_request() {
    let lab = Lab::new();
    let mut daemon = lab.start(&[]);
    let mut connection = lab.client.http(POD);
    connection.request("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi\r\n");
    connection.shutdown_write();
    connection.assert_closed();
    let mut connection = lab.client.http(POD);
    connection.request("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    connection.send("\r\n");
    connection.assert_no_response_yet();
    connection.shutdown_write();
    connection.assert_closed();
    daemon.stop();
    daemon.wait_for("Served 2 requests on 2 connections");
    assert!(!daemon.log().contains("Lost request"), "{}", daemon.log());
}

#[test]
fn a_line_end_behind_a_body_may_come_in_two_pieces_with_time_between() {
    let lab = Lab::new();
    let daemon = lab.start(&[]);
    let mut connection = lab.client.http(POD);
    connection.request("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi\r");
    wait_until("the connection is idle", || daemon.idle_connections() == 1);
    let answer = connection.request("\nGET /next HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(answer.text().contains(" destination /next : GET /next "));
}

#[test]
fn no_request_makes_a_long_log_line() {
    let lab = Lab::new();
    let daemon = lab.start(&[]);
    let long = "\u{ff}".repeat(1800);
    let request = format!("GET /{long} HTTP/1.1\r\nHost: a\r\nUser-Agent: {long}\r\n\r\n");
    assert_eq!(lab.client.http(POD).request(request).status, "200 OK");
    let line = daemon.wait_for("Received request to /\\xc3\\xbf");
    assert!(
        line.len() < 4096 && line.contains("... : client="),
        "{line}"
    );
}

#[test]
fn no_request_forges_a_log_line() {
    let lab = Lab::new();
    let mut daemon = lab.start(&[]);
    let mut connection = lab.client.http(POD);
    let agent = "\" status=999\t\u{9b}31m \\n";
    let request = format!("GET /\u{9b}\"x HTTP/1.1\r\nHost: a\r\nUser-Agent: {agent}\r\n\r\n");
    assert_eq!(connection.request(request).status, "200 OK");
    let refused =
        connection.request("GET /\x1b[31m\x07\r2026-01-01T00:00:00Z INFO HTTP/1.1\r\n\r\n");
    assert_eq!(refused.status, "400 Bad Request");
    daemon.stop();
    daemon.wait_for("Served 2 requests");
    let log = daemon.log();
    let printable = |byte: u8| byte == b'\n' || (b' '..=b'~').contains(&byte);
    assert!(log.bytes().all(printable), "{log:?}");
    let line = daemon.wait_for("Received request to ");
    assert!(
        line.contains(r#" target=/\xc2\x9b\"x version=HTTP/1.1 "#),
        "{line}"
    );
    let agent = r#" user_agent="\" status=999\t\xc2\x9b31m \\n" body=0 status=200 took="#;
    assert!(line.contains(agent), "{line}");
    let line = daemon.wait_for("Refused request");
    let bytes = r#" bytes="GET /\x1b[31m\x07\r2026-01-01T00:00:00Z INFO HTTP/1.1\r\n\r\n""#;
    assert!(line.ends_with(bytes), "{line}");
}

#[test]
fn direct_connections_get_only_what_the_listener_itself_has() {
    let lab = Lab::new();
    let _daemon = lab.start(&[]);
    let connect = || lab.node.http("127.0.0.1:1");
    let request = "POST /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi";
    for request in ["GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n", request] {
        let mut connection = connect();
        let answer = connection.request(request);
        assert_eq!((answer.status.as_str(), answer.text()), ("200 OK", "ok\n"));
        assert_eq!(answer.other_fields(), ["Connection: close"]);
        connection.assert_closed();
    }
    let mut connection = connect();
    connection.send("HEAD /healthz HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(connection.response_to_head().status, "200 OK");
    connection.assert_closed();
    wait_until("everything is in place", || {
        let answer = connect().request("GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n");
        (answer.status.as_str(), answer.text()) == ("200 OK", "ready\n")
    });
    for target in ["/readyz?verbose", "http://a/readyz"] {
        assert_eq!(lab.node.page("127.0.0.1:1", target), "ready\n");
    }
    for target in ["/healthz/", "/readyz/a", "/metrics/", "/secret"] {
        let answer = connect().request(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!(answer.status, "404 Not Found", "{target}");
        assert!(!answer.text().contains("Request received"), "{answer:?}");
    }
}

#[test]
fn an_upload_of_100_mib_takes_no_memory() {
    let lab = Lab::new();
    let daemon = lab.start(&[]);
    let mut connection = lab.client.http(POD);
    connection.request(GET);
    let before = peak_memory(daemon.server());
    connection.send("POST /large HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    let chunk = [b"100000\r\n", vec![b'x'; 1 << 20].as_slice(), b"\r\n"].concat();
    for _ in 0..100 {
        connection.send(&chunk);
    }
    let answer = connection.request("0\r\n\r\n");
    assert_eq!(answer.status, "200 OK");
    let word = "x\n[104792064 more bytes of 104857600 are not echoed]\n";
    assert!(answer.text().ends_with(word), "{}", answer.length());
    let grown = peak_memory(daemon.server()) - before;
    // The kernel counts in batches, and code pages are read on first use.
    assert!(grown < 4 << 20, "{grown} bytes more");
    assert!(
        daemon
            .wait_for("Received request to /large : ")
            .contains(" body=104857600 ")
    );
}
