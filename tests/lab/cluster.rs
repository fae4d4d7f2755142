//! A cluster: two nodes with three Pods, and a client outside, each in its own network namespace. The caller
//! connects Pods to their nodes, and nodes to each other.
//!
//! ```text
//!             client .2          router .1, without routes to Pods
//!                │                │
//!   ─────────────┴─┬──────────────┴─┬──── 192.0.2.0/24, 2001:db8:1::/64
//!           node 1 │ .11     node 2 │ .12
//!    10.244.1.0/24 ┴─ web .5        ┴─ far .5    10.244.2.0/24
//! fd00:10:244:1::/64  near .6                    fd00:10:244:2::/64
//! ```

use std::net::IpAddr;

use super::{CIDRS, Daemon, Namespace, PROGRAM};

#[derive(Clone)]
pub struct Node {
    pub host: Namespace,
    pub number: u8,
}

pub struct Pod {
    pub inside: Namespace,
    pub node: Node,
    /// Last octet or group of its addresses.
    pub part: u8,
}

/// Two nodes, three Pods and a client.
pub struct Cluster {
    switch: Namespace,
    pub client: Namespace,
    pub nodes: [Node; 2],
    /// The server Pod, on node 1.
    pub web: Pod,
    /// Another Pod on node 1.
    pub near: Pod,
    /// A Pod on node 2.
    pub far: Pod,
}

impl Cluster {
    /// Creates the network of the nodes, with the client's routes to all Pods; the Pods are not connected.
    pub fn new() -> Cluster {
        let switch = Namespace::new();
        switch.sysctl("net.bridge.bridge-nf-call-iptables", "0");
        switch.sysctl("net.bridge.bridge-nf-call-ip6tables", "0");
        switch.sysctl("net.ipv4.ip_forward", "1");
        switch.sysctl("net.ipv6.conf.all.forwarding", "1");
        // An ICMP error for each packet to an address without a host, instead of one a second.
        switch.sysctl("net.ipv4.icmp_ratelimit", "0");
        switch.sysctl("net.ipv6.icmp.ratelimit", "0");
        switch.batch("link add lan type bridge");
        switch.address("lan", "192.0.2.1/24", "2001:db8:1::1/64");
        let nodes = [1, 2].map(|number| Node {
            host: Namespace::new(),
            number,
        });
        for node in &nodes {
            node.allow_forwarding();
            plug(&switch, &node.host, 10 + node.number);
            node.host.batch(
                "route add 0.0.0.0/0 via 192.0.2.1
                 route add ::/0 via 2001:db8:1::1",
            );
        }
        let pod = |node: &Node, part| Pod {
            inside: Namespace::new(),
            node: node.clone(),
            part,
        };
        Cluster {
            client: outsider(&switch, &nodes, 2),
            switch,
            web: pod(&nodes[0], 5),
            near: pod(&nodes[0], 6),
            far: pod(&nodes[1], 5),
            nodes,
        }
    }

    pub fn pods(&self) -> [&Pod; 3] {
        [&self.web, &self.near, &self.far]
    }

    /// Another client outside; `part` is the last octet or group of its addresses.
    pub fn outsider(&self, part: u8) -> Namespace {
        outsider(&self.switch, &self.nodes, part)
    }

    /// Starts the program on both nodes with more arguments, and waits until it captures.
    pub fn start(&self, arguments: &[&str]) -> [Daemon; 2] {
        let daemons = self.nodes.each_ref().map(|node| {
            let mut command = node.host.command(PROGRAM);
            command
                .args(["--cidr", CIDRS])
                .args(arguments)
                .env("NODE_NAME", node.name());
            Daemon::spawn(command)
        });
        for daemon in &daemons {
            daemon.wait_for("Created table");
        }
        daemons
    }
}

fn outsider(switch: &Namespace, nodes: &[Node; 2], part: u8) -> Namespace {
    let client = Namespace::new();
    plug(switch, &client, part);
    for node in nodes {
        client.batch(&node.route_to_its_pods());
    }
    client
}

/// Connects a namespace to the network of the nodes, with addresses that end in `part`.
fn plug(switch: &Namespace, namespace: &Namespace, part: u8) {
    switch.batch(&format!(
        "link add port{part} type veth peer name eth0 netns {}
         link set port{part} master lan up",
        namespace.path()
    ));
    let v4 = format!("192.0.2.{part}/24");
    namespace.address("eth0", &v4, &format!("2001:db8:1::{part}/64"));
}

impl Node {
    /// Its name in echoes.
    pub fn name(&self) -> String {
        format!("node-{}", self.number)
    }

    /// Its addresses on the network of the nodes.
    pub fn addresses(&self) -> [IpAddr; 2] {
        let number = self.number;
        [
            format!("192.0.2.1{number}").parse().unwrap(),
            format!("2001:db8:1::1{number}").parse().unwrap(),
        ]
    }

    /// The Pod addresses of this node that end in `part`.
    pub fn pod_addresses(&self, part: u8) -> [IpAddr; 2] {
        let number = self.number;
        [
            format!("10.244.{number}.{part}").parse().unwrap(),
            format!("fd00:10:244:{number}::{part:x}").parse().unwrap(),
        ]
    }

    /// Routes to its Pods, for the other hosts.
    pub fn route_to_its_pods(&self) -> String {
        let (number, [v4, v6]) = (self.number, self.addresses());
        format!(
            "route add 10.244.{number}.0/24 via {v4}
             route add fd00:10:244:{number}::/64 via {v6}"
        )
    }

    /// Enables forwarding, with systemd's default of source validation.
    fn allow_forwarding(&self) {
        self.host.sysctl("net.ipv4.ip_forward", "1");
        self.host.sysctl("net.ipv6.conf.all.forwarding", "1");
        self.host.sysctl("net.ipv4.conf.all.rp_filter", "0");
        self.host.sysctl("net.ipv4.conf.default.rp_filter", "2");
    }
}

impl Pod {
    pub fn addresses(&self) -> [IpAddr; 2] {
        self.node.pod_addresses(self.part)
    }

    /// The node's interface to this Pod, named as in Calico.
    pub fn device(&self) -> String {
        format!("cali{}", self.part)
    }

    /// Connects it to its node with a veth pair, both ends up, without addresses.
    pub fn plug(&self) {
        let (device, inside) = (self.device(), self.inside.path());
        self.node.host.batch(&format!(
            "link add {device} type veth peer name eth0 netns {inside}
             link set {device} up"
        ));
        self.inside.batch("link set eth0 up");
        self.inside.wait_for_ipv6("eth0");
        self.node.host.wait_for_ipv6(&device);
    }
}

impl Namespace {
    /// Feeds an input to a program, which has to succeed.
    pub fn load(&self, loader: &str, input: &str) {
        let output = self.feed(loader, input);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{loader}: {stderr}\n{input}");
    }

    /// Runs commands of ip(8), one a line, which have to succeed.
    pub fn batch(&self, lines: &str) {
        self.load("ip -batch -", lines);
    }

    /// Sets a device up, with its addresses, and waits until it receives neighbour solicitations.
    pub fn address(&self, device: &str, v4: &str, v6: &str) {
        self.batch(&format!(
            "address add {v4} dev {device}
             address add {v6} dev {device} nodad
             link set {device} up"
        ));
        self.wait_for_ipv6(device);
    }

    /// Reduces neighbour discovery to 0.3 s, from 3 s.
    pub fn give_up_soon(&self, device: &str) {
        for table in ["arp_cache", "ndisc_cache"] {
            self.run(&format!(
                "ip ntable change name {table} dev {device} retrans 100"
            ));
        }
    }
}
