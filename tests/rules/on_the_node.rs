//! Semantics of what concerns the node itself, beside ports and blocks: types of addresses, ICMP, marks of
//! connections, and the chain OUTPUT. Packets have the same fate as with iptables.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::thread;
use std::time::Duration;

use crate::lab::ping::answers_ping;
use crate::lab::script::{Loader, ScriptFile, restore, whole};
use crate::lab::{Lab, PATIENCE};
use crate::meaning::{Family, LOSS_TIME_OUT, V4, V6, send_datagram, send_request};

/// Names of probes: what is sent, and from where to where.
const PROBES: [&str; 7] = [
    "tcp client pod",
    "tcp client node",
    "tcp node node",
    "tcp node pod",
    "udp client pod",
    "ping client pod",
    "ping node pod",
];

/// Scripts, with the probes that are lost. A packet with the mark 0x80 has no route.
#[rustfmt::skip]
const LOSSES: &[(&str, &[&str])] = &[
    ("", &[]),
    // -m addrtype
    ("-A PREROUTING -p tcp --syn -m addrtype --dst-type LOCAL -j DROP", &["tcp client node", "tcp node node"]),
    ("-A PREROUTING -p tcp --syn -m addrtype ! --dst-type LOCAL -j DROP", &["tcp client pod"]),
    ("-A PREROUTING -p udp -m addrtype --dst-type LOCAL -j DROP", &[]),
    ("-A PREROUTING -p udp -m addrtype ! --dst-type LOCAL -j DROP", &["udp client pod"]),
    ("-A PREROUTING -p tcp --syn -m addrtype --src-type LOCAL -j DROP", &["tcp node node"]),
    ("-A PREROUTING -p tcp --syn -m addrtype ! --src-type LOCAL -j DROP", &["tcp client pod", "tcp client node"]),
    ("-A PREROUTING -p tcp --syn -m addrtype ! --src-type LOCAL -m addrtype --dst-type LOCAL -j DROP", &["tcp client node"]),
    ("-A PREROUTING -m addrtype ! --src-type LOCAL -m addrtype ! --dst-type LOCAL -p tcp -j DROP", &["tcp client pod"]),
    ("-A PREROUTING -s {pod} -p tcp -m addrtype --dst-type LOCAL -j DROP", &["tcp node pod"]),
    ("-A OUTPUT -p tcp --syn -m addrtype --dst-type LOCAL -j DROP", &["tcp node node"]),
    ("-A OUTPUT -p tcp --syn -m addrtype ! --dst-type LOCAL -j DROP", &["tcp node pod"]),
    ("-A OUTPUT -p tcp --syn -m addrtype ! --src-type LOCAL -j DROP", &[]),
    // -p icmp, -p ipv6-icmp
    ("-A PREROUTING -p ${ICMP} -d {pod} -j DROP", &["ping client pod"]),
    ("-A PREROUTING -p ${ICMP} -s {pod} -d {client} -j DROP", &["ping client pod"]),
    ("-A PREROUTING -p ${ICMP} -m socket --transparent -j DROP", &[]),
    ("-A PREROUTING -p ${ICMP} -d {pod} -m addrtype ! --dst-type LOCAL -j DROP", &["ping client pod"]),
    ("-A PREROUTING -p ${ICMP} -d {pod} -m addrtype --dst-type LOCAL -j DROP", &[]),
    // -m connmark, -j CONNMARK
    ("-A PREROUTING -p tcp --syn -d {pod} -j CONNMARK --set-mark 0x50\n-A PREROUTING -m connmark --mark 0x50 -j DROP", &["tcp client pod"]),
    ("-A PREROUTING -p tcp --syn -d {pod} -j CONNMARK --set-mark 0x50\n-A PREROUTING -m connmark --mark 0x40/0x40 -j DROP", &["tcp client pod"]),
    ("-A PREROUTING -p tcp --syn -d {pod} -j CONNMARK --set-mark 0x50\n-A PREROUTING -m connmark --mark 0x50/0x40 -j DROP", &[]),
    ("-A PREROUTING -p tcp --syn -d {pod} -j CONNMARK --set-mark 0x50\n-A PREROUTING -p tcp --syn -m connmark ! --mark 0x50 -j DROP", &["tcp client node", "tcp node node"]),
    ("-A PREROUTING -p tcp -j CONNMARK --set-mark 0x5\n-A PREROUTING -p tcp -j CONNMARK --set-xmark 0x6/0x3\n-A PREROUTING -p tcp --syn -d {pod} -m connmark --mark 0x2 -j DROP", &["tcp client pod"]),
    ("-A PREROUTING -p tcp -j CONNMARK --set-mark 0x5\n-A PREROUTING -p tcp -j CONNMARK --set-mark 0x6/0x3\n-A PREROUTING -p tcp --syn -d {pod} -m connmark --mark 0x6 -j DROP", &["tcp client pod"]),
    ("-A PREROUTING -p udp -d {pod} -j CONNMARK --set-mark 0x50\n-A PREROUTING -m mark --mark 0x50 -j DROP", &[]),
    ("-A PREROUTING -p udp -d {pod} -j MARK --set-mark 0x50\n-A PREROUTING -m connmark --mark 0x50 -j DROP", &[]),
    // OUTPUT: the connection is remembered, and a mark selects the route
    ("-A OUTPUT -p tcp --syn -j DROP", &["tcp node node", "tcp node pod"]),
    ("-A OUTPUT -p tcp --dport 80 -d {pod} -j DROP", &["tcp node pod"]),
    ("-A OUTPUT -p tcp --syn -j ACCEPT\n-A OUTPUT -p tcp --syn -j DROP", &[]),
    ("-A OUTPUT -p tcp --syn -d {pod} -j CONNMARK --set-mark 0x50\n-A PREROUTING -m connmark --mark 0x50 -j DROP", &["tcp node pod"]),
    ("-A OUTPUT -p tcp --syn -d {pod} -j CONNMARK --set-mark 0x50\n-A OUTPUT -p tcp ! --syn -m connmark --mark 0x50 -j DROP", &["tcp node pod"]),
    ("-A OUTPUT -p tcp -d {pod} -j MARK --set-mark 0x80", &["tcp node pod"]),
    ("-A OUTPUT -p tcp --syn -m addrtype ! --dst-type LOCAL -j MARK --set-xmark 0x80/0x80", &["tcp node pod"]),
    ("-A OUTPUT -p tcp -d {pod} -j MARK --set-mark 0x80\n-A OUTPUT -p tcp -d {pod} -j MARK --set-xmark 0x80/0x80\n-A OUTPUT -j MARK --set-xmark 0x0/0x80", &[]),
    ("-A PREROUTING -p tcp --syn -j MARK --set-mark 0x80", &["tcp client pod"]),
    (":X - [0:0]\n-A PREROUTING -p tcp --syn -j X\n-A OUTPUT -p tcp --syn -j X\n-A X -m addrtype --dst-type LOCAL -j DROP", &["tcp client node", "tcp node node"]),
    (":X - [0:0]\n-A OUTPUT -p tcp --syn -j X\n-A OUTPUT -p tcp --syn -j DROP\n-A X -d {pod} -j RETURN\n-A X -j ACCEPT", &["tcp node pod"]),
];

/// A rule to the listener that no packet matches: every script has it.
const IDLE: &str = "-A PREROUTING -i nowhere -p tcp -j TPROXY --on-ip ${ON_IP} --on-port ${ON_PORT} --tproxy-mark ${MARK}";

/// Whether a probe is answered within a time.
fn is_answered(name: &str, lab: &Lab, family: &Family, patience: Duration) -> bool {
    let words: Vec<&str> = name.split(' ').collect();
    let [kind, from, to] = words[..] else {
        panic!("{name}");
    };
    let namespace = match from {
        "node" => &lab.node,
        _ => &lab.client,
    };
    let address = |name: &str, port| family.address(&format!("{{{name}}}"), port);
    let any: IpAddr = match address(to, 0) {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let answer = namespace.enter(|| match kind {
        "tcp" => send_request((any, 0).into(), address(to, 80), patience),
        "udp" => send_datagram((any, 0).into(), address(to, 53), patience),
        _ if answers_ping(address(to, 0).ip(), patience) => Ok("pod"),
        _ => Ok("lost"),
    });
    answer.is_ok_and(|answer| answer == "pod")
}

/// The probes that are lost. Those that are expected to be have a short time-out.
fn lost(lab: &Lab, family: &Family, expected: &[&str]) -> Vec<&'static str> {
    thread::scope(|scope| {
        let probes = PROBES.map(|name| {
            let patience = match expected.contains(&name) {
                true => LOSS_TIME_OUT,
                false => *PATIENCE,
            };
            let probe = scope.spawn(move || is_answered(name, lab, family, patience));
            (name, probe)
        });
        let is_lost = |(name, probe): (_, thread::ScopedJoinHandle<bool>)| {
            let answered = probe.join().unwrap();
            (!answered).then_some(name)
        };
        probes.into_iter().filter_map(is_lost).collect()
    })
}

/// The lost probes with the script loaded by `loader`.
fn lost_with(
    loader: Loader,
    lab: &Lab,
    family: &Family,
    script: &str,
    expected: &[&str],
) -> Vec<&'static str> {
    let text = whole(&format!("{}\n{IDLE}", family.substitute(script)));
    let (file, idle) = (ScriptFile::new(&text), ScriptFile::new(&whole(IDLE)));
    let options = |file| ["--cidr", family.cidr, "--rules", file];
    let mut daemon = match loader {
        Loader::Ours => lab.start(&options(file.path())),
        Loader::Iptables => {
            let daemon = lab.start(&options(idle.path()));
            restore(lab, family.name, &options(file.path()), family.restore);
            daemon
        }
    };
    let lost = lost(lab, family, expected);
    assert_eq!(daemon.stop(), Some(0));
    lab.node.load(family.restore, &whole(""));
    lost
}

/// Number of labs that share the table.
const LABS: usize = 8;

/// A lab with the servers of all probes.
fn lab() -> Lab {
    let lab = Lab::new();
    lab.pod.serve(80);
    lab.pod.serve_udp(53);
    lab.node.serve(80);
    for ip in ["ip", "ip -6"] {
        lab.node
            .run(&format!("{ip} rule add fwmark 0x80/0x80 blackhole"));
    }
    lab
}

/// Asserts that both loaders lose the probes of the table.
fn assert_agree(family: &Family) {
    let differences = |some: &[(&str, &[&str])]| -> Vec<String> {
        let lab = lab();
        let mut differences = Vec::new();
        for (script, expected) in some {
            for loader in Loader::ALL {
                let lost = lost_with(loader, &lab, family, script, expected);
                if lost != *expected {
                    differences.push(format!("{loader:?}: {script}: {lost:?} are lost"));
                }
            }
        }
        differences
    };
    let all: Vec<String> = thread::scope(|scope| {
        let chunks = LOSSES.chunks(LOSSES.len().div_ceil(LABS));
        let shares: Vec<_> = chunks
            .map(|some| scope.spawn(|| differences(some)))
            .collect();
        let joined = shares.into_iter().map(|share| share.join().unwrap());
        joined.flatten().collect()
    });
    assert_eq!(all, [""; 0]);
}

#[test]
fn over_ipv4_both_loaders_lose_the_same_packets_of_and_to_the_node() {
    assert_agree(&V4);
}

#[test]
fn over_ipv6_both_loaders_lose_the_same_packets_of_and_to_the_node() {
    assert_agree(&V6);
}
