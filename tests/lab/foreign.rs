//! Configuration of the node by other programs, and traffic that must not be disturbed.

use std::io::{Read, Write};
use std::net::{Ipv6Addr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::{Daemon, Lab, Namespace, PATIENCE, POD, POD6, wait_until};

impl Namespace {
    /// All firewall rules, routing rules and routes, without counters and without the program's own: tables by
    /// name, rules and routes by protocol number.
    pub fn foreign_state(&self) -> String {
        let commands = [
            "nft -s list ruleset",
            "iptables-save",
            "ip6tables-save",
            "iptables-legacy-save",
            "ip6tables-legacy-save",
            "ip -d rule show",
            "ip -6 -d rule show",
            "ip -d route show table all",
            "ip -6 -d route show table all",
        ];
        let mut all = String::new();
        for command in commands {
            let printed = self.run(command);
            let mut ours = false;
            for line in printed.lines() {
                ours |= line.starts_with("table inet tproxy-pod {")
                    || line.starts_with("table bridge tproxy-pod {");
                // iptables-save prints times and counters.
                let line = line.split(" [").next().unwrap();
                if !ours && !line.starts_with('#') && !line.contains(" proto 84") {
                    all += &format!("{command}: {}\n", line.trim_end());
                }
                ours &= line != "}";
            }
        }
        all
    }

    /// Responds to each connection, on all addresses, with the client's address.
    pub fn serve_client_address(&self, port: u16) {
        let listener = self.enter(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let client = stream.peer_addr().map(|peer| peer.ip().to_canonical());
                thread::spawn(move || {
                    let _ = stream.read(&mut [0; 4096]);
                    let _ = write!(stream, "asked by {}", client.unwrap());
                });
            }
        });
    }
}

/// A client that connects to captured addresses in a loop; each connection has to be answered.
pub struct Traffic {
    /// Whether to stop, and the number of responses.
    state: Arc<(AtomicBool, AtomicUsize)>,
    client: Option<thread::JoinHandle<()>>,
}

impl Traffic {
    /// Starts the client, over both families.
    pub fn start(lab: &Lab) -> Traffic {
        let client = lab.client.clone();
        let state = Arc::new((AtomicBool::new(false), AtomicUsize::new(0)));
        let shared = Arc::clone(&state);
        let client = Some(thread::spawn(move || {
            let (ended, answers) = &*shared;
            while !ended.load(Ordering::Relaxed) {
                for address in [POD, POD6] {
                    let answer = client.get(address, "/");
                    assert!(answer.contains("Request received from "), "{answer}");
                    answers.fetch_add(1, Ordering::Relaxed);
                }
            }
        }));
        let mut traffic = Traffic { state, client };
        traffic.goes_on();
        traffic
    }

    /// Waits for ten more responses.
    pub fn goes_on(&mut self) {
        let before = self.state.1.load(Ordering::Relaxed);
        wait_until("more requests are answered", || {
            let failed = self
                .client
                .as_ref()
                .is_some_and(thread::JoinHandle::is_finished);
            if failed {
                self.end();
            }
            self.state.1.load(Ordering::Relaxed) >= before + 10
        });
    }

    /// Stops the client, and fails if a request was not answered.
    pub fn end(&mut self) {
        self.state.0.store(true, Ordering::Relaxed);
        if let Some(Err(panic)) = self.client.take().map(thread::JoinHandle::join) {
            std::panic::resume_unwind(panic);
        }
    }
}

impl Daemon {
    /// Stops the program while a client connects to some addresses, every 5 ms. Asserts that each connection is
    /// answered: at first a hundred at least by the program, and from the log's line on by the Pods.
    pub fn stop_under_load(&mut self, client: &Namespace, addresses: &[&str]) {
        const PACE: Duration = Duration::from_millis(5);
        let (ours, theirs) = (&AtomicUsize::new(0), &AtomicUsize::new(0));
        let ask = |address| {
            let answer = client.get(address, "/");
            let answered = match &answer {
                it if it.contains("Request received from ") => ours,
                it if it.ends_with("\r\n\r\npod") => theirs,
                _ => panic!("neither: {answer}"),
            };
            answered.fetch_add(1, Ordering::Relaxed);
        };
        let (begin, mut due) = (Instant::now(), Instant::now());
        let (mut is_signalled, mut left) = (false, 200);
        thread::scope(|scope| {
            for address in addresses.iter().cycle() {
                thread::sleep(due.saturating_duration_since(Instant::now()));
                due += PACE;
                assert!(begin.elapsed() < 2 * *PATIENCE, "{}", self.log());
                if !is_signalled && ours.load(Ordering::Relaxed) >= 100 {
                    self.signal(Signal::SIGTERM);
                    is_signalled = true;
                }
                if self
                    .log()
                    .contains("Stopping: new connections go to the Pods")
                {
                    left -= 1;
                }
                if left == 0 {
                    break;
                }
                scope.spawn(move || ask(address));
            }
        });
        assert_eq!(self.wait().code(), Some(0));
        let theirs = theirs.load(Ordering::Relaxed);
        assert!(theirs >= 199, "{theirs} by the Pods");
    }
}
