//! Other programs with rules on the same node: kube-proxy, Calico, docker, firewalld. Their rules do not
//! change, and work. Captured connections are answered regardless of the order of starts, and while the others
//! reload or flush their rules.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::time::Duration;

use crate::lab::foreign::Traffic;
use crate::lab::http_client::HttpClient;
use crate::lab::kernel::owns_tables;
use crate::lab::{CIDRS, Lab, Namespace, POD, POD6};

struct Neighbour {
    name: &'static str,
    /// Command that replaces its rules.
    loader: &'static str,
    rules: &'static str,
    /// Asserts that its rules have their effect.
    works: fn(&Lab),
}

const KUBE_PROXY: &str = include_str!("neighbours/kube-proxy.iptables");
const CALICO: &str = include_str!("neighbours/calico.iptables");
const DOCKER: &str = include_str!("neighbours/docker.iptables");
const FIREWALLD: &str = include_str!("neighbours/firewalld.nft");

/// With the rules of `firewall-cmd --add-port=8180/tcp`.
const OPEN_FIREWALLD: &str = concat!(
    include_str!("neighbours/firewalld.nft"),
    "add rule inet firewalld filter_IN_public_allow tcp dport 8180 accept\n"
);

const NEIGHBOURS: [Neighbour; 8] = [
    Neighbour {
        name: "kube-proxy in iptables mode",
        loader: "iptables-restore",
        rules: KUBE_PROXY,
        works: services_work,
    },
    Neighbour {
        name: "kube-proxy with iptables-legacy",
        loader: "iptables-legacy-restore",
        rules: KUBE_PROXY,
        works: services_work,
    },
    Neighbour {
        name: "kube-proxy in nftables mode",
        loader: "nft -f -",
        rules: include_str!("neighbours/kube-proxy.nft"),
        works: services_work,
    },
    Neighbour {
        name: "Calico",
        loader: "iptables-restore",
        rules: CALICO,
        works: calico_works,
    },
    Neighbour {
        name: "Calico with iptables-legacy",
        loader: "iptables-legacy-restore",
        rules: CALICO,
        works: calico_works,
    },
    Neighbour {
        name: "docker",
        loader: "iptables-restore",
        rules: DOCKER,
        works: docker_works,
    },
    Neighbour {
        name: "docker with nftables",
        loader: "nft -f -",
        rules: include_str!("neighbours/docker.nft"),
        works: docker_works,
    },
    Neighbour {
        name: "firewalld",
        loader: "nft -f -",
        rules: OPEN_FIREWALLD,
        works: firewalld_works,
    },
];

impl Neighbour {
    fn load(&self, lab: &Lab) {
        load(lab, self.loader, self.rules);
    }
}

fn load(lab: &Lab, loader: &str, rules: &str) {
    let loaded = lab.node.feed(loader, rules);
    let stderr = String::from_utf8_lossy(&loaded.stderr);
    assert!(loaded.status.success(), "{loader}: {stderr}");
}

/// A ClusterIP and a NodePort are translated to the Pod, and the client to the node.
fn services_work(lab: &Lab) {
    for service in ["10.96.0.10:80", "192.0.2.1:30080"] {
        assert_eq!(lab.client.get(service, "/"), "asked by 10.244.0.1");
    }
    let refused = lab.client.connect("10.96.0.99:80").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}

/// Pods are reachable, and their connections to the outside have the node's address.
fn calico_works(lab: &Lab) {
    assert_eq!(lab.client.get("10.244.0.5:80", "/"), "asked by 192.0.2.2");
    assert_eq!(lab.pod.get("192.0.2.2:80", "/"), "asked by 192.0.2.1");
}

/// A published port is translated to the container, whose address is not reachable directly.
fn docker_works(lab: &Lab) {
    assert_eq!(lab.client.get("192.0.2.1:8080", "/"), "asked by 192.0.2.2");
    assert!(is_dropped(&lab.client, "172.17.0.2:80"));
}

/// Open ports of the node are reachable, and no others; Pods are reachable.
fn firewalld_works(lab: &Lab) {
    assert!(lab.client.connect("192.0.2.1:22").is_ok());
    assert!(is_rejected(lab, "192.0.2.1:80"));
    assert_eq!(lab.client.get("10.244.0.5:80", "/"), "asked by 192.0.2.2");
}

/// Whether a client's SYN and its retransmission get no answer.
fn is_dropped(client: &Namespace, address: &str) -> bool {
    let (address, patience) = (address.parse().unwrap(), Duration::from_millis(300));
    let connect = || TcpStream::connect_timeout(&address, patience).map(drop);
    let connected = client.enter(connect);
    connected.is_err_and(|error| error.kind() == ErrorKind::TimedOut)
}

/// Whether a firewall rejects the client's SYN.
fn is_rejected(lab: &Lab, address: &str) -> bool {
    let connected = lab.client.connect(address);
    connected.is_err_and(|error| {
        matches!(
            error.raw_os_error(),
            Some(libc::EHOSTUNREACH | libc::EACCES)
        )
    })
}

/// A lab whose Pod is also a container, with servers on all sides.
fn lab() -> Lab {
    let lab = Lab::new();
    lab.node.run("ip route add default via 10.244.0.5");
    lab.node.run("ip address add 172.17.0.1/16 dev pod");
    lab.pod.run("ip address add 172.17.0.2/16 dev eth0");
    for (namespace, port) in [
        (&lab.pod, 80),
        (&lab.client, 80),
        (&lab.node, 80),
        (&lab.node, 22),
    ] {
        namespace.serve_client_address(port);
    }
    lab
}

fn assert_captured(lab: &Lab, address: &str) {
    let answer = lab.client.get(address, "/");
    assert!(answer.contains("Request received from "), "{answer}");
}

#[test]
fn rules_of_other_programs_do_not_change() {
    for neighbour in NEIGHBOURS {
        let (lab, name) = (lab(), neighbour.name);
        neighbour.load(&lab);
        let before = lab.node.foreign_state();
        let mut daemon = lab.start(&["--cidr", CIDRS]);
        assert_captured(&lab, POD);
        assert_eq!(lab.node.foreign_state(), before, "{name}, while it runs");
        assert_eq!(daemon.stop(), Some(0));
        assert_eq!(lab.node.foreign_state(), before, "{name}, after the stop");
    }
}

#[test]
fn rules_of_other_programs_take_effect_during_a_run_and_after_a_stop() {
    for neighbour in NEIGHBOURS {
        let lab = lab();
        neighbour.load(&lab);
        (neighbour.works)(&lab);
        let mut daemon = lab.start(&["--cidr", CIDRS]);
        (neighbour.works)(&lab);
        assert_eq!(daemon.stop(), Some(0));
        (neighbour.works)(&lab);
    }
}

#[test]
fn captured_connections_are_answered_whichever_rules_came_first() {
    for neighbour in NEIGHBOURS {
        let (theirs, ours) = (lab(), lab());
        neighbour.load(&theirs);
        let _second = theirs.start(&["--cidr", CIDRS]);
        let _first = ours.start(&["--cidr", CIDRS]);
        neighbour.load(&ours);
        for lab in [theirs, ours] {
            for address in [POD, POD6, "10.244.77.9:8180"] {
                assert_captured(&lab, address);
            }
            (neighbour.works)(&lab);
        }
    }
}

#[test]
fn a_reload_of_other_rules_disturbs_no_captured_connection() {
    for neighbour in NEIGHBOURS {
        let lab = lab();
        neighbour.load(&lab);
        let _daemon = lab.start(&["--cidr", CIDRS]);
        let mut open = lab.client.http(POD);
        let mut traffic = Traffic::start(&lab);
        for _ in 0..5 {
            neighbour.load(&lab);
            assert_eq!(ask(&mut open), "200 OK", "{}", neighbour.name);
        }
        traffic.goes_on();
        traffic.end();
    }
}

fn ask(connection: &mut HttpClient) -> String {
    connection
        .request("GET / HTTP/1.1\r\nHost: pod\r\n\r\n")
        .status
}

/// Before Linux 5.12 a flush of the ruleset does: see guard/lifecycle.rs.
#[test]
fn no_flush_disturbs_captured_connections() {
    let lab = lab();
    load(&lab, "iptables-legacy-restore", DOCKER);
    load(&lab, "iptables-restore", KUBE_PROXY);
    load(&lab, "nft -f -", OPEN_FIREWALLD);
    let _daemon = lab.start(&["--cidr", CIDRS]);
    let mut open = lab.client.http(POD);
    let mut traffic = Traffic::start(&lab);
    for flush in [
        "iptables -t mangle -F",
        "iptables -t mangle -X",
        "iptables -F",
        "iptables -t nat -F",
        "iptables-legacy -t raw -F",
        "iptables-legacy -t nat -F",
        "iptables-legacy -F",
        "nft flush table inet firewalld",
        "nft delete table inet firewalld",
        "nft flush ruleset",
    ] {
        if flush == "nft flush ruleset" && !owns_tables() {
            continue;
        }
        lab.node.run(flush);
        assert_eq!(ask(&mut open), "200 OK", "{flush}");
    }
    traffic.goes_on();
    traffic.end();
}

#[test]
fn rules_that_accept_packets_early_hide_none_of_them() {
    for iptables in [
        "iptables",
        "ip6tables",
        "iptables-legacy",
        "ip6tables-legacy",
    ] {
        let lab = lab();
        let accept = |table: &str| {
            lab.node
                .run(&format!("{iptables} -t {table} -I PREROUTING -j ACCEPT"));
        };
        accept("mangle");
        let _daemon = lab.start(&["--cidr", CIDRS]);
        accept("raw");
        assert_captured(&lab, POD);
        assert_captured(&lab, POD6);
    }
}

#[test]
fn firewalld_keeps_captured_connections_out_until_their_port_is_open() {
    let lab = lab();
    let _daemon = lab.start(&["--cidr", CIDRS]);
    load(&lab, "nft -f -", FIREWALLD);
    for address in [POD, POD6] {
        assert!(is_dropped(&lab.client, address), "{address}");
    }
    load(&lab, "nft -f -", OPEN_FIREWALLD);
    for address in [POD, POD6] {
        assert_captured(&lab, address);
    }
}

#[test]
fn what_docker_drops_in_raw_is_not_captured() {
    for docker in NEIGHBOURS.iter().filter(|it| it.name.starts_with("docker")) {
        let lab = lab();
        docker.load(&lab);
        let _daemon = lab.start(&["--cidr", "172.17.0.0/16"]);
        assert!(is_dropped(&lab.client, "172.17.0.2:8180"));
        assert_captured(&lab, "172.17.0.3:8180");
    }
}

#[test]
fn pods_are_captured_where_firewalld_validates_the_reverse_path_by_mark() {
    let lab = lab();
    let _daemon = lab.start(&["--cidr", CIDRS]);
    load(&lab, "nft -f -", OPEN_FIREWALLD);
    for address in ["10.244.7.9:8180", "[fd00:10:244:7::9]:8180"] {
        assert_captured(&lab, address);
        let answer = lab.pod.get(address, "/");
        assert!(answer.contains("Request received from "), "{answer}");
    }
}
