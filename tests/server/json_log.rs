//! `--log-format json`: each line is an object, whatever clients send, for every reader of JSON.

use std::collections::HashSet;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use serde_json::{Map, Value, json};

use crate::lab::{CIDRS, Daemon, Lab, POD, PROGRAM, wait_until};
use nix::libc::PIPE_BUF;

/// Names of the members of a request's object.
const OF_A_REQUEST: [&str; 13] = [
    "time",
    "level",
    "message",
    "client",
    "destination",
    "method",
    "target",
    "version",
    "host",
    "user_agent",
    "body",
    "status",
    "took_us",
];

/// Starts the program with a JSON log of these levels.
fn start(lab: &Lab, levels: &str) -> Daemon {
    let mut command = lab.node.command(PROGRAM);
    command.args(["--cidr", CIDRS, "--log-format", "json"]);
    command.env("RUST_LOG", levels);
    let daemon = Daemon::spawn(command);
    daemon.wait_for("Created table");
    daemon
}

/// What a program makes of an input.
fn filter(program: &str, arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let feeder = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().unwrap();
    feeder.join().unwrap().unwrap();
    output
}

/// The objects of a log, one a line.
fn objects(log: &str) -> Vec<Map<String, Value>> {
    let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|it| panic!("{it}: {line}"));
    log.lines().map(parse).collect()
}

/// Asserts that other readers of JSON find the same objects.
fn assert_readable(log: &str) {
    let python = "import json, sys\nfor line in sys.stdin: print(json.dumps(json.loads(line)))";
    for output in [
        filter("jq", &["-c", "."], log),
        filter("python3", &["-c", python], log),
    ] {
        assert!(output.status.success());
        assert_eq!(
            objects(str::from_utf8(&output.stdout).unwrap()),
            objects(log)
        );
    }
}

/// Requests that are refused, lost, or answered, with bytes that JSON or a terminal would take for something else.
fn hostile_requests() -> Vec<Vec<u8>> {
    let bytes: Vec<u8> = (1..=255).filter(|byte| !b"\r\n".contains(byte)).collect();
    let request = |target: &[u8], host: &[u8], agent: &[u8]| {
        let parts: [&[u8]; 7] = [
            b"GET ",
            target,
            b" HTTP/1.1\r\nHost: ",
            host,
            b"\r\nUser-Agent: ",
            agent,
            b"\r\nConnection: close\r\n\r\n",
        ];
        parts.concat()
    };
    let mut requests: Vec<Vec<u8>> = bytes
        .iter()
        .flat_map(|byte| {
            let agent = [b'a', *byte, b'"', b'z'];
            let target = [b'/', *byte, b'"', b'\\'];
            [
                request(b"/agent", b"a", &agent),
                request(&target, b"a", b"b"),
                request(b"/host", &agent, b"b"),
                vec![*byte; 70],
            ]
        })
        .collect();
    requests.extend([
        request(b"/\",\"status\":0,\"x\":\"", b"a", b"\"}\n{\"time\":\"\"}"),
        request(
            "/é€\u{1f600}".as_bytes(),
            b"a",
            "\u{202e}\u{feff}".as_bytes(),
        ),
        request(
            &[b"/".as_slice(), &[0xff; 4000]].concat(),
            b"a",
            &[0xff; 3000],
        ),
        request(&vec![b'/'; 8192], b"a", b"b"),
        request(
            &[b"/".as_slice(), &[b'"'; 4000]].concat(),
            b"a",
            &[b'\\'; 3000],
        ),
        b"GET / HTTP/1.1\r\nHost: \x00\xff\"".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        b"\0".to_vec(),
        b"".to_vec(),
    ]);
    requests
}

#[test]
fn every_line_is_an_object_whatever_clients_send() {
    let lab = Lab::new();
    let mut daemon = start(&lab, "debug");
    let requests = hostile_requests();
    for request in &requests {
        let mut connection = lab.client.http(POD);
        connection.send(request);
        connection.shutdown_write();
        std::io::copy(&mut connection.0, &mut std::io::sink()).unwrap();
    }
    lab.node.get("127.0.0.1:1", "/healthz");
    lab.node.get("127.0.0.1:1", "/\"");
    lab.node.run("ip rule del fwmark 0x1/0x1 lookup 100");
    daemon.wait_for("which another process removed");
    assert_eq!(daemon.stop(), Some(0));
    let log = daemon.log();

    assert_readable(&log);
    assert!(log.bytes().all(|it| matches!(it, b' '..=b'~' | b'\n')));
    let longest = log.lines().map(str::len).max().unwrap();
    assert!(longest < PIPE_BUF, "{longest} bytes");
    let objects = objects(&log);
    let mut messages = HashSet::new();
    for object in &objects {
        let text = |name: &str| object[name].as_str().unwrap();
        assert_eq!(text("time").len(), "2026-11-28T18:53:06.459Z".len());
        assert!(["DEBUG", "INFO", "WARN"].contains(&text("level")));
        let names: HashSet<&str> = object.keys().map(String::as_str).collect();
        let first = text("message").split(" to /").next().unwrap();
        let others = match first {
            "Received request" => &OF_A_REQUEST[3..],
            "Refused request" => &["client", "destination", "status", "reason", "bytes"][..],
            "Lost request" => &["client", "destination", "reason", "bytes"],
            "Connection without a request" => &["client", "destination"],
            _ => &[],
        };
        let expected = OF_A_REQUEST[..3].iter().chain(others).copied();
        assert_eq!(names, expected.collect(), "{object:?}");
        let is_number = |name: &&str| object.get(*name).is_none_or(Value::is_u64);
        assert!(["body", "status", "took_us"].iter().all(is_number));
        messages.insert(first);
    }
    for message in [
        "Received request",
        "Refused request",
        "Lost request",
        "Connection without a request",
    ] {
        assert!(messages.contains(message), "{message}");
    }
    let is_of_client = |it: &&Map<String, Value>| {
        let client = it.get("client").and_then(Value::as_str);
        client.is_some_and(|client| client.starts_with("192.0.2.2:"))
    };
    assert_eq!(
        objects.iter().filter(is_of_client).count(),
        requests.len(),
        "{log}"
    );
}

#[test]
fn the_object_of_a_request_says_what_the_text_says() {
    let lab = Lab::new();
    let mut daemon = start(&lab, "info");
    let mut connection = lab.client.http(POD);
    let head = "POST /caf\u{e9}?a=\"b\" HTTP/1.1\r\nHost: a\r\nUser-Agent: \u{e9} \\\r\nContent-Length: 3\r\n\r\n";
    connection.request([head.as_bytes(), b"abc"].concat());
    connection.request(b"GET /\xff HTTP/1.0\r\n\r\n");
    let client = connection.client();
    daemon.stop();
    let mut objects = objects(&daemon.log());
    objects.retain_mut(|it| {
        it.remove("time");
        it.remove("took_us").is_some_and(|it| it.is_u64()) && it["client"] == client.as_str()
    });
    let expected = [
        json!({
            "level": "INFO", "message": "Received request to /caf\u{e9}?a=\"b\"", "client": client,
            "destination": POD, "method": "POST", "target": "/caf\u{e9}?a=\"b\"", "version": "HTTP/1.1",
            "host": "a", "user_agent": "\u{e9} \\", "body": 3, "status": 200
        }),
        json!({
            "level": "INFO", "message": "Received request to /\\xff", "client": client, "destination": POD,
            "method": "GET", "target": "/\\xff", "version": "HTTP/1.0", "host": "", "user_agent": "", "body": 0,
            "status": 200
        }),
    ];
    assert_eq!(json!(objects), json!(expected));
}

#[test]
fn errors_are_objects_once_the_options_are_known() {
    let run = |arguments: &[&str]| {
        let output = Command::new(PROGRAM).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8(output.stderr).unwrap()
    };
    let unknown = run(&["--log-format", "json", "--unknown"]);
    assert_eq!(
        unknown,
        "tproxy-pod: --unknown: unknown option (see tproxy-pod --help)\n"
    );
    let log = run(&["--log-format", "json", "--rules", "/nothing"]);
    let error = &objects(&log)[0];
    assert_eq!(error["level"], "ERROR");
    assert!(error["message"].as_str().unwrap().contains("/nothing"));
    assert_readable(&log);
}

#[test]
fn requests_are_logged_for_their_module_and_its_level_in_either_format() {
    for (format, mark) in [("text", " INFO "), ("json", "\"level\":\"INFO\"")] {
        let lab = Lab::new();
        let mut command = lab.node.command(PROGRAM);
        command.args(["--log-format", format]);
        let levels = "off,tproxy_pod::server::connection=info";
        command.env("RUST_LOG", levels);
        let mut daemon = Daemon::spawn(command);
        wait_until("it is ready", || {
            lab.node
                .try_run("curl -sf 127.0.0.1:1/readyz")
                .status
                .success()
        });
        assert!(lab.client.get(POD, "/").contains("Request received"));
        daemon.stop();
        let log = daemon.log();
        assert_eq!(log.lines().count(), 1, "{log}");
        assert!(log.contains(mark) && log.contains("Received request to /"));
    }
}
