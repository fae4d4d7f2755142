//! Deaths and pauses of the processes. After each of them the Pods answer at their own port, the node's
//! other traffic goes on, the exit status tells the cause, nothing is left that could hold traffic, and
//! the next start succeeds.

use std::io::Write;
use std::net::TcpStream;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::thread;
use std::time::{Duration, Instant};

use crate::lab::cgroup::Cgroup;
use crate::lab::conversation::Conversation;
use crate::lab::{CIDRS, Daemon, Lab, POD, POD6, PROGRAM, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const REQUEST: &str = "GET / HTTP/1.1\r\nHost: pod\r\n\r\n";

/// The Pod's port that is not captured.
const OTHER: &str = "10.244.0.5:80";
const OTHER6: &str = "[fd00:10:244::5]:80";

/// The program on its node, and connections that it must not affect.
struct Scene {
    lab: Lab,
    daemon: Daemon,
    /// To the Pod's other port, and to the captured one from before the start.
    open: Vec<Conversation>,
}

impl Scene {
    fn new() -> Scene {
        Scene::with(|lab| lab.start(&["--cidr", CIDRS]))
    }

    /// With the program started by another command.
    fn with(start: impl FnOnce(&Lab) -> Daemon) -> Scene {
        let lab = Lab::new();
        lab.pod.serve(80);
        lab.pod.serve(8180);
        let mut open: Vec<_> = [OTHER, OTHER6, POD, POD6]
            .iter()
            .map(|address| lab.client.talk(address))
            .collect();
        for connection in &mut open {
            assert_eq!(connection.ask(REQUEST).text(), "pod");
        }
        let daemon = start(&lab);
        let mut scene = Scene { lab, daemon, open };
        scene.captures();
        scene.others_go_on();
        scene
    }

    fn captures(&self) {
        for address in [POD, POD6] {
            let answer = self.lab.client.get(address, "/");
            assert!(answer.contains("Request received"), "{address}: {answer}");
        }
    }

    /// Open connections past the program, and new ones.
    fn others_go_on(&mut self) {
        for connection in &mut self.open {
            assert_eq!(connection.ask(REQUEST).text(), "pod");
        }
        for address in [OTHER, OTHER6] {
            assert!(self.lab.client.get(address, "/").ends_with("pod"));
        }
        assert!(self.lab.node.get(POD, "/").ends_with("pod"));
    }

    /// Waits for the end of both processes and of the table. Then the Pods answer the first packet.
    fn dies(&mut self, server: Pid) -> ExitStatus {
        let status = self.daemon.wait();
        wait_until("the server is gone", || has_ended(server));
        wait_until("the table is gone", || self.lab.node.tables().is_empty());
        let before = self.lab.client.counter("TCPSynRetrans");
        for address in [POD, POD6] {
            assert!(self.lab.client.get(address, "/").ends_with("pod"));
        }
        assert_eq!(self.lab.client.counter("TCPSynRetrans"), before);
        self.others_go_on();
        status
    }

    /// Starts it again: one of everything is there.
    fn starts_again(&mut self) {
        self.daemon = self.lab.start(&["--cidr", CIDRS]);
        self.captures();
        self.others_go_on();
        let mut remains = self.lab.remains();
        remains.sort();
        let parts = [
            "fwmark 0x1/0x1 iif lo lookup main",
            "fwmark 0x1/0x1 iif lo lookup main",
            "fwmark 0x1/0x1 lookup 100",
            "fwmark 0x1/0x1 lookup 100",
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

    /// Stops it: nothing is left.
    fn stops(&mut self) {
        assert_eq!(self.daemon.stop(), Some(0));
        assert_eq!(self.lab.remains(), [""; 0]);
        self.others_go_on();
    }

    /// The guard has undone everything, and its last line says why.
    fn is_undone(&self, status: ExitStatus, why: &str) {
        assert_eq!(status.code(), Some(1));
        let log = self.daemon.log();
        assert!(log.trim_end().ends_with(why), "{log}");
        assert_eq!(self.lab.remains(), [""; 0]);
    }

    /// After a death that leaves no process to undo anything.
    fn was_cut_off(&self, status: ExitStatus, by: Signal) {
        assert_eq!(status.signal(), Some(by as i32));
        let log = self.daemon.log();
        assert!(!log.contains("Served"), "the server died with it: {log}");
        let remains = self.lab.remains();
        assert!(!remains.iter().any(|line| line.contains("table inet")));
    }
}

/// Whether a process is gone, or a zombie.
fn has_ended(process: Pid) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"));
    status.map_or(true, |status| status.contains("State:\tZ"))
}

/// Sends a process SIGSEGV until it dies: Rust's handler resets the action at the first one, and the next one
/// kills.
fn break_down(process: Pid) {
    wait_until("it dies of SIGSEGV", || {
        let _ = kill(process, Signal::SIGSEGV);
        has_ended(process)
    });
}

#[test]
fn sigkill_to_the_guard_ends_both_and_leaves_no_table() {
    let mut scene = Scene::new();
    for _ in 0..3 {
        let server = scene.daemon.server();
        scene.daemon.signal(Signal::SIGKILL);
        let status = scene.dies(server);
        scene.was_cut_off(status, Signal::SIGKILL);
        scene.starts_again();
    }
    scene.stops();
}

#[test]
fn sigsegv_to_the_guard_ends_both_and_leaves_no_table() {
    let mut scene = Scene::new();
    let server = scene.daemon.server();
    break_down(scene.daemon.guard());
    let status = scene.dies(server);
    scene.was_cut_off(status, Signal::SIGSEGV);
    scene.starts_again();
    scene.stops();
}

#[test]
fn sigkill_to_the_server_has_the_guard_undo_everything() {
    let mut scene = Scene::new();
    let server = scene.daemon.server();
    kill(server, Signal::SIGKILL).unwrap();
    let status = scene.dies(server);
    scene.is_undone(status, "ERROR the server was killed by SIGKILL");
    scene.starts_again();
    scene.stops();
}

#[test]
fn sigsegv_to_the_server_has_the_guard_undo_everything() {
    let mut scene = Scene::new();
    let server = scene.daemon.server();
    break_down(server);
    let status = scene.dies(server);
    scene.is_undone(status, "ERROR the server was killed by SIGSEGV");
    scene.starts_again();
    scene.stops();
}

/// As with `memory.oom.group`, which Kubernetes sets.
#[test]
fn sigkill_to_both_at_once_leaves_no_table() {
    let mut scene = Scene::new();
    let server = scene.daemon.server();
    // So that it cannot act between the two.
    scene.daemon.signal(Signal::SIGSTOP);
    kill(server, Signal::SIGKILL).unwrap();
    scene.daemon.signal(Signal::SIGKILL);
    let status = scene.dies(server);
    scene.was_cut_off(status, Signal::SIGKILL);
    scene.starts_again();
    scene.stops();
}

/// Sends long requests until the server takes no more; no answer is read.
fn demand(stream: &mut TcpStream) {
    let head = "POST / HTTP/1.1\r\nHost: pod\r\nContent-Length: 65536\r\n\r\n";
    let request = [head.as_bytes(), &[b'x'; 65536]].concat();
    stream.set_nonblocking(true).unwrap();
    while stream.write_all(&request).is_ok() {}
}

/// The kernel chooses the process that it kills. That is the server, which has the most memory; where a group dies
/// as one, it is both.
#[test]
#[ignore = "only root may make a control group; scripts/test.sh runs it then"]
fn out_of_memory_either_way_the_pods_answer() {
    let cgroup = Cgroup::new(16 << 20);
    let mut scene = Scene::with(|lab| {
        let mut command = lab.node.command(PROGRAM);
        command.args(["--cidr", CIDRS]);
        let daemon = Daemon::spawn(cgroup.command(&command));
        daemon.wait_for("Created table");
        daemon
    });
    let server = scene.daemon.server();
    let mut greedy = Vec::new();
    wait_until("the kernel kills for want of memory", || {
        if greedy.len() < 900
            && let Ok(mut stream) = scene.lab.client.connect(POD)
        {
            demand(&mut stream);
            greedy.push(stream);
        }
        cgroup.killed() > 0
    });
    let status = scene.dies(server);
    match status.signal() {
        Some(_) => scene.was_cut_off(status, Signal::SIGKILL),
        None => scene.is_undone(status, "ERROR the server was killed by SIGKILL"),
    }
    println!("{status}, with {} connections", greedy.len());
    drop(greedy);
    scene.starts_again();
    scene.stops();
}

/// The process that is paused.
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

/// Long beside everything that the kernel does for a connection meanwhile.
const PAUSE: Duration = Duration::from_secs(10);

#[test]
fn after_a_pause_requests_are_answered_and_losses_mended_as_if_there_had_been_none() {
    thread::scope(|scope| {
        for paused in [Paused::Guard, Paused::Server, Paused::Both] {
            scope.spawn(move || pause(paused));
        }
    });
}

/// Whether every thread has stopped: each does when it sees the signal.
fn stands_still(process: Pid) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
    threads
        .filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("status")).ok())
        .all(|status| status.contains("State:\tT"))
}

fn pause(paused: Paused) {
    let mut scene = Scene::new();
    let complete = scene.lab.remains();
    let mut early = scene.lab.client.talk(POD);
    assert_eq!(early.ask(REQUEST).status, "200 OK");
    let (guard, server) = paused.processes(&scene.daemon);
    let send = |process: Option<Pid>, signal| process.map(|it| kill(it, signal).unwrap());
    for process in [guard, server] {
        send(process, Signal::SIGSTOP);
        wait_until("all stand still", || process.is_none_or(stands_still));
    }
    let start = Instant::now();

    let mut late = scene.lab.client.talk(POD);
    for connection in [&mut early, &mut late] {
        connection.send(REQUEST);
        match paused {
            Paused::Guard => assert_eq!(connection.answer().status, "200 OK"),
            _ => connection.has_no_answer_yet(),
        }
    }
    scene.others_go_on();
    thread::sleep(PAUSE.saturating_sub(start.elapsed()));
    scene.others_go_on();
    scene.lab.node.run("ip rule del fwmark 0x1/0x1 lookup 100");
    send(guard, Signal::SIGCONT);
    wait_until("the loss is mended", || scene.lab.remains() == complete);
    // Not before: without the rule, what the client says to an answer goes to the Pod, which refuses it.
    send(server, Signal::SIGCONT);
    if paused != Paused::Guard {
        assert_eq!(early.answer().status, "200 OK");
        assert_eq!(late.answer().status, "200 OK");
    }
    scene.captures();
    scene.stops();
}
