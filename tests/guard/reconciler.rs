//! Another process removes the program's rules or routes: the guard restores them quickly and once, and backs
//! off when they are removed again and again.

use std::hash::{BuildHasher, RandomState};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::lab::rtnetlink::{Batch, Monitor, Rules};
use crate::lab::stopwatch::Stopwatch;
use crate::lab::strace::Strace;
use crate::lab::{CIDRS, Daemon, Lab, PATIENCE, POD, POD6, wait_until, wait_within};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const V4_RULE: &str = "rule fwmark 0x1/0x1 lookup 100";
const V6_RULE: &str = "IPv6 rule fwmark 0x1/0x1 lookup 100";
const V4_RETURN: &str = "rule iif lo fwmark 0x1/0x1 goto 9";
const V6_RETURN: &str = "IPv6 rule iif lo fwmark 0x1/0x1 goto 9";
const V4_TARGET: &str = "rule priority 9 nop";
const V6_TARGET: &str = "IPv6 rule priority 9 nop";
const V4_ROUTE: &str = "route local 10.244.0.0/16 dev lo table 100";
const V6_ROUTE: &str = "route local fd00:10:244::/56 dev lo table 100";

/// Log lines at the start and the end of contention.
const CONTENDED: &str = "Rules and routes change again and again";
const UNCONTENDED: &str = "Rules and routes are left alone again";

/// `ip rule flush` removes the node's own rules, too.
const STANDARD_RULES: [&str; 2] = [
    "rule add lookup main priority 32766",
    "rule add lookup default priority 32767",
];

fn start(lab: &Lab) -> (Daemon, Vec<String>) {
    let daemon = lab.start(&["--cidr", CIDRS]);
    (daemon, lab.remains())
}

fn assert_both_families_are_answered(lab: &Lab) {
    for pod in [POD, POD6] {
        let answer = lab.client.get(pod, "/");
        assert!(answer.contains("Request received"), "{pod}: {answer}");
    }
}

fn wait_until_restored(lab: &Lab, before: &[String]) {
    wait_until("all is back", || lab.remains() == before);
}

/// Number of log lines with this text.
fn count(daemon: &Daemon, text: &str) -> usize {
    daemon
        .log()
        .lines()
        .filter(|line| line.contains(text))
        .count()
}

fn restored(entry: &str) -> String {
    format!("WARN  Restored {entry}, which another process removed")
}

/// Processor time of a process: utime and stime of proc_pid_stat(5), in steps of 10 ms.
fn processor_time(process: Pid) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let fields: Vec<&str> = stat[stat.rfind(')').unwrap()..].split(' ').collect();
    let ticks = |field: usize| fields[field - 2].parse::<u64>().unwrap();
    Duration::from_millis(10 * (ticks(14) + ticks(15)))
}

#[test]
fn each_loss_is_restored_and_logged_once() {
    let lab = Lab::new();
    let (mut daemon, before) = start(&lab);
    for (loss, entries) in [
        ("ip rule del fwmark 0x1/0x1 lookup 100", &[V4_RULE][..]),
        ("ip -6 rule del fwmark 0x1/0x1 lookup 100", &[V6_RULE]),
        ("ip rule del iif lo fwmark 0x1/0x1", &[V4_RETURN]),
        ("ip -6 rule del iif lo fwmark 0x1/0x1", &[V6_RETURN]),
        ("ip rule del priority 9", &[V4_TARGET]),
        ("ip -6 rule del priority 9", &[V6_TARGET]),
        (
            "ip route del local 10.244.0.0/16 dev lo table 100",
            &[V4_ROUTE],
        ),
        (
            "ip -6 route del local fd00:10:244::/56 dev lo table 100",
            &[V6_ROUTE],
        ),
        ("ip rule flush", &[V4_TARGET, V4_RETURN, V4_RULE]),
        ("ip -6 rule flush", &[V6_TARGET, V6_RETURN, V6_RULE]),
    ] {
        let logged = |entry: &&str| count(&daemon, &restored(entry));
        let lines: Vec<usize> = entries.iter().map(logged).collect();
        lab.node.run(loss);
        wait_until_restored(&lab, &before);
        for (entry, lines) in entries.iter().zip(lines) {
            wait_until(loss, || logged(entry) == lines + 1);
        }
    }
    for family in ["-4", "-6"] {
        for rule in STANDARD_RULES {
            lab.node.try_run(&format!("ip {family} {rule}"));
        }
    }
    assert_both_families_are_answered(&lab);
    assert_eq!(daemon.stop(), Some(0));
    assert_eq!(count(&daemon, "Restored"), 14, "{}", daemon.log());
}

#[test]
fn a_loss_lasts_less_than_a_tenth_of_a_second() {
    let lab = Lab::new();
    let (_daemon, before) = start(&lab);
    let (rule, route) = (
        (libc::RTM_DELRULE, libc::RTM_NEWRULE),
        (libc::RTM_DELROUTE, libc::RTM_NEWROUTE),
    );
    let removals = [
        ("ip rule del fwmark 0x1/0x1 lookup 100", rule),
        ("ip -6 rule del fwmark 0x1/0x1 lookup 100", rule),
        ("ip route flush table 100", route),
        ("ip -6 route flush table 100", route),
    ];
    let mut gaps = removals.map(|_| Vec::new());
    for _ in 0..10 {
        for ((loss, (gone, back)), gaps) in removals.iter().zip(&mut gaps) {
            let mut monitor = Monitor::new(&lab.node);
            let watch = Stopwatch::start();
            lab.node.run(loss);
            let lost = monitor.next(*gone);
            gaps.push((monitor.next(*back) - lost).saturating_sub(watch.lost()));
        }
    }
    wait_until_restored(&lab, &before);
    for ((loss, _), gaps) in removals.iter().zip(&mut gaps) {
        gaps.sort();
        println!("{loss}: {gaps:?}");
        // One of ten may be late: the stopwatch misses short delays of a busy machine.
        assert!(gaps[8] < Duration::from_millis(100), "{loss}: {gaps:?}");
    }
}

#[test]
fn routes_that_vanish_with_the_loopback_device_come_back_with_it() {
    let lab = Lab::new();
    let (mut daemon, before) = start(&lab);
    lab.node.run("ip link set lo down");
    let error =
        "Cannot restore what another process removed: add routes to dev lo: Network is down";
    daemon.wait_for(error);
    lab.node.run("ip rule del fwmark 0x1/0x1 lookup 100");
    daemon.wait_for(&restored(V4_RULE));
    lab.node.run("ip link set lo up");
    wait_until_restored(&lab, &before);
    assert_both_families_are_answered(&lab);
    assert_eq!(daemon.stop(), Some(0));
    assert_eq!(count(&daemon, error), 1, "{}", daemon.log());
    assert_eq!(count(&daemon, &restored(V6_ROUTE)), 1, "{}", daemon.log());
}

#[test]
fn routes_that_vanish_with_the_last_address_of_the_loopback_device_come_back() {
    let lab = Lab::new();
    let (daemon, before) = start(&lab);
    lab.node.run("ip -4 address flush dev lo");
    daemon.wait_for(&restored(V4_ROUTE));
    wait_until_restored(&lab, &before);
}

/// Disables IPv6 and enables it again; meanwhile IPv4 rules are still restored.
fn toggle_ipv6(device: &str, restore: impl Fn(&Lab)) {
    let lab = Lab::new();
    let (mut daemon, before) = start(&lab);
    let switch = format!("net.ipv6.conf.{device}.disable_ipv6");
    lab.node.sysctl(&switch, "1");
    let error = "Cannot restore what another process removed";
    daemon.wait_for(error);
    for _ in 0..2 {
        let lines = count(&daemon, &restored(V4_RULE));
        lab.node.run("ip rule del fwmark 0x1/0x1 lookup 100");
        wait_until("the rule is back", || {
            count(&daemon, &restored(V4_RULE)) == lines + 1
        });
    }
    assert!(lab.client.get(POD, "/").contains("Request received"));
    lab.node.sysctl(&switch, "0");
    daemon.wait_for(&restored(V6_ROUTE));
    wait_until_restored(&lab, &before);
    restore(&lab);
    assert_both_families_are_answered(&lab);
    let health = lab.node.get("[::1]:1", "/healthz");
    assert!(health.ends_with("ok\n"), "{health}");
    assert_eq!(daemon.stop(), Some(0));
    assert_eq!(count(&daemon, error), 1, "{}", daemon.log());
    assert_eq!(count(&daemon, &restored(V6_ROUTE)), 1, "{}", daemon.log());
}

#[test]
fn the_route_comes_back_when_ipv6_is_enabled_again_on_the_loopback_device() {
    toggle_ipv6("lo", |_| {});
}

#[test]
fn the_route_comes_back_when_ipv6_is_enabled_again_on_all_devices() {
    toggle_ipv6("all", |lab| {
        for (device, address) in [("client", "2001:db8:1::1"), ("pod", "fd00:10:244::1")] {
            lab.node
                .run(&format!("ip address add {address}/64 dev {device} nodad"));
        }
    });
}

#[test]
fn a_replacement_of_the_route_is_logged_once_and_the_route_restored_after_it() {
    for (ip, block, entry) in [
        ("ip", "10.244.0.0/16", V4_ROUTE),
        ("ip -6", "fd00:10:244::/56", V6_ROUTE),
    ] {
        let lab = Lab::new();
        let (mut daemon, before) = start(&lab);
        let theirs = format!("{block} dev pod table 100");
        lab.node.run(&format!("{ip} route replace {theirs}"));
        daemon.wait_for(&format!(
            "(the table has another route to {block}; see --table)"
        ));
        // A reconciliation that could log it again.
        lab.node.run("ip rule del fwmark 0x1/0x1 lookup 100");
        daemon.wait_for(&restored(V4_RULE));
        lab.node.run(&format!("{ip} route del {theirs}"));
        daemon.wait_for(&restored(entry));
        wait_until_restored(&lab, &before);
        assert_eq!(daemon.stop(), Some(0));
        assert_eq!(count(&daemon, "Cannot restore"), 1, "{}", daemon.log());
        assert_eq!(lab.remains(), [""; 0]);
    }
}

/// The kernel removes an IPv4 route with its device or nexthop, and sends no RTM_DELROUTE.
#[test]
fn the_route_is_restored_when_its_replacement_vanishes_without_notification() {
    for (path, loss) in [
        ("dev pod", "ip link set pod down"),
        ("dev pod", "ip -4 address flush dev pod"),
        ("dev pod", "ip link del pod"),
        ("nhid 7", "ip nexthop del id 7"),
    ] {
        let lab = Lab::new();
        lab.node.run("ip nexthop add id 7 dev pod");
        let (daemon, before) = start(&lab);
        lab.node
            .run(&format!("ip route replace 10.244.0.0/16 {path} table 100"));
        daemon.wait_for("(the table has another route to 10.244.0.0/16; see --table)");
        lab.node.run(loss);
        daemon.wait_for(&restored(V4_ROUTE));
        wait_until_restored(&lab, &before);
    }
}

/// The kernel dumps thousands of rules in several parts, and omits some if others are removed meanwhile.
#[test]
fn the_rule_is_restored_and_removed_among_thousands_of_changing_rules() {
    let lab = Lab::new();
    let mut theirs = Batch::new(&lab.node, "-4");
    for number in 1..3000 {
        theirs.execute(&format!("rule add fwmark {number}0/0xfffff0 priority 6"));
    }
    theirs.finish();
    let (mut daemon, _) = start(&lab);
    let slow = Strace::slow(daemon.guard(), "recvfrom", 1000);
    let mut socket = Rules::new(&lab.node);
    let add_and_delete = || {
        socket.change(libc::RTM_NEWRULE);
        socket.change(libc::RTM_DELRULE);
    };
    repeat(add_and_delete, || {
        for _ in 0..5 {
            let ours = lab.node.run("ip -6 rule show priority 8");
            lab.node.run("ip -6 rule del fwmark 0x1/0x1 lookup 100");
            // The guard reads hundreds of notifications first, and strace delays each. Other tests check how
            // soon a rule is restored.
            wait_within(6 * *PATIENCE, "it is back", || {
                lab.node.run("ip -6 rule show priority 8") == ours
            });
        }
        assert_eq!(daemon.stop(), Some(0));
    });
    drop(slow);
    let log = daemon.log();
    assert!(!log.contains("Cannot"), "{log}");
    for family in ["-4", "-6"] {
        let left = lab.node.run(&format!("ip {family} rule show table 100"));
        assert_eq!(left, "");
    }
}

/// The guard takes longer to read a notification than the debounce interval.
#[test]
fn a_loss_is_restored_however_slow_the_guard_is() {
    let lab = Lab::new();
    let (daemon, before) = start(&lab);
    let _slow = Strace::slow(daemon.guard(), "recvfrom", 12_000);
    lab.node.run("ip rule del fwmark 0x1/0x1 lookup 100");
    wait_until_restored(&lab, &before);
}

#[test]
fn a_rule_not_restored_for_lack_of_memory_is_restored_soon() {
    let lab = Lab::new();
    let (mut daemon, before) = start(&lab);
    let no_memory = Strace::failing(daemon.guard(), "sendto", "ENOBUFS");
    lab.node.run("ip rule del fwmark 0x1/0x1 lookup 100");
    let error = "Cannot restore what another process removed: ";
    daemon.wait_for(error);
    drop(no_memory);
    daemon.wait_for(&restored(V4_RULE));
    wait_until_restored(&lab, &before);
    assert_eq!(daemon.stop(), Some(0));
    assert_eq!(count(&daemon, error), 1, "{}", daemon.log());
}

#[test]
fn an_equal_rule_of_another_process_is_used_until_it_is_removed() {
    let lab = Lab::new();
    let (mut daemon, before) = start(&lab);
    let theirs = "fwmark 0x1/0x1 lookup 100 priority 7";
    lab.node.run(&format!("ip rule add {theirs}"));
    lab.node.run("ip rule del priority 8");
    // The guard has seen the first removal once it has restored this rule.
    lab.node.run("ip -6 rule del priority 8");
    daemon.wait_for(&restored(V6_RULE));
    let rules = lab.node.run("ip rule show");
    assert_eq!(rules.matches("fwmark").count(), 2, "{rules}");
    lab.node.run(&format!("ip rule del {theirs}"));
    daemon.wait_for(&restored(V4_RULE));
    wait_until_restored(&lab, &before);
    assert_eq!(daemon.stop(), Some(0));
}

/// Removes the IPv4 rule and route in a loop while `meanwhile` runs.
fn contend<T>(lab: &Lab, meanwhile: impl FnOnce() -> T) -> T {
    let mut batch = Batch::new(&lab.node, "-4");
    repeat(
        || batch.execute("rule del fwmark 0x1/0x1 lookup 100\nroute flush table 100"),
        meanwhile,
    )
}

/// Repeats an action while `meanwhile` runs.
fn repeat<T>(mut action: impl FnMut() + Send, meanwhile: impl FnOnce() -> T) -> T {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                action();
            }
        });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(meanwhile));
        stop.store(true, Ordering::Relaxed);
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[test]
fn under_contention_it_backs_off_logs_it_once_and_restores_in_the_end() {
    let lab = Lab::new();
    let (mut daemon, before) = start(&lab);
    let readiness = || lab.node.get("127.0.0.1:1", "/readyz");
    let (times, used, length) = contend(&lab, || {
        daemon.wait_for(CONTENDED);
        wait_until("it is not ready", || {
            readiness()
                .ends_with("not ready: another process removes rules and routes again and again\n")
        });
        let (begin, used) = (Instant::now(), processor_time(daemon.guard()));
        let mut monitor = Monitor::new(&lab.node);
        let mut times = 0;
        while begin.elapsed() < Duration::from_secs(3) {
            monitor.next(libc::RTM_NEWRULE);
            times += 1;
        }
        let length = begin.elapsed();
        (times, processor_time(daemon.guard()) - used, length)
    });
    println!("put back {times} times, {used:?} of {length:?}");
    // The log states 25 times a second.
    assert!(times <= 1 + length.as_millis() / 40, "{times} times");
    assert!(used < length / 10, "{used:?} of {length:?}");
    wait_until_restored(&lab, &before);
    assert_both_families_are_answered(&lab);
    // The guard logs it ten seconds after the last removal.
    let deadline = Instant::now() + 2 * *crate::lab::PATIENCE;
    while count(&daemon, UNCONTENDED) == 0 && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(20));
    }
    wait_until("it is ready", || readiness().ends_with("\r\n\r\nready\n"));
    lab.node.run("ip rule del fwmark 0x1/0x1 lookup 100");
    wait_until_restored(&lab, &before);
    assert_eq!(daemon.stop(), Some(0));
    let log = daemon.log();
    assert_eq!(count(&daemon, CONTENDED), 1, "{log}");
    let (contended, after) = log.split_once(UNCONTENDED).unwrap();
    let (_, contended) = contended.split_once(CONTENDED).unwrap();
    assert!(!contended.contains("Restored"), "{log}");
    assert!(after.contains(&restored(V4_RULE)), "{log}");
}

#[test]
fn a_stop_is_handled_while_contended() {
    let lab = Lab::new();
    let (mut daemon, _) = start(&lab);
    let (status, took) = contend(&lab, || {
        daemon.wait_for(CONTENDED);
        let begin = Instant::now();
        (daemon.stop(), begin.elapsed())
    });
    assert_eq!(status, Some(0));
    assert!(took < *crate::lab::PATIENCE, "{took:?}");
    assert_eq!(lab.remains(), [""; 0]);
}

#[test]
fn the_servers_death_is_handled_while_contended() {
    let lab = Lab::new();
    let (mut daemon, _) = start(&lab);
    let status = contend(&lab, || {
        daemon.wait_for(CONTENDED);
        kill(daemon.server(), Signal::SIGKILL).unwrap();
        daemon.wait().code()
    });
    assert_eq!(status, Some(1));
    daemon.wait_for("the server was killed by SIGKILL");
    assert_eq!(lab.remains(), [""; 0]);
}

#[test]
fn what_is_lost_during_a_stop_is_restored() {
    let lab = Lab::new();
    let (mut daemon, _) = start(&lab);
    let mut client = lab.client.http(POD);
    client.send("POST / HTTP/1.1\r\nHost: pod\r\nContent-Length: 4\r\n\r\nha");
    wait_until("it is accepted", || {
        let accepted = lab.node.run("ss -Htn state established sport 8180");
        !accepted.is_empty()
    });
    daemon.signal(Signal::SIGTERM);
    daemon.wait_for("Stopping");
    lab.node.run("ip rule del fwmark 0x1/0x1 lookup 100");
    daemon.wait_for(&restored(V4_RULE));
    client.send("lf");
    assert!(client.response().text().ends_with("half"));
    assert_eq!(daemon.wait().code(), Some(0));
    assert_eq!(lab.remains(), [""; 0]);
}

/// Adds and removes routes of another table.
fn flood(lab: &Lab, routes: u32) {
    let mut batch = Batch::new(&lab.node, "-4");
    for action in ["add", "del"] {
        for number in 0..routes {
            let (high, low) = (number / 256, number % 256);
            batch.execute(&format!(
                "route {action} 172.16.{high}.{low} dev pod table 200"
            ));
        }
    }
    batch.finish();
}

#[test]
fn a_loss_among_more_changes_than_the_kernel_keeps_is_restored() {
    let lab = Lab::new();
    let (daemon, before) = start(&lab);
    daemon.signal(Signal::SIGSTOP);
    flood(&lab, 10_000);
    lab.node.run("ip rule del fwmark 0x1/0x1 lookup 100");
    daemon.signal(Signal::SIGCONT);
    wait_until_restored(&lab, &before);
    daemon.wait_for(&restored(V4_RULE));
}

/// Bytes that the only subscribed rtnetlink socket of a process's namespace has not read yet, and the notifications
/// that the kernel has dropped for lack of space, from /proc/net/netlink.
fn unread_and_dropped(process: Pid) -> (u64, u64) {
    let lines = std::fs::read_to_string(format!("/proc/{process}/net/netlink")).unwrap();
    let sockets = lines.lines().map(|line| line.split_whitespace().collect());
    // sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode
    let mut subscribed = sockets.filter(|it: &Vec<&str>| it[1] == "0" && it[3] != "00000000");
    let socket = subscribed.next().unwrap();
    assert_eq!(subscribed.next(), None);
    (socket[4].parse().unwrap(), socket[8].parse().unwrap())
}

/// The restores after an overflow are no sign of another process that removes entries.
#[test]
fn more_overflows_than_losses_are_logged_are_no_contention() {
    let lab = Lab::new();
    let (daemon, before) = start(&lab);
    for _ in 0..30 {
        let (_, dropped) = unread_and_dropped(daemon.guard());
        daemon.signal(Signal::SIGSTOP);
        flood(&lab, 400);
        daemon.signal(Signal::SIGCONT);
        wait_until("the guard has read everything", || {
            unread_and_dropped(daemon.guard()).0 == 0
        });
        assert!(unread_and_dropped(daemon.guard()).1 > dropped);
    }
    lab.node.run("ip rule del fwmark 0x1/0x1 lookup 100");
    daemon.wait_for(&restored(V4_RULE));
    wait_until_restored(&lab, &before);
    assert_eq!(count(&daemon, CONTENDED), 0, "{}", daemon.log());
}

#[test]
fn the_loss_of_rules_that_are_like_ours_is_none() {
    let lab = Lab::new();
    let (daemon, before) = start(&lab);
    for _ in 0..15 {
        for rule in [
            "nop priority 20000",
            "from 192.0.2.9 fwmark 0x1/0x1 goto 32766 priority 10",
        ] {
            lab.node.run(&format!("ip rule add {rule}"));
            lab.node.run(&format!("ip rule del {rule}"));
        }
        wait_until("the guard has read everything", || {
            unread_and_dropped(daemon.guard()).0 == 0
        });
    }
    lab.node.run("ip rule del fwmark 0x1/0x1 lookup 100");
    daemon.wait_for(&restored(V4_RULE));
    wait_until_restored(&lab, &before);
    assert_eq!(count(&daemon, CONTENDED), 0, "{}", daemon.log());
}

#[test]
fn a_flood_of_foreign_changes_costs_little_and_hides_no_loss() {
    let lab = Lab::new();
    let (daemon, before) = start(&lab);
    let used = processor_time(daemon.guard());
    let begin = Instant::now();
    flood(&lab, 10_000);
    let (length, used) = (begin.elapsed(), processor_time(daemon.guard()) - used);
    println!("{used:?} of {length:?} for 20,000 changes");
    lab.node.run("ip rule del fwmark 0x1/0x1 lookup 100");
    daemon.wait_for(&restored(V4_RULE));
    wait_until_restored(&lab, &before);
    assert!(used < Duration::from_millis(500), "{used:?} of {length:?}");
    // A guard that spins uses processor time in every second.
    wait_until("the guard is idle for a second", || {
        let used_before = processor_time(daemon.guard());
        thread::sleep(Duration::from_secs(1));
        processor_time(daemon.guard()) - used_before <= Duration::from_millis(20)
    });
}

#[test]
fn a_thousand_random_losses_under_load_leave_one_of_everything() {
    let lab = Lab::new();
    let (mut daemon, before) = start(&lab);
    let stop = AtomicBool::new(false);
    let answered = [AtomicUsize::new(0), AtomicUsize::new(0)];
    thread::scope(|scope| {
        for (pod, answered) in [POD, POD6].iter().zip(&answered) {
            let (lab, stop) = (&lab, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    answered.fetch_add(usize::from(is_answered_soon(lab, pod)), Ordering::Relaxed);
                }
            });
        }
        remove_a_thousand(&lab);
        stop.store(true, Ordering::Relaxed);
    });
    wait_until_restored(&lab, &before);
    assert_both_families_are_answered(&lab);
    for (pod, answered) in [POD, POD6].iter().zip(&answered) {
        let answered = answered.load(Ordering::Relaxed);
        println!("{answered} requests to {pod} were answered meanwhile");
        assert!(answered > 0, "{pod}");
    }
    assert_eq!(daemon.stop(), Some(0));
    assert_eq!(count(&daemon, CONTENDED), 1, "{}", daemon.log());
    assert_eq!(lab.remains(), [""; 0]);
}

/// Makes a thousand random removals, one every 8 ms. The environment variable `SEED` repeats an earlier run.
fn remove_a_thousand(lab: &Lab) {
    let flush = format!("rule flush\n{}", STANDARD_RULES.join("\n"));
    let removals = [
        "rule del fwmark 0x1/0x1",
        "rule del priority 7",
        "rule del priority 8",
        "route flush table 100",
        &flush,
    ];
    let mut batches = ["-4", "-6"].map(|family| Batch::new(&lab.node, family));
    let mut random = match std::env::var("SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => RandomState::new().hash_one(()),
    };
    println!("SEED={random} repeats these losses");
    let begin = Instant::now();
    for round in 0..1000 {
        // Knuth's MMIX generator; its upper bits are the random ones.
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let choice = (random >> 33) as usize % 8;
        batches[choice / 4].execute(removals[choice % 4]);
        let next = begin + round * Duration::from_millis(8);
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    batches.into_iter().for_each(Batch::finish);
}

/// Whether a request is answered within 200 ms.
fn is_answered_soon(lab: &Lab, pod: &str) -> bool {
    let patience = Duration::from_millis(200);
    let address = pod.parse().unwrap();
    let connected = lab
        .client
        .enter(|| TcpStream::connect_timeout(&address, patience));
    let Ok(mut stream) = connected else {
        return false;
    };
    stream.set_read_timeout(Some(patience)).unwrap();
    let mut answer = Vec::new();
    let request = b"GET / HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n";
    stream.write_all(request).is_ok() && stream.read_to_end(&mut answer).is_ok()
}
