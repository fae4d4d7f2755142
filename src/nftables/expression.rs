//! nf_tables expressions, the steps of a rule, and their netlink attributes.
//!
//! An expression loads a value into a register, tests it, or acts on the packet. Attributes and
//! registers are those of linux/netfilter/nf_tables.h; numbers in attributes are in network order.

use std::net::IpAddr;

use libc::c_int;

use crate::netlink::message::Message;
use crate::nftables::nft::{self, Field};
use crate::rules::rule::{AddressOf, Ranges};
use crate::selectors::{Family, Mark};

/// One item of a list
pub const NFTA_LIST_ELEM: u16 = 1;
/// The name of an expression
pub const NFTA_EXPR_NAME: u16 = 1;

const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_VERDICT_CHAIN: u16 = 2;
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
const NFTA_FIB_DREG: u16 = 1;
const NFTA_FIB_RESULT: u16 = 2;
const NFTA_FIB_FLAGS: u16 = 3;
const NFT_FIB_RESULT_ADDRTYPE: u32 = 3;
const NFTA_FIB_F_SADDR: u32 = 1 << 0;
const NFTA_FIB_F_DADDR: u32 = 1 << 1;
const NFTA_CT_DREG: u16 = 1;
const NFTA_CT_KEY: u16 = 2;
const NFTA_CT_SREG: u16 = 4;
const NFTA_TPROXY_FAMILY: u16 = 1;
const NFTA_TPROXY_REG_ADDR: u16 = 2;
const NFTA_TPROXY_REG_PORT: u16 = 3;

/// Key of the socket expression: the socket option `IP_TRANSPARENT`; without a socket the rule ends
pub const NFT_SOCKET_TRANSPARENT: u32 = 0;
/// Key of the socket expression: the socket is bound to any address; since Linux 5.10
pub const NFT_SOCKET_WILDCARD: u32 = 2;

/// Name of a new anonymous set: the kernel puts a number for `%d`; rules of the transaction refer to
/// the set by its id
pub const ANONYMOUS_SET: &str = "__set%d";

/// Register of the value that is tested
const VALUE: c_int = libc::NFT_REG_1;
/// Register of the port for TPROXY
const PORT: c_int = libc::NFT_REG_2;
/// First of the 4-byte registers that make up [`VALUE`], for a concatenation
const CONCATENATION: c_int = libc::NFT_REG32_00;
/// Registers of a MAC address, after the longest concatenation (40 bytes)
const ETHER_ADDRESS: c_int = libc::NFT_REG32_12;

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
}

impl Expression {
    /// Tests whether the value starts with these bytes.
    pub fn equals(data: Vec<u8>) -> Expression {
        let negated = false;
        Expression::Compare { negated, data }
    }

    /// Appends the expression to the list of a rule. `next_set` is the id of its anonymous set, if it has one.
    pub fn write(&self, list: &mut Message, next_set: &mut u32) {
        match self {
            Expression::Meta(key) => meta(list, NFTA_META_DREG, *key),
            Expression::Payload(field) => payload(list, NFTA_PAYLOAD_DREG, VALUE, *field),
            Expression::Concatenation(fields) => concatenation(list, fields),
            Expression::Socket(key) => element(list, "socket", |data| {
                data.put_be32(NFTA_SOCKET_KEY, *key)
                    .put_be32(NFTA_SOCKET_DREG, VALUE as u32);
            }),
            Expression::AddressType(of) => address_type(list, *of),
            Expression::ConnectionMark => conntrack_mark(list, NFTA_CT_DREG),
            Expression::Mask(mask) => bitwise(list, mask, &vec![0; mask.len()]),
            Expression::Compare { negated, data } => compare(list, *negated, data),
            Expression::Range { negated, from, to } => range(list, *negated, from, to),
            Expression::Lookup { negated, .. } => {
                lookup(list, *negated, ANONYMOUS_SET, Some(*next_set));
                *next_set += 1;
            }
            Expression::LookupNamed { negated, set } => lookup(list, *negated, set, None),
            Expression::Update { set, timeout } => update(list, set, *timeout),
            Expression::Tproxy {
                family,
                address,
                port,
            } => tproxy(list, *family, *address, *port),
            Expression::SetMark(mark) => {
                meta(list, NFTA_META_DREG, libc::NFT_META_MARK);
                bitwise(list, &(!mark.mask).to_ne_bytes(), &mark.value.to_ne_bytes());
                meta(list, NFTA_META_SREG, libc::NFT_META_MARK);
            }
            Expression::SetConnectionMark(mark) => {
                conntrack_mark(list, NFTA_CT_DREG);
                bitwise(list, &(!mark.mask).to_ne_bytes(), &mark.value.to_ne_bytes());
                conntrack_mark(list, NFTA_CT_SREG);
            }
            Expression::SetMeta(key, bytes) => {
                load(list, VALUE, bytes);
                meta(list, NFTA_META_SREG, *key);
            }
            Expression::MapInputDevice(map) => map_input_device(list, map),
            Expression::SetEtherDestination => {
                let field = nft::ETHER_DESTINATION;
                payload(list, NFTA_PAYLOAD_SREG, ETHER_ADDRESS, field);
            }
            Expression::Verdict(code) => verdict(list, *code, None),
            Expression::Jump(chain) => verdict(list, libc::NFT_JUMP, Some(chain)),
        }
    }
}

/// Appends one expression to the list of a rule.
fn element(list: &mut Message, name: &str, fill: impl FnOnce(&mut Message)) {
    list.nest(NFTA_LIST_ELEM, |element| {
        element
            .put_text(NFTA_EXPR_NAME, name)
            .nest(NFTA_EXPR_DATA, fill);
    });
}

/// Appends an attribute that holds data for a register.
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

fn compare(list: &mut Message, negated: bool, bytes: &[u8]) {
    let operator = [libc::NFT_CMP_EQ, libc::NFT_CMP_NEQ][usize::from(negated)];
    element(list, "cmp", |data| {
        data.put_be32(NFTA_CMP_SREG, VALUE as u32)
            .put_be32(NFTA_CMP_OP, operator as u32);
        value(data, NFTA_CMP_DATA, bytes);
    });
}

fn range(list: &mut Message, negated: bool, from: &[u8], to: &[u8]) {
    let operator = [libc::NFT_RANGE_EQ, libc::NFT_RANGE_NEQ][usize::from(negated)];
    element(list, "range", |data| {
        data.put_be32(NFTA_RANGE_SREG, VALUE as u32)
            .put_be32(NFTA_RANGE_OP, operator as u32);
        value(data, NFTA_RANGE_FROM_DATA, from);
        value(data, NFTA_RANGE_TO_DATA, to);
    });
}

fn lookup(list: &mut Message, negated: bool, set: &str, id: Option<u32>) {
    let flags = [0, libc::NFT_LOOKUP_F_INV][usize::from(negated)];
    element(list, "lookup", |data| {
        data.put_text(NFTA_LOOKUP_SET, set);
        if let Some(id) = id {
            data.put_be32(NFTA_LOOKUP_SET_ID, id);
        }
        data.put_be32(NFTA_LOOKUP_SREG, VALUE as u32)
            .put_be32(NFTA_LOOKUP_FLAGS, flags as u32);
    });
}

fn map_input_device(list: &mut Message, map: &str) {
    meta(list, NFTA_META_DREG, libc::NFT_META_IIF);
    element(list, "lookup", |data| {
        data.put_text(NFTA_LOOKUP_SET, map)
            .put_be32(NFTA_LOOKUP_SREG, VALUE as u32)
            .put_be32(NFTA_LOOKUP_DREG, ETHER_ADDRESS as u32);
    });
}

/// `direction` is `NFTA_META_DREG` to load the value, `NFTA_META_SREG` to set it.
fn meta(list: &mut Message, direction: u16, key: c_int) {
    element(list, "meta", |data| {
        data.put_be32(direction, VALUE as u32)
            .put_be32(NFTA_META_KEY, key as u32);
    });
}

/// `direction` is `NFTA_CT_DREG` to load the mark, `NFTA_CT_SREG` to set it.
fn conntrack_mark(list: &mut Message, direction: u16) {
    element(list, "ct", |data| {
        data.put_be32(direction, VALUE as u32)
            .put_be32(NFTA_CT_KEY, libc::NFT_CT_MARK as u32);
    });
}

fn address_type(list: &mut Message, of: AddressOf) {
    let address = match of {
        AddressOf::Source => NFTA_FIB_F_SADDR,
        AddressOf::Destination => NFTA_FIB_F_DADDR,
    };
    element(list, "fib", |data| {
        data.put_be32(NFTA_FIB_DREG, VALUE as u32)
            .put_be32(NFTA_FIB_RESULT, NFT_FIB_RESULT_ADDRTYPE)
            .put_be32(NFTA_FIB_FLAGS, address);
    });
}

fn concatenation(list: &mut Message, fields: &[Field]) {
    let mut register = CONCATENATION;
    for field in fields {
        payload(list, NFTA_PAYLOAD_DREG, register, *field);
        register += field.length.div_ceil(4) as c_int;
    }
}

fn update(list: &mut Message, set: &str, seconds: u32) {
    let milliseconds = u64::from(seconds) * 1000;
    element(list, "dynset", |data| {
        data.put_text(NFTA_DYNSET_SET_NAME, set)
            .put_be32(NFTA_DYNSET_OP, NFT_DYNSET_OP_UPDATE)
            .put_be32(NFTA_DYNSET_SREG_KEY, VALUE as u32)
            .put(NFTA_DYNSET_TIMEOUT, &milliseconds.to_be_bytes());
    });
}

/// `value = value & mask ^ xor`
fn bitwise(list: &mut Message, mask: &[u8], xor: &[u8]) {
    element(list, "bitwise", |data| {
        data.put_be32(NFTA_BITWISE_SREG, VALUE as u32)
            .put_be32(NFTA_BITWISE_DREG, VALUE as u32)
            .put_be32(NFTA_BITWISE_LEN, mask.len() as u32);
        value(data, NFTA_BITWISE_MASK, mask);
        value(data, NFTA_BITWISE_XOR, xor);
    });
}

/// `direction` is `NFTA_PAYLOAD_DREG` to load the field, `NFTA_PAYLOAD_SREG` to set it.
fn payload(list: &mut Message, direction: u16, register: c_int, field: Field) {
    element(list, "payload", |data| {
        data.put_be32(direction, register as u32)
            .put_be32(NFTA_PAYLOAD_BASE, field.base as u32)
            .put_be32(NFTA_PAYLOAD_OFFSET, field.offset)
            .put_be32(NFTA_PAYLOAD_LEN, field.length);
    });
}

fn tproxy(list: &mut Message, family: Family, address: Option<IpAddr>, port: u16) {
    match address {
        Some(IpAddr::V4(address)) => load(list, VALUE, &address.octets()),
        Some(IpAddr::V6(address)) => load(list, VALUE, &address.octets()),
        None => {}
    }
    match (address, port) {
        // The kernel requires an address or a port; 0 stands for the packet's own.
        (None, 0) => payload(list, NFTA_PAYLOAD_DREG, PORT, nft::DESTINATION_PORT),
        (Some(_), 0) => {}
        (_, port) => load(list, PORT, &port.to_be_bytes()),
    }
    element(list, "tproxy", |data| {
        data.put_be32(NFTA_TPROXY_FAMILY, family.number().into());
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
