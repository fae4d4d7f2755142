//! What is captured and what is not, and the contents of echo and log, with real packets.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::lab::{CIDRS, Lab, PATIENCE, POD, POD6, is_echoed};

/// Whether the program has answered, and not the Pod.
fn echoed(answer: &str) -> bool {
    answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("Request received from ")
}

#[test]
fn a_captured_port_of_a_pod_is_answered() {
    let lab = Lab::new();
    lab.pod.serve(8180);
    let _daemon = lab.start(&[]);
    assert!(echoed(&lab.client.get(POD, "/hello")));
}

#[test]
fn a_captured_port_of_an_address_without_a_pod_is_answered() {
    let lab = Lab::new();
    let _daemon = lab.start(&[]);
    assert!(echoed(&lab.client.get("10.244.77.9:8180", "/")));
}

#[test]
fn every_block_and_every_port_of_the_lists_is_captured() {
    let lab = Lab::new();
    let cidrs = "10.244.0.0/24,10.99.0.0/16,172.30.1.1/32";
    let _daemon = lab.start(&["--cidr", cidrs, "--dport", "8180,9000:9010,10000"]);
    for address in ["10.244.0.5", "10.99.255.255", "172.30.1.1"] {
        for port in ["8180", "9000", "9005", "9010", "10000"] {
            let address = format!("{address}:{port}");
            assert!(echoed(&lab.client.get(&address, "/")), "{address}");
        }
    }
}

#[test]
fn ports_and_addresses_beside_the_lists_reach_what_they_reached_before() {
    let lab = Lab::new();
    lab.node.run("ip address add 10.99.0.1/32 dev lo");
    for port in [80, 8179, 8181, 8999, 9011] {
        lab.pod.serve(port);
    }
    lab.node.serve(8180);
    let _daemon = lab.start(&["--dport", "8180,9000:9010"]);
    for port in [80, 8179, 8181, 8999, 9011] {
        assert!(
            lab.client
                .get(&format!("10.244.0.5:{port}"), "/")
                .ends_with("pod"),
            "{port}"
        );
    }
    for address in ["10.99.0.1:8180", "192.0.2.1:8180"] {
        assert!(lab.client.get(address, "/").ends_with("pod"), "{address}");
    }
}

#[test]
fn udp_on_the_captured_port_reaches_the_pod() {
    let lab = Lab::new();
    lab.pod.serve_udp(8180);
    let _daemon = lab.start(&["--cidr", CIDRS]);
    for (from, to) in [("0.0.0.0:0", POD), ("[::]:0", POD6)] {
        let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
        let echoed = lab.client.enter(|| is_echoed(from, to, *PATIENCE));
        assert!(echoed.unwrap(), "{to}");
    }
}

#[test]
fn ipv6_is_captured_as_ipv4_is() {
    let lab = Lab::new();
    lab.pod.serve(8180);
    lab.pod.serve(80);
    let _daemon = lab.start(&[
        "--cidr",
        "fd00:10:244::/56,fd00:99::/64",
        "--dport",
        "8180,9000:9010",
    ]);
    for address in [POD6, "[fd00:10:244:7::9]:8180", "[fd00:99::1]:9003"] {
        assert!(echoed(&lab.client.get(address, "/")), "{address}");
    }
    assert!(lab.client.get("[fd00:10:244::5]:80", "/").ends_with("pod"));
    assert!(
        lab.client.get(POD, "/").ends_with("pod"),
        "no IPv4 block is captured"
    );
}

#[test]
fn a_mixed_list_captures_both_families() {
    let lab = Lab::new();
    let daemon = lab.start(&["--cidr", CIDRS]);
    assert!(echoed(&lab.client.get(POD, "/")));
    assert!(echoed(&lab.client.get(POD6, "/")));
    daemon.wait_for("Binding TCP TProxy listener to 127.0.0.1:1");
    daemon.wait_for("Binding TCP TProxy listener to [::1]:1");
}

#[test]
fn a_node_without_ipv6_works_for_ipv4() {
    let lab = Lab::new();
    lab.node.sysctl("net.ipv6.conf.all.disable_ipv6", "1");
    let mut daemon = lab.start(&[]);
    assert!(echoed(&lab.client.get(POD, "/")));
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn the_echo_and_the_log_name_client_and_destination() {
    for (client, address) in [("192.0.2.2", POD), ("[2001:db8:1::2]", POD6)] {
        let lab = Lab::new();
        let daemon = lab.start(&["--cidr", CIDRS]);
        let mut stream = lab.client.connect(address).unwrap();
        let from = format!("{client}:{}", stream.local_addr().unwrap().port());
        let request = "GET /hello HTTP/1.1\r\nHost: web.test\r\nUser-Agent: a \"b\" \té\r\n\
                       Connection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (_, echo) = answer.split_once("\r\n\r\n").unwrap();
        let lines: Vec<&str> = echo.split('\n').collect();
        assert_eq!(
            lines[0],
            "Request received from web.test destination /hello : GET /hello HTTP/1.1"
        );
        assert_eq!(lines[1], format!("Client: {from}"));
        assert_eq!(lines[2], format!("Destination: {address}"));
        assert_eq!(lines[3], "Node: lab");
        assert!(
            lines[4].starts_with("Time: 20") && lines[4].ends_with('Z'),
            "{}",
            lines[4]
        );
        assert!(echo.ends_with(&format!("\n\n{request}")), "{echo}");
        let line = daemon.wait_for("Received request to /hello : ");
        let fields = format!(
            "client={from} destination={address} method=GET target=/hello version=HTTP/1.1 host=\"web.test\" \
             user_agent=\"a \\\"b\\\" \\t\\xc3\\xa9\" body=0 status=200 took="
        );
        assert!(line.contains(&fields), "{line}\n{fields}");
    }
}

#[test]
fn a_thousand_blocks_are_captured() {
    let lab = Lab::new();
    let cidrs: Vec<String> = (0..1000)
        .map(|it| format!("10.{}.{}.0/28", 100 + it / 250, it % 250))
        .collect();
    let v6: Vec<String> = (0..1000).map(|it| format!("fd00:{it:x}::/64")).collect();
    let ports: Vec<String> = (0..40).map(|it| (9000 + 2 * it).to_string()).collect();
    let cidrs = format!("{},{}", cidrs.join(","), v6.join(","));
    let _daemon = lab.start(&["--cidr", &cidrs, "--dport", &ports.join(",")]);
    for address in [
        "10.100.0.1:9000",
        "10.103.249.15:9078",
        "[fd00::1]:9000",
        "[fd00:3e7::1]:9078",
    ] {
        assert!(echoed(&lab.client.get(address, "/")), "{address}");
    }
    let rules = lab.node.run("nft list chain inet tproxy-pod PREROUTING");
    assert_eq!(
        rules.matches("jump").count(),
        4,
        "for each family, a rule for TCP and one for ICMP errors:\n{rules}"
    );
}

/// With the program's mark, a client within the captured block would have a local source address.
#[test]
fn a_node_that_validates_sources_by_mark_captures_all_clients() {
    for reverse_path in ["0", "1", "2"] {
        let lab = Lab::new();
        for scope in ["all", "default", "client", "pod"] {
            let name = |sysctl| format!("net.ipv4.conf.{scope}.{sysctl}");
            lab.node.sysctl(&name("src_valid_mark"), "1");
            lab.node.sysctl(&name("rp_filter"), reverse_path);
        }
        let _daemon = lab.start(&[]);
        assert!(echoed(&lab.client.get(POD, "/")));
        assert!(echoed(&lab.pod.get("10.244.7.9:8180", "/")));
    }
}

#[test]
fn the_node_probes_the_listener_directly() {
    let lab = Lab::new();
    let mut daemon = lab.start(&["--cidr", CIDRS]);
    for address in ["127.0.0.1:1", "[::1]:1"] {
        let answer = lab.node.get(address, "/healthz");
        assert!(
            answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nok\n"),
            "{answer}"
        );
        assert!(
            lab.node
                .get(address, "/nothing")
                .starts_with("HTTP/1.1 404 Not Found\r\n")
        );
    }
    assert!(
        echoed(&lab.client.get(POD, "/healthz")),
        "a Pod's own path is captured like any other"
    );
    assert_eq!(daemon.stop(), Some(0));
    let probes = daemon.log().matches("Received request to /healthz").count();
    assert_eq!(probes, 1, "probes are not logged");
}

#[test]
fn only_the_node_reaches_the_listener_itself() {
    let lab = Lab::new();
    let _daemon = lab.start(&["--cidr", CIDRS]);
    for (client, address) in [
        (&lab.client, "192.0.2.1:1"),
        (&lab.client, "[2001:db8:1::1]:1"),
        (&lab.pod, "10.244.0.1:1"),
        (&lab.pod, "[fd00:10:244::1]:1"),
    ] {
        let refused = client.connect(address).unwrap_err().kind();
        assert_eq!(refused, std::io::ErrorKind::ConnectionRefused, "{address}");
    }
}

#[test]
fn a_firewall_of_the_node_has_to_accept_the_mark_itself() {
    let lab = Lab::new();
    let _daemon = lab.start(&[]);
    let connect = || {
        let patience = Duration::from_millis(500);
        let pod = POD.parse().unwrap();
        let connected = lab
            .client
            .enter(|| TcpStream::connect_timeout(&pod, patience));
        connected.map(drop).map_err(|error| error.kind())
    };
    lab.node.run("iptables -P INPUT DROP");
    assert_eq!(connect(), Err(ErrorKind::TimedOut));
    lab.node.run("nft add table ip other");
    lab.node
        .run("nft add chain ip other input { type filter hook input priority -1; }");
    lab.node
        .run("nft add rule ip other input meta mark & 0x1 == 0x1 accept");
    assert_eq!(connect(), Err(ErrorKind::TimedOut), "another table");
    lab.node
        .run("iptables -I INPUT -m mark --mark 0x1/0x1 -j ACCEPT");
    assert!(echoed(&lab.client.get(POD, "/")));
}

#[test]
fn the_nodes_own_requests_are_not_captured_whichever_address_they_go_to() {
    let lab = Lab::new();
    lab.pod.serve(8180);
    let _daemon = lab.start(&["--cidr", CIDRS]);
    for pod in [POD, POD6] {
        assert!(lab.node.get(pod, "/").ends_with("pod"));
    }
    for its_own in ["10.244.0.1:8180", "[fd00:10:244::1]:8180"] {
        let refused = lab.node.connect(its_own).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{its_own}");
    }
}
