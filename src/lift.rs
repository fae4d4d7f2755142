//! What lifts frames out of the bridges of a node, so that IP, and with it the rules of the scripts,
//! meets them: two Pods of one bridge talk to each other below IP.
//!
//! A frame with a SYN to a captured address and port is lifted, and its connection is remembered;
//! so are the client's other frames, if their connection is remembered. Connections from before, and
//! those that the Pod itself answers, stay on the bridge. To be lifted, a frame is sent to the port of
//! the bridge that it came in by: a bridge hands what is for one of its ports to IP, as if it were
//! for itself (`br_fdb_add_local`, net/bridge/br_fdb.c).

use crate::capture::{Cidr, Family, PortRange};
use crate::compile::{
    Kind, LIFTED_PRIORITY, Named, Ruleset, TYPE_INET_SERVICE, TYPE_IP6ADDR, TYPE_IPADDR, equals,
};
use crate::expression::Expression;
use crate::rule::{AddressOf, Match, PortOf, Protocol, Ranges, Test, merge};
use crate::script::PREROUTING;
use crate::sysctl;

/// How long a connection is remembered after a SYN, another frame, and the client's FIN or RST, in
/// seconds. Clients whose connection is open are heard of more often: the longest deadline is that of a
/// body. Behind a FIN there are only acknowledgements and what was lost.
const HANDSHAKE: u32 = 10;
const OPEN: u32 = 60;
const CLOSED: u32 = 3;

/// So many connections are remembered of each family; more are left on their bridge. Each takes 96 or
/// 128 bytes of the kernel.
const CONNECTIONS: u32 = 262_144;

/// Behind the ids of all sets of scripts.
const FIRST_SET: u32 = 1 << 24;

/// Flags of byte 13 of the TCP header (RFC 9293, 3.1).
const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// `PACKET_HOST` (linux/if_packet.h): the frame is for this host, whatever address it has
const PACKET_HOST: u8 = 0;

/// `ETH_P_IP`, `ETH_P_IPV6` (linux/if_ether.h), and where a frame has them; one with a VLAN tag has
/// the tag's type there
fn ether_type(family: Family) -> u16 {
    match family {
        Family::V4 => 0x0800,
        Family::V6 => 0x86dd,
    }
}
const ETHER_TYPE: u32 = 12;

/// nft(8) packs the types of a key's parts, the first one highest (its include/datatype.h).
const TYPE_BITS: u32 = 6;

/// Its number for the index of a device.
const TYPE_IFINDEX: u32 = 20;

/// The rules that lift frames.
#[derive(Clone, Debug, Default)]
pub struct Lift {
    /// Whose frames are lifted.
    pub families: Vec<Family>,
    /// The rules, for a table of a bridge.
    pub ruleset: Ruleset,
}

/// The chain whose rules lift what belongs to no connection yet.
pub fn new_chain(family: Family) -> String {
    name("new", family)
}

fn name(chain: &str, family: Family) -> String {
    match family {
        Family::V4 => format!("{chain}-v4"),
        Family::V6 => format!("{chain}-v6"),
    }
}

/// Why frames of this family have to stay on their bridges: IP would drop them, because of a sysctl.
pub fn obstacle(family: Family) -> Option<String> {
    let is = |name: &str, value: u32, better: &str| {
        let (name, highest) = sysctl::highest(name);
        (highest == value).then(|| format!("{name} is {value}, {better} would do"))
    };
    match family {
        // By our mark, the Pod's own address is a local one.
        Family::V4 => is("net.ipv4.conf.*.src_valid_mark", 1, "0"),
        Family::V6 => is("net.ipv6.conf.*.disable_ipv6", 1, "0"),
    }
}

/// The set of the connections that are lifted.
fn captured(family: Family) -> &'static str {
    match family {
        Family::V4 => "captured-v4",
        Family::V6 => "captured-v6",
    }
}

/// The map of the ports of bridges that can hand frames to IP.
pub fn ports(family: Family) -> &'static str {
    match family {
        Family::V4 => "ports-v4",
        Family::V6 => "ports-v6",
    }
}

impl Lift {
    /// The rules for these destinations, of these families.
    pub fn new(families: Vec<Family>, cidrs: &[Cidr], dports: &[PortRange]) -> Lift {
        let mut ruleset = Ruleset {
            first_set: FIRST_SET,
            ..Ruleset::default()
        };
        ruleset.chains.push(PREROUTING.to_owned());
        let ports = merge(
            dports
                .iter()
                .map(|it| it.low.into()..=it.high.into())
                .collect(),
        );
        for family in &families {
            let blocks = cidrs.iter().filter(|cidr| cidr.family() == *family);
            let blocks = merge(blocks.map(Cidr::range).collect());
            choose(&mut ruleset, *family, &blocks, &ports);
            lift(&mut ruleset, *family);
        }
        Lift { families, ruleset }
    }
}

/// The rules that every frame passes.
fn choose(ruleset: &mut Ruleset, family: Family, blocks: &Ranges, ports: &Ranges) {
    let to_captured = [
        Test::Protocol(Protocol::Tcp),
        Test::Ports(PortOf::Destination, ports.clone()),
        Test::Address(AddressOf::Destination, blocks.clone()),
    ];
    let jump = vec![Expression::Jump(name("lift", family))];
    // The Pod has answered in place of the listener.
    let accepted = [
        Test::Protocol(Protocol::Tcp),
        flags(SYN | ACK, SYN | ACK),
        Test::Ports(PortOf::Source, ports.clone()),
        Test::Address(AddressOf::Source, blocks.clone()),
    ];
    let is_answer = true;
    let forget = vec![
        Expression::Connection { family, is_answer },
        Expression::Forget(captured(family)),
    ];
    for (tests, then) in [(&to_captured[..], jump), (&accepted[..], forget)] {
        let base = libc::NFT_PAYLOAD_LL_HEADER;
        let (offset, length) = (ETHER_TYPE, 2);
        let mut steps = vec![
            Expression::Payload {
                base,
                offset,
                length,
            },
            equals(ether_type(family).to_be_bytes().into()),
        ];
        steps.extend(ruleset.steps(
            &tests.iter().cloned().map(plain).collect::<Vec<_>>(),
            family,
        ));
        steps.extend(then);
        ruleset.append(PREROUTING, steps);
    }
}

/// The rules for frames to what is captured.
fn lift(ruleset: &mut Ruleset, family: Family) {
    let (width, kind) = match family {
        Family::V4 => (4, TYPE_IPADDR),
        Family::V6 => (16, TYPE_IP6ADDR),
    };
    let types = [kind, kind, TYPE_INET_SERVICE, TYPE_INET_SERVICE];
    let key_type = types
        .into_iter()
        .fold(0, |packed, kind| (packed << TYPE_BITS) | kind);
    ruleset.named.push(Named {
        name: captured(family),
        key_type,
        width: 2 * (width + 4),
        kind: Kind::Connections(CONNECTIONS),
    });
    ruleset.named.push(Named {
        name: ports(family),
        key_type: TYPE_IFINDEX,
        width: 4,
        kind: Kind::Hardware,
    });
    let (lift, new) = (name("lift", family), new_chain(family));
    ruleset.chains.extend([lift.clone(), new.clone()]);
    let is_answer = false;
    let known = [
        Expression::Hardware(ports(family)),
        Expression::Connection { family, is_answer },
        Expression::Known(captured(family)),
    ];
    let is_new = plain(flags(FIN | SYN | RST | ACK, SYN));
    let is_last = Match {
        negated: true,
        test: flags(FIN | RST, 0),
    };
    let begins = ruleset.steps(&[is_new], family);
    let ends = ruleset.steps(&[is_last], family);
    let jump = vec![Expression::Jump(new.clone())];
    ruleset.append(&lift, [begins, jump].concat());
    ruleset.append(&lift, [&ends[..], &known, &away(family, CLOSED)].concat());
    ruleset.append(&lift, [&known[..], &away(family, OPEN)].concat());
    ruleset.append(&new, [&known[..2], &away(family, HANDSHAKE)].concat());
}

/// Remembers the connection that is loaded, and sends the frame to the port that is loaded.
fn away(family: Family, seconds: u32) -> [Expression; 5] {
    [
        Expression::Remember(captured(family), seconds),
        Expression::SendThere,
        Expression::Set(libc::NFT_META_PKTTYPE, vec![PACKET_HOST]),
        Expression::Set(
            libc::NFT_META_PRIORITY,
            LIFTED_PRIORITY.to_ne_bytes().into(),
        ),
        Expression::Verdict(libc::NF_ACCEPT),
    ]
}

fn plain(test: Test) -> Match {
    Match {
        negated: false,
        test,
    }
}

fn flags(mask: u8, set: u8) -> Test {
    Test::TcpFlags { mask, set }
}
