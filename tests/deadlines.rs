//! How long a client may take: whoever sends or takes a byte now and then gains nothing by it.
//!
//! The deadlines are those of the program, so all that takes long happens at once.

mod lab;

use std::io::{BufRead as _, ErrorKind, Write as _};
use std::thread;
use std::time::{Duration, Instant};

use lab::conversation::Conversation;
use lab::{Daemon, Lab, PATIENCE, POD};

/// How often a client that drips sends a byte.
const DRIP: Duration = Duration::from_millis(250);

/// How much later than its deadline a machine that is busy may act.
const TOLERANCE: Duration = Duration::from_secs(3);

/// Longer than every deadline.
const LONG: Duration = Duration::from_secs(40);

/// Whether what began at `start` ends after so many seconds: not before, and not much later.
fn check(what: &str, start: Instant, seconds: u64) {
    let (took, limit) = (start.elapsed(), Duration::from_secs(seconds));
    assert!(
        (limit..limit + TOLERANCE).contains(&took),
        "{what}: {took:?} instead of {limit:?}"
    );
}

/// Sends `byte` again and again, until the server says something.
fn drip(connection: &mut Conversation, byte: &str) {
    connection.0.get_ref().set_read_timeout(Some(DRIP)).unwrap();
    let start = Instant::now();
    while start.elapsed() < LONG {
        match connection.0.fill_buf() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => connection.send(byte),
            arrived => {
                assert!(!arrived.unwrap().is_empty(), "an answer comes first");
                return connection
                    .0
                    .get_ref()
                    .set_read_timeout(Some(PATIENCE))
                    .unwrap();
            }
        }
    }
    panic!("a client that drips is served for {LONG:?}");
}

/// A request that does not end in time is answered, after so many seconds, with 408.
fn times_out(lab: &Lab, daemon: &Daemon, [begin, byte, part]: [&str; 3], seconds: u64) {
    let mut connection = lab.client.talk(POD);
    let start = Instant::now();
    connection.send(begin);
    drip(&mut connection, byte);
    check(begin, start, seconds);
    let answer = connection.answer();
    assert_eq!(answer.status, "408 Request Timeout", "{begin}");
    assert_eq!(answer.other_fields(), ["Connection: close"], "{begin}");
    let reason = format!("the {part} took too long");
    assert_eq!(answer.text(), format!("408 Request Timeout: {reason}\n"));
    connection.ends();
    let line = daemon.wait_for(&format!("client={} ", connection.client()));
    assert!(line.contains("Refused request : "), "{line}");
    assert!(
        line.contains(&format!(" status=408 reason=\"{reason}\" ")),
        "{line}"
    );
}

/// A connection without a request ends, after so many seconds, without a word.
fn idles(lab: &Lab, daemon: &Daemon, requests: usize) {
    let mut connection = lab.client.talk(POD);
    for _ in 0..requests {
        connection.ask("GET /first HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    let start = Instant::now();
    connection.0.get_ref().set_read_timeout(Some(LONG)).unwrap();
    connection.ends();
    check("an idle connection", start, 15);
    let line = daemon.wait_for(&format!("client={} ", connection.client()));
    assert_eq!(
        line.contains("Connection without a request : "),
        requests == 0,
        "{line}"
    );
}

/// A client that asks, and takes none of its answers, is let go.
fn takes_nothing(lab: &Lab, daemon: &Daemon) {
    let connection = lab.client.talk(POD);
    let mut stream = connection.0.get_ref();
    stream.set_write_timeout(Some(LONG)).unwrap();
    let body = "x".repeat(64 * 1024);
    let request = format!(
        "POST /many HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let start = Instant::now();
    let error = loop {
        if let Err(error) = stream.write_all(request.as_bytes()) {
            break error;
        }
    };
    assert_eq!(
        error.kind(),
        ErrorKind::ConnectionReset,
        "after {:?}",
        start.elapsed()
    );
    check("an answer", start, 15);
    daemon.wait_for("reason=\"the answer was not taken: the client was too slow\"");
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
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0;",
                "x",
                "body",
            ],
            30,
        ),
    ];
    thread::scope(|scope| {
        for (request, seconds) in slow {
            scope.spawn(move || times_out(lab, daemon, request, seconds));
        }
        scope.spawn(|| idles(lab, daemon, 0));
        scope.spawn(|| idles(lab, daemon, 2));
        scope.spawn(|| takes_nothing(lab, daemon));
    });
}
