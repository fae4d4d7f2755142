//! Which captured blocks the node has a route into. A block without one probably holds no Pods: the node
//! belongs to a cluster with other Pod CIDRs.
//!
//! A route leads into a block if its destination
//!
//! - lies within the block or equals it: a Pod, a node's share of the Pods, an address of the node, or the
//!   blackhole that a CNI plugin adds for the share of this node (Calico);
//! - or contains the block, as the route to a node's share contains the block of one Pod. Default routes, and
//!   routes to a whole range of private addresses or to more (`10.0.0.0/8` to a VPN), say nothing of Pods.
//!
//! Routes of tproxy-pod, and the table that is for them, count for nothing. Nothing is listed here: that does
//! `block_survey`. From rtnetlink(7) and linux/rtnetlink.h.

use std::net::IpAddr;

use crate::netlink::message::{ReceivedMessage, attribute, attributes, u32_at};
use crate::routing::entry::PROTOCOL;
use crate::routing::installed::is_within;
use crate::routing::rtnetlink::ROUTE_HEADER;
use crate::selectors::{Cidr, Family};

/// Offset of the flags in `struct rtmsg`
const RTM_FLAGS: usize = 8;
/// `sizeof(struct rtnexthop)`: length, flags, hops, device index
const RTNEXTHOP: usize = 8;
/// Offset of the device index in `struct rtnexthop`
const RTNH_IFINDEX: usize = 4;

/// Longest prefix of a route that contains a block and says nothing of it: `10.0.0.0/8`, `fd00::/8`,
/// `fc00::/7`, `2000::/3`.
const MAX_AGGREGATE: u8 = 8;

/// The ranges of private addresses with a longer prefix (RFC 1918, RFC 6598).
const PRIVATE: [([u8; 4], u8); 3] = [
    ([172, 16, 0, 0], 12),
    ([192, 168, 0, 0], 16),
    ([100, 64, 0, 0], 10),
];

/// A route of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeRoute {
    /// The block that it is for.
    pub destination: Cidr,
    /// Where packets go.
    pub next_hop: NextHop,
}

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextHop {
    /// To the node itself (`RTN_LOCAL`): the destination is an address of the node.
    Node,
    /// Nowhere (`RTN_BLACKHOLE`).
    Blackhole,
    /// To the network of the device with this index.
    Device(u32),
    /// To a gateway.
    Gateway(IpAddr),
}

impl NodeRoute {
    /// Whether the route shows that the node has to do with addresses of `block`.
    pub fn leads_into(&self, block: Cidr) -> bool {
        let forwards = matches!(self.next_hop, NextHop::Device(_) | NextHop::Gateway(_));
        self.destination.prefix() != 0
            && (is_within(self.destination, block)
                || forwards && is_within(block, self.destination) && !self.is_aggregate())
    }

    /// Whether the destination is a whole range of private addresses, or more.
    pub fn is_aggregate(&self) -> bool {
        let range = |(network, prefix): ([u8; 4], u8)| Cidr::new(network.into(), prefix);
        let mut private = PRIVATE.into_iter().filter_map(range);
        self.destination.prefix() <= MAX_AGGREGATE
            || private.any(|range| is_within(range, self.destination))
    }

    /// Whether the destination is one address.
    pub fn is_single_address(&self) -> bool {
        self.destination.prefix() == self.destination.family().address_bits()
    }
}

/// Parses a route that may lead to Pods: `None` for one of tproxy-pod or in its table, for one to addresses
/// that no Pod has (loopback, link-local), and for broadcast, multicast and other types.
pub fn read_node_route(own_table: u32, payload: &[u8]) -> Option<NodeRoute> {
    let header: &[u8; ROUTE_HEADER] = payload.first_chunk()?;
    let family = Family::from_number(header[0])?;
    let (prefix, mut table) = (header[1], u32::from(header[4]));
    let (protocol, kind) = (header[5], header[7]);
    let is_cached = u32_at(header, RTM_FLAGS)? & libc::RTM_F_CLONED != 0;
    let mut network = family.read_address(&[0; 16])?;
    let (mut device, mut gateway) = (None, None);
    for (kind, value) in attributes(&payload[ROUTE_HEADER..]) {
        match kind {
            libc::RTA_DST => network = family.read_address(value)?,
            libc::RTA_TABLE => table = u32_at(value, 0)?,
            libc::RTA_OIF => device = u32_at(value, 0),
            libc::RTA_GATEWAY => gateway = family.read_address(value),
            libc::RTA_MULTIPATH => (device, gateway) = read_first_hop(family, value),
            _ => {}
        }
    }
    let next_hop = match (kind, gateway, device) {
        (libc::RTN_LOCAL, ..) => NextHop::Node,
        (libc::RTN_BLACKHOLE, ..) => NextHop::Blackhole,
        (libc::RTN_UNICAST, Some(gateway), _) => NextHop::Gateway(gateway),
        (libc::RTN_UNICAST, None, Some(device)) => NextHop::Device(device),
        _ => return None,
    };
    let is_own = protocol == PROTOCOL || table == own_table;
    let is_for_pods = !is_own && !is_cached && !is_link_local(network);
    is_for_pods.then_some(NodeRoute {
        destination: Cidr::new(network, prefix)?,
        next_hop,
    })
}

/// Device index and gateway of the first of several next hops (`struct rtnexthop`).
fn read_first_hop(family: Family, hops: &[u8]) -> (Option<u32>, Option<IpAddr>) {
    let length = hops.first_chunk().map_or(0, |it| u16::from_ne_bytes(*it));
    let hop = hops.get(..length.into()).unwrap_or_default();
    let gateway = attribute(hop.get(RTNEXTHOP..).unwrap_or_default(), libc::RTA_GATEWAY);
    let gateway = gateway.and_then(|it| family.read_address(it));
    (u32_at(hop, RTNH_IFINDEX), gateway)
}

/// Whether an address is valid on one link or one node only.
fn is_link_local(address: IpAddr) -> bool {
    address.is_loopback()
        || match address {
            IpAddr::V4(address) => address.is_link_local(),
            IpAddr::V6(address) => address.is_unicast_link_local(),
        }
}

/// Whether a notification reports a new route that may lead into one of `blocks`; a list of all routes
/// says whether it does.
pub fn may_lead_into(blocks: &[Cidr], message: ReceivedMessage<'_>) -> bool {
    !blocks.is_empty()
        && message.kind == libc::RTM_NEWROUTE
        && read_node_route(libc::RT_TABLE_UNSPEC.into(), message.payload)
            .is_some_and(|route| blocks.iter().any(|block| route.leads_into(*block)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::message::{Message, messages};
    use crate::routing::entry::{Entry, route_header};

    const TABLE: u32 = 100;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    /// A message about a route of the main table, without next hop.
    fn message(destination: &str, kind: u8) -> Message {
        let destination = cidr(destination);
        let header = route_header(destination.family(), destination.prefix(), 0, 0, kind);
        let mut message = Message::new(libc::RTM_NEWROUTE, 0, &header);
        match destination.network() {
            IpAddr::V4(network) => message.put(libc::RTA_DST, &network.octets()),
            IpAddr::V6(network) => message.put(libc::RTA_DST, &network.octets()),
        };
        message.put_ne32(libc::RTA_TABLE, libc::RT_TABLE_MAIN.into());
        message
    }

    /// A message about a route to the device with the index 7.
    fn to_device(destination: &str) -> Message {
        let mut message = message(destination, libc::RTN_UNICAST);
        message.put_ne32(libc::RTA_OIF, 7);
        message
    }

    fn read(message: &Message) -> Option<NodeRoute> {
        let bytes = message.to_bytes(0);
        read_node_route(TABLE, messages(&bytes).next().unwrap().payload)
    }

    fn next_hop(message: &Message) -> Option<NextHop> {
        read(message).map(|route| route.next_hop)
    }

    #[test]
    fn a_route_is_read_with_its_next_hop() {
        let device = to_device("10.42.0.0/24");
        let route = NodeRoute {
            destination: cidr("10.42.0.0/24"),
            next_hop: NextHop::Device(7),
        };
        assert_eq!(read(&device), Some(route));
        let mut gateway = device;
        gateway.put(libc::RTA_GATEWAY, &[192, 0, 2, 12]);
        let neighbour = Some(NextHop::Gateway([192, 0, 2, 12].into()));
        assert_eq!(next_hop(&gateway), neighbour);
        for (kind, expected) in [
            (libc::RTN_LOCAL, Some(NextHop::Node)),
            (libc::RTN_BLACKHOLE, Some(NextHop::Blackhole)),
            (libc::RTN_UNICAST, None),
            (libc::RTN_BROADCAST, None),
            (libc::RTN_MULTICAST, None),
        ] {
            assert_eq!(next_hop(&message("fd00:42::/64", kind)), expected);
        }
    }

    #[test]
    fn of_several_next_hops_the_first_is_read() {
        let mut route = message("10.42.1.0/24", libc::RTN_UNICAST);
        let hop = |gateway: [u8; 4]| {
            let mut hop = vec![16, 0, 0, 0, 7, 0, 0, 0, 8, 0, libc::RTA_GATEWAY as u8, 0];
            hop.extend(gateway);
            hop
        };
        let hops = [hop([192, 0, 2, 12]), hop([192, 0, 2, 13])].concat();
        route.put(libc::RTA_MULTIPATH, &hops);
        let first = Some(NextHop::Gateway([192, 0, 2, 12].into()));
        assert_eq!(next_hop(&route), first);
        for length in 0..hops.len() {
            let mut cut = message("10.42.1.0/24", libc::RTN_UNICAST);
            cut.put(libc::RTA_MULTIPATH, &hops[..length]);
            assert_eq!(next_hop(&cut), first.filter(|_| length >= 16), "{length}");
        }
    }

    #[test]
    fn routes_of_tproxy_pod_and_those_that_no_pod_can_use_are_not_read() {
        let own = |table| {
            let cidr = cidr("10.244.0.0/16");
            Entry::AnyIpRoute { cidr, table }.add_request()
        };
        assert_eq!(read(&own(TABLE)), None);
        assert_eq!(read(&own(77)), None, "of an earlier start");
        let mut foreign = to_device("10.244.3.0/24");
        foreign.put_ne32(libc::RTA_TABLE, TABLE);
        assert_eq!(read(&foreign), None, "in the table of tproxy-pod");
        for destination in ["127.0.0.0/8", "169.254.0.0/16", "fe80::/64", "::1"] {
            assert_eq!(read(&to_device(destination)), None, "{destination}");
        }
    }

    #[test]
    fn a_route_leads_into_the_blocks_around_it_and_into_parts_of_it() {
        for (block, destination, leads) in [
            ("10.244.0.0/16", "10.244.3.0/24", true),
            ("10.244.0.0/16", "10.244.0.0/16", true),
            ("10.244.0.0/16", "10.244.3.7", true),
            ("10.244.3.7", "10.244.3.0/24", true),
            ("192.168.0.0/16", "192.168.0.0/16", true),
            ("fd00:10:244::/56", "fd00:10:244:1::/64", true),
            ("fd00:10:244:1::5", "fd00:10:244:1::/64", true),
            ("10.244.0.0/16", "10.245.0.0/16", false),
            ("10.244.0.0/16", "fd00::/64", false),
            // Default routes, and routes that VPNs use in their place.
            ("10.244.0.0/16", "0.0.0.0/0", false),
            ("0.0.0.0/0", "0.0.0.0/0", false),
            ("10.244.0.0/16", "0.0.0.0/1", false),
            ("fd00:10:244::/56", "::/0", false),
            ("2001:db8:1::/64", "2000::/3", false),
            // A whole range of private addresses.
            ("10.244.0.0/16", "10.0.0.0/8", false),
            ("172.20.0.0/16", "172.16.0.0/12", false),
            ("192.168.7.0/24", "192.168.0.0/16", false),
            ("100.64.7.0/24", "100.64.0.0/10", false),
            ("fd00:10:244::/56", "fc00::/7", false),
            ("fd00:10:244::/56", "fd00::/8", false),
        ] {
            let route = read(&to_device(destination)).unwrap();
            let name = format!("{destination} into {block}");
            assert_eq!(route.leads_into(cidr(block)), leads, "{name}");
        }
    }

    #[test]
    fn an_address_of_the_node_and_a_blackhole_lie_within_a_block_but_lead_to_no_part_of_them() {
        for kind in [libc::RTN_LOCAL, libc::RTN_BLACKHOLE] {
            let route = read(&message("10.244.3.0/24", kind)).unwrap();
            assert!(route.leads_into(cidr("10.244.0.0/16")));
            assert!(!route.leads_into(cidr("10.244.3.0/28")));
        }
    }

    #[test]
    fn only_a_new_route_into_a_block_is_reported() {
        let blocks = [cidr("192.168.0.0/16"), cidr("fd00:10:244::/56")];
        let reported = |blocks: &[Cidr], message: &Message| {
            let bytes = message.to_bytes(0);
            may_lead_into(blocks, messages(&bytes).next().unwrap())
        };
        assert!(reported(&blocks, &to_device("192.168.3.0/24")));
        assert!(reported(&blocks, &to_device("fd00:10:244:1::/64")));
        assert!(!reported(&blocks, &to_device("10.42.0.0/24")));
        assert!(!reported(&[], &to_device("192.168.3.0/24")));
        let header = route_header(blocks[0].family(), 16, 0, 0, libc::RTN_LOCAL);
        let mut deleted = Message::new(libc::RTM_DELROUTE, 0, &header);
        deleted.put(libc::RTA_DST, &[192, 168, 0, 0]);
        assert!(!reported(&blocks, &deleted));
    }
}
