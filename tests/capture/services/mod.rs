//! Connections to a Service. The rules run behind its translation: they see the Pod's address and port, and
//! conntrack gives the response the Service's. What is measured for all clients is in cni.rs.

mod bridge;
mod life;
mod translation;

use crate::kube_proxy::{Addresses, CLUSTER_IP, KubeProxy, NODE_PORT};
use crate::lab::http_client::REQUEST;
use crate::lab::{Daemon, Lab, Namespace, POD, POD6};

/// A Service's address and port, and its Pod's, over one family.
pub struct Service {
    pub address: String,
    pod: &'static str,
}

/// ClusterIP and NodePort of the Service, over both families.
pub fn services(addresses: &Addresses) -> Vec<Service> {
    let pods = [POD, POD6];
    let cluster_ips = CLUSTER_IP.map(str::to_owned);
    let node_ports = addresses.node.map(|ip| {
        let socket = std::net::SocketAddr::from((ip, NODE_PORT));
        socket.to_string()
    });
    [cluster_ips, node_ports]
        .into_iter()
        .flat_map(|pair| pair.into_iter().zip(pods))
        .map(|(address, pod)| Service { address, pod })
        .collect()
}

/// The Pod and the node of a [`Lab`].
pub fn lab_addresses() -> Addresses {
    Addresses {
        pod: ["10.244.0.5", "fd00:10:244::5"].map(|it| it.parse().unwrap()),
        node: ["192.0.2.1", "2001:db8:1::1"].map(|it| it.parse().unwrap()),
    }
}

/// A lab with kube-proxy's rules, and a web server in its Pod.
pub fn lab(kube_proxy: &KubeProxy) -> Lab {
    let lab = Lab::new();
    kube_proxy.load(&lab.node, &lab_addresses());
    lab.pod.serve(8180);
    lab
}

/// Asserts that a request is answered by the program, and that echo and log name the client by its own address
/// and the Pod as the destination.
#[track_caller]
fn assert_captured(client: &Namespace, daemon: &Daemon, service: &str, pod: &str) {
    let mut connection = client.http(service);
    let from = connection.client();
    let answer = connection.request(REQUEST);
    let ends = format!("Client: {from}\nDestination: {pod}\n");
    let text = answer.text();
    assert!(text.contains(&ends), "{service}: {ends}not in\n{text}");
    daemon.wait_for(&format!("client={from} destination={pod} "));
}

/// Asserts that the Pod answers.
#[track_caller]
fn assert_answered_by_pod(client: &Namespace, service: &str) {
    let answer = client.get(service, "/");
    assert!(answer.ends_with("\r\n\r\npod"), "{service}: {answer}");
}
