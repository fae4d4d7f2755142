//! Sends a request from one client to one address, and classifies the response or the error.

use std::fmt;
use std::io::{Error, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::lab::{Namespace, PATIENCE};

/// Outcome of a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Outcome {
    /// Answered by tproxy-pod, on the node of this number.
    Captured(u8),
    Pod,
    Refused,
    TimeOut,
    Unreachable,
}

/// As in the cells of the tables in docs/captured.md.
impl fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(match self {
            Outcome::Captured(_) => "captured",
            Outcome::Pod => "the Pod",
            Outcome::Refused => "refused",
            Outcome::TimeOut => "time-out",
            Outcome::Unreachable => "unreachable",
        })
    }
}

/// Longer than a SYN, its first retransmission, and neighbour discovery.
const TIME_OUT: Duration = Duration::from_millis(1500);

/// Sends a request, and returns its outcome. An expected time-out has a shorter limit.
pub fn send_request(client: &Namespace, to: SocketAddr, expected: Outcome) -> Outcome {
    let patience = match expected {
        Outcome::TimeOut => TIME_OUT,
        _ => *PATIENCE,
    };
    let answer = client.enter(|| exchange(to, patience));
    match answer {
        Ok(answer) => outcome_of_response(&answer),
        Err(error) => outcome_of_error(&error)
            .unwrap_or_else(|| panic!("{to}, {expected:?} expected: {error}")),
    }
}

fn exchange(to: SocketAddr, patience: Duration) -> Result<String, Error> {
    let mut stream = TcpStream::connect_timeout(&to, patience)?;
    stream.set_read_timeout(Some(patience))?;
    write!(
        stream,
        "GET / HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn outcome_of_response(answer: &str) -> Outcome {
    if answer.ends_with("\r\n\r\npod") {
        return Outcome::Pod;
    }
    assert!(answer.contains("Request received from "), "{answer}");
    let node = answer.lines().find_map(|it| it.strip_prefix("Node: node-"));
    Outcome::Captured(node.unwrap().parse().unwrap())
}

fn outcome_of_error(error: &Error) -> Option<Outcome> {
    Some(match error.kind() {
        ErrorKind::ConnectionRefused => Outcome::Refused,
        ErrorKind::TimedOut | ErrorKind::WouldBlock => Outcome::TimeOut,
        // connect(2) returns `EINVAL` for a blackhole route.
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable | ErrorKind::InvalidInput => {
            Outcome::Unreachable
        }
        _ => return None,
    })
}
