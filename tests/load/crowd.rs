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

/// Time without a request, on a machine that is too busy, after which a client may be evicted: nearly the time for
/// which the kernel waits for a first byte.
const SILENT: Duration = Duration::from_millis(900);

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
    /// Closed without a response, though it was not [`SILENT`]: evicted.
    evicted: usize,
    /// Closed without a response after it was silent for so long: the server need not wait for it.
    late: usize,
    refused: usize,
    timed_out: usize,
}

struct Client {
    stream: TcpStream,
    connected: Instant,
    /// The time without a request, once that is sent.
    silence: Option<Duration>,
    answer: Vec<u8>,
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
        Client {
            stream: TcpStream::from(socket),
            connected: Instant::now(),
            silence: None,
            answer: Vec::new(),
        }
    }

    fn poll_fd(&self) -> PollFd<'_> {
        let awaited = match self.silence {
            None => PollFlags::POLLOUT,
            Some(_) => PollFlags::POLLIN,
        };
        PollFd::new(self.stream.as_fd(), awaited)
    }

    /// Continues after an event; returns the client if it has to wait again.
    fn advance(mut self, outcomes: &mut Outcomes) -> Option<Client> {
        let outcome = match self.try_advance() {
            Ok(true) => &mut outcomes.answered,
            Ok(false) => return Some(self),
            Err(_) if self.silence.is_some_and(|silence| silence >= SILENT) => &mut outcomes.late,
            Err(ErrorKind::UnexpectedEof) => &mut outcomes.evicted,
            Err(
                ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe,
            ) => &mut outcomes.refused,
            Err(kind) => panic!("{kind}"),
        };
        *outcome += 1;
        None
    }

    /// Sends the request, or reads; returns whether the response is complete.
    fn try_advance(&mut self) -> Result<bool, ErrorKind> {
        if self.silence.is_none() {
            if let Some(error) = self.stream.take_error().unwrap() {
                return Err(error.kind());
            }
            self.silence = Some(self.connected.elapsed());
            let sent = self.stream.write_all(REQUEST.as_bytes());
            sent.map_err(|error| error.kind())?;
        }
        match self.stream.read_to_end(&mut self.answer) {
            Ok(0) if self.answer.is_empty() => Err(ErrorKind::UnexpectedEof),
            Ok(_) => {
                let text = std::str::from_utf8(&self.answer).unwrap();
                assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text:?}");
                assert!(text.ends_with("Connection: close\r\n\r\n"), "{text:?}");
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
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
        late,
        refused,
        timed_out,
    } = outcomes;
    println!("ends {answered} {evicted} {late} {refused} {timed_out}");
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
        sum.late += numbers[2];
        sum.refused += numbers[3];
        sum.timed_out += numbers[4];
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
    let spoke_in_time = PROCESSES * CLIENTS - outcomes.late;
    assert_eq!(outcomes.answered, spoke_in_time, "{outcomes:?}");
    assert!(spoke_in_time > PROCESSES * CLIENTS / 2, "{outcomes:?}");
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
