//! Services for Pods on a bridge, as in flannel, k3s and docker. With `bridge-nf-call-iptables=1`, br_netfilter
//! translates on the bridge, and the rules that come first of all meet the packet again.

use super::{assert_answered_by_pod, assert_captured, services};
use crate::kube_proxy::{ABSENT, Addresses, CLUSTER_IP, IPTABLES, LATE_NFTABLES, NFTABLES};
use crate::lab::CIDRS;
use crate::lab::bridge::{Bridge, PEER, PEER6};
use crate::lab::http_client::{HttpClient, REQUEST};

/// The Pod and the node of a [`Bridge`].
fn addresses() -> Addresses {
    Addresses {
        pod: ["10.244.0.5", "fd00:10:244::5"].map(|it| it.parse().unwrap()),
        node: ["10.244.0.1", "fd00:10:244::1"].map(|it| it.parse().unwrap()),
    }
}

#[test]
fn services_are_captured_for_every_pod_of_a_bridge() {
    for filter in [false, true] {
        for mode in [IPTABLES, NFTABLES, LATE_NFTABLES] {
            let bridge = Bridge::new(filter);
            mode.load(&bridge.node, &addresses());
            let daemon = bridge.start(&["--cidr", CIDRS]);
            for service in services(&addresses()) {
                println!("{}, bridge-nf {filter}: {}", mode.name, service.address);
                // The Pod's own Service leads back to it.
                for client in [&bridge.peer, &bridge.pod] {
                    assert_captured(client, &daemon, &service.address, service.pod);
                }
            }
            for (service, endpoint) in ABSENT {
                assert_captured(&bridge.peer, &daemon, service, endpoint);
            }
            for peer in [PEER, PEER6] {
                assert_captured(&bridge.pod, &daemon, peer, peer);
            }
        }
    }
}

#[test]
fn a_pod_that_asks_its_own_service_is_captured_with_and_without_hairpin_mode() {
    for filter in [false, true] {
        for hairpin in ["on", "off"] {
            let bridge = Bridge::new(filter);
            let hairpin = format!("ip link set pod type bridge_slave hairpin {hairpin}");
            bridge.node.run(&hairpin);
            IPTABLES.load(&bridge.node, &addresses());
            let daemon = bridge.start(&["--cidr", CIDRS]);
            for service in services(&addresses()) {
                assert_captured(&bridge.pod, &daemon, &service.address, service.pod);
            }
        }
    }
}

/// Systemd's default is 2; with 1, conntrack's and the mark's way back count.
#[test]
fn services_are_captured_on_a_bridge_whatever_the_source_validation() {
    for filter in [false, true] {
        for reverse_path in ["0", "1", "2"] {
            let bridge = Bridge::new(filter);
            for scope in ["all", "default", "cni0", "pod", "peer"] {
                let conf = |name| format!("net.ipv4.conf.{scope}.{name}");
                bridge.node.sysctl(&conf("rp_filter"), reverse_path);
                bridge
                    .node
                    .sysctl(&conf("src_valid_mark"), reverse_path.min("1"));
            }
            IPTABLES.load(&bridge.node, &addresses());
            let daemon = bridge.start(&["--cidr", CIDRS]);
            for service in services(&addresses()) {
                for client in [&bridge.peer, &bridge.pod] {
                    assert_captured(client, &daemon, &service.address, service.pod);
                }
            }
        }
    }
}

/// Without bridge-nf the Pod's answer would not be translated back, as on any node.
#[test]
fn connections_over_a_bridge_to_a_service_from_before_the_start_stay_with_the_pod() {
    for mode in [IPTABLES, NFTABLES] {
        let bridge = Bridge::new(true);
        mode.load(&bridge.node, &addresses());
        bridge.pod.serve(8180);
        let services = services(&addresses());
        let open = |it: &super::Service| bridge.peer.http(&it.address);
        let mut open: Vec<HttpClient> = services.iter().map(open).collect();
        let mut pod_answers = |when: &str| {
            for connection in &mut open {
                assert_eq!(connection.request(REQUEST).text(), "pod", "{when}");
            }
        };
        pod_answers("before");
        let mut daemon = bridge.start(&["--cidr", CIDRS]);
        for _ in 0..3 {
            pod_answers("while it captures");
            for service in &services {
                assert_captured(&bridge.peer, &daemon, &service.address, service.pod);
            }
        }
        assert_eq!(daemon.stop(), Some(0));
        pod_answers("after the stop");
        for service in &services {
            assert_answered_by_pod(&bridge.peer, &service.address);
        }
    }
}

/// Frames to the bridge's own address are redirected by `--cidr`, before any translation.
#[test]
fn services_inside_the_captured_blocks_are_translated_first() {
    for filter in [false, true] {
        let bridge = Bridge::new(filter);
        IPTABLES.load(&bridge.node, &addresses());
        let cidrs = format!("{CIDRS},10.96.0.0/16,fd00:10:96::/112");
        let daemon = bridge.start(&["--cidr", &cidrs, "--dport", "80,8180"]);
        for (service, pod) in CLUSTER_IP
            .iter()
            .zip(["10.244.0.5:8180", "[fd00:10:244::5]:8180"])
        {
            assert_captured(&bridge.peer, &daemon, service, pod);
            assert_captured(&bridge.pod, &daemon, service, pod);
        }
        for no_service in ["10.96.0.77:80", "[fd00:10:96::77]:80"] {
            assert_captured(&bridge.pod, &daemon, no_service, no_service);
        }
    }
}
