//! ICMP errors reach the socket that they concern: the program's for captured connections, else the Pod's.
//!
//! ```text
//!  far 198.51.100.2 ──── 198.51.100.1  router  192.0.2.2 ──── 192.0.2.1  node ──── pod
//!     2001:db8:2::2      …:2::1               …:1::2          …:1::1
//!                  MTU 1280 from the router
//! ```

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use crate::lab::bridge::{Bridge, PEER, PEER6};
use crate::lab::ping::answers_ping;
use crate::lab::script::Loader;
use crate::lab::{CIDRS, Lab, Namespace, PATIENCE, POD, POD6, wait_until};

/// Addresses and port without a Pod.
const NOBODY: [&str; 2] = ["10.244.77.9:8180", "[fd00:10:244:7::9]:8180"];

/// Bytes of an answer that needs many packets.
const LENGTH: usize = 50_000;

/// Counts the ICMP errors that a namespace receives, before any other rule.
const COUNTER: &str = "
table inet watch {
    counter errors {}
    chain received {
        type filter hook prerouting priority -400
        icmp type { destination-unreachable, time-exceeded, parameter-problem } counter name errors
        icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem } counter name errors
    }
}";

/// A Service as kube-proxy translates it: by ClusterIP and port 80, and by NodePort.
const SERVICE: &str = "
table inet services {
    chain prerouting {
        type nat hook prerouting priority dstnat
        ip daddr 10.96.0.10 tcp dport 80 dnat ip to 10.244.0.5:8180
        ip6 daddr fd00:96::10 tcp dport 80 dnat ip6 to [fd00:10:244::5]:8180
        ip daddr 192.0.2.1 tcp dport 30080 dnat ip to 10.244.0.5:8180
        ip6 daddr 2001:db8:1::1 tcp dport 30080 dnat ip6 to [fd00:10:244::5]:8180
    }
}";

/// Translates the addresses of clients to that of the Pod.
const MASQUERADE: &str = "
table inet vpn {
    chain postrouting {
        type nat hook postrouting priority srcnat
        oifname eth0 masquerade
    }
}";

/// A lab whose client is a router, and a client behind it.
struct Path {
    lab: Lab,
    far: Namespace,
}

impl Path {
    fn new() -> Path {
        let lab = Lab::new();
        let far = add_far_client(&lab.client);
        lab.node.ip("route add 198.51.100.0/24 via 192.0.2.2
                     route add 2001:db8:2::/64 via 2001:db8:1::2");
        for namespace in [&lab.node, &lab.pod] {
            namespace.load("nft -f -", COUNTER);
        }
        Path { lab, far }
    }

    /// A path that is narrow from the start.
    fn narrow() -> Path {
        let path = Path::new();
        make_narrow(&path.lab.client);
        path
    }

    /// Asserts that a long answer of the program arrives whole.
    fn assert_long_answer(&self, address: &str) {
        assert_long_answer(&self.far, address);
    }
}

/// A client behind a router.
fn add_far_client(router: &Namespace) -> Namespace {
    let far = Namespace::new();
    router.sysctl("net.ipv4.ip_forward", "1");
    router.sysctl("net.ipv6.conf.all.forwarding", "1");
    // Each error is sent.
    for limit in ["net.ipv4.icmp_ratelimit", "net.ipv6.icmp.ratelimit"] {
        router.sysctl(limit, "0");
    }
    router.ip(&format!(
        "link add far type veth peer name eth0 netns {}
         address add 198.51.100.1/24 dev far
         address add 2001:db8:2::1/64 dev far nodad
         link set far up",
        far.path()
    ));
    far.ip("address add 198.51.100.2/24 dev eth0
            address add 2001:db8:2::2/64 dev eth0 nodad
            link set eth0 up
            route add default via 198.51.100.1
            route add default via 2001:db8:2::1");
    router.wait_for_ipv6("far");
    far.wait_for_ipv6("eth0");
    far
}

/// Limits packets to the client to 1280 bytes, from the router on. Both ends offer segments for 1500 bytes.
fn make_narrow(router: &Namespace) {
    router.ip("route add 198.51.100.2/32 dev far mtu lock 1280
               route add 2001:db8:2::2/128 dev far mtu lock 1280");
}

/// Asserts that a long answer of the program arrives whole.
fn assert_long_answer(client: &Namespace, address: &str) {
    let answer = client.send(address, long_request(address));
    assert!(
        answer.contains("Request received from ") && answer.ends_with(&long_body()),
        "{address}: {} bytes, {:.300}",
        answer.len(),
        answer
    );
}

impl Namespace {
    /// The number of ICMP errors received.
    fn errors(&self) -> u64 {
        let listed = self.run("nft list counter inet watch errors");
        let mut words = listed.split_whitespace();
        words.find(|word| *word == "packets").unwrap();
        words.next().unwrap().parse().unwrap()
    }

    /// Whether a half-open connection (`SYN-RECV`) is waiting for a client's ACK.
    fn has_half_open(&self) -> bool {
        !self.run("ss -Htn state syn-recv").is_empty()
    }
}

fn long_body() -> String {
    "0123456789".repeat(LENGTH / 10)
}

fn long_request(address: &str) -> String {
    format!(
        "POST / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {LENGTH}\r\n\r\n{}",
        long_body()
    )
}

/// Answers each line on a port of all addresses with a long body, until the test ends.
fn serve_long(pod: &Namespace, port: u16) {
    let all: SocketAddr = format!("[::]:{port}").parse().unwrap();
    let listener = pod.enter(|| TcpListener::bind(all).unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                while let Ok(1..) = stream.read(&mut [0; 100]) {
                    stream.write_all(long_body().as_bytes()).unwrap();
                }
            });
        }
    });
}

/// Asserts that a server of [`serve_long`] answers.
fn assert_long_answer_of_pod(stream: &mut TcpStream) {
    stream.write_all(b"more\n").unwrap();
    let mut answer = vec![0; LENGTH];
    stream.read_exact(&mut answer).unwrap();
    assert!(answer == long_body().as_bytes());
}

#[test]
fn an_answer_that_is_longer_than_the_path_arrives_whole() {
    // Each on a path of its own: the node remembers the MTU.
    for address in [POD, POD6].into_iter().chain(NOBODY) {
        for loader in Loader::ALL {
            let path = Path::narrow();
            let _daemon = loader.load_bundled(&path.lab, &["--cidr", CIDRS]);
            path.assert_long_answer(address);
            assert!(path.lab.node.errors() > 0, "{address}: the path is narrow");
            assert_eq!(path.lab.pod.errors(), 0, "{address}: errors at the Pod");
        }
    }
}

#[test]
fn an_answer_to_a_service_that_is_longer_than_the_path_arrives_whole() {
    for address in [
        "10.96.0.10:80",
        "[fd00:96::10]:80",
        "192.0.2.1:30080",
        "[2001:db8:1::1]:30080",
    ] {
        let path = Path::narrow();
        path.lab.node.load("nft -f -", SERVICE);
        let _daemon = path.lab.start(&["--cidr", CIDRS]);
        path.assert_long_answer(address);
        assert!(path.lab.node.errors() > 0, "{address}: the path is narrow");
        assert_eq!(path.lab.pod.errors(), 0, "{address}: errors at the Pod");
    }
}

/// A Pod that translates for clients behind it, as a VPN's gateway does. Its errors pass the bridge.
#[test]
fn an_answer_that_is_longer_than_the_path_behind_a_pod_of_the_same_bridge_arrives_whole() {
    for filter in [false, true] {
        let services = ["10.96.0.10:80", "[fd00:96::10]:80"];
        for address in [PEER, PEER6].into_iter().chain(NOBODY).chain(services) {
            let bridge = Bridge::new(filter);
            let of_peer = SERVICE.replace("10.244.0.5", "10.244.0.6");
            let of_peer = of_peer.replace("fd00:10:244::5", "fd00:10:244::6");
            bridge.node.load("nft -f -", &of_peer);
            let far = add_far_client(&bridge.pod);
            make_narrow(&bridge.pod);
            bridge.pod.load("nft -f -", MASQUERADE);
            for namespace in [&bridge.node, &bridge.peer] {
                namespace.load("nft -f -", COUNTER);
            }
            let _daemon = bridge.start(&["--cidr", CIDRS]);
            assert_long_answer(&far, address);
            assert!(bridge.node.errors() > 0, "{address}: the path is narrow");
            assert_eq!(bridge.peer.errors(), 0, "{address}: errors at the Pod");
        }
    }
}

/// A strict source validation with the mark of an error finds its router, which may be in a captured block.
#[test]
fn errors_of_any_router_are_valid_where_sources_are_validated_by_mark() {
    for cidrs in [CIDRS, "10.244.0.0/16,192.0.2.0/24"] {
        let path = Path::narrow();
        for scope in ["all", "default", "client", "pod"] {
            for sysctl in ["src_valid_mark", "rp_filter"] {
                let name = format!("net.ipv4.conf.{scope}.{sysctl}");
                path.lab.node.sysctl(&name, "1");
            }
        }
        let _daemon = path.lab.start(&["--cidr", cidrs]);
        path.assert_long_answer(POD);
        assert!(path.lab.node.errors() > 0, "the path is narrow");
    }
}

#[test]
fn a_stop_finishes_an_answer_that_is_longer_than_the_path() {
    for address in [POD, POD6] {
        let path = Path::narrow();
        path.lab.pod.serve(8180);
        let mut daemon = path.lab.start(&["--cidr", CIDRS]);
        let (first, last) = (long_request(address), long_body());
        let mut stream = path.far.connect(address).unwrap();
        stream
            .write_all(&first.as_bytes()[..first.len() - 1])
            .unwrap();
        daemon.wait_for("Created table inet");
        daemon.signal(nix::sys::signal::Signal::SIGTERM);
        wait_until("new connections go to the Pod", || {
            path.lab.client.get(address, "/").ends_with("pod")
        });
        stream
            .write_all(&last.as_bytes()[last.len() - 1..])
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.ends_with(&last), "{address}: {:.300}", answer);
        assert!(path.lab.node.errors() > 0, "{address}: the path is narrow");
        assert_eq!(daemon.wait().code(), Some(0));
    }
}

#[test]
fn the_pod_gets_the_errors_of_its_own_connections() {
    for (captured, own) in [(POD, "10.244.0.5:80"), (POD6, "[fd00:10:244::5]:80")] {
        let path = Path::new();
        let pod = &path.lab.pod;
        for port in [80, 8180] {
            serve_long(pod, port);
        }
        let mut older = path.far.connect(captured).unwrap();
        assert_long_answer_of_pod(&mut older);
        make_narrow(&path.lab.client);
        let _daemon = path.lab.start(&["--cidr", CIDRS]);
        assert_long_answer_of_pod(&mut older);
        assert!(pod.errors() > 0, "{captured}: from before the start");
        // The Pod remembers the MTU.
        pod.run("ip route flush cache");
        pod.run("ip -6 route flush cache");
        let before = pod.errors();
        assert_long_answer_of_pod(&mut path.far.connect(own).unwrap());
        assert!(pod.errors() > before, "{own}");
    }
}

/// The router rejects the SYN-ACK. Errors that end a handshake of Linux (`tcp_v4_err`, `tcp_v6_err`) end that of
/// the program; any others concern it alone, too.
#[test]
fn an_error_within_a_handshake_reaches_the_half_open_connection() {
    for (address, error, ends_it) in [
        (POD, "icmp type host-unreachable", true),
        (POD, "icmp type net-unreachable", true),
        (POD, "icmp type port-unreachable", false),
        (NOBODY[0], "icmp type host-unreachable", true),
        (POD6, "icmpv6 type port-unreachable", true),
        (POD6, "icmpv6 type admin-prohibited", true),
        (POD6, "icmpv6 type addr-unreachable", false),
        (NOBODY[1], "icmpv6 type port-unreachable", true),
    ] {
        let path = Path::new();
        let Lab { client, node, pod } = &path.lab;
        let reject = format!(
            "table inet filter {{
                chain forward {{
                    type filter hook forward priority filter
                    tcp flags & (syn | ack) == syn | ack reject with {error}
                }}
            }}"
        );
        client.load("nft -f -", &reject);
        let _daemon = path.lab.start(&["--cidr", CIDRS]);
        let patience = Duration::from_millis(500);
        let to = address.parse().unwrap();
        let connect = || TcpStream::connect_timeout(&to, patience).map(drop);
        let connected = path.far.enter(connect).map_err(|error| error.kind());
        assert_eq!(connected, Err(ErrorKind::TimedOut), "{error}");
        wait_until("the error arrives", || node.errors() > 0);
        if ends_it {
            wait_until("the half-open connection is gone", || !node.has_half_open());
        }
        assert!(ends_it || node.has_half_open(), "{error}");
        let pod_address = if to.is_ipv4() { POD } else { POD6 };
        let pod_address = pod_address.parse::<SocketAddr>().unwrap().ip();
        assert!(path.far.enter(|| answers_ping(pod_address, *PATIENCE)));
        assert_eq!(pod.errors(), 0, "{address}: {error}");
    }
}

#[test]
fn a_ping_reaches_the_pod_and_no_other_address_answers() {
    let path = Path::new();
    let _daemon = path.lab.start(&["--cidr", CIDRS]);
    let is_answered = |address: &str, patience| {
        let address = address.parse::<SocketAddr>().unwrap().ip();
        path.far.enter(|| answers_ping(address, patience))
    };
    for address in [POD, POD6] {
        assert!(is_answered(address, *PATIENCE), "{address}");
    }
    for address in NOBODY {
        let soon = Duration::from_millis(300);
        assert!(!is_answered(address, soon), "{address}");
    }
}
