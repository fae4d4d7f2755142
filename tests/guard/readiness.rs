//! `/readyz`: 200 while everything is in place, else 503 with the reason. `/healthz` says only that the server
//! serves.

use std::os::fd::AsRawFd;

use crate::lab::pidfd::control_socket;
use crate::lab::strace::stopped_at;
use crate::lab::{CIDRS, Daemon, Lab, POD, POD6, wait_until};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{MsgFlags, send};

/// Addresses of the listener.
const LISTENERS: [&str; 2] = ["127.0.0.1:1", "[::1]:1"];

const OK: &str = "200 OK";
const UNAVAILABLE: &str = "503 Service Unavailable";

/// Whether a response has this status and one line of text.
fn says(answer: &str, status: &str, text: &str) -> bool {
    answer.starts_with(&format!("HTTP/1.1 {status}\r\n"))
        && answer.ends_with(&format!("\r\n\r\n{text}\n"))
}

/// Checks the response to a probe of each listener.
fn assert_probed(lab: &Lab, target: &str, status: &str, text: &str) {
    for address in LISTENERS {
        let answer = lab.node.get(address, target);
        assert!(says(&answer, status, text), "{address}: {answer}");
    }
}

/// Waits for a response to `/readyz`, and checks that `/healthz` is not affected.
fn wait_until_probed(lab: &Lab, status: &str, text: &str) {
    wait_until(text, || {
        says(&lab.node.get(LISTENERS[0], "/readyz"), status, text)
    });
    assert_probed(lab, "/readyz", status, text);
    assert_probed(lab, "/healthz", OK, "ok");
}

#[test]
fn it_is_not_ready_before_the_rules_are_installed() {
    let lab = Lab::new();
    lab.pod.serve(8180);
    // The guard stops before it has installed anything.
    let mut daemon = Daemon::spawn(stopped_at("seccomp", 1, &lab.node, &["--cidr", CIDRS]));
    daemon.wait_for("stopped by SIGSTOP");
    assert_probed(&lab, "/healthz", OK, "ok");
    let reason = "not ready: the rules are not installed yet";
    assert_probed(&lab, "/readyz", UNAVAILABLE, reason);
    assert!(lab.client.get(POD, "/").ends_with("pod"));
    daemon.signal(Signal::SIGCONT);
    wait_until_probed(&lab, OK, "ready");
    for pod in [POD, POD6] {
        assert!(lab.client.get(pod, "/").contains("Request received"));
    }
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn it_is_not_ready_while_a_route_cannot_be_restored() {
    for (ip, block) in [("ip", "10.244.0.0/16"), ("ip -6", "fd00:10:244::/56")] {
        let lab = Lab::new();
        let mut daemon = lab.start(&["--cidr", CIDRS]);
        wait_until_probed(&lab, OK, "ready");
        let theirs = format!("{block} dev pod table 100");
        lab.node.run(&format!("{ip} route replace {theirs}"));
        let reason = daemon.wait_for("annot restore what another process removed: ");
        let (_, reason) = reason.split_once("annot restore ").unwrap();
        let reason = format!("not ready: cannot restore {reason}");
        assert!(reason.contains(block), "{reason}");
        wait_until_probed(&lab, UNAVAILABLE, &reason);
        lab.node.run(&format!("{ip} route del {theirs}"));
        wait_until_probed(&lab, OK, "ready");
        assert_eq!(daemon.stop(), Some(0));
        let log = daemon.log();
        assert!(!log.contains("readyz"), "probes are not logged: {log}");
    }
}

#[test]
fn it_is_not_ready_from_the_beginning_of_a_stop_to_its_end() {
    let lab = Lab::new();
    let mut daemon = lab.start(&["--cidr", CIDRS]);
    wait_until_probed(&lab, OK, "ready");
    let mut open = lab.client.http(POD);
    open.send("POST / HTTP/1.1\r\nHost: pod\r\nContent-Length: 4\r\n\r\nhal");
    // The accept is deferred until the client sends data, and the stop waits for the handshake.
    let _silent = lab.client.connect(POD).unwrap();
    daemon.signal(Signal::SIGTERM);
    daemon.wait_for("Stopping");
    wait_until_probed(&lab, UNAVAILABLE, "not ready: stopping");
    wait_until("the server drains", || {
        lab.node.get(LISTENERS[0], "/healthz").contains("draining")
    });
    assert_probed(&lab, "/readyz", UNAVAILABLE, "not ready: stopping");
    assert!(open.request("f").text().ends_with("half"));
    assert_eq!(daemon.wait().code(), Some(0));
}

/// The guard shares the socket with the test, which fills it.
#[test]
fn a_server_that_reads_nothing_does_not_hold_up_the_guard_and_learns_the_state_later() {
    let lab = Lab::new();
    let mut daemon = lab.start(&["--cidr", CIDRS]);
    wait_until_probed(&lab, OK, "ready");
    let before = lab.remains();
    kill(daemon.server(), Signal::SIGSTOP).unwrap();
    let socket = control_socket(daemon.guard());
    let fill = || send(socket.as_raw_fd(), b"filled\n", MsgFlags::MSG_DONTWAIT);
    let error = std::iter::repeat_with(fill).find_map(Result::err);
    assert_eq!(error, Some(Errno::EAGAIN));
    drop(socket);
    let theirs = "10.244.0.0/16 dev pod table 100";
    lab.node.run(&format!("ip route replace {theirs}"));
    daemon.wait_for("Cannot restore what another process removed: ");
    lab.node.run("ip -6 rule del fwmark 0x1/0x1 lookup 100");
    daemon.wait_for("Restored IPv6 rule fwmark 0x1/0x1 lookup 100");
    kill(daemon.server(), Signal::SIGCONT).unwrap();
    wait_until("the server learns it", || {
        let answer = lab.node.get(LISTENERS[0], "/readyz");
        answer.contains("not ready: cannot restore")
    });
    lab.node.run(&format!("ip route del {theirs}"));
    wait_until_probed(&lab, OK, "ready");
    wait_until("all is back", || lab.remains() == before);
    assert_eq!(daemon.stop(), Some(0));
}
