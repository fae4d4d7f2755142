//! CNIs: how they connect Pods to their nodes, and nodes to each other.

use crate::lab::cluster::{Cluster, Node, Pod};

/// A CNI: how it configures a node, a Pod, and the path between two nodes.
pub struct Network {
    prepare: fn(&Node),
    attach: fn(&Pod),
    join: fn(&Node, &Node),
}

/// CNI's ptp plugin, as in kindnet: a Pod routes everything to the node, whose interface to each Pod has the
/// gateway's address.
pub const PTP: Network = Network {
    prepare: |_| (),
    attach: attach_ptp,
    join: route,
};

/// Calico: Pods have no neighbours, and the node answers ARP for a gateway that does not exist.
pub const CALICO: Network = Network {
    prepare: prepare_calico,
    attach: attach_calico,
    join: route,
};

/// Bridges with br_netfilter and hairpin mode, as in flannel and k3s, and routes between nodes.
pub const FLANNEL: Network = Network {
    prepare: |node| prepare_bridge(node, "1"),
    attach: |pod| attach_bridge(pod, "on"),
    join: route,
};

/// Bridges without br_netfilter and hairpin mode, as in docker.
pub const DOCKER: Network = Network {
    prepare: |node| prepare_bridge(node, "0"),
    attach: |pod| attach_bridge(pod, "off"),
    join: route,
};

/// flannel's VXLAN between nodes, with static neighbours
pub const VXLAN: Network = Network {
    join: tunnel,
    ..FLANNEL
};

/// Pods on the node's uplink, by ipvlan.
pub const IPVLAN: Network = Network {
    prepare: |_| (),
    attach: attach_ipvlan,
    join: route,
};

impl Network {
    /// Connects all Pods and nodes.
    pub fn wire(&self, cluster: &Cluster) {
        let [one, two] = &cluster.nodes;
        for node in &cluster.nodes {
            (self.prepare)(node);
        }
        for pod in cluster.pods() {
            (self.attach)(pod);
        }
        (self.join)(one, two);
        (self.join)(two, one);
    }
}

fn route(from: &Node, to: &Node) {
    from.host.batch(&to.route_to_its_pods());
}

fn attach_ptp(pod: &Pod) {
    pod.plug();
    let ([v4, v6], [gate4, gate6]) = (pod.addresses(), pod.node.pod_addresses(1));
    let device = pod.device();
    pod.node.host.batch(&format!(
        "address add {gate4}/32 dev {device}
         address add {gate6}/128 dev {device} nodad
         route add {v4}/32 dev {device} scope link
         route add {v6}/128 dev {device}"
    ));
    pod.inside.batch(&format!(
        "address add {v4}/24 dev eth0 noprefixroute
         address add {v6}/64 dev eth0 nodad noprefixroute
         route add {gate4}/32 dev eth0 scope link
         route add {gate6}/128 dev eth0
         route add 0.0.0.0/0 via {gate4}
         route add ::/0 via {gate6}"
    ));
}

/// Calico's rules, which accept packets early.
const CALICO_RULES: &str = include_str!("../neighbours/calico.iptables");

fn prepare_calico(node: &Node) {
    let rules = CALICO_RULES
        .replace("-i pod ", "-i cali+ ")
        .replace("-o pod ", "-o cali+ ")
        .replace("-i client ", "-i eth0 ");
    let rules6 = rules.replace("10.244.0.0/16", "fd00:10:244::/56");
    node.host.load("iptables-restore", &rules);
    node.host.load("ip6tables-restore", &rules6);
    let number = node.number;
    node.host.batch(&format!(
        "route add blackhole 10.244.{number}.0/26
         route add blackhole fd00:10:244:{number}::/122"
    ));
}

fn attach_calico(pod: &Pod) {
    pod.plug();
    let ([v4, v6], device) = (pod.addresses(), pod.device());
    let host = &pod.node.host;
    for (name, value) in [
        ("ipv4.conf.DEVICE.proxy_arp", "1"),
        ("ipv4.conf.DEVICE.rp_filter", "1"),
        ("ipv6.conf.DEVICE.proxy_ndp", "1"),
    ] {
        host.sysctl(&format!("net.{}", name.replace("DEVICE", &device)), value);
    }
    // This MAC gives the node's interface the link-local address below.
    host.batch(&format!(
        "link set {device} down
         link set {device} address ee:ee:ee:ee:ee:ee
         link set {device} up
         route add {v4}/32 dev {device} scope link
         route add {v6}/128 dev {device}"
    ));
    pod.inside.batch(&format!(
        "address add {v4}/32 dev eth0
         address add {v6}/128 dev eth0 nodad
         route add 169.254.1.1/32 dev eth0 scope link
         route add 0.0.0.0/0 via 169.254.1.1
         route add ::/0 via fe80::ecee:eeff:feee:eeee dev eth0"
    ));
}

fn prepare_bridge(node: &Node, bridge_nf: &str) {
    for name in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
        node.host.sysctl(&format!("net.bridge.{name}"), bridge_nf);
    }
    let [v4, v6] = node.pod_addresses(1);
    node.host.batch(&format!(
        "link add cni0 type bridge
         address add {v4}/24 dev cni0
         address add {v6}/64 dev cni0 nodad
         link set cni0 up"
    ));
    node.host.give_up_soon("cni0");
}

fn attach_bridge(pod: &Pod, hairpin: &str) {
    pod.plug();
    let ([v4, v6], [gate4, gate6]) = (pod.addresses(), pod.node.pod_addresses(1));
    pod.node.host.batch(&format!(
        "link set {0} master cni0
         link set {0} type bridge_slave hairpin {hairpin}",
        pod.device()
    ));
    pod.inside.give_up_soon("eth0");
    pod.inside.batch(&format!(
        "address add {v4}/24 dev eth0
         address add {v6}/64 dev eth0 nodad
         route add 0.0.0.0/0 via {gate4}
         route add ::/0 via {gate6}"
    ));
    pod.node.host.wait_for_ipv6("cni0");
}

/// One device for each family, as in flannel: flannel.1 and flannel-v6.1.
fn tunnel(from: &Node, to: &Node) {
    let (locals, remotes) = (from.addresses(), to.addresses());
    let (ours, theirs) = (from.pod_addresses(0), to.pod_addresses(0));
    let (from_number, to_number) = (from.number, to.number);
    for (family, device, long, block) in [
        (0, "flannel.1", 32, format!("10.244.{to_number}.0/24")),
        (
            1,
            "flannel-v6.1",
            128,
            format!("fd00:10:244:{to_number}::/64"),
        ),
    ] {
        let (local, remote, next) = (locals[family], remotes[family], theirs[family]);
        let mac = |number| format!("0e:00:00:00:0{family}:0{number}");
        from.host.batch(&format!(
            "link add {device} address {0} type vxlan id 1 dev eth0 local {local} dstport 8472 nolearning
             address add {1}/{long} dev {device}
             link set {device} up
             neighbour add {next} lladdr {2} dev {device} nud permanent
             route add {block} via {next} dev {device} onlink",
            mac(from_number),
            ours[family],
            mac(to_number),
        ));
        let entry = format!("{} dev {device} dst {remote}", mac(to_number));
        from.host.run(&format!("bridge fdb append {entry}"));
    }
}

fn attach_ipvlan(pod: &Pod) {
    let [v4, v6] = pod.addresses();
    let inside = pod.inside.path();
    pod.node.host.batch(&format!(
        "link add link eth0 name pod type ipvlan mode l3
         link set pod netns {inside} name eth0"
    ));
    pod.inside.batch(&format!(
        "address add {v4}/32 dev eth0
         address add {v6}/128 dev eth0 nodad
         link set eth0 up
         route add 0.0.0.0/0 dev eth0
         route add ::/0 dev eth0"
    ));
}
