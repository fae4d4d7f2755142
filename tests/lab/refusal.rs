//! Refused requests: one response, one log line, and the connection is closed.

use super::http_client::{HttpClient, Response};
use super::{CIDRS, Lab, POD, POD6};

/// A request after a refused one. It must never be read: the end of a refused request is unknown.
pub const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";

/// Sends a request to be refused, followed by [`SMUGGLED`], and reads the only response.
pub fn refused(connection: &mut HttpClient, request: impl AsRef<[u8]>) -> Response {
    let answer = connection.request([request.as_ref(), SMUGGLED.as_bytes()].concat());
    connection.assert_closed();
    answer
}

/// Sends requests to be refused, over both families, each with the expected start of the response; checks each
/// response and its log line.
pub fn assert_all_refused(requests: &[(Vec<u8>, &str)]) {
    let lab = Lab::new();
    let mut daemon = lab.start(&["--cidr", CIDRS]);
    let mut lines = Vec::new();
    for address in [POD, POD6] {
        for (request, expected) in requests {
            let mut connection = lab.client.http(address);
            lines.push(check_refusal(&mut connection, request, expected));
        }
    }
    daemon.stop();
    daemon.wait_for(&format!(
        "Served {0} requests on {0} connections",
        lines.len()
    ));
    let log = daemon.log();
    for (client, fields) in lines {
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(&client)).collect();
        let [line] = lines.as_slice() else {
            panic!("one line for a request: {lines:?}");
        };
        assert!(line.contains(" WARN  Refused request : "), "{line}");
        assert!(line.contains(&fields), "{line}\n{fields}");
    }
}

/// Sends a request to be refused, and checks the response; returns the start of its log line, and a text that
/// the line has to contain.
fn check_refusal(connection: &mut HttpClient, request: &[u8], expected: &str) -> (String, String) {
    let (status, _) = expected.split_once(':').unwrap_or((expected, ""));
    let shown = request.escape_ascii().to_string();
    let shown = &shown[..shown.len().min(200)];
    let answer = refused(connection, request);
    assert_eq!(answer.status, status, "{shown}");
    assert_eq!(answer.other_fields(), ["Connection: close"], "{shown}");
    let text = answer.text();
    assert!(text.starts_with(expected), "{shown}: {text}");
    assert_eq!(text.find('\n'), Some(text.len() - 1), "one line: {text}");
    let reason = text.trim_end().split_once(": ").unwrap().1;
    (
        format!("client={} ", connection.client()),
        format!("status={} reason=\"{reason}\" bytes=\"", &status[..3]),
    )
}
