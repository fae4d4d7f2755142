//! More than the program can take: of connections, open files and threads.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::lab::conversation::{Conversation, REQUEST};
use crate::lab::stopwatch::Stopwatch;
use crate::lab::strace::Strace;
use crate::lab::{CIDRS, Daemon, Lab, POD, POD6, PROGRAM, wait_until};
use nix::sys::signal::Signal;
use tproxy_pod::server::deadlines::IDLE_AFTER;

/// A connection that is served, and waits for the client.
fn upload(lab: &Lab, address: &str) -> TcpStream {
    let mut stream = lab.client.connect(address).unwrap();
    let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = [0; b"HTTP/1.1 100 Continue\r\n\r\n".len()];
    stream.read_exact(&mut answer).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 100 "));
    stream
}

fn uploads(lab: &Lab, address: &str, count: usize) -> Vec<TcpStream> {
    (0..count).map(|_| upload(lab, address)).collect()
}

/// Clients that have sent a request, all at once.
fn asking(lab: &Lab, address: &str, count: usize) -> Vec<Conversation> {
    let ask = |_| {
        let mut client = lab.client.talk(address);
        client.send("GET / HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n");
        client
    };
    (0..count).map(ask).collect()
}

/// All read at once: for up to a second, the server waits for a client to close that has its last answer.
fn are_answered(clients: impl IntoIterator<Item = Conversation>) {
    std::thread::scope(|scope| {
        for mut client in clients {
            scope.spawn(move || assert_eq!(client.answer().status, "200 OK"));
        }
    });
}

/// Stops it, and counts the lines of its log with a text.
fn lines_in_the_end(daemon: &mut Daemon, text: &str) -> usize {
    assert_eq!(daemon.stop(), Some(0));
    let log = daemon.log();
    log.lines().filter(|line| line.contains(text)).count()
}

#[test]
fn the_next_client_waits_for_a_connection_to_end() {
    for address in [POD, POD6] {
        let lab = Lab::new();
        let mut daemon = lab.start(&["--cidr", CIDRS, "--max-connections", "4"]);
        let mut busy = uploads(&lab, POD, 2);
        busy.extend(uploads(&lab, POD6, 2));
        let mut next = lab.client.talk(address);
        next.send(REQUEST);
        next.has_no_answer_yet();
        busy.pop();
        assert_eq!(next.answer().status, "200 OK");
        drop((busy, next));
        let line = "WARN  The limit of 4 connections is reached: clients wait";
        assert_eq!(lines_in_the_end(&mut daemon, line), 1);
    }
}

#[test]
fn the_nodes_probes_do_not_wait_for_clients() {
    let lab = Lab::new();
    let _daemon = lab.start(&["--cidr", CIDRS, "--max-connections", "4"]);
    let _busy = uploads(&lab, POD, 4);
    for address in ["127.0.0.1:1", "[::1]:1"] {
        let answer = lab.node.get(address, "/healthz");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    }
    // All this time, every connection was taken.
    let mut next = lab.client.talk(POD6);
    next.send(REQUEST);
    next.has_no_answer_yet();
}

#[test]
fn busy_connections_do_not_give_way_to_the_next_client_and_an_idle_one_does() {
    for address in [POD, POD6] {
        let shown = (0..10).any(|_| only_an_idle_connection_gives_way(address));
        assert!(
            shown,
            "the test paused for {IDLE_AFTER:?} in each of ten attempts"
        );
    }
}

/// Returns whether it is shown: if the test itself is paused, its busy connections become idle.
fn only_an_idle_connection_gives_way(address: &str) -> bool {
    let lab = Lab::new();
    let daemon = lab.start(&["--cidr", CIDRS, "--max-connections", "4"]);
    let mut asked = Instant::now();
    let mut busy = lab.open(POD, 2);
    busy.extend(lab.open(POD6, 2));
    let mut all_stay = |busy: &mut [Conversation]| {
        let before = std::mem::replace(&mut asked, Instant::now());
        let stay = busy.iter_mut().all(is_answered);
        assert!(
            stay || before.elapsed() >= IDLE_AFTER,
            "a busy connection gave way"
        );
        stay
    };
    std::thread::scope(|scope| {
        let next = scope.spawn(|| lab.client.get(address, "/"));
        let mut next_waits = |busy: &mut [Conversation]| {
            // Where the test paused, the next client may have been served in the place of one of them.
            let is_served = next.is_finished();
            let stay = all_stay(busy);
            assert!(!(stay && is_served), "all stay, and another is served");
            stay
        };
        let is_full = || {
            let log = daemon.log();
            log.contains("The limit of 4 connections is reached")
        };
        while !is_full() {
            if !next_waits(&mut busy) {
                return false;
            }
        }
        // Each round is many times shorter than what an idle connection has.
        if !(0..1000).all(|_| next_waits(&mut busy)) {
            return false;
        }
        let mut idle = busy.pop().unwrap();
        while !next.is_finished() {
            if !all_stay(&mut busy) {
                return false;
            }
        }
        assert!(next.join().unwrap().starts_with("HTTP/1.1 200 OK\r\n"));
        let stay = all_stay(&mut busy);
        if stay {
            idle.ends();
        }
        stay
    })
}

/// Sends a request on a connection, which may have ended.
fn is_answered(connection: &mut Conversation) -> bool {
    let stream = &mut connection.0;
    if stream.get_mut().write_all(REQUEST.as_bytes()).is_err() {
        return false;
    }
    loop {
        match stream.fill_buf() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Ok(b"") | Err(_) => return false,
            Ok(_) => return connection.answer().status == "200 OK",
        }
    }
}

#[test]
fn connections_that_never_say_anything_give_way_to_one_client() {
    let lab = Lab::new();
    let daemon = lab.start(&["--cidr", CIDRS]);
    let at_first = daemon.threads();
    let connect = |_| lab.client.connect(POD).unwrap();
    let _silent: Vec<_> = (0..1024).map(connect).collect();
    wait_until("all are accepted", || daemon.threads() >= at_first + 1024);
    for address in [POD, POD6] {
        let start = Instant::now();
        assert!(lab.client.get(address, "/").contains("Request received"));
        println!("{:?}", start.elapsed());
    }
}

#[test]
fn one_idle_connection_gives_way_to_one_client() {
    let lab = Lab::new();
    let mut daemon = lab.start(&["--max-connections", "8"]);
    let idle = lab.open(POD, 8);
    let next = lab.open(POD, 1);
    let ended = |connection: &Conversation| {
        let stream = connection.0.get_ref();
        stream.set_nonblocking(true).unwrap();
        stream.peek(&mut [0]).is_ok()
    };
    let ends: Vec<_> = idle.iter().filter(|it| ended(it)).collect();
    assert_eq!(ends.len(), 1);
    assert!(!ended(&next[0]));
    drop((idle, next));
    assert_eq!(lines_in_the_end(&mut daemon, "Received request"), 9);
}

#[test]
fn as_many_files_may_be_open_as_connections_need() {
    let lab = Lab::new();
    let mut command = lab.node.command("prlimit");
    command.args(["--nofile=40:4096", PROGRAM, "--max-connections", "200"]);
    let daemon = Daemon::spawn(command);
    daemon.wait_for("Created table");
    assert_eq!(uploads(&lab, POD, 200).len(), 200);
}

#[test]
fn with_64_files_fewer_connections_are_served_at_once_and_probes_are_answered() {
    let lab = Lab::new();
    let mut command = lab.node.command("prlimit");
    command.args(["--nofile=64:64", PROGRAM, "--cidr", CIDRS]);
    let mut daemon = Daemon::spawn(command);
    daemon.wait_for("WARN  At most 30 connections at once, not 1024: 64 files may be open");
    daemon.wait_for("Created table");
    let busy = uploads(&lab, POD, 30);
    let clients = asking(&lab, POD, 200);
    for _ in 0..20 {
        for address in ["127.0.0.1:1", "[::1]:1"] {
            assert!(lab.node.get(address, "/healthz").ends_with("ok\n"));
        }
    }
    drop(busy);
    are_answered(clients);
    assert_eq!(lines_in_the_end(&mut daemon, "Cannot accept"), 0);
}

/// Sets the server's limit of open files.
fn allow_files(daemon: &Daemon, soft_limit: &str) {
    let limit = format!("--nofile={soft_limit}:");
    let server = daemon.server().to_string();
    let status = Command::new("prlimit")
        .args(["--pid", &server, &limit])
        .status();
    assert!(status.unwrap().success());
}

/// Sets the server's limit to one file more than it has open.
fn allow_one_file(daemon: &Daemon) {
    let open = std::fs::read_dir(format!("/proc/{}/fd", daemon.server())).unwrap();
    let open: Vec<u32> = open
        .map(|entry| {
            entry
                .unwrap()
                .file_name()
                .to_str()
                .unwrap()
                .parse()
                .unwrap()
        })
        .collect();
    let next = (0..).find(|number| !open.contains(number)).unwrap();
    // Below the limit are the numbers of the others, and the next that the kernel gives (open(2)).
    allow_files(daemon, &(next + 1).to_string());
}

#[test]
fn with_one_file_left_clients_of_both_families_are_served_one_after_the_other() {
    let lab = Lab::new();
    let daemon = lab.start(&["--cidr", CIDRS]);
    allow_one_file(&daemon);
    let clients = [POD, POD6, POD, POD6].map(|address| asking(&lab, address, 20));
    are_answered(clients.into_iter().flatten());
}

#[test]
fn with_one_file_left_an_idle_connection_gives_way_to_the_next_client() {
    for (first, next) in [(POD, POD), (POD, POD6), (POD6, POD), (POD6, POD6)] {
        let lab = Lab::new();
        let daemon = lab.start(&["--cidr", CIDRS]);
        allow_one_file(&daemon);
        let mut idle = lab.open(first, 1);
        assert!(lab.client.get(next, "/").contains("Request received"));
        idle[0].ends();
    }
}

/// Connections that are evicted.
fn idle(lab: &Lab, daemon: &Daemon, count: usize) -> Vec<Conversation> {
    let connections = lab.open(POD, count);
    wait_until("all are idle", || daemon.idle_connections() == count);
    connections
}

#[test]
fn a_file_that_is_free_again_costs_no_idle_connection() {
    let lab = Lab::new();
    let daemon = lab.start(&["--cidr", CIDRS]);
    let mut idle = idle(&lab, &daemon, 5);
    // Once in each thread: then another connection has ended.
    let full = Strace::failing(daemon.server(), "accept4", "EMFILE:when=1");
    are_answered(asking(&lab, POD, 1));
    daemon
        .wait_for("WARN  Cannot accept a connection, clients wait: No file descriptors available");
    drop(full);
    assert!(idle.iter_mut().all(is_answered));
}

#[test]
fn a_shortage_that_no_eviction_ends_costs_no_idle_connection() {
    for error in ["ENFILE", "ENOMEM", "EPERM"] {
        let lab = Lab::new();
        let daemon = lab.start(&["--cidr", CIDRS]);
        let mut idle = idle(&lab, &daemon, 5);
        let short = Strace::failing(daemon.server(), "accept4", &format!("{error}:when=1..20"));
        are_answered(asking(&lab, POD, 1));
        daemon.wait_for("WARN  Cannot accept a connection, clients wait: ");
        drop(short);
        assert!(idle.iter_mut().all(is_answered), "{error}");
    }
}

/// Linux reports errors of a connection that arose before it was accepted (accept(2)).
#[test]
fn a_connection_that_is_aborted_before_it_is_accepted_is_no_shortage_of_files() {
    let lab = Lab::new();
    let mut daemon = lab.start(&["--cidr", CIDRS]);
    let aborted = Strace::failing(daemon.server(), "accept4", "ECONNABORTED:when=1..5");
    for address in [POD, POD6] {
        are_answered(asking(&lab, address, 20));
    }
    drop(aborted);
    assert_eq!(lines_in_the_end(&mut daemon, "Cannot accept"), 0);
}

#[test]
fn a_stop_waits_for_clients_that_no_file_is_left_for() {
    let lab = Lab::new();
    let mut daemon = lab.start(&["--cidr", CIDRS]);
    allow_one_file(&daemon);
    let busy = upload(&lab, POD);
    let clients = [POD, POD6].map(|address| asking(&lab, address, 5));
    daemon.wait_for("WARN  Cannot accept a connection, clients wait: ");
    daemon.signal(Signal::SIGTERM);
    daemon.wait_for("Stopping");
    drop(busy);
    are_answered(clients.into_iter().flatten());
    assert_eq!(daemon.wait().code(), Some(0));
    daemon.wait_for("Served 10 requests on 11 connections");
}

/// Clients that wait, because the server may not open another file.
fn starve(lab: &Lab, daemon: &Daemon) -> Vec<Conversation> {
    allow_files(daemon, "16");
    let clients = asking(lab, POD, 20);
    daemon
        .wait_for("WARN  Cannot accept a connection, clients wait: No file descriptors available");
    clients
}

#[test]
fn without_files_clients_wait_until_connections_end() {
    let lab = Lab::new();
    let mut daemon = lab.start(&["--cidr", CIDRS]);
    let busy = uploads(&lab, POD, 20);
    let clients = starve(&lab, &daemon);
    drop(busy);
    are_answered(clients);
    are_answered(asking(&lab, POD, 20));
    assert_eq!(lines_in_the_end(&mut daemon, "Cannot accept"), 1);
}

#[test]
fn without_files_clients_wait_until_more_are_allowed() {
    let lab = Lab::new();
    let mut daemon = lab.start(&["--cidr", CIDRS]);
    let busy = uploads(&lab, POD, 20);
    let clients = starve(&lab, &daemon);
    allow_files(&daemon, "1000");
    are_answered(clients);
    drop((busy, uploads(&lab, POD, 20)));
    assert_eq!(lines_in_the_end(&mut daemon, "Cannot accept"), 1);
}

/// The kernel does not keep for closed connections what it keeps for open ones only up to the limit,
/// whatever the last answer is.
#[test]
fn answers_that_are_not_read_count_as_connections() {
    let body = "x".repeat(30_000);
    let request = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 30000\r\n\r\n{body}");
    let last = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let long = request.replace("\r\nHost", "\r\nConnection: close\r\nHost");
    for requests in [long, request.clone() + last, request + "nonsense\r\n\r\n"] {
        let lab = Lab::new();
        let _daemon = lab.start(&["--max-connections", "32"]);
        let _clients: Vec<_> = (0..100)
            .map(|_| {
                let mut stream = lab.client.connect_narrow(POD, 2048);
                stream.write_all(requests.as_bytes()).unwrap();
                stream
            })
            .collect();
        let untaken = || lab.node.run("ss -Htn state fin-wait-1").lines().count();
        let most = 32;
        wait_until("the server has answered as many as it may", || {
            untaken() >= most
        });
        let end = Instant::now() + Duration::from_secs(1);
        while Instant::now() < end {
            assert_eq!(untaken(), most);
        }
    }
}

/// A close(2) with unread data, or data that arrives after one, is a reset (RFC 9112, 9.6).
#[test]
fn a_client_that_sends_more_while_it_takes_its_last_response_gets_all_of_it() {
    let lab = Lab::new();
    let _daemon = lab.start(&[]);
    let mut client = Conversation(BufReader::new(lab.client.connect_narrow(POD, 2048)));
    let body = "x".repeat(30_000);
    client.send(format!(
        "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 30000\r\n\r\n{body}"
    ));
    wait_until("the server has shut down its side", || {
        lab.node.run("ss -Htn state fin-wait-1").lines().count() == 1
    });
    client.send(REQUEST);
    assert!(client.answer().text().ends_with(&body));
}

/// Its end is not waited for: the client may keep the connection.
#[test]
fn a_connection_gives_its_place_back_once_its_last_response_is_acknowledged() {
    let lab = Lab::new();
    let _daemon = lab.start(&["--max-connections", "1"]);
    let mut client = Conversation(BufReader::new(lab.client.connect_narrow(POD, 2048)));
    let body = "x".repeat(30_000);
    client.send(format!(
        "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 30000\r\n\r\n{body}"
    ));
    wait_until("the server has shut down its side", || {
        lab.node.run("ss -Htn state fin-wait-1").lines().count() == 1
    });
    assert!(client.answer().text().ends_with(&body));
    let watch = Stopwatch::start();
    lab.client.talk(POD).ask(REQUEST);
    let waited = watch.used();
    assert!(waited < IDLE_AFTER / 2, "{waited:?}");
    drop(client);
}

/// Keeps the server from starting threads until dropped.
fn forbid_threads(daemon: &Daemon) -> Strace {
    Strace::failing(daemon.server(), "clone", "EAGAIN")
}

#[test]
fn without_new_threads_clients_wait_for_those_there_are_until_some_can_be_started() {
    let lab = Lab::new();
    let mut daemon = lab.start(&["--cidr", CIDRS]);
    let without_threads = forbid_threads(&daemon);
    let busy = upload(&lab, POD);
    daemon.wait_for("WARN  Cannot start a thread, clients wait: Resource temporarily unavailable");
    let mut clients = asking(&lab, POD, 50);
    clients[0].has_no_answer_yet();
    drop(busy);
    are_answered(clients);
    drop(without_threads);
    let busy = [uploads(&lab, POD, 5), uploads(&lab, POD6, 5)];
    drop(busy);
    assert_eq!(lines_in_the_end(&mut daemon, "Cannot start a thread"), 1);
}

#[test]
fn a_stop_starts_the_thread_that_clients_wait_for_once_it_can() {
    let lab = Lab::new();
    let mut daemon = lab.start(&["--cidr", CIDRS]);
    let without_threads = forbid_threads(&daemon);
    let busy = upload(&lab, POD);
    daemon.wait_for("WARN  Cannot start a thread, clients wait: ");
    let clients = [POD, POD6].map(|address| asking(&lab, address, 3));
    daemon.signal(Signal::SIGTERM);
    daemon.wait_for("Stopping");
    drop(without_threads);
    are_answered(clients.into_iter().flatten());
    drop(busy);
    assert_eq!(daemon.wait().code(), Some(0));
    daemon.wait_for("Served 6 requests on 7 connections");
}

#[test]
fn without_new_threads_an_idle_connection_gives_way_to_the_next_client() {
    for (first, next) in [(POD, POD), (POD, POD6), (POD6, POD), (POD6, POD6)] {
        let lab = Lab::new();
        let daemon = lab.start(&["--cidr", CIDRS]);
        let _without_threads = forbid_threads(&daemon);
        let mut idle = lab.open(first, 1);
        assert!(lab.client.get(next, "/").contains("Request received"));
        idle[0].ends();
    }
}

#[test]
fn at_the_limit_clients_of_both_families_are_served_by_a_few_threads() {
    let lab = Lab::new();
    let daemon = lab.start(&["--cidr", CIDRS, "--max-connections", "2"]);
    let at_first = daemon.threads();
    let most = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..40)
            .map(|number| [POD, POD6][number % 2])
            .map(|address| {
                let lab = &lab;
                scope.spawn(move || {
                    for _ in 0..50 {
                        assert!(lab.client.get(address, "/").contains("Request received"));
                    }
                })
            })
            .collect();
        let mut most = 0;
        while !clients.iter().all(|client| client.is_finished()) {
            most = most.max(daemon.threads());
        }
        most
    });
    // One more may be about to end.
    assert!(most <= at_first + 3, "{at_first} threads, and then {most}");
}
