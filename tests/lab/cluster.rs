//! A cluster of two nodes with three Pods, and a client outside, each in a network namespace of its
//! own. The caller connects Pods to their nodes, and nodes to each other.
//!
//! ```text
//!             client .2          router .1, which knows no Pods
//!                │                │
//!   ─────────────┴─┬──────────────┴─┬──── 192.0.2.0/24, 2001:db8:1::/64
//!           node 1 │ .11     node 2 │ .12
//!    10.244.1.0/24 ┴─ web .5        ┴─ far .5    10.244.2.0/24
//! fd00:10:244:1::/64  near .6                    fd00:10:244:2::/64
//! ```

use std::net::IpAddr;

use super::{CIDRS, Daemon, Namespace, PROGRAM};

/// A node.
#[derive(Clone)]
pub struct Node {
    pub host: Namespace,
    pub number: u8,
}

/// A Pod.
pub struct Pod {
    pub inside: Namespace,
    pub node: Node,
    /// The last number of its addresses.
    pub part: u8,
}

/// All of it.
pub struct Cluster {
    switch: Namespace,
    pub client: Namespace,
    pub nodes: [Node; 2],
    /// The Pod on node 1 that is asked.
    pub web: Pod,
    /// Another on the same node.
    pub near: Pod,
    /// One on node 2.
    pub far: Pod,
}

impl Cluster {
    /// Makes the network of the nodes, with the client's routes to all Pods, and Pods without one.
    pub fn new() -> Cluster {
        let switch = Namespace::new();
        switch.sysctl("net.bridge.bridge-nf-call-iptables", "0");
        switch.sysctl("net.bridge.bridge-nf-call-ip6tables", "0");
        switch.sysctl("net.ipv4.ip_forward", "1");
        switch.sysctl("net.ipv6.conf.all.forwarding", "1");
        // Clients get an ICMP error for each address that does not exist, not for one a second.
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

    /// Its Pods.
    pub fn pods(&self) -> [&Pod; 3] {
        [&self.web, &self.near, &self.far]
    }

    /// Another client outside, with an address that ends in this number.
    pub fn outsider(&self, part: u8) -> Namespace {
        outsider(&self.switch, &self.nodes, part)
    }

    /// Starts the program on both nodes, and waits until it intercepts.
    pub fn start(&self) -> [Daemon; 2] {
        let daemons = self.nodes.each_ref().map(|node| {
            let mut command = node.host.command(PROGRAM);
            command
                .args(["--cidr", CIDRS])
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

/// Connects a namespace to the network of the nodes, with the address that ends in this number.
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

    /// The addresses in its blocks that end in this number.
    pub fn pod_addresses(&self, part: u8) -> [IpAddr; 2] {
        let number = self.number;
        [
            format!("10.244.{number}.{part}").parse().unwrap(),
            format!("fd00:10:244:{number}::{part}").parse().unwrap(),
        ]
    }

    /// Routes to its blocks of Pod addresses, for the other hosts.
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
    /// Its addresses.
    pub fn addresses(&self) -> [IpAddr; 2] {
        self.node.pod_addresses(self.part)
    }

    /// The node's device that leads to it, named as Calico does.
    pub fn device(&self) -> String {
        format!("cali{}", self.part)
    }

    /// Connects it to its node with a pair of devices, both up, without addresses.
    pub fn plug(&self) {
        let (device, inside) = (self.device(), self.inside.path());
        self.node.host.batch(&format!(
            "link add {device} type veth peer name eth0 netns {inside}
             link set {device} up"
        ));
        self.inside.batch("link set eth0 up");
        self.inside.wait_for_multicast("eth0");
        self.node.host.wait_for_multicast(&device);
    }
}

impl Namespace {
    /// Feeds a program an input, which it has to accept.
    pub fn load(&self, loader: &str, input: &str) {
        let output = self.feed(loader, input);
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{loader}: {complaint}\n{input}");
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
        self.wait_for_multicast(device);
    }

    /// Makes neighbours that do not answer fail after 0.3 s instead of 3 s.
    pub fn give_up_soon(&self, device: &str) {
        for table in ["arp_cache", "ndisc_cache"] {
            self.run(&format!(
                "ip ntable change name {table} dev {device} retrans 100"
            ));
        }
    }
}
