//! Many connections at the same time: how many are served, and what happens to the others.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::lab::http_client::REQUEST;
use crate::lab::manifest::Pod;
use crate::lab::{
    CIDRS, Daemon, Lab, Namespace, POD, POD6, anonymous_memory, peak_memory, resident_memory,
    wait_until, wait_within,
};
use nix::sys::epoll::EpollTimeout;
use tproxy_pod::http::body::MAX_CONTENT;
use tproxy_pod::http::echo::Echo;
use tproxy_pod::http::endpoints::Endpoints;
use tproxy_pod::http::fields::Persistence;
use tproxy_pod::http::head::{Head, HeadScanner};
use tproxy_pod::http::response::{Description, Response};
use tproxy_pod::http::status::Status;
use tproxy_pod::server::acceptor::{Acceptor, ListenerKind, ReadyListener};

#[test]
fn probes_do_not_wait_long_for_silent_connections_of_the_node() {
    let lab = Lab::new();
    let _daemon = lab.start(&["--cidr", CIDRS]);
    let allowed = Pod::read().probe("livenessProbe").shortest_failure() / 2;
    for address in ["127.0.0.1:1", "[::1]:1"] {
        // More than the threads for probes.
        let silent: Vec<_> = (0..12)
            .map(|_| lab.node.connect(address).unwrap())
            .collect();
        let start = Instant::now();
        assert!(lab.node.get(address, "/healthz").ends_with("ok\n"));
        let took = start.elapsed();
        assert!(took < allowed, "{took:?} instead of {allowed:?}");
        drop(silent);
    }
}

#[test]
fn threads_that_served_one_family_serve_the_other() {
    let lab = Lab::new();
    let daemon = lab.start(&["--cidr", CIDRS, "--max-connections", "8"]);
    let at_first = daemon.threads();
    for address in [POD, POD6, POD] {
        let connections = lab.open_connections(address, 8);
        // One for each connection, and one idle. Idle threads may be about to end; a thread that waits for the
        // other family would stay a second.
        wait_within(Duration::from_millis(500), "threads are few", || {
            daemon.threads() <= at_first + 8
        });
        drop(connections);
    }
}

#[test]
fn a_listener_is_ready_for_one_thread_at_a_time_however_many_clients_wait() {
    let here = Namespace::new();
    here.enter(|| {
        let sockets = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [first, second] = [0, 1].map(|at: usize| sockets[at].local_addr().unwrap());
        let acceptor = Acceptor::new(ListenerKind::Transparent, sockets.into()).unwrap();
        let connect = |to| TcpStream::connect(to).unwrap();
        let wait = || acceptor.wait(EpollTimeout::NONE).unwrap();
        let is_idle = || acceptor.wait(EpollTimeout::ZERO).is_none();
        let accept = |ready: &ReadyListener<'_>| ready.accept().unwrap().map(|it| it.listener);
        assert!(is_idle() && acceptor.waiting() == 0);
        let _clients = [connect(first), connect(first)];
        wait_until("a client waits", || acceptor.waiting() > 0);
        let ready = wait();
        assert!(is_idle(), "the second client of the first listener waits");
        let _other = connect(second);
        assert_eq!(accept(&wait()), Some(second), "the other listener is ready");
        assert_eq!(accept(&ready), Some(first));
        drop(ready);
        let ready = wait();
        assert_eq!(accept(&ready), Some(first));
        assert_eq!(accept(&ready), None);
        drop(ready);
        assert!(is_idle() && acceptor.waiting() == 0);
    });
}

#[test]
fn idle_threads_end() {
    let lab = Lab::new();
    let daemon = lab.start(&[]);
    let at_first = daemon.threads();
    let connections = lab.open_connections(POD, 100);
    assert_eq!(daemon.threads(), at_first + 100, "one for each connection");
    drop(connections);
    wait_until("one is left", || daemon.threads() == at_first);
    lab.open_connections(POD, 100);
}

/// Resident memory of both processes, in bytes.
fn memory(daemon: &Daemon) -> u64 {
    let processes = [daemon.guard(), daemon.server()];
    processes.map(resident_memory).into_iter().sum()
}

#[test]
fn idle_connections_cost_little_memory() {
    let lab = Lab::new();
    let daemon = lab.start(&[]);
    assert!(lab.client.get(POD, "/").contains("Request received"));
    let at_start = memory(&daemon);
    // How many pages of the file the kernel maps around a fault depends on its page cache: 0.1 MB more or less.
    assert!(at_start <= 1_900_000, "{at_start} bytes at the start");
    let own: u64 = [daemon.guard(), daemon.server()]
        .map(anonymous_memory)
        .iter()
        .sum();
    assert!(own <= 350_000, "{own} bytes at the start, without the file");
    let mut connections = lab.open_connections(POD, 1000);
    wait_until("idle connections gave memory back", || {
        memory(&daemon) <= 9_000_000
    });
    println!(
        "{at_start} bytes at the start, {own} of its own, {} with them",
        memory(&daemon)
    );
    for connection in &mut connections {
        assert_eq!(connection.request(REQUEST).status, "200 OK");
    }
}

/// A process may have 65,530 mappings (`vm.max_map_count`): with four for each connection, 16,382 connections.
#[test]
fn a_connection_takes_two_mappings_of_memory() {
    let lab = Lab::new();
    let daemon = lab.start(&[]);
    let mappings = || {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", daemon.server())).unwrap();
        maps.lines().count()
    };
    let mut connections = lab.open_connections(POD, 1);
    let with_one = mappings();
    connections.extend(lab.open_connections(POD, 200));
    let more = mappings() - with_one;
    assert!(more >= 2 * 200, "a stack and its guard page: {more}");
    assert!(more <= 2 * 200 + 40, "{more}");
}

/// The scheduling policy of each thread of the server (field 41 of proc_pid_stat(5)).
fn policies(daemon: &Daemon) -> Vec<i32> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.server())).unwrap();
    let policy = |task: PathBuf| {
        let stat = std::fs::read_to_string(task.join("stat")).unwrap();
        // The name, in parentheses, may contain blanks; field 3 follows.
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        fields.split(' ').nth(41 - 3).unwrap().parse().unwrap()
    };
    tasks.map(|task| policy(task.unwrap().path())).collect()
}

#[test]
fn few_of_many_workers_preempt() {
    let lab = Lab::new();
    let daemon = lab.start(&[]);
    let batch = || {
        let policies = policies(&daemon).into_iter();
        policies.filter(|it| *it == libc::SCHED_BATCH).count()
    };
    let mut connections = lab.open_connections(POD, 8);
    assert_eq!(batch(), 0, "the first nine, one of which is idle");
    connections.extend(lab.open_connections(POD, 56));
    // Of 65 workers all but these, the 33rd and the 65th.
    wait_until("54 wait for the core", || batch() == 54);
}

#[test]
fn a_client_that_is_silent_at_first_is_served_when_it_sends_a_request() {
    let lab = Lab::new();
    let daemon = lab.start(&["--cidr", CIDRS]);
    assert_eq!(daemon.idle_connections(), 0);
    let mut clients = [POD, POD6].map(|address| lab.client.http(address));
    wait_until("both are idle", || daemon.idle_connections() == 2);
    for client in &mut clients {
        assert_eq!(client.request(REQUEST).status, "200 OK");
        assert_eq!(client.request(REQUEST).status, "200 OK");
    }
    drop(clients);
    let silent = lab.client.http(POD).client();
    daemon.wait_for(&format!("Connection without a request : client={silent} "));
}

/// Largest memory of a response, in KiB, as in docs/http.md.
const RESPONSE: u64 = 128;
/// Largest memory of a connection in the process, in KiB: used stack, bytes read, response.
const IN_PROCESS: u64 = 24 + 32 + RESPONSE;
/// Largest memory of a connection in the kernel's buffers, in KiB: received and sent.
const IN_BUFFERS: u64 = 128 + 128;
/// Memory of the kernel for a thread and a socket, in KiB.
const IN_KERNEL: u64 = 40;
/// Memory of both processes without connections, in KiB.
const BASE: u64 = 8 * 1024;

/// The media types of an echo.
const TYPES: [&str; 2] = ["text/plain", "application/json"];

/// The longest head, 16 KiB, and the longest content that is echoed, 64 KiB, of one byte each as far as may be.
fn longest_request(accept: &str, in_head: u8, in_content: u8) -> [Vec<u8>; 2] {
    let mut head = b"POST /".to_vec();
    head.extend([in_head; 8000]);
    let length = 64 * 1024;
    let fields = format!("Host: pod\r\nAccept: {accept}\r\nContent-Length: {length}\r\n");
    head.extend(format!(" HTTP/1.1\r\n{fields}Filler: ").bytes());
    head.resize(16 * 1024 - 4, in_head);
    head.extend(b"\r\n\r\n");
    [head, vec![in_content; length]]
}

/// JSON has up to six bytes for one of a request. The head of the response is the longest, too.
#[test]
fn no_request_makes_a_response_that_takes_more_than_its_memory() {
    let address = "[fd00:10:244:ffff:ffff:ffff:ffff:ffff]:65535"
        .parse()
        .unwrap();
    let endpoints = Endpoints::new(address, address);
    let node = "n".repeat(253);
    for accept in TYPES {
        for (in_head, in_content) in [b'h', b'"', 0xff].into_iter().zip([b'c', 1, 0xff]) {
            let [head, content] = longest_request(accept, in_head, in_content);
            let span = HeadScanner::default().scan(&head).unwrap().unwrap();
            let head = Head::parse(&head, &span).unwrap();
            let mut response = Response::default();
            response.clear();
            let echo = Echo::begin(response.content(), &head, &endpoints, Some(&node));
            let shown = content.len().min(echo.room());
            response.content().push(&content[..shown]);
            echo.end(response.content(), MAX_CONTENT);
            let sent = response.finish(Description {
                status: Status::new(511).unwrap(),
                method: b"OPTIONS",
                content: echo.content(),
                persistence: Persistence::KeepAlive,
            });
            assert!(sent.len() > 80 * 1024, "{}", sent.len());
            let used = response.content().len() as u64;
            assert!(
                used <= RESPONSE << 10,
                "{accept} {in_head} {in_content}: {used}"
            );
        }
    }
}

/// Memory of the node's TCP connections by kind, in bytes (`skmem` of ss(8)): `r` is received, `w` sent, `f`
/// allocated in advance, `rb` and `tb` are their limits.
fn socket_memory(lab: &Lab, kinds: &[&str]) -> Vec<u64> {
    let sockets = lab.node.run("ss -tnmH");
    let numbers = sockets.split([',', '(', ')']).filter_map(|part| {
        let digits = part.find(|byte: char| byte.is_ascii_digit())?;
        let (kind, number) = part.split_at(digits);
        kinds.contains(&kind).then(|| number.parse().unwrap())
    });
    numbers.collect()
}

#[test]
fn an_upload_does_not_make_the_kernel_keep_more_of_a_connection() {
    let lab = Lab::new();
    let _daemon = lab.start(&[]);
    let mut connection = lab.client.http(POD);
    let content = vec![b'x'; 32 << 20];
    let length = content.len();
    connection.send(format!(
        "POST / HTTP/1.1\r\nHost: pod\r\nContent-Length: {length}\r\n\r\n"
    ));
    assert_eq!(connection.request(content).status, "200 OK");
    assert_eq!(socket_memory(&lab, &["rb"]), [128 * 1024]);
    assert_eq!(socket_memory(&lab, &["tb"]), [64 * 1024]);
}

#[test]
fn memory_stays_below_the_limit_of_the_manifest_whatever_clients_send_and_do_not_read() {
    let pod = Pod::read();
    let lab = Lab::new();
    let daemon = lab.start(&pod.arguments());
    let requests = TYPES.map(|accept| longest_request(accept, 0xff, 1).concat());
    let mut connections: Vec<_> = (0..1024)
        .map(|at| (lab.client.connect(POD).unwrap(), &requests[at % 2], 0))
        .collect();
    let mut send = || {
        for (connection, request, sent) in &mut connections {
            connection.set_nonblocking(true).unwrap();
            while let Ok(length) = connection.write(&request[*sent..]) {
                *sent = (*sent + length) % request.len();
            }
        }
    };
    let tasks = format!("/proc/{}/task", daemon.server());
    wait_until("each connection has its thread", || {
        send();
        std::fs::read_dir(&tasks).unwrap().count() > 1024
    });
    let mut used = 0;
    let end = Instant::now() + Duration::from_secs(4);
    while Instant::now() < end {
        send();
        let now: u64 = socket_memory(&lab, &["r", "w", "f"]).iter().sum();
        used = used.max(now);
    }
    assert_eq!(daemon.log().matches("Refused").count(), 0);
    let processes = peak_memory(daemon.server()) + peak_memory(daemon.guard());
    println!(
        "processes {} MiB, sockets {} MiB",
        processes >> 20,
        used >> 20
    );
    assert!(used > 50 << 20, "clients send: {used}");
    assert!(processes > 100 << 20, "all are served: {processes}");
    assert!(used >> 10 <= 1024 * IN_BUFFERS, "{used}");
    assert!(processes >> 10 <= 1024 * IN_PROCESS + BASE, "{processes}");
    let open = 1024 * (IN_PROCESS + IN_BUFFERS + IN_KERNEL);
    assert!((open + BASE) << 10 < pod.memory_limit());
}
