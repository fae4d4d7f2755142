//! When the server acknowledges what it receives: with the response, or at once if it waits for more of the request.

use std::io::{BufReader, Write};

use crate::lab::http_client::{HttpClient, REQUEST};
use crate::lab::{Lab, POD};

/// Number of connections. On a busy machine the kernel may acknowledge for a server that does not run for 40 ms.
const COUNT: u64 = 20;

/// By how much a counter of the node increases while connections are served.
fn increase(lab: &Lab, counter: &str, serve: impl Fn() -> HttpClient) -> u64 {
    let before = lab.node.counter(counter);
    let connections: Vec<_> = (0..COUNT).map(|_| serve()).collect();
    let increase = lab.node.counter(counter) - before;
    drop(connections);
    increase
}

#[test]
fn a_request_is_acknowledged_by_its_response() {
    let lab = Lab::new();
    let _daemon = lab.start(&[]);
    let segments = increase(&lab, "OutSegs", || {
        let mut connection = lab.client.http(POD);
        assert_eq!(connection.request(REQUEST).status, "200 OK");
        connection
    });
    // The SYN-ACK and the response.
    assert!(
        segments < 2 * COUNT + COUNT / 2,
        "{segments} segments for {COUNT} requests"
    );
}

/// A client that has not set `TCP_NODELAY` sends a second small segment once the first is acknowledged (RFC 9293,
/// 3.7.4).
#[test]
fn a_part_of_a_request_is_acknowledged_at_once() {
    let lab = Lab::new();
    let _daemon = lab.start(&[]);
    let head = REQUEST.split_at(10);
    for (first, second) in [head, ("\r\n", REQUEST)] {
        let delayed = increase(&lab, "DelayedACKs", || {
            let mut stream = lab.client.connect(POD).unwrap();
            stream.write_all(first.as_bytes()).unwrap();
            stream.write_all(second.as_bytes()).unwrap();
            let mut connection = HttpClient(BufReader::new(stream));
            assert_eq!(connection.response().status, "200 OK");
            connection
        });
        assert!(
            delayed < COUNT / 2,
            "{delayed} of {COUNT} acknowledgements of {first:?} were delayed"
        );
    }
}
