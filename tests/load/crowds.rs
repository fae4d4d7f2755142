//! Crowds of misbehaving clients: they hold their connections for as long as they can, and come back at once
//! when they are closed. They run in processes of their own, of one thread each.

use std::io::{BufRead, BufReader, ErrorKind, Lines, Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::process::{Child, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use crate::lab::Lab;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, connect, socket};

/// Most clients of a process, within the usual `RLIMIT_NOFILE`.
const CLIENTS: usize = 2500;

/// Environment variable of the processes: what their clients do, their number and the address of the server.
const CROWD: &str = "TPROXY_POD_CROWDS";

/// Captured ports that crowds connect to, and the argument that captures them.
const PORTS: Range<u16> = 8180..8188;
pub const DPORTS: [&str; 2] = ["--dport", "8180:8187"];

/// Parts of a process's clients that have their turns one after the other, and the interval between. All
/// clients come within 500 ms: of 5,000 silent ones, more than `net.core.somaxconn`, some by SYN cookie. Each
/// client that drips sends a byte in 500 ms.
const PARTS: usize = 50;
const TURN: Duration = Duration::from_millis(10);

/// Time in which all clients of a process have been connected.
const ARRIVAL: Duration = Duration::from_secs(20);

/// The event of stdin; those of clients have their numbers.
const STDIN: u64 = u64::MAX;

/// What the clients of a crowd do.
#[derive(Clone, Copy, Debug)]
pub enum Behaviour {
    /// They never send a byte.
    Silent,
    /// They send one request, and keep the connection.
    Idle,
    /// They ask for delayed responses.
    Delayed,
    /// They send a byte of a request's head at a time.
    DrippingHead,
    /// They send a byte of a request's body at a time.
    DrippingBody,
}

impl Behaviour {
    const ALL: [Behaviour; 5] = [
        Behaviour::Silent,
        Behaviour::Idle,
        Behaviour::Delayed,
        Behaviour::DrippingHead,
        Behaviour::DrippingBody,
    ];

    /// What a client sends when it has connected.
    fn first_bytes(self) -> &'static str {
        match self {
            Behaviour::Silent => "",
            Behaviour::Idle => "GET /idle HTTP/1.1\r\nHost: pod\r\n\r\n",
            Behaviour::Delayed => "GET /delayed HTTP/1.1\r\nHost: pod\r\nX-Echo-Delay: 10s\r\n\r\n",
            Behaviour::DrippingHead => "GET /drip HTTP/1.1\r\nHost: pod\r\nFiller: ",
            Behaviour::DrippingBody => {
                "POST /drip HTTP/1.1\r\nHost: pod\r\nContent-Length: 60000\r\n\r\n"
            }
        }
    }

    /// Whether a client sends a byte now and then.
    pub fn drips(self) -> bool {
        matches!(self, Behaviour::DrippingHead | Behaviour::DrippingBody)
    }
}

/// What has happened to the connections of a crowd.
#[derive(Debug, Default)]
pub struct Events {
    /// Handshakes that ended well.
    pub connected: usize,
    /// Connections that the server closed.
    pub closed: usize,
    /// Those of them that the server closed with a 408.
    pub timed_out: usize,
    /// Connections that were refused or reset.
    pub reset: usize,
}

/// A client. It has no stream while it waits for its next turn to connect.
#[derive(Default)]
struct Client {
    stream: Option<TcpStream>,
    is_connected: bool,
    /// Whether the last response was a 408.
    is_timed_out: bool,
    /// Whether it has been connected at least once.
    has_arrived: bool,
}

/// The clients of one process.
struct Clients {
    kind: Behaviour,
    address: SocketAddrV4,
    epoll: Epoll,
    clients: Vec<Client>,
    arrived: usize,
    events: Events,
}

impl Clients {
    /// As the environment describes them.
    fn new(description: &str) -> Clients {
        let words: Vec<&str> = description.split(' ').collect();
        let [kind, count] = [0, 1].map(|at: usize| words[at].parse::<usize>().unwrap());
        let clients = Clients {
            kind: Behaviour::ALL[kind],
            address: words[2].parse().unwrap(),
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap(),
            clients: std::iter::repeat_with(Client::default)
                .take(count)
                .collect(),
            arrived: 0,
            events: Events::default(),
        };
        let end = EpollEvent::new(EpollFlags::EPOLLIN, STDIN);
        clients.epoll.add(std::io::stdin(), end).unwrap();
        clients
    }

    /// Runs until stdin ends.
    fn run(&mut self) {
        let start = Instant::now();
        let mut have_arrived = false;
        for turn in 1.. {
            self.take_turns(turn as usize);
            if self.run_until(start + TURN * turn) {
                return;
            }
            if !have_arrived && self.arrived == self.clients.len() {
                have_arrived = true;
                println!("here");
            }
            let arrived = self.arrived;
            assert!(
                have_arrived || start.elapsed() < ARRIVAL,
                "{arrived} have arrived"
            );
        }
    }

    /// Gives a part of the clients their turn: to connect, or to send a byte.
    fn take_turns(&mut self, turn: usize) {
        for number in (turn % PARTS..self.clients.len()).step_by(PARTS) {
            let client = &mut self.clients[number];
            match &mut client.stream {
                None => self.connect(number),
                Some(stream) if client.is_connected && self.kind.drips() => {
                    // An error is an event, too.
                    let _ = stream.write_all(b"x");
                }
                Some(_) => {}
            }
        }
    }

    /// Continues with clients until a time; returns whether stdin has ended.
    fn run_until(&mut self, end: Instant) -> bool {
        let mut events = [EpollEvent::empty(); 256];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let timeout = EpollTimeout::from(left.as_micros().div_ceil(1000) as u16);
            let happened = match self.epoll.wait(&mut events, timeout) {
                Err(Errno::EINTR) => 0,
                happened => happened.unwrap(),
            };
            for event in &events[..happened] {
                if event.data() == STDIN {
                    return true;
                }
                self.advance(event.data() as usize);
            }
            if left.is_zero() {
                return false;
            }
        }
    }

    /// Starts to connect a client. If that fails, the client tries again at its next turn.
    fn connect(&mut self, number: usize) {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None).unwrap();
        let started = connect(socket.as_raw_fd(), &SockaddrIn::from(self.address));
        self.clients[number].stream = None;
        if let Ok(()) | Err(Errno::EINPROGRESS) = started {
            let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
            let event = EpollEvent::new(flags, number as u64);
            self.epoll.add(&socket, event).unwrap();
            self.clients[number].stream = Some(TcpStream::from(socket));
            self.clients[number].is_connected = false;
            self.clients[number].is_timed_out = false;
        }
    }

    /// Continues with a client after an event. One that is closed comes back at once.
    fn advance(&mut self, number: usize) {
        match self.try_advance(number) {
            Ok(()) => {
                self.events.closed += 1;
                self.events.timed_out += usize::from(self.clients[number].is_timed_out);
                self.connect(number);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => {
                self.events.reset += 1;
                self.clients[number].stream = None;
            }
        }
    }

    /// Continues with a client until the server closes its connection.
    fn try_advance(&mut self, number: usize) -> std::io::Result<()> {
        let client = &mut self.clients[number];
        let stream = client.stream.as_mut().unwrap();
        if !client.is_connected {
            if let Some(error) = stream.take_error()? {
                return Err(error);
            }
            stream.write_all(self.kind.first_bytes().as_bytes())?;
            client.is_connected = true;
            self.events.connected += 1;
            self.arrived += usize::from(!client.has_arrived);
            client.has_arrived = true;
        }
        let mut piece = [0; 4096];
        loop {
            match stream.read(&mut piece)? {
                0 => return Ok(()),
                length => client.is_timed_out = piece[..length].starts_with(b"HTTP/1.1 408 "),
            }
        }
    }
}

/// Runs the clients that the environment describes; returns `false` if it describes none. Each test that is
/// named to [`Crowd::start`] calls it first.
pub fn run_clients() -> bool {
    let Ok(description) = std::env::var(CROWD) else {
        return false;
    };
    let mut clients = Clients::new(&description);
    clients.run();
    let Events {
        connected,
        closed,
        timed_out,
        reset,
    } = clients.events;
    println!("ends {connected} {closed} {timed_out} {reset}");
    true
}

/// A crowd of clients that misbehave, until it is stopped or dropped.
pub struct Crowd(Vec<(Child, Lines<BufReader<ChildStdout>>)>);

impl Crowd {
    /// Starts `count` clients of a host; returns once all of them have been connected. `test` is the name of a
    /// test that calls [`run_clients`] first.
    pub fn start(lab: &Lab, test: &str, kind: Behaviour, count: usize, host: &str) -> Crowd {
        let processes = count.div_ceil(CLIENTS);
        let start = |number| {
            // Each has its own port: the search for a free client port is slow with many connections to one port.
            let (count, port) = (count / processes, PORTS.start + number as u16);
            let crowd = format!("{} {count} {host}:{port}", kind as usize);
            let mut command = lab.client.command("prlimit");
            command
                .arg("--nofile=4096")
                .arg(std::env::current_exe().unwrap())
                .args(["--exact", test, "--nocapture"])
                .env(CROWD, crowd)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped());
            let mut child = command.spawn().unwrap();
            let lines = BufReader::new(child.stdout.take().unwrap()).lines();
            (child, lines)
        };
        let mut crowd = Crowd((0..processes).map(start).collect());
        for (_, lines) in &mut crowd.0 {
            assert!(lines.any(|line| line.unwrap().ends_with("here")));
        }
        crowd
    }

    /// Stops the clients; returns what has happened to them.
    pub fn stop(mut self) -> Events {
        for (process, _) in &mut self.0 {
            drop(process.stdin.take());
        }
        let mut sum = Events::default();
        for (process, lines) in &mut self.0 {
            let line = lines
                .find_map(|line| line.unwrap().strip_prefix("ends ").map(str::to_owned))
                .unwrap();
            let numbers: Vec<usize> = line.split(' ').map(|word| word.parse().unwrap()).collect();
            sum.connected += numbers[0];
            sum.closed += numbers[1];
            sum.timed_out += numbers[2];
            sum.reset += numbers[3];
            assert!(process.wait().unwrap().success());
        }
        sum
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for (process, _) in &mut self.0 {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}
