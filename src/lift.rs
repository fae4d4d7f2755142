//! What lifts frames out of the bridges of a node, so that IP, and with it the rules of the scripts,
//! meets them: two Pods of one bridge talk to each other below IP.
//!
//! A frame with a SYN to a captured address and port is lifted, and its connection is remembered;
//! so are the client's other frames, if their connection is remembered. Connections from before, and
//! those that the Pod itself answers, stay on the bridge. To be lifted, a frame is sent to the hardware
//! address of the bridge's port by which it came in: a bridge hands what is for one of its ports to IP,
//! as if it were for itself (`br_fdb_add_local`, net/bridge/br_fdb.c).

use crate::capture::{Cidr, Family, PortRange, families};
use crate::compile::{
    Kind, LIFTED_PRIORITY, Named, Ruleset, TYPE_INET_SERVICE, TYPE_IP6ADDR, TYPE_IPADDR, equals,
};
use crate::expression::Expression;
use crate::ports::Bridges;
use crate::rule::{AddressOf, Match, PortOf, Protocol, Ranges, Test, merge};
use crate::script::PREROUTING;

/// How long a connection is remembered, in seconds: after a SYN; once the client has answered the
/// SYN-ACK, after each of its frames, of which an open connection has one in each deadline; and after its
/// FIN or RST, behind which are acknowledgements and what was lost.
const ASKED: u32 = 10;
const OPEN: u32 = 120;
const CLOSED: u32 = 15;

/// How long what was asked stays when it is known who answers, and how long it does not count if the
/// Pod itself has sent the SYN-ACK.
const PASSED: u32 = 1;
const ANSWERED: u32 = 2;

/// So many connections are remembered in each set; more are left on their bridge. Each takes about 100
/// bytes of the kernel.
const MOST_ASKED: u32 = 65_536;
const MOST_OPEN: u32 = 262_144;

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
#[derive(Clone, Debug)]
pub struct Lift {
    /// Of each family, the captured addresses.
    blocks: Vec<(Family, Ranges)>,
    /// The captured ports.
    ports: Ranges,
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

/// The sets of connections: whose SYN was lifted, of those which the Pod has answered itself, and
/// whose client has answered the SYN-ACK.
fn asked(family: Family) -> &'static str {
    match family {
        Family::V4 => "asked-v4",
        Family::V6 => "asked-v6",
    }
}

fn answered(family: Family) -> &'static str {
    match family {
        Family::V4 => "answered-v4",
        Family::V6 => "answered-v6",
    }
}

fn open(family: Family) -> &'static str {
    match family {
        Family::V4 => "open-v4",
        Family::V6 => "open-v6",
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
    /// The rules for these destinations.
    pub fn new(cidrs: &[Cidr], dports: &[PortRange]) -> Lift {
        let of = |family| {
            let blocks = cidrs.iter().filter(|cidr| cidr.family() == family);
            (family, merge(blocks.map(Cidr::range).collect()))
        };
        let ports = dports.iter().map(|it| it.low.into()..=it.high.into());
        Lift {
            blocks: families(cidrs).map(of).collect(),
            ports: merge(ports.collect()),
        }
    }

    /// Whose frames are lifted.
    pub fn families(&self) -> impl Iterator<Item = Family> {
        self.blocks.iter().map(|(family, _)| *family)
    }

    /// The chains and sets, and the rules for frames to what is captured.
    pub fn base(&self) -> Ruleset {
        let mut ruleset = Ruleset::default();
        ruleset.chains.push(PREROUTING.to_owned());
        for family in self.families() {
            add_sets(&mut ruleset, family);
            add_rules(&mut ruleset, family);
        }
        ruleset
    }

    /// The rules that every frame passes: they choose what comes from the neighbours of these bridges.
    pub fn choice(&self, bridges: &Bridges) -> Ruleset {
        let mut ruleset = Ruleset::default();
        for (family, blocks) in &self.blocks {
            let neighbours = &bridges.of(*family).neighbours;
            if !neighbours.is_empty() {
                choose(&mut ruleset, *family, neighbours, blocks, &self.ports);
            }
        }
        ruleset
    }
}

fn choose(
    ruleset: &mut Ruleset,
    family: Family,
    neighbours: &Ranges,
    blocks: &Ranges,
    ports: &Ranges,
) {
    let to_captured = [
        Test::Protocol(Protocol::Tcp),
        Test::Ports(PortOf::Destination, ports.clone()),
        Test::Address(AddressOf::Destination, blocks.clone()),
        Test::Address(AddressOf::Source, neighbours.clone()),
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
    let pass = vec![
        Expression::Connection { family, is_answer },
        known(asked(family)),
        Expression::Remember(asked(family), PASSED),
        Expression::Remember(answered(family), ANSWERED),
    ];
    for (tests, then) in [(&to_captured[..], jump), (&accepted[..], pass)] {
        let (base, offset, length) = (libc::NFT_PAYLOAD_LL_HEADER, ETHER_TYPE, 2);
        let mut steps = vec![
            Expression::Payload {
                base,
                offset,
                length,
            },
            equals(ether_type(family).to_be_bytes().into()),
        ];
        let tests: Vec<Match> = tests.iter().cloned().map(plain).collect();
        steps.extend(ruleset.steps(&tests, family));
        steps.extend(then);
        ruleset.append(PREROUTING, steps);
    }
}

fn add_sets(ruleset: &mut Ruleset, family: Family) {
    let (width, kind) = match family {
        Family::V4 => (4, TYPE_IPADDR),
        Family::V6 => (16, TYPE_IP6ADDR),
    };
    let types = [kind, kind, TYPE_INET_SERVICE, TYPE_INET_SERVICE];
    let pack = |packed, kind| (packed << TYPE_BITS) | kind;
    let connections = [
        (asked(family), MOST_ASKED),
        (answered(family), MOST_ASKED),
        (open(family), MOST_OPEN),
    ];
    ruleset.named.extend(connections.map(|(name, most)| Named {
        name,
        key_type: types.into_iter().fold(0, pack),
        width: 2 * (width + 4),
        kind: Kind::Connections(most),
    }));
    ruleset.named.push(Named {
        name: ports(family),
        key_type: TYPE_IFINDEX,
        width: 4,
        kind: Kind::Hardware,
    });
}

fn add_rules(ruleset: &mut Ruleset, family: Family) {
    let (lift, new) = (name("lift", family), new_chain(family));
    ruleset.chains.extend([lift.clone(), new.clone()]);
    let is_answer = false;
    let loads = [
        Expression::Hardware(ports(family)),
        Expression::Connection { family, is_answer },
    ];
    let is_new = plain(flags(FIN | SYN | RST | ACK, SYN));
    let is_last = Match {
        negated: true,
        test: flags(FIN | RST, 0),
    };
    let begins = ruleset.steps(&[is_new], family);
    let ends = ruleset.steps(&[is_last], family);
    let (open, asked) = (open(family), asked(family));
    let jump = vec![Expression::Jump(new.clone())];
    let is_open = [&loads[..], &[known(open)]].concat();
    let is_asked = [
        known(asked),
        unknown(answered(family)),
        Expression::Remember(asked, PASSED),
    ];
    ruleset.append(&lift, [begins, jump].concat());
    ruleset.append(&lift, [&ends, &is_open[..], &away(open, CLOSED)].concat());
    ruleset.append(&lift, [&is_open[..], &away(open, OPEN)].concat());
    ruleset.append(&lift, [&loads[..], &is_asked, &away(open, OPEN)].concat());
    ruleset.append(&new, [&loads[..], &away(asked, ASKED)].concat());
}

/// Remembers the connection that is loaded, and sends the frame to the address that is loaded.
fn away(set: &'static str, seconds: u32) -> [Expression; 5] {
    let sign = LIFTED_PRIORITY.to_ne_bytes();
    [
        Expression::Remember(set, seconds),
        Expression::SendThere,
        Expression::Set(libc::NFT_META_PKTTYPE, vec![PACKET_HOST]),
        Expression::Set(libc::NFT_META_PRIORITY, sign.into()),
        Expression::Verdict(libc::NF_ACCEPT),
    ]
}

fn known(set: &'static str) -> Expression {
    let negated = false;
    Expression::Known { negated, set }
}

fn unknown(set: &'static str) -> Expression {
    let negated = true;
    Expression::Known { negated, set }
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
