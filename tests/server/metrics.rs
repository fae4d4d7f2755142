//! `/metrics`: on the listener itself, and on a second one with `--metrics`.

use std::io::{BufRead, BufReader, Write, pipe};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use crate::lab::http_client::REQUEST;
use crate::lab::metrics::Metrics;
use crate::lab::stopwatch::Stopwatch;
use crate::lab::{CIDRS, Daemon, Lab, PATIENCE, POD, PROGRAM, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Addresses of the listener itself.
const LISTENERS: [&str; 2] = ["127.0.0.1:1", "[::1]:1"];

/// The address of `--metrics`, on the node's network.
const OPEN: &str = "192.0.2.1:9100";

fn value(metrics: &Metrics, name: &str) -> f64 {
    *metrics
        .get(name)
        .unwrap_or_else(|| panic!("no {name} in {metrics:#?}"))
}

/// Metrics whose value differs from that of a fresh start, but for durations.
fn counted(metrics: &Metrics) -> Vec<(&str, f64)> {
    metrics
        .iter()
        .filter(|(name, value)| **value != 0.0 && !name.contains("duration"))
        .map(|(name, value)| (name.as_str(), *value))
        .collect()
}

#[test]
fn the_numbers_are_right_after_known_traffic_and_promtool_accepts_them() {
    let lab = Lab::new();
    let mut daemon = lab.start(&["--cidr", CIDRS, "--metrics", OPEN]);
    let info = concat!(
        "info{version=\"",
        env!("CARGO_PKG_VERSION"),
        "\",node=\"lab\"}"
    );
    let scrape = || {
        let metrics = lab.node.metrics(LISTENERS[0]);
        assert_eq!(metrics, lab.node.metrics(LISTENERS[1]));
        assert_eq!(metrics, lab.client.metrics(OPEN));
        metrics
    };
    let before = scrape();
    let limit = ("connections_limit", 1024.0);
    assert_eq!(counted(&before), [limit, (info, 1.0)]);
    assert_eq!(value(&before, "requests_total{code=\"200\"}"), 0.0);

    let mut slow = lab.client.http(POD);
    slow.send("GET / HT");
    // The deadline of a head is as long as the patience of a client of the lab.
    let stream = slow.0.get_ref();
    stream.set_read_timeout(Some(2 * *PATIENCE)).unwrap();
    let mut open = lab.open_connections(POD, 3);
    assert_eq!(open[0].request(REQUEST).status, "200 OK");
    let refused = lab.client.send(POD, "GET / HTTP/1.1\r\n\r\n");
    assert!(refused.starts_with("HTTP/1.1 400 "), "{refused}");
    let mut lost = lab.client.http(POD);
    lost.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf");
    drop(lost);
    assert_eq!(slow.response().status, "408 Request Timeout");
    drop(slow);
    wait_until("three connections are open", || {
        value(&lab.node.metrics(LISTENERS[0]), "connections") == 3.0
    });

    let after = scrape();
    let expected = [
        ("connections", 3.0),
        limit,
        ("connections_total", 6.0),
        (info, 1.0),
        ("lost_total", 1.0),
        ("refused_total{code=\"400\"}", 1.0),
        ("refused_total{code=\"408\"}", 1.0),
        ("requests_total{code=\"200\"}", 4.0),
    ];
    assert_eq!(counted(&after), expected);
    for name in ["count", "bucket{le=\"+Inf\"}", "bucket{le=\"10\"}"] {
        let name = format!("request_duration_seconds_{name}");
        assert_eq!(value(&after, &name), 4.0, "{name}");
    }
    let sum = value(&after, "request_duration_seconds_sum");
    assert!(sum > 0.0 && sum < 10.0, "{sum}");
    drop(open);
    wait_until("none is open", || {
        value(&lab.node.metrics(LISTENERS[0]), "connections") == 0.0
    });
    assert_eq!(daemon.stop(), Some(0));
    let log = daemon.log();
    assert!(log.contains("Served 6 requests on 6 connections"), "{log}");
    assert!(!log.contains("/metrics"), "scrapes are not logged: {log}");
}

#[test]
fn what_the_guard_restores_is_counted() {
    let lab = Lab::new();
    let daemon = lab.start(&["--cidr", CIDRS]);
    let before = lab.remains();
    let restored = || {
        let metrics = lab.node.metrics(LISTENERS[0]);
        ["rule", "route"].map(|what| value(&metrics, &format!("restored_total{{what=\"{what}\"}}")))
    };
    assert_eq!(restored(), [0.0, 0.0]);
    lab.node.run("ip rule del fwmark 0x1/0x1 lookup 100");
    daemon.wait_for("Restored rule fwmark");
    wait_until("a rule is counted", || restored() == [1.0, 0.0]);
    lab.node.run("ip route flush table 100");
    lab.node.run("ip -6 rule del fwmark 0x1/0x1 lookup 100");
    lab.node.run("ip -6 route flush table 100");
    wait_until("all is back", || lab.remains() == before);
    wait_until("all is counted", || restored() == [2.0, 2.0]);
    let rules = lab.node.state(LISTENERS[0], "Rules restored");
    let routes = lab.node.state(LISTENERS[0], "Routes restored");
    assert_eq!([rules, routes], ["2", "2"]);
}

#[test]
fn lost_log_lines_are_counted() {
    let lab = Lab::new();
    let (reader, writer) = pipe().unwrap();
    let mut command = lab.node.command(PROGRAM);
    let mut child = command.stderr(writer).spawn().unwrap();
    drop(command);
    let mut log = BufReader::new(reader).lines();
    log.find(|line| line.as_ref().unwrap().contains("Created table"))
        .unwrap()
        .unwrap();
    let lost = || value(&lab.node.metrics(LISTENERS[0]), "log_lines_lost_total");
    assert_eq!(lost(), 0.0);
    drop(log);
    for _ in 0..5 {
        assert!(lab.client.get(POD, "/").contains("Request received"));
    }
    wait_until("five lines are counted", || lost() == 5.0);
    assert_eq!(lab.node.state(LISTENERS[0], "Log lines lost"), "5");
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn the_listener_for_metrics_has_health_and_nothing_else_and_is_off_unless_given() {
    let lab = Lab::new();
    let mut daemon = lab.start(&["--cidr", CIDRS, "--metrics", OPEN]);
    daemon.wait_for(&format!("Serving metrics at {OPEN}"));
    for target in ["/healthz", "/healthz?a", "http://a:1/healthz?a=/b"] {
        assert_eq!(lab.client.page(OPEN, target), "ok\n");
    }
    let with_query = lab.client.page(OPEN, "http://192.0.2.1:9100/metrics?a=b");
    assert!(with_query.contains("tproxy_pod_info{"), "{with_query}");
    for target in ["/", "/readyz", "/metric", "/metrics/", "*"] {
        let method = if target == "*" { "OPTIONS" } else { "GET" };
        let request = format!("{method} {target} HTTP/1.1\r\nHost: a\r\n\r\n");
        let response = lab.client.http(OPEN).request(request);
        assert_eq!(response.status, "404 Not Found", "{target}");
        assert_eq!(response.text(), "only /metrics and /healthz are here\n");
    }
    let head = "HEAD /metrics HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut connection = lab.client.http(OPEN);
    connection.send(head);
    assert_eq!(connection.response_to_head().status, "200 OK");
    connection.assert_closed();
    let mut open = lab.open_connections(POD, 1);
    open[0].send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nha");
    daemon.signal(Signal::SIGTERM);
    wait_until("it says that it drains", || {
        let answer = lab.client.get(OPEN, "/healthz");
        answer.starts_with("HTTP/1.1 503 ") && answer.ends_with("draining\n")
    });
    assert!(open[0].request("lf").text().ends_with("half"));
    assert_eq!(daemon.wait().code(), Some(0));
    let _off = lab.start(&["--cidr", CIDRS]);
    let refused = lab.client.connect(OPEN).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(nix::libc::ECONNREFUSED));
}

#[test]
fn the_metrics_are_text_of_version_0_0_4_whatever_else_is_asked() {
    let lab = Lab::new();
    let _daemon = lab.start(&["--metrics", OPEN, "--status", "500"]);
    let request = "GET /metrics HTTP/1.1\r\nHost: a\r\nAccept: application/json\r\n\
                   X-Echo-Status: 503\r\nX-Echo-Delay: 10s\r\n\r\n";
    let malformed = "GET /metrics HTTP/1.1\r\nHost: a\r\n\
                     X-Echo-Status: 1\r\nX-Echo-Delay: 1\r\n\r\n";
    for response in [
        lab.node.http(LISTENERS[0]).request(request),
        lab.client.http(OPEN).request(request),
        lab.node.http(LISTENERS[0]).request(malformed),
        lab.client.http(OPEN).request(malformed),
    ] {
        assert_eq!(response.status, "200 OK");
        let kind = response.field("Content-Type");
        assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8");
        assert!(response.text().starts_with("# HELP tproxy_pod_info "));
    }
}

#[test]
fn an_address_that_cannot_be_bound_is_named_with_its_option_and_nothing_is_captured() {
    let lab = Lab::new();
    let _theirs = lab.node.enter(|| TcpListener::bind(OPEN).unwrap());
    for (address, reason) in [
        (OPEN, "Address in use"),
        ("192.0.2.77:9100", "Address not available"),
    ] {
        let mut daemon = lab.spawn(&["--metrics", address]);
        assert_eq!(daemon.wait().code(), Some(1));
        let line = daemon.wait_for(&format!("bind {address}: {reason}"));
        assert!(line.contains("see --metrics"), "{line}");
        let check = format!("{PROGRAM} --check --metrics {address}");
        let checked = String::from_utf8(lab.node.try_run(&check).stdout).unwrap();
        let line = format!("missing  bind {address}: {reason}");
        assert!(checked.contains(&line), "{checked}");
    }
    assert_eq!(lab.remains(), [""; 0]);
    let free = "192.0.2.1:9101";
    let checked = lab.node.run(&format!("{PROGRAM} --check --metrics {free}"));
    let line = format!("ok       listener for metrics at {free}");
    assert!(checked.contains(&line), "{checked}");
}

/// As many as wait in the listener's queue. Each has begun a request, so that the kernel hands it over.
#[test]
fn a_crowd_of_slow_clients_of_the_metrics_delays_neither_probes_nor_clients() {
    let lab = Lab::new();
    let mut daemon = lab.start(&["--max-connections", "2", "--metrics", OPEN]);
    let _held = lab.open_connections(POD, 1);
    lab.client.enter(|| {
        let connect = |_| {
            let mut client = TcpStream::connect(OPEN).unwrap();
            client.write_all(b"G").unwrap();
            client
        };
        let _crowd: Vec<TcpStream> = (0..120).map(connect).collect();
        let watch = Stopwatch::start();
        for _ in 0..20 {
            assert_eq!(lab.node.page(LISTENERS[0], "/healthz"), "ok\n");
            lab.node.metrics(LISTENERS[0]);
            assert!(lab.client.get(POD, "/").contains("Request received"));
        }
        watch.check_longest("answers", watch.used(), Duration::ZERO);
    });
    assert_eq!(lab.client.page(OPEN, "/healthz"), "ok\n");
    assert_eq!(daemon.stop(), Some(0));
    let log = daemon.log();
    assert!(!log.contains("The limit of"), "{log}");
    assert!(
        log.contains("Served 21 requests on 21 connections"),
        "{log}"
    );
}

/// Lines above that share a queue with those of captured requests, whose place any client of the network could take.
#[test]
fn whatever_clients_of_the_metrics_send_is_logged_at_debug() {
    let lab = Lab::new();
    let mut command = lab.node.command(PROGRAM);
    command.args(["--metrics", OPEN]).env("RUST_LOG", "debug");
    let daemon = Daemon::spawn(command);
    daemon.wait_for("Created table");
    lab.client.http(OPEN).send("GET / HT");
    for (request, line) in [
        ("GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n", "to /metrics "),
        ("GET /none HTTP/1.1\r\nHost: a\r\n\r\n", "to /none "),
        ("GET / HTTP/1.1\r\n\r\n", "status=400 "),
        ("GET / HTTP/1.1\r\nHos", "status=408 "),
    ] {
        lab.client.http(OPEN).request(request);
        let line = daemon.wait_for(line);
        assert!(line.contains(" DEBUG "), "{line}");
    }
    let line = daemon.wait_for("Lost request ");
    assert!(line.contains(" DEBUG "), "{line}");
}
