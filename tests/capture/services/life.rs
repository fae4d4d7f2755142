//! Start, stop, death and healing of the program while clients use a Service.

use nix::sys::signal::Signal;

use super::{assert_answered_by_pod, assert_captured, lab, lab_addresses, services};
use crate::kube_proxy::{IPTABLES, NFTABLES};
use crate::lab::http_client::{HttpClient, REQUEST};
use crate::lab::kernel::owns_tables;
use crate::lab::{CIDRS, wait_until};

#[test]
fn a_stop_under_load_through_a_service_loses_no_connection() {
    for mode in [IPTABLES, NFTABLES] {
        let lab = lab(&mode);
        // One of each family.
        let services = services(&lab_addresses());
        let services = [&services[0], &services[3]].map(|it| it.address.as_str());
        let mut daemon = lab.start(&["--cidr", CIDRS]);
        daemon.stop_under_load(&lab.client, &services);
    }
}

#[test]
fn a_stop_finishes_an_open_request_through_a_service_and_new_ones_go_to_the_pod() {
    for mode in [IPTABLES, NFTABLES] {
        let lab = lab(&mode);
        let services = services(&lab_addresses());
        let mut daemon = lab.start(&["--cidr", CIDRS]);
        let open = |it: &super::Service| lab.client.http(&it.address);
        let mut busy: Vec<HttpClient> = services.iter().map(open).collect();
        for connection in &mut busy {
            connection.send("POST /late HTTP/1.1\r\nHost: pod\r\nContent-Length: 4\r\n\r\nhal");
        }
        wait_until("all are accepted", || {
            let open = lab.node.run("ss -Htn state established sport 8180");
            open.lines().count() == busy.len()
        });
        daemon.signal(Signal::SIGTERM);
        daemon.wait_for("Stopping: new connections go to the Pods");
        for service in &services {
            assert_answered_by_pod(&lab.client, &service.address);
        }
        for connection in &mut busy {
            let answer = connection.request("f");
            assert_eq!(answer.field("Connection"), "close");
            assert!(answer.text().ends_with("half"), "{answer:?}");
            connection.assert_closed();
        }
        assert_eq!(daemon.wait().code(), Some(0));
    }
}

#[test]
fn connections_to_a_service_from_before_the_start_survive_start_stop_and_restart() {
    for mode in [IPTABLES, NFTABLES] {
        let lab = lab(&mode);
        let services = services(&lab_addresses());
        let clients = [&lab.client, &lab.pod];
        let pairs = || {
            services
                .iter()
                .flat_map(|it| clients.map(|client| (client, it)))
        };
        let mut open: Vec<HttpClient> = pairs()
            .map(|(client, service)| client.http(&service.address))
            .collect();
        let mut check = |when: &str| {
            for connection in &mut open {
                assert_eq!(connection.request(REQUEST).text(), "pod", "{when}");
            }
        };
        check("before");
        for _ in 0..2 {
            let mut daemon = lab.start(&["--cidr", CIDRS]);
            for (client, service) in pairs() {
                check("while it captures");
                assert_captured(client, &daemon, &service.address, service.pod);
            }
            assert_eq!(daemon.stop(), Some(0));
            check("after the stop");
        }
    }
}

#[test]
fn after_a_stop_a_client_that_uses_a_port_again_reaches_the_pod_by_a_service() {
    for mode in [IPTABLES, NFTABLES] {
        let lab = lab(&mode);
        let from = ["192.0.2.2:20000", "[2001:db8:1::2]:20000"];
        let services = services(&lab_addresses());
        let mut daemon = lab.start(&["--cidr", CIDRS]);
        let ask = |expected: &str| {
            for (from, service) in from.iter().zip(&services) {
                let mut connection = lab.client.http_from(from, &service.address);
                let answer =
                    connection.request("GET / HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n");
                assert!(answer.text().starts_with(expected), "{answer:?}");
                connection.assert_closed();
            }
        };
        ask("Request received from pod ");
        assert_eq!(daemon.stop(), Some(0));
        ask("pod");
    }
}

/// Before Linux 5.12 the table stays, and its rules let the Pods answer.
#[test]
fn after_sigkill_the_next_connection_to_a_service_reaches_the_pod_and_the_next_start_captures() {
    for mode in [IPTABLES, NFTABLES] {
        let lab = lab(&mode);
        let services = services(&lab_addresses());
        for _ in 0..2 {
            let mut daemon = lab.start(&["--cidr", CIDRS]);
            for service in &services {
                assert_captured(&lab.client, &daemon, &service.address, service.pod);
            }
            daemon.kill();
            wait_until("the table is gone, or left", || {
                let ours = |it: &String| it.ends_with("inet tproxy-pod");
                lab.node.tables().iter().any(ours) != owns_tables()
            });
            for service in &services {
                assert_answered_by_pod(&lab.client, &service.address);
            }
        }
    }
}

#[test]
fn requests_to_a_service_are_captured_again_after_each_loss_of_a_rule_or_a_route() {
    let lab = lab(&IPTABLES);
    let services = services(&lab_addresses());
    let daemon = lab.start(&["--cidr", CIDRS]);
    let installed = lab.remains();
    for loss in [
        "ip rule del fwmark 0x1/0x1 lookup 100",
        "ip -6 rule del fwmark 0x1/0x1 lookup 100",
        "ip rule del iif lo fwmark 0x1/0x1",
        "ip -6 rule del iif lo fwmark 0x1/0x1",
        "ip route flush table 100",
        "ip -6 route flush table 100",
    ] {
        lab.node.run(loss);
        wait_until(loss, || lab.remains() == installed);
        for service in &services {
            assert_captured(&lab.client, &daemon, &service.address, service.pod);
        }
    }
}

/// Before Linux 5.12 a table has no owner: a flush lets the Pods answer.
#[test]
fn a_flush_removes_kube_proxys_rules_and_not_ours() {
    for mode in [IPTABLES, NFTABLES] {
        let lab = lab(&mode);
        let services = services(&lab_addresses());
        let daemon = lab.start(&["--cidr", CIDRS]);
        lab.node.run("nft flush ruleset");
        if !owns_tables() {
            assert_eq!(lab.node.tables(), [""; 0]);
            assert_answered_by_pod(&lab.client, services[0].pod);
            continue;
        }
        let ours = ["table inet tproxy-pod", "table bridge tproxy-pod"];
        assert_eq!(lab.node.tables(), ours, "{}", mode.name);
        let deleted = lab.node.try_run("nft delete table inet tproxy-pod");
        assert!(!deleted.status.success(), "the table has an owner");
        for service in &services {
            assert_captured(&lab.client, &daemon, service.pod, service.pod);
        }
        mode.load(&lab.node, &lab_addresses());
        for service in &services {
            assert_captured(&lab.client, &daemon, &service.address, service.pod);
        }
    }
}
