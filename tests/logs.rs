//! Log lines are written many at once: what becomes of them when their reader stalls, and when the
//! program ends.

mod lab;

use std::io::{BufRead, BufReader, Read};
use std::process::{ChildStderr, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use lab::conversation::Conversation;
use lab::{Daemon, Lab, POD, PROGRAM, peak_memory, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const REQUEST: &str = "GET / HTTP/1.1\r\nHost: pod\r\n\r\n";

/// So many requests were answered, says the log.
fn received(log: &str) -> usize {
    log.matches("INFO  Received request to ").count()
}

/// Asks until an answer does not come in time; returns how many came.
fn ask_until_it_stalls(connection: &mut Conversation) -> usize {
    let field = |name: &str| format!("{name}: {}\r\n", "x".repeat(500));
    let request = format!(
        "GET /{} HTTP/1.1\r\n{}{}\r\n",
        "t".repeat(500),
        field("Host"),
        field("User-Agent")
    );
    let stream = connection.0.get_ref();
    let patience = stream.read_timeout().unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    let answers = (0..5000).position(|_| {
        connection.send(&request);
        match connection.0.fill_buf() {
            Ok(_) => {
                assert_eq!(connection.answer().status, "200 OK");
                false
            }
            Err(_) => true,
        }
    });
    connection.0.get_ref().set_read_timeout(patience).unwrap();
    answers.expect("requests wait when the log is full")
}

/// Reads up to a line with this text.
fn read_to(log: &mut BufReader<ChildStderr>, text: &str) {
    let mut line = String::new();
    while !line.contains(text) {
        line.clear();
        assert!(log.read_line(&mut line).unwrap() > 0, "no line with {text}");
    }
}

#[test]
fn while_nobody_reads_the_log_requests_wait_and_memory_does_not_grow() {
    let lab = Lab::new();
    let mut child = lab
        .node
        .command(PROGRAM)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let guard = Pid::from_raw(child.id().cast_signed());
    let mut log = BufReader::new(child.stderr.take().unwrap());
    read_to(&mut log, "Created table");
    let children = std::fs::read_to_string(format!("/proc/{guard}/task/{guard}/children"));
    let server = Pid::from_raw(children.unwrap().trim().parse().unwrap());

    let mut connection = lab.client.talk(POD);
    let answered = ask_until_it_stalls(&mut connection);
    let healthy = lab.node.get("127.0.0.1:1", "/healthz");
    let peak = peak_memory(server);

    let rest = thread::spawn(move || {
        let mut text = String::new();
        log.read_to_string(&mut text).unwrap();
        text
    });
    let late = connection.answer();
    kill(guard, Signal::SIGTERM).unwrap();
    assert!(child.wait().unwrap().success());
    let text = rest.join().unwrap();

    assert!(answered > 100, "{answered} answers before the log is full");
    assert!(
        healthy.ends_with("ok\n"),
        "probes are not logged: {healthy}"
    );
    assert!(peak < 4 << 20, "{peak} bytes");
    assert_eq!(late.status, "200 OK");
    assert_eq!(received(&text), answered + 1);
}

#[test]
fn a_stop_in_order_loses_no_line() {
    let lab = Lab::new();
    let mut daemon = lab.start(&[]);
    let answered = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut connection = lab.client.talk(POD);
                loop {
                    let answer = connection.ask(REQUEST);
                    answered.fetch_add(1, Ordering::SeqCst);
                    if answer.other_fields() == ["Connection: close"] {
                        break;
                    }
                }
            });
        }
        wait_until("there is load", || answered.load(Ordering::SeqCst) > 1000);
        assert_eq!(daemon.stop(), Some(0));
    });
    let answered = answered.into_inner();
    assert_eq!(received(&daemon.log()), answered);
    let served = format!("Served {answered} requests on 4 connections");
    assert!(daemon.log().contains(&served), "{served}");
}

#[test]
fn a_line_is_written_within_a_moment_and_outlives_the_program() {
    let lab = Lab::new();
    let mut daemon: Daemon = lab.start(&[]);
    let mut connection = lab.client.talk(POD);
    for _ in 0..100 {
        assert_eq!(connection.ask(REQUEST).status, "200 OK");
    }
    // Long for the few milliseconds that lines are gathered, short for anything else.
    thread::sleep(Duration::from_millis(100));
    daemon.kill();
    daemon.wait();
    assert_eq!(received(&daemon.log()), 100);
}
