//! Addresses of the node itself within a captured block: no Pod has them, and they are not captured.

use crate::lab::bridge::{Bridge, PEER, PEER6};
use crate::lab::http_client::REQUEST;
use crate::lab::{CIDRS, Lab, Namespace, POD, POD6, wait_until};

/// Blocks that contain all addresses of the lab, and the link-local ones.
const ALL_OF_LAB: &str = "192.0.2.0/24,2001:db8:1::/64,10.244.0.0/16,fd00:10:244::/56,fe80::/64";

/// The node's addresses on both sides, with the captured port.
const OF_NODE: [&str; 4] = [
    "192.0.2.1:8180",
    "[2001:db8:1::1]:8180",
    "10.244.0.1:8180",
    "[fd00:10:244::1]:8180",
];

/// An address that the node gets after the start, and the captured port.
const LATER: [&str; 2] = ["10.244.7.9:8180", "[fd00:10:244:7::9]:8180"];

#[track_caller]
fn assert_captured(client: &Namespace, address: &str) {
    let answer = client.get(address, "/");
    assert!(
        answer.contains("Request received from "),
        "{address}: {answer}"
    );
}

/// Asserts that the node's own server answers, which says `pod` like that of a Pod.
#[track_caller]
fn assert_answered_by_node(client: &Namespace, address: &str) {
    let answer = client.get(address, "/");
    assert!(answer.ends_with("\r\n\r\npod"), "{address}: {answer}");
}

#[test]
fn the_nodes_addresses_in_captured_blocks_are_not_captured_and_all_others_are() {
    let lab = Lab::new();
    lab.node.serve(8180);
    for options in [&[][..], &["--from-node"]] {
        let mut daemon = lab.start(&[&["--cidr", ALL_OF_LAB], options].concat());
        for address in OF_NODE {
            for client in [&lab.client, &lab.pod, &lab.node] {
                assert_answered_by_node(client, address);
            }
        }
        for of_network in ["192.0.2.77:8180", "[2001:db8:1::77]:8180"] {
            assert_captured(&lab.pod, of_network);
        }
        for of_client in ["192.0.2.2:8180", "[2001:db8:1::2]:8180"] {
            assert_captured(&lab.pod, of_client);
        }
        for address in [POD, POD6] {
            assert_captured(&lab.client, address);
        }
        assert_eq!(daemon.stop(), Some(0));
    }
}

#[test]
fn the_nodes_link_local_address_in_a_captured_block_is_not_captured() {
    let lab = Lab::new();
    lab.node.serve(8180);
    let shown = lab.node.run("ip -6 -o address show dev client scope link");
    let mut words = shown.split_whitespace();
    words.find(|word| *word == "inet6").unwrap();
    let (address, _) = words.next().unwrap().split_once('/').unwrap();
    let shown = lab.client.run("ip -o link show eth0");
    let (scope, _) = shown.split_once(':').unwrap();
    let address = format!("[{address}%{scope}]:8180");
    let _daemon = lab.start(&["--cidr", ALL_OF_LAB]);
    assert_answered_by_node(&lab.client, &address);
    assert_captured(&lab.client, POD6);
}

#[test]
fn the_address_of_a_bridge_is_not_captured_and_those_of_its_pods_are() {
    for filter in [false, true] {
        let bridge = Bridge::new(filter);
        bridge.node.serve(8180);
        let _daemon = bridge.start(&["--cidr", CIDRS]);
        for address in &OF_NODE[2..] {
            let mut connection = bridge.pod.http(address);
            for _ in 0..3 {
                assert_eq!(connection.request(REQUEST).text(), "pod", "{address}");
            }
        }
        for address in [PEER, PEER6].into_iter().chain(LATER) {
            assert_captured(&bridge.pod, address);
        }
    }
}

#[test]
fn an_address_that_the_node_gets_and_loses_is_its_own_meanwhile() {
    let lab = Lab::new();
    lab.node.serve(8180);
    let _daemon = lab.start(&["--cidr", CIDRS]);
    let mut open = LATER.map(|address| lab.client.http(address));
    let mut open_are_captured = || {
        for connection in &mut open {
            let answer = connection.request(REQUEST);
            let text = answer.text();
            assert!(text.contains("Request received from "), "{text}");
        }
    };
    open_are_captured();
    for _ in 0..2 {
        lab.node.ip("address add 10.244.7.9/32 dev lo
                     address add fd00:10:244:7::9/128 dev lo nodad");
        // The kernel adds the route of an IPv6 address later, on a work queue.
        wait_until("both addresses are local", || {
            let shown = lab.node.run("ip -6 route show table local");
            shown.contains("local fd00:10:244:7::9 ")
        });
        for address in LATER {
            assert_answered_by_node(&lab.client, address);
        }
        open_are_captured();
        lab.node.ip("address delete 10.244.7.9/32 dev lo
                     address delete fd00:10:244:7::9/128 dev lo");
        for address in LATER {
            assert_captured(&lab.client, address);
        }
        open_are_captured();
    }
}

/// Ports of the node that lead to Pods, and Services that lead to the node itself.
#[test]
fn a_service_is_judged_by_the_address_behind_its_translation() {
    let lab = Lab::new();
    lab.node.serve(8180);
    lab.node.load(
        "nft -f -",
        "table inet services {
            chain prerouting {
                type nat hook prerouting priority dstnat
                ip daddr 192.0.2.1 tcp dport 30080 dnat ip to 10.244.0.5:8180
                ip6 daddr 2001:db8:1::1 tcp dport 30080 dnat ip6 to [fd00:10:244::5]:8180
                ip daddr 10.96.0.1 tcp dport 443 dnat ip to 192.0.2.1:8180
                ip6 daddr fd00:96::1 tcp dport 443 dnat ip6 to [2001:db8:1::1]:8180
            }
        }",
    );
    let _daemon = lab.start(&["--cidr", ALL_OF_LAB]);
    for node_port in ["192.0.2.1:30080", "[2001:db8:1::1]:30080"] {
        assert_captured(&lab.client, node_port);
    }
    for of_node in ["10.96.0.1:443", "[fd00:96::1]:443"] {
        assert_answered_by_node(&lab.client, of_node);
    }
}

/// An equal address type is not enough: table 100 makes the captured blocks local for marked packets only.
#[test]
fn an_address_is_captured_whatever_mark_its_packets_have_already() {
    let lab = Lab::new();
    lab.node.load(
        "nft -f -",
        "table inet other {
            chain prerouting {
                type filter hook prerouting priority raw
                tcp dport 8180 meta mark set 0x1
            }
        }",
    );
    let _daemon = lab.start(&["--cidr", CIDRS]);
    for address in [POD, POD6] {
        assert_captured(&lab.client, address);
    }
}
