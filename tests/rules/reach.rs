//! Scripts that lead nowhere: with them the program would say that it captures, and either capture nothing or
//! take connections from the Pods and lose them. They are refused; and a start says which script decides.

use crate::lab::script::{IDLE, ScriptFile, print_rules, stderr, whole};
use crate::lab::{CIDRS, Lab, PROGRAM};

/// Start of a rule for a captured port.
const TPROXY: &str = "-A PREROUTING -p tcp --dport 8180 -j TPROXY";

/// Refused for IPv4: script, line, message. A `%` stands for [`TPROXY`].
#[rustfmt::skip]
const REFUSED: &[(&str, usize, &str)] = &[
    // no rule to the listener
    ("", 3, "expected a rule with -p tcp -j TPROXY --on-ip ${ON_IP} --on-port ${ON_PORT} --tproxy-mark ${MARK}"),
    ("-A PREROUTING -d ${CIDRS} -j MARK --set-xmark ${MARK}", 3, "expected a rule with -p tcp -j TPROXY --on-ip ${ON_IP} --on-port ${ON_PORT} --tproxy-mark ${MARK}"),
    ("% --on-port 1 --tproxy-mark 0x1/0x1", 2, "\"TPROXY\": expected --on-ip ${ON_IP} (127.0.0.1)"),
    ("% --on-port 1 --on-ip 0.0.0.0 --tproxy-mark 0x1/0x1", 2, "\"0.0.0.0\": expected --on-ip ${ON_IP} (127.0.0.1)"),
    ("% --on-port 1 --on-ip 127.0.0.2 --tproxy-mark 0x1/0x1", 2, "\"127.0.0.2\": expected --on-ip ${ON_IP} (127.0.0.1)"),
    ("% --on-ip ${ON_IP} --on-port 2 --tproxy-mark ${MARK}", 2, "\"2\": expected --on-port ${ON_PORT} (1)"),
    ("% --on-ip ${ON_IP} --on-port 0 --tproxy-mark ${MARK}", 2, "\"0\": expected --on-port ${ON_PORT} (1)"),
    ("-A PREROUTING -p udp -j TPROXY --on-ip ${ON_IP} --on-port 1 --tproxy-mark ${MARK}", 2, "\"udp\": expected -p tcp (the protocol of the listener)"),
    ("-A PREROUTING -p udp -j TPROXY --on-port 53\n% --on-port 1", 3, "\"TPROXY\": expected --on-ip ${ON_IP} (127.0.0.1)"),
    (":X - [0:0]\n:Y - [0:0]\n-A X -j Y\n-A Y -p tcp -j TPROXY --on-ip ${ON_IP} --on-port 1 --tproxy-mark 1", 5, "\"Y\": expected a chain to which PREROUTING leads"),
    // a mark that the rule for the routing table does not look up
    ("% --on-port 1 --on-ip 127.0.0.1", 2, "\"TPROXY\": expected --tproxy-mark ${MARK} (0x1/0x1)"),
    ("% --on-port 1 --on-ip 127.0.0.1 --tproxy-mark 0x2/0x2", 2, "\"0x2/0x2\": expected --tproxy-mark ${MARK} (0x1/0x1)"),
    ("% --on-port 1 --on-ip 127.0.0.1 --tproxy-mark 0x2", 2, "\"0x2\": expected --tproxy-mark ${MARK} (0x1/0x1)"),
    ("% --on-port 1 --on-ip 127.0.0.1 --tproxy-mark 0x1/0x0", 2, "\"0x1/0x0\": expected --tproxy-mark ${MARK} (0x1/0x1)"),
    ("% --on-port 0 --on-ip 127.0.0.1 --tproxy-mark 0x2/0x2", 2, "\"0x2/0x2\": expected --tproxy-mark ${MARK} (0x1/0x1)"),
    ("% --on-port 1 --on-ip ${ON_IP} --tproxy-mark ${MARK}\n[1:60] % --on-ip ${ON_IP} --on-port 1 --tproxy-mark 0x6/0x6", 3, "\"0x6/0x6\": expected --tproxy-mark ${MARK} (0x1/0x1)"),
    // no rule for a family with a captured block
    ("-6 % --on-ip ${ON_IP} --on-port 1 --tproxy-mark ${MARK}", 2, "\"-6\": expected -j TPROXY for IPv4 too, or no IPv4 block in --cidr: nothing of it is captured"),
    ("-A PREROUTING -s fd00::/8 --ipv6 -j DROP", 2, "\"--ipv6\": expected -j TPROXY for IPv4 too, or no IPv4 block in --cidr: nothing of it is captured"),
];

/// Accepted for IPv4. A `%` stands for [`TPROXY`].
#[rustfmt::skip]
const ACCEPTED: &[&str] = &[
    "% --on-ip 127.0.0.1 --on-port 1 --tproxy-mark 0x1/0x1",
    "% --on-ip 127.0.0.1 --on-port 1 --tproxy-mark 1",
    "% --on-ip 127.0.0.1 --on-port 1 --tproxy-mark 0x13/0xff",
    "% --on-ip 127.0.0.1 --on-port 1 --tproxy-mark 0x3/0x1",
    // beside a rule to the listener, others may lead to other sockets
    "% --on-port 3128\n-A PREROUTING -p udp -j TPROXY --on-port 1\n% --on-ip ${ON_IP} --on-port 1 --tproxy-mark ${MARK}",
    ":X - [0:0]\n:Y - [0:0]\n-A Y -p tcp -j TPROXY --on-ip ${ON_IP} --on-port 1 --tproxy-mark 1\n-A X -j Y\n-A PREROUTING -j X",
];

fn script(body: &str) -> ScriptFile {
    ScriptFile::new(&whole(&body.replace('%', TPROXY)))
}

#[test]
fn a_script_that_leads_nowhere_is_refused_with_what_to_write() {
    let lab = Lab::new();
    for (body, line, message) in REFUSED {
        let body = body.replace("-6 %", &format!("-6 {TPROXY}"));
        let script = script(&body);
        let output = print_rules(&lab, &script, "v4");
        let (path, status) = (script.path(), output.status.code());
        let expected = format!("tproxy-pod: --rules {path} for IPv4, line {line}: {message}\n");
        assert_eq!((stderr(&output), status), (expected, Some(2)), "{body}");
    }
}

#[test]
fn a_script_with_a_rule_to_the_listener_is_accepted() {
    let lab = Lab::new();
    for body in ACCEPTED {
        let output = print_rules(&lab, &script(body), "v4");
        assert_eq!(output.status.code(), Some(0), "{body}: {}", stderr(&output));
    }
}

#[test]
fn listener_and_mark_are_those_of_the_options() {
    let lab = Lab::new();
    let script = script("% --on-ip ${ON_IP} --on-port 7001 --tproxy-mark 0x30/0xf0");
    for (options, status) in [
        ("--port 7001 --mark 0x30/0xf0", 0),
        ("--port 7001 --mark 0x30/0x30", 0),
        ("--port 7001 --mark 0x20/0x20", 0),
        ("--port 7001 --mark 0x20/0x30", 2),
        ("--port 7001 --mark 0x30/0x1f0", 2),
        ("--port 7001", 2),
        ("--mark 0x30/0xf0", 2),
    ] {
        let path = script.path();
        let line = format!("{PROGRAM} {options} --rules {path} --print-rules v4");
        let output = lab.node.feed(&line, "");
        assert_eq!(
            output.status.code(),
            Some(status),
            "{options}: {}",
            stderr(&output)
        );
    }
}

#[test]
fn a_start_and_a_check_refuse_it_too() {
    let lab = Lab::new();
    let script = script("% --on-port 1 --on-ip 127.0.0.1");
    let message = "line 2: \"TPROXY\": expected --tproxy-mark ${MARK} (0x1/0x1)";
    for check in ["", "--check"] {
        let path = script.path();
        let output = lab
            .node
            .feed(&format!("{PROGRAM} --rules {path} {check}"), "");
        assert_eq!(output.status.code(), Some(2), "{check}");
        assert!(stderr(&output).contains(message), "{}", stderr(&output));
    }
    assert_eq!(lab.remains(), [""; 0]);
}

#[test]
fn a_script_for_one_family_needs_blocks_of_that_family_only() {
    let lab = Lab::new();
    let script = script(&format!("-4 {IDLE}"));
    let start = |cidrs: &str| {
        let mut daemon = lab.spawn(&["--rules", script.path(), "--cidr", cidrs]);
        if !cidrs.contains("::") {
            daemon.wait_for("Created table inet");
            daemon.stop();
        }
        (daemon.wait().code(), daemon.log())
    };
    let (status, log) = start("10.244.0.0/16");
    assert_eq!(status, Some(0), "{log}");
    let (status, log) = start(CIDRS);
    assert_eq!(status, Some(2), "{log}");
    let refusal =
        "for IPv6, line 2: \"-4\": expected -j TPROXY for IPv6 too, or no IPv6 block in --cidr";
    assert!(log.contains(refusal), "{log}");
}

#[test]
fn a_start_says_which_script_decides() {
    let lab = Lab::new();
    let script = script(&format!(
        "{IDLE}\n-4 -A PREROUTING -d 10.1.0.0/16,10.2.0.0/16 -j DROP"
    ));
    let path = script.path();
    let daemon = lab.start(&["--cidr", CIDRS, "--rules", path]);
    let log = daemon.log();
    let line = format!(
        "INFO  Capturing by --rules {path} (rules: 2 for IPv4, 1 for IPv6); --cidr and --dport only set routes and bridges"
    );
    assert!(log.contains(&line), "{log}");
    assert!(!log.contains("Capturing TCP to"), "{log}");
}
