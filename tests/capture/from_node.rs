//! `--from-node`: connections of the node itself to captured addresses and ports are captured, and nothing else of
//! the node is touched. scripts/kernels.sh runs these tests from Linux 5.12 on; before, the option has no effect.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv6Addr, SocketAddr};
use std::thread;

use nix::sys::signal::{Signal, kill};
use tproxy_pod::http::echo::MAX_ECHO;

use crate::lab::bridge::{Bridge, PEER, PEER6};
use crate::lab::cluster::Cluster;
use crate::lab::http_client::{HttpClient, REQUEST};
use crate::lab::{
    CIDRS, Daemon, Lab, Namespace, PATIENCE, POD, POD6, PROGRAM, connect_from, wait_until,
};
use crate::matrix::networks::PTP;

/// Captures what the node sends, too.
const OPTIONS: [&str; 3] = ["--cidr", CIDRS, "--from-node"];

/// Addresses without a Pod, to which the node has a route.
const ABSENT: [&str; 2] = ["10.244.77.9:8180", "[fd00:10:244:77::9]:8180"];

/// The node's addresses toward the Pod.
const NODE: [&str; 2] = ["10.244.0.1", "fd00:10:244::1"];

/// A Service's addresses.
const CLUSTER_IPS: [&str; 2] = ["10.96.0.10:80", "[fd00:10:96::10]:80"];

/// A lab with a web server on the Pod's captured port.
fn lab() -> Lab {
    let lab = lab_without_server();
    lab.pod.serve(8180);
    lab
}

/// A lab with the node's routes to both blocks and to Services.
fn lab_without_server() -> Lab {
    let lab = Lab::new();
    lab.node.batch(
        "route add 10.244.0.0/16 via 10.244.0.5
         route add fd00:10:244::/56 via fd00:10:244::5
         route add 10.96.0.0/16 via 10.244.0.5
         route add fd00:10:96::/112 via fd00:10:244::5",
    );
    lab
}

/// Asserts that tproxy-pod answers, and shows the client's address and the destination.
#[track_caller]
fn assert_captured(client: &Namespace, address: &str) {
    assert_captured_as(client, address, address);
}

#[track_caller]
fn assert_captured_as(client: &Namespace, address: &str, destination: &str) {
    let mut connection = client.http(address);
    let expected = format!(
        "Client: {}\nDestination: {destination}\n",
        connection.client()
    );
    let answer = connection.request(REQUEST);
    assert!(
        answer.text().starts_with("Request received from ") && answer.text().contains(&expected),
        "{address}: {expected}not in\n{}",
        answer.text()
    );
}

#[track_caller]
fn assert_reaches_pod(client: &Namespace, address: &str) {
    let answer = client.get(address, "/");
    assert!(answer.ends_with("\r\n\r\npod"), "{address}: {answer}");
}

/// Sends a request from an address and port; returns the response.
fn get_from(client: &Namespace, from: &str, to: &str) -> String {
    let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
    let connected = client.enter(|| connect_from(from, to, *PATIENCE));
    let mut stream = connected.unwrap_or_else(|error| panic!("{from} to {to}: {error}"));
    stream.set_read_timeout(Some(*PATIENCE)).unwrap();
    write!(
        stream,
        "GET / HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn without_the_option_requests_and_probes_of_the_node_reach_the_pod() {
    let lab = lab();
    let _daemon = lab.start(&["--cidr", CIDRS]);
    for address in [POD, POD6] {
        let curl = format!("curl -gsS --max-time 10 http://{address}/");
        assert_eq!(lab.node.run(&curl), "pod");
        let probe = "GET /healthz HTTP/1.1\r\nHost: pod\r\nUser-Agent: kube-probe/1.36\r\n\
                     Accept: */*\r\nConnection: close\r\n\r\n";
        let answer = lab.node.send(address, probe);
        assert!(answer.ends_with("\r\n\r\npod"), "{answer}");
    }
}

#[test]
fn the_node_is_captured_and_shown_with_its_address_toward_the_pod() {
    let lab = lab();
    let daemon = lab.start(&OPTIONS);
    for address in [POD, POD6].into_iter().chain(ABSENT) {
        let mut connection = lab.node.http(address);
        let client: SocketAddr = connection.client().parse().unwrap();
        assert!(NODE.contains(&client.ip().to_string().as_str()), "{client}");
        let answer = connection.request(REQUEST);
        let ends = format!("Client: {client}\nDestination: {address}\n");
        assert!(answer.text().contains(&ends), "{}", answer.text());
        daemon.wait_for(&format!("client={client} destination={address} "));
        // Other clients are captured as before.
        assert_captured(&lab.client, address);
    }
}

/// Sysctls of source validation and marks, each 0 or 1 in a run.
const SYSCTLS: [&[&str]; 8] = [
    &["ipv4.conf.all.rp_filter", "ipv4.conf.default.rp_filter"],
    &["ipv4.conf.lo.rp_filter"],
    &["ipv4.conf.pod.rp_filter"],
    &[
        "ipv4.conf.all.src_valid_mark",
        "ipv4.conf.default.src_valid_mark",
    ],
    &["ipv4.conf.lo.src_valid_mark"],
    &["ipv4.conf.pod.src_valid_mark"],
    &["ipv4.tcp_fwmark_accept"],
    &["ipv4.fwmark_reflect", "ipv6.fwmark_reflect"],
];

#[test]
fn source_validation_and_sysctls_of_marks_disturb_no_captured_connection_of_the_node() {
    let lab = lab();
    let _daemon = lab.start(&OPTIONS);
    let mut before = None;
    for number in 0..1 << SYSCTLS.len() {
        // In the order of a Gray code, one group of sysctls changes between two combinations.
        let gray = number ^ (number >> 1);
        for (bit, names) in SYSCTLS.iter().enumerate() {
            let value = (gray >> bit) & 1;
            if before.is_none_or(|before: usize| (before >> bit) & 1 != value) {
                for name in *names {
                    lab.node.sysctl(&format!("net.{name}"), &value.to_string());
                }
            }
        }
        before = Some(gray);
        for address in [POD, POD6].into_iter().chain(ABSENT) {
            assert_captured(&lab.node, address);
        }
    }
}

/// Programs that translate a Service of the node to the Pod's captured port.
const TRANSLATIONS: [(&str, &str); 3] = [
    (
        "sh -e",
        "iptables -t nat -A OUTPUT -d 10.96.0.10 -p tcp --dport 80 -j DNAT --to 10.244.0.5:8180
         ip6tables -t nat -A OUTPUT -d fd00:10:96::10 -p tcp --dport 80 -j DNAT --to [fd00:10:244::5]:8180",
    ),
    (
        "nft -f -",
        "table ip services {
            chain output {
                type nat hook output priority -100
                ip daddr 10.96.0.10 tcp dport 80 dnat to 10.244.0.5:8180
            }
        }
        table ip6 services {
            chain output {
                type nat hook output priority -100
                ip6 daddr fd00:10:96::10 tcp dport 80 dnat to [fd00:10:244::5]:8180
            }
        }",
    ),
    // A number beyond ours: the kernel runs all chains of this type at -100.
    (
        "nft -f -",
        "table inet services {
            chain output {
                type nat hook output priority 0
                ip daddr 10.96.0.10 tcp dport 80 dnat ip to 10.244.0.5:8180
                ip6 daddr fd00:10:96::10 tcp dport 80 dnat ip6 to [fd00:10:244::5]:8180
            }
        }",
    ),
];

#[test]
fn a_service_that_the_node_translates_is_captured() {
    for (loader, rules) in TRANSLATIONS {
        let lab = lab();
        lab.node.load(loader, rules);
        for address in CLUSTER_IPS {
            assert_reaches_pod(&lab.node, address);
        }
        let mut open = CLUSTER_IPS.map(|address| lab.node.http(address));
        let mut all_stay = || {
            for connection in &mut open {
                assert_eq!(connection.request(REQUEST).text(), "pod");
            }
        };
        all_stay();
        let mut daemon = lab.start(&OPTIONS);
        for (address, pod) in CLUSTER_IPS.into_iter().zip([POD, POD6]) {
            assert_captured_as(&lab.node, address, pod);
            all_stay();
        }
        assert_eq!(daemon.stop(), Some(0));
        for address in CLUSTER_IPS {
            assert_reaches_pod(&lab.node, address);
        }
        all_stay();
    }
}

/// kube-proxy masquerades what the node sends to a Service.
#[test]
fn a_service_whose_clients_are_masqueraded_is_captured() {
    let lab = lab();
    lab.node.load(TRANSLATIONS[0].0, TRANSLATIONS[0].1);
    for iptables in ["iptables", "ip6tables"] {
        lab.node
            .run(&format!("{iptables} -t nat -A POSTROUTING -j MASQUERADE"));
    }
    let _daemon = lab.start(&OPTIONS);
    let own = lab.node.run("ip -o address show scope global");
    for (address, pod) in CLUSTER_IPS.into_iter().zip([POD, POD6]) {
        let answer = lab.node.get(address, "/");
        let ends = format!("Destination: {pod}\n");
        assert!(answer.contains(&ends), "{answer}");
        let client = answer.lines().find_map(|it| it.strip_prefix("Client: "));
        let client: SocketAddr = client.unwrap().parse().unwrap();
        assert!(own.contains(&format!(" {}/", client.ip())), "{client}");
    }
}

#[test]
fn the_node_is_captured_on_a_bridge() {
    for filter in [false, true] {
        for validation in ["0", "1"] {
            let bridge = Bridge::new(filter);
            bridge.peer.serve(8180);
            for scope in ["all", "default", "lo", "cni0"] {
                for name in ["rp_filter", "src_valid_mark"] {
                    let name = format!("net.ipv4.conf.{scope}.{name}");
                    bridge.node.sysctl(&name, validation);
                }
            }
            let mut open = [PEER, PEER6].map(|address| bridge.node.http(address));
            let mut daemon = bridge.start(&OPTIONS);
            for (index, address) in [PEER, PEER6].into_iter().enumerate() {
                let client: SocketAddr = bridge.node.http(address).client().parse().unwrap();
                assert_eq!(client.ip().to_string(), NODE[index]);
                assert_captured(&bridge.node, address);
                assert_captured(&bridge.pod, address);
                assert_eq!(open[index].request(REQUEST).text(), "pod");
            }
            assert_eq!(daemon.stop(), Some(0));
            for address in [PEER, PEER6] {
                assert_reaches_pod(&bridge.node, address);
            }
        }
    }
}

#[test]
fn a_pod_of_another_node_is_captured_by_the_asking_node() {
    let cluster = Cluster::new();
    PTP.wire(&cluster);
    cluster.web.inside.serve(8180);
    let daemons = cluster.nodes.each_ref().map(|node| {
        let mut command = node.host.command(PROGRAM);
        command.args(OPTIONS).env("NODE_NAME", node.name());
        Daemon::spawn(command)
    });
    for daemon in &daemons {
        daemon.wait_for("Created table");
    }
    for node in &cluster.nodes {
        let own = node.addresses().map(|it| it.to_string());
        for pod in cluster.web.addresses() {
            let mut connection = node.host.http(&SocketAddr::from((pod, 8180)).to_string());
            let client: SocketAddr = connection.client().parse().unwrap();
            let answer = connection.request(REQUEST);
            let lines = format!("Client: {client}\nDestination: ");
            assert!(answer.text().contains(&lines), "{}", answer.text());
            let by = format!("\nNode: {}\n", node.name());
            assert!(answer.text().contains(&by), "{}", answer.text());
            let is_uplink = own.contains(&client.ip().to_string());
            assert_eq!(is_uplink, node.number == 2, "{client} of {}", node.name());
        }
    }
}

#[test]
fn what_the_node_sends_elsewhere_is_untouched() {
    let lab = lab();
    lab.pod.serve(80);
    lab.client.serve(8180);
    lab.node.serve(8180);
    lab.pod.serve_udp(8180);
    let _daemon = lab.start(&OPTIONS);
    for address in [
        "10.244.0.5:80",
        "[fd00:10:244::5]:80",
        "192.0.2.2:8180",
        "[2001:db8:1::2]:8180",
        // The node's own addresses, inside the captured blocks and outside.
        "10.244.0.1:8180",
        "[fd00:10:244::1]:8180",
        "192.0.2.1:8180",
        "127.0.0.1:8180",
        "[::1]:8180",
    ] {
        assert_reaches_pod(&lab.node, address);
    }
    let refused = lab.node.connect("10.244.0.5:8181").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    for (from, to) in [
        ("10.244.0.1:0", POD),
        ("[fd00:10:244::1]:0", POD6),
        ("10.244.0.1:8180", POD),
    ] {
        let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
        let echoed = lab
            .node
            .enter(|| crate::lab::is_echoed(from, to, *PATIENCE).unwrap());
        assert!(echoed, "a datagram from {from} to {to}");
    }
}

/// The route of the AnyIP addresses leads to `lo`, so it is no route of such a socket.
#[test]
fn a_socket_that_is_bound_to_a_device_reaches_the_pod() {
    let lab = lab();
    let _daemon = lab.start(&OPTIONS);
    for address in [POD, POD6] {
        let curl = format!("curl -gsS --max-time 10 --interface if!pod http://{address}/");
        for _ in 0..3 {
            assert_eq!(lab.node.run(&curl), "pod", "{address}");
        }
        assert_captured(&lab.node, address);
    }
}

/// The rules know a captured connection by its conntrack entry.
#[test]
fn connections_that_are_exempt_from_conntrack_reach_the_pod() {
    let lab = lab();
    for iptables in ["iptables", "ip6tables"] {
        let output = format!("{iptables} -t raw -A OUTPUT -p tcp --dport 8180 -j CT --notrack");
        lab.node.run(&output);
    }
    let _daemon = lab.start(&OPTIONS);
    for address in [POD, POD6] {
        assert_reaches_pod(&lab.node, address);
        assert_captured(&lab.client, address);
    }
}

/// The conntrack entry of a captured connection does not outlive it, whether other rules keep conntrack on or not.
#[test]
fn a_port_that_the_node_uses_again_is_captured_again_and_after_a_stop_reaches_the_pod() {
    for conntrack in ["", "iptables -A INPUT -m conntrack --ctstate NEW"] {
        let lab = lab();
        if !conntrack.is_empty() {
            lab.node.run(conntrack);
            lab.node.run(&conntrack.replace("iptables", "ip6tables"));
        }
        let mut daemon = lab.start(&OPTIONS);
        let ends = [("10.244.0.1:20000", POD), ("[fd00:10:244::1]:20000", POD6)];
        // The server closes first, so the node can use the port again.
        for (from, to) in ends.into_iter().chain(ends) {
            let answer = get_from(&lab.node, from, to);
            assert!(answer.contains("Request received from "), "{answer}");
        }
        assert_eq!(daemon.stop(), Some(0));
        let mut open = ends.map(|(from, to)| lab.node.http_from(from, to));
        let mut all_stay = || {
            for connection in &mut open {
                assert_eq!(connection.request(REQUEST).text(), "pod", "{conntrack}");
            }
        };
        all_stay();
        let _daemon = lab.start(&OPTIONS);
        all_stay();
    }
}

#[test]
fn a_client_port_that_is_itself_captured_is_like_any_other() {
    let lab = lab_without_server();
    let _daemon = lab.start(&OPTIONS);
    let [absent, absent6] = ABSENT;
    for (client, from, to) in [
        (&lab.node, "10.244.0.1:8180", POD),
        (&lab.node, "[fd00:10:244::1]:8180", POD6),
        (&lab.node, "192.0.2.1:8180", POD),
        (&lab.node, "192.0.2.1:8180", absent),
        // The server's packets to a Pod at a captured port are not rerouted.
        (&lab.pod, "10.244.0.5:8180", absent),
        (&lab.pod, "[fd00:10:244::5]:8180", absent6),
        (&lab.client, "192.0.2.2:8180", POD),
    ] {
        let answer = get_from(client, from, to);
        let ends = format!("Client: {from}\nDestination: {to}\n");
        assert!(answer.contains(&ends), "{answer}");
    }
}

#[test]
fn probes_are_answered_while_clients_and_the_node_have_all_places() {
    let lab = lab();
    let _daemon = lab.start(&[&OPTIONS[..], &["--max-connections", "4"]].concat());
    let clients = [&lab.node, &lab.node, &lab.client, &lab.client];
    let _busy = clients.map(|client| client.connect_busy(POD));
    let mut next = [POD, POD6].map(|address| {
        let mut next = lab.node.http(address);
        next.send(REQUEST);
        next
    });
    for address in ["127.0.0.1:1", "[::1]:1"] {
        let answer = lab.node.get(address, "/healthz");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    }
    for next in &mut next {
        next.assert_no_response_yet();
    }
}

#[test]
fn open_connections_of_the_node_to_the_pod_survive_start_stop_and_restart() {
    let lab = lab();
    let mut open: Vec<HttpClient> = [POD, POD6].map(|pod| lab.node.http(pod)).into();
    let mut check = |when: &str| {
        for connection in &mut open {
            assert_eq!(connection.request(REQUEST).text(), "pod", "{when}");
        }
    };
    check("before");
    for _ in 0..2 {
        let mut daemon = lab.start(&OPTIONS);
        for _ in 0..5 {
            check("while it captures");
            assert_captured(&lab.node, POD);
            assert_captured(&lab.node, POD6);
        }
        assert_eq!(daemon.stop(), Some(0));
        check("after a stop");
        assert_reaches_pod(&lab.node, POD);
    }
    let mut daemon = lab.start(&OPTIONS);
    daemon.kill();
    wait_until("the table is gone", || lab.node.tables().is_empty());
    check("after SIGKILL");
}

#[test]
fn a_connection_of_the_node_stays_open_for_further_requests_until_a_stop() {
    let lab = lab();
    let mut daemon = lab.start(&OPTIONS);
    let mut connections = [POD, POD6].map(|address| lab.node.http(address));
    let mut request_all = || {
        for connection in &mut connections {
            let answer = connection.request(REQUEST);
            assert!(answer.text().contains("Request received from "));
        }
    };
    (0..3).for_each(|_| request_all());
    // The server parks idle connections.
    wait_until("both are idle", || daemon.idle_connections() == 2);
    request_all();
    // Longer than the segments on the path to the Pod, and on lo.
    let content = "x".repeat(MAX_ECHO);
    for address in [POD, POD6] {
        let mut connection = lab.node.http(address);
        let head = "POST / HTTP/1.1\r\nHost: pod\r\nConnection: close\r\nContent-Length: ";
        let answer = connection.request(format!("{head}{MAX_ECHO}\r\n\r\n{content}"));
        assert!(answer.text().ends_with(&content), "{address}");
    }
    assert_eq!(daemon.stop(), Some(0));
    for mut connection in connections {
        connection.assert_closed();
    }
    assert_eq!(lab.remains(), [""; 0]);
    assert_eq!(lab.node.run("ss -Htan sport 8180"), "", "no socket is left");
}

#[test]
fn a_stop_under_load_loses_no_connection_of_the_node() {
    let lab = lab();
    lab.node.load(TRANSLATIONS[0].0, TRANSLATIONS[0].1);
    let before = lab.remains();
    let mut daemon = lab.start(&OPTIONS);
    daemon.stop_under_load(&lab.node, &[POD, POD6, CLUSTER_IPS[0], CLUSTER_IPS[1]]);
    assert_eq!(lab.remains(), before);
}

/// OUTPUT has routed such a SYN to lo, where nothing but the listener can answer it.
#[test]
fn a_syn_of_the_node_that_is_lost_before_a_stop_is_answered_during_it() {
    let lab = lab();
    let mut daemon = lab.start(&OPTIONS);
    let mut busy = lab.node.http(POD);
    busy.send("POST / HTTP/1.1\r\nHost: pod\r\nContent-Length: 4\r\n\r\nhal");
    wait_until("it is accepted", || {
        let established = lab.node.run("ss -Htn state established sport 8180");
        established.lines().count() == 1
    });
    lab.node.load(
        "nft -f -",
        "table inet loss {
            counter syns4 {}
            counter syns6 {}
            chain prerouting {
                type filter hook prerouting priority raw
                iif lo tcp dport 8180 tcp flags syn / fin,syn,rst,ack jump lost
            }
            chain lost {
                meta nfproto ipv4 counter name syns4 drop
                meta nfproto ipv6 counter name syns6 drop
            }
        }",
    );
    thread::scope(|scope| {
        let late = [POD, POD6].map(|address| {
            let lab = &lab;
            scope.spawn(move || lab.node.get(address, "/"))
        });
        // A SYN is sent again after a second, and lost again.
        for counter in ["syns4", "syns6"] {
            wait_until("a SYN of each family is lost", || {
                let listed = lab
                    .node
                    .run(&format!("nft list counter inet loss {counter}"));
                !listed.contains("packets 0 ")
            });
        }
        daemon.signal(Signal::SIGTERM);
        daemon.wait_for("Stopping");
        assert_reaches_pod(&lab.client, POD);
        lab.node.run("nft delete table inet loss");
        for answer in late {
            let answer = answer.join().unwrap();
            assert!(answer.contains("Request received from "), "{answer}");
        }
    });
    assert!(busy.request("f").text().ends_with("half"));
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn after_sigkill_of_guard_or_server_the_nodes_next_request_reaches_the_pod() {
    for is_guard in [true, false] {
        let lab = lab();
        let mut daemon = lab.start(&OPTIONS);
        let mut open = [POD, POD6].map(|address| lab.node.http(address));
        for connection in &mut open {
            connection.request(REQUEST);
        }
        match is_guard {
            true => daemon.kill(),
            false => {
                kill(daemon.server(), Signal::SIGKILL).unwrap();
                assert_eq!(daemon.wait().code(), Some(1));
                assert_eq!(lab.remains(), [""; 0]);
            }
        }
        wait_until("the table is gone", || lab.node.tables().is_empty());
        for address in [POD, POD6] {
            assert_reaches_pod(&lab.node, address);
            assert_reaches_pod(&lab.client, address);
        }
        let mut daemon = lab.start(&OPTIONS);
        for address in [POD, POD6].into_iter().chain(ABSENT) {
            assert_captured(&lab.node, address);
        }
        assert_eq!(daemon.stop(), Some(0));
        assert_eq!(lab.remains(), [""; 0]);
    }
}

#[test]
fn a_start_without_the_option_removes_the_mark_rules_that_a_sigkill_left() {
    let lab = lab();
    lab.start(&OPTIONS).kill();
    let rules = |lab: &Lab| {
        let lines = lab.remains();
        let marked = lines.iter().filter(|line| line.contains("fwmark 0x2/0x2"));
        marked.count()
    };
    assert_eq!(rules(&lab), 2);
    let _daemon = lab.start(&["--cidr", CIDRS]);
    assert_eq!(rules(&lab), 0);
    assert_reaches_pod(&lab.node, POD);
}

#[test]
fn a_removed_rule_of_the_nodes_mark_is_restored() {
    let lab = lab();
    let daemon = lab.start(&OPTIONS);
    let before = lab.remains();
    for (family, name, address) in [("-4", "", POD), ("-6", "IPv6 ", POD6)] {
        lab.node
            .run(&format!("ip {family} rule del fwmark 0x2/0x2 lookup 100"));
        let rule = format!("{name}rule fwmark 0x2/0x2 lookup 100");
        daemon.wait_for(&format!("Restored {rule}, which another process removed"));
        wait_until("all rules are back", || lab.remains() == before);
        assert_captured(&lab.node, address);
    }
}

#[test]
fn another_mark_for_the_node_is_used_beside_others_of_the_default_one() {
    let lab = lab();
    lab.node.run("ip rule add fwmark 0x2/0x2 blackhole pref 6");
    let before = lab.node.foreign_state();
    let options = [&OPTIONS[..], &["--node-mark", "0x200/0x300"]].concat();
    let mut daemon = lab.start(&options);
    for address in [POD, POD6] {
        assert_captured(&lab.node, address);
        assert_captured(&lab.client, address);
    }
    assert_eq!(daemon.stop(), Some(0));
    assert_eq!(lab.node.foreign_state(), before);
}

/// Lines of OUTPUT in the printed script.
fn output_lines(family: &str, option: &str) -> Vec<String> {
    let command = format!("{PROGRAM} --cidr {CIDRS} {option} --print-rules {family}");
    let printed = Namespace::new().run(&command);
    let lines = printed.lines().filter(|line| line.contains("OUTPUT"));
    let is_rule = |line: &&str| !line.starts_with('#');
    lines.filter(is_rule).map(str::to_owned).collect()
}

#[test]
fn the_printed_script_has_rules_for_output_with_the_option_only() {
    for (family, cidr) in [("v4", "10.244.0.0/16"), ("v6", "fd00:10:244::/56")] {
        assert_eq!(output_lines(family, ""), [""; 0]);
        let lines = output_lines(family, "--from-node --node-mark 0x20/0x30");
        let start = format!("-A OUTPUT -d {cidr} -p tcp -m multiport --dports 8180 -m ");
        assert_eq!(
            lines,
            [
                format!(
                    "{start}tcp --syn -m addrtype ! --dst-type LOCAL -j CONNMARK --set-xmark 0x20/0x30"
                ),
                format!("{start}connmark --mark 0x20/0x30 -j MARK --set-xmark 0x20/0x30"),
            ]
        );
    }
}

#[test]
fn a_client_with_an_address_of_the_loopback_device_is_captured() {
    let lab = lab();
    let address6: Ipv6Addr = "2001:db8:99::1".parse().unwrap();
    lab.node.batch(&format!(
        "address add 198.51.100.1/32 dev lo
         address add {address6}/128 dev lo nodad"
    ));
    let _daemon = lab.start(&OPTIONS);
    for (from, to) in [
        ("198.51.100.1:0".to_owned(), POD),
        (format!("[{address6}]:0"), POD6),
    ] {
        let answer = get_from(&lab.node, &from, to);
        let client = format!("Client: {}:", from.strip_suffix(":0").unwrap());
        assert!(answer.contains(&client), "{answer}");
    }
}
