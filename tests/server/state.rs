//! `/` on the listener itself: the state of the program, for people.

use crate::lab::bridge::Bridge;
use crate::lab::{CIDRS, Daemon, Lab, POD, PROGRAM, wait_until};

const LISTENER: &str = "127.0.0.1:1";

#[test]
fn the_page_says_what_runs_since_when_and_what_it_has_done() {
    let lab = Lab::new();
    let mut daemon = lab.start(&["--cidr", CIDRS, "--max-connections", "7"]);
    let _open = lab.open_connections(POD, 2);
    let refused = lab.client.send(POD, "GET / HTTP/1.1\r\n\r\n");
    assert!(refused.starts_with("HTTP/1.1 400 "), "{refused}");
    let state = |name| lab.node.state(LISTENER, name);
    wait_until("two connections are open", || state("Connections") == "2");
    wait_until("it is ready", || state("State") == "ready");
    for (name, expected) in [
        ("Node", "lab"),
        (
            "Capturing",
            "TCP to 10.244.0.0/16,fd00:10:244::/56 port 8180",
        ),
        ("From the node", "not captured"),
        ("Table", "owned: the kernel removes it with this process"),
        ("Bridges", "none"),
        ("at most", "7"),
        ("so far", "3"),
        ("Status of echoes", "200"),
        ("Delay of echoes", "0 ms"),
        ("Requests", "2"),
        ("200", "2"),
        ("Refused", "1"),
        ("400", "1"),
        ("Lost", "0"),
        ("Log lines lost", "0"),
        ("Rules restored", "0"),
        ("Routes restored", "0"),
    ] {
        assert_eq!(state(name), expected, "{name}");
    }
    let page = lab.node.page("[::1]:1", "/");
    let first = concat!("tproxy-pod ", env!("CARGO_PKG_VERSION"), "\n\n");
    assert!(page.starts_with(first), "{page}");
    let since = state("Since");
    let start = daemon.wait_for("Created table");
    assert!(
        *since < *start && since[..16] <= start[..16],
        "{since} {start}"
    );
    assert_eq!(daemon.stop(), Some(0));
    let log = daemon.log();
    assert!(
        !log.contains("target=/ version=HTTP/1.1 host=\"a\""),
        "the page is not logged: {log}"
    );
}

#[test]
fn the_page_says_by_which_rules_and_that_the_node_is_captured_too() {
    let lab = Lab::new();
    let rules = concat!(env!("CARGO_TARGET_TMPDIR"), "/state.rules");
    let script = lab.node.run(&format!("{PROGRAM} --print-rules v4"));
    std::fs::write(rules, script).unwrap();
    let daemon = lab.start(&["--rules", rules]);
    let captured = daemon.wait_for("Capturing by --rules ");
    let (_, captured) = captured.split_once("Capturing ").unwrap();
    assert_eq!(lab.node.state(LISTENER, "Capturing"), captured);
    drop(daemon);
    let _daemon = lab.start(&["--from-node"]);
    assert_eq!(lab.node.state(LISTENER, "From the node"), "captured");
}

#[test]
fn the_page_names_the_bridges_that_are_followed() {
    let bridge = Bridge::new(false);
    let mut command = bridge.node.command(PROGRAM);
    command.args(["--cidr", CIDRS]);
    let daemon = Daemon::spawn(command);
    daemon.wait_for("Created table bridge");
    let bridges = || bridge.node.state(LISTENER, "Bridges");
    wait_until("its bridge is named", || bridges() == "cni0");
    bridge.node.run("ip link add dücker0 type bridge");
    let both = r"cni0, d\xc3\xbccker0";
    wait_until("a new one is named, too", || bridges() == both);
    bridge.node.run("ip link del dücker0");
    wait_until("it is not named any more", || bridges() == "cni0");
}

#[test]
fn other_targets_name_what_is_there() {
    let lab = Lab::new();
    let daemon = lab.start(&[]);
    let response = lab.node.get(LISTENER, "/nothing");
    assert!(response.starts_with("HTTP/1.1 404 "), "{response}");
    let text = "only /, /healthz, /readyz and /metrics are here\n";
    assert!(response.ends_with(text), "{response}");
    daemon.wait_for("Received request to /nothing");
}
