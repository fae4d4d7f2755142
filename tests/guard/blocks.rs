//! Captured blocks without a route of the node: the log names them once, and says when one appears.

use crate::lab::rtnetlink::Batch;
use crate::lab::strace::Strace;
use crate::lab::{CIDRS, Daemon, Lab, Namespace, wait_until};

/// Blocks that hold none of the lab's Pods.
pub const ELSEWHERE: &str = "192.168.0.0/16,fd00:192:168::/56";

/// What the program logs of blocks begins so.
const WITHOUT: &str = "No route of this node leads into";
const APPEARED: &str = "A route of this node leads into";

/// The node reaches the Pods of another node through the client's network.
fn add_neighbour(node: &Namespace) {
    node.ip(
        "route add 10.244.1.0/24 via 192.0.2.2\nroute add fd00:10:244:1::/64 via 2001:db8:1::2",
    );
}

/// The log lines about blocks, from their level on, until the end of an orderly stop.
fn lines_about_blocks(mut daemon: Daemon) -> Vec<String> {
    assert_eq!(daemon.stop(), Some(0));
    let log = daemon.log();
    let texts = log.lines().filter_map(|line| line.split_once(' '));
    let about = |text: &&str| text.contains(WITHOUT) || text.contains(APPEARED);
    texts
        .map(|it| it.1)
        .filter(about)
        .map(str::to_owned)
        .collect()
}

fn warning(block: &str, instead: &str) -> String {
    format!("WARN  {WITHOUT} {block}: it probably holds no Pods.{instead} See --cidr")
}

#[test]
fn a_block_without_a_route_is_named_once_with_the_blocks_that_the_node_routes() {
    let lab = Lab::new();
    add_neighbour(&lab.node);
    let daemon = lab.start(&["--cidr", ELSEWHERE]);
    daemon.wait_for("leads into fd00:192:168::/56");
    // Changes elsewhere cause no further line.
    lab.node
        .ip("route add 10.9.0.0/16 dev pod\nroute del 10.9.0.0/16\nroute add default dev client");
    let expected = [
        warning(
            "192.168.0.0/16",
            " The node routes 10.244.0.0/24 (pod), 10.244.1.0/24 via 192.0.2.2.",
        ),
        warning(
            "fd00:192:168::/56",
            " The node routes fd00:10:244::/64 (pod), fd00:10:244:1::/64 via 2001:db8:1::2.",
        ),
    ];
    assert_eq!(lines_about_blocks(daemon), expected);
}

#[test]
fn a_route_that_appears_later_is_said_once_for_each_block() {
    let lab = Lab::new();
    let daemon = lab.start(&["--cidr", ELSEWHERE]);
    for (block, routes) in [
        (
            "192.168.0.0/16",
            ["192.168.3.0/24 dev pod", "192.168.4.0/24 via 192.0.2.2"],
        ),
        (
            "fd00:192:168::/56",
            [
                "fd00:192:168:3::/64 dev pod",
                "fd00:192:168:4::/64 via 2001:db8:1::2",
            ],
        ),
    ] {
        daemon.wait_for(&format!("{WITHOUT} {block}"));
        lab.node.ip(&format!("route add {}", routes[0]));
        daemon.wait_for(&format!("{APPEARED} {block} now"));
        lab.node.ip(&format!(
            "route add {}\nroute del {}\nroute add {}",
            routes[1], routes[0], routes[0]
        ));
    }
    let lines = lines_about_blocks(daemon);
    let appeared = lines.iter().filter(|line| line.contains(APPEARED));
    let expected = [
        format!("INFO  {APPEARED} 192.168.0.0/16 now"),
        format!("INFO  {APPEARED} fd00:192:168::/56 now"),
    ];
    assert_eq!(appeared.cloned().collect::<Vec<_>>(), expected);
    assert_eq!(lines.len(), 4, "{lines:?}");
}

#[test]
fn an_address_of_the_node_inside_a_block_is_a_route_into_it() {
    let lab = Lab::new();
    let daemon = lab.start(&["--cidr", ELSEWHERE]);
    daemon.wait_for("leads into fd00:192:168::/56");
    lab.node
        .ip("address add 192.168.3.1/32 dev pod\naddress add fd00:192:168:3::1/128 dev pod nodad");
    daemon.wait_for(&format!("{APPEARED} 192.168.0.0/16 now"));
    daemon.wait_for(&format!("{APPEARED} fd00:192:168::/56 now"));
}

/// A block may also be a part of what a route leads to: that of one Pod.
#[test]
fn nothing_is_logged_if_a_route_leads_into_every_block() {
    let lab = Lab::new();
    for blocks in [CIDRS, "10.244.0.5/32,fd00:10:244::5/128"] {
        let daemon = lab.start(&["--cidr", blocks]);
        assert_eq!(lines_about_blocks(daemon), [""; 0], "{blocks}");
    }
}

#[test]
fn default_routes_whole_private_ranges_and_what_a_killed_start_left_count_for_nothing() {
    let lab = Lab::new();
    let blocks = "10.99.0.0/16,fd99::/56";
    lab.start(&["--cidr", blocks, "--table", "77"]).kill();
    lab.start(&["--cidr", blocks]).kill();
    lab.node.ip("route add default via 192.0.2.2
         route add 10.0.0.0/8 via 192.0.2.2
         route add default via 2001:db8:1::2
         route add fd00::/8 via 2001:db8:1::2");
    let lines = lines_about_blocks(lab.start(&["--cidr", blocks]));
    let expected = [
        warning("10.99.0.0/16", " The node routes 10.244.0.0/24 (pod)."),
        warning("fd99::/56", " The node routes fd00:10:244::/64 (pod)."),
    ];
    assert_eq!(lines, expected);
}

/// A node with BGP can have 100,000 routes, which change all the time. While the guard cannot send requests, a
/// list would fail, and the log would say that.
#[test]
fn routes_are_listed_again_only_if_a_new_one_may_lead_into_a_block_without_one() {
    const FAILED: &str = "Cannot tell which captured blocks hold Pods";
    let lab = Lab::new();
    let daemon = lab.start(&["--cidr", "10.244.0.0/16,192.168.0.0/16"]);
    daemon.wait_for(&format!("{WITHOUT} 192.168.0.0/16"));
    let broken = Strace::failing(daemon.guard(), "sendto", "ENOBUFS");
    lab.node
        .ip("route add 10.244.7.0/24 dev pod\nroute add 10.9.0.0/16 dev pod");
    lab.node.run("ip route flush table 100");
    daemon.wait_for("Cannot restore what another process removed");
    assert!(!daemon.log().contains(FAILED), "{}", daemon.log());
    lab.node.ip("route add 192.168.7.0/24 dev pod");
    daemon.wait_for(FAILED);
    drop(broken);
    daemon.wait_for(&format!("{APPEARED} 192.168.0.0/16 now"));
}

#[test]
fn of_thousands_of_routes_a_few_are_named() {
    let lab = Lab::new();
    let mut batch = Batch::new(&lab.node, "-4");
    for network in 0..5000 {
        let (middle, low) = (network >> 8, network & 255);
        batch.execute(&format!("route add 11.{middle}.{low}.0/24 via 192.0.2.2"));
    }
    batch.finish();
    wait_until("the routes are there", || {
        lab.node.run("ip route").lines().count() > 5000
    });
    let lines = lines_about_blocks(lab.start(&["--cidr", "192.168.0.0/16"]));
    let instead = " The node routes 10.244.0.0/24 (pod), 11.0.0.0/24 via 192.0.2.2, 11.0.1.0/24 via \
                   192.0.2.2, and others.";
    assert_eq!(lines, [warning("192.168.0.0/16", instead)]);
}
