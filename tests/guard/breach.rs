//! The server is compromised, or dies during a stop: the guard kills it, and removes rules and routes.

use std::io::Write;
use std::net::Shutdown;
use std::time::{Duration, Instant};

use crate::lab::pidfd::control_socket;
use crate::lab::{CIDRS, Lab, POD, wait_until};
use nix::sys::signal::{Signal, kill};

#[test]
fn the_servers_death_is_handled_while_a_stop_waits_for_handshakes() {
    let lab = Lab::new();
    let takes = || {
        let mut daemon = lab.start(&["--cidr", CIDRS]);
        // The accept is deferred until the client sends data, and the stop waits for the handshake.
        let _silent = lab.client.connect(POD).unwrap();
        daemon.signal(Signal::SIGTERM);
        daemon.wait_for("Stopping");
        let begin = Instant::now();
        kill(daemon.server(), Signal::SIGKILL).unwrap();
        assert_eq!(daemon.wait().code(), Some(1));
        begin.elapsed()
    };
    // The minimum of three: a busy machine delays some of them.
    let shortest = (0..3).map(|_| takes()).min().unwrap();
    assert!(shortest < Duration::from_millis(700), "{shortest:?}");
    assert_eq!(lab.remains(), [""; 0]);
}

const VIOLATION: &str = "ERROR the server violated the protocol with the guard, and was killed";

#[test]
fn a_server_that_sends_an_unexpected_message_is_killed() {
    let lab = Lab::new();
    let mut daemon = lab.start(&["--cidr", CIDRS]);
    control_socket(daemon.server()).write_all(b"r").unwrap();
    assert_eq!(daemon.wait().code(), Some(1));
    daemon.wait_for(VIOLATION);
    assert_eq!(lab.remains(), [""; 0]);
}

#[test]
fn a_server_that_sends_a_message_during_a_stop_is_killed() {
    let lab = Lab::new();
    let mut daemon = lab.start(&["--cidr", CIDRS]);
    let mut client = lab.client.http(POD);
    client.send("POST / HTTP/1.1\r\nHost: pod\r\nContent-Length: 4\r\n\r\nhal");
    wait_until("it is accepted", || {
        let accepted = lab.node.run("ss -Htn state established sport 8180");
        !accepted.is_empty()
    });
    daemon.signal(Signal::SIGTERM);
    daemon.wait_for("Stopping");
    control_socket(daemon.server()).write_all(b"ready").unwrap();
    assert_eq!(daemon.wait().code(), Some(1));
    daemon.wait_for(VIOLATION);
    assert_eq!(lab.remains(), [""; 0]);
}

#[test]
fn a_server_that_closes_its_socket_and_does_not_end_is_killed() {
    let lab = Lab::new();
    let mut daemon = lab.start(&["--cidr", CIDRS]);
    let begin = Instant::now();
    let control = control_socket(daemon.server());
    kill(daemon.server(), Signal::SIGSTOP).unwrap();
    control.shutdown(Shutdown::Write).unwrap();
    assert_eq!(daemon.wait().code(), Some(1));
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    daemon.wait_for("The server does not end: killing it");
    daemon.wait_for("the server was killed by SIGKILL");
    assert_eq!(lab.remains(), [""; 0]);
}
