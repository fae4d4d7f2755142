//! The status and the delay of an echo, as a client or the operator asks for them.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::lab::http_client::{HttpClient, REQUEST};
use crate::lab::refusal::refused;
use crate::lab::{Daemon, Lab, POD};

/// A request with these field lines, each with its CRLF.
fn request(fields: &str) -> String {
    format!("GET /asked HTTP/1.1\r\nHost: pod\r\n{fields}\r\n")
}

/// Sends a request, and measures the time until the response.
fn timed(connection: &mut HttpClient, fields: &str) -> (String, Duration) {
    let start = Instant::now();
    let answer = connection.request(request(fields));
    assert!(answer.text().starts_with("Request received from pod "));
    (answer.status, start.elapsed())
}

#[test]
fn a_client_gets_the_status_for_which_it_asks() {
    let lab = Lab::new();
    let daemon = lab.start(&[]);
    let mut connection = lab.client.http(POD);
    for (code, status) in [
        ("503", "503 Service Unavailable"),
        ("299", "299 "),
        ("599", "599 "),
    ] {
        let answer = connection.request(request(&format!("X-Echo-Status: {code}\r\n")));
        assert_eq!(answer.status, status);
        assert_eq!(answer.other_fields(), [""; 0]);
        daemon.wait_for(&format!(" status={code} took="));
    }
    let answer = connection.request(request("X-Echo-Status: 405\r\n"));
    assert!(answer.field("Allow").contains("GET, "), "{answer:?}");
    assert_eq!(connection.request(REQUEST).status, "200 OK");
}

#[test]
fn a_status_without_content_has_none() {
    let lab = Lab::new();
    let _daemon = lab.start(&[]);
    let mut connection = lab.client.http(POD);
    for (code, length) in [("204", None), ("304", None), ("205", Some("0"))] {
        let body = "Content-Length: 2\r\n\r\nhi";
        let fields = format!("X-Echo-Status: {code}\r\nAccept: application/json\r\n{body}");
        connection.send(format!("POST / HTTP/1.1\r\nHost: pod\r\n{fields}"));
        let answer = connection.response_to_head();
        assert!(answer.status.starts_with(code), "{answer:?}");
        assert_eq!(answer.field("Cache-Control"), "no-store");
        let fields = answer.fields.iter();
        let mut lengths = fields.filter_map(|line| line.strip_prefix("Content-Length: "));
        assert_eq!([lengths.next(), lengths.next()], [length, None]);
        assert!(
            !answer
                .fields
                .iter()
                .any(|line| line.starts_with("Content-Type"))
        );
        assert_eq!(connection.request(REQUEST).status, "200 OK", "the next one");
    }
}

#[test]
fn a_response_waits_for_as_long_as_the_client_asks() {
    let lab = Lab::new();
    let daemon = lab.start(&[]);
    let mut connection = lab.client.http(POD);
    let (status, took) = timed(
        &mut connection,
        "x-echo-delay: 1s\r\nX-ECHO-STATUS: 404\r\n",
    );
    assert_eq!(status, "404 Not Found");
    assert!(took >= Duration::from_secs(1), "{took:?}");
    let line = daemon.wait_for("target=/asked ");
    let logged = line.rsplit_once(" took=").unwrap().1.trim_end_matches("us");
    assert!(logged.parse::<u64>().unwrap() >= 1_000_000, "{line}");
    let (status, took) = timed(&mut connection, "X-Echo-Delay: 0ms\r\n");
    assert_eq!(status, "200 OK");
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[test]
fn the_operator_sets_both_for_all_and_a_request_wins() {
    let lab = Lab::new();
    let _daemon = lab.start(&["--status", "503", "--delay", "300ms"]);
    let mut connection = lab.client.http(POD);
    let (status, took) = timed(&mut connection, "");
    assert_eq!(status, "503 Service Unavailable");
    assert!(took >= Duration::from_millis(300), "{took:?}");
    let (status, took) = timed(&mut connection, "X-Echo-Delay: 0s\r\n");
    assert_eq!(status, "503 Service Unavailable");
    assert!(took < Duration::from_millis(300), "{took:?}");
    let (status, _) = timed(&mut connection, "X-Echo-Status: 200\r\n");
    assert_eq!(status, "200 OK");
    // What is not echoed is as ever.
    let start = Instant::now();
    assert!(
        lab.node
            .get("127.0.0.1:1", "/healthz")
            .starts_with("HTTP/1.1 200 OK")
    );
    let answer = refused(&mut lab.client.http(POD), "GET / HTTP/1.1\r\n\r\n");
    assert_eq!(answer.status, "400 Bad Request");
    assert!(start.elapsed() < Duration::from_millis(300));
}

#[test]
fn a_malformed_status_or_delay_is_refused_with_what_was_expected() {
    let lab = Lab::new();
    let _daemon = lab.start(&[]);
    let status = "X-Echo-Status: expected one number from 200 to 599";
    let delay = "X-Echo-Delay: expected one duration such as 250ms or 2s, at most 10s";
    for (fields, expected) in [
        ("X-Echo-Status:", status),
        ("X-Echo-Status: 199", status),
        ("X-Echo-Status: 600", status),
        ("X-Echo-Status: 0200", status),
        ("X-Echo-Status: +20", status),
        ("X-Echo-Status: 200\r\nX-Echo-Status: 200", status),
        ("X-Echo-Delay: 5", delay),
        ("X-Echo-Delay: 10001ms", delay),
        ("X-Echo-Delay: 11s", delay),
        ("X-Echo-Delay: 1.5s", delay),
        ("X-Echo-Delay: 1s\r\nX-Echo-Delay: 1s", delay),
    ] {
        let answer = refused(&mut lab.client.http(POD), request(&format!("{fields}\r\n")));
        let expected = format!("400 Bad Request: {expected}\n");
        assert_eq!(answer.text(), expected, "{fields}");
    }
}

/// Connections that wait for a delayed response, the oldest first.
fn delayed(lab: &Lab, daemon: &Daemon, count: usize) -> Vec<HttpClient> {
    let connect = |before| {
        let mut connection = lab.client.http(POD);
        connection.request(REQUEST);
        connection.send(request("X-Echo-Delay: 10s\r\n"));
        daemon.wait_for_delayed(before + 1);
        connection
    };
    (0..count).map(connect).collect()
}

#[test]
fn where_clients_wait_for_room_delayed_responses_are_sent_at_once_the_oldest_first() {
    let lab = Lab::new();
    let daemon = lab.start(&["--max-connections", "4"]);
    let mut idle = lab.open_connections(POD, 1);
    let start = Instant::now();
    let mut waiting = delayed(&lab, &daemon, 3);
    let mut others = Vec::new();
    for round in 0..3 {
        let mut new = lab.client.http(POD);
        assert_eq!(new.request(REQUEST).status, "200 OK");
        let mut oldest = waiting.remove(0);
        let answer = oldest.response();
        assert_eq!(answer.status, "200 OK");
        assert_eq!(answer.other_fields(), ["Connection: close"], "{round}");
        oldest.assert_closed();
        assert!(
            start.elapsed() < Duration::from_secs(8),
            "{:?}",
            start.elapsed()
        );
        waiting
            .iter_mut()
            .for_each(HttpClient::assert_no_response_yet);
        others.push(new);
    }
    assert_eq!(idle[0].request(REQUEST).status, "200 OK", "it stays");
    daemon.wait_for("The limit of 4 connections is reached");
}

#[test]
fn what_follows_a_request_does_not_cost_the_client_its_delayed_response() {
    let lab = Lab::new();
    let daemon = lab.start(&["--max-connections", "1"]);
    for _ in 0..5 {
        let mut waiting = delayed(&lab, &daemon, 1).remove(0);
        waiting.send(request("").repeat(20));
        assert_eq!(lab.client.http(POD).request(REQUEST).status, "200 OK");
        let answer = waiting.response();
        assert_eq!(answer.other_fields(), ["Connection: close"]);
    }
}

#[test]
fn a_stop_sends_delayed_responses_at_once() {
    let lab = Lab::new();
    let mut daemon = lab.start(&["--delay", "60s"]);
    let mut waiting = lab.client.http(POD);
    waiting.send(request(""));
    daemon.wait_for_delayed(1);
    let start = Instant::now();
    daemon.signal(Signal::SIGTERM);
    let answer = waiting.response();
    assert_eq!(answer.other_fields(), ["Connection: close"]);
    drop(waiting);
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    daemon.wait_for("Served 1 requests on 1 connections");
}
