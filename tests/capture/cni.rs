//! What is captured on the networks of CNIs and behind kube-proxy. Each client sends requests to each Pod and
//! Service, on two nodes that both run the program. The tables of docs/captured.md show the outcomes.

use std::net::{IpAddr, SocketAddr};
use std::sync::LazyLock;

use crate::lab::Namespace;
use crate::lab::cluster::{Cluster, Node};
use crate::lab::kernel::{has_all, has_device, has_ipvs, owns_tables};
use crate::matrix::networks::{CALICO, DOCKER, FLANNEL, IPVLAN, Network, PTP, VXLAN};
use crate::matrix::request::Outcome::{self, Captured, Pod, Refused, TimeOut, Unreachable};
use crate::matrix::services::{self, client_by, cluster_ip, node_port};
use crate::matrix::table::{Row, block, table};
use crate::matrix::{Outcomes, Request, both, send_all};

/// Captured on node 1, where the server Pod is, and on node 2.
const A: Outcome = Captured(1);
const B: Outcome = Captured(2);

const PORT: u16 = 8180;

/// Last octet or group of addresses without a Pod.
const ABSENT: u8 = 62;

/// Clients of Pod addresses, in the order of columns.
const CLIENTS: [&str; 5] = [
    "client outside",
    "Pod on the same node",
    "Pod on another node",
    "the node itself",
    "another node",
];

/// Clients of a Service, in the order of columns.
const CLIENTS_OF_SERVICES: [&str; 6] = [
    "client outside, by the Pod's node",
    "client outside, by another node",
    "Pod on the same node",
    "Pod on another node",
    "the Pod's node",
    "another node",
];

/// A network of Pods, with the expected outcomes of requests to a Pod, and to an address without one.
struct Topology {
    name: &'static str,
    network: Network,
    exists: fn() -> bool,
    pod: Outcomes,
    absent: Outcomes,
    /// Outcomes where tables have no owner, and so bridged frames are not redirected; if they differ.
    limited: Option<[Outcomes; 2]>,
}

fn topologies() -> [Topology; 6] {
    let below_ip = [both(&[A, Pod, B, Pod, A]), both(&NO_NEIGHBOUR)];
    // A frame that leaves the bridge is marked there, and lost.
    let lost = |same| split(&[A, same, TimeOut, same, A], &[A, same, Refused, same, A]);
    let marked = || [lost(Pod), lost(Unreachable)];
    [
        routed("ptp, kindnet: routes to each Pod", PTP),
        routed("Calico: the same, proxy ARP, early ACCEPT", CALICO),
        bridged("flannel host-gw: bridge, bridge-nf 1", FLANNEL, marked()),
        bridged("docker: bridge, bridge-nf 0", DOCKER, below_ip),
        bridged("flannel VXLAN, k3s: bridge, bridge-nf 1", VXLAN, marked()),
        Topology {
            name: "IPVLAN L3",
            network: IPVLAN,
            exists: || has_device("ipvlan"),
            pod: both(&[Pod, Pod, Pod, Unreachable, Pod]),
            absent: both(&[A, TimeOut, A, Unreachable, A]),
            limited: None,
        },
    ]
}

/// All are captured on the first node, except the node's own packets.
const ALL: [Outcome; 5] = [A, A, B, Pod, A];

/// On a bridge, neighbour discovery of an address without a Pod fails.
const NO_NEIGHBOUR: [Outcome; 5] = [A, Unreachable, B, Unreachable, A];

/// Each packet of a Pod is routed by its node.
fn routed(name: &'static str, network: Network) -> Topology {
    Topology {
        name,
        network,
        exists: || true,
        pod: both(&ALL),
        absent: both(&[A, A, B, Unreachable, A]),
        limited: None,
    }
}

/// Pods of one node are neighbours on a bridge.
fn bridged(name: &'static str, network: Network, limited: [Outcomes; 2]) -> Topology {
    Topology {
        name,
        network,
        exists: || true,
        pod: both(&ALL),
        absent: both(&NO_NEIGHBOUR),
        limited: Some(limited),
    }
}

/// Outcomes that differ between the families.
fn split(v4: &[Outcome], v6: &[Outcome]) -> Outcomes {
    v4.iter().zip(v6).map(|(&v4, &v6)| [v4, v6]).collect()
}

/// A proxy mode of Services, with rows for the ClusterIP and the NodePort.
struct Service {
    names: [&'static str; 2],
    proxy: fn(&Node),
    exists: fn() -> bool,
}

const SERVICES: [Service; 3] = [
    Service {
        names: ["ClusterIP, iptables", "NodePort, iptables"],
        proxy: services::iptables,
        exists: || true,
    },
    Service {
        names: ["ClusterIP, nftables", "NodePort, nftables"],
        proxy: services::nftables,
        exists: || true,
    },
    Service {
        names: ["ClusterIP, IPVS", "NodePort, IPVS"],
        proxy: services::ipvs,
        exists: || has_device("dummy") && has_ipvs(),
    },
];

/// Rows for Pods, and for addresses without one; measured once for all tests.
static TOPOLOGIES: LazyLock<(Vec<Row>, Vec<Row>)> =
    LazyLock::new(|| topologies().map(Topology::measure).into_iter().unzip());

/// Rows for Services.
static SERVICE_ROWS: LazyLock<Vec<Row>> = LazyLock::new(|| {
    SERVICES
        .map(Service::measure)
        .into_iter()
        .flatten()
        .collect()
});

impl Topology {
    /// Rows for the Pod, and for an address without one.
    fn measure(self) -> (Row, Row) {
        let whole = self.limited.is_none() || owns_tables();
        let [pod, absent] = self
            .limited
            .filter(|_| !whole)
            .unwrap_or([self.pod, self.absent]);
        let mut measured = (self.exists)().then(|| {
            let cluster = Cluster::new();
            self.network.wire(&cluster);
            cluster.web.inside.serve(PORT);
            let _daemons = cluster.start();
            let without_pod = cluster.nodes[0].pod_addresses(ABSENT);
            let mut requests = requests_to(&cluster, cluster.web.addresses());
            requests.extend(requests_to(&cluster, without_pod));
            send_all(&requests, &[&pod[..], &absent].concat())
        });
        let of_absent = measured.as_mut().map(|it| it.split_off(pod.len()));
        let row = |measured, expected| Row {
            name: self.name,
            measured,
            expected,
            whole,
        };
        (row(measured, pod), row(of_absent, absent))
    }
}

/// Requests from all clients to these addresses.
fn requests_to(cluster: &Cluster, to: [IpAddr; 2]) -> Vec<Request<'_>> {
    let [one, two] = &cluster.nodes;
    let (near, far) = (&cluster.near.inside, &cluster.far.inside);
    [&cluster.client, near, far, &one.host, &two.host]
        .map(|client| Request {
            client,
            to: to.map(|it| (it, PORT).into()),
        })
        .into()
}

impl Service {
    fn measure(self) -> [Row; 2] {
        let expected = both(&[A, B, A, B, Pod, A]);
        let mut measured = (self.exists)().then(|| {
            let cluster = Cluster::new();
            PTP.wire(&cluster);
            cluster.nodes.iter().for_each(self.proxy);
            cluster.web.inside.serve(PORT);
            let _daemons = cluster.start();
            let outside = cluster
                .nodes
                .each_ref()
                .map(|node| client_by(&cluster, node));
            let mut requests = requests_to_service(&cluster, &outside, cluster_ip);
            requests.extend(requests_to_service(&cluster, &outside, node_port));
            send_all(&requests, &[&expected[..], &expected].concat())
        });
        let of_node_port = measured.as_mut().map(|it| it.split_off(expected.len()));
        let row = |name, measured| Row {
            name,
            measured,
            expected: expected.clone(),
            whole: true,
        };
        let [cluster_ip, node_port] = self.names;
        [row(cluster_ip, measured), row(node_port, of_node_port)]
    }
}

/// Requests from all clients to the Service, at the node that their packets reach first.
fn requests_to_service<'a>(
    cluster: &'a Cluster,
    outside: &'a [Namespace; 2],
    address: fn(&Node) -> [SocketAddr; 2],
) -> Vec<Request<'a>> {
    let [one, two] = &cluster.nodes;
    [
        (&outside[0], one),
        (&outside[1], two),
        (&cluster.near.inside, one),
        (&cluster.far.inside, two),
        (&one.host, one),
        (&two.host, two),
    ]
    .map(|(client, node)| Request {
        client,
        to: address(node),
    })
    .into()
}

/// Asserts row by row that the outcomes are as expected; prints what this kernel lacks.
fn all_are_as_expected(rows: &[Row]) {
    let mut differences = String::new();
    for row in rows {
        let (name, expected) = (row.name, &row.expected);
        match &row.measured {
            None if has_all() => differences += &format!("{name}: was not measured\n"),
            None => eprintln!("this kernel has no {name}"),
            Some(measured) if measured == expected => {}
            Some(measured) => {
                differences += &format!("{name}:\n  {measured:?}\nnot\n  {expected:?}\n");
            }
        }
    }
    assert!(differences.is_empty(), "{differences}");
}

#[test]
fn a_client_of_a_pod_is_captured_as_documented_for_its_network() {
    all_are_as_expected(&TOPOLOGIES.0);
}

#[test]
fn a_client_of_an_address_without_a_pod_is_captured_if_its_packet_leaves() {
    all_are_as_expected(&TOPOLOGIES.1);
}

#[test]
fn a_client_of_a_service_is_captured_on_the_node_that_translates_it() {
    all_are_as_expected(&SERVICE_ROWS);
}

#[test]
fn the_readme_has_these_tables() {
    let pods = table("a Pod's address", &CLIENTS, &TOPOLOGIES.0);
    let absent = table("an address without a Pod", &CLIENTS, &TOPOLOGIES.1);
    let services = table("a Service", &CLIENTS_OF_SERVICES, &SERVICE_ROWS);
    let tables = format!("\n{pods}\n{absent}\n{services}\n");
    assert!(tables == block(), "docs/captured.md should have:\n{tables}");
}
