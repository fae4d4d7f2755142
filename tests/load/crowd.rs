//! 20,000 clients that come in the same moment: more than the kernel's queue holds.

use std::io::{BufRead, BufReader, ErrorKind, Lines, Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Child, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use crate::lab::{Lab, POD};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, connect, socket};

/// The numbers of processes and of each one's clients, within the usual limit of open files.
const PROCESSES: usize = 8;
const CLIENTS: usize = 2500;

/// The longest that a client waits for an answer or an error.
const PATIENCE: Duration = Duration::from_secs(60);

/// In the environment of such a process: the address that its clients connect to.
const ROLE: &str = "TPROXY_POD_CROWD";

/// An address that no Pod has.
const ABSENT: &str = "10.244.77.77";

const REQUEST: &str = "GET / HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n";

/// How the connections of clients ended.
#[derive(Debug, Default)]
struct Ends {
    answered: usize,
    /// Before they had sent a request: they were evicted.
    ended: usize,
    refused: usize,
    hung: usize,
}

enum Client {
    Connecting(TcpStream),
    Reading(TcpStream, Vec<u8>),
}

impl Client {
    fn new(address: SocketAddrV4) -> Client {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None).unwrap();
        let begun = connect(socket.as_raw_fd(), &SockaddrIn::from(address));
        assert!(
            matches!(begun, Ok(()) | Err(Errno::EINPROGRESS)),
            "{begun:?}"
        );
        Client::Connecting(TcpStream::from(socket))
    }

    fn waits_for(&self) -> PollFd<'_> {
        match self {
            Client::Connecting(stream) => PollFd::new(stream.as_fd(), PollFlags::POLLOUT),
            Client::Reading(stream, _) => PollFd::new(stream.as_fd(), PollFlags::POLLIN),
        }
    }

    /// Continues after an event; returned if it has to wait again.
    fn go_on(self, ends: &mut Ends) -> Option<Client> {
        match self.try_to_go_on() {
            Ok(Some(client)) => return Some(client),
            Ok(None) => ends.answered += 1,
            Err(ErrorKind::UnexpectedEof) => ends.ended += 1,
            Err(
                ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe,
            ) => ends.refused += 1,
            Err(kind) => panic!("{kind}"),
        }
        None
    }

    fn try_to_go_on(self) -> Result<Option<Client>, ErrorKind> {
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

/// One of the processes: its clients connect when its stdin ends; it prints their outcomes.
fn crowd(address: &str) {
    let address = address.parse().unwrap();
    println!("here");
    std::io::stdin().read_line(&mut String::new()).unwrap();
    let deadline = Instant::now() + PATIENCE;
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| Client::new(address)).collect();
    let mut ends = Ends::default();
    while !clients.is_empty() && Instant::now() < deadline {
        let mut waiting: Vec<_> = clients.iter().map(Client::waits_for).collect();
        poll(&mut waiting, PollTimeout::from(1000u16)).unwrap();
        let moved: Vec<_> = waiting.iter().map(|fd| fd.any().unwrap()).collect();
        clients = clients
            .into_iter()
            .zip(moved)
            .filter_map(|(client, moved)| match moved {
                true => client.go_on(&mut ends),
                false => Some(client),
            })
            .collect();
    }
    ends.hung = clients.len();
    let Ends {
        answered,
        ended,
        refused,
        hung,
    } = ends;
    println!("ends {answered} {ended} {refused} {hung}");
}

/// Starts one of the processes with the code of this test.
fn start(lab: &Lab, address: &str, test: &str) -> (Child, Lines<BufReader<ChildStdout>>) {
    let mut command = lab.client.command("prlimit");
    command
        .arg("--nofile=4096")
        .arg(std::env::current_exe().unwrap());
    command
        .args(["--exact", test, "--nocapture"])
        .env(ROLE, address);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    (child, lines)
}

/// Runs all processes at once; returns the outcomes of their clients.
fn come(lab: &Lab, address: &str, test: &str) -> Ends {
    // Each to another port: among many connections to one, the kernel looks long for a client's port.
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
    let mut sum = Ends::default();
    for (mut process, mut lines) in processes {
        let line = lines
            .find_map(|line| line.unwrap().strip_prefix("ends ").map(str::to_owned))
            .unwrap();
        let numbers: Vec<usize> = line.split(' ').map(|word| word.parse().unwrap()).collect();
        sum.answered += numbers[0];
        sum.ended += numbers[1];
        sum.refused += numbers[2];
        sum.hung += numbers[3];
        assert!(process.wait().unwrap().success());
    }
    sum
}

/// Connects all clients to an address at once, with the kernel's default of SYN cookies.
fn crowd_at(address: &str, queue: &str, test: &str) -> Ends {
    let lab = Lab::new();
    lab.node.sysctl("net.ipv4.tcp_syncookies", "1");
    lab.node.sysctl("net.core.somaxconn", queue);
    let _daemon = lab.start(&["--dport", "8180:8187"]);
    let start = Instant::now();
    let ends = come(&lab, address, test);
    println!("{ends:?} in {:?}", start.elapsed());
    assert!(lab.client.get(POD, "/").contains("Request received"));
    ends
}

#[test]
fn of_20_000_clients_at_once_each_is_answered_or_refused() {
    if let Ok(address) = std::env::var(ROLE) {
        return crowd(&address);
    }
    let name = "crowd::of_20_000_clients_at_once_each_is_answered_or_refused";
    let ends = crowd_at("10.244.0.5", "4096", name);
    assert_eq!(ends.hung, 0, "{ends:?}");
    assert!(ends.answered >= 1024, "{ends:?}");
}

#[test]
fn with_a_longer_queue_none_of_20_000_clients_is_refused() {
    if let Ok(address) = std::env::var(ROLE) {
        return crowd(&address);
    }
    let name = "crowd::with_a_longer_queue_none_of_20_000_clients_is_refused";
    let ends = crowd_at(ABSENT, "32768", name);
    assert_eq!((ends.refused, ends.hung), (0, 0), "{ends:?}");
    assert!(ends.answered >= 10_000, "{ends:?}");
}
