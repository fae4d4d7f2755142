//! Lists the routes of the node: which captured blocks are without one, and which other blocks, that may hold
//! Pods, it routes. `node_routes` says what counts. From rtnetlink(7).

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::error::Error;
use crate::netlink::message::{Message, attribute};
use crate::netlink::socket::Socket;
use crate::routing::entry::route_header;
use crate::routing::node_routes::{NextHop, NodeRoute, read_node_route};
use crate::routing::rtnetlink::{self, IFI_FLAGS, IFI_INDEX, IFINFOMSG};
use crate::selectors::{self, Cidr, Family};

/// Most routes that a warning names: to devices, and through other nodes.
const MAX_DEVICES: usize = 3;
const MAX_GATEWAYS: usize = 2;

/// Most routes of one kind from which those are chosen.
const MAX_CANDIDATES: usize = 32;

/// The blocks into which no route leads, and where the node does route.
#[derive(Debug, Default)]
pub struct Survey {
    /// The blocks into which no route leads.
    unrouted: Vec<Cidr>,
    /// The routes to name instead, for each family of such a block.
    instead: Vec<(Family, String)>,
}

impl Survey {
    /// What to say of a block into which no route leads; `None` if one does.
    pub fn warning(&self, block: Cidr) -> Option<String> {
        self.unrouted.contains(&block).then(|| {
            let mut instead = self.instead.iter();
            let instead = instead.find(|(family, _)| *family == block.family());
            let routes = instead.map_or("", |(_, routes)| routes);
            format!(
                "No route of this node leads into {block}: it probably holds no Pods.{routes} See --cidr"
            )
        })
    }
}

/// Lists the node's routes, of all tables but `own_table`. A list of 100,000 routes takes the kernel some
/// 50 ms.
///
/// # Errors
/// Any error of the dump, such as `ENOBUFS`.
pub fn survey(socket: &mut Socket, blocks: &[Cidr], own_table: u32) -> Result<Survey, Error> {
    let fault = |refusal| rtnetlink::error("list the routes of the node", refusal);
    let mut survey = Survey {
        unrouted: blocks.to_vec(),
        ..Survey::default()
    };
    for family in selectors::families(blocks) {
        let mut candidates = Candidates::default();
        let header = route_header(family, 0, 0, 0, 0);
        let query = Message::new(libc::RTM_GETROUTE, libc::NLM_F_DUMP, &header);
        socket
            .query(query, |reply| {
                // A kernel without the family lists another one.
                if let Some(route) = read_node_route(own_table, reply.payload)
                    && route.destination.family() == family
                {
                    survey.unrouted.retain(|block| !route.leads_into(*block));
                    candidates.add(route);
                }
            })
            .map_err(fault)?;
        if survey.unrouted.iter().any(|it| it.family() == family) {
            let routes = candidates.text(|device| device_name(socket, device));
            survey.instead.push((family, routes));
        }
    }
    Ok(survey)
}

/// The name of the device with this index; the index if the device is gone.
fn device_name(socket: &mut Socket, index: u32) -> String {
    let mut header = [0; IFINFOMSG];
    header[IFI_INDEX..IFI_FLAGS].copy_from_slice(&index.to_ne_bytes());
    let mut name = None;
    let query = Message::new(libc::RTM_GETLINK, libc::NLM_F_ACK, &header);
    let _ = socket.query(query, |reply| {
        let attributes = reply.payload.get(IFINFOMSG..).unwrap_or_default();
        name = attribute(attributes, libc::IFLA_IFNAME).map(|name| {
            let name = String::from_utf8_lossy(name);
            name.trim_end_matches('\0').to_owned()
        });
    });
    name.unwrap_or_else(|| format!("device {index}"))
}

/// Routes of one family that may lead to Pods. However many are added, few are kept.
#[derive(Debug, Default)]
struct Candidates {
    /// Routes to single addresses.
    single: Vec<NodeRoute>,
    /// Other routes to devices, and blackholes.
    local: Vec<NodeRoute>,
    /// Other routes to gateways.
    remote: Vec<NodeRoute>,
    has_more: bool,
    /// All gateways. The network of a device that contains one is that of nodes and routers.
    gateways: BTreeSet<IpAddr>,
}

impl Candidates {
    fn add(&mut self, route: NodeRoute) {
        if let NextHop::Gateway(gateway) = route.next_hop {
            self.gateways.insert(gateway);
        }
        if route.is_aggregate() {
            return;
        }
        let (list, most) = match route.next_hop {
            NextHop::Node => return,
            _ if route.is_single_address() => (&mut self.single, MAX_CANDIDATES),
            NextHop::Gateway(_) => (&mut self.remote, MAX_GATEWAYS),
            NextHop::Device(_) | NextHop::Blackhole => (&mut self.local, MAX_CANDIDATES),
        };
        let is_known = list.iter().any(|it| it.destination == route.destination);
        match !is_known && list.len() < most {
            true => list.push(route),
            // Further single addresses belong to the one item for all of them.
            false => self.has_more |= !is_known && !route.is_single_address(),
        }
    }

    /// The sentence that names the routes, after a blank; empty if there are none.
    fn text(mut self, mut device_name: impl FnMut(u32) -> String) -> String {
        let has_gateway = |it: &NodeRoute| {
            let mut gateways = self.gateways.iter();
            matches!(it.next_hop, NextHop::Device(_))
                && gateways.any(|gateway| it.destination.contains(*gateway))
        };
        self.single.retain(|it| !has_gateway(it));
        self.local.retain(|it| !has_gateway(it));
        self.has_more |= self.local.len() > MAX_DEVICES;
        self.local.truncate(MAX_DEVICES);
        let mut item = |destination: String, next_hop| match next_hop {
            NextHop::Device(device) => format!("{destination} ({})", device_name(device)),
            NextHop::Gateway(gateway) => format!("{destination} via {gateway}"),
            NextHop::Blackhole | NextHop::Node => format!("{destination} (blackhole)"),
        };
        let mut items = match self.single[..] {
            [] => Vec::new(),
            [one] => vec![item(one.destination.to_string(), one.next_hop)],
            [first, ..] => {
                let first_address = first.destination.network();
                vec![item(
                    format!("addresses such as {first_address}"),
                    first.next_hop,
                )]
            }
        };
        for route in self.local.iter().chain(&self.remote) {
            items.push(item(route.destination.to_string(), route.next_hop));
        }
        if self.has_more {
            items.push("and others".to_owned());
        }
        match items.is_empty() {
            true => String::new(),
            false => format!(" The node routes {}.", items.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(destination: &str, index: u32) -> NodeRoute {
        NodeRoute {
            destination: destination.parse().unwrap(),
            next_hop: NextHop::Device(index),
        }
    }

    fn gateway(destination: &str, gateway: &str) -> NodeRoute {
        NodeRoute {
            next_hop: NextHop::Gateway(gateway.parse().unwrap()),
            ..device(destination, 0)
        }
    }

    fn blackhole(destination: &str) -> NodeRoute {
        NodeRoute {
            next_hop: NextHop::Blackhole,
            ..device(destination, 0)
        }
    }

    fn text(routes: impl IntoIterator<Item = NodeRoute>) -> String {
        let mut candidates = Candidates::default();
        routes.into_iter().for_each(|route| candidates.add(route));
        candidates.text(|index| format!("eth{index}"))
    }

    #[test]
    fn devices_of_pods_and_neighbours_are_named_but_not_the_network_of_the_nodes() {
        let routes = [
            gateway("0.0.0.0/0", "192.0.2.1"),
            device("192.0.2.0/24", 0),
            device("10.42.0.0/24", 1),
            gateway("10.42.1.0/24", "192.0.2.12"),
        ];
        let named = " The node routes 10.42.0.0/24 (eth1), 10.42.1.0/24 via 192.0.2.12.";
        assert_eq!(text(routes), named);
        assert_eq!(text(routes[..2].iter().copied()), "");
    }

    #[test]
    fn routes_to_single_pods_are_one_item() {
        let router = [gateway("0.0.0.0/0", "10.128.0.1"), device("10.128.0.1", 0)];
        let pods = (2..200).map(|host| device(&format!("10.42.0.{host}"), host));
        let own = [blackhole("10.42.0.0/26")];
        let named =
            " The node routes addresses such as 10.42.0.2 (eth2), 10.42.0.0/26 (blackhole).";
        assert_eq!(text(router.into_iter().chain(pods).chain(own)), named);
        let one = " The node routes fd00::5/128 (eth3).";
        assert_eq!(text([device("fd00::5", 3)]), one);
    }

    #[test]
    fn of_a_hundred_thousand_routes_five_are_named() {
        let devices = (0..1000).map(|at| device(&format!("10.{}.{}.0/24", at >> 8, at & 255), 1));
        let gateways = (0..100_000u32).map(|at| {
            let [high, middle, low, _] = (at << 9).to_be_bytes();
            gateway(&format!("{}.{middle}.{low}.0/23", high + 11), "192.0.2.12")
        });
        let named = text(devices.chain(gateways));
        let expected = " The node routes 10.0.0.0/24 (eth1), 10.0.1.0/24 (eth1), 10.0.2.0/24 (eth1), \
                        11.0.0.0/23 via 192.0.2.12, 11.0.2.0/23 via 192.0.2.12, and others.";
        assert_eq!(named, expected);
    }

    #[test]
    fn a_whole_range_of_private_addresses_and_the_nodes_own_are_not_named() {
        let own = NodeRoute {
            next_hop: NextHop::Node,
            ..device("10.42.0.1", 1)
        };
        assert_eq!(text([device("10.0.0.0/8", 1), own]), "");
    }
}
