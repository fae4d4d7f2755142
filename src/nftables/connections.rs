//! Sets that remember connections by their addresses and ports, and the expressions that use them.
//!
//! Both tables remember the SYNs that they have taken, in `syn-seen`: the rules of the scripts because a
//! handshake by SYN cookie leaves no socket that could own the client's next packet, the bridge because it
//! redirects the frames of such connections alone. An element is entered by a rule, and leaves when its time
//! is over; the kernel looks for such elements once a second (`nft_rhash_gc`, net/netfilter/nft_set_hash.c).
//! If a set is full, the rule that would enter a connection ends.

use crate::nftables::expression::Expression;
use crate::nftables::nft::{self, Field};
use crate::nftables::ruleset::{NamedSet, SetKind};
use crate::selectors::Family;

/// Time-out of a connection in `syn-seen`, in seconds: its client has answered by then, retransmissions
/// included
pub const HANDSHAKE_TIMEOUT: u32 = 10;

/// The set for SYNs.
pub fn syn_seen(family: Family) -> String {
    format!("syn-seen{}", family.suffix())
}

/// A set for at most `size` connections.
pub fn new_set(name: &str, family: Family, size: u32) -> NamedSet {
    let key = client_key(family);
    NamedSet {
        name: name.to_owned(),
        key_type: nft::concatenated_type(&key),
        key_length: nft::concatenated_length(&key),
        kind: SetKind::Dynamic { size },
    }
}

/// The key of a connection in a packet of the client: its address, the server's, and both ports.
pub fn client_key(family: Family) -> [Field; 4] {
    [
        nft::source_address(family),
        nft::destination_address(family),
        nft::SOURCE_PORT,
        nft::DESTINATION_PORT,
    ]
}

/// The same key in a packet of the server.
pub fn server_key(family: Family) -> [Field; 4] {
    let [client, server, client_port, server_port] = client_key(family);
    [server, client, server_port, client_port]
}

/// Loads the key of a client's packet.
pub fn load_client_key(family: Family) -> Expression {
    Expression::Concatenation(client_key(family).into())
}

/// Tests whether the connection is in a set.
pub fn is_in(set: &str) -> Expression {
    let (negated, set) = (false, set.to_owned());
    Expression::LookupNamed { negated, set }
}

/// Tests whether it is not.
pub fn is_not_in(set: &str) -> Expression {
    let (negated, set) = (true, set.to_owned());
    Expression::LookupNamed { negated, set }
}

/// Enters the connection, or renews it, for some seconds.
pub fn update(set: &str, timeout: u32) -> Expression {
    let set = set.to_owned();
    Expression::Update { set, timeout }
}
