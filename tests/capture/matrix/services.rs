//! kube-proxy's Service default/s8180 on two nodes, whose endpoint is the server Pod on node 1.

use std::net::SocketAddr;

use crate::kube_proxy::{Addresses, BESIDE_IPVS, CLUSTER_IP, IPTABLES, NFTABLES, NODE_PORT};
use crate::lab::Namespace;
use crate::lab::cluster::{Cluster, Node};

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
    IPTABLES.load(&node.host, &addresses(node));
}

/// kube-proxy in nftables mode
pub fn nftables(node: &Node) {
    NFTABLES.load(&node.host, &addresses(node));
}

/// kube-proxy in IPVS mode: ClusterIPs are addresses of the node. Rules mark the packets to be masqueraded, in
/// place of kube-proxy's ipsets.
pub fn ipvs(node: &Node) {
    node.host.batch(
        "link add kube-ipvs0 type dummy
         address add 10.96.0.20/32 dev kube-ipvs0
         address add fd00:10:96::20/128 dev kube-ipvs0 nodad",
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
    BESIDE_IPVS.load(&node.host, &addresses(node));
}

fn addresses(node: &Node) -> Addresses {
    Addresses {
        pod: ["10.244.1.5", "fd00:10:244:1::5"].map(|it| it.parse().unwrap()),
        node: node.addresses(),
    }
}
