//! As many connections as files may be open.

use std::io::BufReader;
use std::net::TcpStream;
use std::thread;
use std::time::Instant;

use crate::lab::cgroup::Cgroup;
use crate::lab::http_client::{HttpClient, REQUEST};
use crate::lab::{Daemon, Lab, PROGRAM, resident_memory, wait_until};
use crate::{size, timed};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Captured ports, each for the clients of one thread: the search for a free client port is slow with many
/// connections to one port.
const PORTS: std::ops::Range<u16> = 8180..8190;

/// Connects `count` clients, and sends a request on each.
fn connect(port: u16, count: usize) -> Vec<HttpClient> {
    let connect = |_| {
        let stream = TcpStream::connect(("10.244.0.5", port)).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut client = HttpClient(BufReader::with_capacity(1024, stream));
        client.send(REQUEST);
        client
    };
    (0..count).map(connect).collect()
}

/// Runs code for the clients of each thread, at the same time.
fn in_parallel(clients: &mut [Vec<HttpClient>], code: fn(&mut HttpClient)) {
    thread::scope(|scope| {
        for part in clients {
            scope.spawn(move || part.iter_mut().for_each(code));
        }
    });
}

fn read_response(client: &mut HttpClient) {
    assert_eq!(client.response().status, "200 OK");
}

#[test]
fn every_connection_is_answered_and_answered_again() {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, size(soft, hard), hard).unwrap();
    let count = size(200, 19_900);
    let lab = Lab::new();
    let mut command = lab.node.command(PROGRAM);
    command.args(["--max-connections", "20000", "--dport", "8180:8189"]);
    let cgroup = size(None, Some(4 << 30)).map(Cgroup::new);
    let mut daemon = Daemon::spawn(match &cgroup {
        Some(cgroup) => cgroup.command(&command),
        None => command,
    });
    daemon.wait_for("Created table");

    let start = Instant::now();
    let mut clients: Vec<_> = lab.client.enter(|| {
        thread::scope(|scope| {
            let each = count / PORTS.len();
            let threads: Vec<_> = PORTS
                .map(|port| scope.spawn(move || connect(port, each)))
                .collect();
            let joined = threads.into_iter().map(|thread| thread.join().unwrap());
            joined.collect()
        })
    });
    let connected = start.elapsed();
    in_parallel(&mut clients, read_response);
    println!(
        "{count} connections: connected in {connected:.1?}, answered in {:.1?}",
        start.elapsed()
    );
    wait_until("all are idle", || daemon.idle_connections() == count);
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", daemon.server())).unwrap();
    println!(
        "all idle: {} kB, {} threads, {} mappings",
        resident_memory(daemon.server()) / 1000,
        daemon.threads(),
        maps.lines().count()
    );
    let print_cgroup = || {
        if let Some(cgroup) = &cgroup {
            let [now, peak] = cgroup.memory().map(|bytes| bytes / 1_000_000);
            println!("its cgroup, with the kernel's memory: {now} MB, at most {peak} MB");
        }
    };
    print_cgroup();
    let again = timed(|| {
        in_parallel(&mut clients, |client| client.send(REQUEST));
        in_parallel(&mut clients, read_response);
    });
    println!("a second request on each, all at once: {again:.1?}");
    print_cgroup();
    assert!(daemon.threads() > count, "one for each connection");
    let stopped = timed(|| assert_eq!(daemon.stop(), Some(0)));
    println!("a stop: {stopped:.1?}");
}
