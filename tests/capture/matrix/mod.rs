//! Measures which requests are captured, for each network of Pods and each kind of Service, and writes
//! the tables of docs/captured.md.

pub mod ask;
pub mod networks;
pub mod services;
pub mod table;

use std::net::SocketAddr;
use std::thread;

use crate::lab::Namespace;
use ask::{Outcome, ask};

/// A client and the address that it sends a request to, over IPv4 and over IPv6.
pub struct Question<'a> {
    pub client: &'a Namespace,
    pub to: [SocketAddr; 2],
}

/// The outcomes of a row, each over IPv4 and over IPv6.
pub type Outcomes = Vec<[Outcome; 2]>;

/// The same outcomes over both families.
pub fn both(outcomes: &[Outcome]) -> Outcomes {
    outcomes.iter().map(|&outcome| [outcome, outcome]).collect()
}

/// Asks all at once.
pub fn ask_all(questions: &[Question], expected: &[[Outcome; 2]]) -> Outcomes {
    assert_eq!(questions.len(), expected.len());
    thread::scope(|scope| {
        let asked: Vec<_> = questions
            .iter()
            .zip(expected)
            .map(|(question, expected)| {
                [0, 1].map(|family| {
                    let (client, to) = (question.client, question.to[family]);
                    scope.spawn(move || ask(client, to, expected[family]))
                })
            })
            .collect();
        let join = |it: thread::ScopedJoinHandle<Outcome>| it.join().unwrap();
        asked.into_iter().map(|pair| pair.map(join)).collect()
    })
}
