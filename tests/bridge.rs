//! Pods of one bridge: they talk to each other below IP, and are captured all the same, where the
//! kernel can lift frames from a bridge; where it cannot, nothing of theirs changes.

mod lab;

use lab::bridge::{Bridge, PEER, PEER6};
use lab::conversation::{Conversation, REQUEST};
use lab::kernel::broutes;
use lab::script::ScriptFile;
use lab::{CIDRS, Daemon, wait_until};

/// Beyond the bridge, with the node as the gateway; no Pod has them.
const BEYOND: [&str; 2] = ["10.244.7.9:8180", "[fd00:10:244:7::9]:8180"];

/// Who answers a Pod that asks another of its bridge.
fn is_answered_right(answer: &str) {
    match broutes() {
        true => assert!(answer.contains("Request received from "), "{answer}"),
        false => assert!(answer.ends_with("pod"), "{answer}"),
    }
}

/// The log says that frames are lifted, or that they are not, and why.
fn says_so(daemon: &Daemon) {
    match broutes() {
        true => daemon.wait_for("Created table bridge tproxy-pod, owned"),
        false => daemon.wait_for("WARN  Not capturing between Pods of one bridge: "),
    };
}

#[test]
fn a_pod_of_the_same_bridge_is_captured() {
    for filter in [false, true] {
        let bridge = Bridge::new(filter);
        bridge.peer.serve(8180);
        let daemon = bridge.start(&["--cidr", CIDRS]);
        says_so(&daemon);
        for address in [PEER, PEER6] {
            is_answered_right(&bridge.pod.get(address, "/"));
        }
    }
}

#[test]
fn an_address_beyond_the_bridge_is_captured() {
    for filter in [false, true] {
        let bridge = Bridge::new(filter);
        let _daemon = bridge.start(&["--cidr", CIDRS]);
        for address in BEYOND {
            let captured = broutes() || !filter;
            let answer = bridge.pod.enter(|| {
                let patience = std::time::Duration::from_secs(2);
                std::net::TcpStream::connect_timeout(&address.parse().unwrap(), patience)
            });
            assert_eq!(answer.is_ok(), captured, "{address}, bridge-nf {filter}");
            if captured {
                let answer = bridge.pod.get(address, "/");
                assert!(answer.contains("Request received from "), "{answer}");
            }
        }
    }
}

#[test]
fn what_is_captured_on_a_bridge_is_the_pods_own_address() {
    let bridge = Bridge::new(false);
    bridge.peer.serve(8180);
    let daemon = bridge.start(&["--cidr", CIDRS]);
    let mut connection = bridge.pod.talk(PEER);
    let client = connection.client();
    let answer = connection.ask(REQUEST);
    if broutes() {
        let text = answer.text();
        assert!(
            text.contains(&format!("Client: {client}\nDestination: {PEER}\n")),
            "{text}"
        );
        daemon.wait_for(&format!("client={client} destination={PEER} "));
    } else {
        assert_eq!(answer.text(), "pod");
    }
}

/// Neither the frames of a connection from before, nor those that are captured, are forwarded by the
/// node.
#[test]
fn a_node_that_forwards_nothing_disturbs_no_connection_on_its_bridge() {
    let bridge = Bridge::new(false);
    bridge.peer.serve(8180);
    let mut open: Vec<Conversation> = [PEER, PEER6].map(|it| bridge.pod.talk(it)).into();
    let mut pod_answers = |when: &str| {
        for connection in &mut open {
            assert_eq!(connection.ask(REQUEST).text(), "pod", "{when}");
        }
    };
    pod_answers("before");
    bridge.node.run("iptables -P FORWARD DROP");
    bridge.node.run("ip6tables -P FORWARD DROP");
    let mut daemon = bridge.start(&["--cidr", CIDRS]);
    for _ in 0..3 {
        pod_answers("while it intercepts");
        for address in [PEER, PEER6] {
            is_answered_right(&bridge.pod.get(address, "/"));
        }
    }
    assert_eq!(daemon.stop(), Some(0));
    pod_answers("after the stop");
    for address in [PEER, PEER6] {
        assert!(bridge.pod.get(address, "/").ends_with("pod"));
    }
    let forwarded = bridge.node.run("iptables -L FORWARD -v -x");
    assert!(forwarded.contains("policy DROP 0 packets"), "{forwarded}");
}

/// As kube-proxy drops it: what conntrack has not seen from its start. With bridge-nf the node's
/// conntrack sees both ways of a bridged connection, without it none.
#[test]
fn connections_that_no_rule_takes_are_the_pods_also_where_invalid_packets_are_dropped() {
    for filter in [false, true] {
        let bridge = Bridge::new(filter);
        bridge.peer.serve(8180);
        for iptables in ["iptables", "ip6tables"] {
            bridge.node.run(&format!(
                "{iptables} -A FORWARD -m conntrack --ctstate INVALID -j DROP"
            ));
        }
        let script = include_str!("../src/rules.iptables");
        let script = script.replace("-A PREROUTING", "-A PREROUTING -i elsewhere");
        let rules = ScriptFile::new(&script);
        let _daemon = bridge.start(&["--cidr", CIDRS, "--rules", rules.path()]);
        for address in [PEER, PEER6] {
            let mut connection = bridge.pod.talk(address);
            for _ in 0..3 {
                assert_eq!(connection.ask(REQUEST).text(), "pod", "{address}");
            }
        }
    }
}

#[test]
fn a_stop_finishes_what_came_over_the_bridge_and_leaves_the_rest_to_the_pod() {
    let bridge = Bridge::new(false);
    bridge.peer.serve(8180);
    let mut daemon = bridge.start(&["--cidr", CIDRS]);
    let mut open: Vec<Conversation> = [PEER, PEER6].map(|it| bridge.pod.talk(it)).into();
    let (first, second) = REQUEST.split_at(10);
    open.iter_mut().for_each(|it| it.send(first));
    if broutes() {
        wait_until("both are read", || {
            bridge.node.run("ss -Htn state established").lines().count() == 2
        });
    }
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    daemon.wait_for("Stopping: new connections go to the Pods");
    for address in [PEER, PEER6] {
        assert!(bridge.pod.get(address, "/").ends_with("pod"), "{address}");
    }
    for connection in &mut open {
        let answer = connection.ask(second);
        match broutes() {
            true => assert_eq!(answer.field("Connection"), "close"),
            false => assert_eq!(answer.text(), "pod"),
        }
    }
    assert_eq!(daemon.wait().code(), Some(0));
    assert_eq!(bridge.node.tables(), [""; 0]);
}

#[test]
fn sigkill_leaves_no_rule_on_the_bridge() {
    let bridge = Bridge::new(false);
    bridge.peer.serve(8180);
    let mut daemon = bridge.start(&["--cidr", CIDRS]);
    let tables = bridge.node.tables();
    assert_eq!(tables.len(), 1 + usize::from(broutes()), "{tables:?}");
    daemon.kill();
    assert_eq!(bridge.node.tables(), [""; 0]);
    for address in [PEER, PEER6] {
        assert!(bridge.pod.get(address, "/").ends_with("pod"), "{address}");
    }
}

#[test]
fn a_second_start_finds_nothing_in_its_way_on_the_bridge() {
    let bridge = Bridge::new(false);
    bridge.peer.serve(8180);
    bridge.node.run("nft add table bridge tproxy-pod");
    bridge.node.run("nft add chain bridge tproxy-pod old");
    for _ in 0..2 {
        let daemon = bridge.start(&["--cidr", CIDRS]);
        says_so(&daemon);
        is_answered_right(&bridge.pod.get(PEER, "/"));
    }
}

/// IP has no part in what is not captured: other ports, and the datagrams of the captured one.
#[test]
fn what_is_not_captured_stays_on_the_bridge() {
    let bridge = Bridge::new(false);
    bridge.peer.serve(80);
    bridge.peer.serve_udp(8180);
    let seen = || bridge.node.run("iptables -t raw -L PREROUTING -v -x -n");
    bridge
        .node
        .run("iptables -t raw -A PREROUTING -d 10.244.0.6");
    let _daemon = bridge.start(&["--cidr", CIDRS]);
    assert!(bridge.pod.get("10.244.0.6:80", "/").ends_with("pod"));
    let socket = bridge
        .pod
        .enter(|| std::net::UdpSocket::bind("0.0.0.0:0").unwrap());
    socket.set_read_timeout(Some(lab::PATIENCE)).unwrap();
    socket.send_to(b"ping", PEER).unwrap();
    assert_eq!(socket.recv(&mut [0; 10]).unwrap(), 4);
    let counters = seen();
    let counted = counters.lines().nth(2).unwrap().split_whitespace().next();
    assert_eq!(counted, Some("0"), "{counters}");
}

/// IP would drop what is lifted: the way back leads by the bridge, and not by its port.
#[test]
fn where_ip_would_drop_what_is_lifted_it_stays_on_the_bridge() {
    for (sysctl, address) in [
        ("net.ipv4.conf.default.rp_filter", PEER),
        ("net.ipv4.conf.all.rp_filter", PEER),
        ("net.ipv4.conf.all.src_valid_mark", PEER),
        ("net.ipv6.conf.default.disable_ipv6", PEER6),
    ] {
        let bridge = Bridge::new(false);
        bridge.peer.serve(8180);
        bridge.node.sysctl(sysctl, "1");
        let daemon = bridge.start(&["--cidr", CIDRS]);
        let family = if address == PEER { "IPv4" } else { "IPv6" };
        daemon.wait_for(&format!(
            "Not capturing {family} between Pods of one bridge: {sysctl} is 1, "
        ));
        assert!(bridge.pod.get(address, "/").ends_with("pod"), "{sysctl}");
        let other = if address == PEER { PEER6 } else { PEER };
        is_answered_right(&bridge.pod.get(other, "/"));
    }
}
