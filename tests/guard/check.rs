//! `--check`: its report, and that it leaves the node unchanged.

use crate::blocks::ELSEWHERE;
use crate::lab::{CIDRS, Lab, Namespace, POD, PROGRAM};

/// Output and exit status of a check.
struct Checked {
    lines: Vec<String>,
    status: Option<i32>,
}

impl Checked {
    /// Runs `--check` on a node, with a command line.
    fn run(node: &Namespace, line: &str) -> Checked {
        let before = node.foreign_state();
        let output = node.try_run(line);
        assert_eq!(node.foreign_state(), before, "it leaves nothing");
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(errors, "");
        let lines = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<String> = lines.lines().map(str::to_owned).collect();
        for line in &lines {
            let verdict = line.split_whitespace().next();
            let known = ["ok", "limited", "missing"].map(Some);
            assert!(known.contains(&verdict), "{line}");
        }
        Checked {
            lines,
            status: output.status.code(),
        }
    }

    /// Whether a line has this verdict and text.
    fn has(&self, verdict: &str, text: &str) -> bool {
        let mut lines = self.lines.iter();
        lines.any(|line| line.starts_with(verdict) && line.contains(text))
    }

    #[track_caller]
    fn assert_has(&self, verdict: &str, text: &str) {
        assert!(
            self.has(verdict, text),
            "{verdict}: {text} in {:#?}",
            self.lines
        );
    }
}

#[test]
fn nothing_is_missing_on_a_capable_node() {
    let lab = Lab::new();
    let checked = Checked::run(&lab.node, &format!("{PROGRAM} --check --cidr {CIDRS}"));
    assert_eq!(checked.status, Some(0), "{:#?}", checked.lines);
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    checked.assert_has("ok", &format!("Linux {}", release.trim()));
    for part in [
        "nf_tables",
        "the rules, with TPROXY",
        "Pods of one bridge are captured",
        "filters of system calls",
        "mark rule and AnyIP routes",
        "transparent listener at 127.0.0.1:1",
        "transparent listener at [::1]:1",
        "the tables have no other owner",
        "uses mark 0x1/0x1 or table 100",
        "a route of this node leads into 10.244.0.0/16",
        "a route of this node leads into fd00:10:244::/56",
    ] {
        checked.assert_has("ok", part);
    }
    assert!(!checked.has("missing", ""), "{:#?}", checked.lines);
}

/// As in a Pod with a seccomp profile that forbids new namespaces.
#[test]
fn without_a_namespace_of_its_own_the_rules_are_tried_and_have_no_effect() {
    let lab = Lab::new();
    let strace = "strace -f -qqq -o /dev/null -e inject=unshare:error=EPERM";
    let line = format!("{strace} {PROGRAM} --check --cidr {CIDRS}");
    let checked = Checked::run(&lab.node, &line);
    assert_eq!(checked.status, Some(0), "{:#?}", checked.lines);
    checked.assert_has("ok", "the rules, with TPROXY");
    checked.assert_has("ok", "Pods of one bridge are captured");
    checked.assert_has(
        "limited",
        "mark rule and routes were not tried: make a namespace: Operation not permitted",
    );
    assert_eq!(lab.remains(), [""; 0]);
}

#[test]
fn another_running_instance_is_reported() {
    let lab = Lab::new();
    let mut daemon = lab.start(&["--cidr", CIDRS]);
    let checked = Checked::run(&lab.node, &format!("{PROGRAM} --check"));
    assert_eq!(checked.status, Some(1));
    checked.assert_has("missing", "another tproxy-pod is running");
    checked.assert_has("missing", "bind 127.0.0.1:1: Address in use");
    assert!(lab.client.get(POD, "/").contains("Request received"));
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn another_user_of_the_mark_the_table_or_its_name_is_named() {
    let lab = Lab::new();
    lab.node
        .run("ip rule add fwmark 0x3/0x3 lookup 7 priority 99");
    lab.node.run("nft add table inet tproxy-pod");
    lab.node.run("ip route add 10.244.3.0/24 dev pod table 101");
    let checked = Checked::run(&lab.node, &format!("{PROGRAM} --check"));
    assert_eq!(checked.status, Some(1));
    checked.assert_has(
        "missing",
        "the rule with priority 99 uses the mark; see --mark",
    );
    checked.assert_has(
        "limited",
        "there is a table inet tproxy-pod without an owner",
    );
    let other = Checked::run(
        &lab.node,
        &format!("{PROGRAM} --check --mark 4/4 --table 101"),
    );
    assert_eq!(other.status, Some(1));
    other.assert_has(
        "missing",
        "the table has another route to 10.244.3.0/24; see --table",
    );
    let free = Checked::run(&lab.node, &format!("{PROGRAM} --check --mark 4/4"));
    assert_eq!(free.status, Some(0), "{:#?}", free.lines);
}

#[test]
fn another_user_of_the_nodes_mark_is_named_with_the_option_only() {
    let lab = Lab::new();
    let all_well = format!("{PROGRAM} --check --cidr {CIDRS} --from-node");
    let checked = Checked::run(&lab.node, &all_well);
    assert_eq!(checked.status, Some(0), "{:#?}", checked.lines);
    checked.assert_has("ok", "uses mark 0x1/0x1 or 0x2/0x2 or table 100");
    checked.assert_has("ok", "mark rule and AnyIP routes");
    lab.node
        .run("ip -6 rule add fwmark 0x6/0x6 lookup 7 priority 99");
    let checked = Checked::run(&lab.node, &all_well);
    assert_eq!(checked.status, Some(1));
    checked.assert_has(
        "missing",
        "add IPv6 rule fwmark 0x2/0x2 lookup 100: File exists (the rule with priority 99 uses the mark; \
         see --node-mark)",
    );
    for options in ["", "--from-node --node-mark 8/8"] {
        let line = format!("{PROGRAM} --check --cidr {CIDRS} {options}");
        let checked = Checked::run(&lab.node, &line);
        assert_eq!(checked.status, Some(0), "{:#?}", checked.lines);
    }
}

#[test]
fn without_the_capability_it_says_which_one_is_needed() {
    let lab = Lab::new();
    let line =
        format!("setpriv --bounding-set=-net_admin --inh-caps=-net_admin -- {PROGRAM} --check");
    let checked = Checked::run(&lab.node, &line);
    assert_eq!(checked.status, Some(1));
    checked.assert_has(
        "missing",
        "create table inet tproxy-pod: Operation not permitted (CAP_NET_ADMIN is needed)",
    );
    checked.assert_has("ok", "the rules, with TPROXY");
}

#[test]
fn sysctls_that_limit_it_are_reported_with_the_required_value() {
    let lab = Lab::new();
    let all_well = Checked::run(&lab.node, &format!("{PROGRAM} --check"));
    for (sysctl, value, line) in [
        (
            "net.ipv4.tcp_syncookies",
            "0",
            "net.ipv4.tcp_syncookies is 0: a flood",
        ),
        (
            "net.core.somaxconn",
            "128",
            "net.core.somaxconn is 128: of more clients",
        ),
    ] {
        assert!(!all_well.has("limited", sysctl), "{:#?}", all_well.lines);
        lab.node.sysctl(sysctl, value);
        let checked = Checked::run(&lab.node, &format!("{PROGRAM} --check"));
        checked.assert_has("limited", line);
        assert_eq!(checked.status, Some(0));
    }
}

/// Routes that a killed start left are no routes to Pods.
#[test]
fn a_block_without_a_route_is_limited_and_no_error() {
    let lab = Lab::new();
    lab.start(&["--cidr", ELSEWHERE]).kill();
    assert_ne!(lab.node.run("ip route show table 100"), "");
    lab.node.ip(
        "route add 10.244.1.0/24 via 192.0.2.2\nroute add fd00:10:244:1::/64 via 2001:db8:1::2",
    );
    let line = format!("{PROGRAM} --check --cidr 10.244.0.0/16,{ELSEWHERE}");
    let checked = Checked::run(&lab.node, &line);
    assert_eq!(checked.status, Some(0), "{:#?}", checked.lines);
    checked.assert_has("ok", "a route of this node leads into 10.244.0.0/16");
    for (block, instead) in [
        (
            "192.168.0.0/16",
            "10.244.0.0/24 (pod), 10.244.1.0/24 via 192.0.2.2",
        ),
        (
            "fd00:192:168::/56",
            "fd00:10:244::/64 (pod), fd00:10:244:1::/64 via 2001:db8:1::2",
        ),
    ] {
        let warning = format!(
            "No route of this node leads into {block}: it probably holds no Pods. The node routes \
             {instead}. See --cidr"
        );
        checked.assert_has("limited", &warning);
    }
}

#[test]
fn a_script_that_cannot_be_loaded_is_wrong_usage() {
    let lab = Lab::new();
    let line = format!("{PROGRAM} --check --rules /nonexistent");
    assert_eq!(lab.node.try_run(&line).status.code(), Some(2));
}
