//! Scripts that lead nowhere: with them the program would say that it captures, and either capture nothing or
//! take connections from the Pods and lose them. They are refused; and a start says which script decides.

use std::process::Output;

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

/// The two rules of OUTPUT in the bundled script, shortened.
const CONNMARK: &str = "-A OUTPUT -p tcp --dport 8180 --syn -j CONNMARK --set-xmark ${NODE_MARK}";
const MARK: &str = "-A OUTPUT -m connmark --mark ${NODE_MARK} -j MARK --set-xmark ${NODE_MARK}";

/// Ends of the refusals of what OUTPUT marks.
const NO_MARK: &str = "expected the two OUTPUT lines of the bundled script, with -j MARK --set-xmark ${NODE_MARK}, or no --from-node";
const NO_CONNMARK: &str = "\"MARK\": expected -m connmark, and a rule with -j CONNMARK, as in the bundled script: without them the node's older connections are lost, and a stop does not release new ones";
const OF_RECEIVED: &str =
    "expected ${NODE_MARK} where OUTPUT leads: with this mark the node's packets go to the Pod";

const NOT_BY_LO: &str =
    "\"MARK\": expected PREROUTING to capture it where it comes in, by lo, or no --from-node";

/// A rule to the listener, without `-A PREROUTING`.
const LISTENER: &str =
    "-p tcp --dport 8180 -j TPROXY --on-ip ${ON_IP} --on-port ${ON_PORT} --tproxy-mark ${MARK}";

/// Refused for IPv4: options, lines, line, message. A `$C` stands for [`CONNMARK`], a `$M` for [`MARK`], `$L` for
/// [`LISTENER`].
#[rustfmt::skip]
const REFUSED_OUTPUT: &[(&str, &str, usize, &str, &str)] = &[
    // no rule of OUTPUT has the mark of what the node sends
    ("--from-node", "-A PREROUTING $L\n", 4, "", NO_MARK),
    ("--from-node", "-A PREROUTING $L\n$C", 4, "", NO_MARK),
    ("--from-node", "-A PREROUTING $L\n$C\n-A OUTPUT -j ACCEPT", 5, "", NO_MARK),
    ("--from-node", "-A PREROUTING $L\n$C\n-A PREROUTING -m connmark --mark ${NODE_MARK} -j MARK --set-xmark ${NODE_MARK}", 5, "", NO_MARK),
    ("--from-node", "-A PREROUTING $L\n$C\n-6 $M", 5, "", NO_MARK),
    ("--from-node", "-A PREROUTING $L\n$C\n-A OUTPUT -m connmark --mark ${NODE_MARK} -j MARK --set-xmark 0x4/0x4", 5, "", NO_MARK),
    ("--from-node", "-A PREROUTING $L\n$C\n-A OUTPUT -m connmark --mark ${NODE_MARK} -j MARK --set-xmark 0x2/0x0", 5, "", NO_MARK),
    ("--from-node --node-mark 0x10/0x30", "-A PREROUTING $L\n$C\n-A OUTPUT -m connmark --mark 0x2 -j MARK --set-xmark 0x2/0x2", 5, "", NO_MARK),
    ("--from-node", "-A PREROUTING $L\n:X - [0:0]\n$C\n-A X -m connmark --mark ${NODE_MARK} -j MARK --set-xmark ${NODE_MARK}", 6, "", NO_MARK),
    // older connections have it, too
    ("--from-node", "-A PREROUTING $L\n$M", 3, "", NO_CONNMARK),
    ("--from-node", "-A PREROUTING $L\n-A PREROUTING -j CONNMARK --set-xmark ${NODE_MARK}\n$M", 4, "", NO_CONNMARK),
    ("--from-node", "-A PREROUTING $L\n$C\n-A OUTPUT -p tcp --dport 8180 -j MARK --set-mark ${NODE_MARK}", 4, "", NO_CONNMARK),
    // what comes in by lo is not captured
    ("--from-node", "-A PREROUTING -i eth0 $L\n$C\n$M", 4, "", NOT_BY_LO),
    ("--from-node", "-A PREROUTING ! -i lo $L\n$C\n$M", 4, "", NOT_BY_LO),
    ("--from-node", "-A PREROUTING -i lo1 $L\n-A PREROUTING -i eth+ $L\n-A PREROUTING ! -i l+ $L\n$C\n$M", 6, "", NOT_BY_LO),
    ("--from-node", ":X - [0:0]\n:Y - [0:0]\n-A PREROUTING -i eth0 -j X\n-A X -j Y\n-A Y $L\n$C\n$M", 8, "", NOT_BY_LO),
    // the mark of received packets
    ("", "-A PREROUTING $L\n-A OUTPUT -p tcp -j MARK --set-xmark ${MARK}", 3, "\"0x1/0x1\": ", OF_RECEIVED),
    ("--from-node", "-A PREROUTING $L\n$C\n$M\n-A OUTPUT -p tcp -j MARK --set-mark 0x3", 5, "\"0x3\": ", OF_RECEIVED),
    ("--from-node", "-A PREROUTING $L\n:X - [0:0]\n$C\n-A X -j MARK --set-xmark ${MARK}\n-A OUTPUT -j X\n-A PREROUTING -j X", 5, "\"0x1/0x1\": ", OF_RECEIVED),
    ("--mark 0x10/0x30", "-A PREROUTING $L\n-A OUTPUT -j MARK --set-mark 0x10 -m comment --comment MARK", 3, "\"0x10\": ", OF_RECEIVED),
];

/// Accepted for IPv4: options and lines, as in [`REFUSED_OUTPUT`].
#[rustfmt::skip]
const ACCEPTED_OUTPUT: &[(&str, &str)] = &[
    ("", "-A PREROUTING $L\n$C\n$M"),
    ("", "-A PREROUTING $L\n-A OUTPUT -j MARK --set-xmark 0x2/0x2\n-A OUTPUT -j MARK --set-mark 0x80"),
    ("--mark 0x10/0x30", "-A PREROUTING $L\n-A OUTPUT -j MARK --set-mark 0x30"),
    ("--from-node", "-A PREROUTING $L\n$C\n$M"),
    ("--from-node", "-A PREROUTING -i lo $L\n-A PREROUTING -i eth0 $L\n$C\n$M"),
    ("--from-node", "-A PREROUTING -i lo+ $L\n$C\n$M"),
    ("--from-node", "-A PREROUTING ! -i eth0 $L\n$C\n$M"),
    ("--from-node", ":X - [0:0]\n-A PREROUTING -i eth0 -j X\n-A PREROUTING -i + -j X\n-A X $L\n$C\n$M"),
    ("--from-node", "-A PREROUTING $L\n$C\n$M\n-A OUTPUT -j MARK --set-xmark 0x0/0x1\n-A OUTPUT -j MARK --set-mark 0x80"),
    ("--from-node --node-mark 0x10/0x30", "-A PREROUTING $L\n$C\n$M"),
    ("--from-node", "-A PREROUTING $L\n-A OUTPUT -p tcp --syn -j CONNMARK --set-mark 0x40\n-A OUTPUT -m connmark --mark 0x40 -j MARK --set-mark 0x2"),
    ("--from-node", "-A PREROUTING $L\n:X - [0:0]\n-A OUTPUT -p tcp --syn -j X\n-A OUTPUT -m connmark --mark 0x2/0x2 -j X\n-A X -j CONNMARK --set-xmark 0x2/0x2\n-A X -j MARK --set-xmark 0x2/0x2"),
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

/// Output of `--print-rules v4` with options for the lines of a table.
fn print_with_output(lab: &Lab, options: &str, body: &str) -> (ScriptFile, Output) {
    let lines = [("$C", CONNMARK), ("$M", MARK), ("$L", LISTENER)];
    let replace = |body: String, (name, line): (&str, &str)| body.replace(name, line);
    let script = ScriptFile::new(&whole(&lines.into_iter().fold(body.to_string(), replace)));
    let path = script.path();
    let line = format!("{PROGRAM} {options} --rules {path} --print-rules v4");
    let output = lab.node.feed(&line, "");
    (script, output)
}

#[test]
fn a_script_whose_output_cannot_lead_to_the_listener_is_refused() {
    let lab = Lab::new();
    for (options, body, line, word, expected) in REFUSED_OUTPUT {
        let (script, output) = print_with_output(&lab, options, body);
        let (path, status) = (script.path(), output.status.code());
        let refusal =
            format!("tproxy-pod: --rules {path} for IPv4, line {line}: {word}{expected}\n");
        assert_eq!((stderr(&output), status), (refusal, Some(2)), "{body}");
    }
}

#[test]
fn a_script_whose_output_leads_to_the_listener_is_accepted() {
    let lab = Lab::new();
    for (options, body) in ACCEPTED_OUTPUT {
        let (_, output) = print_with_output(&lab, options, body);
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
