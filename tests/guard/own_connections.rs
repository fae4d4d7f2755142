//! Connections of the node itself at captured ports: a stop neither waits for them nor ends them.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use crate::lab::stopwatch::Stopwatch;
use crate::lab::{CIDRS, Lab, PATIENCE, connect_from, wait_until};

/// Blocks that contain all addresses, also those of IPv4 as an IPv6 socket has them (`::ffff:192.0.2.1`).
const ALL: &str = "0.0.0.0/0,::/0";

/// More than the client's receive buffer, in bytes.
const RESPONSE: usize = 30_000;

/// A connection from the client to a listener on the node.
fn accepted(lab: &Lab, bind: &str, address: &str) -> (TcpStream, TcpStream) {
    let listener = lab.node.enter(|| TcpListener::bind(bind).unwrap());
    let client = lab.client.connect(address).unwrap();
    (client, listener.accept().unwrap().0)
}

/// The number of the node's TCP sockets in a state.
fn count(lab: &Lab, state: &str) -> usize {
    lab.node
        .run(&format!("ss -Htn state {state}"))
        .lines()
        .count()
}

#[test]
fn a_stop_leaves_open_connections_and_those_at_other_ports_alone() {
    let lab = Lab::new();
    // States in which a stop destroys a connection: at a captured port, but open in a process that reads; and
    // without a process, but at another port.
    let accept = |address: &str| accepted(&lab, address, address);
    let mut held = ["10.244.0.1:8180", "[fd00:10:244::1]:8180"].map(accept);
    let orphans = ["10.244.0.1:9000", "[fd00:10:244::1]:9000"].map(|it| accept(it).0);
    for (client, server) in &mut held {
        server.shutdown(Shutdown::Write).unwrap();
        assert_eq!(client.read_to_end(&mut Vec::new()).unwrap(), 0);
    }
    let all = held.len() + orphans.len();
    wait_until("the node has closed its side", || {
        count(&lab, "fin-wait-2") == all
    });
    let mut daemon = lab.start(&["--cidr", CIDRS]);
    assert_eq!(daemon.stop(), Some(0));
    assert_eq!(count(&lab, "fin-wait-2"), all);
    for (client, server) in &mut held {
        client.write_all(b"ping").unwrap();
        server.read_exact(&mut [0; 4]).unwrap();
    }
}

/// Asserts that slow clients of the node's own servers read a whole response, although tproxy-pod stops
/// meanwhile. A server has the address that it binds, and that to which its client connects.
#[track_caller]
fn assert_response_survives_stop(cidrs: &str, servers: &[(&str, &str)]) {
    let lab = Lab::new();
    // Own addresses that no device has.
    lab.node.ip("route add local 10.244.9.0/24 dev lo
                 route add local fd00:10:244:9::/64 dev lo");
    lab.client.sysctl("net.ipv4.tcp_rmem", "4096 4096 4096");
    let mut daemon = lab.start(&["--cidr", cidrs]);
    let mut clients: Vec<TcpStream> = Vec::new();
    for (bind, address) in servers {
        let (client, mut server) = accepted(&lab, bind, address);
        server.write_all(&[b'x'; RESPONSE]).unwrap();
        clients.push(client);
    }
    wait_until("the servers have closed their side", || {
        count(&lab, "fin-wait-1") == servers.len()
    });
    let watch = Stopwatch::start();
    assert_eq!(daemon.stop(), Some(0));
    watch.check_longest("the stop", watch.elapsed(), Duration::ZERO);
    for ((_, address), mut client) in servers.iter().zip(clients) {
        let mut response = Vec::new();
        let read = client.read_to_end(&mut response);
        assert_eq!(read.ok(), Some(RESPONSE), "{address}: {response:?}");
    }
}

#[test]
fn a_stop_leaves_a_response_of_the_nodes_own_server_to_its_client() {
    let servers = [
        "10.244.0.1:8180",
        "[fd00:10:244::1]:8180",
        "10.244.9.9:8180",
    ];
    assert_response_survives_stop(CIDRS, &servers.map(|it| (it, it)));
    assert_response_survives_stop(CIDRS, &[("[::]:8180", "[fd00:10:244:9::9]:8180")]);
}

#[test]
fn a_stop_leaves_a_response_to_an_ipv4_client_of_an_ipv6_socket_alone() {
    assert_response_survives_stop(ALL, &[("[::]:8180", "192.0.2.1:8180")]);
}

#[test]
fn a_stop_leaves_what_the_node_sent_from_a_captured_port_alone() {
    let lab = Lab::new();
    let ends = [
        ("10.244.0.1:48514", "10.244.0.5:9000"),
        ("[fd00:10:244::1]:48514", "[fd00:10:244::5]:9000"),
    ];
    for (from, to) in ends {
        let [from, to]: [SocketAddr; 2] = [from, to].map(|it| it.parse().unwrap());
        let listener = lab.pod.enter(|| TcpListener::bind(to).unwrap());
        let client = lab
            .node
            .enter(|| connect_from(from, to, *PATIENCE).unwrap());
        let (mut server, _) = listener.accept().unwrap();
        drop(client);
        assert_eq!(server.read(&mut [0]).unwrap(), 0);
    }
    wait_until("the connections are over", || {
        count(&lab, "time-wait") == ends.len()
    });
    let mut daemon = lab.start(&["--cidr", CIDRS, "--dport", "8180,30000:65000"]);
    assert_eq!(daemon.stop(), Some(0));
    assert_eq!(count(&lab, "time-wait"), ends.len());
}
