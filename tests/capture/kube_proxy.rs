//! kube-proxy's rules on a node, by proxy mode: those of neighbours/kube-proxy.*, for both families and other
//! addresses.

use std::net::{IpAddr, SocketAddr};

use crate::lab::Namespace;

/// ClusterIPs of default/s8180, whose endpoint is the Pod's captured port.
pub const CLUSTER_IP: [&str; 2] = ["10.96.0.20:80", "[fd00:10:96::20]:80"];
/// NodePort of default/s8180.
pub const NODE_PORT: u16 = 30081;
/// ClusterIPs of default/absent, and its endpoints, which no Pod has.
pub const ABSENT: [(&str, &str); 2] = [
    ("10.96.0.30:80", "10.244.77.9:8180"),
    ("[fd00:10:96::30]:80", "[fd00:10:244:77::9]:8180"),
];

/// Addresses on a node, over both families.
#[derive(Clone, Copy)]
pub struct Addresses {
    /// The Pod of the Services.
    pub pod: [IpAddr; 2],
    /// The node, where NodePorts are.
    pub node: [IpAddr; 2],
}

/// A proxy mode.
pub struct KubeProxy {
    pub name: &'static str,
    /// Commands that replace the rules of each family.
    loaders: [&'static str; 2],
    rules: &'static str,
    /// Priority of nftables' chain that translates what is received.
    nat_priority: &'static str,
}

pub const IPTABLES: KubeProxy = KubeProxy {
    name: "iptables",
    loaders: ["iptables-restore", "ip6tables-restore"],
    rules: include_str!("neighbours/kube-proxy.iptables"),
    nat_priority: DSTNAT,
};

pub const IPTABLES_LEGACY: KubeProxy = KubeProxy {
    name: "iptables-legacy",
    loaders: ["iptables-legacy-restore", "ip6tables-legacy-restore"],
    ..IPTABLES
};

pub const NFTABLES: KubeProxy = KubeProxy {
    name: "nftables",
    loaders: ["nft -f -", "nft -f -"],
    rules: include_str!("neighbours/kube-proxy.nft"),
    nat_priority: DSTNAT,
};

/// The kernel runs all chains of the type `nat` at -100, whatever their priority.
pub const LATE_NFTABLES: KubeProxy = KubeProxy {
    name: "nftables, with a chain behind the program's",
    nat_priority: "-50",
    ..NFTABLES
};

/// IPVS, beside which it has rules that mark packets to be masqueraded.
pub const BESIDE_IPVS: KubeProxy = KubeProxy {
    rules: include_str!("neighbours/kube-proxy-ipvs.iptables"),
    ..IPTABLES
};

/// The modes that translate packets in the hook of prerouting.
pub const MODES: [KubeProxy; 4] = [IPTABLES, IPTABLES_LEGACY, NFTABLES, LATE_NFTABLES];

/// As in nft(8).
const DSTNAT: &str = "dstnat";

impl KubeProxy {
    /// Replaces the rules of both families on a node.
    pub fn load(&self, node: &Namespace, addresses: &Addresses) {
        for (family, loader) in self.loaders.into_iter().enumerate() {
            node.load(loader, &self.rules_of(family, addresses));
        }
    }

    /// The rules of a family: 0 for IPv4, 1 for IPv6.
    fn rules_of(&self, family: usize, addresses: &Addresses) -> String {
        let (pod, node) = (addresses.pod[family], addresses.node[family]);
        let socket = |port| SocketAddr::from((pod, port)).to_string();
        let priority = format!("hook prerouting priority {};", self.nat_priority);
        let rules = [
            ("hook prerouting priority dstnat;", priority),
            ("10.244.0.5:80\n", socket(80) + "\n"),
            ("10.244.0.5:8180\n", socket(8180) + "\n"),
            ("10.244.0.5/32", format!("{pod}/32")),
            ("10.244.0.5 ", format!("{pod} ")),
            ("192.0.2.1 ", format!("{node} ")),
        ]
        .iter()
        .fold(self.rules.to_owned(), |rules, (shape, it)| {
            rules.replace(shape, it)
        });
        if family == 0 { rules } else { for_ipv6(&rules) }
    }
}

/// Rewrites the addresses that do not depend on the node for IPv6.
fn for_ipv6(rules: &str) -> String {
    [
        ("10.244.77.9:8180\n", "[fd00:10:244:77::9]:8180\n"),
        ("10.244.77.9/32", "fd00:10:244:77::9/128"),
        ("10.244.77.9 ", "fd00:10:244:77::9 "),
        ("10.244.0.0/16", "fd00:10:244::/56"),
        ("10.96.0.", "fd00:10:96::"),
        ("/32", "/128"),
        ("127.0.0.0/8", "::1/128"),
        ("icmp-port-unreachable", "icmp6-port-unreachable"),
        ("table ip ", "table ip6 "),
        ("ipv4_addr", "ipv6_addr"),
        ("ip daddr", "ip6 daddr"),
        ("ip saddr", "ip6 saddr"),
    ]
    .iter()
    .fold(rules.to_owned(), |rules, (v4, v6)| rules.replace(v4, v6))
}
