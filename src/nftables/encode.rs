//! The netlink attributes of expressions.
//!
//! Attributes and registers are those of linux/netfilter/nf_tables.h; numbers in attributes are in network
//! order.

use std::net::IpAddr;

use libc::c_int;

use crate::netlink::message::Message;
use crate::nftables::expression::Expression;
use crate::nftables::nft::{self, Field};
use crate::rules::rule::AddressOf;
use crate::selectors::Family;

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
const NFT_DYNSET_OP_DELETE: u32 = 2;
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

impl Expression {
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
            Expression::Update { set, timeout } => {
                dynset(list, NFT_DYNSET_OP_UPDATE, set, *timeout);
            }
            Expression::Delete(set) => dynset(list, NFT_DYNSET_OP_DELETE, set, 0),
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
            Expression::Goto(chain) => verdict(list, libc::NFT_GOTO, Some(chain)),
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

/// `operation` is `NFT_DYNSET_OP_UPDATE` or `NFT_DYNSET_OP_DELETE`, which ignores the time-out.
fn dynset(list: &mut Message, operation: u32, set: &str, seconds: u32) {
    let milliseconds = u64::from(seconds) * 1000;
    element(list, "dynset", |data| {
        data.put_text(NFTA_DYNSET_SET_NAME, set)
            .put_be32(NFTA_DYNSET_OP, operation)
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
