//! Source validation: clients whose route is only in a table of another program (Tailscale, wg-quick, a table for one
//! interface), and clients inside the captured blocks, are captured and answered.

use crate::lab::kernel::owns_tables;
use crate::lab::{CIDRS, Daemon, Lab, Namespace, POD, POD6};

/// Addresses without a Pod.
const ABSENT: [&str; 2] = ["10.244.7.9:8180", "[fd00:10:244:7::9]:8180"];

/// The Pod's addresses, with a port that is not captured.
const OTHER: [&str; 2] = ["10.244.0.5:80", "[fd00:10:244::5]:80"];

/// Another program's rules and routes to a client beyond the device `tunnel`, for one family: see [`Neighbour::add`].
struct Neighbour {
    name: &'static str,
    /// The client's addresses.
    client: [&'static str; 2],
    lines: &'static str,
}

/// Addresses of a client outside the captured blocks, and of one inside them.
const OUTSIDE: [&str; 2] = ["100.64.0.7", "fd7a::7"];
const INSIDE: [&str; 2] = ["10.244.9.7", "fd00:10:244:9::7"];

const NEIGHBOURS: [Neighbour; 6] = [
    Neighbour {
        name: "Tailscale",
        client: OUTSIDE,
        lines: "rule add pref 5210 fwmark 0x80000/0xff0000 lookup main
                rule add pref 5230 fwmark 0x80000/0xff0000 lookup default
                rule add pref 5250 fwmark 0x80000/0xff0000 unreachable
                rule add pref 5270 lookup 52
                route add CLIENT dev tunnel table 52",
    },
    // Local networks are excepted, as with --exit-node-allow-lan-access.
    Neighbour {
        name: "Tailscale with an exit node",
        client: OUTSIDE,
        lines: "rule add pref 5210 fwmark 0x80000/0xff0000 lookup main
                rule add pref 5230 fwmark 0x80000/0xff0000 lookup default
                rule add pref 5250 fwmark 0x80000/0xff0000 unreachable
                rule add pref 5270 lookup 52
                route add default dev tunnel table 52
                route add throw PODS table 52
                route add throw LAN table 52",
    },
    Neighbour {
        name: "wg-quick",
        client: OUTSIDE,
        lines: "rule add not fwmark 51820 table 51820
                rule add table main suppress_prefixlength 0
                route add default dev tunnel table 51820",
    },
    // A table for what comes by one interface, and for what answers it.
    Neighbour {
        name: "a table for one interface",
        client: OUTSIDE,
        lines: "rule add pref 100 iif tunnel lookup 10
                rule add pref 101 from PODS lookup 10
                route add CLIENT dev tunnel table 10
                route add POD dev pod table 10",
    },
    Neighbour {
        name: "a cloud, whose routers know the Pods of other nodes",
        client: INSIDE,
        lines: "route change default dev tunnel",
    },
    Neighbour {
        name: "a table with the Pods of other nodes",
        client: INSIDE,
        lines: "rule add pref 5270 lookup 52
                route add CLIENT dev tunnel table 52",
    },
];

impl Neighbour {
    /// Adds rules and routes of both families.
    fn add(&self, node: &Namespace) {
        let [v4, v6] = self.client;
        let values = [
            ("-4", [v4, "10.244.0.0/16", "192.0.2.0/24", "10.244.0.5"]),
            (
                "-6",
                [v6, "fd00:10:244::/56", "2001:db8:1::/64", "fd00:10:244::5"],
            ),
        ];
        for (family, values) in values {
            let names = ["CLIENT", "PODS", "LAN", "POD"];
            let named = names.iter().zip(values);
            let lines = named.fold(self.lines.to_owned(), |lines, (name, value)| {
                // The whole word: POD is a part of PODS.
                lines
                    .replace(&format!("{name} "), &format!("{value} "))
                    .replace(&format!("{name}\n"), &format!("{value}\n"))
            });
            node.load(&format!("ip {family} -batch -"), &lines);
        }
    }
}

/// A lab with a client beyond the device `tunnel` of the node, and the program on it. The default route of the table
/// main leads elsewhere.
struct Fixture {
    lab: Lab,
    beyond: Namespace,
    _daemon: Daemon,
}

impl Fixture {
    fn new(neighbour: &Neighbour) -> Fixture {
        let (lab, beyond) = (Lab::new(), Namespace::new());
        lab.pod.serve(80);
        lab.node.batch(&format!(
            "link add tunnel type veth peer name eth0 netns {}",
            beyond.path()
        ));
        lab.node.batch(
            "address add 100.64.0.1/32 dev tunnel
             address add fd7a::1/128 dev tunnel nodad
             link set tunnel up
             route add 0.0.0.0/0 via 192.0.2.2
             route add ::/0 via 2001:db8:1::2",
        );
        let [v4, v6] = neighbour.client;
        beyond.batch(&format!(
            "address add {v4}/32 dev eth0
             address add {v6}/128 dev eth0 nodad
             link set eth0 up
             route add 100.64.0.1/32 dev eth0
             route add fd7a::1/128 dev eth0
             route add 0.0.0.0/0 via 100.64.0.1
             route add ::/0 via fd7a::1"
        ));
        beyond.wait_for_ipv6("eth0");
        lab.node.wait_for_ipv6("tunnel");
        neighbour.add(&lab.node);
        let daemon = lab.start(&["--cidr", CIDRS, "--from-node"]);
        Fixture {
            lab,
            beyond,
            _daemon: daemon,
        }
    }

    /// Asserts that every client is captured, and the node itself at some addresses.
    fn assert_all_captured(&self, when: &str, by_node: &[&'static str]) {
        let Lab { client, node, pod } = &self.lab;
        let mut requests = vec![(pod, ABSENT[0]), (pod, ABSENT[1])];
        for address in [POD, POD6].into_iter().chain(ABSENT) {
            requests.extend([(&self.beyond, address), (client, address)]);
        }
        // Before Linux 5.12 the node itself is not captured.
        if owns_tables() {
            requests.extend(by_node.iter().map(|address| (node, *address)));
        }
        for (client, address) in requests {
            let answer = client.get(address, "/");
            let is_captured = answer.contains("Request received from ");
            assert!(is_captured, "{when}, {address}: {answer}");
        }
    }
}

#[test]
fn clients_of_every_table_are_captured_however_sources_are_validated() {
    for neighbour in NEIGHBOURS {
        let fixture = Fixture::new(&neighbour);
        for number in 0..12 {
            let (rp_filter, valid_mark, accept) = (number % 3, number / 3 % 2, number / 6);
            let node = &fixture.lab.node;
            for device in ["all", "default", "lo", "tunnel", "client", "pod"] {
                let set = |name: &str, value: i32| {
                    node.sysctl(
                        &format!("net.ipv4.conf.{device}.{name}"),
                        &value.to_string(),
                    );
                };
                set("rp_filter", rp_filter);
                set("src_valid_mark", valid_mark);
            }
            node.sysctl("net.ipv4.tcp_fwmark_accept", &accept.to_string());
            let when = format!(
                "{}, rp_filter={rp_filter}, src_valid_mark={valid_mark}, tcp_fwmark_accept={accept}",
                neighbour.name
            );
            for address in OTHER {
                let answer = fixture.beyond.get(address, "/");
                assert!(answer.ends_with("pod"), "{when}, {address}: {answer}");
            }
            fixture.assert_all_captured(&when, &[POD, POD6]);
        }
    }
}

/// firewalld drops IPv6 packets from sources whose route, with the packet's mark, is not by their interface. On some
/// kernels these are also packets on lo that TPROXY has taken (`nft_fib_can_skip`, include/net/netfilter/nft_fib.h).
#[test]
fn clients_of_every_table_are_captured_where_firewalld_validates_sources_by_mark() {
    let rules = concat!(
        include_str!("neighbours/firewalld.nft"),
        "add rule inet firewalld filter_IN_public_allow tcp dport 8180 accept\n"
    );
    for neighbour in NEIGHBOURS {
        let fixture = Fixture::new(&neighbour);
        fixture.lab.node.load("nft -f -", rules);
        fixture.assert_all_captured(neighbour.name, &[POD]);
    }
}
