//! A client, a node and a Pod, each in its own network namespace, and the program on the node.
//!
//! ```text
//!  client 192.0.2.2  ──── 192.0.2.1  node  10.244.0.1 ──── 10.244.0.5  pod
//!    2001:db8:1::2   ──── …:1::1         fd00:10:244::1 ── …::5
//! ```
//!
//! An open descriptor keeps a namespace alive: nothing is left when a test ends, however it ends.

// Each test crate uses a part of the lab.
#![allow(dead_code)]

pub mod bridge;
pub mod built;
pub mod cgroup;
pub mod cluster;
pub mod foreign;
pub mod http_client;
pub mod inject;
pub mod kernel;
pub mod kubelet;
pub mod manifest;
pub mod metrics;
pub mod pidfd;
pub mod ping;
pub mod refusal;
pub mod rtnetlink;
pub mod script;
pub mod stopwatch;
pub mod strace;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket,
};
use std::os::fd::AsRawFd;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Condvar, LazyLock, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, SockaddrLike, bind, connect,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::Pid;

use kernel::has_ipv6;
use stopwatch::Stopwatch;

/// The program under test: `PROGRAM` of the build's environment, such as a binary of scripts/build.sh, or the
/// binary of the test profile.
pub const PROGRAM: &str = match option_env!("PROGRAM") {
    Some(path) => path,
    None => env!("CARGO_BIN_EXE_tproxy-pod"),
};

/// Longest wait for a condition: 10 s, or `PATIENCE` of the environment in seconds, for emulated machines.
pub static PATIENCE: LazyLock<Duration> = LazyLock::new(|| {
    let seconds = std::env::var("PATIENCE").map(|it| it.parse().unwrap());
    Duration::from_secs(seconds.unwrap_or(10))
});

/// The Pod's IPv4 address, and the captured port.
pub const POD: &str = "10.244.0.5:8180";
/// The Pod's IPv6 address, and the captured port.
pub const POD6: &str = "[fd00:10:244::5]:8180";
/// Blocks that contain the Pod's addresses.
pub const CIDRS: &str = "10.244.0.0/16,fd00:10:244::/56";

/// System call in which a thread waits for an idle connection: poll(2), as musl calls it.
#[cfg(target_arch = "x86_64")]
const POLL: libc::c_long = libc::SYS_poll;
#[cfg(not(target_arch = "x86_64"))]
const POLL: libc::c_long = libc::SYS_ppoll;

/// A network namespace.
#[derive(Clone)]
pub struct Namespace(Arc<File>);

impl Namespace {
    pub fn new() -> Namespace {
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)
                .expect("a namespace: run the tests with scripts/test.sh");
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let namespace = Namespace(Arc::new(made.join().unwrap()));
        namespace.run("ip link set lo up");
        if has_ipv6() {
            namespace.sysctl("net.ipv6.conf.default.accept_dad", "0");
        }
        namespace
    }

    /// Its path, which other programs can open.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// A command that runs in it.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path())).arg(program);
        command
    }

    /// Runs a command line, split at blanks, which has to succeed; returns its output.
    pub fn run(&self, line: &str) -> String {
        let output = self.try_run(line);
        assert!(
            output.status.success(),
            "{line}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command line, split at blanks.
    pub fn try_run(&self, line: &str) -> Output {
        let mut words = line.split_whitespace();
        let mut command = self.command(words.next().unwrap());
        command
            .args(words)
            .output()
            .unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    /// Runs a command line with an input.
    pub fn feed(&self, line: &str, input: &str) -> Output {
        let mut words = line.split_whitespace();
        let mut command = self.command(words.next().unwrap());
        command
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(input.as_bytes())
            .unwrap();
        child.wait_with_output().unwrap()
    }

    /// Runs lines of ip(8) in one process, which saves time on emulated machines. Omits lines with an IPv6
    /// address on a kernel without IPv6.
    pub fn ip(&self, lines: &str) {
        let is_known = |line: &&str| has_ipv6() || !line.contains("::");
        let lines: Vec<&str> = lines.lines().filter(is_known).collect();
        let lines = lines.join("\n");
        let output = self.feed("ip -batch -", &lines);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{lines}: {stderr}");
    }

    /// Runs code in it.
    pub fn enter<T: Send>(&self, code: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&*self.0, CloneFlags::CLONE_NEWNET).unwrap();
                code()
            });
            inside
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Sets a sysctl, such as `net.ipv4.ip_forward`.
    pub fn sysctl(&self, name: &str, value: &str) {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        self.enter(|| {
            std::fs::write(&path, value).unwrap_or_else(|error| panic!("{path}: {error}"))
        });
    }

    /// The tables of nf_tables with a chain, such as `table inet tproxy-pod`. (With a rule `meta broute`,
    /// nft(8) before 1.0.8 crashes when it lists them in any other way.).
    pub fn tables(&self) -> Vec<String> {
        let chains = self.run("nft list chains");
        let tables = chains.lines().filter(|line| line.starts_with("table "));
        tables
            .map(|line| line.trim_end_matches(" {").to_owned())
            .collect()
    }

    /// Waits until the kernel has configured IPv6 on a device: it receives neighbour solicitations, and has the
    /// routes of all its addresses.
    ///
    /// The kernel detects a carrier up to a second late, unless the device is queried (`linkwatch_sync_dev`,
    /// net/core/link_watch.c). Then it adds the link-local address, and a work queue adds the routes of this and
    /// of all other addresses (`addrconf_dad_work`, net/ipv6/addrconf.c).
    pub fn wait_for_ipv6(&self, device: &str) {
        let local_routes = || self.show6(&["link show", "route show table local"], device);
        wait_until("the device receives multicasts", || {
            local_routes().contains("multicast ff00::/8")
        });
        let forwarding = format!("/proc/sys/net/ipv6/conf/{device}/forwarding");
        let forwarding = self.enter(|| std::fs::read_to_string(forwarding).unwrap());
        let is_router = forwarding.trim() == "1";
        wait_until("the device has the routes of its addresses", || {
            let local = local_routes();
            let shown = self.show6(&["address show"], device);
            let mut words = shown.split_whitespace();
            let addresses = std::iter::from_fn(|| {
                words.find(|word| *word == "inet6")?;
                words.next()
            });
            !shown.contains(" tentative")
                && addresses
                    .flat_map(|address| routes_of(address, is_router))
                    .all(|route| local.contains(&route))
        });
    }

    /// What `ip -6` shows of a device, by each of some commands.
    fn show6(&self, commands: &[&str], device: &str) -> String {
        let lines = commands.iter().map(|it| format!("{it} dev {device}\n"));
        let shown = self.feed("ip -6 -batch -", &lines.collect::<String>());
        String::from_utf8(shown.stdout).unwrap()
    }

    /// Connects to an address, within [`PATIENCE`].
    pub fn connect(&self, address: &str) -> std::io::Result<TcpStream> {
        let address: SocketAddr = address.parse().unwrap();
        let stream = self.enter(|| TcpStream::connect_timeout(&address, *PATIENCE))?;
        stream.set_read_timeout(Some(*PATIENCE))?;
        stream.set_write_timeout(Some(*PATIENCE))?;
        Ok(stream)
    }

    /// Connects to an address with a receive buffer of `size` bytes, which the kernel doubles (socket(7)).
    pub fn connect_narrow(&self, address: &str, size: usize) -> TcpStream {
        let address: SocketAddrV4 = address.parse().unwrap();
        let stream = self.enter(|| {
            let (kind, flag) = (SockType::Stream, SockFlag::SOCK_CLOEXEC);
            let socket = socket(AddressFamily::Inet, kind, flag, None).unwrap();
            setsockopt(&socket, sockopt::RcvBuf, &size).unwrap();
            connect(socket.as_raw_fd(), &SockaddrIn::from(address)).unwrap();
            TcpStream::from(socket)
        });
        stream.set_read_timeout(Some(*PATIENCE)).unwrap();
        stream.set_write_timeout(Some(*PATIENCE)).unwrap();
        stream
    }

    /// A connection that never gives way to others at the limit: its client does not read the response.
    pub fn connect_busy(&self, address: &str) -> TcpStream {
        let mut stream = self.connect_narrow(address, 2048);
        let body = "x".repeat(30_000);
        let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 30000\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body.as_bytes()).unwrap();
        assert!(stream.peek(&mut [0]).unwrap() > 0, "it responds");
        stream
    }

    /// Sends bytes to an address; returns all that is received until the peer closes.
    pub fn send(&self, address: &str, bytes: impl AsRef<[u8]>) -> String {
        let mut stream = self
            .connect(address)
            .unwrap_or_else(|error| panic!("{address}: {error}"));
        stream.write_all(bytes.as_ref()).unwrap();
        let mut answer = Vec::new();
        stream
            .read_to_end(&mut answer)
            .unwrap_or_else(|error| panic!("{address}: {error}"));
        String::from_utf8(answer).unwrap()
    }

    /// Sends a GET request to an address, on a new connection.
    pub fn get(&self, address: &str, target: &str) -> String {
        self.send(
            address,
            format!("GET {target} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"),
        )
    }

    /// Serves `pod` on a port of all addresses, until the test ends.
    pub fn serve(&self, port: u16) {
        let all: IpAddr = match has_ipv6() {
            true => Ipv6Addr::UNSPECIFIED.into(),
            false => Ipv4Addr::UNSPECIFIED.into(),
        };
        self.serve_at((all, port).into());
    }

    /// Serves `pod` on one address and port, until the test ends.
    pub fn serve_at(&self, address: SocketAddr) {
        let listener = self.enter(|| TcpListener::bind(address).unwrap());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                thread::spawn(move || answer_as_pod(stream));
            }
        });
    }

    /// Echoes datagrams on a port of all addresses, until the test ends.
    pub fn serve_udp(&self, port: u16) {
        let socket = self.enter(|| UdpSocket::bind(("::", port)).unwrap());
        thread::spawn(move || {
            let mut datagram = [0; 100];
            while let Ok((length, from)) = socket.recv_from(&mut datagram) {
                socket.send_to(&datagram[..length], from).unwrap();
            }
        });
    }

    /// A counter of `/proc/net/netstat` or `/proc/net/snmp`, such as `TCPSynRetrans` or `OutSegs`.
    pub fn counter(&self, name: &str) -> u64 {
        let read = |file| std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap();
        let text = self.enter(|| ["netstat", "snmp"].map(read).concat());
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split(' ').collect()).collect();
        let mut pairs = lines
            .chunks(2)
            .flat_map(|pair| pair[0].iter().zip(&pair[1]));
        pairs
            .find(|(key, _)| **key == name)
            .map(|(_, value)| value.parse().unwrap())
            .unwrap()
    }
}

/// Routes that the kernel adds with an address, such as `fd00::1/64`, as ip(8) shows them: to itself, and on a router
/// to the routers of its network (RFC 4291, 2.6.1).
fn routes_of(address: &str, is_router: bool) -> Vec<String> {
    let (address, length) = address.split_once('/').unwrap();
    let (bits, length): (Ipv6Addr, u32) = (address.parse().unwrap(), length.parse().unwrap());
    let mut routes = vec![format!("local {address} ")];
    if is_router && length < 127 {
        let network = Ipv6Addr::from_bits(bits.to_bits() & !(u128::MAX >> length));
        routes.push(format!("anycast {network} "));
    }
    routes
}

/// Responds `pod` to every request on a connection.
fn answer_as_pod(mut stream: TcpStream) {
    let mut request = Vec::new();
    let mut piece = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut piece) {
        request.extend_from_slice(&piece[..length]);
        if request.ends_with(b"\r\n\r\n") {
            let close = request.windows(5).any(|word| word == b"close");
            request.clear();
            if stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\npod")
                .is_err()
                || close
            {
                return;
            }
        }
    }
}

/// A client, a node and a Pod.
pub struct Lab {
    pub client: Namespace,
    pub node: Namespace,
    pub pod: Namespace,
}

impl Lab {
    /// Creates the namespaces, and the routes between them.
    pub fn new() -> Lab {
        let lab = Lab {
            client: Namespace::new(),
            node: Namespace::new(),
            pod: Namespace::new(),
        };
        let Lab { client, node, pod } = &lab;
        node.ip(&format!(
            "link add client type veth peer name eth0 netns {}
             link add pod type veth peer name eth0 netns {}
             address add 192.0.2.1/24 dev client
             address add 2001:db8:1::1/64 dev client nodad
             address add 10.244.0.1/24 dev pod
             address add fd00:10:244::1/64 dev pod nodad
             link set client up
             link set pod up",
            client.path(),
            pod.path()
        ));
        for (namespace, v4, v6, gateway, gateway6) in [
            (
                client,
                "192.0.2.2",
                "2001:db8:1::2",
                "192.0.2.1",
                "2001:db8:1::1",
            ),
            (
                pod,
                "10.244.0.5",
                "fd00:10:244::5",
                "10.244.0.1",
                "fd00:10:244::1",
            ),
        ] {
            namespace.ip(&format!(
                "address add {v4}/24 dev eth0
                 address add {v6}/64 dev eth0 nodad
                 link set eth0 up
                 route add default via {gateway}
                 route add default via {gateway6}"
            ));
        }
        node.sysctl("net.ipv4.ip_forward", "1");
        if !has_ipv6() {
            return lab;
        }
        node.sysctl("net.ipv6.conf.all.forwarding", "1");
        for (namespace, device) in [
            (client, "eth0"),
            (node, "client"),
            (node, "pod"),
            (pod, "eth0"),
        ] {
            namespace.wait_for_ipv6(device);
        }
        lab
    }

    /// Starts the program on the node, and waits until it captures.
    pub fn start(&self, arguments: &[&str]) -> Daemon {
        let daemon = self.spawn(arguments);
        daemon.wait_for("Created table");
        daemon
    }

    /// Starts the program on the node.
    pub fn spawn(&self, arguments: &[&str]) -> Daemon {
        let mut command = self.node.command(PROGRAM);
        command.args(arguments).env("NODE_NAME", "lab");
        Daemon::spawn(command)
    }

    /// Routing rules, routes of table 100 and tables of nf_tables on the node.
    pub fn remains(&self) -> Vec<String> {
        let commands = [
            "ip rule show",
            "ip -6 rule show",
            "ip route show table 100",
            "ip -6 route show table 100",
        ];
        let lines = commands.iter().flat_map(|command| {
            let output = self.node.try_run(command);
            String::from_utf8(output.stdout)
                .unwrap()
                .lines()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        });
        let standard = ["lookup local", "lookup main", "lookup default"];
        lines
            .filter(|line| !standard.iter().any(|end| line.ends_with(end)))
            .chain(self.node.tables())
            .collect()
    }
}

/// The running program.
pub struct Daemon {
    child: Child,
    log: Arc<(Mutex<String>, Condvar)>,
    reader: Option<thread::JoinHandle<()>>,
    ended: Option<ExitStatus>,
}

impl Daemon {
    /// Starts a command, and collects its stderr.
    pub fn spawn(mut command: Command) -> Daemon {
        assert!(
            option_env!("PROGRAM").is_some() || cfg!(target_env = "musl"),
            "the sandbox fits musl: name a binary of scripts/build.sh in PROGRAM"
        );
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new((Mutex::new(String::new()), Condvar::new()));
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let shared = Arc::clone(&log);
        let reader = thread::spawn(move || {
            for line in stderr.lines() {
                let mut text = shared.0.lock().unwrap();
                *text += &(line.unwrap() + "\n");
                shared.1.notify_all();
            }
        });
        Daemon {
            child,
            log,
            reader: Some(reader),
            ended: None,
        }
    }

    /// Process id of the guard: nsenter(1) executes the program.
    pub fn guard(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Process id of the server.
    pub fn server(&self) -> Pid {
        server_of(self.guard())
    }

    /// Number of the server's threads.
    pub fn threads(&self) -> usize {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.server())).unwrap();
        tasks.count()
    }

    /// Number of connections that are idle for long enough to be evicted: their threads are in [`POLL`]
    /// (proc_pid_syscall(5)).
    pub fn idle_connections(&self) -> usize {
        self.threads_in(POLL)
    }

    /// Waits until as many responses are delayed: the server's threads that wait for a lock, beside the one that
    /// writes the log.
    pub fn wait_for_delayed(&self, count: usize) {
        wait_until("responses are delayed", || {
            self.threads_in(libc::SYS_futex) == count + 1
        });
    }

    /// Number of the server's threads in a system call.
    fn threads_in(&self, call: libc::c_long) -> usize {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.server())).unwrap();
        tasks
            .filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("syscall")).ok())
            .filter(|made| made.starts_with(&format!("{call} ")))
            .count()
    }

    /// The log so far.
    pub fn log(&self) -> String {
        self.log.0.lock().unwrap().clone()
    }

    /// Waits for a log line with this text, and returns the line.
    pub fn wait_for(&self, text: &str) -> String {
        let line = |log: &String| {
            log.lines()
                .find(|line| line.contains(text))
                .map(str::to_owned)
        };
        let (log, changed) = &*self.log;
        let log = log.lock().unwrap();
        let (log, _) = changed
            .wait_timeout_while(log, *PATIENCE, |log| line(log).is_none())
            .unwrap();
        line(&log).unwrap_or_else(|| panic!("no line with {text:?} in:\n{log}"))
    }

    /// Sends the guard a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.guard(), signal).unwrap();
    }

    /// Waits until both processes have ended and the log is read; returns the exit status.
    pub fn wait(&mut self) -> ExitStatus {
        let status = self.wait_for_guard();
        self.reader.take().map(thread::JoinHandle::join);
        status
    }

    fn wait_for_guard(&mut self) -> ExitStatus {
        let watch = Stopwatch::start();
        while watch.used() < 2 * *PATIENCE {
            if let Some(status) = self.child.try_wait().unwrap() {
                self.ended = Some(status);
                return status;
            }
            thread::sleep(Duration::from_millis(5));
        }
        panic!("it does not end:\n{}", self.log());
    }

    /// Stops the program with SIGTERM; returns its exit code.
    pub fn stop(&mut self) -> Option<i32> {
        self.signal(Signal::SIGTERM);
        self.wait().code()
    }

    /// Kills the guard, and waits until the kernel has removed its table.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.wait_for_guard();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.ended.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Process id of the server, the guard's only child.
pub fn server_of(guard: Pid) -> Pid {
    let children = std::fs::read_to_string(format!("/proc/{guard}/task/{guard}/children")).unwrap();
    Pid::from_raw(children.trim().parse().unwrap())
}

/// Peak resident memory of a process, in bytes.
pub fn peak_memory(process: Pid) -> u64 {
    memory(process, "VmHWM:")
}

/// Resident memory of a process, in bytes.
pub fn resident_memory(process: Pid) -> u64 {
    memory(process, "VmRSS:")
}

/// Resident memory of a process that is not of a file, in bytes.
pub fn anonymous_memory(process: Pid) -> u64 {
    memory(process, "RssAnon:")
}

fn memory(process: Pid, kind: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let mut words = status.split_whitespace();
    words.find(|word| *word == kind).unwrap();
    words.next().unwrap().parse::<u64>().unwrap() * 1024
}

/// Connects from an address and port, within a time. The port of an earlier connection is in use until the peer has
/// acknowledged its FIN, a little after close(2).
pub fn connect_from(
    from: SocketAddr,
    to: SocketAddr,
    patience: Duration,
) -> std::io::Result<TcpStream> {
    let family = match to {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let raw = socket.as_raw_fd();
    let deadline = Instant::now() + patience;
    let patience = TimeVal::milliseconds(patience.as_millis().try_into().unwrap());
    setsockopt(&socket, sockopt::SendTimeout, &patience)?;
    while let Err(error) = bind(raw, storage(from).as_ref()) {
        if error != Errno::EADDRINUSE || Instant::now() >= deadline {
            return Err(error.into());
        }
        thread::sleep(Duration::from_millis(5));
    }
    connect(raw, storage(to).as_ref())?;
    Ok(TcpStream::from(socket))
}

/// Whether a datagram from one address to another is echoed within a time. It is retransmitted every 100 ms: on
/// a new network the kernel drops packets that wait for neighbour discovery longer than three solicitations (3
/// s; RFC 4861, 10).
pub fn is_echoed(from: SocketAddr, to: SocketAddr, patience: Duration) -> std::io::Result<bool> {
    let socket = UdpSocket::bind(from)?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        socket.send_to(b"ping", to)?;
        if socket.recv(&mut [0; 10]).is_ok_and(|length| length == 4) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn storage(address: SocketAddr) -> Box<dyn SockaddrLike> {
    match address {
        SocketAddr::V4(v4) => Box::new(SockaddrIn::from(v4)),
        SocketAddr::V6(v6) => Box::new(SockaddrIn6::from(v6)),
    }
}

/// Waits until a condition holds, within [`PATIENCE`].
pub fn wait_until(what: &str, condition: impl FnMut() -> bool) {
    wait_within(*PATIENCE, what, condition);
}

/// Waits until a condition holds, within a time.
pub fn wait_within(time: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + time;
    while !condition() {
        assert!(Instant::now() < deadline, "this did not happen: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Time between two log lines, less than a day.
pub fn between(earlier: &str, later: &str) -> Duration {
    const DAY: u64 = 24 * 60 * 60 * 1000;
    // For example 2026-11-23T14:02:33.183Z.
    let time = |line: &str| -> u64 {
        let numbers: Vec<u64> = line[11..23]
            .split([':', '.'])
            .map(|digits| digits.parse().unwrap())
            .collect();
        ((numbers[0] * 60 + numbers[1]) * 60 + numbers[2]) * 1000 + numbers[3]
    };
    Duration::from_millis((time(later) + DAY - time(earlier)) % DAY)
}
