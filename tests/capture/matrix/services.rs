//! kube-proxy's rules, from a Service to the server Pod's captured port: those of ../neighbours, for two nodes
//! and both families, and IPVS.

use std::net::{IpAddr, SocketAddr};

use crate::lab::Namespace;
use crate::lab::cluster::{Cluster, Node};

/// Addresses and ports of the Service.
const CLUSTER_IP: [&str; 2] = ["10.96.0.10:80", "[fd00:10:96::10]:80"];
const NODE_PORT: u16 = 30080;

/// The ClusterIP, over both families.
pub fn cluster_ip(_: &Node) -> [SocketAddr; 2] {
    CLUSTER_IP.map(|address| address.parse().unwrap())
}

/// The NodePort of a node, over both families.
pub fn node_port(node: &Node) -> [SocketAddr; 2] {
    node.addresses().map(|address| (address, NODE_PORT).into())
}

/// A client outside that routes ClusterIPs by this node.
pub fn client_by(cluster: &Cluster, node: &Node) -> Namespace {
    let client = cluster.outsider(20 + node.number);
    let [v4, v6] = node.addresses();
    client.batch(&format!(
        "route add 10.96.0.0/16 via {v4}
         route add fd00:10:96::/112 via {v6}"
    ));
    client
}

/// kube-proxy in iptables mode
pub fn iptables(node: &Node) {
    let rules = for_two_nodes(include_str!("../neighbours/kube-proxy.iptables"), node);
    node.host.load("iptables-restore", &rules);
    node.host.load("ip6tables-restore", &for_ipv6(&rules, node));
}

/// kube-proxy in nftables mode
pub fn nftables(node: &Node) {
    let rules = for_two_nodes(include_str!("../neighbours/kube-proxy.nft"), node);
    node.host.load("nft -f -", &rules);
    node.host.load("nft -f -", &for_ipv6(&rules, node));
}

/// kube-proxy in IPVS mode: ClusterIPs are addresses of the node. Rules mark the packets to be masqueraded, in
/// place of kube-proxy's ipsets.
pub fn ipvs(node: &Node) {
    node.host.batch(
        "link add kube-ipvs0 type dummy
         address add 10.96.0.10/32 dev kube-ipvs0
         address add fd00:10:96::10/128 dev kube-ipvs0 nodad",
    );
    let ports = node_port(node).map(|it| it.to_string());
    let mut services = String::new();
    for (family, pod) in ["10.244.1.5", "[fd00:10:244:1::5]"].into_iter().enumerate() {
        for service in [CLUSTER_IP[family], &ports[family]] {
            services += &format!("-A -t {service} -s rr\n-a -t {service} -r {pod}:8180 -m\n");
        }
    }
    node.host.load("ipvsadm -R", &services);
    node.host.sysctl("net.ipv4.vs.conntrack", "1");
    let rules = for_two_nodes(include_str!("../neighbours/kube-proxy-ipvs.iptables"), node);
    node.host.load("iptables-restore", &rules);
    node.host.load("ip6tables-restore", &for_ipv6(&rules, node));
}

/// Rewrites rules for one node and a Pod with a web server at port 80.
fn for_two_nodes(shape: &str, node: &Node) -> String {
    let [v4, _] = node.addresses();
    shape
        .replace("10.244.0.5:80", "10.244.1.5:8180")
        .replace("10.244.0.5/80", "10.244.1.5/8180")
        .replace("10.244.0.5", "10.244.1.5")
        .replace("192.0.2.1 ", &format!("{v4} "))
}

/// Rewrites rules for IPv6.
fn for_ipv6(rules: &str, node: &Node) -> String {
    let [v4, v6]: [IpAddr; 2] = node.addresses();
    [
        ("10.244.1.5:8180", "[fd00:10:244:1::5]:8180"),
        ("10.244.1.5/32", "fd00:10:244:1::5/128"),
        ("10.244.1.5 ", "fd00:10:244:1::5 "),
        ("10.244.0.0/16", "fd00:10:244::/56"),
        ("10.96.0.0/16", "fd00:10:96::/112"),
        ("10.96.0.10/32", "fd00:10:96::10/128"),
        ("10.96.0.99/32", "fd00:10:96::99/128"),
        ("10.96.0.10", "fd00:10:96::10"),
        ("10.96.0.99", "fd00:10:96::99"),
        ("127.0.0.0/8", "::1/128"),
        ("icmp-port-unreachable", "icmp6-port-unreachable"),
        ("table ip ", "table ip6 "),
        ("ipv4_addr", "ipv6_addr"),
        ("ip daddr", "ip6 daddr"),
        ("ip saddr", "ip6 saddr"),
        (&v4.to_string(), &v6.to_string()),
    ]
    .iter()
    .fold(rules.to_owned(), |rules, (v4, v6)| rules.replace(v4, v6))
}
