//! Requests that are refused: the one answer, the one line of the log, and nothing behind them.

use super::conversation::{Answer, Conversation};
use super::{CIDRS, Lab, POD, POD6};

/// A request that must never be read: where a refused request ends is not known.
pub const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";

/// Sends what is refused with a smuggled request behind it, and reads the one answer.
pub fn refused(connection: &mut Conversation, request: impl AsRef<[u8]>) -> Answer {
    let answer = connection.ask([request.as_ref(), SMUGGLED.as_bytes()].concat());
    connection.ends();
    answer
}

/// Sends requests that are refused, over both families, each with what its answer's text begins with,
/// and checks every answer, and the one line of the log.
pub fn each_is_refused(requests: &[(Vec<u8>, &str)]) {
    let lab = Lab::new();
    let mut daemon = lab.start(&["--cidr", CIDRS]);
    let mut lines = Vec::new();
    for address in [POD, POD6] {
        for (request, expected) in requests {
            let mut connection = lab.client.talk(address);
            lines.push(is_refused(&mut connection, request, expected));
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

/// Sends a request that is refused, and checks the answer; returns by what its line of the log is
/// known, and what that has to say.
fn is_refused(connection: &mut Conversation, request: &[u8], expected: &str) -> (String, String) {
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
