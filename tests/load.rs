//! Many connections at once: how many are served, and what happens to the others.

mod lab;

use std::io::{ErrorKind, Write};
use std::thread;
use std::time::Duration;

use lab::conversation::Conversation;
use lab::manifest::Pod;
use lab::{CIDRS, Daemon, Lab, POD, POD6, PROGRAM, wait_until};

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

/// The longest request that is echoed whole: 16 KiB of head, 64 KiB of content.
fn longest_request() -> Vec<u8> {
    let mut head = format!("POST /{} HTTP/1.1\r\nHost: pod\r\n", "t".repeat(8000));
    head += &format!("Content-Length: {}\r\nFiller: ", 64 * 1024);
    let filler = "f".repeat(16 * 1024 - head.len() - 4);
    let content = "c".repeat(64 * 1024);
    format!("{head}{filler}\r\n\r\n{content}").into_bytes()
}

/// The memory of the node's TCP sockets, in bytes: what they have received, what they send, and
/// what the kernel has set aside for them (ss(8), `skmem`).
fn socket_memory(lab: &Lab) -> u64 {
    let sockets = lab.node.run("ss -tnmH");
    let memory = sockets
        .split("skmem:(")
        .skip(1)
        .map(|it| it.split(')').next().unwrap());
    let parts = memory.flat_map(|it| it.split(','));
    let counted = parts.filter_map(|part| part.strip_prefix(['r', 'w', 'f']));
    counted.filter_map(|bytes| bytes.parse::<u64>().ok()).sum()
}

/// The most memory that a process has had, in bytes.
fn peak(process: nix::unistd::Pid) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        * 1024
}

#[test]
fn memory_stays_below_the_limit_of_the_manifest_whatever_clients_send_and_do_not_read() {
    let pod = Pod::read();
    let lab = Lab::new();
    let daemon = lab.start(&pod.arguments());
    let request = longest_request();
    let mut connections: Vec<_> = (0..1024)
        .map(|_| (lab.client.connect(POD).unwrap(), 0))
        .collect();
    let mut used = 0;
    wait_until("no connection takes more", || {
        for (connection, sent) in &mut connections {
            connection.set_nonblocking(true).unwrap();
            let refused = loop {
                match connection.write(&request[*sent..]) {
                    Ok(length) => *sent = (*sent + length) % request.len(),
                    Err(error) => break error,
                }
            };
            assert_eq!(refused.kind(), ErrorKind::WouldBlock, "{refused}");
        }
        thread::sleep(Duration::from_millis(200));
        let before = std::mem::replace(&mut used, socket_memory(&lab));
        used == before
    });
    assert_eq!(daemon.log().matches("Refused").count(), 0);
    let processes = peak(daemon.server()) + peak(daemon.guard());
    println!(
        "processes {} MiB, sockets {} MiB",
        processes >> 20,
        used >> 20
    );
    let limit = pod.memory_limit();
    assert!(
        processes + used < limit / 10 * 9,
        "{processes} + {used} of {limit}"
    );
}
