//! Header fields as nf_tables addresses them, and the numbers of nft(8) for their types.
//!
//! The kernel only stores the types; nft(8) needs them to list a set. Offsets are those of IEEE 802.3,
//! RFC 791, 3.1, RFC 792, RFC 8200, 3, RFC 4443, 2.1, and RFC 9293, 3.1; types are those of nft's
//! include/datatype.h.

use libc::c_int;

use crate::selectors::Family;

/// A field of a packet's headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// The header (`NFT_PAYLOAD_…`).
    pub base: c_int,
    /// Offset in the header, in bytes.
    pub offset: u32,
    /// Length, in bytes.
    pub length: u32,
    /// The type's number for nft(8).
    pub key_type: u32,
}

const LINK_LAYER: c_int = libc::NFT_PAYLOAD_LL_HEADER;
const NETWORK: c_int = libc::NFT_PAYLOAD_NETWORK_HEADER;
const TRANSPORT: c_int = libc::NFT_PAYLOAD_TRANSPORT_HEADER;

const TYPE_IPADDR: u32 = 7;
const TYPE_IP6ADDR: u32 = 8;
const TYPE_ETHERADDR: u32 = 9;
const TYPE_ETHERTYPE: u32 = 10;
const TYPE_INET_SERVICE: u32 = 13;
const TYPE_ICMP_TYPE: u32 = 14;
const TYPE_TCP_FLAG: u32 = 15;
const TYPE_ICMP6_TYPE: u32 = 29;
/// The index of a network device
pub const TYPE_IFINDEX: u32 = 20;

/// Bits of one type in the type of a concatenation (`TYPE_BITS`); the first field has the highest
const TYPE_BITS: u32 = 6;

/// `ether daddr`
pub const ETHER_DESTINATION: Field = field(LINK_LAYER, 0, 6, TYPE_ETHERADDR);
/// `ether type`; in a frame with a VLAN tag, the type of the tag
pub const ETHER_TYPE: Field = field(LINK_LAYER, 12, 2, TYPE_ETHERTYPE);
/// `tcp sport`, `udp sport`
pub const SOURCE_PORT: Field = field(TRANSPORT, 0, 2, TYPE_INET_SERVICE);
/// `tcp dport`, `udp dport`
pub const DESTINATION_PORT: Field = field(TRANSPORT, 2, 2, TYPE_INET_SERVICE);
/// `tcp flags`
pub const TCP_FLAGS: Field = field(TRANSPORT, 13, 1, TYPE_TCP_FLAG);

/// `ip saddr`, `ip6 saddr`
pub fn source_address(family: Family) -> Field {
    match family {
        Family::V4 => field(NETWORK, 12, 4, TYPE_IPADDR),
        Family::V6 => field(NETWORK, 8, 16, TYPE_IP6ADDR),
    }
}

/// `ip daddr`, `ip6 daddr`
pub fn destination_address(family: Family) -> Field {
    match family {
        Family::V4 => field(NETWORK, 16, 4, TYPE_IPADDR),
        Family::V6 => field(NETWORK, 24, 16, TYPE_IP6ADDR),
    }
}

/// `icmp type`, `icmpv6 type`
pub fn icmp_type(family: Family) -> Field {
    let key_type = match family {
        Family::V4 => TYPE_ICMP_TYPE,
        Family::V6 => TYPE_ICMP6_TYPE,
    };
    field(TRANSPORT, 0, 1, key_type)
}

/// The same field of the packet that an ICMP error contains, from its IP header on: after 8 bytes of ICMP.
/// Options of IPv4 and extension headers of IPv6 are not skipped.
pub fn in_icmp_error(of: Field, family: Family) -> Field {
    let ip_header = match (of.base, family) {
        (NETWORK, _) => 0,
        (_, Family::V4) => 20,
        (_, Family::V6) => 40,
    };
    Field {
        base: TRANSPORT,
        offset: 8 + ip_header + of.offset,
        ..of
    }
}

/// The type of a key that concatenates these fields.
pub fn concatenated_type(fields: &[Field]) -> u32 {
    let pack = |packed, field: &Field| (packed << TYPE_BITS) | field.key_type;
    fields.iter().fold(0, pack)
}

/// The length of a key that concatenates these fields, in bytes: each is padded to a register of 4.
pub fn concatenated_length(fields: &[Field]) -> u32 {
    let lengths = fields.iter().map(|field| field.length);
    lengths.map(|length| length.next_multiple_of(4)).sum()
}

const fn field(base: c_int, offset: u32, length: u32, key_type: u32) -> Field {
    Field {
        base,
        offset,
        length,
        key_type,
    }
}

/// The lowest `length` bytes of a number, in network order.
pub fn be_bytes(number: u128, length: u32) -> Vec<u8> {
    number.to_be_bytes()[16 - length as usize..].to_vec()
}
