//! One client sends a request to one address: what answers, or how it fails.

use std::fmt;
use std::io::{Error, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::lab::{Namespace, PATIENCE};

/// The outcome of a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Outcome {
    /// tproxy-pod answers, on the node of this number.
    Captured(u8),
    Pod,
    Refused,
    TimeOut,
    Unreachable,
}

/// As in a cell of the tables of docs/captured.md.
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

/// Longer than a SYN, its first retransmission, and neighbour discovery take.
const SILENCE: Duration = Duration::from_millis(1500);

/// Sends a request, and returns its outcome. An expected silence is waited for more briefly.
pub fn ask(client: &Namespace, to: SocketAddr, expected: Outcome) -> Outcome {
    let patience = match expected {
        Outcome::TimeOut => SILENCE,
        _ => *PATIENCE,
    };
    let answer = client.enter(|| request(to, patience));
    match answer {
        Ok(answer) => outcome_of_answer(&answer),
        Err(error) => outcome_of_error(&error),
    }
}

fn request(to: SocketAddr, patience: Duration) -> Result<String, Error> {
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

fn outcome_of_answer(answer: &str) -> Outcome {
    if answer.ends_with("\r\n\r\npod") {
        return Outcome::Pod;
    }
    assert!(answer.contains("Request received from "), "{answer}");
    let node = answer.lines().find_map(|it| it.strip_prefix("Node: node-"));
    Outcome::Captured(node.unwrap().parse().unwrap())
}

fn outcome_of_error(error: &Error) -> Outcome {
    match error.kind() {
        ErrorKind::ConnectionRefused => Outcome::Refused,
        ErrorKind::TimedOut | ErrorKind::WouldBlock => Outcome::TimeOut,
        // The last is what connect(2) says of a blackhole route.
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable | ErrorKind::InvalidInput => {
            Outcome::Unreachable
        }
        _ => panic!("{error}"),
    }
}
