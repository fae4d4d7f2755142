//! Pods of one bridge: connections between them are captured, and all other frames stay on the bridge.

use std::time::Duration;

use crate::lab::bridge::{Bridge, PEER, PEER6};
use crate::lab::http_client::{HttpClient, REQUEST};
use crate::lab::kernel::has_all;
use crate::lab::script::ScriptFile;
use crate::lab::{CIDRS, Namespace, PATIENCE, is_echoed, wait_until};
use tproxy_pod::nftables::bridge::ESTABLISHED_TIMEOUT;
use tproxy_pod::server::deadlines::DEADLINES;

/// Addresses without a Pod beyond the bridge, where the node is the gateway.
const BEYOND: [&str; 2] = ["10.244.7.9:8180", "[fd00:10:244:7::9]:8180"];

/// Whether tproxy-pod has answered, and not a Pod.
#[track_caller]
fn assert_captured(pod: &Namespace, address: &str) {
    let answer = pod.get(address, "/");
    assert!(
        answer.contains("Request received from "),
        "{address}: {answer}"
    );
}

#[track_caller]
fn assert_answered_by_pod(pod: &Namespace, address: &str) {
    let answer = pod.get(address, "/");
    assert!(answer.ends_with("\r\n\r\npod"), "{address}: {answer}");
}

#[test]
fn a_pod_of_the_same_bridge_and_an_address_beyond_it_are_captured() {
    for filter in [false, true] {
        for reverse_path in ["0", "1", "2"] {
            let bridge = Bridge::new(filter);
            for scope in ["all", "default", "cni0", "pod"] {
                let name = format!("net.ipv4.conf.{scope}.rp_filter");
                bridge.node.sysctl(&name, reverse_path);
                let name = format!("net.ipv4.conf.{scope}.src_valid_mark");
                bridge.node.sysctl(&name, reverse_path.min("1"));
            }
            let daemon = bridge.start(&["--cidr", CIDRS]);
            daemon.wait_for("Created table bridge tproxy-pod, owned");
            for address in [PEER, PEER6].into_iter().chain(BEYOND) {
                assert_captured(&bridge.pod, address);
            }
        }
    }
}

#[test]
fn the_echo_and_the_log_name_the_client_pod() {
    let bridge = Bridge::new(false);
    let daemon = bridge.start(&["--cidr", CIDRS]);
    for address in [PEER, PEER6] {
        let mut connection = bridge.pod.http(address);
        let client = connection.client();
        let answer = connection.request(REQUEST);
        let ends = format!("Client: {client}\nDestination: {address}\n");
        assert!(answer.text().contains(&ends), "{}", answer.text());
        daemon.wait_for(&format!("client={client} destination={address} "));
    }
}

/// br_netfilter adds hooks with the first bridge; the program's chain has to be ahead of them.
#[test]
fn bridges_and_pods_that_come_after_the_start_are_captured() {
    for filter in [false, true] {
        let bridge = Bridge::without_any(filter);
        let _daemon = bridge.start(&["--cidr", CIDRS]);
        bridge.add_bridge();
        bridge.add_ports();
        for address in [PEER, PEER6].into_iter().chain(BEYOND) {
            wait_until("the port is known", || {
                bridge.try_get(address).contains("Request received from ")
            });
        }
        bridge.node.run("ip link del cni0");
        bridge.add_bridge();
        bridge.add_ports();
        for address in [PEER, PEER6].into_iter().chain(BEYOND) {
            wait_until("the new port is known", || {
                bridge.try_get(address).contains("Request received from ")
            });
        }
    }
}

#[test]
fn a_bridge_is_followed_when_it_gets_its_address() {
    let bridge = Bridge::new(false);
    bridge.peer.serve(8180);
    bridge.node.run("ip address flush dev cni0 scope global");
    let _daemon = bridge.start(&["--cidr", CIDRS]);
    assert_answered_by_pod(&bridge.pod, PEER);
    bridge.node.run("ip address add 10.244.0.1/24 dev cni0");
    wait_until("the address is known", || {
        bridge.try_get(PEER).contains("Request received from ")
    });
    assert_answered_by_pod(&bridge.pod, PEER6);
}

/// The node forwards neither frames of older connections, nor captured ones.
#[test]
fn a_node_that_forwards_nothing_disturbs_no_connection_on_its_bridge() {
    let bridge = Bridge::new(false);
    bridge.peer.serve(8180);
    let mut open: Vec<HttpClient> = [PEER, PEER6].map(|it| bridge.pod.http(it)).into();
    let mut pod_answers = |when: &str| {
        for connection in &mut open {
            assert_eq!(connection.request(REQUEST).text(), "pod", "{when}");
        }
    };
    pod_answers("before");
    bridge.node.run("iptables -P FORWARD DROP");
    bridge.node.run("ip6tables -P FORWARD DROP");
    let mut daemon = bridge.start(&["--cidr", CIDRS]);
    for _ in 0..3 {
        pod_answers("while it intercepts");
        for address in [PEER, PEER6] {
            assert_captured(&bridge.pod, address);
        }
    }
    assert_eq!(daemon.stop(), Some(0));
    pod_answers("after the stop");
    for address in [PEER, PEER6] {
        assert_answered_by_pod(&bridge.pod, address);
    }
    let forwarded = bridge.node.run("iptables -L FORWARD -v -x");
    assert!(forwarded.contains("policy DROP 0 packets"), "{forwarded}");
}

/// kube-proxy drops packets in conntrack state INVALID. With bridge-nf, conntrack sees both directions of a
/// bridged connection, without it none.
#[test]
fn connections_that_no_rule_captures_reach_the_pod_where_invalid_packets_are_dropped() {
    for filter in [false, true] {
        let bridge = Bridge::new(filter);
        bridge.peer.serve(8180);
        for iptables in ["iptables", "ip6tables"] {
            bridge.node.run(&format!(
                "{iptables} -A FORWARD -m conntrack --ctstate INVALID -j DROP"
            ));
        }
        let script = include_str!("../../src/rules/bundled.iptables");
        let script = script.replace("-A PREROUTING", "-A PREROUTING -i elsewhere");
        let rules = ScriptFile::new(&script);
        let _daemon = bridge.start(&["--cidr", CIDRS, "--rules", rules.path()]);
        for address in [PEER, PEER6] {
            let mut connection = bridge.pod.http(address);
            for _ in 0..3 {
                assert_eq!(connection.request(REQUEST).text(), "pod", "{address}");
            }
        }
    }
}

#[test]
fn a_stop_finishes_what_came_over_the_bridge_and_leaves_the_rest_to_the_pod() {
    let bridge = Bridge::new(false);
    bridge.peer.serve(8180);
    let mut daemon = bridge.start(&["--cidr", CIDRS]);
    let mut open: Vec<HttpClient> = [PEER, PEER6].map(|it| bridge.pod.http(it)).into();
    let (first, second) = REQUEST.split_at(10);
    open.iter_mut().for_each(|it| it.send(first));
    wait_until("both are accepted", || {
        let open = bridge.node.run("ss -Htn state established");
        open.lines().count() == 2
    });
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    daemon.wait_for("Stopping: new connections go to the Pods");
    for address in [PEER, PEER6] {
        assert_answered_by_pod(&bridge.pod, address);
    }
    // The server learns of the stop later: until then it answers further requests.
    for connection in &mut open {
        let mut response = connection.request(second);
        while !response.is_last() {
            response = connection.request(REQUEST);
        }
    }
    assert_eq!(daemon.wait().code(), Some(0));
    assert_eq!(bridge.node.tables(), [""; 0]);
}

#[test]
fn sigkill_leaves_no_rule_on_the_bridge() {
    for filter in [false, true] {
        let bridge = Bridge::new(filter);
        bridge.peer.serve(8180);
        let mut daemon = bridge.start(&["--cidr", CIDRS]);
        let tables = ["table inet tproxy-pod", "table bridge tproxy-pod"];
        assert_eq!(bridge.node.tables(), tables);
        daemon.kill();
        assert_eq!(bridge.node.tables(), [""; 0]);
        for address in [PEER, PEER6] {
            assert_answered_by_pod(&bridge.pod, address);
        }
    }
}

#[test]
fn a_second_start_replaces_the_table_of_the_bridge() {
    let bridge = Bridge::new(false);
    bridge.peer.serve(8180);
    bridge.node.run("nft add table bridge tproxy-pod");
    bridge.node.run("nft add chain bridge tproxy-pod old");
    for _ in 0..2 {
        let _daemon = bridge.start(&["--cidr", CIDRS]);
        assert_captured(&bridge.pod, PEER);
        let tables = bridge.node.run("nft list table bridge tproxy-pod");
        assert!(!tables.contains("chain old"), "{tables}");
    }
}

/// IP does not see other ports, nor datagrams to the captured port.
#[test]
fn what_is_not_captured_stays_on_the_bridge() {
    let bridge = Bridge::new(false);
    bridge.peer.serve(80);
    bridge.peer.serve_udp(8180);
    let seen_by_ip = || {
        let counters = bridge.node.run("iptables -t raw -L PREROUTING -v -x -n");
        let rule = counters.lines().nth(2).unwrap();
        let packets = rule.split_whitespace().next().unwrap();
        packets.parse::<u64>().unwrap()
    };
    bridge
        .node
        .run("iptables -t raw -A PREROUTING -d 10.244.0.6");
    let _daemon = bridge.start(&["--cidr", CIDRS]);
    assert!(bridge.pod.get("10.244.0.6:80", "/").ends_with("pod"));
    let (from, to) = ("0.0.0.0:0".parse().unwrap(), PEER.parse().unwrap());
    let echoed = bridge.pod.enter(|| is_echoed(from, to, *PATIENCE));
    assert!(echoed.unwrap());
    assert_eq!(seen_by_ip(), 0);
    assert_captured(&bridge.pod, PEER);
    assert_ne!(seen_by_ip(), 0, "what is captured is counted");
}

/// IP would drop them, or has no route back. Frames to the bridge's own address go to IP.
#[test]
fn frames_that_ip_could_not_answer_stay_on_the_bridge() {
    let elsewhere = "ip address flush dev cni0 scope global\n\
                     ip address add 172.16.9.1/24 dev cni0\n\
                     ip address add fd00:9::1/64 dev cni0 nodad";
    let vlans = "ip link set cni0 type bridge vlan_filtering 1";
    for filter in [false, true] {
        for change in ["ip address flush dev cni0 scope global", elsewhere, vlans] {
            let bridge = Bridge::new(filter);
            bridge.peer.serve(8180);
            if change == vlans && !has_vlans(&bridge.node) {
                continue;
            }
            change.lines().for_each(|line| drop(bridge.node.run(line)));
            let _daemon = bridge.start(&["--cidr", CIDRS]);
            for address in [PEER, PEER6] {
                assert_answered_by_pod(&bridge.pod, address);
            }
            if change == vlans {
                for address in BEYOND {
                    assert_captured(&bridge.pod, address);
                }
            }
        }
    }
    let bridge = Bridge::new(false);
    bridge.peer.serve(8180);
    bridge.node.sysctl("net.ipv6.conf.cni0.disable_ipv6", "1");
    let _daemon = bridge.start(&["--cidr", CIDRS]);
    assert_captured(&bridge.pod, PEER);
    assert_answered_by_pod(&bridge.pod, PEER6);
}

/// As from a port of the bridge that leads out of the node.
#[test]
fn frames_to_the_bridge_itself_are_captured_from_every_client() {
    for filter in [false, true] {
        let bridge = Bridge::new(filter);
        bridge.pod.run("ip address add 192.0.2.5/32 dev eth0");
        bridge
            .pod
            .run("ip route change default via 10.244.0.1 src 192.0.2.5");
        bridge.node.run("ip route add 192.0.2.5/32 via 10.244.0.5");
        let daemon = bridge.start(&["--cidr", CIDRS]);
        assert_captured(&bridge.pod, BEYOND[0]);
        daemon.wait_for("client=192.0.2.5:");
    }
}

/// Whether bridges can have VLANs, as on the stock kernels.
fn has_vlans(node: &Namespace) -> bool {
    let has_vlans = node.enter(|| std::fs::exists("/proc/net/vlan").unwrap())
        || node
            .try_run("ip link set cni0 type bridge vlan_filtering 0")
            .status
            .success();
    assert!(has_vlans || !has_all(), "this kernel should have them");
    has_vlans
}

/// Another Pod forges the peer's SYN-ACK for an open connection.
#[test]
fn no_forged_frame_diverts_an_open_connection() {
    let bridge = Bridge::new(false);
    bridge.peer.serve(8180);
    let _daemon = bridge.start(&["--cidr", CIDRS]);
    let mut forger = bridge.forger();
    let mut connection = bridge.pod.http(PEER);
    let echoed = |answer: &str| answer.contains("Request received from ");
    assert!(echoed(connection.request(REQUEST).text()));
    forger.forge(&connection.client());
    let answered = bridge
        .node
        .run("nft list set bridge tproxy-pod pod-answered-v4");
    assert!(answered.contains("10.244.0.5 . 10.244.0.6"), "{answered}");
    assert!(echoed(connection.request(REQUEST).text()));
}

/// Longest time for which `--delay` delays an answer.
const LONGEST_DELAY: Duration = Duration::from_secs(60);

#[test]
fn a_bridge_remembers_a_connection_for_longer_than_the_server_keeps_it_without_data() {
    let steps = [
        DEADLINES.head,
        DEADLINES.body,
        LONGEST_DELAY,
        DEADLINES.response,
        DEADLINES.keep_alive,
    ];
    let longest: Duration = steps.iter().sum();
    assert!(Duration::from_secs(ESTABLISHED_TIMEOUT.into()) > longest);
}

#[test]
fn every_block_and_every_port_of_the_lists_is_captured_on_a_bridge() {
    let bridge = Bridge::new(true);
    let cidrs = "10.244.0.0/24,10.99.0.0/16,fd00:10:244::/64,fd00:99::/64";
    let arguments = ["--cidr", cidrs, "--dport", "8180,9000:9010,10000"];
    let _daemon = bridge.start(&arguments);
    for address in [
        "10.244.0.6",
        "10.99.7.7",
        "[fd00:10:244::6]",
        "[fd00:99::7]",
    ] {
        for port in ["8180", "9000", "9010", "10000"] {
            assert_captured(&bridge.pod, &format!("{address}:{port}"));
        }
    }
}
