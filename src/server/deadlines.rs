//! The deadlines of a connection. Each covers a whole step: a client that sends or takes one byte at a
//! time does not extend it.

use std::time::Duration;

use crate::http::response::KEEP_ALIVE_TIMEOUT;

/// Deadlines for the steps of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// Until the first byte of the first request.
    pub first_byte: Duration,
    /// From the end of a response until the first byte of the next request.
    pub keep_alive: Duration,
    /// From the first byte of a request head to its last.
    pub head: Duration,
    /// From the end of the head to the last byte of the body.
    pub body: Duration,
    /// From the first byte of a response until the client has acknowledged the last.
    pub response: Duration,
    /// From the end of the last response until the client closes its side.
    pub linger: Duration,
}

/// Deadlines of connections to captured addresses.
pub const DEADLINES: Deadlines = Deadlines {
    first_byte: Duration::from_secs(15),
    keep_alive: Duration::from_secs(KEEP_ALIVE_TIMEOUT),
    head: Duration::from_secs(10),
    body: Duration::from_secs(30),
    response: Duration::from_secs(15),
    linger: Duration::from_secs(1),
};

/// Deadlines of direct connections from the node. They are short because a kubelet's probe may wait
/// behind other direct connections. Each closes after its response.
pub const DIRECT_DEADLINES: Deadlines = Deadlines {
    first_byte: Duration::from_secs(1),
    keep_alive: Duration::ZERO,
    head: Duration::from_secs(1),
    body: Duration::from_secs(1),
    response: Duration::from_secs(1),
    linger: Duration::from_secs(1),
};

/// Time without a request after which a connection is idle: its worker frees memory. Also the default time-out
/// of a read.
pub const IDLE_AFTER: Duration = Duration::from_secs(1);
