//! Deadlines of a client: they are not extended by a byte sent or read now and then.
//!
//! The program's own deadlines are long, so the cases run at the same time.

use std::fs;
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::lab::http_client::{HttpClient, REQUEST};
use crate::lab::stopwatch::Stopwatch;
use crate::lab::{Daemon, Lab, PATIENCE, POD, between, resident_memory, wait_until};
use nix::sys::signal::{Signal, kill};

/// Interval at which a slow client sends a byte.
const DRIP: Duration = Duration::from_millis(250);

/// Longer than every deadline but that of an idle connection.
const LONG: Duration = Duration::from_secs(40);

/// Longer than the deadline of an idle connection.
const LONGER: Duration = Duration::from_secs(90);

/// Time without a request after which a load balancer closes its connection, at AWS by default.
const IDLE_AT_CLIENT: Duration = Duration::from_secs(60);

/// Asserts that an event took this many seconds.
fn check_seconds(watch: &Stopwatch, what: &str, seconds: u64) {
    watch.check(what, watch.elapsed(), Duration::from_secs(seconds));
}

/// Sends `byte` repeatedly, until the server sends something.
fn drip(connection: &mut HttpClient, byte: &str) {
    connection.0.get_ref().set_read_timeout(Some(DRIP)).unwrap();
    let watch = Stopwatch::start();
    while watch.used() < LONG {
        match connection.0.fill_buf() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => connection.send(byte),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            arrived => {
                assert!(!arrived.unwrap().is_empty(), "an answer comes first");
                return connection
                    .0
                    .get_ref()
                    .set_read_timeout(Some(*PATIENCE))
                    .unwrap();
            }
        }
    }
    panic!("a client that drips is served for {LONG:?}");
}

/// A request that is not complete at its deadline is answered with 408.
fn assert_times_out(lab: &Lab, daemon: &Daemon, [begin, byte, part]: [&str; 3], seconds: u64) {
    let mut connection = lab.client.http(POD);
    let watch = Stopwatch::start();
    connection.send(begin);
    drip(&mut connection, byte);
    check_seconds(&watch, begin, seconds);
    let answer = connection.response();
    assert_eq!(answer.status, "408 Request Timeout", "{begin}");
    assert_eq!(answer.other_fields(), ["Connection: close"], "{begin}");
    let reason = format!("the {part} took too long");
    assert_eq!(answer.text(), format!("408 Request Timeout: {reason}\n"));
    connection.assert_closed();
    let line = daemon.wait_for(&format!("client={} ", connection.client()));
    assert!(line.contains("Refused request : "), "{line}");
    assert!(
        line.contains(&format!(" status=408 reason=\"{reason}\" ")),
        "{line}"
    );
}

/// A connection without a request is closed at its deadline, without a response: later if it was answered before.
fn stays_idle(lab: &Lab, daemon: &Daemon, requests: usize, seconds: u64) {
    let mut watch = Stopwatch::start();
    let mut connection = lab.client.http(POD);
    for _ in 0..requests {
        watch = Stopwatch::start();
        connection.request(REQUEST);
    }
    let stream = connection.0.get_ref();
    stream.set_read_timeout(Some(LONGER)).unwrap();
    connection.assert_closed();
    check_seconds(&watch, "an idle connection", seconds);
    let line = daemon.wait_for(&format!("client={} ", connection.client()));
    assert_eq!(
        line.contains("Connection without a request : "),
        requests == 0,
        "{line}"
    );
}

/// A thousand idle connections take little memory all the time, and are served when their clients send requests.
fn stay_idle_and_are_served() {
    let lab = Lab::new();
    let daemon = lab.start(&[]);
    let mut connections = lab.open_connections(POD, 1000);
    thread::sleep(IDLE_AT_CLIENT);
    assert_eq!(daemon.idle_connections(), connections.len());
    let memory = resident_memory(daemon.server());
    println!("a thousand idle connections: {memory} bytes");
    assert!(memory <= 9_000_000, "{memory} bytes");
    for connection in &mut connections {
        assert_eq!(connection.request(REQUEST).status, "200 OK");
    }
}

/// A client that sends requests all the time, and reads few bytes of the responses in a second, is closed.
fn reads_slowly(lab: &Lab, daemon: &Daemon, bytes: usize) {
    let connection = lab.client.http(POD);
    let mut stream = connection.0.get_ref();
    stream.set_write_timeout(Some(LONG)).unwrap();
    let body = "x".repeat(64 * 1024);
    let request = format!(
        "POST /many HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let watch = Stopwatch::start();
    let stop = AtomicBool::new(false);
    let error = thread::scope(|scope| {
        scope.spawn(|| {
            let mut taken = vec![0; bytes];
            while !stop.load(Ordering::Relaxed) && (&mut &*stream).read(&mut taken).is_ok() {
                thread::sleep(Duration::from_secs(1));
            }
        });
        let error = loop {
            if let Err(error) = stream.write_all(request.as_bytes()) {
                break error;
            }
        };
        stop.store(true, Ordering::Relaxed);
        error
    });
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let client = format!("client={} ", connection.client());
    let lost = daemon.wait_for(&format!("Lost request : {client}"));
    let reason = "reason=\"the response could not be sent: the client was too slow\"";
    assert!(lost.contains(reason), "{lost}");
    // The deadline is that of the response, not of the first request.
    let log = daemon.log();
    let mut taken = log.lines().rev().filter(|line| line.contains(&client));
    let last = taken.find(|line| line.contains("Received request"));
    let took = between(last.unwrap(), &lost);
    watch.check("an answer", took, Duration::from_secs(15));
}

/// A response that fits into the kernel's send buffer, but not into the client's receive buffer.
fn leave_response_unread(lab: &Lab, daemon: &Daemon, persistence: &str, size: usize) -> HttpClient {
    let mut connection = HttpClient(BufReader::new(lab.client.connect_narrow(POD, size)));
    let (client, body) = (connection.client(), "x".repeat(30_000));
    connection.send(format!(
        "POST /left HTTP/1.1\r\nHost: a\r\nConnection: {persistence}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    ));
    daemon.wait_for(&format!(" to /left : client={client} "));
    connection
}

/// A client reads some of such a response every two seconds, or nothing: the kernel keeps the rest for 15 s.
fn reads_last_response_slowly(lab: &Lab, daemon: &Daemon, persistence: &str, reads: bool) {
    let watch = Stopwatch::start();
    let (size, bytes) = if reads { (8192, 1000) } else { (2048, 0) };
    let mut connection = leave_response_unread(lab, daemon, persistence, size);
    let client = connection.client();
    for round in 0.. {
        if !lab.node.run("ss -tanH").contains(&client) {
            break;
        }
        assert!(watch.used() < LONG, "the kernel still has it");
        if round % 8 == 0 {
            let _ = connection.0.get_mut().read(&mut vec![0; bytes]);
        }
        thread::sleep(DRIP);
    }
    check_seconds(&watch, "an answer in the kernel", 15);
}

/// A client that starts a body, and has not read the response before it, is lost.
fn starts_a_body(lab: &Lab, daemon: &Daemon) {
    let mut connection = leave_response_unread(lab, daemon, "keep-alive", 2048);
    connection.send("POST /begun HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhello");
    let client = connection.client();
    let watch = Stopwatch::start();
    while lab.node.run("ss -tanH").contains(&client) {
        assert!(watch.used() < LONG, "the kernel still has it");
        thread::sleep(DRIP);
    }
    let line = daemon.wait_for(&format!("Lost request : client={client} "));
    assert!(
        line.contains("reason=\"the body is not complete: "),
        "{line}"
    );
}

/// A client that sends an empty line slowly has the deadline of a silent one.
fn drips_an_empty_line(lab: &Lab) {
    let watch = Stopwatch::start();
    let mut connection = lab.client.http(POD);
    for (byte, seconds) in [("\r", 5), ("\n", 10)] {
        thread::sleep(Duration::from_secs(seconds).saturating_sub(watch.elapsed()));
        connection.send(byte);
    }
    connection.0.get_ref().set_read_timeout(Some(LONG)).unwrap();
    connection.assert_closed();
    check_seconds(&watch, "an empty line", 15);
}

/// The server reads from a refused client that keeps sending for one more second.
fn sends_after_refusal(lab: &Lab) {
    let mut connection = lab.client.http(POD);
    let watch = Stopwatch::start();
    connection.send("nonsense\r\n");
    assert_eq!(connection.response().status, "400 Bad Request");
    while connection.0.get_mut().write_all(&[b'x'; 4096]).is_ok() {
        assert!(watch.used() < LONG);
    }
    check_seconds(&watch, "a client that sends on", 1);
}

#[test]
fn heads_bodies_answers_and_idle_connections_have_one_deadline_each() {
    let lab = Lab::new();
    let daemon = lab.start(&[]);
    let (lab, daemon) = (&lab, &daemon);
    let slow = [
        (["G", "E", "head"], 10),
        (["GET / HTTP/1.1\r\nHost: a\r\nX: ", "y", "head"], 10),
        (["GET / HTTP/1.1\r\nHost: a\r\n", "X: y\r\n", "head"], 10),
        (
            [
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n",
                "x",
                "body",
            ],
            30,
        ),
        (
            [
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
                "1\r\nx\r\n",
                "body",
            ],
            30,
        ),
        (
            [
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n40000000\r\n",
                "x",
                "body",
            ],
            30,
        ),
        (
            [
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0;",
                "x",
                "body",
            ],
            30,
        ),
    ];
    thread::scope(|scope| {
        for (request, seconds) in slow {
            scope.spawn(move || assert_times_out(lab, daemon, request, seconds));
        }
        scope.spawn(|| stays_idle(lab, daemon, 0, 15));
        scope.spawn(|| stays_idle(lab, daemon, 2, 75));
        scope.spawn(stay_idle_and_are_served);
        scope.spawn(|| reads_slowly(lab, daemon, 0));
        scope.spawn(|| reads_slowly(lab, daemon, 100));
        for persistence in ["close", "keep-alive"] {
            for reads in [false, true] {
                scope.spawn(move || reads_last_response_slowly(lab, daemon, persistence, reads));
            }
        }
        scope.spawn(|| starts_a_body(lab, daemon));
        scope.spawn(|| drips_an_empty_line(lab));
        scope.spawn(|| sends_after_refusal(lab));
    });
}

/// A read with a time-out is not restarted after SIGCONT (signal(7)).
#[test]
fn a_deadline_holds_however_often_the_server_is_stopped() {
    let lab = Lab::new();
    let daemon = lab.start(&[]);
    let server = daemon.server();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let watch = Stopwatch::start();
            while !stop.load(Ordering::Relaxed) && watch.used() < LONG {
                kill(server, Signal::SIGSTOP).unwrap();
                let status = || fs::read_to_string(format!("/proc/{server}/status")).unwrap();
                wait_until("it is stopped", || status().contains("State:\tT"));
                kill(server, Signal::SIGCONT).unwrap();
                thread::sleep(DRIP);
            }
        });
        let watch = Stopwatch::start();
        let mut silent = lab.client.http(POD);
        let mut started = lab.client.http(POD);
        started.send("GET / HTTP/1.1\r\n");
        for connection in [&started, &silent] {
            let stream = connection.0.get_ref();
            stream.set_read_timeout(Some(LONG)).unwrap();
        }
        assert_eq!(started.response().status, "408 Request Timeout");
        check_seconds(&watch, "a head", 10);
        silent.assert_closed();
        check_seconds(&watch, "a silent connection", 15);
        stop.store(true, Ordering::Relaxed);
    });
}
