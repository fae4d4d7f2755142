//! Packets for the evaluation of rules, and their verdicts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use tproxy_pod::rules::rule::{AddressOf, PortOf, Protocol, Test};
use tproxy_pod::rules::script::{OUTPUT, PREROUTING, Script};
use tproxy_pod::selectors::Family;

/// A packet, and what the node knows about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Address family.
    pub family: Family,
    /// TCP, UDP or ICMP.
    pub protocol: Protocol,
    /// Source and destination address, as numbers.
    pub addresses: [u128; 2],
    /// Source and destination port.
    pub ports: [u16; 2],
    /// Byte 13 of the TCP header.
    pub flags: u8,
    /// fwmark
    pub mark: u32,
    /// Mark of its conntrack entry, if it has one.
    pub connection_mark: Option<u32>,
    /// Whether the node itself sends it.
    pub is_sent: bool,
    /// Input interface; empty if the node itself sends it.
    pub interface: String,
    /// Whether source and destination address are the node's own.
    pub is_local: [bool; 2],
    /// Socket to which it belongs.
    pub socket: Option<Owner>,
    /// Whether TPROXY finds a listener.
    pub has_listener: bool,
    /// Whether TPROXY has taken a SYN of its connection.
    pub is_remembered: bool,
    /// Whether no other connection can be remembered.
    pub is_full: bool,
}

/// A socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Whether it has `IP_TRANSPARENT`.
    pub transparent: bool,
    /// Whether it is bound to any address.
    pub wildcard: bool,
    /// Whether it is neither a handshake nor in TIME_WAIT.
    pub full: bool,
}

/// Verdict for a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fate {
    /// Whether it is accepted.
    pub accepted: bool,
    /// fwmark at the end
    pub mark: u32,
    /// Mark of its conntrack entry at the end.
    pub connection_mark: Option<u32>,
    /// Whether it was tagged for the chain of redirected packets.
    pub is_tagged: bool,
    /// Address and port of the listener to which it is assigned.
    pub listener: Option<(Option<IpAddr>, u16)>,
    /// Whether its connection is remembered at the end.
    pub is_remembered: bool,
}

/// Most rules tried for one packet: the evaluation of some scripts would not end in useful time.
pub const BUDGET: usize = 2000;

/// Most packets for one script.
const PACKETS: usize = 200;

/// Packets at the edges of the ranges in a script: for one rule at a time, and for all together.
pub fn at_the_edges(script: &Script) -> Vec<Packet> {
    let plain = Packet {
        family: script.family,
        protocol: Protocol::Tcp,
        addresses: [1, 2],
        ports: [40_001, 8180],
        flags: 0x02,
        mark: 0,
        connection_mark: Some(0),
        is_sent: false,
        interface: "eth0".to_owned(),
        is_local: [false; 2],
        socket: None,
        has_listener: true,
        is_remembered: false,
        is_full: false,
    };
    let mut packets = vec![plain.clone()];
    let mut together = plain.clone();
    let chains = script.chains.iter();
    let rules = chains.flat_map(|chain| chain.rules.iter().map(|rule| (&chain.name, rule)));
    for (nth, (chain, rule)) in rules.take(PACKETS / 5).enumerate() {
        for edge in [Edge::First, Edge::Last, Edge::Behind, Edge::Before] {
            let mut alone = plain.clone();
            for it in &rule.matches {
                alone.meet(&it.test, edge, nth);
                together.meet(&it.test, edge, nth);
            }
            alone.has_listener = nth % 2 == 0 || edge == Edge::First;
            together.has_listener = edge != Edge::Last;
            alone.is_full = edge == Edge::Last;
            together.is_full = nth % 2 == 0;
            if chain == OUTPUT || chain != PREROUTING && nth % 3 == 0 {
                packets.push(alone.clone().sent());
                packets.push(together.clone().sent());
            }
            packets.push(alone);
            packets.push(together.clone());
        }
    }
    packets.truncate(PACKETS);
    packets
}

/// Position of a value in a range, or beside it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Edge {
    First,
    Last,
    Behind,
    Before,
}

impl Edge {
    fn of(self, ranges: &[RangeInclusive<u128>], nth: usize) -> u128 {
        let Some(range) = ranges.get(nth % ranges.len().max(1)) else {
            return 0;
        };
        match self {
            Edge::First => *range.start(),
            Edge::Last => *range.end(),
            Edge::Behind => range.end().wrapping_add(1),
            Edge::Before => range.start().wrapping_sub(1),
        }
    }
}

const OWNERS: [Option<Owner>; 5] = [
    None,
    owner(true, false, true),
    owner(true, true, true),
    owner(true, true, false),
    owner(false, true, true),
];

const fn owner(transparent: bool, wildcard: bool, full: bool) -> Option<Owner> {
    Some(Owner {
        transparent,
        wildcard,
        full,
    })
}

impl Packet {
    /// The same packet, sent by the node itself.
    fn sent(mut self) -> Packet {
        self.is_sent = true;
        self.interface.clear();
        self
    }

    /// Makes the packet match a test, or miss it closely.
    fn meet(&mut self, test: &Test, edge: Edge, nth: usize) {
        match test {
            Test::Protocol(protocol) => self.protocol = *protocol,
            Test::Ports(of, ranges) => {
                let which = match of {
                    PortOf::Source => 0,
                    PortOf::Destination => 1,
                    PortOf::Either => nth % 2,
                };
                self.ports[which] = edge.of(ranges, nth) as u16;
            }
            Test::TcpFlags { mask, set } => self.flags = self.flags & !mask | set,
            Test::Mark(mark) => self.mark = mark.value,
            Test::ConnectionMark(mark) => {
                self.connection_mark = Some(mark.value).filter(|_| edge != Edge::Before);
            }
            Test::Local(of) => {
                self.is_local[usize::from(*of == AddressOf::Destination)] = edge == Edge::First;
            }
            Test::Interface { name, prefix } => {
                self.interface = match *prefix || edge == Edge::Behind {
                    true => format!("{name}x"),
                    false => name.clone(),
                };
            }
            Test::Address(of, ranges) => {
                let highest = u128::MAX >> (128 - self.family.address_bits());
                self.addresses[usize::from(*of == AddressOf::Destination)] =
                    edge.of(ranges, nth) & highest;
            }
            Test::Handshake => self.is_remembered = edge != Edge::Behind,
            Test::Socket { .. } => self.socket = OWNERS[(nth + edge as usize) % OWNERS.len()],
        }
    }
}

/// The address of a number.
pub fn address(family: Family, number: u128) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from_bits(number as u32).into(),
        Family::V6 => Ipv6Addr::from_bits(number).into(),
    }
}

/// The number of an address.
pub fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}
