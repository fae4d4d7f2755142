//! The two ends of a connection.

use std::net::SocketAddr;

/// The addresses and ports of a connection, as text.
#[derive(Clone, Debug)]
pub struct Endpoints {
    /// The client's.
    pub client: String,
    /// Those to which it connected, which are not the listener's.
    pub destination: String,
}

impl Endpoints {
    /// The client's address, and the address to which it connected.
    pub fn new(client: SocketAddr, destination: SocketAddr) -> Endpoints {
        Endpoints {
            client: client.to_string(),
            destination: destination.to_string(),
        }
    }
}
