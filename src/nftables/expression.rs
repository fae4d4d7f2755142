//! nf_tables expressions, the steps of a rule. `encode` writes their netlink attributes.
//!
//! An expression loads a value into a register, tests it, or acts on the packet.

use std::net::IpAddr;

use libc::c_int;

use crate::nftables::nft::Field;
use crate::rules::rule::{AddressOf, Ranges};
use crate::selectors::{Family, Mark};

/// Key of the socket expression: the socket option `IP_TRANSPARENT`; without a socket the rule ends
pub const NFT_SOCKET_TRANSPARENT: u32 = 0;
/// Key of the socket expression: the socket is bound to any address; since Linux 5.10
pub const NFT_SOCKET_WILDCARD: u32 = 2;

/// One step of a rule. If a test fails, the rule ends, and the chain goes on to the next one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expression {
    /// Loads metadata of the packet (`NFT_META_…`).
    Meta(c_int),
    /// Loads a field of a header.
    Payload(Field),
    /// Loads several fields, each padded to 4 bytes: `ip saddr . ip daddr`.
    Concatenation(Vec<Field>),
    /// Loads a property of the socket that owns the packet (`NFT_SOCKET_…`).
    Socket(u32),
    /// Loads the type of an address in the node's routing, such as `RTN_LOCAL`.
    AddressType(AddressOf),
    /// Loads the mark of the packet's conntrack entry; without one the rule ends.
    ConnectionMark,
    /// `value = value & mask`
    Mask(Vec<u8>),
    /// Tests whether the value starts with these bytes.
    Compare {
        /// Inverts the test.
        negated: bool,
        /// The bytes.
        data: Vec<u8>,
    },
    /// Tests whether the value is in a range.
    Range {
        /// Inverts the test.
        negated: bool,
        /// The lowest value.
        from: Vec<u8>,
        /// The highest value.
        to: Vec<u8>,
    },
    /// Tests whether the value is in an anonymous set of ranges, which is created with the rule.
    Lookup {
        /// Inverts the test.
        negated: bool,
        /// The field that was loaded.
        field: Field,
        /// The ranges, in ascending order; they do not overlap.
        ranges: Ranges,
    },
    /// Tests whether the value is in a named set: `@set`.
    LookupNamed {
        /// Inverts the test.
        negated: bool,
        /// The name of the set.
        set: String,
    },
    /// Adds the value to a dynamic set, or renews it there: `update @set { … timeout 10s }`. If the set
    /// is full, the rule ends.
    Update {
        /// The name of the set.
        set: String,
        /// Time-out of the element, in seconds.
        timeout: u32,
    },
    /// Removes the value from a dynamic set, if it is there: `delete @set { … }`.
    Delete(String),
    /// Hands the packet to a transparent socket: that of its connection, else the listener. Without
    /// one the rule ends.
    Tproxy {
        /// The family of the packet.
        family: Family,
        /// The listener's address; the address of the input interface, if none.
        address: Option<IpAddr>,
        /// The listener's port, host order; the packet's own, if 0.
        port: u16,
    },
    /// `mark = mark & !mask ^ value`
    SetMark(Mark),
    /// Sets the mark of the packet's conntrack entry in the same way.
    SetConnectionMark(Mark),
    /// Sets metadata of the packet (`NFT_META_…`).
    SetMeta(c_int, Vec<u8>),
    /// Loads the MAC address that the map of this name holds for the input device:
    /// `iif map @ports`. Without an element the rule ends.
    MapInputDevice(String),
    /// Sets `ether daddr` to the address that [`Expression::MapInputDevice`] has loaded.
    SetEtherDestination,
    /// A verdict on the packet (`NF_ACCEPT`, `NF_DROP`) or the end of the chain (`NFT_RETURN`).
    Verdict(c_int),
    /// Calls another chain.
    Jump(String),
    /// Continues in another chain, and returns to the caller of this one.
    Goto(String),
}

impl Expression {
    /// Tests whether the value starts with these bytes.
    pub fn equals(data: Vec<u8>) -> Expression {
        let negated = false;
        Expression::Compare { negated, data }
    }
}
