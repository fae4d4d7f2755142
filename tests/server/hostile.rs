//! Slow, lost and hostile clients: each ends within its deadline, with one log line, and holds no resource.

use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::net::{SocketAddrV4, TcpStream};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::lab::http_client::HttpClient;
use crate::lab::stopwatch::{Stopwatch, TOLERANCE};
use crate::lab::{
    CIDRS, Daemon, Lab, PATIENCE, POD, POD6, between, peak_memory, resident_memory, wait_until,
};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrIn, send, sendto, setsockopt, socket,
    sockopt,
};
use tproxy_pod::server::deadlines::DEADLINES;

const GET: &str = "GET /here HTTP/1.1\r\nHost: a\r\n\r\n";

/// Longer than every deadline.
const LONG: Duration = Duration::from_secs(40);

/// A request whose echo contains 64 KiB of content, its head and its first lines.
fn request_with_long_echo() -> Vec<u8> {
    let content = "x".repeat(64 * 1024);
    let length = content.len();
    format!("POST /long HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{content}").into()
}

/// Closes a connection with a RST, even with data in flight.
fn reset(connection: HttpClient) {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(connection.0.get_ref(), sockopt::Linger, &linger).unwrap();
}

/// Waits for the log line of a lost client, and returns its reason.
fn lost(daemon: &Daemon, client: &str) -> String {
    let line = daemon.wait_for(&format!("Lost request : client={client} "));
    let (_, reason) = line.split_once(" reason=\"").unwrap();
    reason.split_once('"').unwrap().0.to_owned()
}

/// Numbers of the server's descriptors and threads.
fn resources(daemon: &Daemon) -> [usize; 2] {
    let server = daemon.server();
    ["fd", "task"].map(|kind| {
        let entries = std::fs::read_dir(format!("/proc/{server}/{kind}")).unwrap();
        entries.count()
    })
}

/// Waits until the server has no more descriptors and threads than before.
fn wait_until_released(daemon: &Daemon, before: [usize; 2]) {
    wait_until("descriptors and threads are given back", || {
        resources(daemon)
            .iter()
            .zip(before)
            .all(|(now, before)| *now <= before)
    });
}

/// Incomplete requests, after which clients close.
const UNFINISHED: &[(&str, &str)] = &[
    ("G", "head"),
    ("GET / HTTP/1.1\r\nHost: a\r\n", "head"),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n",
        "body",
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhello",
        "body",
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n40000000\r\nx",
        "body",
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
        "body",
    ),
];

/// Clients end their connections in incomplete requests, by `leave`. Asserts that each is lost for `reason`,
/// with one log line and no response, and that all resources are released.
fn assert_lost(leave: fn(HttpClient), reason: &str) {
    let lab = Lab::new();
    let mut daemon = lab.start(&["--cidr", CIDRS]);
    let before = resources(&daemon);
    let mut clients = Vec::new();
    for (begin, part) in UNFINISHED {
        for (host, address) in [("192.0.2.2", POD), ("[2001:db8:1::2]", POD6)] {
            // Distinct ports identify a client in the log; the kernel may assign one twice.
            let from = format!("{host}:{}", 20_000 + clients.len());
            let mut connection = lab.client.http_from(&from, address);
            connection.send(GET);
            assert_eq!(connection.response().status, "200 OK");
            connection.send(begin);
            let client = connection.client();
            connection.assert_no_response_yet();
            leave(connection);
            let expected = format!("the {part} is not complete: {reason}");
            assert_eq!(lost(&daemon, &client), expected, "{begin}");
            clients.push(client);
        }
    }
    wait_until_released(&daemon, before);
    daemon.stop();
    let log = daemon.log();
    for client in clients {
        let lines = log.matches(&format!("client={client} ")).count();
        assert_eq!(lines, 2, "one for each request: {log}");
    }
}

#[test]
fn a_reset_in_a_request_is_one_line_and_leaves_nothing() {
    assert_lost(reset, "Connection reset by peer");
}

#[test]
fn a_close_in_a_request_is_one_line_and_leaves_nothing() {
    let leave = |mut connection: HttpClient| {
        connection.shutdown_write();
        connection.assert_closed();
    };
    assert_lost(leave, "the client closed the connection");
}

/// Sends requests until the server stops reading, because it waits in the middle of a response.
fn send_until_blocked(connection: &HttpClient) {
    let mut stream = connection.0.get_ref();
    let patience = stream.write_timeout().unwrap();
    stream
        .set_write_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    while stream.write_all(&request_with_long_echo()).is_ok() {}
    stream.set_write_timeout(patience).unwrap();
}

#[test]
fn a_reset_in_an_answer_is_one_line_and_leaves_nothing() {
    let lab = Lab::new();
    let mut daemon = lab.start(&[]);
    let before = resources(&daemon);
    let connection = lab.client.http(POD);
    let client = connection.client();
    send_until_blocked(&connection);
    reset(connection);
    let reason = lost(&daemon, &client);
    assert!(
        reason.starts_with("the response could not be sent: "),
        "{reason}"
    );
    wait_until_released(&daemon, before);
    daemon.stop();
    assert_eq!(daemon.log().matches("Lost request").count(), 1);
}

/// Data after the last request is not read, but causes no RST: old clients send an empty line after a body (RFC
/// 9112, 2.2).
#[test]
fn the_last_response_is_complete_whatever_follows_its_request() {
    let lab = Lab::new();
    let daemon = lab.start(&[]);
    let request = String::from_utf8(request_with_long_echo()).unwrap();
    let request = request.replace("\r\nHost", "\r\nConnection: close\r\nHost");
    for behind in ["", "\r\n", GET] {
        let mut connection = HttpClient(BufReader::new(lab.client.connect_narrow(POD, 2048)));
        connection.send(&request);
        // The client has not received the whole response, nor the server the later data.
        connection.0.fill_buf().unwrap();
        connection.send(behind);
        let answer = connection.response();
        assert!(answer.text().ends_with("xxx"), "{behind:?}");
        connection.assert_closed();
    }
    wait_until("each is logged as answered", || {
        daemon.log().matches(" status=200 ").count() == 3
    });
}

#[test]
fn a_request_may_come_with_one_byte_a_packet() {
    let lab = Lab::new();
    let _daemon = lab.start(&[]);
    let mut connection = lab.client.http(POD);
    let head = "PUT /slow HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunks = "3;a=\"b\"\r\nabc\r\n03\r\ndef\r\n0;c\r\nX: y\r\n\r\n";
    for request in [format!("\r\n{head}{chunks}"), GET.to_owned()] {
        for byte in request.as_bytes() {
            connection.send([*byte]);
        }
    }
    let first = connection.response();
    assert!(first.text().ends_with(&format!("\n\n{head}abcdef")));
    assert!(
        connection
            .response()
            .text()
            .contains(" destination /here : ")
    );
}

#[test]
fn bytes_that_are_no_text_are_echoed_as_they_came_and_escaped_in_the_log() {
    let lab = Lab::new();
    let mut daemon = lab.start(&[]);
    let mut connection = lab.client.http(POD);
    let request = b"GET /\xff\xc3( HTTP/1.1\r\nHost: a\r\nUser-Agent: \x9b2J\xf0\x9f\r\n\r\n";
    let answer = connection.request(request);
    assert!(answer.content.ends_with(request), "{answer:?}");
    connection.request([request.as_slice(), b"\x9b\0\x1b]0;\x07\n"].concat());
    assert_eq!(connection.response().status, "400 Bad Request");
    daemon.stop();
    let log = daemon.log();
    assert!(log.is_ascii(), "{log:?}");
    let (echoed, refused) = (
        r#" target=/\xff\xc3( version=HTTP/1.1 host="a" user_agent="\x9b2J\xf0\x9f" "#,
        r#" bytes="\x9b\x00\x1b]0;\x07\n""#,
    );
    assert_eq!(log.matches(echoed).count(), 2, "{log}");
    assert_eq!(log.matches(refused).count(), 1, "{log}");
}

#[test]
fn empty_lines_are_counted_however_they_are_cut() {
    let lab = Lab::new();
    let _daemon = lab.start(&[]);
    let mut connection = lab.client.http(POD);
    connection.send("\r\n");
    connection.assert_no_response_yet();
    let answer = connection.request(format!("\r\n{GET}"));
    assert_eq!(answer.status, "400 Bad Request");
    connection.assert_closed();
}

#[test]
fn an_empty_line_does_not_make_an_idle_connection_keep_memory() {
    let lab = Lab::new();
    let daemon = lab.start(&[]);
    let request = [request_with_long_echo(), b"\r\n".to_vec()].concat();
    let before = resident_memory(daemon.server());
    let mut connections: Vec<_> = (0..100).map(|_| lab.client.http(POD)).collect();
    for connection in &mut connections {
        assert_eq!(connection.request(&request).status, "200 OK");
    }
    wait_until("memory is given back", || {
        resident_memory(daemon.server()) < before + (3 << 20)
    });
    for connection in &mut connections {
        assert_eq!(connection.request(GET).status, "200 OK");
    }
}

#[test]
fn urgent_data_is_ignored() {
    let lab = Lab::new();
    let mut daemon = lab.start(&[]);
    let mut connection = lab.client.http(POD);
    let urge = |connection: &HttpClient| {
        let socket = connection.0.get_ref().as_raw_fd();
        assert_eq!(send(socket, b"!", MsgFlags::MSG_OOB), Ok(1));
    };
    let (begin, end) = GET.split_at(10);
    urge(&connection);
    connection.send(begin);
    urge(&connection);
    connection.send(end);
    let answer = connection.response();
    assert_eq!(answer.status, "200 OK");
    assert!(answer.text().ends_with(GET), "{answer:?}");
    urge(&connection);
    connection.shutdown_write();
    connection.assert_closed();
    daemon.stop();
    daemon.wait_for("Served 1 requests on 1 connections");
}

#[test]
fn a_simultaneous_close_loses_no_response() {
    let lab = Lab::new();
    let mut daemon = lab.start(&[]);
    let mut connection = lab.client.http(POD);
    let client = connection.client();
    let has_state = |state: &str| {
        let sockets = lab.node.run("ss -tanH");
        let mut lines = sockets.lines();
        lines.any(|line| line.starts_with(state) && line.contains(&client))
    };
    // The server's FIN is delayed.
    let hold = "table inet hold { chain in { type filter hook input priority 0; \
                tcp flags & fin == fin drop; }; }";
    assert!(lab.client.feed("nft -f -", hold).status.success());
    connection.send(GET.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n"));
    wait_until("the node has ended", || has_state("FIN-WAIT-1"));
    connection.shutdown_write();
    wait_until("both have", || has_state("CLOSING"));
    lab.client.run("nft delete table inet hold");
    assert_eq!(connection.response().status, "200 OK");
    connection.assert_closed();
    daemon.stop();
    daemon.wait_for("Served 1 requests on 1 connections");
    assert!(!daemon.log().contains("Lost request"), "{}", daemon.log());
}

/// Connects with a request in the SYN (TCP Fast Open, RFC 7413).
fn request_in_syn(lab: &Lab) -> HttpClient {
    let flags = MsgFlags::from_bits_retain(libc::MSG_FASTOPEN);
    let stream = lab.client.enter(|| {
        let flag = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Inet, SockType::Stream, flag, None).unwrap();
        let address: SockaddrIn = POD.parse::<SocketAddrV4>().unwrap().into();
        let sent = sendto(socket.as_raw_fd(), GET.as_bytes(), &address, flags);
        assert_eq!(sent, Ok(GET.len()));
        TcpStream::from(socket)
    });
    stream.set_read_timeout(Some(*PATIENCE)).unwrap();
    HttpClient(BufReader::new(stream))
}

#[test]
fn a_request_in_a_syn_is_answered_once() {
    // Without cookies (ip-sysctl.rst); first with TCP Fast Open disabled on the node.
    for (node, counter) in [
        ("0", "TCPFastOpenActiveFail"),
        ("0x603", "TCPFastOpenActive"),
    ] {
        let lab = Lab::new();
        lab.client.sysctl("net.ipv4.tcp_fastopen", "5");
        lab.node.sysctl("net.ipv4.tcp_fastopen", node);
        let mut daemon = lab.start(&[]);
        let mut connection = request_in_syn(&lab);
        assert_eq!(connection.response().status, "200 OK", "{counter}");
        connection.shutdown_write();
        connection.assert_closed();
        assert_eq!(lab.client.counter(counter), 1, "{counter}");
        daemon.stop();
        daemon.wait_for("Served 1 requests on 1 connections");
    }
}

#[test]
fn requests_whose_answers_are_not_read_take_no_memory() {
    let lab = Lab::new();
    let mut daemon = lab.start(&[]);
    lab.client.get(POD, "/");
    let connection = lab.client.http(POD);
    let client = connection.client();
    let mut stream = connection.0.get_ref();
    stream.set_write_timeout(Some(LONG)).unwrap();
    let field = format!("X: {}\r\n\r\n", "y".repeat(1000));
    let request = GET.replace("\r\n\r\n", &format!("\r\n{field}"));
    let before = peak_memory(daemon.server());
    let watch = Stopwatch::start();
    let sent = stream.write_all(request.repeat(10_000).as_bytes());
    assert_eq!(sent.unwrap_err().kind(), ErrorKind::ConnectionReset);
    // The client gets a RST, and waits for no time-out.
    let waited = watch.used();
    assert!(waited < DEADLINES.response * 3 / 2, "{waited:?}");
    let reason = lost(&daemon, &client);
    assert_eq!(
        reason,
        "the response could not be sent: the client was too slow"
    );
    let log = daemon.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains(&client)).collect();
    let [.., last, lost] = lines.as_slice() else {
        panic!("{log}")
    };
    watch.check(
        "the first response that was not read",
        between(last, lost),
        DEADLINES.response,
    );
    let growth = peak_memory(daemon.server()) - before;
    // The kernel counts in batches, and code pages are read on first use.
    assert!(growth < 2 << 20, "{growth} bytes more");
    println!("10,000 requests took {growth} bytes more");
    daemon.stop();
    assert_eq!(daemon.log().matches("Lost request").count(), 1);
}

#[test]
fn a_thousand_clients_that_drip_their_heads_hinder_no_other() {
    let lab = Lab::new();
    let daemon = lab.start(&[]);
    let mut slow: Vec<_> = (0..1000).map(|_| lab.client.http(POD)).collect();
    let beginning = Instant::now();
    let stop = AtomicBool::new(false);
    let longest = thread::scope(|scope| {
        let requests = scope.spawn(|| {
            let mut longest = Duration::ZERO;
            while !stop.load(Ordering::Relaxed) && beginning.elapsed() < LONG {
                let watch = Stopwatch::start();
                assert!(lab.client.get(POD, "/normal").contains("Request received"));
                longest = longest.max(watch.used());
                thread::sleep(Duration::from_millis(100));
            }
            longest
        });
        while beginning.elapsed() < DEADLINES.head - Duration::from_secs(4) {
            for connection in &mut slow {
                connection.send("G");
            }
            thread::sleep(Duration::from_millis(200));
        }
        for connection in &mut slow {
            assert_eq!(connection.response().status, "408 Request Timeout");
            connection.assert_closed();
        }
        stop.store(true, Ordering::Relaxed);
        requests.join().unwrap()
    });
    println!("beside them, an answer took {longest:?} at most");
    assert!(longest < *TOLERANCE, "{longest:?}");
    let line = "status=408 reason=\"the head took too long\"";
    wait_until("there is a line for each", || {
        daemon.log().matches(line).count() == slow.len()
    });
}
