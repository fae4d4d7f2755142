//! Measures which requests are captured, for each network of Pods and each kind of Service, and formats the
//! tables of docs/captured.md.

pub mod networks;
pub mod request;
pub mod services;
pub mod table;

use std::net::SocketAddr;
use std::thread;

use crate::lab::Namespace;
use request::{Outcome, send_request};

/// A client and the addresses that it sends a request to, over IPv4 and IPv6.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    pub client: &'a Namespace,
    pub to: [SocketAddr; 2],
}

/// Outcomes of a row, each over IPv4 and IPv6.
pub type Outcomes = Vec<[Outcome; 2]>;

/// The same outcomes over both families.
pub fn both(outcomes: &[Outcome]) -> Outcomes {
    outcomes.iter().map(|&outcome| [outcome, outcome]).collect()
}

/// Sends all requests at the same time.
pub fn send_all(requests: &[Request], expected: &[[Outcome; 2]]) -> Outcomes {
    assert_eq!(requests.len(), expected.len());
    thread::scope(|scope| {
        let asked: Vec<_> = requests
            .iter()
            .zip(expected)
            .map(|(request, expected)| {
                [0, 1].map(|family| {
                    let (client, to) = (request.client, request.to[family]);
                    scope.spawn(move || send_request(client, to, expected[family]))
                })
            })
            .collect();
        let join = |it: thread::ScopedJoinHandle<Outcome>| it.join().unwrap();
        asked.into_iter().map(|pair| pair.map(join)).collect()
    })
}
