//! A process dies or is stopped by SIGSTOP. Afterwards the Pods answer at the captured port, other traffic is
//! not affected, the exit status tells the cause, no table is left, and the next start succeeds.

use std::io::{BufRead, Read, Write};
use std::net::TcpStream;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::thread;
use std::time::{Duration, Instant};

use crate::lab::cgroup::Cgroup;
use crate::lab::http_client::HttpClient;
use crate::lab::manifest::Pod;
use crate::lab::stopwatch::Stopwatch;
use crate::lab::{CIDRS, Daemon, Lab, POD, POD6, PROGRAM, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const REQUEST: &str = "GET / HTTP/1.1\r\nHost: pod\r\n\r\n";

/// A port of the Pod that is not captured.
const OTHER: &str = "10.244.0.5:80";
const OTHER6: &str = "[fd00:10:244::5]:80";

/// Counts the SYNs that a Pod receives.
const COUNTER: &str = "
table inet watch {
    counter syns {}
    chain received {
        type filter hook prerouting priority 0
        tcp flags & (syn | ack) == syn counter name syns
    }
}";

/// The program on its node, and connections that it must not affect.
struct Fixture {
    lab: Lab,
    daemon: Daemon,
    /// Connections to the port that is not captured, and to the captured port from before the start.
    open: Vec<HttpClient>,
}

impl Fixture {
    fn new() -> Fixture {
        Fixture::with(|lab| lab.start(&["--cidr", CIDRS]))
    }

    /// Starts the program by another command.
    fn with(start: impl FnOnce(&Lab) -> Daemon) -> Fixture {
        let lab = Lab::new();
        lab.pod.load("nft -f -", COUNTER);
        lab.pod.serve(80);
        lab.pod.serve(8180);
        let mut open: Vec<_> = [OTHER, OTHER6, POD, POD6]
            .iter()
            .map(|address| lab.client.http(address))
            .collect();
        for connection in &mut open {
            assert_eq!(connection.request(REQUEST).text(), "pod");
        }
        let daemon = start(&lab);
        let mut fixture = Fixture { lab, daemon, open };
        fixture.assert_captures();
        fixture.assert_others_unaffected();
        fixture
    }

    fn assert_captures(&self) {
        for address in [POD, POD6] {
            let answer = self.lab.client.get(address, "/");
            assert!(answer.contains("Request received"), "{address}: {answer}");
        }
    }

    /// Checks that open and new connections bypass the program.
    fn assert_others_unaffected(&mut self) {
        for connection in &mut self.open {
            assert_eq!(connection.request(REQUEST).text(), "pod");
        }
        for address in [OTHER, OTHER6] {
            assert!(self.lab.client.get(address, "/").ends_with("pod"));
        }
        assert!(self.lab.node.get(POD, "/").ends_with("pod"));
    }

    /// Numbers of SYNs that the client has sent again, and that the Pod has received.
    fn syns(&self) -> (u64, u64) {
        let listed = self.lab.pod.run("nft list counter inet watch syns");
        let (_, number) = listed.split_once("packets ").unwrap();
        let (number, _) = number.split_once(' ').unwrap();
        let repeated = self.lab.client.counter("TCPSynRetrans");
        (repeated, number.parse().unwrap())
    }

    /// Waits until both processes and the table are gone; then the Pods answer without a lost packet.
    fn wait_for_death(&mut self, server: Pid) -> ExitStatus {
        let status = self.daemon.wait();
        wait_until("the server is gone", || has_ended(server));
        wait_until("the table is gone", || self.lab.node.tables().is_empty());
        let (repeated, received) = self.syns();
        for address in [POD, POD6] {
            assert!(self.lab.client.get(address, "/").ends_with("pod"));
        }
        wait_until(
            "the Pod has every SYN, also one that was sent again",
            || {
                let now = self.syns();
                now.1 - received == 2 + now.0 - repeated
            },
        );
        self.assert_others_unaffected();
        status
    }

    /// Starts the program again: rules, routes and table are there once.
    fn restart(&mut self) {
        self.daemon = self.lab.start(&["--cidr", CIDRS]);
        self.assert_captures();
        self.assert_others_unaffected();
        let mut remains = self.lab.remains();
        remains.sort();
        let parts = [
            "fwmark 0x1/0x1 iif lo goto 9",
            "fwmark 0x1/0x1 iif lo goto 9",
            "fwmark 0x1/0x1 lookup 100",
            "fwmark 0x1/0x1 lookup 100",
            "from all nop",
            "from all nop",
            "local 10.244.0.0/16 dev lo",
            "local fd00:10:244::/56 dev lo",
            "table bridge tproxy-pod",
            "table inet tproxy-pod",
        ];
        assert_eq!(remains.len(), parts.len(), "{remains:?}");
        for (line, part) in remains.iter().zip(parts) {
            assert!(line.contains(part), "{remains:?}");
        }
    }

    /// Stops the program: it leaves nothing.
    fn stop(&mut self) {
        assert_eq!(self.daemon.stop(), Some(0));
        assert_eq!(self.lab.remains(), [""; 0]);
        self.assert_others_unaffected();
    }

    /// Checks that the guard removed everything, and logged the cause last.
    fn assert_removed(&self, status: ExitStatus, why: &str) {
        assert_eq!(status.code(), Some(1));
        let log = self.daemon.log();
        assert!(log.trim_end().ends_with(why), "{log}");
        assert_eq!(self.lab.remains(), [""; 0]);
    }

    /// Checks the state after both processes died: the guard removed nothing.
    fn assert_not_removed(&self, status: ExitStatus, by: Signal) {
        assert_eq!(status.signal(), Some(by as i32));
        let log = self.daemon.log();
        assert!(!log.contains("Served"), "the server died with it: {log}");
        let remains = self.lab.remains();
        assert!(!remains.iter().any(|line| line.contains("table inet")));
    }
}

/// Whether a process is gone or a zombie.
fn has_ended(process: Pid) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"));
    status.map_or(true, |status| status.contains("State:\tZ"))
}

/// Sends a process SIGSEGV until it dies: Rust's handler resets the action, and the next signal is fatal.
fn crash(process: Pid) {
    wait_until("it dies of SIGSEGV", || {
        let _ = kill(process, Signal::SIGSEGV);
        has_ended(process)
    });
}

#[test]
fn sigkill_to_the_guard_ends_both_and_leaves_no_table() {
    let mut fixture = Fixture::new();
    for _ in 0..3 {
        let server = fixture.daemon.server();
        fixture.daemon.signal(Signal::SIGKILL);
        let status = fixture.wait_for_death(server);
        fixture.assert_not_removed(status, Signal::SIGKILL);
        fixture.restart();
    }
    fixture.stop();
}

#[test]
fn sigsegv_to_the_guard_ends_both_and_leaves_no_table() {
    let mut fixture = Fixture::new();
    let server = fixture.daemon.server();
    crash(fixture.daemon.guard());
    let status = fixture.wait_for_death(server);
    fixture.assert_not_removed(status, Signal::SIGSEGV);
    fixture.restart();
    fixture.stop();
}

#[test]
fn sigkill_to_the_server_has_the_guard_undo_everything() {
    let mut fixture = Fixture::new();
    let server = fixture.daemon.server();
    kill(server, Signal::SIGKILL).unwrap();
    let status = fixture.wait_for_death(server);
    fixture.assert_removed(status, "ERROR the server was killed by SIGKILL");
    fixture.restart();
    fixture.stop();
}

#[test]
fn sigsegv_to_the_server_has_the_guard_undo_everything() {
    let mut fixture = Fixture::new();
    let server = fixture.daemon.server();
    crash(server);
    let status = fixture.wait_for_death(server);
    fixture.assert_removed(status, "ERROR the server was killed by SIGSEGV");
    fixture.restart();
    fixture.stop();
}

/// As with `memory.oom.group`, which Kubernetes sets.
#[test]
fn sigkill_to_both_at_once_leaves_no_table() {
    let mut fixture = Fixture::new();
    let server = fixture.daemon.server();
    // The guard must not run between the two signals.
    fixture.daemon.signal(Signal::SIGSTOP);
    kill(server, Signal::SIGKILL).unwrap();
    fixture.daemon.signal(Signal::SIGKILL);
    let status = fixture.wait_for_death(server);
    fixture.assert_not_removed(status, Signal::SIGKILL);
    fixture.restart();
    fixture.stop();
}

/// Sends long requests until the send buffer is full, and reads no response.
fn fill_send_buffer(stream: &mut TcpStream) {
    let head = "POST / HTTP/1.1\r\nHost: pod\r\nContent-Length: 65536\r\n\r\n";
    let request = [head.as_bytes(), &[b'x'; 65536]].concat();
    stream.set_nonblocking(true).unwrap();
    while stream.write_all(&request).is_ok() {}
}

/// The OOM killer chooses the server, which has the most memory; with `memory.oom.group` it kills both.
#[test]
#[ignore = "only root may make a control group; scripts/test.sh runs it then"]
fn the_pods_answer_after_a_kill_by_the_oom_killer() {
    let cgroup = Cgroup::new(16 << 20);
    let mut fixture = Fixture::with(|lab| {
        let mut command = lab.node.command(PROGRAM);
        command.args(["--cidr", CIDRS]);
        let daemon = Daemon::spawn(cgroup.command(&command));
        daemon.wait_for("Created table");
        daemon
    });
    let server = fixture.daemon.server();
    let mut connections = Vec::new();
    wait_until("the kernel kills for want of memory", || {
        if connections.len() < 900
            && let Ok(mut stream) = fixture.lab.client.connect(POD)
        {
            fill_send_buffer(&mut stream);
            connections.push(stream);
        }
        cgroup.killed() > 0
    });
    let status = fixture.wait_for_death(server);
    match status.signal() {
        Some(_) => fixture.assert_not_removed(status, Signal::SIGKILL),
        None => fixture.assert_removed(status, "ERROR the server was killed by SIGKILL"),
    }
    println!("{status}, with {} connections", connections.len());
    drop(connections);
    fixture.restart();
    fixture.stop();
}

/// Whether the Pod answers a new connection soon. One that the hung server's kernel accepts is not answered.
fn is_answered_by_pod(lab: &Lab, address: &str) -> bool {
    let patience = Duration::from_millis(500);
    let to = address.parse().unwrap();
    let connected = lab
        .client
        .enter(|| TcpStream::connect_timeout(&to, patience));
    let Ok(mut stream) = connected else {
        return false;
    };
    stream.set_read_timeout(Some(patience)).unwrap();
    let mut answer = String::new();
    let request = "GET / HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n";
    let exchanged = stream.write_all(request.as_bytes());
    exchanged
        .and_then(|()| stream.read_to_string(&mut answer))
        .is_ok_and(|_| answer.ends_with("pod"))
}

/// The time within which clients reach the Pods after the server hangs.
const LONGEST_HANG: Duration = Duration::from_secs(15);

/// The kubelet does what install.yaml says: it probes, and sends SIGTERM.
#[test]
fn when_the_server_hangs_clients_reach_the_pods_within_15_s_and_the_stop_within_the_grace_period() {
    let pod = Pod::read();
    let probe = pod.probe("livenessProbe");
    let mut fixture = Fixture::new();
    let server = fixture.daemon.server();
    let mut early = fixture.lab.client.http(POD);
    assert_eq!(early.request(REQUEST).status, "200 OK");
    // The worst case: it hangs right after a successful probe.
    assert!(probe.succeeds(&fixture.lab.node));
    kill(server, Signal::SIGSTOP).unwrap();
    let hung = Stopwatch::start();
    let (stop, mut late) = thread::scope(|scope| {
        let kubelet = scope.spawn(|| {
            probe.wait_until_failed(&fixture.lab.node);
            fixture.daemon.signal(Signal::SIGTERM);
            Stopwatch::start()
        });
        wait_until("all threads stand still", || is_stopped(server));
        let mut late = fixture.lab.client.http(POD6);
        for connection in [&mut early, &mut late] {
            connection.send(REQUEST);
            connection.assert_no_response_yet();
        }
        (kubelet.join().unwrap(), late)
    });
    for address in [POD, POD6] {
        wait_until("the Pod answers", || {
            is_answered_by_pod(&fixture.lab, address)
        });
    }
    let (took, lost) = (hung.elapsed(), hung.lost());
    println!("{took:?}, of which {lost:?} were lost");
    assert!(took < LONGEST_HANG + lost, "{took:?}, {lost:?} were lost");
    fixture.assert_others_unaffected();

    // Connections that the server had accepted, or the kernel for it, end with the server.
    let status = fixture.wait_for_death(server);
    let took = stop.elapsed();
    println!("the stop took {took:?}");
    assert!(took < pod.grace() + stop.lost(), "{took:?}");
    fixture
        .daemon
        .wait_for("The server does not end: killing it");
    fixture.assert_removed(status, "ERROR the server was killed by SIGKILL");
    for connection in [&mut early, &mut late] {
        assert_eq!(connection.0.fill_buf().unwrap_or(b""), b"");
    }
    fixture.restart();
    fixture.stop();
}

/// The process that SIGSTOP stops.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Paused {
    Guard,
    Server,
    Both,
}

impl Paused {
    fn processes(self, daemon: &Daemon) -> (Option<Pid>, Option<Pid>) {
        let guard = (self != Paused::Server).then(|| daemon.guard());
        let server = (self != Paused::Guard).then(|| daemon.server());
        (guard, server)
    }
}

/// Duration of the pause: long in comparison with the kernel's retransmission time-outs.
const PAUSE: Duration = Duration::from_secs(10);

#[test]
fn after_sigcont_requests_are_answered_and_rules_restored() {
    thread::scope(|scope| {
        for paused in [Paused::Guard, Paused::Server, Paused::Both] {
            scope.spawn(move || stop_and_continue(paused));
        }
    });
}

/// Whether every thread is stopped; each thread stops when it handles the signal.
fn is_stopped(process: Pid) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
    threads
        .filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("status")).ok())
        .all(|status| status.contains("State:\tT"))
}

fn stop_and_continue(paused: Paused) {
    let mut fixture = Fixture::new();
    let installed = fixture.lab.remains();
    let mut early = fixture.lab.client.http(POD);
    assert_eq!(early.request(REQUEST).status, "200 OK");
    let (guard, server) = paused.processes(&fixture.daemon);
    let send = |process: Option<Pid>, signal| process.map(|it| kill(it, signal).unwrap());
    for process in [guard, server] {
        send(process, Signal::SIGSTOP);
        wait_until("all stand still", || process.is_none_or(is_stopped));
    }
    let start = Instant::now();

    let mut late = fixture.lab.client.http(POD);
    for connection in [&mut early, &mut late] {
        connection.send(REQUEST);
        match paused {
            Paused::Guard => assert_eq!(connection.response().status, "200 OK"),
            _ => connection.assert_no_response_yet(),
        }
    }
    fixture.assert_others_unaffected();
    thread::sleep(PAUSE.saturating_sub(start.elapsed()));
    fixture.assert_others_unaffected();
    fixture
        .lab
        .node
        .run("ip rule del fwmark 0x1/0x1 lookup 100");
    send(guard, Signal::SIGCONT);
    wait_until("the loss is mended", || fixture.lab.remains() == installed);
    // Only now: without the rule, the client's ACK of the response goes to the Pod, which sends a RST.
    send(server, Signal::SIGCONT);
    if paused != Paused::Guard {
        assert_eq!(early.response().status, "200 OK");
        assert_eq!(late.response().status, "200 OK");
    }
    fixture.assert_captures();
    fixture.stop();
}
