//! Syntax of the script: iptables-restore and the kernel accept what the parser accepts.

use crate::lab::Lab;
use crate::lab::script::{IDLE, ScriptFile, print_rules, stderr, with_idle};
use crate::lab::{CIDRS, PROGRAM};

/// Accepted for both families; each body is between `*mangle` and `COMMIT`.
const ACCEPTED: &[&str] = &[
    "",
    // chains
    ":PREROUTING ACCEPT [5:300]\n-A PREROUTING -j ACCEPT",
    ":PREROUTING ACCEPT\n-A PREROUTING -j ACCEPT",
    ":X - [12:3456]\n-A PREROUTING -j X",
    ":X -\n-A PREROUTING -j X\n-A X -j RETURN",
    ":UNUSED - [0:0]",
    ":PREROUTING ACCEPT [5:300]\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT\n:POSTROUTING ACCEPT [1:2]",
    "-N X\n-A PREROUTING -j X\n-A X -j RETURN",
    "[1:60] -N X\n-4 -N X4\n-N X6 -6\n-A PREROUTING -j X",
    ":X - [0:0]\n:Y - [0:0]\n-A X -j Y\n-A PREROUTING -j X\n-A Y -j DROP",
    ":a-b_c.d:e - [0:0]\n-A PREROUTING -j a-b_c.d:e",
    ":a234567890123456789012345678 - [0:0]\n-A PREROUTING -j a234567890123456789012345678",
    ":DROPS - [0:0]\n-A PREROUTING -j DROPS",
    // lines and words
    "# a remark\n-A PREROUTING -j ACCEPT\n#",
    "\n\n-A PREROUTING -j ACCEPT\n",
    " -A PREROUTING   -p\ttcp -j ACCEPT ",
    "-A \"PREROUTING\" -p \"tcp\" -j \"ACCEPT\"",
    "-A PREROUTING -j DROP -p udp",
    "-A PREROUTING",
    "[1:60] -A PREROUTING -j ACCEPT",
    "[1:60]-A PREROUTING -j ACCEPT",
    // -4, -6
    "-4 -A PREROUTING -s 10.0.0.1 -j DROP\n-6 -A PREROUTING -s fd00::1 -j DROP",
    "-A PREROUTING -s 10.0.0.1 -4 -j DROP\n-A PREROUTING -s fd00::1 -6 -j DROP",
    "-A PREROUTING -s 10.0.0.1 -j DROP --ipv4\n-A PREROUTING -s fd00::1 -j DROP --ipv6",
    "-4 -A PREROUTING -p tcp -j TPROXY --on-ip 127.0.0.1 --on-port 9\n-6 -A PREROUTING -p tcp -j TPROXY --on-ip ::1 --on-port 9",
    "-4 -4 -A PREROUTING -j DROP\n-6 --ipv6 -A PREROUTING -j DROP\n-4 -6 -A PREROUTING -j DROP",
    "-A PREROUTING -m comment --comment -6 -j DROP",
    // -m comment
    "-A PREROUTING -m comment --comment plain -j ACCEPT",
    "-A PREROUTING -m comment --comment \"two words\" -j ACCEPT",
    "-A PREROUTING -m comment --comment \"a \\\"quoted\\\" word\" -j ACCEPT",
    "-A PREROUTING -m comment --comment \"\" -j ACCEPT",
    "-A PREROUTING -m comment --comment \"cali:abc\" -m comment --comment \"text\" -j ACCEPT",
    // -p, -i
    "-A PREROUTING -p tcp -j DROP",
    "-A PREROUTING -p udp -j DROP",
    "-A PREROUTING ! -p udp -j DROP",
    "-A PREROUTING -p 6 --dport 80 -j DROP",
    "-A PREROUTING -p 17 -m udp --dport 80 -j DROP",
    "-A PREROUTING -p TCP -m tcp --syn -j DROP",
    "-A PREROUTING -p Udp --dport 80 -j DROP",
    "-A PREROUTING -i eth0 -j DROP",
    "-A PREROUTING ! -i eth0 -j DROP",
    "-A PREROUTING -i cali+ -j DROP",
    "-A PREROUTING ! -i cali+ -j DROP",
    "-A PREROUTING -i a23456789012345 -j DROP",
    "-A PREROUTING -i + -j DROP",
    "-A PREROUTING ! -i + -j DROP",
    // -m tcp, -m udp
    "-A PREROUTING -p tcp --dport 80 -j DROP",
    "-A PREROUTING -p tcp -m tcp --sport 1024:65535 --dport 80:90 -j DROP",
    "-A PREROUTING -p tcp ! --dport 80 -j DROP",
    "-A PREROUTING -p tcp ! --sport 1024:2048 -j DROP",
    "-A PREROUTING -p tcp --dport 0 -j DROP",
    "-A PREROUTING -p udp --dport 53 -j DROP",
    "-A PREROUTING -p udp -m udp ! --sport 53 --dport 53:54 -j DROP",
    "-A PREROUTING -p tcp --syn -j DROP",
    "-A PREROUTING -p tcp ! --syn -j DROP",
    "-A PREROUTING -p tcp --tcp-flags SYN,ACK,FIN,RST SYN -j DROP",
    "-A PREROUTING -p tcp ! --tcp-flags ALL NONE -j DROP",
    "-A PREROUTING -p tcp --tcp-flags PSH,URG PSH,URG -j DROP",
    // -m multiport
    "-A PREROUTING -p tcp -m multiport --dports 80 -j DROP",
    "-A PREROUTING -p tcp -m multiport --dports 80,443,8000:8100 -j DROP",
    "-A PREROUTING -p tcp -m multiport ! --dports 80,443 -j DROP",
    "-A PREROUTING -p tcp -m multiport --sports 1024:2048,4096 -j DROP",
    "-A PREROUTING -p udp -m multiport --ports 53,123 -j DROP",
    "-A PREROUTING -p tcp -m multiport ! --ports 53,123:125 -j DROP",
    "-A PREROUTING -p tcp -m multiport --dports 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15 -j DROP",
    "-A PREROUTING -p tcp -m multiport --dports 80 -m multiport --sports 90 -j DROP",
    "-A PREROUTING -p tcp -m multiport --dports 80 -m multiport --dports 80:90 -j DROP",
    "-A PREROUTING -p tcp -m tcp --dport 80 -m tcp ! --dport 90 -j DROP",
    "-A PREROUTING -p tcp --syn -m tcp ! --tcp-flags PSH PSH -j DROP",
    "-A PREROUTING -p tcp -m tcp -m tcp -m tcp --dport 90 -m tcp --sport 5 -j DROP",
    // -p icmp, OUTPUT, -m addrtype, -m connmark
    "-A PREROUTING -p ${ICMP} -m socket --transparent -j MARK --set-xmark ${MARK}",
    "-A PREROUTING ! -p ${ICMP} -j ACCEPT",
    ":OUTPUT ACCEPT [0:0]\n-A OUTPUT -p tcp --dport 80 -j DROP",
    ":X - [0:0]\n-A OUTPUT -j X\n-A PREROUTING -j X\n-A X -m connmark --mark 0x2 -j MARK --set-mark 0x2",
    "-A PREROUTING -m addrtype --dst-type LOCAL -j ACCEPT",
    "-A PREROUTING -m addrtype ! --src-type LOCAL --dst-type LOCAL -j ACCEPT",
    "-A PREROUTING -m addrtype --src-type LOCAL -m addrtype ! --dst-type LOCAL -j ACCEPT",
    "-A OUTPUT -m addrtype ! --dst-type LOCAL -j CONNMARK --set-xmark 0x2/0x2",
    "-A PREROUTING -j CONNMARK --set-mark 0x2/0x6",
    "-A OUTPUT -m connmark --mark 0x2/0x2 -m connmark ! --mark 0x4/0x4 -j ACCEPT",
    "-A OUTPUT -m connmark --mark 0x2/0x2 -m mark --mark 0x4 -m mark ! --mark 0x8/0x8 -j ACCEPT",
    // -m socket, -m mark
    "-A PREROUTING -m socket -j ACCEPT",
    "-A PREROUTING -m socket --transparent -j ACCEPT",
    "-A PREROUTING -m socket --nowildcard -j RETURN",
    "-A PREROUTING -p tcp -m socket --transparent --nowildcard -j ACCEPT",
    "-A PREROUTING -m socket --transparent -m socket --nowildcard -j ACCEPT",
    "-A PREROUTING -m mark ! --mark 0xe00/0xf00 -m mark ! --mark 0x800/0xf00 -j ACCEPT",
    "-A PREROUTING -m mark --mark 1 -j ACCEPT",
    "-A PREROUTING -m mark --mark 0x1/0x3 -j ACCEPT",
    "-A PREROUTING -m mark ! --mark 0x1/0x3 -j ACCEPT",
    "-A PREROUTING -m mark --mark 0x5/0x1 -j ACCEPT",
    // -j MARK, -j TPROXY
    "-A PREROUTING -j MARK --set-mark 7",
    "-A PREROUTING -j MARK --set-mark 0x10/0xf0",
    "-A PREROUTING -j MARK --set-xmark 0x10/0xf0",
    "-A PREROUTING -j MARK --set-xmark 0xff/0x1",
    "-A PREROUTING -p tcp -j TPROXY --on-port 1",
    "-A PREROUTING -p tcp -j TPROXY --on-port 0",
    "-A PREROUTING -p udp -j TPROXY --on-port 1 --tproxy-mark 1",
    "-A PREROUTING -j TPROXY --tproxy-mark 0xffffffff/0xffffffff --on-port 65535 -p tcp",
    // variables
    "-A PREROUTING -d ${CIDRS} -p tcp -m multiport --dports ${DPORTS} -j DROP",
    "-A PREROUTING -p tcp -j TPROXY --on-ip ${ON_IP} --on-port ${ON_PORT} --tproxy-mark ${MARK}",
];

/// Accepted for IPv4.
const ACCEPTED_V4: &[&str] = &[
    "-A PREROUTING -s 192.0.2.2 -j DROP",
    "-A PREROUTING -s 192.0.2.0/24 -d 10.244.0.0/16 -j DROP",
    "-A PREROUTING -s 192.0.2.77/24 -j DROP",
    "-A PREROUTING -s 192.0.2.77/255.255.255.0 -d 10.0.0.0/255.0.0.0,10.0.0.1/255.255.255.255 -j DROP",
    "-A PREROUTING -d 10.0.0.0/0.0.0.0 -j DROP",
    "-A PREROUTING -s 192.0.2.2,198.51.100.7 -d 10.244.0.5,10.99.0.0/16 -j DROP",
    "-A PREROUTING ! -s 192.0.2.2 ! -d 10.244.0.0/16 -j DROP",
    "-A PREROUTING -s 0.0.0.0/0 -j DROP",
    "-A PREROUTING -p 1 -j DROP",
    "-A PREROUTING -p ICMP -j DROP",
    "-A PREROUTING -p tcp -j TPROXY --on-ip 127.0.0.1 --on-port 1 --tproxy-mark 0x1/0x1",
];

/// Accepted for IPv6.
const ACCEPTED_V6: &[&str] = &[
    "-A PREROUTING -s 2001:db8::1 -j DROP",
    "-A PREROUTING -s 2001:db8::1/64 -d fd00::/8 -j DROP",
    "-A PREROUTING -s 2001:db8::1,fe80::/10 -d fd00:1::,fd00:2::/32 -j DROP",
    "-A PREROUTING ! -s ::1 ! -d fd00::/8 -j DROP",
    "-A PREROUTING -d fd00::/ffff::,fd00:1::/ffff:ff80:: -s ::/:: -j DROP",
    "-A PREROUTING -s ::/0 -j DROP",
    "-A PREROUTING -p 58 -j DROP",
    "-A PREROUTING -p IPv6-ICMP -j DROP",
    "-A PREROUTING -p icmpv6 -j DROP",
    "-A PREROUTING -d ::ffff:10.0.0.1 -j DROP",
    "-A PREROUTING -p tcp -j TPROXY --on-ip ::1 --on-port 1 --tproxy-mark 0x1/0x1",
];

/// Number of labs that share the scripts.
const LABS: usize = 6;

/// Every accepted script, with its family.
fn accepted() -> impl Iterator<Item = (&'static str, &'static str)> {
    let both = ACCEPTED
        .iter()
        .flat_map(|body| [("v4", *body), ("v6", *body)]);
    let v4 = ACCEPTED_V4.iter().map(|body| ("v4", *body));
    both.chain(v4)
        .chain(ACCEPTED_V6.iter().map(|body| ("v6", *body)))
}

fn restore_command(family: &str) -> &'static str {
    match family {
        "v4" => "iptables-restore",
        _ => "ip6tables-restore",
    }
}

/// Tries every accepted script, in several labs at the same time; returns the errors.
fn errors(load: impl Fn(&Lab, &str, &str) -> Result<(), String> + Sync) -> Vec<String> {
    let scripts: Vec<_> = accepted().collect();
    let try_some = |some: &[(&str, &str)]| -> Vec<String> {
        let lab = Lab::new();
        let try_one = |(family, body): &(&str, &str)| {
            let error = load(&lab, family, body).err()?;
            Some(format!("{family} {body}: {error}"))
        };
        some.iter().filter_map(try_one).collect()
    };
    std::thread::scope(|scope| {
        let shares: Vec<_> = scripts
            .chunks(scripts.len().div_ceil(LABS))
            .map(|share| scope.spawn(|| try_some(share)))
            .collect();
        shares
            .into_iter()
            .flat_map(|share| share.join().unwrap())
            .collect()
    })
}

#[test]
fn iptables_restore_accepts_what_the_parser_accepts() {
    let errors = errors(|lab, family, body| {
        let ours = print_rules(lab, &ScriptFile::new(&with_idle(body)), family);
        if ours.status.code() != Some(0) {
            return Err(stderr(&ours));
        }
        let printed = String::from_utf8(ours.stdout).unwrap();
        let theirs = lab
            .node
            .feed(&format!("{} --test", restore_command(family)), &printed);
        theirs
            .status
            .success()
            .then_some(())
            .ok_or_else(|| stderr(&theirs))
    });
    assert_eq!(errors, [""; 0]);
}

#[test]
fn both_read_a_table_with_a_blank_after_its_asterisk() {
    let lab = Lab::new();
    for table in ["* mangle", "*\tmangle ", "*mangle behind"] {
        let text = |body: &str| format!("{table}\n{body}\nCOMMIT\n");
        let ours = print_rules(&lab, &ScriptFile::new(&text(IDLE)), "v4");
        let theirs = lab.node.feed("iptables-restore --test", &text(""));
        assert!(ours.status.success(), "{table}: {}", stderr(&ours));
        assert!(theirs.status.success(), "{table}: {}", stderr(&theirs));
    }
}

#[test]
fn the_kernel_accepts_what_the_parser_accepts() {
    let errors = errors(|lab, family, body| {
        let script = ScriptFile::new(&with_idle(body));
        let cidr = match family {
            "v4" => "10.244.0.0/16",
            _ => "fd00:10:244::/56",
        };
        let mut daemon = lab.spawn(&["--rules", script.path(), "--cidr", cidr]);
        daemon.wait_for("table inet tproxy-pod");
        match daemon.log().contains("Created table") {
            true => daemon.stop(),
            false => daemon.wait().code(),
        };
        let log = daemon.log();
        log.lines()
            .find(|line| line.contains(" ERROR "))
            .map_or(Ok(()), |line| Err(line.to_owned()))
    });
    assert_eq!(errors, [""; 0]);
}

#[test]
fn a_script_may_come_from_a_pipe() {
    let lab = Lab::new();
    let line = format!("{PROGRAM} --cidr {CIDRS} --rules /dev/stdin --print-rules v6");
    let printed = lab.node.feed(
        &line,
        "*mangle\n-A PREROUTING -d ${CIDRS} -p tcp -j TPROXY --on-ip ${ON_IP} --on-port 1 --tproxy-mark 1\nCOMMIT\n",
    );
    let expected = "*mangle\n-A PREROUTING -d fd00:10:244::/56 -p tcp -j TPROXY --on-ip ::1 --on-port 1 --tproxy-mark 1\nCOMMIT\n";
    assert_eq!(
        String::from_utf8_lossy(&printed.stdout),
        expected,
        "{}",
        stderr(&printed)
    );
    let mut command = lab.node.command("sh");
    let script = format!(
        "printf '*mangle\\n{IDLE}\\nCOMMIT\\n' | {PROGRAM} --cidr {CIDRS} --rules /dev/stdin"
    );
    command.args(["-c", &script]);
    let daemon = crate::lab::Daemon::spawn(command);
    daemon.wait_for("Created table");
}

#[test]
fn a_script_that_cannot_be_printed_is_a_failure() {
    let lab = Lab::new();
    let mut command = lab.node.command("sh");
    command.args(["-c", &format!("{PROGRAM} --print-rules v4 >/dev/full")]);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        stderr(&output),
        "tproxy-pod: write to stdout: No space left on device\n"
    );
}
