//! What is captured on the networks of CNIs and behind kube-proxy. Each client sends requests to each Pod and
//! Service, on two nodes that both run the program. The tables of docs/captured.md show the outcomes.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::LazyLock;

use crate::lab::Namespace;
use crate::lab::cluster::{Cluster, Node};
use crate::lab::kernel::{has_all, has_device, has_ipvs, owns_tables};
use crate::matrix::networks::{CALICO, DOCKER, FLANNEL, IPVLAN, Network, PTP, VXLAN};
use crate::matrix::request::Outcome::{self, Captured, Pod, TimeOut, Unreachable};
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
const CLIENTS: [&str; 6] = [
    "client outside",
    "Pod on the same node",
    "Pod on another node",
    "the node itself",
    "another node",
    "the node itself, `--from-node`",
];

/// Clients of a Service, in the order of columns.
const CLIENTS_OF_SERVICES: [&str; 8] = [
    "client outside, by the Pod's node",
    "client outside, by another node",
    "the Pod itself",
    "Pod on the same node",
    "Pod on another node",
    "the Pod's node",
    "another node",
    "the Pod's node, `--from-node`",
];

/// A network of Pods, with the expected outcomes of requests to a Pod, and to an address without one.
struct Topology {
    name: &'static str,
    network: Network,
    exists: fn() -> bool,
    /// Whether Pods of one node are neighbours on a bridge; otherwise their node routes each packet.
    bridged: bool,
    pod: [Outcome; 6],
    absent: [Outcome; 6],
}

fn topologies() -> [Topology; 6] {
    [
        routed("ptp, kindnet: routes to each Pod", PTP),
        Topology {
            absent: NO_ROUTE,
            ..routed("Calico: the same, proxy ARP, early ACCEPT", CALICO)
        },
        bridged("flannel host-gw: bridge, bridge-nf 1", FLANNEL),
        bridged("docker: bridge, bridge-nf 0", DOCKER),
        bridged("flannel VXLAN, k3s: bridge, bridge-nf 1", VXLAN),
        Topology {
            exists: || has_device("ipvlan"),
            pod: [Pod, Pod, Pod, Unreachable, Pod, A],
            absent: [A, TimeOut, A, Unreachable, A, A],
            ..routed("IPVLAN L3", IPVLAN)
        },
    ]
}

/// All are captured on the first node, except the node's own packets without `--from-node`.
const ALL: [Outcome; 6] = [A, A, B, Pod, A, A];

/// Calico's node has no route to an address of its block that no Pod has, so nothing is sent.
const NO_ROUTE: [Outcome; 6] = [A, A, B, Unreachable, A, Unreachable];

/// On a bridge, neighbour discovery of an address without a Pod fails.
const NO_NEIGHBOUR: [Outcome; 6] = [A, Unreachable, B, Unreachable, A, A];

fn routed(name: &'static str, network: Network) -> Topology {
    Topology {
        name,
        network,
        exists: || true,
        bridged: false,
        pod: ALL,
        absent: [A, A, B, Unreachable, A, A],
    }
}

fn bridged(name: &'static str, network: Network) -> Topology {
    Topology {
        bridged: true,
        absent: NO_NEIGHBOUR,
        ..routed(name, network)
    }
}

/// A proxy mode of Services, with rows for the ClusterIP and the NodePort.
struct Service {
    names: [&'static str; 2],
    proxy: fn(&Node),
    /// Arguments of the program for all columns.
    arguments: &'static [&'static str],
    exists: fn() -> bool,
    expected: [Outcome; 8],
}

/// All are captured on the node that translates, except the node's own packets without `--from-node`.
const TRANSLATED: [Outcome; 8] = [A, B, A, A, B, Pod, A, A];

/// IPVS translates in the input hook, and sends by the output hook: without `--from-node` only the node that
/// the packets reach next captures them.
const BY_IPVS: [Outcome; 8] = [Pod, A, Pod, Pod, A, Pod, A, A];
const SENT_BY_IPVS: [Outcome; 8] = [A, B, A, A, B, A, B, A];

const SERVICES: [Service; 4] = [
    Service {
        names: ["ClusterIP, iptables", "NodePort, iptables"],
        proxy: services::iptables,
        arguments: &[],
        exists: || true,
        expected: TRANSLATED,
    },
    Service {
        names: ["ClusterIP, nftables", "NodePort, nftables"],
        proxy: services::nftables,
        arguments: &[],
        exists: || true,
        expected: TRANSLATED,
    },
    Service {
        names: ["ClusterIP, IPVS", "NodePort, IPVS"],
        proxy: services::ipvs,
        arguments: &[],
        exists: || has_device("dummy") && has_ipvs(),
        expected: BY_IPVS,
    },
    Service {
        names: [
            "ClusterIP, IPVS, `--from-node`",
            "NodePort, IPVS, `--from-node`",
        ],
        proxy: services::ipvs,
        arguments: &["--from-node"],
        exists: || has_device("dummy") && has_ipvs(),
        expected: SENT_BY_IPVS,
    },
];

/// Rows for Pods, and for addresses without one; measured once for all tests.
static TOPOLOGIES: LazyLock<(Vec<Row>, Vec<Row>)> =
    LazyLock::new(|| topologies().map(Topology::measure).into_iter().unzip());

/// Rows for Services of Pods with routes, and of Pods on a bridge with bridge-nf 1.
static SERVICE_ROWS: LazyLock<[Vec<Row>; 2]> = LazyLock::new(|| {
    [PTP, FLANNEL].map(|network| {
        let rows = SERVICES.iter().map(|it| it.measure(&network));
        rows.flatten().collect()
    })
});

impl Topology {
    /// Expected outcomes on this kernel. Where tables have no owner, frames are not redirected from bridges, and
    /// `--from-node` has no effect.
    fn expected(&self) -> [Outcomes; 2] {
        let [mut pod, mut absent] = [self.pod, self.absent];
        if !owns_tables() {
            [pod[5], absent[5]] = [pod[3], absent[3]];
            if self.bridged {
                pod[1] = Pod;
            }
        }
        [both(&pod), both(&absent)]
    }

    /// Rows for the Pod, and for an address without one.
    fn measure(self) -> (Row, Row) {
        let expected = self.expected();
        let measured = (self.exists)().then(|| {
            let cluster = Cluster::new();
            self.network.wire(&cluster);
            cluster.web.inside.serve(PORT);
            let without_pod = cluster.nodes[0].pod_addresses(ABSENT);
            let to = [cluster.web.addresses(), without_pod];
            let requests = to.map(|to| requests_to(&cluster, to));
            send_rows(&cluster, &[], requests, &expected)
        });
        let [pod, absent] = rows([self.name; 2], measured, expected);
        (pod, absent)
    }
}

/// Sends the requests of two rows, those of the last column with `--from-node`.
fn send_rows(
    cluster: &Cluster,
    arguments: &[&str],
    requests: [Vec<Request>; 2],
    expected: &[Outcomes; 2],
) -> [Outcomes; 2] {
    let last = requests[0].len() - 1;
    let send = |columns: Range<usize>, arguments: &[&str]| {
        let _daemons = cluster.start(arguments);
        let requests = requests.each_ref().map(|it| &it[columns.clone()]).concat();
        let expected = expected.each_ref().map(|it| &it[columns.clone()]).concat();
        let mut outcomes = send_all(&requests, &expected);
        let second = outcomes.split_off(columns.len());
        [outcomes, second]
    };
    let [first, second] = send(0..last, arguments);
    let [first_last, second_last] = send(last..last + 1, &["--from-node"]);
    [[first, first_last].concat(), [second, second_last].concat()]
}

/// Two rows, if they were measured.
fn rows(
    names: [&'static str; 2],
    measured: Option<[Outcomes; 2]>,
    expected: [Outcomes; 2],
) -> [Row; 2] {
    let [first, second] = measured.map_or([None, None], |it| it.map(Some));
    let row = |name, measured, expected| Row {
        name,
        measured,
        expected,
        whole: owns_tables(),
    };
    let [expected, other] = expected;
    [row(names[0], first, expected), row(names[1], second, other)]
}

/// Requests from all clients to these addresses.
fn requests_to(cluster: &Cluster, to: [IpAddr; 2]) -> Vec<Request<'_>> {
    let [one, two] = &cluster.nodes;
    let (near, far) = (&cluster.near.inside, &cluster.far.inside);
    [&cluster.client, near, far, &one.host, &two.host, &one.host]
        .map(|client| Request {
            client,
            to: to.map(|it| (it, PORT).into()),
        })
        .into()
}

impl Service {
    /// Rows for the ClusterIP and the NodePort on a network of Pods.
    fn measure(&self, network: &Network) -> [Row; 2] {
        let mut expected = match self.arguments {
            ["--from-node"] if !owns_tables() => BY_IPVS,
            _ => self.expected,
        };
        if !owns_tables() {
            expected[7] = expected[5];
        }
        let expected = [both(&expected), both(&expected)];
        let measured = (self.exists)().then(|| {
            let cluster = Cluster::new();
            network.wire(&cluster);
            cluster.nodes.iter().for_each(self.proxy);
            cluster.web.inside.serve(PORT);
            let outside = cluster
                .nodes
                .each_ref()
                .map(|node| client_by(&cluster, node));
            let requests = [cluster_ip, node_port]
                .map(|address| requests_to_service(&cluster, &outside, address));
            send_rows(&cluster, self.arguments, requests, &expected)
        });
        rows(self.names, measured, expected)
    }
}

/// Requests from all clients to the Service, at the node that their packets reach first.
fn requests_to_service<'a>(
    cluster: &'a Cluster,
    outside: &'a [Namespace; 2],
    address: impl Fn(&Node) -> [SocketAddr; 2],
) -> Vec<Request<'a>> {
    let [one, two] = &cluster.nodes;
    [
        (&outside[0], one),
        (&outside[1], two),
        (&cluster.web.inside, one),
        (&cluster.near.inside, one),
        (&cluster.far.inside, two),
        (&one.host, one),
        (&two.host, two),
        (&one.host, one),
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
    all_are_as_expected(&SERVICE_ROWS[0]);
}

#[test]
fn a_client_of_a_service_of_pods_on_a_bridge_is_captured_on_the_node_that_translates_it() {
    all_are_as_expected(&SERVICE_ROWS[1]);
}

#[test]
fn the_readme_has_these_tables() {
    let pods = table("a Pod's address", &CLIENTS, &TOPOLOGIES.0);
    let absent = table("an address without a Pod", &CLIENTS, &TOPOLOGIES.1);
    let [routed, bridged] = [
        ("a Service, Pods with routes", 0),
        ("a Service, Pods on a bridge, bridge-nf 1", 1),
    ]
    .map(|(asked, rows)| table(asked, &CLIENTS_OF_SERVICES, &SERVICE_ROWS[rows]));
    let tables = format!("\n{pods}\n{absent}\n{routed}\n{bridged}\n");
    assert!(tables == block(), "docs/captured.md should have:\n{tables}");
}
