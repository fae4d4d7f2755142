//! A node with a bridge and two Pods on it, as flannel and docker create them.
//!
//! ```text
//!  pod 10.244.0.5 ──┐ cni0 10.244.0.1  node
//!     fd00:…::5     │      fd00:…::1
//!  peer 10.244.0.6 ─┘
//!     fd00:…::6
//! ```

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::process::{Child, Stdio};
use std::thread;

use super::{Daemon, Namespace, PROGRAM, wait_until};

/// The peer's IPv4 address, and the captured port.
pub const PEER: &str = "10.244.0.6:8180";
/// The peer's IPv6 address, and the captured port.
pub const PEER6: &str = "[fd00:10:244::6]:8180";

/// Sends a SYN-ACK (RFC 9293, 3.1) to each port that it reads, without checksums, which a bridge does not check.
const FORGERY: &str = "
import socket, struct, sys
port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
port.bind(('eth0', 0))
addresses = socket.inet_aton('10.244.0.6') + socket.inet_aton('10.244.0.5')
ip = struct.pack('!BBHHHBBH', 0x45, 0, 40, 1, 0, 64, 6, 0) + addresses
print('ready')
for line in sys.stdin:
    tcp = struct.pack('!HHIIBBHHH', 8180, int(line), 1, 2, 0x50, 0x12, 1000, 0, 0)
    port.send(bytes.fromhex('ffffffffffff0200000000010800') + ip + tcp)
    print('sent')
";

/// A process that sends forged frames.
pub struct Forger(Child);

impl Forger {
    /// Sends the Pod a SYN-ACK from the peer's address and the captured port.
    pub fn forge(&mut self, client: &str) {
        let (_, port) = client.rsplit_once(':').unwrap();
        let input = self.0.stdin.as_mut().unwrap();
        writeln!(input, "{port}").unwrap();
        assert_eq!(self.says(), "sent\n");
    }

    fn says(&mut self) -> String {
        let mut line = String::new();
        let mut output = BufReader::with_capacity(1, self.0.stdout.as_mut().unwrap());
        output.read_line(&mut line).unwrap();
        line
    }
}

impl Drop for Forger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A node, a Pod and its peer on one bridge.
pub struct Bridge {
    pub node: Namespace,
    pub pod: Namespace,
    pub peer: Namespace,
}

impl Bridge {
    /// Creates the network. `filter` is `bridge-nf-call-iptables` and `bridge-nf-call-ip6tables`: whether
    /// bridged frames traverse the IP rules.
    pub fn new(filter: bool) -> Bridge {
        let bridge = Bridge::without_any(filter);
        bridge.add_bridge();
        bridge.add_ports();
        bridge
    }

    /// Creates the namespaces, without the bridge.
    pub fn without_any(filter: bool) -> Bridge {
        let bridge = Bridge {
            node: Namespace::new(),
            pod: Namespace::new(),
            peer: Namespace::new(),
        };
        let node = &bridge.node;
        node.sysctl("net.ipv4.ip_forward", "1");
        node.sysctl("net.ipv6.conf.all.forwarding", "1");
        let filter = if filter { "1" } else { "0" };
        node.sysctl("net.bridge.bridge-nf-call-iptables", filter);
        node.sysctl("net.bridge.bridge-nf-call-ip6tables", filter);
        bridge
    }

    /// Creates the bridge, as CNI's bridge plugin does: its address is added last.
    pub fn add_bridge(&self) {
        let node = &self.node;
        node.run("ip link add cni0 type bridge");
        node.run("ip link set cni0 up");
    }

    /// Creates the veth pairs between the bridge and the Pods.
    pub fn add_ports(&self) {
        let Bridge { node, pod, peer } = self;
        for (name, namespace, number) in [("pod", pod, 5), ("peer", peer, 6)] {
            let path = namespace.path();
            node.try_run(&format!("ip link del {name}"));
            node.run(&format!(
                "ip link add {name} type veth peer name eth0 netns {path}"
            ));
            node.run(&format!("ip link set {name} master cni0 up"));
            namespace.run(&format!("ip address add 10.244.0.{number}/24 dev eth0"));
            namespace.run(&format!(
                "ip address add fd00:10:244::{number}/64 dev eth0 nodad"
            ));
            namespace.run("ip link set eth0 up");
            namespace.run("ip route add default via 10.244.0.1");
            namespace.run("ip -6 route add default via fd00:10:244::1");
        }
        node.run("ip address add 10.244.0.1/24 dev cni0");
        node.run("ip address add fd00:10:244::1/64 dev cni0 nodad");
        for (namespace, device) in [
            (node, "cni0"),
            (node, "pod"),
            (node, "peer"),
            (pod, "eth0"),
            (peer, "eth0"),
        ] {
            namespace.wait_for_ipv6(device);
        }
    }

    /// Accepts connections to the peer's port 9000 and discards their data, until the test ends.
    pub fn serve_sink(&self) {
        let sink = self
            .peer
            .enter(|| TcpListener::bind("0.0.0.0:9000").unwrap());
        thread::spawn(move || {
            for stream in sink.incoming() {
                std::io::copy(&mut stream.unwrap(), &mut std::io::sink()).unwrap();
            }
        });
    }

    /// Starts a Pod on a bridge of its own that can send frames from the peer's addresses.
    pub fn forger(&self) -> Forger {
        let (forger, node) = (Namespace::new(), &self.node);
        node.run(&format!(
            "ip link add forger type veth peer name eth0 netns {}",
            forger.path()
        ));
        node.run("ip link add other type bridge");
        node.run("ip link set other up");
        node.run("ip link set forger master other up");
        forger.run("ip link set eth0 up");
        wait_until("the port forwards", || {
            let port = node.run("bridge link show dev forger");
            port.contains("state forwarding")
        });
        let mut command = forger.command("python3");
        command.args(["-u", "-c", FORGERY]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut forger = Forger(command.spawn().unwrap());
        assert_eq!(forger.says(), "ready\n");
        forger
    }

    /// The response of a captured address to the Pod; empty if there is none at once.
    pub fn try_get(&self, address: &str) -> String {
        let asked = self
            .pod
            .try_run(&format!("curl -sS --max-time 1 {address}"));
        String::from_utf8(asked.stdout).unwrap()
    }

    /// Starts the program on the node, and waits until it captures.
    pub fn start(&self, arguments: &[&str]) -> Daemon {
        let mut command = self.node.command(PROGRAM);
        command.args(arguments);
        let daemon = Daemon::spawn(command);
        daemon.wait_for("Created table inet");
        daemon
    }
}
