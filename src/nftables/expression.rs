//! The nf_tables expressions that rules are made of, and how they are written as attributes.
//!
//! From linux/netfilter/nf_tables.h. Numbers are in network order, data as it is compared. Values
//! pass through one register; TPROXY needs a second.

use std::net::IpAddr;

use libc::c_int;

use crate::netlink::message::Message;
use crate::selectors::{Family, Mark};

/// Lists: `NFTA_LIST_ELEM`
pub const NFTA_LIST_ELEM: u16 = 1;
/// Data: a plain value
pub const NFTA_DATA_VALUE: u16 = 1;

const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_VERDICT_CHAIN: u16 = 2;
/// An expression: what it is called
pub const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_IMMEDIATE_DREG: u16 = 1;
const NFTA_IMMEDIATE_DATA: u16 = 2;
const NFTA_BITWISE_SREG: u16 = 1;
const NFTA_BITWISE_DREG: u16 = 2;
const NFTA_BITWISE_LEN: u16 = 3;
const NFTA_BITWISE_MASK: u16 = 4;
const NFTA_BITWISE_XOR: u16 = 5;
const NFTA_CMP_SREG: u16 = 1;
const NFTA_CMP_OP: u16 = 2;
const NFTA_CMP_DATA: u16 = 3;
const NFTA_RANGE_SREG: u16 = 1;
const NFTA_RANGE_OP: u16 = 2;
const NFTA_RANGE_FROM_DATA: u16 = 3;
const NFTA_RANGE_TO_DATA: u16 = 4;
const NFTA_LOOKUP_SET: u16 = 1;
const NFTA_LOOKUP_SREG: u16 = 2;
const NFTA_LOOKUP_DREG: u16 = 3;
const NFTA_LOOKUP_SET_ID: u16 = 4;
const NFTA_LOOKUP_FLAGS: u16 = 5;
const NFTA_DYNSET_SET_NAME: u16 = 1;
const NFTA_DYNSET_OP: u16 = 3;
const NFTA_DYNSET_SREG_KEY: u16 = 4;
const NFTA_DYNSET_TIMEOUT: u16 = 6;
const NFT_DYNSET_OP_UPDATE: u32 = 1;
const NFTA_PAYLOAD_DREG: u16 = 1;
const NFTA_PAYLOAD_BASE: u16 = 2;
const NFTA_PAYLOAD_OFFSET: u16 = 3;
const NFTA_PAYLOAD_LEN: u16 = 4;
const NFTA_PAYLOAD_SREG: u16 = 5;
const NFTA_META_DREG: u16 = 1;
const NFTA_META_KEY: u16 = 2;
const NFTA_META_SREG: u16 = 3;
const NFTA_SOCKET_KEY: u16 = 1;
const NFTA_SOCKET_DREG: u16 = 2;
const NFTA_TPROXY_FAMILY: u16 = 1;
const NFTA_TPROXY_REG_ADDR: u16 = 2;
const NFTA_TPROXY_REG_PORT: u16 = 3;

/// Socket expression: the value of `IP_TRANSPARENT`; no socket ends the rule
pub const NFT_SOCKET_TRANSPARENT: u32 = 0;
/// Socket expression: whether the socket is bound to any address; since Linux 5.10
pub const NFT_SOCKET_WILDCARD: u32 = 2;

/// The name that an anonymous set asks for; it is found by its id.
pub const ANONYMOUS_SET: &str = "__set%d";

const VALUE: c_int = libc::NFT_REG_1;
const PORT: c_int = libc::NFT_REG_2;

/// Behind the longest key of a connection, which takes 40 bytes.
const HARDWARE: c_int = libc::NFT_REG32_12;
const HARDWARE_LENGTH: u32 = 6;

/// One step of a rule. A comparison that fails ends the rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expression {
    /// Loads a property of the packet (`NFT_META_…`).
    Meta(c_int),
    /// Loads bytes of a header (`NFT_PAYLOAD_…`), from an offset.
    Payload {
        /// Which header.
        base: c_int,
        /// Where in it, in bytes.
        offset: u32,
        /// How many bytes.
        length: u32,
    },
    /// Loads a property of the socket that owns the packet (`NFT_SOCKET_…`).
    Socket(u32),
    /// `value = value & mask ^ xor`
    Bitwise {
        /// The bits that stay.
        mask: Vec<u8>,
        /// The bits that are flipped then.
        xor: Vec<u8>,
    },
    /// The value is these bytes, or is not.
    Compare {
        /// Whether it is not.
        negated: bool,
        /// The bytes.
        data: Vec<u8>,
    },
    /// The value is from … to …, both included, or is not.
    Range {
        /// Whether it is not.
        negated: bool,
        /// The lowest value.
        from: Vec<u8>,
        /// The highest value.
        to: Vec<u8>,
    },
    /// The value is in this anonymous set, or is not.
    Lookup {
        /// Whether it is not.
        negated: bool,
        /// The place of the set among those of its table.
        set: u32,
    },
    /// Hands the packet to a transparent listener; if there is none, the rule ends.
    Tproxy {
        /// `NFPROTO_IPV4` or `NFPROTO_IPV6`
        family: c_int,
        /// The listener's address.
        address: Option<IpAddr>,
        /// The listener's port, host order; 0 for the packet's own.
        port: u16,
    },
    /// Loads what tells a TCP connection from others: both addresses and both ports, the client's first.
    Connection {
        /// Of the packet.
        family: Family,
        /// Whether the packet goes to the client.
        is_answer: bool,
    },
    /// The loaded connection is in the set of this name, or is not.
    Known {
        /// Whether it is not.
        negated: bool,
        /// The name.
        set: &'static str,
    },
    /// Has the loaded connection stay in the set for so many seconds from now; a set that is full
    /// ends the rule.
    Remember(&'static str, u32),
    /// `mark = mark & !mask ^ value`
    SetMark(Mark),
    /// Loads the hardware address that the map of this name has for the device the packet came in by;
    /// a device that is not in the map ends the rule.
    Hardware(&'static str),
    /// Sends the frame to the hardware address that is loaded.
    SendThere,
    /// Sets a property of the packet (`NFT_META_…`) to these bytes.
    Set(c_int, Vec<u8>),
    /// Ends the rule (`NF_ACCEPT`, `NF_DROP`, `NFT_RETURN`).
    Verdict(c_int),
    /// Goes through another chain.
    Jump(String),
}

impl Expression {
    /// Appends the expression to a rule's list; the sets of its table have ids from `first_set` on.
    pub fn write(&self, list: &mut Message, first_set: u32) {
        match self {
            Expression::Meta(key) => load_meta(list, *key),
            Expression::Payload {
                base,
                offset,
                length,
            } => payload(list, VALUE, *base, *offset, *length),
            Expression::Socket(key) => element(list, "socket", |data| {
                data.put_be32(NFTA_SOCKET_KEY, *key)
                    .put_be32(NFTA_SOCKET_DREG, VALUE as u32);
            }),
            Expression::Bitwise { mask, xor } => bitwise(list, mask, xor),
            Expression::Compare {
                negated,
                data: bytes,
            } => element(list, "cmp", |data| {
                let operator = if *negated {
                    libc::NFT_CMP_NEQ
                } else {
                    libc::NFT_CMP_EQ
                };
                data.put_be32(NFTA_CMP_SREG, VALUE as u32)
                    .put_be32(NFTA_CMP_OP, operator as u32);
                value(data, NFTA_CMP_DATA, bytes);
            }),
            Expression::Range { negated, from, to } => element(list, "range", |data| {
                let operator = if *negated {
                    libc::NFT_RANGE_NEQ
                } else {
                    libc::NFT_RANGE_EQ
                };
                data.put_be32(NFTA_RANGE_SREG, VALUE as u32)
                    .put_be32(NFTA_RANGE_OP, operator as u32);
                value(data, NFTA_RANGE_FROM_DATA, from);
                value(data, NFTA_RANGE_TO_DATA, to);
            }),
            Expression::Lookup { negated, set } => element(list, "lookup", |data| {
                data.put_text(NFTA_LOOKUP_SET, ANONYMOUS_SET)
                    .put_be32(NFTA_LOOKUP_SET_ID, first_set + *set)
                    .put_be32(NFTA_LOOKUP_SREG, VALUE as u32)
                    .put_be32(NFTA_LOOKUP_FLAGS, inversion(*negated));
            }),
            Expression::Tproxy {
                family,
                address,
                port,
            } => tproxy(list, *family, *address, *port),
            Expression::Connection { family, is_answer } => connection(list, *family, *is_answer),
            Expression::Known { negated, set } => element(list, "lookup", |data| {
                data.put_text(NFTA_LOOKUP_SET, set)
                    .put_be32(NFTA_LOOKUP_SREG, VALUE as u32)
                    .put_be32(NFTA_LOOKUP_FLAGS, inversion(*negated));
            }),
            Expression::Remember(set, seconds) => remember(list, set, *seconds),
            Expression::Hardware(map) => {
                load_meta(list, libc::NFT_META_IIF);
                element(list, "lookup", |data| {
                    data.put_text(NFTA_LOOKUP_SET, map)
                        .put_be32(NFTA_LOOKUP_SREG, VALUE as u32)
                        .put_be32(NFTA_LOOKUP_DREG, HARDWARE as u32);
                });
            }
            // The destination comes first in a frame.
            Expression::SendThere => element(list, "payload", |data| {
                data.put_be32(NFTA_PAYLOAD_SREG, HARDWARE as u32)
                    .put_be32(NFTA_PAYLOAD_BASE, libc::NFT_PAYLOAD_LL_HEADER as u32)
                    .put_be32(NFTA_PAYLOAD_OFFSET, 0)
                    .put_be32(NFTA_PAYLOAD_LEN, HARDWARE_LENGTH);
            }),
            Expression::Set(key, bytes) => {
                load(list, VALUE, bytes);
                set_meta(list, *key);
            }
            Expression::SetMark(mark) => {
                load_meta(list, libc::NFT_META_MARK);
                bitwise(list, &(!mark.mask).to_ne_bytes(), &mark.value.to_ne_bytes());
                set_meta(list, libc::NFT_META_MARK);
            }
            Expression::Verdict(code) => verdict(list, *code, None),
            Expression::Jump(chain) => verdict(list, libc::NFT_JUMP, Some(chain)),
        }
    }
}

fn element(list: &mut Message, name: &str, fill: impl FnOnce(&mut Message)) {
    list.nest(NFTA_LIST_ELEM, |element| {
        element
            .put_text(NFTA_EXPR_NAME, name)
            .nest(NFTA_EXPR_DATA, fill);
    });
}

/// Data that is a plain value.
pub fn value(data: &mut Message, kind: u16, bytes: &[u8]) {
    data.nest(kind, |value| {
        value.put(NFTA_DATA_VALUE, bytes);
    });
}

fn load(list: &mut Message, register: c_int, bytes: &[u8]) {
    element(list, "immediate", |data| {
        data.put_be32(NFTA_IMMEDIATE_DREG, register as u32);
        value(data, NFTA_IMMEDIATE_DATA, bytes);
    });
}

fn inversion(negated: bool) -> u32 {
    if negated {
        libc::NFT_LOOKUP_F_INV as u32
    } else {
        0
    }
}

fn load_meta(list: &mut Message, key: c_int) {
    element(list, "meta", |data| {
        data.put_be32(NFTA_META_DREG, VALUE as u32)
            .put_be32(NFTA_META_KEY, key as u32);
    });
}

fn set_meta(list: &mut Message, key: c_int) {
    element(list, "meta", |data| {
        data.put_be32(NFTA_META_SREG, VALUE as u32)
            .put_be32(NFTA_META_KEY, key as u32);
    });
}

/// A key of four parts, in registers that follow each other; a port takes 4 bytes of them.
fn connection(list: &mut Message, family: Family, is_answer: bool) {
    // Where the source's address stands in its header, and how long one is (RFC 791, 3.1; RFC 8200, 3).
    let (source, length) = match family {
        Family::V4 => (12, 4),
        Family::V6 => (8, 16),
    };
    let (network, transport) = (
        libc::NFT_PAYLOAD_NETWORK_HEADER,
        libc::NFT_PAYLOAD_TRANSPORT_HEADER,
    );
    let client = [(network, source, length), (transport, 0, 2)];
    let server = [(network, source + length, length), (transport, 2, 2)];
    let [first, second] = match is_answer {
        false => [client, server],
        true => [server, client],
    };
    let parts = [first[0], second[0], first[1], second[1]];
    let mut register = libc::NFT_REG32_00;
    for (base, offset, length) in parts {
        payload(list, register, base, offset, length);
        register += length.div_ceil(4) as c_int;
    }
}

fn remember(list: &mut Message, set: &str, seconds: u32) {
    let milliseconds = u64::from(seconds) * 1000;
    element(list, "dynset", |data| {
        data.put_text(NFTA_DYNSET_SET_NAME, set)
            .put_be32(NFTA_DYNSET_OP, NFT_DYNSET_OP_UPDATE)
            .put_be32(NFTA_DYNSET_SREG_KEY, VALUE as u32)
            .put(NFTA_DYNSET_TIMEOUT, &milliseconds.to_be_bytes());
    });
}

fn bitwise(list: &mut Message, mask: &[u8], xor: &[u8]) {
    element(list, "bitwise", |data| {
        data.put_be32(NFTA_BITWISE_SREG, VALUE as u32)
            .put_be32(NFTA_BITWISE_DREG, VALUE as u32)
            .put_be32(NFTA_BITWISE_LEN, mask.len() as u32);
        value(data, NFTA_BITWISE_MASK, mask);
        value(data, NFTA_BITWISE_XOR, xor);
    });
}

fn payload(list: &mut Message, register: c_int, base: c_int, offset: u32, length: u32) {
    element(list, "payload", |data| {
        data.put_be32(NFTA_PAYLOAD_DREG, register as u32)
            .put_be32(NFTA_PAYLOAD_BASE, base as u32)
            .put_be32(NFTA_PAYLOAD_OFFSET, offset)
            .put_be32(NFTA_PAYLOAD_LEN, length);
    });
}

fn tproxy(list: &mut Message, family: c_int, address: Option<IpAddr>, port: u16) {
    match address {
        Some(IpAddr::V4(address)) => load(list, VALUE, &address.octets()),
        Some(IpAddr::V6(address)) => load(list, VALUE, &address.octets()),
        None => {}
    }
    match (address, port) {
        // The kernel wants an address or a port: the packet's own, which is what 0 means.
        (None, 0) => payload(list, PORT, libc::NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2),
        (Some(_), 0) => {}
        (_, port) => load(list, PORT, &port.to_be_bytes()),
    }
    element(list, "tproxy", |data| {
        data.put_be32(NFTA_TPROXY_FAMILY, family as u32);
        if address.is_some() {
            data.put_be32(NFTA_TPROXY_REG_ADDR, VALUE as u32);
        }
        if port != 0 || address.is_none() {
            data.put_be32(NFTA_TPROXY_REG_PORT, PORT as u32);
        }
    });
}

fn verdict(list: &mut Message, code: c_int, chain: Option<&str>) {
    element(list, "immediate", |data| {
        data.put_be32(NFTA_IMMEDIATE_DREG, libc::NFT_REG_VERDICT as u32)
            .nest(NFTA_IMMEDIATE_DATA, |data| {
                data.nest(NFTA_DATA_VERDICT, |verdict| {
                    verdict.put_be32(NFTA_VERDICT_CODE, code as u32);
                    if let Some(chain) = chain {
                        verdict.put_text(NFTA_VERDICT_CHAIN, chain);
                    }
                });
            });
    });
}
