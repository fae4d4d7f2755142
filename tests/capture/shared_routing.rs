//! A node with marks, rules and routes of other processes: these do not change, and the program's take effect,
//! or the start is refused with a reason.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::time::Duration;

use crate::lab::{CIDRS, Lab, POD, POD6};

fn assert_captured(lab: &Lab, address: &str) {
    let answer = lab.client.get(address, "/");
    assert!(answer.contains("Request received from "), "{answer}");
}

/// Whether a client's SYN gets no answer.
fn is_lost(lab: &Lab, address: &str) -> bool {
    let (address, patience) = (address.parse().unwrap(), Duration::from_millis(300));
    let connect = || TcpStream::connect_timeout(&address, patience).map(drop);
    let connected = lab.client.enter(connect);
    connected.is_err_and(|error| error.kind() == ErrorKind::TimedOut)
}

/// All that a start adds on a node without rules.
const OURS: [&str; 8] = [
    "route local 10.244.0.0/16 dev lo table 100",
    "route local fd00:10:244::/56 dev lo table 100",
    "rule priority 9 nop",
    "rule iif lo fwmark 0x1/0x1 goto 9",
    "rule fwmark 0x1/0x1 lookup 100",
    "IPv6 rule priority 9 nop",
    "IPv6 rule iif lo fwmark 0x1/0x1 goto 9",
    "IPv6 rule fwmark 0x1/0x1 lookup 100",
];

/// Starts and stops beside entries of other processes: these do not change, `ours` is added, and captured
/// connections are answered.
fn assert_coexists(theirs: &[&str], ours: &[&str]) {
    let lab = Lab::new();
    theirs.iter().for_each(|line| drop(lab.node.run(line)));
    let before = (lab.node.foreign_state(), lab.remains());
    let mut daemon = lab.start(&["--cidr", CIDRS]);
    assert_captured(&lab, POD);
    assert_captured(&lab, POD6);
    assert_eq!(lab.node.foreign_state(), before.0, "while it runs");
    assert_eq!(daemon.stop(), Some(0));
    assert_eq!(
        (lab.node.foreign_state(), lab.remains()),
        before,
        "after the stop"
    );
    let log = daemon.log();
    let added = log.lines().filter_map(|line| line.split_once(" Added "));
    let added: Vec<&str> = added.map(|(_, entry)| entry).collect();
    assert_eq!(added, ours);
}

/// Checks that a start fails with this line, and changes nothing.
fn assert_start_is_refused(theirs: &[&str], reason: &str) {
    let lab = Lab::new();
    theirs.iter().for_each(|line| drop(lab.node.run(line)));
    let before = (lab.node.foreign_state(), lab.remains());
    let mut daemon = lab.spawn(&["--cidr", CIDRS]);
    assert_eq!(daemon.wait().code(), Some(1), "{}", daemon.log());
    let log = daemon.log();
    let errors: Vec<&str> = log.lines().filter(|it| it.contains(" ERROR ")).collect();
    assert!(errors.len() == 1 && errors[0].ends_with(reason), "{log}");
    assert_eq!((lab.node.foreign_state(), lab.remains()), before);
}

#[test]
fn routes_to_elsewhere_in_the_table_stay() {
    let theirs = [
        "ip route add default via 192.0.2.2 table 100",
        "ip route add 10.245.0.0/16 via 10.244.0.5 table 100",
        "ip route add blackhole 10.0.0.0/8 table 100",
        "ip route add throw 172.16.0.0/12 table 100",
        "ip -6 route add default via 2001:db8:1::2 table 100",
        "ip -6 route add unreachable fd00::/16 table 100",
    ];
    assert_coexists(&theirs, &OURS);
}

#[test]
fn equal_local_routes_are_used_and_stay() {
    let theirs = [
        "ip route add local 10.244.0.0/16 dev lo table 100",
        "ip route add local 10.244.0.5 dev lo table 100",
        "ip -6 route add local fd00:10:244::/56 dev lo table 100",
    ];
    assert_coexists(&theirs, &OURS[2..]);
}

/// Adds a route to the table, and checks that the start is refused and names the conflicting block.
fn assert_refused_beside_route(route: &str, block: &str, conflict: &str) {
    let route = format!("ip route add {route} table 100");
    let reason = format!(
        "add route local {block} dev lo table 100: \
         File exists (the table has another route to {conflict}; see --table)"
    );
    assert_start_is_refused(&[&route], &reason);
}

#[test]
fn another_route_to_a_captured_block_refuses_the_start() {
    for (route, block) in [
        ("10.244.0.0/16 via 10.244.0.5", "10.244.0.0/16"),
        ("10.244.0.0/16 via 10.244.0.5 metric 5", "10.244.0.0/16"),
        ("fd00:10:244::/56 via fd00:10:244::5", "fd00:10:244::/56"),
        (
            "fd00:10:244::/56 via fd00:10:244::5 metric 5",
            "fd00:10:244::/56",
        ),
    ] {
        assert_refused_beside_route(route, block, block);
    }
}

#[test]
fn a_route_to_a_part_of_a_captured_block_refuses_the_start() {
    for (route, part, block) in [
        ("10.244.0.0/24 dev pod", "10.244.0.0/24", "10.244.0.0/16"),
        ("blackhole 10.244.0.0/24", "10.244.0.0/24", "10.244.0.0/16"),
        ("throw 10.244.0.5", "10.244.0.5/32", "10.244.0.0/16"),
        (
            "fd00:10:244::/64 dev pod",
            "fd00:10:244::/64",
            "fd00:10:244::/56",
        ),
        (
            "unreachable fd00:10:244::5",
            "fd00:10:244::5/128",
            "fd00:10:244::/56",
        ),
    ] {
        assert_refused_beside_route(route, block, part);
    }
}

#[test]
fn rules_with_other_marks_or_none_stay() {
    let theirs = [
        "ip rule add fwmark 0x0/0x1 lookup 201 priority 3",
        "ip rule add fwmark 0x200/0xf00 lookup 200 priority 8",
        "ip -6 rule add fwmark 0x200/0xf00 lookup 200 priority 8",
        "ip rule add from 192.0.2.0/24 lookup 200 priority 9",
        "ip rule add fwmark 0x80/0x80 lookup main priority 1024",
        "ip rule add not fwmark 0xca6d lookup 51820 priority 32000",
        "ip route add blackhole default table 200",
    ];
    assert_coexists(&theirs, &OURS);
}

#[test]
fn an_equal_rule_is_used_and_stays() {
    let theirs = [
        "ip rule add fwmark 0x1/0x1 lookup 100 priority 5",
        "ip -6 rule add fwmark 0x1/0x1 lookup 100 priority 8",
    ];
    assert_coexists(
        &theirs,
        &[OURS[0], OURS[1], OURS[2], OURS[3], OURS[5], OURS[6]],
    );
}

#[test]
fn an_equal_rule_of_lower_precedence_or_with_more_selectors_is_not_used_but_stays() {
    let theirs = [
        "ip rule add from 192.0.2.9 fwmark 0x1/0x1 lookup 100 priority 5",
        "ip rule add fwmark 0x1/0x1 lookup 100 priority 40000",
        "ip -6 rule add fwmark 0x1/0x1 lookup 100 priority 40000",
    ];
    assert_coexists(&theirs, &OURS);
}

#[test]
fn rules_that_touch_no_received_packet_stay() {
    let theirs = [
        "ip rule add iif lo fwmark 0x1/0x1 lookup main priority 7",
        "ip rule add nop priority 20000",
        "ip -6 rule add nop priority 20000",
    ];
    assert_coexists(&theirs, &OURS);
}

#[test]
fn a_rule_that_uses_our_mark_otherwise_refuses_the_start() {
    for (rule, family, priority) in [
        ("ip rule add fwmark 0x1/0x1 lookup 200 priority 5", "", 5),
        ("ip rule add fwmark 0x1/0x1 lookup 200 priority 8", "", 8),
        ("ip rule add fwmark 0x1/0x1 goto 32766 priority 6", "", 6),
        ("ip rule add fwmark 0x1 lookup 200 priority 1000", "", 1000),
        (
            "ip rule add fwmark 0x3/0x3 blackhole priority 1001",
            "",
            1001,
        ),
        (
            "ip rule add iif client fwmark 0x1 lookup main priority 1002",
            "",
            1002,
        ),
        (
            "ip -6 rule add fwmark 0x1/0x1 lookup 200 priority 5",
            "IPv6 ",
            5,
        ),
    ] {
        let reason = format!(
            "add {family}rule fwmark 0x1/0x1 lookup 100: \
             File exists (the rule with priority {priority} uses the mark; see --mark)"
        );
        assert_start_is_refused(&[rule], &reason);
    }
}

#[test]
fn a_rule_that_uses_the_nodes_mark_otherwise_refuses_the_start_with_the_option_only() {
    let theirs = "ip rule add fwmark 0x2/0x2 lookup 200 priority 5";
    assert_coexists(&[theirs], &OURS);
    let lab = Lab::new();
    lab.node.run(theirs);
    let before = (lab.node.foreign_state(), lab.remains());
    let mut daemon = lab.spawn(&["--cidr", CIDRS, "--from-node"]);
    assert_eq!(daemon.wait().code(), Some(1), "{}", daemon.log());
    daemon.wait_for(
        "add rule fwmark 0x2/0x2 lookup 100: File exists (the rule with priority 5 uses the mark; see --node-mark)",
    );
    assert_eq!((lab.node.foreign_state(), lab.remains()), before);
}

#[test]
fn a_rule_that_takes_our_mark_or_table_does_not_keep_ours_from_being_restored() {
    let lab = Lab::new();
    let daemon = lab.start(&[]);
    for (theirs, loss, back) in [
        (
            "rule add fwmark 0x1 lookup 200 priority 9",
            "rule del fwmark 0x1/0x1 lookup 100",
            "rule fwmark 0x1/0x1 lookup 100",
        ),
        (
            "route add blackhole 10.244.9.0/24 table 100",
            "route del local 10.244.0.0/16 dev lo table 100",
            "route local 10.244.0.0/16 dev lo table 100",
        ),
    ] {
        lab.node.run(&format!("ip {theirs}"));
        let before = lab.node.foreign_state();
        lab.node.run(&format!("ip {loss}"));
        daemon.wait_for(&format!("Restored {back}, which another process removed"));
        assert_captured(&lab, POD);
        assert_eq!(lab.node.foreign_state(), before);
    }
}

#[test]
fn another_mark_and_table_coexist_with_rules_and_routes_of_the_default_ones() {
    let lab = Lab::new();
    lab.node
        .run("ip rule add fwmark 0x1/0x1 lookup 100 priority 5");
    lab.node
        .run("ip route add blackhole 10.244.0.0/24 table 100");
    let before = lab.node.foreign_state();
    let mut daemon = lab.start(&["--mark", "0x100/0x100", "--table", "101"]);
    assert_captured(&lab, POD);
    assert_eq!(daemon.stop(), Some(0));
    assert_eq!(lab.node.foreign_state(), before);
}

/// Rules that mark every packet, before and after the program's own.
const MARK_ALL: [&str; 4] = [
    "iptables -t raw -I PREROUTING -j MARK --set-xmark 0x1/0x1",
    "iptables -t mangle -I PREROUTING -j MARK --set-xmark 0x1/0x1",
    "iptables-legacy -t mangle -I PREROUTING -j MARK --set-xmark 0x1/0x1",
    "iptables -t nat -I PREROUTING -m conntrack --ctstate NEW -j MARK --set-xmark 0x1/0x1",
];

#[test]
fn a_rule_that_sets_our_mark_harms_only_the_captured_blocks() {
    for mark_all in MARK_ALL {
        let lab = Lab::new();
        lab.pod.serve(80);
        lab.node.serve(80);
        lab.pod.run("ip address add 10.99.0.5/32 dev lo");
        lab.node.run("ip route add 10.99.0.5 via 10.244.0.5");
        let _daemon = lab.start(&[]);
        lab.node.run(mark_all);
        for address in ["10.99.0.5:80", "192.0.2.1:80", "10.244.0.1:80"] {
            assert!(
                lab.client.get(address, "/").ends_with("pod"),
                "{mark_all}: {address}"
            );
        }
        assert_captured(&lab, POD);
        assert!(is_lost(&lab, "10.244.0.5:80"), "{mark_all}");
    }
}

#[test]
fn a_rule_that_sets_the_default_mark_harms_nothing_where_ours_is_another() {
    for mark_all in MARK_ALL {
        let lab = Lab::new();
        lab.pod.serve(80);
        let _daemon = lab.start(&["--mark", "0x100/0x100"]);
        lab.node.run(mark_all);
        assert!(
            lab.client.get("10.244.0.5:80", "/").ends_with("pod"),
            "{mark_all}"
        );
        assert_captured(&lab, POD);
    }
}

#[test]
fn a_rule_that_clears_our_mark_behind_ours_loses_captured_connections_and_no_others() {
    let lab = Lab::new();
    lab.pod.serve(80);
    let _daemon = lab.start(&[]);
    lab.node.load(
        "nft -f -",
        "table ip other {
            chain clear {
                type filter hook prerouting priority 0
                meta mark set 0
            }
        }",
    );
    assert!(lab.client.get("10.244.0.5:80", "/").ends_with("pod"));
    assert!(is_lost(&lab, POD));
}

#[test]
fn rules_of_iptables_that_clear_the_mark_harm_nothing() {
    let lab = Lab::new();
    lab.pod.serve(80);
    let _daemon = lab.start(&[]);
    for table in ["raw", "mangle", "nat"] {
        let rule = format!("iptables -t {table} -I PREROUTING -j MARK --set-mark 0x0");
        lab.node.run(&rule);
    }
    assert!(lab.client.get("10.244.0.5:80", "/").ends_with("pod"));
    assert_captured(&lab, POD);
}

#[test]
fn a_rule_ahead_of_ours_to_another_table_loses_captured_connections_and_no_others() {
    let lab = Lab::new();
    lab.pod.serve(80);
    lab.node.run("ip rule add lookup 200 priority 7");
    lab.node.run("ip route add 10.244.0.0/24 dev pod table 200");
    let _daemon = lab.start(&[]);
    assert!(lab.client.get("10.244.0.5:80", "/").ends_with("pod"));
    assert!(is_lost(&lab, POD));
}

#[test]
fn tables_of_our_name_in_other_families_stay() {
    let lab = Lab::new();
    for family in ["ip", "ip6", "netdev"] {
        lab.node.run(&format!("nft add table {family} tproxy-pod"));
    }
    let before = lab.node.foreign_state();
    let mut daemon = lab.start(&[]);
    assert_captured(&lab, POD);
    assert_eq!(lab.node.foreign_state(), before);
    assert_eq!(daemon.stop(), Some(0));
    assert_eq!(lab.node.foreign_state(), before);
}

#[test]
fn a_table_of_our_name_without_an_owner_is_replaced() {
    let lab = Lab::new();
    lab.node.run("nft add table inet tproxy-pod");
    lab.node.run(
        "nft add chain inet tproxy-pod left { type filter hook forward priority 0; policy drop; }",
    );
    let mut daemon = lab.start(&[]);
    assert_captured(&lab, POD);
    let table = lab.node.run("nft list table inet tproxy-pod");
    assert!(!table.contains("chain left"), "{table}");
    assert_eq!(daemon.stop(), Some(0));
    assert_eq!(lab.node.tables(), [""; 0]);
}
