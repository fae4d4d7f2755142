//! Refused scripts: the message names the line and the word, nothing is loaded, and iptables-restore refuses
//! them, too.

use std::process::Output;

use crate::lab::script::{ScriptFile, print_rules, stderr, whole, with_idle};
use crate::lab::{Daemon, Lab, Namespace};

/// Refused for IPv4: script, line, word.
#[rustfmt::skip]
const REFUSED: &[(&str, usize, &str)] = &[
    // chains
    ("-A NOWHERE -j ACCEPT", 2, "NOWHERE"),
    ("-A PREROUTING -j NOWHERE", 2, "NOWHERE"),
    ("-A PREROUTING -j X\n:X - [0:0]", 2, "X"),
    ("-A PREROUTING -j PREROUTING", 2, "PREROUTING"),
    (":X", 2, ":X"),
    (":PREROUTING REJECT [0:0]", 2, "REJECT"),
    (":ACCEPT - [0:0]", 2, "ACCEPT"),
    (":a2345678901234567890123456789 - [0:0]", 2, "a2345678901234567890123456789"),
    (":-x - [0:0]", 2, "-x"),
    (":!x - [0:0]", 2, "!x"),
    (":x\u{b}- [0:0]", 2, "[0:0]"),
    (":X - [0:0]\n\n# loops\n-A X -j X -s", 5, "-s"),
    // lines and words
    ("nonsense", 2, "nonsense"),
    ("*mangle", 2, "*mangle"),
    ("-j DROP", 2, ""),
    ("-A", 2, "-A"),
    ("-A PREROUTING -A PREROUTING -j DROP", 2, "-A"),
    ("-A PREROUTING -j DROP extra", 2, "extra"),
    ("-A PREROUTING extra -j DROP", 2, "extra"),
    ("-A PREROUTING --frobnicate -j DROP", 2, "--frobnicate"),
    ("\n# a remark\n\n-A PREROUTING -j ACCEPT\n-A PREROUTING -p tcpp", 6, "tcpp"),
    ("-N", 2, "-N"),
    ("-N X Y", 2, "Y"),
    ("-N X -j DROP", 2, "-j"),
    ("-j DROP -N X", 2, "-N"),
    ("-N X -A X", 2, "-A"),
    ("-N INPUT", 2, "INPUT"),
    (":X - [0:0]\n-N X", 3, "X"),
    ("-4", 2, ""),
    ("-4 nonsense", 2, "nonsense"),
    ("[1:60]", 2, ""),
    ("[1:60 -A PREROUTING -j DROP", 2, "[1:60 -A PREROUTING -j DROP"),
    (" [1:60] -A PREROUTING -j DROP", 2, "[1:60]"),
    // !
    ("-A PREROUTING -s ! 10.0.0.0/8 -j DROP", 2, "!"),
    ("-A PREROUTING ! ! -s 10.0.0.0/8 -j DROP", 2, "!"),
    ("-A PREROUTING -j DROP !", 2, "!"),
    ("-A PREROUTING ! -j DROP", 2, "!"),
    ("-A PREROUTING ! -m tcp -p tcp -j DROP", 2, "!"),
    ("-A PREROUTING -m socket ! --transparent -j DROP", 2, "!"),
    (":X - [0:0]\n-A PREROUTING ! -j X", 3, "!"),
    // -p, -s, -d, -i
    ("-A PREROUTING -p", 2, "-p"),
    ("-A PREROUTING -p tcpp -j DROP", 2, "tcpp"),
    ("-A PREROUTING -p tcp -p tcp -j DROP", 2, "-p"),
    ("-A PREROUTING ! -p 0 -j DROP", 2, "0"),
    ("-A PREROUTING -p -6 -j DROP", 2, "-6"),
    ("-A PREROUTING -s 10.0.0.0/255.0 -j DROP", 2, "10.0.0.0/255.0"),
    ("-A PREROUTING -s 10.0.0.0/ffff:: -j DROP", 2, "10.0.0.0/ffff::"),
    ("-A PREROUTING -s fd00::/255.0.0.0 -j DROP", 2, "fd00::/255.0.0.0"),
    ("-A PREROUTING -s 10.0.0.0/33 -j DROP", 2, "10.0.0.0/33"),
    ("-A PREROUTING -s 10.0.0.256 -j DROP", 2, "10.0.0.256"),
    ("-A PREROUTING -s 10.0.0.0/ -j DROP", 2, "10.0.0.0/"),
    ("-A PREROUTING -s fd00::/8 -j DROP", 2, "fd00::/8"),
    ("-A PREROUTING -d 10.0.0.0/8 -d 10.1.0.0/16 -j DROP", 2, "-d"),
    ("-A PREROUTING -s 10.0.0.0/8,,10.1.0.0/16 -j DROP", 2, "10.0.0.0/8,,10.1.0.0/16"),
    ("-A PREROUTING ! -s 10.0.0.0/8,10.1.0.0/16 -j DROP", 2, "10.0.0.0/8,10.1.0.0/16"),
    ("-A PREROUTING -i a234567890123456 -j DROP", 2, "a234567890123456"),
    ("-A PREROUTING -i eth0 -i eth1 -j DROP", 2, "-i"),
    // -m tcp, -m udp
    ("-A PREROUTING --dport 80 -j DROP", 2, "--dport"),
    ("-A PREROUTING -m tcp --dport 80 -j DROP", 2, "--dport"),
    ("-A PREROUTING -p tcp --dport", 2, "--dport"),
    ("-A PREROUTING -p tcp --dport 65536 -j DROP", 2, "65536"),
    ("-A PREROUTING -p tcp --dport 90:80 -j DROP", 2, "90:80"),
    ("-A PREROUTING -p tcp --dport 80,90 -j DROP", 2, "80,90"),
    ("-A PREROUTING -p tcp --dport x -j DROP", 2, "x"),
    ("-A PREROUTING -p tcp --dport 80 --dport 90 -j DROP", 2, "--dport"),
    ("-A PREROUTING -p tcp -m udp -j DROP", 2, "udp"),
    ("-A PREROUTING -p udp -m tcp --dport 80 -j DROP", 2, "tcp"),
    ("-A PREROUTING -p udp --syn -j DROP", 2, "--syn"),
    ("-A PREROUTING -p tcp --syn --syn -j DROP", 2, "--syn"),
    ("-A PREROUTING -p udp --tcp-flags SYN SYN -j DROP", 2, "--tcp-flags"),
    ("-A PREROUTING -p tcp --tcp-flags SYN", 2, "SYN"),
    ("-A PREROUTING -p tcp --tcp-flags SYN,XXX SYN -j DROP", 2, "SYN,XXX"),
    ("-A PREROUTING -p tcp --syn --tcp-flags SYN SYN -j DROP", 2, "--tcp-flags"),
    ("-A PREROUTING -p tcp ! --tcp-flags ALL NONE --syn -j DROP", 2, "--syn"),
    ("-A PREROUTING -p udp --dport 0x50 -j DROP", 2, "0x50"),
    // -m multiport
    ("-A PREROUTING -p tcp --dports 80 -j DROP", 2, "--dports"),
    ("-A PREROUTING -m multiport --dports 80 -j DROP", 2, "--dports"),
    ("-A PREROUTING -p tcp -m multiport -j DROP", 2, "multiport"),
    ("-A PREROUTING -p tcp -m multiport --dports 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16", 2, "1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16"),
    ("-A PREROUTING -p tcp -m multiport --dports 1:2,3:4,5:6,7:8,9:10,11:12,13:14,15:16", 2, "1:2,3:4,5:6,7:8,9:10,11:12,13:14,15:16"),
    ("-A PREROUTING -p tcp -m multiport --dports 80 --sports 90 -j DROP", 2, "--sports"),
    ("-A PREROUTING -p tcp -m multiport --dports 90:80 -j DROP", 2, "90:80"),
    ("-A PREROUTING -p tcp -m multiport --dports 80, -j DROP", 2, "80,"),
    ("-A PREROUTING -p tcp -m multiport --dports 80:80 -j DROP", 2, "80:80"),
    ("-A PREROUTING -p tcp -m multiport --dports 80 --sport 90 -j DROP", 2, "--sport"),
    // OUTPUT, -p icmp, -m addrtype, connmark
    ("-A OUTPUT -p tcp -j TPROXY --on-port 1", 2, "TPROXY"),
    ("-A OUTPUT -m socket --transparent -j ACCEPT", 2, "socket"),
    ("-A OUTPUT -i eth0 -j ACCEPT", 2, "-i"),
    ("-A OUTPUT -j OUTPUT", 2, "OUTPUT"),
    ("-A PREROUTING -p icmp --dport 80 -j DROP", 2, "--dport"),
    ("-A PREROUTING -p icmp -m tcp -j DROP", 2, "tcp"),
    ("-A PREROUTING -p icmp -j TPROXY --on-port 1", 2, "TPROXY"),
    ("-A PREROUTING -m addrtype -j DROP", 2, "addrtype"),
    ("-A PREROUTING --dst-type LOCAL -j DROP", 2, "--dst-type"),
    ("-A PREROUTING -m addrtype --dst-type NEAR -j DROP", 2, "NEAR"),
    ("-A PREROUTING -m addrtype --dst-type LOCAL --dst-type LOCAL -j DROP", 2, "--dst-type"),
    ("-A PREROUTING -m connmark -j DROP", 2, "connmark"),
    ("-A PREROUTING -m connmark --mark x -j DROP", 2, "x"),
    ("-A PREROUTING -m connmark --mark 1 --mark 2 -j DROP", 2, "--mark"),
    ("-A PREROUTING -m mark -m connmark --mark 1 -j DROP", 2, "mark"),
    ("-A PREROUTING -m connmark --mark 1 -m mark --mark 2 -m connmark --mark 3 -j DROP", 2, "--mark"),
    ("-A PREROUTING -j CONNMARK", 2, "CONNMARK"),
    ("-A PREROUTING -j CONNMARK --tproxy-mark 1", 2, "--tproxy-mark"),
    // -m socket, mark, comment, and others
    ("-A PREROUTING -m", 2, "-m"),
    ("-A PREROUTING -m nosuch -j DROP", 2, "nosuch"),
    ("-A PREROUTING --transparent -j DROP", 2, "--transparent"),
    ("-A PREROUTING -m socket --opaque -j DROP", 2, "--opaque"),
    ("-A PREROUTING -m mark -j DROP", 2, "mark"),
    ("-A PREROUTING -m mark --mark x -j DROP", 2, "x"),
    ("-A PREROUTING -m mark --mark 0x100000000 -j DROP", 2, "0x100000000"),
    ("-A PREROUTING -m mark --mark 1 --mark 2 -j DROP", 2, "--mark"),
    ("-A PREROUTING -m mark -m mark --mark 1 --mark 2 -j DROP", 2, "--mark"),
    ("-A PREROUTING -m mark -m mark --mark 1 -j DROP", 2, "mark"),
    ("-A PREROUTING -m socket --transparent --transparent -j ACCEPT", 2, "--transparent"),
    ("-A PREROUTING -m comment --comment a --comment b -j ACCEPT", 2, "--comment"),
    ("-A PREROUTING -m comment -j DROP", 2, "comment"),
    ("-A PREROUTING -m comment --comment", 2, "--comment"),
    // -j
    ("-A PREROUTING -j", 2, "-j"),
    ("-A PREROUTING -j drop", 2, "drop"),
    ("-A PREROUTING -j DROP -j ACCEPT", 2, "-j"),
    ("-A PREROUTING -j DROP --on-port 1", 2, "--on-port"),
    ("-A PREROUTING -j MARK", 2, "MARK"),
    ("-A PREROUTING -j MARK --set-mark x", 2, "x"),
    ("-A PREROUTING -j MARK --set-mark 1 --set-xmark 1", 2, "--set-xmark"),
    ("-A PREROUTING --set-mark 1 -j MARK", 2, "--set-mark"),
    ("-A PREROUTING -p tcp -j TPROXY", 2, "TPROXY"),
    ("-A PREROUTING -j TPROXY --on-port 1", 2, "TPROXY"),
    ("-A PREROUTING -p tcp -j TPROXY --on-port 0x50", 2, "0x50"),
    ("-A PREROUTING -p tcp -j TPROXY --on-port x", 2, "x"),
    ("-A PREROUTING -p tcp -j TPROXY --on-port 1 --on-ip ::1", 2, "::1"),
    ("-A PREROUTING -p tcp -j TPROXY --on-port 1 --tproxy-mark x", 2, "x"),
];

#[test]
fn iptables_restore_refuses_what_the_parser_refuses() {
    let lab = Lab::new();
    let accepted: Vec<&str> = REFUSED
        .iter()
        .map(|(body, ..)| *body)
        .filter(|body| {
            lab.node
                .feed("iptables-restore", &whole(body))
                .status
                .success()
        })
        .collect();
    assert_eq!(accepted, [""; 0]);
}

#[test]
fn a_refusal_names_the_line_and_the_word() {
    let lab = Lab::new();
    for (body, line, word) in REFUSED {
        let script = ScriptFile::new(&whole(body));
        assert_refusal(print_rules(&lab, &script, "v4"), &script, *line, word);
    }
}

/// Asserts that one line on stderr names the script, the line and the word.
fn assert_refusal(output: Output, script: &ScriptFile, line: usize, word: &str) {
    let message = stderr(&output);
    let word = match word {
        "" => "expected ".to_owned(),
        word => format!("\"{word}\": "),
    };
    let start = format!(
        "tproxy-pod: --rules {} for IPv4, line {line}: {word}",
        script.path()
    );
    assert_eq!(output.status.code(), Some(2), "{start}\n{message}");
    assert!(message.starts_with(&start), "{start}\n{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
    assert_eq!(output.stdout, b"", "{start}");
}

#[test]
fn a_script_that_does_not_begin_or_end_as_it_should_is_refused_by_name() {
    let lab = Lab::new();
    for (text, line, word) in [
        ("", 1, ""),
        ("# nothing\n\n", 2, ""),
        (
            "-A PREROUTING -j ACCEPT\nCOMMIT\n",
            1,
            "-A PREROUTING -j ACCEPT",
        ),
        ("*filter\nCOMMIT\n", 1, "*filter"),
        ("*mangle\n-A PREROUTING -j ACCEPT\n", 2, ""),
        (
            "*mangle\nCOMMIT\n-A PREROUTING -j ACCEPT\n",
            3,
            "-A PREROUTING -j ACCEPT",
        ),
        ("*mangle\nCOMMIT\n*filter\nCOMMIT\n", 3, "*filter"),
        ("*mangle\r\nCOMMIT\r\n", 1, "*mangle\\r"),
    ] {
        let script = ScriptFile::new(text);
        assert_refusal(print_rules(&lab, &script, "v4"), &script, line, word);
    }
}

#[test]
fn what_iptables_restore_reads_otherwise_is_refused() {
    let lab = Lab::new();
    for (body, line, word) in [
        (":X ACCEPT [0:0]", 2, "ACCEPT"),
        (":TPROXY - [0:0]", 2, "TPROXY"),
        (":X - [0:0] more", 2, ":X - [0:0] more"),
        (":X - [a:b]", 2, ":X - [a:b]"),
        (":X - [0:0]\n:X - [0:0]", 3, "X"),
        (":X - [0:0]\n-A X -j X", 3, "X"),
        (":X - [0:0]\n:Y - [0:0]\n-A X -j Y\n-A Y -j X", 4, "Y"),
        (":INPUT DROP [0:0]", 2, "DROP"),
        (":OUTPUT DROP [0:0]", 2, "DROP"),
        (
            ":X - [0:0]\n-A OUTPUT -j X\n-A X -p tcp -j TPROXY --on-port 1",
            4,
            "TPROXY",
        ),
        (
            "-A PREROUTING -m addrtype --dst-type UNICAST -j DROP",
            2,
            "UNICAST",
        ),
        ("-A PREROUTING -j CONNMARK --save-mark", 2, "--save-mark"),
        ("-A PREROUTING -p ipv6-icmp -j DROP", 2, "ipv6-icmp"),
        ("-A INPUT -j ACCEPT", 2, "INPUT"),
        ("-N X\n:X - [0:0]", 3, "X"),
        ("[a:b] -A PREROUTING -j DROP", 2, "[a:b]"),
        ("! -4 -A PREROUTING -j DROP", 2, "!"),
        ("-A PREROUTING -j NOWHERE -6", 2, "NOWHERE"),
        (
            "-A PREROUTING -d 10.0.0.0/255.0.255.0 -j DROP",
            2,
            "10.0.0.0/255.0.255.0",
        ),
        ("-A PREROUTING ! -p tcp --dport 80 -j DROP", 2, "--dport"),
        (
            "-A PREROUTING -m socket --nowildcard -m socket -j RETURN",
            2,
            "RETURN",
        ),
        ("-A PREROUTING -s 10.0.0 -j DROP", 2, "10.0.0"),
        ("-A PREROUTING -p sctp -j DROP", 2, "sctp"),
        ("-A PREROUTING -m socket -j RETURN", 2, "RETURN"),
        ("-A PREROUTING -p tcp -j TPROXY --on-port 65536", 2, "65536"),
        ("-A PREROUTING -d ${CIDR} -j DROP", 2, "${CIDR}"),
        (
            "-A PREROUTING -m conntrack --ctstate NEW -j DROP",
            2,
            "conntrack",
        ),
        ("-A PREROUTING -j LOG", 2, "LOG"),
        ("-I PREROUTING -j DROP", 2, "-I"),
        ("-A PREROUTING -i eth0\0 -j DROP", 2, "eth0\\x00"),
    ] {
        let script = ScriptFile::new(&whole(body));
        assert_refusal(print_rules(&lab, &script, "v4"), &script, line, word);
    }
}

#[test]
fn what_stays_refused_says_what_to_write_instead() {
    let lab = Lab::new();
    for (text, line, message) in [
        (
            whole("-I PREROUTING -j DROP"),
            2,
            "\"-I\": expected -A; put the line first",
        ),
        (
            whole("--append PREROUTING -j DROP"),
            2,
            "\"--append\": expected -A",
        ),
        (
            whole("-A PREROUTING --destination 10.0.0.1"),
            2,
            "\"--destination\": expected -d",
        ),
        (
            whole("-A PREROUTING --src 10.0.0.1"),
            2,
            "\"--src\": expected -s",
        ),
        (
            whole("-A PREROUTING --protocol tcp"),
            2,
            "\"--protocol\": expected -p",
        ),
        (
            whole("-A PREROUTING -p tcp --dport=80"),
            2,
            "\"--dport=80\": expected a blank in place of =",
        ),
        (
            whole("-A PREROUTING -j MARK --or-mark 1"),
            2,
            "\"--or-mark\": expected --set-xmark VALUE/MASK",
        ),
        (
            whole("-P PREROUTING ACCEPT"),
            2,
            "\"-P\": expected :CHAIN ACCEPT",
        ),
        (
            whole("-F"),
            2,
            "\"-F\": expected no such line: every script starts with an empty table",
        ),
        (
            whole("-A PREROUTING -p all -j DROP"),
            2,
            "\"all\": expected no -p for all protocols",
        ),
        (
            whole("-A PREROUTING -s fd00::1 -j DROP"),
            2,
            "\"fd00::1\": expected an IPv4 block, or -6 at the start of the line",
        ),
        (
            whole("-A PREROUTING -m conntrack"),
            2,
            "\"conntrack\": supported are -m tcp, udp, multiport, addrtype, socket, mark, connmark or comment",
        ),
        ("*raw\nCOMMIT\n".to_owned(), 1, "\"*raw\": expected *mangle"),
        ("*nat\nCOMMIT\n".to_owned(), 1, "\"*nat\": expected *mangle"),
    ] {
        let script = ScriptFile::new(&text);
        let output = print_rules(&lab, &script, "v4");
        let (path, status) = (script.path(), output.status.code());
        let expected = format!("tproxy-pod: --rules {path} for IPv4, line {line}: {message}\n");
        assert_eq!((stderr(&output), status), (expected, Some(2)));
    }
}

#[test]
fn a_word_of_1023_bytes_is_accepted_by_both_and_one_of_1024_refused_by_both() {
    let lab = Lab::new();
    let list = |last: &str| format!("{}{last}", "192.0.2.1,".repeat(101));
    for (last, accepted) in [("198.51.100.10", true), ("198.51.100.100", false)] {
        let body = format!("-A PREROUTING -s {} -j DROP", list(last));
        assert_eq!(list(last).len(), if accepted { 1023 } else { 1024 });
        let ours = print_rules(&lab, &ScriptFile::new(&with_idle(&body)), "v4");
        let theirs = lab.node.feed("iptables-restore --test", &whole(&body));
        assert_eq!(ours.status.success(), accepted, "{}", stderr(&ours));
        assert_eq!(theirs.status.success(), accepted, "{}", stderr(&theirs));
    }
}

#[test]
fn a_line_is_accepted_by_both_or_refused_by_both_for_its_bytes_and_its_words() {
    let lab = Lab::new();
    let comment = |length: usize| format!("#{}", "c".repeat(length - 1));
    let modules = |count: usize| format!("-A PREROUTING -p tcp --syn{}", " -m tcp".repeat(count));
    for (body, accepted) in [
        (comment(10_239), true),
        (comment(10_240), false),
        (modules(123), true),
        (modules(124), false),
    ] {
        let ours = print_rules(&lab, &ScriptFile::new(&with_idle(&body)), "v4");
        let theirs = lab.node.feed("iptables-restore --test", &whole(&body));
        assert_eq!(ours.status.success(), accepted, "{}", stderr(&ours));
        assert_eq!(theirs.status.success(), accepted, "{}", stderr(&theirs));
    }
}

#[test]
fn a_comment_that_iptables_would_cut_is_refused() {
    let lab = Lab::new();
    for (length, status) in [(255, 0), (256, 2)] {
        let comment = "c".repeat(length);
        let body = format!("-A PREROUTING -m comment --comment {comment} -j DROP");
        let ours = print_rules(&lab, &ScriptFile::new(&with_idle(&body)), "v4");
        assert_eq!(
            ours.status.code(),
            Some(status),
            "{length}: {}",
            stderr(&ours)
        );
    }
}

#[test]
fn jumps_nested_15_deep_are_loaded_and_one_more_leaves_nothing() {
    let lab = Lab::new();
    for (depth, status) in [(15, 0), (16, 1)] {
        let chains: String = (1..=depth).map(|it| format!(":C{it} - [0:0]\n")).collect();
        let jump = |it| format!("-A C{} -j C{it}\n", it - 1);
        let jumps: String = (2..=depth).map(jump).collect();
        let body = format!("{chains}-A PREROUTING -j C1\n{jumps}-A C{depth} -j ACCEPT");
        let script = ScriptFile::new(&with_idle(&body));
        let mut daemon = lab.spawn(&["--rules", script.path()]);
        if status == 0 {
            daemon.wait_for("Created table inet");
            daemon.stop();
        }
        assert_eq!(daemon.wait().code(), Some(status), "{}", daemon.log());
        assert_eq!(lab.remains(), [""; 0]);
    }
}

#[test]
fn a_refused_script_changes_nothing_at_all() {
    let lab = Lab::new();
    let mut monitor = lab.node.command("sh");
    monitor.args(["-c", "exec nft monitor >&2"]);
    let monitor = Daemon::spawn(monitor);
    wait_for_tables(&lab.node, &monitor, "before");
    for (body, ..) in REFUSED {
        let script = ScriptFile::new(&whole(body));
        let status = lab.spawn(&["--rules", script.path()]).wait();
        assert_eq!(status.code(), Some(2), "{body}");
    }
    wait_for_tables(&lab.node, &monitor, "after");
    assert!(!monitor.log().contains("tproxy-pod"), "{}", monitor.log());
    let remains = lab.remains();
    assert!(
        remains.iter().all(|line| line.starts_with("table ip ")),
        "{remains:?}"
    );
}

/// Adds tables until the monitor reports one: then it has reported all earlier events.
fn wait_for_tables(node: &Namespace, monitor: &Daemon, name: &str) {
    crate::lab::wait_until("the monitor listens", || {
        node.run(&format!("nft add table ip {name}"));
        let seen = monitor.log().contains(&format!("add table ip {name}"));
        if !seen {
            node.run(&format!("nft delete table ip {name}"));
        }
        seen
    });
}
