//! The echo as JSON, where the client prefers it: other programs read it, whatever was sent.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::lab::http_client::Response;
use crate::lab::{Lab, POD};
use crate::reading::STREAMS;
use crate::refusals::MALFORMED;
use crate::stream::{Outcome, read};

/// The echo of a response.
fn echo(answer: &Response) -> Value {
    assert_eq!(answer.field("Content-Type"), "application/json");
    serde_json::from_slice(&answer.content).unwrap()
}

#[test]
fn the_echo_is_json_where_the_client_prefers_it() {
    let lab = Lab::new();
    let _daemon = lab.start(&[]);
    let mut connection = lab.client.http(POD);
    let answer = connection.request(
        "POST /hello?a=\"b\" HTTP/1.1\r\nHost: pod\r\nAccept: text/*;q=0.5\r\nX-Twice: 1\r\n\
         accept:  application/json\t\r\nx-twice: 2, 3\r\nContent-Length: 8\r\n\r\n\"a\\b\"\n\0\x7f",
    );
    let mut echo = echo(&answer);
    let time = echo["time"].take();
    assert!(time.as_str().unwrap().ends_with('Z'), "{time}");
    let expected = json!({
        "client": connection.client(),
        "destination": POD,
        "node": "lab",
        "time": null,
        "method": "POST",
        "target": "/hello?a=\"b\"",
        "version": "HTTP/1.1",
        "host": "pod",
        "headers": {
            "host": ["pod"],
            "accept": ["text/*;q=0.5", "application/json"],
            "x-twice": ["1", "2, 3"],
            "content-length": ["8"],
        },
        "body": "\"a\\b\"\n\0\u{7f}",
        "body_bytes": 8,
        "truncated": false,
    });
    assert_eq!(echo, expected);
    let text = connection.request("GET / HTTP/1.1\r\nHost: pod\r\nAccept: */*\r\n\r\n");
    assert!(text.text().starts_with("Request received from pod "));
    assert_eq!(text.other_fields(), [""; 0]);
}

#[test]
fn what_is_not_utf_8_is_in_base64_and_in_heads_escaped() {
    let lab = Lab::new();
    let _daemon = lab.start(&[]);
    let request =
        b"POST /caf\xe9 HTTP/1.1\r\nHost: pod\r\nAccept: application/json\r\nX: \"\xe9\xff\"\r\n\
                    Y: caf\xc3\xa9\r\nContent-Length: 4\r\n\r\n\xff\x00\xfe\n";
    let echo = echo(&lab.client.http(POD).request(request));
    assert_eq!(echo["target"], r"/caf\xe9");
    assert_eq!(echo["headers"]["x"], json!([r#"\"\xe9\xff\""#]));
    assert_eq!(echo["headers"]["y"], json!(["café"]));
    assert_eq!(echo["body_base64"], "/wD+Cg==");
    assert_eq!(echo.get("body"), None);
}

#[test]
fn a_refusal_is_json_too() {
    let lab = Lab::new();
    let _daemon = lab.start(&[]);
    for (fields, status, error) in [
        (
            "accept:application/json\r\nHost : a",
            "400 Bad Request",
            "a field name is malformed",
        ),
        (
            "Host: a\r\nX-Echo-Status: x\r\nAccept: application/json",
            "400 Bad Request",
            "X-Echo-Status: expected one number from 200 to 599",
        ),
        (
            "Host: a\r\nAccept: application/json\r\nContent-Length: 1073741825",
            "413 Content Too Large",
            "the content is longer than 1 GiB",
        ),
    ] {
        let mut connection = lab.client.http(POD);
        let answer = connection.request(format!("GET / HTTP/1.1\r\n{fields}\r\n\r\n"));
        assert_eq!(answer.status, status);
        let code: u16 = status[..3].parse().unwrap();
        assert_eq!(echo(&answer), json!({"status": code, "error": error}));
        connection.assert_closed();
    }
}

#[test]
fn a_long_body_is_cut_and_says_so() {
    let lab = Lab::new();
    let _daemon = lab.start(&[]);
    let mut connection = lab.client.http(POD);
    // "é" at an odd offset: the last one would be cut in two.
    for (begin, letter, cut) in [("x", "é", 65_535), ("", "x", 65_536)] {
        let body = begin.to_owned() + &letter.repeat(70_000 / letter.len());
        let length = body.len();
        let answer = connection.request(format!(
            "POST / HTTP/1.1\r\nHost: pod\r\nAccept: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        ));
        let echo = echo(&answer);
        assert_eq!(echo["body"], body[..cut]);
        assert_eq!(echo["body_bytes"], length);
        assert_eq!(echo["truncated"], true);
    }
}

#[test]
fn jq_and_python_read_every_echo() {
    let lab = Lab::new();
    let _daemon = lab.start(&["--max-connections", "16"]);
    let mut echoes = Vec::new();
    for stream in streams() {
        let (stream, heads) = with_accept(&stream);
        let mut connection = lab.client.http(POD);
        connection.send(&stream);
        connection.shutdown_write();
        for is_head in heads {
            let answer = match is_head {
                true => connection.response_to_head(),
                false => connection.response(),
            };
            let shown = stream.escape_ascii();
            assert!(answer.status.starts_with("200 "), "{answer:?}: {shown}");
            if !is_head {
                let echo = echo(&answer);
                assert_eq!(
                    answer.content.iter().filter(|byte| **byte == b'\n').count(),
                    1
                );
                echoes.push((answer.content, echo));
            }
        }
    }
    assert!(echoes.len() > 100, "{}", echoes.len());
    let lines = echoes.iter().map(|(content, _)| content.as_slice());
    let input = lines.collect::<Vec<_>>().concat();
    let python =
        "import json,sys\nfor line in sys.stdin.buffer: print(json.dumps(json.loads(line)))";
    for command in [vec!["jq", "-c", "."], vec!["python3", "-c", python]] {
        let output = filter(&command, &input);
        let read: Vec<Value> = output
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let sent: Vec<_> = echoes.iter().map(|(_, echo)| echo.clone()).collect();
        assert!(read == sent, "{}", command[0]);
    }
}

/// The streams of requests of this suite and of the fuzzers' corpus.
fn streams() -> Vec<Vec<u8>> {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/request");
    let files = fs::read_dir(corpus).unwrap();
    let files = files.map(|file| fs::read(file.unwrap().path()).unwrap());
    let streams = STREAMS.iter().map(|(stream, _)| stream.to_vec());
    let malformed = MALFORMED
        .iter()
        .map(|(stream, _)| stream.as_bytes().to_vec());
    streams.chain(malformed).chain(files).collect()
}

/// The accepted requests at the beginning of a stream, each with an Accept field that prefers JSON, and whether they
/// are HEAD requests. A request that ends the connection is the last.
fn with_accept(stream: &[u8]) -> (Vec<u8>, Vec<bool>) {
    let (mut requests, mut heads) = (Vec::new(), Vec::new());
    let mut rest = stream;
    for outcome in read([stream]) {
        let Outcome::Request { length, head, .. } = outcome else {
            break;
        };
        let (request, after) = rest.split_at(length);
        rest = after;
        let start = usize::from(request.starts_with(b"\r\n")) * 2;
        let line = request[start..].iter().position(|byte| *byte == b'\n');
        let (line, fields) = request.split_at(start + line.unwrap() + 1);
        let accepted = [line, b"Accept: application/json\r\n", fields].concat();
        // Without room for one more field, and with fields that choose the response.
        let is_plain = !request
            .to_ascii_lowercase()
            .windows(7)
            .any(|it| it == b"accept:" || it == b"x-echo-");
        if !is_plain || read([accepted.as_slice()]).len() != 1 {
            break;
        }
        requests.extend_from_slice(&accepted);
        heads.push(request[start..].starts_with(b"HEAD "));
        if head.ends_with("Close") {
            break;
        }
    }
    (requests, heads)
}

/// What a command prints for this input.
fn filter(command: &[&str], input: &[u8]) -> String {
    let mut child = Command::new(command[0])
        .args(&command[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}: scripts/test.sh installs it", command[0]));
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input).unwrap());
        child.wait_with_output().unwrap()
    });
    assert!(output.status.success(), "{}", command[0]);
    String::from_utf8(output.stdout).unwrap()
}
