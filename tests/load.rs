//! Many connections at once: how many are served, and what happens to the others.

mod lab;

use lab::conversation::Conversation;
use lab::{CIDRS, Daemon, Lab, POD, POD6, PROGRAM};

const REQUEST: &str = "GET / HTTP/1.1\r\nHost: pod\r\n\r\n";

/// Connections that have been answered once and stay open.
fn open(lab: &Lab, address: &str, count: usize) -> Vec<Conversation> {
    let talk = |_| {
        let mut conversation = lab.client.talk(address);
        assert_eq!(conversation.ask(REQUEST).status, "200 OK");
        conversation
    };
    (0..count).map(talk).collect()
}

#[test]
fn the_next_client_waits_for_a_connection_to_end() {
    for address in [POD, POD6] {
        let lab = Lab::new();
        let _daemon = lab.start(&["--cidr", CIDRS, "--max-connections", "4"]);
        let mut conversations = open(&lab, POD, 2);
        conversations.extend(open(&lab, POD6, 2));
        let mut next = lab.client.talk(address);
        next.send(REQUEST);
        next.has_no_answer_yet();
        conversations.pop();
        assert_eq!(next.answer().status, "200 OK");
    }
}

#[test]
fn the_nodes_probes_do_not_wait_for_clients() {
    let lab = Lab::new();
    let daemon = lab.start(&["--cidr", CIDRS, "--max-connections", "4"]);
    let upload = "POST / HTTP/1.1\r\nHost: pod\r\nContent-Length: 9\r\n\r\n";
    let mut uploads: Vec<Conversation> = (0..6).map(|_| lab.client.talk(POD)).collect();
    uploads.iter_mut().for_each(|it| it.send(upload));
    for address in ["127.0.0.1:1", "[::1]:1"] {
        let answer = lab.node.get(address, "/healthz");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    }
    // All this time, every connection was taken.
    let mut next = lab.client.talk(POD6);
    next.send(REQUEST);
    next.has_no_answer_yet();
    drop(daemon);
}

#[test]
fn idle_threads_of_one_family_leave_room_for_the_other() {
    let lab = Lab::new();
    let _daemon = lab.start(&["--cidr", CIDRS, "--max-connections", "8"]);
    drop(open(&lab, POD, 7));
    open(&lab, POD6, 8);
    open(&lab, POD, 8);
}

#[test]
fn as_many_files_may_be_open_as_connections_need() {
    let lab = Lab::new();
    let mut command = lab.node.command("prlimit");
    command.args(["--nofile=40:4096", PROGRAM, "--max-connections", "200"]);
    let daemon = Daemon::spawn(command);
    daemon.wait_for("Created table");
    assert_eq!(open(&lab, POD, 200).len(), 200);
}

#[test]
fn a_limit_of_open_files_that_is_too_low_is_told() {
    let lab = Lab::new();
    let mut command = lab.node.command("prlimit");
    command.args(["--nofile=40:40", PROGRAM, "--max-connections", "200"]);
    let daemon = Daemon::spawn(command);
    daemon.wait_for("Fewer connections at once than 200: only 40 files may be open");
    daemon.wait_for("Created table");
    let conversations = open(&lab, POD, 20);
    drop(conversations);
    open(&lab, POD, 20);
}
