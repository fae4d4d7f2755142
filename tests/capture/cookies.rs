//! Handshakes by SYN cookie (`net.ipv4.tcp_syncookies=2`): no socket owns the client's packet behind its SYN, and it
//! is captured all the same.

use nix::sys::signal::{Signal, kill};

use crate::kube_proxy::{IPTABLES, NFTABLES};
use crate::lab::bridge::{Bridge, PEER, PEER6};
use crate::lab::http_client::{HttpClient, REQUEST};
use crate::lab::script::ScriptFile;
use crate::lab::{CIDRS, Daemon, Lab, Namespace, POD, POD6, wait_until};
use crate::services;

const ABSENT: [&str; 2] = ["10.244.77.9:8180", "[fd00:10:244:7::9]:8180"];

/// Has every handshake to captured addresses done by cookie.
fn always_by_cookie(node: &Namespace) {
    node.sysctl("net.ipv4.tcp_syncookies", "2");
}

fn handshakes_by_cookie(node: &Namespace) -> u64 {
    node.counter("SyncookiesRecv")
}

/// A client of each address is captured, by a cookie each.
#[track_caller]
fn assert_captured(client: &Namespace, node: &Namespace, addresses: &[&str]) {
    for address in addresses {
        let before = handshakes_by_cookie(node);
        let answer = client.get(address, "/");
        assert!(
            answer.contains("Request received from "),
            "{address}: {answer}"
        );
        assert_eq!(handshakes_by_cookie(node), before + 1, "{address}");
    }
}

#[track_caller]
fn assert_answered_by_pod(connection: &mut HttpClient) {
    assert_eq!(connection.request(REQUEST).text(), "pod");
}

/// A client's network that loses its ACKs without data: its handshakes end with its requests.
struct Loss<'n>(&'n Namespace);

impl Loss<'_> {
    fn new(client: &Namespace) -> Loss<'_> {
        let table = "table inet lossy { chain output { type filter hook output priority 0; \
                     tcp flags & (syn | psh) == 0 drop; }; }";
        client.load("nft -f -", table);
        Loss(client)
    }
}

impl Drop for Loss<'_> {
    fn drop(&mut self) {
        self.0.run("nft delete table inet lossy");
    }
}

#[test]
fn a_pod_and_an_address_without_one_are_captured() {
    let lab = Lab::new();
    always_by_cookie(&lab.node);
    lab.pod.serve(8180);
    let _daemon = lab.start(&["--cidr", CIDRS]);
    assert_captured(&lab.client, &lab.node, &[POD, POD6]);
    assert_captured(&lab.client, &lab.node, &ABSENT);
}

#[test]
fn services_are_captured() {
    for mode in [IPTABLES, NFTABLES] {
        let lab = services::lab(&mode);
        always_by_cookie(&lab.node);
        let services = services::services(&services::lab_addresses());
        let addresses: Vec<&str> = services.iter().map(|it| it.address.as_str()).collect();
        let _daemon = lab.start(&["--cidr", CIDRS]);
        for client in [&lab.client, &lab.pod] {
            assert_captured(client, &lab.node, &addresses);
        }
    }
}

#[test]
fn pods_of_one_bridge_are_captured() {
    for filter in [false, true] {
        let bridge = Bridge::new(filter);
        always_by_cookie(&bridge.node);
        bridge.peer.serve(8180);
        let daemon = bridge.start(&["--cidr", CIDRS]);
        daemon.wait_for("Created table bridge tproxy-pod, owned");
        assert_captured(&bridge.pod, &bridge.node, &[PEER, PEER6]);
        assert_captured(&bridge.pod, &bridge.node, &ABSENT);
    }
}

#[test]
fn the_node_itself_is_captured() {
    let lab = Lab::new();
    always_by_cookie(&lab.node);
    lab.pod.serve(8180);
    let _daemon = lab.start(&["--cidr", CIDRS, "--from-node"]);
    assert_captured(&lab.node, &lab.node, &[POD, POD6]);
    assert_captured(&lab.client, &lab.node, &[POD, POD6]);
}

#[test]
fn connections_from_before_the_start_stay_with_the_pod() {
    let lab = Lab::new();
    always_by_cookie(&lab.node);
    lab.pod.serve(8180);
    let mut open = [POD, POD6].map(|address| lab.client.http(address));
    open.iter_mut().for_each(assert_answered_by_pod);
    let mut daemon = lab.start(&["--cidr", CIDRS]);
    for _ in 0..3 {
        assert_captured(&lab.client, &lab.node, &[POD, POD6]);
        open.iter_mut().for_each(assert_answered_by_pod);
    }
    assert_eq!(daemon.stop(), Some(0));
    open.iter_mut().for_each(assert_answered_by_pod);
}

#[test]
fn a_stop_under_load_loses_no_connection() {
    let lab = Lab::new();
    always_by_cookie(&lab.node);
    lab.pod.serve(8180);
    let mut daemon = lab.start(&["--cidr", CIDRS]);
    daemon.stop_under_load(&lab.client, &[POD, POD6]);
}

/// The server is stopped meanwhile, so that it does not close its listeners before the client's request is there.
#[test]
fn a_stop_finishes_handshakes_that_have_begun() {
    let lab = Lab::new();
    always_by_cookie(&lab.node);
    lab.pod.serve(8180);
    let mut daemon = lab.start(&["--cidr", CIDRS]);
    let loss = Loss::new(&lab.client);
    let mut clients = [POD, POD6].map(|address| lab.client.http(address));
    kill(daemon.server(), Signal::SIGSTOP).unwrap();
    daemon.signal(Signal::SIGTERM);
    daemon.wait_for("Stopping: new connections go to the Pods");
    drop(loss);
    clients.iter_mut().for_each(|client| client.send(REQUEST));
    wait_until("both handshakes are finished", || {
        handshakes_by_cookie(&lab.node) == 2
    });
    kill(daemon.server(), Signal::SIGCONT).unwrap();
    for client in &mut clients {
        let answer = client.response();
        assert!(answer.text().starts_with("Request received from pod "));
    }
    assert_eq!(daemon.wait().code(), Some(0));
}

/// The responses to clients that use the same ports each time.
fn ask_from_the_same_ports(lab: &Lab) -> [String; 2] {
    [("192.0.2.2:20000", POD), ("[2001:db8:1::2]:20000", POD6)].map(|(from, to)| {
        let mut connection = lab.client.http_from(from, to);
        let answer = connection.request("GET / HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n");
        connection.assert_closed();
        answer.text().to_owned()
    })
}

#[test]
fn a_client_that_uses_a_captured_port_again_during_a_stop_reaches_the_pod() {
    let lab = Lab::new();
    always_by_cookie(&lab.node);
    lab.pod.serve(8180);
    let mut daemon = lab.start(&["--cidr", CIDRS]);
    let mut busy = lab.client.http(POD);
    busy.send("POST /late HTTP/1.1\r\nHost: pod\r\nContent-Length: 4\r\n\r\nhal");
    for answer in ask_from_the_same_ports(&lab) {
        assert!(answer.starts_with("Request received from "), "{answer}");
    }
    daemon.signal(Signal::SIGTERM);
    daemon.wait_for("Stopping: new connections go to the Pods");
    assert_eq!(ask_from_the_same_ports(&lab), ["pod", "pod"]);
    assert!(busy.request("f").text().ends_with("half"));
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn a_change_of_the_bridges_loses_no_handshake() {
    let lab = Lab::new();
    always_by_cookie(&lab.node);
    lab.pod.serve(8180);
    let daemon = lab.start(&["--cidr", CIDRS]);
    daemon.wait_for("Created table");
    let loss = Loss::new(&lab.client);
    let mut clients = [POD, POD6].map(|address| lab.client.http(address));
    let chains = || lab.node.run("nft -a list chains inet");
    let before = chains();
    lab.node.run("ip link add cni0 type bridge");
    lab.node.run("ip address add 10.244.9.1/24 dev cni0");
    lab.node.run("ip link set cni0 up");
    wait_until("the rules are replaced", || chains() != before);
    drop(loss);
    for client in &mut clients {
        let answer = client.request(REQUEST);
        assert!(answer.text().starts_with("Request received from pod "));
    }
    assert_eq!(handshakes_by_cookie(&lab.node), 2);
}

/// Seconds for which the only connection is still remembered.
fn seconds_left(node: &Namespace) -> u32 {
    let set = node.run("nft list set inet tproxy-pod syn-seen-v4");
    let (_, left) = set.split_once(" expires ").expect(&set);
    left.split_once('s').unwrap().0.parse().expect(&set)
}

#[test]
fn a_packet_that_no_socket_owns_renews_the_time_for_which_its_connection_is_remembered() {
    let lab = Lab::new();
    always_by_cookie(&lab.node);
    let _daemon = lab.start(&["--cidr", CIDRS]);
    let loss = Loss::new(&lab.client);
    let mut client = lab.client.http(ABSENT[0]);
    wait_until("some seconds pass", || seconds_left(&lab.node) < 7);
    drop(loss);
    client.request(REQUEST);
    assert!(seconds_left(&lab.node) >= 7);
}

/// The rules, without a listener.
fn kill_server_behind_the_guard(daemon: &Daemon) {
    kill(daemon.guard(), Signal::SIGSTOP).unwrap();
    kill(daemon.server(), Signal::SIGKILL).unwrap();
}

#[test]
fn without_a_listener_a_client_that_uses_a_captured_port_again_reaches_the_pod() {
    let lab = Lab::new();
    always_by_cookie(&lab.node);
    lab.pod.serve(8180);
    let mut daemon = lab.start(&["--cidr", CIDRS]);
    for answer in ask_from_the_same_ports(&lab) {
        assert!(answer.starts_with("Request received from "), "{answer}");
    }
    // These would take the SYNs (docs/captured.md, "After SIGKILL").
    wait_until("no socket is left", || {
        lab.node.run("ss -HtaK sport 8180");
        lab.node.run("ss -Htan sport 8180").is_empty()
    });
    kill_server_behind_the_guard(&daemon);
    wait_until("no listener is left", || {
        lab.node.run("ss -Hltn sport 1").is_empty()
    });
    assert_eq!(ask_from_the_same_ports(&lab), ["pod", "pod"]);
    daemon.signal(Signal::SIGCONT);
    assert_eq!(daemon.wait().code(), Some(1));
}

/// A script whose rules stand in PREROUTING itself, and return at its end.
#[test]
fn a_script_of_the_user_captures_them() {
    let script = "*mangle
-A PREROUTING -d ${CIDRS} -p tcp -m socket --transparent --nowildcard -j MARK --set-xmark ${MARK}
-A PREROUTING -d ${CIDRS} -p tcp --dport 8180 --tcp-flags SYN,ACK SYN -j TPROXY --on-ip ${ON_IP} --on-port ${ON_PORT} --tproxy-mark ${MARK}
-A PREROUTING -j RETURN
-A PREROUTING -p tcp -j DROP
COMMIT
";
    let lab = Lab::new();
    always_by_cookie(&lab.node);
    let script = ScriptFile::new(script);
    let _daemon = lab.start(&["--cidr", CIDRS, "--rules", script.path()]);
    assert_captured(&lab.client, &lab.node, &ABSENT);
}
