//! Start, stop and restart: what is installed, what is left, and the effect on traffic.

use crate::lab::http_client::HttpClient;
use crate::lab::kernel::owns_tables;
use crate::lab::{CIDRS, Daemon, Lab, POD, POD6, PROGRAM, wait_until};

const REQUEST: &str = "GET / HTTP/1.1\r\nHost: pod\r\n\r\n";

fn lines_with<'l>(lines: &'l [String], text: &str) -> Vec<&'l String> {
    lines.iter().filter(|line| line.contains(text)).collect()
}

#[test]
fn the_binary_is_static_and_small() {
    let file = std::process::Command::new("file")
        .args(["-L", PROGRAM])
        .output()
        .unwrap();
    let kind = String::from_utf8(file.stdout).unwrap();
    // Rust links a static executable as position-independent on x86_64 only.
    let linked = match cfg!(target_arch = "x86_64") {
        true => "static-pie linked",
        false => "statically linked",
    };
    assert!(
        kind.contains(linked) && kind.contains("stripped"),
        "run scripts/test.sh: {kind}"
    );
    assert!(!kind.contains("interpreter"), "{kind}");
    let size = std::fs::metadata(PROGRAM).unwrap().len();
    assert!(size <= 800_000, "{size} bytes");
}

#[test]
fn a_start_logs_what_is_captured_where_the_listeners_are_and_which_process_owns_the_table() {
    let lab = Lab::new();
    let arguments = ["--cidr", CIDRS, "--dport", "8180,9000:9010", "--port", "7"];
    let daemon = lab.start(&arguments);
    let created = match owns_tables() {
        true => {
            "INFO  Created table inet tproxy-pod, owned: the kernel removes it with this process"
        }
        false => {
            "WARN  Created table inet tproxy-pod, not owned (before Linux 5.12): SIGKILL would leave it"
        }
    };
    for line in [
        "INFO  Binding TCP TProxy listener to 127.0.0.1:7",
        "INFO  Binding TCP TProxy listener to [::1]:7",
        "INFO  Capturing TCP to 10.244.0.0/16,fd00:10:244::/56 port 8180,9000:9010",
        "INFO  Added rule iif lo fwmark 0x1/0x1 goto 9",
        "INFO  Added rule fwmark 0x1/0x1 lookup 100",
        "INFO  Added IPv6 rule fwmark 0x1/0x1 lookup 100",
        "INFO  Added route local 10.244.0.0/16 dev lo table 100",
        "INFO  Added route local fd00:10:244::/56 dev lo table 100",
        created,
    ] {
        assert!(daemon.wait_for(line).ends_with(line), "{}", daemon.log());
    }
}

#[test]
fn an_open_connection_to_the_pod_survives_start_stop_and_restart() {
    let lab = Lab::new();
    lab.pod.serve(8180);
    let mut connections: Vec<HttpClient> =
        [POD, POD6].iter().map(|pod| lab.client.http(pod)).collect();
    let mut check = |when: &str| {
        for connection in &mut connections {
            assert_eq!(connection.request(REQUEST).text(), "pod", "{when}");
        }
    };
    check("before");
    let mut daemon = lab.start(&["--cidr", CIDRS]);
    for _ in 0..5 {
        check("while it intercepts");
        assert!(
            lab.client.get(POD, "/").contains("Request received"),
            "a new connection is captured"
        );
    }
    assert_eq!(daemon.stop(), Some(0));
    check("after the stop");
    let _daemon = lab.start(&["--cidr", CIDRS]);
    check("after another start");
}

#[test]
fn lists_of_blocks_and_of_ports_are_replaced_when_a_stop_begins() {
    let lab = Lab::new();
    let mut daemon = lab.start(&["--cidr", "10.244.0.0/24,10.99.0.0/16", "--dport", "80,8180"]);
    assert_eq!(daemon.stop(), Some(0), "{}", daemon.log());
    daemon.wait_for("Stopping: new connections go to the Pods");
}

#[test]
fn connections_of_probes_do_not_prevent_a_restart() {
    let lab = Lab::new();
    let probed = || {
        let daemon = lab.start(&["--cidr", CIDRS]);
        for address in ["127.0.0.1:1", "[::1]:1"] {
            lab.node.get(address, "/healthz");
        }
        let ended = lab.node.run("ss -Htn state time-wait sport = :1");
        for address in ["127.0.0.1:1 ", "[::1]:1 "] {
            assert!(
                ended.contains(address),
                "the listener closed first: {ended}"
            );
        }
        daemon
    };
    let mut daemon = probed();
    assert_eq!(daemon.stop(), Some(0));
    let mut daemon = probed();
    let _open = ["127.0.0.1:1", "[::1]:1"].map(|address| lab.node.connect(address).unwrap());
    daemon.kill();
    lab.start(&["--cidr", CIDRS]);
}

#[test]
fn a_start_waits_until_the_previous_owner_has_ended() {
    let lab = Lab::new();
    let mut first = lab.start(&["--cidr", CIDRS]);
    let second = lab.spawn(&["--cidr", CIDRS]);
    // The second guard sleeps after the kernel refused its table.
    let process = format!("/proc/{}/stat", second.guard());
    wait_until("the second waits for the table", || {
        std::fs::read_to_string(&process).is_ok_and(|stat| stat.contains("(tproxy-pod) S "))
    });
    first.kill();
    second.wait_for("Created table");
    assert!(lab.client.get(POD, "/").contains("Request received"));
}

#[test]
fn what_an_earlier_start_with_other_options_left_is_removed() {
    let lab = Lab::new();
    lab.start(&["--cidr", CIDRS, "--mark", "0x20/0x30", "--table", "77"])
        .kill();
    lab.start(&["--cidr", "10.99.0.0/16"]).kill();
    let mut daemon = lab.start(&[]);
    let lines = lab.remains();
    assert_eq!(lines_with(&lines, "fwmark").len(), 2, "{lines:?}");
    assert_eq!(lines_with(&lines, "dev lo").len(), 1, "{lines:?}");
    assert_eq!(lab.node.run("ip route show table 77"), "");
    assert_eq!(daemon.stop(), Some(0));
    assert_eq!(lab.remains(), [""; 0]);
}

/// It led to the table main.
#[test]
fn the_rule_that_an_earlier_version_left_is_replaced() {
    let lab = Lab::new();
    let earlier = "rule add iif lo fwmark 0x1/0x1 lookup main pref 7 protocol 84";
    let start = || {
        for family in ["-4", "-6"] {
            lab.node.run(&format!("ip {family} {earlier}"));
        }
        lab.start(&["--cidr", CIDRS])
    };
    let assert_replaced = || {
        let lines = lab.remains();
        let by_lo: Vec<_> = lines_with(&lines, "fwmark 0x1/0x1 iif lo");
        assert_eq!(by_lo.len(), 2, "{lines:?}");
        for line in by_lo {
            assert!(line.contains("goto 9"), "{lines:?}");
        }
    };
    let mut daemon = start();
    assert_replaced();
    // The rules of both versions, in either order.
    daemon.kill();
    let mut daemon = start();
    assert_replaced();
    assert_eq!(daemon.stop(), Some(0));
    for family in ["-4", "-6"] {
        lab.node.run(&format!("ip {family} {earlier}"));
        lab.node
            .run(&format!("ip {family} {earlier} suppress_prefixlength 0"));
    }
    let mut daemon = lab.start(&["--cidr", CIDRS]);
    assert_replaced();
    assert_eq!(daemon.stop(), Some(0));
    assert_eq!(lab.remains(), [""; 0]);
}

/// Before Linux 5.12 a table has no owner: a flush lets the Pods answer, `/readyz` says so, and the stop succeeds.
#[test]
fn flushing_and_deleting_from_outside_do_not_stop_the_interception() {
    let lab = Lab::new();
    lab.pod.serve(8180);
    let mut daemon = lab.start(&[]);
    if owns_tables() {
        lab.node.run("nft flush ruleset");
        let deleted = lab.node.try_run("nft delete table inet tproxy-pod");
        assert!(!deleted.status.success(), "the table has an owner");
        assert!(lab.client.get(POD, "/").contains("Request received"));
    } else {
        lab.node.run("nft flush ruleset");
        assert!(lab.client.get(POD, "/").ends_with("pod"));
        wait_until("it is not ready", || {
            let answer = lab.node.get("127.0.0.1:1", "/readyz");
            answer.ends_with("\r\n\r\nnot ready: another process removed the table of the rules\n")
        });
    }
    assert_eq!(daemon.stop(), Some(0));
    assert_eq!(lab.remains(), [""; 0]);
}

/// Before Linux 5.12 the table stays, and its rules let the Pods answer.
#[test]
fn the_table_is_removed_with_a_killed_program() {
    let lab = Lab::new();
    lab.pod.serve(8180);
    lab.start(&["--cidr", CIDRS]).kill();
    wait_until("the table is gone, or left", || {
        lab.node.tables().is_empty() == owns_tables()
    });
    for pod in [POD, POD6] {
        wait_until("the Pod answers", || {
            lab.client.get(pod, "/").ends_with("pod")
        });
    }
    let mut daemon = lab.start(&["--cidr", CIDRS]);
    for pod in [POD, POD6] {
        assert!(lab.client.get(pod, "/").contains("Request received"));
    }
    let rules = lab.node.run("nft list table inet tproxy-pod");
    // One for SYNs, and one for handshakes by SYN cookie.
    assert_eq!(rules.matches("tproxy ip to").count(), 2, "{rules}");
    assert_eq!(daemon.stop(), Some(0));
    assert_eq!(lab.remains(), [""; 0]);
}

/// The kernel delivers a packet to the socket of a known connection, even in TIME_WAIT, and then refuses to
/// forward it (`ip_forward`, net/ipv4/ip_forward.c).
#[test]
fn a_client_with_few_ports_connects_without_a_lost_syn() {
    let lab = Lab::new();
    let _daemon = lab.start(&[]);
    lab.client
        .sysctl("net.ipv4.ip_local_port_range", "20000 20399");
    let before = lab.client.counter("TCPSynRetrans");
    for _ in 0..2000 {
        assert!(lab.client.get(POD, "/").contains("Request received"));
    }
    let lost = lab.client.counter("TCPSynRetrans") - before;
    assert!(lost <= 2, "{lost} SYNs were sent again");
}

/// Checks that a failed start logs one line, and leaves the node unchanged.
fn assert_fails(lab: &Lab, mut daemon: Daemon, line: &str) {
    let before: Vec<String> = lab.remains();
    assert_eq!(daemon.wait().code(), Some(1));
    let log = daemon.log();
    let errors: Vec<&str> = log
        .lines()
        .filter(|line| line.contains(" ERROR "))
        .collect();
    assert_eq!(errors.len(), 1, "{log}");
    assert!(errors[0].ends_with(line), "{log}");
    wait_until("nothing is left behind", || {
        lab.remains() == before || lab.remains().is_empty()
    });
}

#[test]
fn without_the_capability_it_says_which_one_is_needed() {
    let lab = Lab::new();
    let mut command = lab.node.command("setpriv");
    command.args([
        "--bounding-set=-net_admin",
        "--inh-caps=-net_admin",
        "--",
        PROGRAM,
    ]);
    let line = "create table inet tproxy-pod: Operation not permitted (CAP_NET_ADMIN is needed)";
    assert_fails(&lab, Daemon::spawn(command), line);
    assert_eq!(lab.remains(), [""; 0]);
}

#[test]
fn a_port_that_is_taken_is_named() {
    let lab = Lab::new();
    let _other = lab
        .node
        .enter(|| std::net::TcpListener::bind("127.0.0.1:1").unwrap());
    let line = "bind 127.0.0.1:1: Address in use (something else listens there; see --port)";
    assert_fails(&lab, lab.spawn(&[]), line);
    assert_eq!(lab.remains(), [""; 0]);
}

/// Options of an instance that shares only the table with the first.
const OTHER_OPTIONS: [&str; 8] = [
    "--port",
    "2",
    "--cidr",
    "10.99.0.0/16",
    "--mark",
    "2/2",
    "--table",
    "101",
];

/// Before Linux 5.12 an abstract UNIX socket takes the place of the table's owner.
#[test]
fn a_second_instance_says_that_the_table_has_an_owner() {
    let lab = Lab::new();
    let refusal = match owns_tables() {
        true => "create table inet tproxy-pod: Operation not permitted (the table has an owner",
        false => "create table inet tproxy-pod: Address in use (another tproxy-pod is running)",
    };
    let first = lab.start(&[]);
    let before = lab.remains();
    for arguments in [&[][..], &OTHER_OPTIONS] {
        let mut second = lab.spawn(arguments);
        assert_eq!(second.wait().code(), Some(1));
        let line = second.wait_for("ERROR");
        assert!(line.contains(refusal), "{line}");
        assert_eq!(lab.remains(), before);
    }
    assert!(lab.client.get(POD, "/").contains("Request received"));
    drop(first);
}

#[test]
fn a_loopback_device_that_is_down_is_named() {
    let lab = Lab::new();
    lab.node.run("ip link set lo down");
    let line = "add routes to dev lo: Network is down (the device lo must be up)";
    assert_fails(&lab, lab.spawn(&[]), line);
    assert_eq!(lab.remains(), [""; 0]);
}

#[test]
fn wrong_usage_ends_with_status_2_and_one_line() {
    let lab = Lab::new();
    for (arguments, line) in [
        (
            "--cidr 10.244.0.1/16",
            "tproxy-pod: --cidr 10.244.0.1/16: expected no host bits: 10.244.0.0/16 is the block",
        ),
        (
            "--mark 0x2/0x1",
            "tproxy-pod: --mark 0x2/0x1: expected a value within its mask",
        ),
        (
            "--rules /nonexistent",
            "tproxy-pod: --rules /nonexistent: No such file or directory",
        ),
    ] {
        let mut daemon = lab.spawn(&arguments.split(' ').collect::<Vec<_>>());
        assert_eq!(daemon.wait().code(), Some(2), "{arguments}");
        daemon.wait_for(line);
        assert_eq!(daemon.log().lines().count(), 1, "{arguments}");
    }
    assert_eq!(lab.remains(), [""; 0]);
}
