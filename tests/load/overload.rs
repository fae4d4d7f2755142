//! Exhausted limits: connections, open files and threads.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::lab::http_client::{HttpClient, REQUEST};
use crate::lab::kubelet::Probe;
use crate::lab::manifest::Pod;
use crate::lab::stopwatch::Stopwatch;
use crate::lab::strace::Strace;
use crate::lab::{CIDRS, Daemon, Lab, PATIENCE, POD, POD6, PROGRAM, wait_until};
use crate::pressure::{ABSENT, LAST_REQUEST, add_other_client};
use nix::sys::signal::Signal;
use tproxy_pod::server::deadlines::{DEADLINES, IDLE_AFTER};
use tproxy_pod::server::parked::ALLOWANCE;

/// A connection that waits for the body of a request.
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

/// A connection that never gives way.
fn busy(lab: &Lab) -> TcpStream {
    lab.client.connect_busy(POD)
}

fn busy_connections(lab: &Lab, count: usize) -> Vec<TcpStream> {
    (0..count).map(|_| busy(lab)).collect()
}

/// Clients that have sent a request.
fn requesting(lab: &Lab, address: &str, count: usize) -> Vec<HttpClient> {
    let ask = |_| {
        let mut client = lab.client.http(address);
        client.send("GET / HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n");
        client
    };
    (0..count).map(ask).collect()
}

/// Reads all responses at the same time: after the last one, the server waits up to a second for a close.
fn assert_answered(clients: impl IntoIterator<Item = HttpClient>) {
    std::thread::scope(|scope| {
        for mut client in clients {
            scope.spawn(move || assert_eq!(client.response().status, "200 OK"));
        }
    });
}

/// Stops the program, and counts the log lines with a text.
fn stop_and_count_lines(daemon: &mut Daemon, text: &str) -> usize {
    assert_eq!(daemon.stop(), Some(0));
    let log = daemon.log();
    log.lines().filter(|line| line.contains(text)).count()
}

#[test]
fn the_next_client_waits_for_a_connection_to_end() {
    for address in [POD, POD6] {
        let lab = Lab::new();
        let mut daemon = lab.start(&["--cidr", CIDRS, "--max-connections", "4"]);
        let mut busy = busy_connections(&lab, 4);
        let mut next = lab.client.http(address);
        next.send(REQUEST);
        next.assert_no_response_yet();
        busy.pop();
        assert_eq!(next.response().status, "200 OK");
        drop((busy, next));
        let line = "WARN  The limit of 4 connections is reached: clients wait";
        assert_eq!(stop_and_count_lines(&mut daemon, line), 1);
    }
}

#[test]
fn the_nodes_probes_do_not_wait_for_clients() {
    let lab = Lab::new();
    let _daemon = lab.start(&["--cidr", CIDRS, "--max-connections", "4"]);
    let _busy = busy_connections(&lab, 4);
    for address in ["127.0.0.1:1", "[::1]:1"] {
        let answer = lab.node.get(address, "/healthz");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    }
    // All connections are still in use.
    let mut next = lab.client.http(POD6);
    next.send(REQUEST);
    next.assert_no_response_yet();
}

/// As many clients as the limit allows, which all ask again and again, and twice as many threads as processors
/// that do nothing else than use them.
#[test]
fn a_busy_server_on_a_busy_node_answers_every_liveness_probe_in_time() {
    const CLIENTS: usize = 128;
    let pod = Pod::read();
    let lab = Lab::new();
    let limit = CLIENTS.to_string();
    let _daemon = lab.start(&["--cidr", CIDRS, "--max-connections", &limit]);
    let mut clients = lab.open_connections(POD, CLIENTS / 2);
    clients.extend(lab.open_connections(POD6, CLIENTS / 2));
    let is_over = AtomicBool::new(false);
    let answered = AtomicUsize::new(0);
    let slowest = thread::scope(|scope| {
        let _ends = SetAtEnd(&is_over);
        for mut client in clients {
            let (is_over, answered) = (&is_over, &answered);
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    assert_eq!(client.request(REQUEST).status, "200 OK");
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for _ in 0..2 * thread::available_parallelism().unwrap().get() {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        ["127.0.0.1:1", "[::1]:1"].map(|address| {
            let probe = Probe {
                address: address.to_owned(),
                ..pod.probe("livenessProbe")
            };
            let takes = |_| {
                let start = Instant::now();
                assert!(
                    probe.succeeds(&lab.node),
                    "{address}: {:?}",
                    start.elapsed()
                );
                start.elapsed()
            };
            (0..50).map(takes).max().unwrap()
        })
    });
    println!("{answered:?} requests; the slowest probes took {slowest:?}");
    assert!(answered.into_inner() > CLIENTS);
}

/// Sets a flag when it is dropped, also by a panic.
struct SetAtEnd<'f>(&'f AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn an_idle_connection_is_evicted_for_the_next_client_and_a_busy_one_is_not() {
    for address in [POD, POD6] {
        let is_shown = (0..10).any(|_| only_an_idle_connection_is_evicted(address));
        assert!(
            is_shown,
            "the test paused for {ALLOWANCE:?} in each of ten attempts"
        );
    }
}

/// Returns whether it is shown: if the test itself is paused, its busy connections become idle.
fn only_an_idle_connection_is_evicted(address: &str) -> bool {
    let lab = Lab::new();
    let daemon = lab.start(&["--cidr", CIDRS, "--max-connections", "4"]);
    let mut asked = Instant::now();
    let mut busy = lab.open_connections(POD, 2);
    busy.extend(lab.open_connections(POD6, 2));
    let mut all_stay = |busy: &mut [HttpClient]| {
        let before = std::mem::replace(&mut asked, Instant::now());
        let stay = busy.iter_mut().all(is_answered);
        assert!(
            stay || before.elapsed() >= ALLOWANCE,
            "a busy connection gave way"
        );
        stay
    };
    std::thread::scope(|scope| {
        let next = scope.spawn(|| lab.client.get(address, "/"));
        let mut next_waits = |busy: &mut [HttpClient]| {
            // If the test paused, a busy connection may have been evicted for the next client.
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
        // A round is many times shorter than the time until a connection is idle.
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
            idle.assert_closed();
        }
        stay
    })
}

/// Sends a request on a connection, which may be closed; returns whether it is answered.
fn is_answered(connection: &mut HttpClient) -> bool {
    let stream = &mut connection.0;
    if stream.get_mut().write_all(REQUEST.as_bytes()).is_err() {
        return false;
    }
    loop {
        match stream.fill_buf() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Ok(b"") | Err(_) => return false,
            Ok(_) => return connection.response().status == "200 OK",
        }
    }
}

#[test]
fn connections_without_a_request_are_evicted_for_a_client() {
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
fn one_idle_connection_is_evicted_for_one_client() {
    let lab = Lab::new();
    let mut daemon = lab.start(&["--max-connections", "8"]);
    let idle = lab.open_connections(POD, 8);
    let next = lab.open_connections(POD, 1);
    let ended = |connection: &HttpClient| {
        let stream = connection.0.get_ref();
        stream.set_nonblocking(true).unwrap();
        stream.peek(&mut [0]).is_ok()
    };
    let ends: Vec<_> = idle.iter().filter(|it| ended(it)).collect();
    assert_eq!(ends.len(), 1);
    assert!(!ended(&next[0]));
    drop((idle, next));
    assert_eq!(stop_and_count_lines(&mut daemon, "Received request"), 9);
}

/// Asserts that clients are answered before a connection that does not give way ends.
fn assert_answered_soon(lab: &Lab, count: usize) {
    let watch = Instant::now();
    assert_answered(requesting(lab, POD, count));
    let waited = watch.elapsed();
    assert!(waited < DEADLINES.response / 3, "{waited:?}");
}

#[test]
fn idle_connections_give_way_although_most_are_of_a_client_that_does_not_read() {
    let lab = Lab::new();
    add_other_client(&lab);
    let _daemon = lab.start(&["--max-connections", "32"]);
    let _idle = lab.open_connections(&format!("{ABSENT}:8180"), 15);
    let _unread = busy_connections(&lab, 17);
    assert_answered_soon(&lab, 1);
}

/// So many clients wait that less time is allowed within a request.
#[test]
fn idle_connections_give_way_although_a_client_has_gone_in_its_first_request() {
    for waiting in [1, 16] {
        let lab = Lab::new();
        let _daemon = lab.start(&["--max-connections", "8"]);
        let _idle = lab.open_connections(POD, 7);
        let mut gone = lab.client.http_from("192.0.2.2:5555", POD);
        let rules = "add table ip gone\n\
            add chain ip gone input { type filter hook input priority 0; }\n\
            add rule ip gone input tcp dport 5555 drop\n";
        assert!(lab.client.feed("nft -f -", rules).status.success());
        let head =
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n";
        gone.send(head);
        wait_until("100 Continue is not acknowledged", || {
            let unacknowledged = lab.node.run("ss -Htn state established dport = :5555");
            unacknowledged.split_whitespace().nth(1) == Some("25")
        });
        assert_answered_soon(&lab, waiting);
    }
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
    let busy = busy_connections(&lab, 30);
    let clients = requesting(&lab, POD, 200);
    for _ in 0..20 {
        for address in ["127.0.0.1:1", "[::1]:1"] {
            assert!(lab.node.get(address, "/healthz").ends_with("ok\n"));
        }
    }
    drop(busy);
    assert_answered(clients);
    assert_eq!(stop_and_count_lines(&mut daemon, "Cannot accept"), 0);
}

/// Sets the server's `RLIMIT_NOFILE`.
fn allow_files(daemon: &Daemon, soft_limit: &str) {
    let limit = format!("--nofile={soft_limit}:");
    let server = daemon.server().to_string();
    let status = Command::new("prlimit")
        .args(["--pid", &server, &limit])
        .status();
    assert!(status.unwrap().success());
}

/// Sets the server's `RLIMIT_NOFILE` to allow one more file.
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
    // The limit is above the next descriptor, the lowest free one (open(2)).
    allow_files(daemon, &(next + 1).to_string());
}

#[test]
fn with_one_file_left_clients_of_both_families_are_served_one_after_the_other() {
    let lab = Lab::new();
    let daemon = lab.start(&["--cidr", CIDRS]);
    allow_one_file(&daemon);
    let clients = [POD, POD6, POD, POD6].map(|address| requesting(&lab, address, 20));
    assert_answered(clients.into_iter().flatten());
}

#[test]
fn with_one_file_left_an_idle_connection_is_evicted_for_the_next_client() {
    for (first, next) in [(POD, POD), (POD, POD6), (POD6, POD), (POD6, POD6)] {
        let lab = Lab::new();
        let daemon = lab.start(&["--cidr", CIDRS]);
        allow_one_file(&daemon);
        let mut idle = lab.open_connections(first, 1);
        assert!(lab.client.get(next, "/").contains("Request received"));
        idle[0].assert_closed();
    }
}

/// Idle connections, which may be evicted.
fn idle(lab: &Lab, daemon: &Daemon, count: usize) -> Vec<HttpClient> {
    let connections = lab.open_connections(POD, count);
    wait_until("all are idle", || daemon.idle_connections() == count);
    connections
}

#[test]
fn a_file_that_is_free_again_evicts_no_connection() {
    let lab = Lab::new();
    let daemon = lab.start(&["--cidr", CIDRS]);
    let mut idle = idle(&lab, &daemon, 5);
    // Each thread fails once; after that, a descriptor is free.
    let full = Strace::failing(daemon.server(), "accept4", "EMFILE:when=1");
    assert_answered(requesting(&lab, POD, 1));
    daemon
        .wait_for("WARN  Cannot accept a connection, clients wait: No file descriptors available");
    drop(full);
    assert!(idle.iter_mut().all(is_answered));
}

#[test]
fn a_shortage_that_no_eviction_ends_evicts_no_connection() {
    for error in ["ENFILE", "ENOMEM", "EPERM"] {
        let lab = Lab::new();
        let daemon = lab.start(&["--cidr", CIDRS]);
        let mut idle = idle(&lab, &daemon, 5);
        let short = Strace::failing(daemon.server(), "accept4", &format!("{error}:when=1..20"));
        assert_answered(requesting(&lab, POD, 1));
        daemon.wait_for("WARN  Cannot accept a connection, clients wait: ");
        drop(short);
        assert!(idle.iter_mut().all(is_answered), "{error}");
    }
}

/// accept(2) returns errors that are pending on the new socket.
#[test]
fn a_connection_that_is_aborted_before_it_is_accepted_is_no_shortage_of_files() {
    let lab = Lab::new();
    let mut daemon = lab.start(&["--cidr", CIDRS]);
    let aborted = Strace::failing(daemon.server(), "accept4", "ECONNABORTED:when=1..5");
    for address in [POD, POD6] {
        assert_answered(requesting(&lab, address, 20));
    }
    drop(aborted);
    assert_eq!(stop_and_count_lines(&mut daemon, "Cannot accept"), 0);
}

#[test]
fn a_stop_without_free_files_waits_for_queued_clients() {
    let lab = Lab::new();
    let mut daemon = lab.start(&["--cidr", CIDRS]);
    allow_one_file(&daemon);
    let busy = busy(&lab);
    let clients = [POD, POD6].map(|address| requesting(&lab, address, 5));
    daemon.wait_for("WARN  Cannot accept a connection, clients wait: ");
    daemon.signal(Signal::SIGTERM);
    daemon.wait_for("Stopping");
    drop(busy);
    assert_answered(clients.into_iter().flatten());
    assert_eq!(daemon.wait().code(), Some(0));
    daemon.wait_for("Served 11 requests on 11 connections");
}

/// Clients that wait because the server may not open another file.
fn exhaust_files(lab: &Lab, daemon: &Daemon) -> Vec<HttpClient> {
    allow_files(daemon, "16");
    let clients = requesting(lab, POD, 20);
    daemon
        .wait_for("WARN  Cannot accept a connection, clients wait: No file descriptors available");
    clients
}

#[test]
fn without_files_clients_wait_until_connections_end() {
    let lab = Lab::new();
    let mut daemon = lab.start(&["--cidr", CIDRS]);
    let busy = busy_connections(&lab, 20);
    let clients = exhaust_files(&lab, &daemon);
    drop(busy);
    assert_answered(clients);
    assert_answered(requesting(&lab, POD, 20));
    assert_eq!(stop_and_count_lines(&mut daemon, "Cannot accept"), 1);
}

#[test]
fn without_files_clients_wait_until_more_are_allowed() {
    let lab = Lab::new();
    let mut daemon = lab.start(&["--cidr", CIDRS]);
    let busy = busy_connections(&lab, 20);
    let clients = exhaust_files(&lab, &daemon);
    allow_files(&daemon, "1000");
    assert_answered(clients);
    drop((busy, uploads(&lab, POD, 20)));
    assert_eq!(stop_and_count_lines(&mut daemon, "Cannot accept"), 1);
}

#[test]
fn without_files_an_idle_connection_is_evicted_for_a_probe() {
    let lab = Lab::new();
    let daemon = lab.start(&[]);
    let _idle = lab.open_connections(POD, 20);
    allow_files(&daemon, "16");
    assert!(lab.node.get("127.0.0.1:1", "/healthz").ends_with("ok\n"));
}

/// Closed connections with unread responses count towards the limit, whatever the last response is.
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
        let unacknowledged = || lab.node.run("ss -Htn state fin-wait-1").lines().count();
        let most = 32;
        wait_until("the server has answered as many as it may", || {
            unacknowledged() >= most
        });
        let end = Instant::now() + Duration::from_secs(1);
        while Instant::now() < end {
            assert_eq!(unacknowledged(), most);
        }
    }
}

/// A client that has not read its last response, which is too long for its receive buffer; and the body of the
/// request, with which that response ends.
fn leave_last_response_unread(lab: &Lab) -> (HttpClient, String) {
    let mut client = HttpClient(BufReader::new(lab.client.connect_narrow(POD, 2048)));
    let body = "x".repeat(30_000);
    client.send(format!(
        "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 30000\r\n\r\n{body}"
    ));
    wait_until("the server has shut down its side", || {
        lab.node.run("ss -Htn state fin-wait-1").lines().count() == 1
    });
    (client, body)
}

/// close(2) with unread data, or data that arrives after it, causes a RST (RFC 9112, 9.6).
#[test]
fn a_client_that_sends_more_while_it_reads_its_last_response_gets_all_of_it() {
    let lab = Lab::new();
    let _daemon = lab.start(&[]);
    let (mut client, body) = leave_last_response_unread(&lab);
    client.send(REQUEST);
    assert!(client.response().text().ends_with(&body));
}

/// Number of connections whose client sends an empty line behind its last request, and receives nothing. The line
/// may arrive between the response and close(2).
fn without_response(lab: &Lab, count: usize) -> usize {
    let is_without = |_: &usize| {
        let mut client = lab.client.connect(POD).unwrap();
        client.set_nodelay(true).unwrap();
        client.write_all(LAST_REQUEST).unwrap();
        // Fails with EPIPE if the server has closed the connection.
        let _ = client.write_all(b"\r\n");
        !matches!(client.read(&mut [0; 100]), Ok(1..))
    };
    (0..count).filter(is_without).count()
}

#[test]
fn a_client_that_sends_more_behind_its_last_request_gets_the_response() {
    let lab = Lab::new();
    let _daemon = lab.start(&[]);
    let lost: usize = thread::scope(|scope| {
        let threads = [(); 24].map(|()| scope.spawn(|| without_response(&lab, 100)));
        threads.map(|thread| thread.join().unwrap()).iter().sum()
    });
    assert_eq!(lost, 0);
}

/// The server does not wait for the client's close.
#[test]
fn a_connection_is_released_once_its_last_response_is_acknowledged() {
    let lab = Lab::new();
    let _daemon = lab.start(&["--max-connections", "1"]);
    let (mut client, body) = leave_last_response_unread(&lab);
    assert!(client.response().text().ends_with(&body));
    let watch = Stopwatch::start();
    lab.client.http(POD).request(REQUEST);
    let waited = watch.used();
    assert!(waited < IDLE_AFTER / 2, "{waited:?}");
    drop(client);
}

/// Makes clone(2) fail in the server until dropped.
fn fail_clone(daemon: &Daemon) -> Strace {
    Strace::failing(daemon.server(), "clone", "EAGAIN")
}

#[test]
fn without_new_threads_clients_wait_for_existing_ones() {
    let lab = Lab::new();
    let mut daemon = lab.start(&["--cidr", CIDRS]);
    let failing = fail_clone(&daemon);
    let busy = busy(&lab);
    daemon.wait_for("WARN  Cannot start a thread, clients wait: Resource temporarily unavailable");
    let mut clients = requesting(&lab, POD, 50);
    clients[0].assert_no_response_yet();
    drop(busy);
    assert_answered(clients);
    drop(failing);
    let busy = [uploads(&lab, POD, 5), uploads(&lab, POD6, 5)];
    drop(busy);
    assert_eq!(
        stop_and_count_lines(&mut daemon, "Cannot start a thread"),
        1
    );
}

#[test]
fn a_stop_starts_the_thread_that_clients_wait_for_once_it_can() {
    let lab = Lab::new();
    let mut daemon = lab.start(&["--cidr", CIDRS]);
    let failing = fail_clone(&daemon);
    let busy = busy(&lab);
    daemon.wait_for("WARN  Cannot start a thread, clients wait: ");
    let clients = [POD, POD6].map(|address| requesting(&lab, address, 3));
    daemon.signal(Signal::SIGTERM);
    daemon.wait_for("Stopping");
    drop(failing);
    assert_answered(clients.into_iter().flatten());
    drop(busy);
    assert_eq!(daemon.wait().code(), Some(0));
    daemon.wait_for("Served 7 requests on 7 connections");
}

#[test]
fn without_new_threads_an_idle_connection_is_evicted_for_the_next_client() {
    for (first, next) in [(POD, POD), (POD, POD6), (POD6, POD), (POD6, POD6)] {
        let lab = Lab::new();
        let daemon = lab.start(&["--cidr", CIDRS]);
        let _without_threads = fail_clone(&daemon);
        let mut idle = lab.open_connections(first, 1);
        assert!(lab.client.get(next, "/").contains("Request received"));
        idle[0].assert_closed();
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

/// Requests on connections of their own, one after the other, until `is_over`; returns their number.
fn request_again_and_again(
    lab: &Lab,
    address: &str,
    is_over: impl Fn(usize) -> bool + Sync,
) -> usize {
    lab.client.enter(|| {
        let mut answered = 0;
        while !is_over(answered) {
            let mut client = TcpStream::connect(address).unwrap();
            client.set_read_timeout(Some(*PATIENCE)).unwrap();
            client
                .write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                .unwrap();
            let mut response = String::new();
            client.read_to_string(&mut response).unwrap();
            assert!(response.starts_with("HTTP/1.1 200 OK"), "{response}");
            answered += 1;
        }
        answered
    })
}

/// Requests of a flood for each one beside it: as many as its clients, if all are served in turn.
const MOST: usize = 64;

#[test]
fn at_the_limit_a_flood_of_one_family_does_not_keep_the_other_waiting() {
    for (flooded, other) in [(POD, POD6), (POD6, POD)] {
        let lab = Lab::new();
        let daemon = lab.start(&["--cidr", CIDRS, "--max-connections", "1"]);
        let is_over = &AtomicBool::new(false);
        let (flood, beside) = thread::scope(|scope| {
            let _ends = SetAtEnd(is_over);
            let flood =
                || request_again_and_again(&lab, flooded, |_| is_over.load(Ordering::Relaxed));
            let flood: Vec<_> = (0..16).map(|_| scope.spawn(flood)).collect();
            daemon.wait_for("connections is reached");
            let beside = request_again_and_again(&lab, other, |answered| answered == 200);
            is_over.store(true, Ordering::Relaxed);
            let flood = flood.into_iter().map(|client| client.join().unwrap());
            (flood.sum::<usize>(), beside)
        });
        println!("{flood} requests of the flood, {beside} beside it");
        assert!(flood <= MOST * beside, "{flood}");
    }
}
