//! Orderly stops: requests are finished, connections are closed, nothing is left, and traffic goes on.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use crate::lab::http_client::HttpClient;
use crate::lab::stopwatch::Stopwatch;
use crate::lab::strace::stopped_at;
use crate::lab::{CIDRS, Daemon, Lab, PATIENCE, POD, POD6, connect_from, wait_until};
use nix::sys::signal::{Signal, kill};
use tproxy_pod::guard::{HANDSHAKES, LONGEST_STOP};

const REQUEST: &str = "GET / HTTP/1.1\r\nHost: pod\r\n\r\n";

#[test]
fn every_orderly_stop_leaves_nothing() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let lab = Lab::new();
        let mut daemon = lab.start(&["--cidr", CIDRS]);
        lab.client.get(POD, "/");
        daemon.signal(signal);
        assert_eq!(daemon.wait().code(), Some(0), "{signal}");
        assert_eq!(lab.remains(), [""; 0], "{signal}");
        let log = daemon.log();
        assert!(log.contains("Served 1 requests on 1 connections"), "{log}");
        for removed in [
            "table inet tproxy-pod",
            "rule fwmark 0x1/0x1",
            "route local 10.244.0.0/16 dev lo",
        ] {
            assert!(
                log.contains(&format!("Removed {removed}")),
                "{removed} in {log}"
            );
        }
    }
}

#[test]
fn a_stop_under_load_loses_no_connection() {
    let lab = Lab::new();
    lab.pod.serve(8180);
    let mut daemon = lab.start(&[]);
    daemon.stop_under_load(&lab.client, &[POD]);
}

#[test]
fn a_stop_finishes_the_request_that_it_finds_and_ends_idle_connections() {
    let lab = Lab::new();
    let mut daemon = lab.start(&[]);
    let mut idle = lab.client.http(POD);
    idle.request(REQUEST);
    let mut busy = lab.client.http(POD);
    busy.send("POST /late HTTP/1.1\r\nHost: pod\r\nContent-Length: 4\r\n\r\nhal");
    wait_until("both are accepted", || {
        lab.node
            .run("ss -Htn state established sport 8180")
            .lines()
            .count()
            == 2
    });
    daemon.signal(Signal::SIGTERM);
    daemon.wait_for("Stopping");
    idle.assert_closed();
    let answer = busy.request("f");
    assert_eq!(answer.field("Connection"), "close");
    assert!(answer.text().ends_with("half"), "{answer:?}");
    busy.assert_closed();
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn after_a_stop_a_client_that_uses_a_port_again_reaches_the_pod() {
    let lab = Lab::new();
    lab.pod.serve(8180);
    let mut daemon = lab.start(&["--cidr", CIDRS]);
    let ends = [("192.0.2.2:20000", POD), ("[2001:db8:1::2]:20000", POD6)]
        .map(|(from, to)| (from.parse().unwrap(), to.parse().unwrap()));
    let get = |(from, to)| {
        let mut stream = lab
            .client
            .enter(|| connect_from(from, to, *PATIENCE))
            .unwrap();
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    for end in ends {
        assert!(get(end).contains("Request received"), "{end:?}");
    }
    let mut idle = lab.client.http(POD);
    idle.request(REQUEST);
    assert_eq!(daemon.stop(), Some(0));
    for end in ends {
        assert!(get(end).ends_with("pod"), "{end:?}");
    }
    assert_eq!(
        lab.node.run("ss -Htan sport 8180"),
        "",
        "no socket of ours is left"
    );
}

#[test]
fn a_stop_waits_for_a_slow_client_to_read_its_response() {
    let lab = Lab::new();
    let mut daemon = lab.start(&[]);
    lab.client.sysctl("net.ipv4.tcp_rmem", "4096 4096 4096");
    let mut client = lab.client.connect(POD).unwrap();
    let body = "x".repeat(30_000);
    let request = format!("POST / HTTP/1.1\r\nHost: pod\r\nContent-Length: 30000\r\n\r\n{body}");
    client.write_all(request.as_bytes()).unwrap();
    daemon.wait_for("Received request to / : ");
    daemon.signal(Signal::SIGTERM);
    daemon.wait_for("Stopping");
    wait_until("the server has ended its side", || {
        let sockets = lab.node.run("ss -Htn state fin-wait-1 sport 8180");
        !sockets.is_empty()
    });
    // The client reads for half a second; a stop that does not wait for it truncates the response.
    let mut answer = Vec::new();
    let mut piece = [0; 1500];
    loop {
        match client.read(&mut piece) {
            Ok(0) => break,
            Ok(length) => answer.extend_from_slice(&piece[..length]),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Interrupted),
        }
        std::thread::sleep(Duration::from_millis(25));
    }
    assert!(
        answer.ends_with(body.as_bytes()),
        "{} bytes of the answer",
        answer.len()
    );
    assert_eq!(daemon.wait().code(), Some(0));
}

/// A stop begins while the ACK of a handshake is lost. The client sends its first request after the kernel has
/// retransmitted the SYN-ACK. Returns whether it sent in time; if so, the request was answered.
fn requests_late_in_a_handshake(lab: &Lab) -> bool {
    // ACKs without data.
    let loss = "table ip lossy { chain output { type filter hook output priority 0; \
                tcp flags & (syn | psh) == 0 drop; }; }";
    assert!(lab.client.feed("nft -f -", loss).status.success());
    let mut daemon = lab.start(&[]);
    let repeated = lab.node.counter("TCPSynRetrans");
    let begin = Instant::now();
    let mut client = lab.client.http(POD);
    daemon.signal(Signal::SIGTERM);
    daemon.wait_for("Stopping");
    wait_until("the SYN-ACK is repeated", || {
        lab.node.counter("TCPSynRetrans") > repeated
    });
    client.send(REQUEST);
    let is_in_time = begin.elapsed() < HANDSHAKES;
    if is_in_time {
        assert!(client.response().text().contains("Request received"));
    }
    lab.client.run("nft delete table ip lossy");
    assert_eq!(daemon.wait().code(), Some(0));
    is_in_time
}

#[test]
fn a_stop_waits_for_a_handshake_that_has_begun() {
    let lab = Lab::new();
    // A late attempt proves nothing.
    let is_in_time = (0..5).any(|_| requests_late_in_a_handshake(&lab));
    assert!(is_in_time, "the machine is too slow for this test");
}

#[test]
fn a_busy_client_gets_connection_close_during_a_stop() {
    let lab = Lab::new();
    let mut daemon = lab.start(&[]);
    let mut busy = lab.client.http(POD);
    busy.request(REQUEST);
    daemon.signal(Signal::SIGTERM);
    let deadline = Instant::now() + *PATIENCE;
    loop {
        let answer = busy.request(REQUEST);
        if answer.fields.contains(&"Connection: close".to_owned()) {
            break;
        }
        assert!(Instant::now() < deadline);
    }
    busy.assert_closed();
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn a_client_that_sends_its_request_during_a_stop_is_answered() {
    let lab = Lab::new();
    lab.pod.serve(8180);
    let mut daemon = lab.start(&["--cidr", CIDRS]);
    let mut clients = [POD, POD6].map(|address| lab.client.http(address));
    daemon.signal(Signal::SIGTERM);
    daemon.wait_for("Stopping: new connections go to the Pods");
    clients.iter_mut().for_each(|client| client.send(REQUEST));
    for client in &mut clients {
        let answer = client.response();
        assert!(answer.text().starts_with("Request received from pod "));
        client.assert_closed();
    }
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn a_silent_client_does_not_delay_a_stop() {
    let lab = Lab::new();
    let mut daemon = lab.start(&[]);
    let mut silent = lab.client.connect(POD).unwrap();
    wait_until("it is accepted", || {
        !lab.node
            .run("ss -Htn state established sport 8180")
            .is_empty()
    });
    let watch = Stopwatch::start();
    assert_eq!(daemon.stop(), Some(0));
    watch.check_longest("the stop", watch.elapsed(), Duration::ZERO);
    assert_eq!(silent.read_to_end(&mut Vec::new()).unwrap(), 0);
}

#[test]
fn idle_connections_do_not_delay_a_stop() {
    let lab = Lab::new();
    let mut daemon = lab.start(&[]);
    let mut idle = lab.open_connections(POD, 8);
    wait_until("all are idle", || daemon.idle_connections() == 8);
    let watch = Stopwatch::start();
    assert_eq!(daemon.stop(), Some(0));
    watch.check_longest("the stop", watch.elapsed(), Duration::ZERO);
    idle.iter_mut().for_each(HttpClient::assert_closed);
}

#[test]
fn a_signal_at_any_moment_of_the_start_leaves_nothing() {
    let lab = Lab::new();
    // Stops before signals are blocked, before and after the fork, and after each request to the kernel.
    let early = ["set_tid_address", "signalfd4", "socketpair", "seccomp"].map(|call| (call, 1));
    let requests = (1..).map(|count| ("sendto", count));
    let mut installed = Vec::new();
    for (call, count) in early.into_iter().chain(requests) {
        let mut daemon = Daemon::spawn(stopped_at(call, count, &lab.node, &["--cidr", CIDRS]));
        let is_stopped = || daemon.log().contains("--- stopped by SIGSTOP ---");
        wait_until("it has stopped, or started", || {
            is_stopped() || daemon.log().contains("Created table")
        });
        if !is_stopped() {
            break;
        }
        installed.push(lab.remains().len());
        daemon.signal(Signal::SIGTERM);
        daemon.signal(Signal::SIGCONT);
        let status = daemon.wait();
        let case = format!("{call} {count}: {status}: {}", daemon.log());
        let at_once = status.signal() == Some(Signal::SIGTERM as i32);
        assert!(at_once || status.code() == Some(0), "{case}");
        assert_eq!(lab.remains(), [""; 0], "{case}");
    }
    // Two routes, four rules, and the tables of IP and of bridges; old kernels lack the latter.
    installed.dedup();
    assert!(
        installed.starts_with(&[0, 1, 2, 3, 4, 5, 6, 7]),
        "{installed:?}"
    );
}

#[test]
fn a_server_that_dies_while_it_finishes_leaves_nothing() {
    let lab = Lab::new();
    let mut daemon = lab.start(&["--cidr", CIDRS]);
    let mut client = lab.client.http(POD);
    client.send("POST / HTTP/1.1\r\nHost: pod\r\nContent-Length: 4\r\n\r\nhal");
    wait_until("it is accepted", || {
        !lab.node
            .run("ss -Htn state established sport 8180")
            .is_empty()
    });
    daemon.signal(Signal::SIGTERM);
    daemon.wait_for("Stopping");
    kill(daemon.server(), Signal::SIGKILL).unwrap();
    assert_eq!(daemon.wait().code(), Some(1));
    assert_eq!(lab.remains(), [""; 0]);
    assert_eq!(lab.node.run("ss -Htan sport 8180"), "");
}

#[test]
fn a_server_that_does_not_end_is_killed_within_the_longest_stop() {
    let lab = Lab::new();
    let mut daemon = lab.start(&["--cidr", CIDRS]);
    kill(daemon.server(), Signal::SIGSTOP).unwrap();
    let watch = Stopwatch::start();
    assert_eq!(daemon.stop(), Some(1));
    watch.check_longest("the stop", watch.elapsed(), LONGEST_STOP);
    daemon.wait_for("The server does not end: killing it");
    daemon.wait_for("the server was killed by SIGKILL");
    assert_eq!(lab.remains(), [""; 0]);
}
