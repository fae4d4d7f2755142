//! Features that a kernel may lack, and how a start logs their absence. scripts/kernels.sh boots a kernel for
//! each test.

use std::fs;
use std::process::Command;

use crate::lab::bridge::{Bridge, PEER, PEER6};
use crate::lab::{CIDRS, Daemon, Lab, Namespace, POD, POD6, PROGRAM, wait_until};

/// Required modules, in the order in which they are loaded, and the end of the log line without each.
const NEEDED: [(&str, &str); 5] = [
    (
        "nfnetlink",
        "(the kernel lacks nfnetlink: module nfnetlink, CONFIG_NETFILTER_NETLINK)",
    ),
    (
        "nf_tables",
        "(the kernel lacks nf_tables: module nf_tables, CONFIG_NF_TABLES)",
    ),
    (
        "nft_socket",
        "(the kernel lacks the expression socket: module nft_socket, CONFIG_NFT_SOCKET)",
    ),
    (
        "nft_fib_inet",
        "(the kernel lacks the expression fib: module nft_fib_inet, CONFIG_NFT_FIB_INET)",
    ),
    (
        "nft_tproxy",
        "(the kernel lacks the expression tproxy: module nft_tproxy, CONFIG_NFT_TPROXY)",
    ),
];

/// End of the log line for an IPv6 block on a kernel without IPv6.
const NO_IPV6: &str = "bind [::1]:1: Address family not supported by protocol";

/// Program by which the kernel loads a module.
const LOADER: &str = "/proc/sys/kernel/modprobe";

#[test]
#[ignore = "needs a kernel that has loaded no module yet: scripts/kernels.sh boots it"]
fn a_module_that_is_missing_is_named() {
    let node = Namespace::new();
    let loader = fs::read_to_string(LOADER).unwrap();
    fs::write(LOADER, "/bin/false").unwrap();
    let mut wrong = Vec::new();
    for (module, end) in NEEDED {
        let mut daemon = Daemon::spawn(node.command(PROGRAM));
        let status = daemon.wait();
        let log = daemon.log();
        let errors: Vec<&str> = log.lines().filter(|it| it.contains(" ERROR ")).collect();
        if status.code() != Some(1) || errors.len() != 1 || !errors[0].ends_with(end) {
            wrong.push(format!("without {module}: {status}\n{log}"));
        }
        let loaded = Command::new("modprobe").arg(module).status().unwrap();
        assert!(loaded.success(), "{module}");
    }
    let mut daemon = Daemon::spawn(node.command(PROGRAM));
    daemon.wait_for("Created table inet tproxy-pod");
    assert_eq!(daemon.stop(), Some(0), "{}", daemon.log());
    fs::write(LOADER, loader).unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
#[ignore = "needs modules that can be unloaded: scripts/kernels.sh boots a kernel of its own"]
fn modules_load_by_themselves_for_the_capabilities_of_the_pod() {
    wait_until("no module of nf_tables is loaded", || {
        let unloaded = Command::new("modprobe")
            .args(["-r", "nft_tproxy", "nft_socket", "nft_fib_inet"])
            .args(["nft_fib_ipv4", "nft_fib_ipv6", "nft_fib", "nf_tables"])
            .output()
            .unwrap();
        unloaded.status.success() && !fs::exists("/sys/module/nf_tables").unwrap()
    });
    let node = Namespace::new();
    let mut command = node.command("setpriv");
    command.args([
        "--bounding-set=-all,+net_admin,+net_bind_service",
        "--inh-caps=-all",
        "--",
        PROGRAM,
    ]);
    let mut daemon = Daemon::spawn(command);
    daemon.wait_for("Created table inet tproxy-pod");
    assert_eq!(daemon.stop(), Some(0), "{}", daemon.log());
}

#[test]
#[ignore = "needs a kernel without IPv6: scripts/kernels.sh boots it"]
fn an_ipv6_block_is_refused_where_there_is_no_ipv6() {
    let lab = Lab::new();
    let mut daemon = lab.spawn(&["--cidr", CIDRS]);
    assert_eq!(daemon.wait().code(), Some(1));
    let log = daemon.log();
    let errors: Vec<&str> = log.lines().filter(|it| it.contains(" ERROR ")).collect();
    assert_eq!(errors.len(), 1, "{log}");
    assert!(errors[0].ends_with(NO_IPV6), "{log}");
    assert_eq!(lab.remains(), [""; 0]);
}

/// After SIGKILL the rules would redirect frames without a server.
#[test]
#[ignore = "needs a kernel before Linux 5.12: scripts/kernels.sh boots it"]
fn without_an_owner_no_frame_of_a_bridge_is_redirected() {
    let bridge = Bridge::new(false);
    bridge.peer.serve(8180);
    let mut daemon = bridge.start(&["--cidr", CIDRS]);
    daemon.wait_for(
        "WARN  Not capturing between Pods of one bridge: create table bridge tproxy-pod: Not supported",
    );
    assert_eq!(bridge.node.tables(), ["table inet tproxy-pod"]);
    let pod_answers = || {
        for address in [PEER, PEER6] {
            assert!(bridge.pod.get(address, "/").ends_with("pod"), "{address}");
        }
    };
    pod_answers();
    for beyond in ["10.244.7.9:8180", "[fd00:10:244:7::9]:8180"] {
        let answer = bridge.pod.get(beyond, "/");
        assert!(answer.contains("Request received from "), "{answer}");
    }
    daemon.kill();
    for iptables in ["iptables", "ip6tables"] {
        bridge.node.run(&format!("{iptables} -P FORWARD DROP"));
    }
    pod_answers();
}

/// After SIGKILL the rules would send the node's connections to lo, where no server is.
#[test]
#[ignore = "needs a kernel before Linux 5.12: scripts/kernels.sh boots it"]
fn without_an_owner_nothing_that_the_node_sends_is_captured() {
    let lab = Lab::new();
    lab.pod.serve(8180);
    let mut daemon = lab.start(&["--cidr", CIDRS, "--from-node"]);
    daemon.wait_for("WARN  Not capturing what the node sends: without an owner");
    for address in [POD, POD6] {
        assert!(lab.node.get(address, "/").ends_with("pod"), "{address}");
        let answer = lab.client.get(address, "/");
        assert!(answer.contains("Request received from "), "{answer}");
    }
    daemon.kill();
    for address in [POD, POD6] {
        assert!(lab.node.get(address, "/").ends_with("pod"), "{address}");
    }
}
