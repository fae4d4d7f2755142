//! Long lists of blocks and ports: what they cost at the start, in the guard, and packets that are not captured.

use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::lab::{
    Daemon, Lab, Namespace, PATIENCE, PROGRAM, peak_memory, resident_memory, wait_until,
};
use crate::{guard_cpu, median, size, timed};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, connect, send, socket,
};

/// Arguments with blocks and ports that do not touch, and the address of the last ones.
fn lists(blocks: usize, ports: usize) -> ([String; 4], String) {
    let block = |i: usize| format!("10.{}.{}", 128 + i / 128, i % 128 * 2);
    let cidrs: Vec<String> = (0..blocks).map(|i| block(i) + ".0/24").collect();
    let dports: Vec<String> = (0..ports).map(|i| (8180 + 2 * i).to_string()).collect();
    let last = format!("{}.1:{}", block(blocks - 1), dports[ports - 1]);
    let arguments = ["--cidr", &cidrs.join(","), "--dport", &dports.join(",")];
    (arguments.map(str::to_owned), last)
}

/// The program, to be started in a namespace: nsenter(1) would take a part of the time.
fn program(arguments: &[String]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(arguments);
    command
}

/// Starts the program in a namespace, and waits until it is ready.
fn start(node: &Namespace, arguments: &[String]) -> Daemon {
    let (daemon, start) = (
        node.enter(|| Daemon::spawn(program(arguments))),
        Instant::now(),
    );
    let is_ready = || node.get("127.0.0.1:1", "/readyz").ends_with("ready\n");
    while node.connect("127.0.0.1:1").is_err() || !is_ready() {
        assert!(start.elapsed() < *PATIENCE, "{}", daemon.log());
    }
    daemon
}

#[test]
fn the_last_block_and_port_of_long_lists_are_captured_and_all_routes_come_back() {
    for (blocks, ports) in [(1, 1), size((100, 20), (1000, 100))] {
        let lab = Lab::new();
        let (arguments, last) = lists(blocks, ports);
        println!("{blocks} blocks, {ports} ports");
        for end in [&["--print-rules", "v4"][..], &["--check"]] {
            let mut length = 0;
            let run = |_| {
                let (mut command, start) = (program(&arguments), Instant::now());
                let output = lab.node.enter(|| command.args(end).output().unwrap());
                assert!(output.status.success(), "{output:?}");
                length = output.stdout.len();
                start.elapsed()
            };
            let time = median((0..size(1, 7)).map(run).collect());
            println!("  {end:?}: {time:.1?}, {length} bytes");
        }
        let run = |_| {
            let start_time = Instant::now();
            let mut daemon = start(&lab.node, &arguments);
            let started = start_time.elapsed();
            (started, timed(|| assert_eq!(daemon.stop(), Some(0))))
        };
        let (starts, stops) = (0..size(1, 7)).map(run).unzip();
        let (start_time, stop_time) = (median(starts), median(stops));
        println!("  from the start to ready: {start_time:.1?}, a stop: {stop_time:.1?}");
        let daemon = start(&lab.node, &arguments);
        assert!(lab.client.get(&last, "/").contains("Request received"));
        print_guard(&daemon, &lab.node, blocks);
    }
}

/// Prints what the guard takes at its start, and while other programs change routes.
fn print_guard(daemon: &Daemon, node: &Namespace, blocks: usize) {
    // It may still log.
    guard_cpu(daemon, || {});
    let idle = guard_cpu(daemon, || {
        std::thread::sleep(size(Duration::ZERO, Duration::from_secs(3)))
    });
    let [peak, then] = [peak_memory, resident_memory].map(|of| of(daemon.guard()) / 1000);
    let lines = daemon.log().lines().count();
    println!(
        "  {lines} lines of the log; guard: at most {peak} kB, then {then} kB; idle: {idle:.1?} of CPU"
    );
    let mut took = Duration::ZERO;
    let cpu = guard_cpu(daemon, || {
        node.run("ip route flush table 100");
        let is_back = || node.run("ip route show table 100").lines().count() == blocks;
        took = timed(|| wait_until("all routes are back", is_back));
    });
    println!("  all routes flushed: back after {took:.1?}, {cpu:.1?} of CPU");
    let route = |i| {
        format!(
            "route add blackhole 11.{}.{}.0/24 table 77\n",
            i / 256,
            i % 256
        )
    };
    let routes: String = (0..size(100, 5000)).map(route).collect();
    let added = guard_cpu(daemon, || node.ip(&routes));
    let removed = guard_cpu(daemon, || drop(node.run("ip route flush table 77")));
    println!("  routes of another program added: {added:.1?} of CPU, removed: {removed:.1?}");
}

/// Packets that are not captured: protocol and destination port.
const PACKETS: [(&str, SockProtocol, u16); 3] = [
    ("UDP", SockProtocol::Udp, 8180),
    ("TCP to another port", SockProtocol::Tcp, 81),
    (
        "TCP to a captured port of another address",
        SockProtocol::Tcp,
        8180,
    ),
];

/// Time of a packet of 40 bytes to a blackhole route of the node. The client's send(2) does the node's work, too:
/// between veth(4) devices it is done on the same CPU.
fn packet(lab: &Lab, protocol: SockProtocol, port: u16) -> Duration {
    let (time, before) = (
        Duration::from_millis(size(10, 300)),
        lab.node.counter("InNoECTPkts"),
    );
    let (sent, took) = lab.client.enter(|| {
        let (kind, flag) = (SockType::Raw, SockFlag::SOCK_CLOEXEC);
        let raw = socket(AddressFamily::Inet, kind, flag, protocol).unwrap();
        connect(raw.as_raw_fd(), &SockaddrIn::new(203, 0, 113, 5, 0)).unwrap();
        // An ACK (RFC 9293, 3.1), if it is TCP.
        let mut segment = [0; 20];
        segment[2..4].copy_from_slice(&port.to_be_bytes());
        (segment[12], segment[13]) = (0x50, 0x10);
        let (start, mut sent) = (Instant::now(), 0);
        while start.elapsed() < time {
            for _ in 0..100 {
                send(raw.as_raw_fd(), &segment, MsgFlags::empty()).unwrap();
            }
            sent += 100;
        }
        (sent, start.elapsed())
    });
    let arrived = lab.node.counter("InNoECTPkts") - before;
    assert!(arrived >= u64::from(sent), "{arrived} of {sent}");
    took / sent
}

#[test]
fn packets_that_are_not_captured_pass_rules_with_long_lists() {
    let lab = Lab::new();
    lab.node.run("ip route add blackhole 203.0.113.0/24");
    let rules = [None, Some((1, 1)), Some(size((100, 20), (1000, 100)))];
    let mut times = vec![[(); PACKETS.len()].map(|()| Vec::new()); rules.len()];
    for _ in 0..size(1, 7) {
        for (rules, times) in rules.iter().zip(&mut times) {
            let daemon = rules.map(|(blocks, ports)| start(&lab.node, &lists(blocks, ports).0));
            for ((_, protocol, port), times) in PACKETS.iter().zip(times) {
                times.push(packet(&lab, *protocol, *port));
            }
            if let Some(mut daemon) = daemon {
                assert_eq!(daemon.stop(), Some(0));
            }
        }
    }
    for (rules, times) in rules.iter().zip(times) {
        for ((name, ..), times) in PACKETS.iter().zip(times) {
            println!("blocks and ports {rules:?}: {name}: {:?}", median(times));
        }
    }
}
