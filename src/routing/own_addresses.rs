//! Lists the addresses of the node itself: the local routes of the table `local`.
//!
//! The rules leave the same addresses alone (`addrtype LOCAL`; `inet_addr_type`, net/ipv4/fib_frontend.c): those
//! of devices, and blocks that an administrator has added. The AnyIP routes of tproxy-pod are in a table of their
//! own. From rtnetlink(7).

use crate::netlink::message::{Message, Refusal, attribute};
use crate::netlink::socket::Socket;
use crate::routing::entry::route_header;
use crate::routing::installed::is_within;
use crate::routing::rtnetlink::ROUTE_HEADER;
use crate::selectors::{Cidr, Family};

/// Lists the node's own addresses of a family within `blocks`, and the blocks that overlap with those.
///
/// # Errors
/// Any error of the dump, such as `ENOBUFS`.
pub fn list(socket: &mut Socket, family: Family, blocks: &[Cidr]) -> Result<Vec<Cidr>, Refusal> {
    let header = route_header(family, 0, 0, 0, libc::RTN_LOCAL);
    let mut query = Message::new(libc::RTM_GETROUTE, libc::NLM_F_DUMP, &header);
    query.put_ne32(libc::RTA_TABLE, libc::RT_TABLE_LOCAL.into());
    // A node may have thousands of addresses elsewhere: kube-proxy adds those of all Services for IPVS.
    let overlaps = |own: &Cidr| {
        let mut blocks = blocks.iter();
        blocks.any(|block| is_within(*own, *block) || is_within(*block, *own))
    };
    let mut addresses = Vec::new();
    socket.query(query, |reply| {
        addresses.extend(read_local_route(reply.payload).filter(overlaps));
    })?;
    Ok(addresses)
}

/// Parses a local route of the table `local`: its destination.
pub fn read_local_route(payload: &[u8]) -> Option<Cidr> {
    let header: &[u8; ROUTE_HEADER] = payload.first_chunk()?;
    let (prefix, table, kind) = (header[1], header[4], header[7]);
    let family = Family::from_number(header[0])?;
    let network = attribute(&payload[ROUTE_HEADER..], libc::RTA_DST).unwrap_or(&[0; 16]);
    let destination = Cidr::new(family.read_address(network)?, prefix)?;
    (table == libc::RT_TABLE_LOCAL && kind == libc::RTN_LOCAL).then_some(destination)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::message::messages;

    fn read(family: Family, prefix: u8, table: u8, kind: u8, network: &[u8]) -> Option<String> {
        let mut header = route_header(family, prefix, 0, 0, kind);
        header[4] = table;
        let mut route = Message::new(libc::RTM_NEWROUTE, 0, &header);
        if !network.is_empty() {
            route.put(libc::RTA_DST, network);
        }
        let bytes = route.to_bytes(0);
        let route = read_local_route(messages(&bytes).next().unwrap().payload);
        route.map(|it| it.to_string())
    }

    #[test]
    fn a_local_route_is_read_and_no_other_one() {
        let local = libc::RT_TABLE_LOCAL;
        let address = [10, 244, 0, 1];
        let of_kind = |kind| read(Family::V4, 32, local, kind, &address);
        assert_eq!(of_kind(libc::RTN_LOCAL).as_deref(), Some("10.244.0.1/32"));
        for kind in [libc::RTN_UNICAST, libc::RTN_BROADCAST, libc::RTN_ANYCAST] {
            assert_eq!(of_kind(kind), None, "{kind}");
        }
        let any_ip = read(Family::V4, 32, 100, libc::RTN_LOCAL, &address);
        assert_eq!(any_ip, None, "the table of tproxy-pod");
    }

    #[test]
    fn a_local_block_is_read_with_its_prefix() {
        let read = |family, prefix, network: &[u8]| {
            let (table, kind) = (libc::RT_TABLE_LOCAL, libc::RTN_LOCAL);
            read(family, prefix, table, kind, network)
        };
        let block = [[0xfd, 0, 0, 0x10].as_slice(), &[0; 12]].concat();
        assert_eq!(
            read(Family::V6, 32, &block).as_deref(),
            Some("fd00:10::/32")
        );
        assert_eq!(read(Family::V4, 0, &[]).as_deref(), Some("0.0.0.0/0"));
        assert_eq!(read(Family::V4, 33, &[10, 244, 0, 1]), None);
        assert_eq!(read(Family::V6, 32, &[10, 244, 0, 1]), None);
    }
}
