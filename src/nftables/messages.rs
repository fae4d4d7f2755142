//! The objects of nf_tables as netlink messages: tables, chains, sets, elements and rules.
//!
//! Each function writes one request, from linux/netfilter/nf_tables.h and
//! linux/netfilter/nfnetlink.h. `batch` puts requests in order, and sends them.

use std::fmt;

use libc::c_int;

use crate::netlink::message::Message;
use crate::nftables::encode::{ANONYMOUS_SET, NFTA_LIST_ELEM, value};
use crate::nftables::nft::{ETHER_DESTINATION, Field, be_bytes};
use crate::nftables::ruleset::{Chain, CompiledRule, MapElements, NamedSet, SetKind};
use crate::rules::rule::Ranges;

/// The name of the tables.
pub const TABLE: &str = "tproxy-pod";

const NFTA_TABLE_NAME: u16 = 1;
const NFTA_TABLE_FLAGS: u16 = 2;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_SET_TABLE: u16 = 1;
const NFTA_SET_NAME: u16 = 2;
const NFTA_SET_FLAGS: u16 = 3;
const NFTA_SET_KEY_TYPE: u16 = 4;
const NFTA_SET_KEY_LEN: u16 = 5;
const NFTA_SET_DATA_TYPE: u16 = 6;
const NFTA_SET_DATA_LEN: u16 = 7;
const NFTA_SET_DESC: u16 = 9;
const NFTA_SET_DESC_SIZE: u16 = 1;
const NFTA_SET_ID: u16 = 10;
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_SET_ELEM_LIST_SET_ID: u16 = 4;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_DATA: u16 = 2;
const NFTA_SET_ELEM_FLAGS: u16 = 3;

/// Most elements in one message: an element takes up to 36 bytes, an attribute up to 65,535.
const ELEMENTS_PER_MESSAGE: usize = 1000;

/// The family of a table: the packets that its base chains see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableFamily {
    /// IPv4 and IPv6 packets.
    Inet,
    /// IPv4 packets; for a kernel without IPv6, which lacks `inet` (`NF_TABLES_INET`,
    /// net/netfilter/Kconfig).
    Ip,
    /// Frames that a bridge has received.
    Bridge,
}

impl TableFamily {
    fn nfproto(self) -> u8 {
        (match self {
            TableFamily::Inet => libc::NFPROTO_INET,
            TableFamily::Ip => libc::NFPROTO_IPV4,
            TableFamily::Bridge => libc::NFPROTO_BRIDGE,
        }) as u8
    }
}

/// Writes the family and the name of the table, as nft(8) does.
impl fmt::Display for TableFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = match self {
            TableFamily::Inet => "inet",
            TableFamily::Ip => "ip",
            TableFamily::Bridge => "bridge",
        };
        write!(f, "{family} {TABLE}")
    }
}

/// The first or the last message of a batch.
pub fn batch_frame(kind: c_int) -> Message {
    let [high, low] = (libc::NFNL_SUBSYS_NFTABLES as u16).to_be_bytes();
    let header = [libc::AF_UNSPEC as u8, libc::NFNETLINK_V0 as u8, high, low];
    Message::new(kind as u16, 0, &header)
}

/// A request to nf_tables; `struct nfgenmsg` holds the family, the version and a resource id.
fn request(family: TableFamily, kind: c_int, flags: c_int) -> Message {
    let kind = (libc::NFNL_SUBSYS_NFTABLES << 8 | kind) as u16;
    let header = [family.nfproto(), libc::NFNETLINK_V0 as u8, 0, 0];
    Message::new(kind, flags, &header)
}

/// Creates a table with these flags, or finds it with the same flags.
pub fn new_table(family: TableFamily, flags: u32) -> Message {
    let mut table = request(family, libc::NFT_MSG_NEWTABLE, libc::NLM_F_CREATE);
    table
        .put_text(NFTA_TABLE_NAME, TABLE)
        .put_be32(NFTA_TABLE_FLAGS, flags);
    table
}

/// Deletes a table.
pub fn delete_table(family: TableFamily) -> Message {
    let mut table = request(family, libc::NFT_MSG_DELTABLE, 0);
    table.put_text(NFTA_TABLE_NAME, TABLE);
    table
}

/// Requests the attributes of a table.
pub fn get_table(family: TableFamily) -> Message {
    let mut table = request(family, libc::NFT_MSG_GETTABLE, libc::NLM_F_ACK);
    table.put_text(NFTA_TABLE_NAME, TABLE);
    table
}

/// Creates a chain.
pub fn new_chain(family: TableFamily, chain: &Chain) -> Message {
    let mut new = request(family, libc::NFT_MSG_NEWCHAIN, libc::NLM_F_CREATE);
    new.put_text(NFTA_CHAIN_TABLE, TABLE)
        .put_text(NFTA_CHAIN_NAME, &chain.name);
    if let Some(hook) = chain.hook {
        new.nest(NFTA_CHAIN_HOOK, |nested| {
            nested
                .put_be32(NFTA_HOOK_HOOKNUM, hook.number as u32)
                .put_be32(NFTA_HOOK_PRIORITY, hook.priority as u32);
        })
        .put_be32(NFTA_CHAIN_POLICY, libc::NF_ACCEPT as u32)
        .put_text(NFTA_CHAIN_TYPE, hook.kind);
    }
    new
}

/// Deletes a chain, which no rule calls.
pub fn delete_chain(family: TableFamily, name: &str) -> Message {
    let mut chain = request(family, libc::NFT_MSG_DELCHAIN, 0);
    chain
        .put_text(NFTA_CHAIN_TABLE, TABLE)
        .put_text(NFTA_CHAIN_NAME, name);
    chain
}

/// Removes all rules of a table.
pub fn flush_table(family: TableFamily) -> Message {
    let mut rules = request(family, libc::NFT_MSG_DELRULE, 0);
    rules.put_text(NFTA_RULE_TABLE, TABLE);
    rules
}

/// Removes all rules of a chain.
pub fn flush_chain(family: TableFamily, chain: &str) -> Message {
    let mut rules = request(family, libc::NFT_MSG_DELRULE, 0);
    rules
        .put_text(NFTA_RULE_TABLE, TABLE)
        .put_text(NFTA_RULE_CHAIN, chain);
    rules
}

/// Appends a rule to its chain. Anonymous sets have ids from `first_set` on.
pub fn new_rule(family: TableFamily, rule: &CompiledRule, first_set: u32) -> Message {
    let flags = libc::NLM_F_CREATE | libc::NLM_F_APPEND;
    let mut new = request(family, libc::NFT_MSG_NEWRULE, flags);
    new.put_text(NFTA_RULE_TABLE, TABLE)
        .put_text(NFTA_RULE_CHAIN, &rule.chain)
        .nest(NFTA_RULE_EXPRESSIONS, |list| {
            let mut next_set = first_set;
            for expression in &rule.expressions {
                expression.write(list, &mut next_set);
            }
        });
    new
}

/// Creates a named set or map.
pub fn new_named_set(family: TableFamily, set: &NamedSet) -> Message {
    let flags = match set.kind {
        SetKind::Dynamic { .. } => libc::NFT_SET_EVAL | libc::NFT_SET_TIMEOUT,
        SetKind::EtherMap => libc::NFT_SET_MAP,
    };
    let mut new = new_set(family, &set.name, flags, set.key_type, set.key_length);
    match set.kind {
        SetKind::Dynamic { size } => new.nest(NFTA_SET_DESC, |description| {
            description.put_be32(NFTA_SET_DESC_SIZE, size);
        }),
        SetKind::EtherMap => new
            .put_be32(NFTA_SET_DATA_TYPE, ETHER_DESTINATION.key_type)
            .put_be32(NFTA_SET_DATA_LEN, ETHER_DESTINATION.length),
    };
    // The kernel requires an id, although only the name is used.
    new.put_be32(NFTA_SET_ID, u32::MAX);
    new
}

/// Creates an anonymous set.
pub fn new_anonymous_set(family: TableFamily, id: u32, field: Field) -> Message {
    let flags = libc::NFT_SET_ANONYMOUS | libc::NFT_SET_CONSTANT | libc::NFT_SET_INTERVAL;
    let mut new = new_set(family, ANONYMOUS_SET, flags, field.key_type, field.length);
    new.put_be32(NFTA_SET_ID, id);
    new
}

fn new_set(family: TableFamily, name: &str, flags: c_int, key_type: u32, length: u32) -> Message {
    let mut new = request(family, libc::NFT_MSG_NEWSET, libc::NLM_F_CREATE);
    new.put_text(NFTA_SET_TABLE, TABLE)
        .put_text(NFTA_SET_NAME, name)
        .put_be32(NFTA_SET_FLAGS, flags as u32)
        .put_be32(NFTA_SET_KEY_TYPE, key_type)
        .put_be32(NFTA_SET_KEY_LEN, length);
    new
}

/// Adds the elements of an anonymous set: for each range its first value, and the first value after
/// it as the end of the interval.
pub fn interval_elements(
    family: TableFamily,
    id: u32,
    field: Field,
    ranges: &Ranges,
) -> Vec<Message> {
    let length = field.length;
    let highest = u128::MAX >> (128 - 8 * length);
    let bounds: Vec<(u128, c_int)> = ranges
        .iter()
        .flat_map(|range| {
            let end = (*range.end() < highest)
                .then(|| (range.end() + 1, libc::NFT_SET_ELEM_INTERVAL_END));
            std::iter::once((*range.start(), 0)).chain(end)
        })
        .collect();
    let message = |bounds: &[(u128, c_int)]| {
        let mut new = elements(family, libc::NFT_MSG_NEWSETELEM, ANONYMOUS_SET);
        new.put_be32(NFTA_SET_ELEM_LIST_SET_ID, id)
            .nest(NFTA_SET_ELEM_LIST_ELEMENTS, |list| {
                for (bound, flags) in bounds {
                    list.nest(NFTA_LIST_ELEM, |element| {
                        value(element, NFTA_SET_ELEM_KEY, &be_bytes(*bound, length));
                        if *flags != 0 {
                            element.put_be32(NFTA_SET_ELEM_FLAGS, *flags as u32);
                        }
                    });
                }
            });
        new
    };
    bounds.chunks(ELEMENTS_PER_MESSAGE).map(message).collect()
}

/// Replaces the elements of a map.
pub fn map_elements(family: TableFamily, map: &MapElements) -> Vec<Message> {
    let flush = elements(family, libc::NFT_MSG_DELSETELEM, &map.map);
    let message = |pairs: &[(u32, [u8; 6])]| {
        let mut new = elements(family, libc::NFT_MSG_NEWSETELEM, &map.map);
        new.nest(NFTA_SET_ELEM_LIST_ELEMENTS, |list| {
            for (index, address) in pairs {
                list.nest(NFTA_LIST_ELEM, |element| {
                    value(element, NFTA_SET_ELEM_KEY, &index.to_ne_bytes());
                    value(element, NFTA_SET_ELEM_DATA, address);
                });
            }
        });
        new
    };
    let chunks = map.elements.chunks(ELEMENTS_PER_MESSAGE);
    std::iter::once(flush).chain(chunks.map(message)).collect()
}

fn elements(family: TableFamily, kind: c_int, set: &str) -> Message {
    let flags = match kind {
        libc::NFT_MSG_NEWSETELEM => libc::NLM_F_CREATE,
        _ => 0,
    };
    let mut elements = request(family, kind, flags);
    elements
        .put_text(NFTA_SET_ELEM_LIST_TABLE, TABLE)
        .put_text(NFTA_SET_ELEM_LIST_SET, set);
    elements
}
