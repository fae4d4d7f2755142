//! Each proxy mode, for clients outside and for the Pod itself.

use super::{assert_answered_by_pod, assert_captured, lab, lab_addresses, services};
use crate::kube_proxy::{ABSENT, CLUSTER_IP, IPTABLES, LATE_NFTABLES, MODES, NFTABLES};
use crate::lab::{CIDRS, Lab, POD, POD6};

/// Counts captured packets with kube-proxy's mark beside the program's, where they are delivered.
const WATCH: &str = "table inet watch {
    counter marked-v4 { }
    counter marked-v6 { }
    chain input {
        type filter hook input priority 0;
        meta nfproto ipv4 tcp flags & (syn | ack) == syn meta mark & 0x4001 == 0x4001 counter name marked-v4
        meta nfproto ipv6 tcp flags & (syn | ack) == syn meta mark & 0x4001 == 0x4001 counter name marked-v6
    }
}";

/// SYNs counted by [`WATCH`].
fn marked(lab: &Lab, family: &str) -> u64 {
    let counter = lab
        .node
        .run(&format!("nft list counter inet watch marked-{family}"));
    let (_, rest) = counter.split_once("packets ").unwrap();
    rest.split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn a_cluster_ip_and_a_node_port_are_captured() {
    for mode in MODES {
        let lab = lab(&mode);
        let daemon = lab.start(&["--cidr", CIDRS]);
        for service in services(&lab_addresses()) {
            println!("{}: {}", mode.name, service.address);
            assert_captured(&lab.client, &daemon, &service.address, service.pod);
        }
    }
}

/// The client is outside the Pods' blocks, so kube-proxy masquerades it (0x4000): the mark is kept, and the
/// address is the client's own because POSTROUTING does not see the packet.
#[test]
fn a_client_that_kube_proxy_marks_to_be_masqueraded_is_named_by_its_own_address() {
    for mode in MODES {
        let lab = lab(&mode);
        lab.node.load("nft -f -", WATCH);
        let daemon = lab.start(&["--cidr", CIDRS]);
        for service in services(&lab_addresses()) {
            let is_v6 = service.pod == POD6;
            let family = if is_v6 { "v6" } else { "v4" };
            // A SYN that is answered late is sent again.
            let before = marked(&lab, family);
            assert_captured(&lab.client, &daemon, &service.address, service.pod);
            assert!(marked(&lab, family) > before, "{}", mode.name);
        }
    }
}

#[test]
fn a_pod_that_asks_the_service_that_leads_to_itself_is_captured() {
    for mode in MODES {
        let lab = lab(&mode);
        let daemon = lab.start(&["--cidr", CIDRS]);
        for service in services(&lab_addresses()) {
            println!("{}: {}", mode.name, service.address);
            assert_captured(&lab.pod, &daemon, &service.address, service.pod);
        }
    }
}

#[test]
fn a_service_inside_the_captured_blocks_is_translated_first() {
    for mode in MODES {
        let lab = lab(&mode);
        let cidrs = format!("{CIDRS},10.96.0.0/16,fd00:10:96::/112");
        let daemon = lab.start(&["--cidr", &cidrs, "--dport", "80,8180"]);
        for (service, pod) in CLUSTER_IP.iter().zip([POD, POD6]) {
            assert_captured(&lab.client, &daemon, service, pod);
        }
        for no_service in ["10.96.0.77:80", "[fd00:10:96::77]:80"] {
            assert_captured(&lab.client, &daemon, no_service, no_service);
        }
    }
}

#[test]
fn a_service_with_an_endpoint_that_no_pod_has_is_captured() {
    for mode in MODES {
        let lab = lab(&mode);
        let daemon = lab.start(&["--cidr", CIDRS]);
        for client in [&lab.client, &lab.pod] {
            for (service, endpoint) in ABSENT {
                assert_captured(client, &daemon, service, endpoint);
            }
        }
    }
}

/// A second try with a lost packet each time proves a loss; one without is a late timer of the machine.
#[test]
fn no_packet_of_a_captured_connection_to_a_service_is_sent_twice() {
    for mode in [IPTABLES, NFTABLES] {
        let lab = lab(&mode);
        let _daemon = lab.start(&["--cidr", CIDRS]);
        for service in services(&lab_addresses()) {
            let none_is_sent_twice = (0..5).any(|_| repeated_by(&lab, &service.address) == 0);
            assert!(none_is_sent_twice, "{}: {}", mode.name, service.address);
        }
    }
}

/// Retransmissions of all ends during a captured request.
fn repeated_by(lab: &Lab, service: &str) -> u64 {
    let sent_twice = || -> u64 {
        let ends = [&lab.client, &lab.node];
        ends.map(|it| it.counter("TCPSynRetrans") + it.counter("TCPTimeouts"))
            .iter()
            .sum()
    };
    let before = sent_twice();
    let answer = lab.client.get(service, "/");
    assert!(answer.contains("Request received from "), "{answer}");
    sent_twice() - before
}

#[test]
fn what_a_service_leads_to_at_another_port_reaches_the_pod() {
    for mode in MODES {
        let lab = lab(&mode);
        lab.pod.serve(80);
        let _daemon = lab.start(&["--cidr", CIDRS]);
        for web in ["10.96.0.10:80", "[fd00:10:96::10]:80", "192.0.2.1:30080"] {
            assert_answered_by_pod(&lab.client, web);
        }
    }
}

/// Without the program, the chain at -50 translates as the one at -100 does.
#[test]
fn a_chain_of_the_type_nat_takes_effect_at_the_priority_of_all_of_them() {
    let lab = Lab::new();
    LATE_NFTABLES.load(&lab.node, &lab_addresses());
    lab.node.load(
        "nft -f -",
        "table ip seen { counter translated { }; chain prerouting {
            type filter hook prerouting priority -99;
            ip daddr 10.244.0.5 tcp dport 8180 counter name translated; }; }",
    );
    lab.pod.serve(8180);
    let service = &services(&lab_addresses())[0];
    assert_answered_by_pod(&lab.client, &service.address);
    let counter = lab.node.run("nft list counter ip seen translated");
    assert!(!counter.contains("packets 0 "), "{counter}");
    let listed = lab.node.run("nft list chain ip kube-proxy nat-prerouting");
    assert!(listed.contains("priority -50"), "{listed}");
}
