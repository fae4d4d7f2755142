//! 20,000 clients that connect at the same time: more than the listen queue holds.

use std::io::{BufRead, BufReader, ErrorKind, Lines, Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Child, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use crate::lab::{Lab, POD};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, connect, socket};

/// Number of processes, and of clients in each, within the usual `RLIMIT_NOFILE`.
const PROCESSES: usize = 8;
const CLIENTS: usize = 2500;

/// Longest time that a client waits for a response or an error.
const PATIENCE: Duration = Duration::from_secs(60);

/// Environment variable of the processes: the address that their clients connect to.
const ADDRESS: &str = "TPROXY_POD_CROWD";

/// An address without a Pod.
const ABSENT: &str = "10.244.77.77";

const REQUEST: &str = "GET / HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n";

/// Numbers of clients, by outcome.
#[derive(Debug, Default)]
struct Outcomes {
    answered: usize,
    /// Closed before the request was sent: evicted.
    evicted: usize,
    refused: usize,
    timed_out: usize,
}

enum Client {
    Connecting(TcpStream),
    Reading(TcpStream, Vec<u8>),
}

impl Client {
    fn new(address: SocketAddrV4) -> Client {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None).unwrap();
        let started = connect(socket.as_raw_fd(), &SockaddrIn::from(address));
        assert!(
            matches!(started, Ok(()) | Err(Errno::EINPROGRESS)),
            "{started:?}"
        );
        Client::Connecting(TcpStream::from(socket))
    }

    fn poll_fd(&self) -> PollFd<'_> {
        match self {
            Client::Connecting(stream) => PollFd::new(stream.as_fd(), PollFlags::POLLOUT),
            Client::Reading(stream, _) => PollFd::new(stream.as_fd(), PollFlags::POLLIN),
        }
    }

    /// Continues after an event; returns the client if it has to wait again.
    fn advance(self, outcomes: &mut Outcomes) -> Option<Client> {
        match self.try_advance() {
            Ok(Some(client)) => return Some(client),
            Ok(None) => outcomes.answered += 1,
            Err(ErrorKind::UnexpectedEof) => outcomes.evicted += 1,
            Err(
                ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe,
            ) => outcomes.refused += 1,
            Err(kind) => panic!("{kind}"),
        }
        None
    }

    fn try_advance(self) -> Result<Option<Client>, ErrorKind> {
        let (mut stream, mut answer) = match self {
            Client::Connecting(mut stream) => {
                if let Some(error) = stream.take_error().unwrap() {
                    return Err(error.kind());
                }
                stream
                    .write_all(REQUEST.as_bytes())
                    .map_err(|error| error.kind())?;
                (stream, Vec::new())
            }
            Client::Reading(stream, answer) => (stream, answer),
        };
        match stream.read_to_end(&mut answer) {
            Ok(0) if answer.is_empty() => Err(ErrorKind::UnexpectedEof),
            Ok(_) => {
                let text = String::from_utf8(answer).unwrap();
                assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text:?}");
                assert!(text.ends_with("Connection: close\r\n\r\n"), "{text:?}");
                Ok(None)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                Ok(Some(Client::Reading(stream, answer)))
            }
            Err(error) => Err(error.kind()),
        }
    }
}

/// Runs one of the processes: its clients connect when stdin ends; it prints their outcomes.
fn run_clients(address: &str) {
    let address = address.parse().unwrap();
    println!("here");
    std::io::stdin().read_line(&mut String::new()).unwrap();
    let deadline = Instant::now() + PATIENCE;
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| Client::new(address)).collect();
    let mut outcomes = Outcomes::default();
    while !clients.is_empty() && Instant::now() < deadline {
        let mut waiting: Vec<_> = clients.iter().map(Client::poll_fd).collect();
        poll(&mut waiting, PollTimeout::from(1000u16)).unwrap();
        let moved: Vec<_> = waiting.iter().map(|fd| fd.any().unwrap()).collect();
        clients = clients
            .into_iter()
            .zip(moved)
            .filter_map(|(client, moved)| match moved {
                true => client.advance(&mut outcomes),
                false => Some(client),
            })
            .collect();
    }
    outcomes.timed_out = clients.len();
    let Outcomes {
        answered,
        evicted,
        refused,
        timed_out,
    } = outcomes;
    println!("ends {answered} {evicted} {refused} {timed_out}");
}

/// Starts one of the processes, with the code of this test.
fn start(lab: &Lab, address: &str, test: &str) -> (Child, Lines<BufReader<ChildStdout>>) {
    let mut command = lab.client.command("prlimit");
    command
        .arg("--nofile=4096")
        .arg(std::env::current_exe().unwrap());
    command
        .args(["--exact", test, "--nocapture"])
        .env(ADDRESS, address);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    (child, lines)
}

/// Runs all processes at the same time; returns the outcomes of their clients.
fn run_processes(lab: &Lab, address: &str, test: &str) -> Outcomes {
    // Each has its own port: the search for a free client port is slow with many connections to one port.
    let address = |number| format!("{address}:{}", 8180 + number);
    let mut processes: Vec<_> = (0..PROCESSES)
        .map(|number| start(lab, &address(number), test))
        .collect();
    for (_, lines) in &mut processes {
        assert!(lines.any(|line| line.unwrap().ends_with("here")));
    }
    for (process, _) in &mut processes {
        drop(process.stdin.take());
    }
    let mut sum = Outcomes::default();
    for (mut process, mut lines) in processes {
        let line = lines
            .find_map(|line| line.unwrap().strip_prefix("ends ").map(str::to_owned))
            .unwrap();
        let numbers: Vec<usize> = line.split(' ').map(|word| word.parse().unwrap()).collect();
        sum.answered += numbers[0];
        sum.evicted += numbers[1];
        sum.refused += numbers[2];
        sum.timed_out += numbers[3];
        assert!(process.wait().unwrap().success());
    }
    sum
}

/// Connects all clients to an address at the same time, with the kernel's defaults. Each is answered.
fn assert_all_are_answered(address: &str, test: &str) {
    let lab = Lab::new();
    lab.node.sysctl("net.ipv4.tcp_syncookies", "1");
    lab.node.sysctl("net.core.somaxconn", "4096");
    let _daemon = lab.start(&["--dport", "8180:8187"]);
    let start = Instant::now();
    let outcomes = run_processes(&lab, address, test);
    let cookies = lab.node.counter("SyncookiesRecv");
    println!(
        "{outcomes:?}, {cookies} by cookie, in {:?}",
        start.elapsed()
    );
    assert!(lab.client.get(POD, "/").contains("Request received"));
    assert_eq!(outcomes.answered, PROCESSES * CLIENTS, "{outcomes:?}");
}

#[test]
fn of_20_000_clients_of_a_pod_at_once_each_is_answered() {
    if let Ok(address) = std::env::var(ADDRESS) {
        return run_clients(&address);
    }
    let name = "crowd::of_20_000_clients_of_a_pod_at_once_each_is_answered";
    assert_all_are_answered("10.244.0.5", name);
}

#[test]
fn of_20_000_clients_of_an_address_without_a_pod_each_is_answered() {
    if let Ok(address) = std::env::var(ADDRESS) {
        return run_clients(&address);
    }
    let name = "crowd::of_20_000_clients_of_an_address_without_a_pod_each_is_answered";
    assert_all_are_answered(ABSENT, name);
}
