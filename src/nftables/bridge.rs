//! What lifts frames out of the bridges of a node, so that IP, and with it the rules of the scripts,
//! meets them: two Pods of one bridge talk to each other below IP.
//!
//! A frame with a SYN to a captured address and port is lifted, and its connection is remembered;
//! so are the client's other frames, if their connection is remembered. Connections from before, and
//! those that the Pod itself answers, stay on the bridge. To be lifted, a frame is sent to the hardware
//! address of the bridge's port by which it came in: a bridge hands what is for one of its ports to IP,
//! as if it were for itself (`br_fdb_add_local`, net/bridge/br_fdb.c).

use crate::nftables::compile::{
    Kind, LIFTED_PRIORITY, Named, Ruleset, TYPE_INET_SERVICE, TYPE_IP6ADDR, TYPE_IPADDR, equals,
};
use crate::nftables::expression::Expression;
use crate::routing::bridges::BridgeMonitor;
use crate::rules::rule::{AddressOf, Match, PortOf, Protocol, Ranges, Test, merge};
use crate::rules::script::PREROUTING;
use crate::selectors::{Cidr, Family, PortRange, families};

/// How long a connection is remembered, in seconds: after a SYN; once the client has answered the
/// SYN-ACK, after each frame that pushes data, of which there is one in each deadline; and after the
/// client's FIN or RST, behind which are acknowledgements and what was lost.
const ASKED: u32 = 10;
const OPEN: u32 = 120;
const CLOSED: u32 = 20;

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
const PSH: u8 = 8;
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
pub struct BridgeRedirect {
    /// Of each family, the captured addresses.
    blocks: Vec<(Family, Ranges)>,
    /// The captured ports.
    ports: Ranges,
}

/// The chain whose rules lift what belongs to no connection yet.
pub fn new_chain(family: Family) -> String {
    name("new", family)
}

/// The chain whose rules know the bridges.
pub fn from_chain(family: Family) -> String {
    name("from", family)
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

/// The map of the ports of bridges.
pub const PORTS: &str = "ports";

impl BridgeRedirect {
    /// The rules for these destinations.
    pub fn new(cidrs: &[Cidr], dports: &[PortRange]) -> BridgeRedirect {
        let of = |family| {
            let blocks = cidrs.iter().filter(|cidr| cidr.family() == family);
            (family, merge(blocks.map(Cidr::range).collect()))
        };
        let ports = dports.iter().map(|it| it.low.into()..=it.high.into());
        BridgeRedirect {
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
        ruleset.named.push(Named {
            name: PORTS,
            key_type: TYPE_IFINDEX,
            width: 4,
            kind: Kind::Hardware,
        });
        for (family, blocks) in &self.blocks {
            add_sets(&mut ruleset, *family);
            add_rules(&mut ruleset, *family);
            self.choose(&mut ruleset, *family, blocks);
        }
        ruleset
    }

    /// The rules that every frame passes: as few as can be.
    fn choose(&self, ruleset: &mut Ruleset, family: Family, blocks: &Ranges) {
        let to_captured = vec![
            Test::Protocol(Protocol::Tcp),
            Test::Ports(PortOf::Destination, self.ports.clone()),
            Test::Address(AddressOf::Destination, blocks.clone()),
        ];
        let accepted = vec![
            Test::Protocol(Protocol::Tcp),
            flags(SYN | ACK, SYN | ACK),
            Test::Ports(PortOf::Source, self.ports.clone()),
            Test::Address(AddressOf::Source, blocks.clone()),
        ];
        let jump = [Expression::Jump(from_chain(family))];
        choose(ruleset, family, to_captured, &jump);
        choose(ruleset, family, accepted, &pass(family));
    }

    /// The rules that know these bridges: they lift what their neighbours send, and what is sent to the
    /// bridges themselves, which is for IP in any case.
    pub fn follow(&self, bridges: &BridgeMonitor) -> Ruleset {
        let mut ruleset = Ruleset::default();
        for family in self.families() {
            let (from, neighbours) = (from_chain(family), bridges.neighbours(family));
            let jump = vec![Expression::Jump(name("lift", family))];
            if !neighbours.is_empty() {
                let of_neighbour = Test::Address(AddressOf::Source, neighbours.clone());
                let steps = ruleset.steps(&[plain(of_neighbour)], family);
                ruleset.append(&from, [&steps[..], &jump].concat());
            }
            if !bridges.own().is_empty() {
                let steps = ruleset.to_hardware(bridges.own());
                ruleset.append(&from, [&steps[..], &jump].concat());
            }
        }
        ruleset
    }
}

/// A rule for frames of a family that pass these tests.
fn choose(ruleset: &mut Ruleset, family: Family, tests: Vec<Test>, then: &[Expression]) {
    let (base, offset, length) = (libc::NFT_PAYLOAD_LL_HEADER, ETHER_TYPE, 2);
    let mut steps = vec![
        Expression::Payload {
            base,
            offset,
            length,
        },
        equals(ether_type(family).to_be_bytes().into()),
    ];
    let tests: Vec<Match> = tests.into_iter().map(plain).collect();
    steps.extend(ruleset.steps(&tests, family));
    steps.extend_from_slice(then);
    ruleset.append(PREROUTING, steps);
}

/// The Pod has answered in place of the listener.
fn pass(family: Family) -> [Expression; 4] {
    let is_answer = true;
    [
        Expression::Connection { family, is_answer },
        known(asked(family)),
        Expression::Remember(asked(family), PASSED),
        Expression::Remember(answered(family), ANSWERED),
    ]
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
}

fn add_rules(ruleset: &mut Ruleset, family: Family) {
    let (lift, new) = (name("lift", family), new_chain(family));
    let chains = [from_chain(family), lift.clone(), new.clone()];
    ruleset.chains.extend(chains);
    let is_answer = false;
    let loads = [
        Expression::Hardware(PORTS),
        Expression::Connection { family, is_answer },
    ];
    let some = |mask| Match {
        negated: true,
        test: flags(mask, 0),
    };
    let begins = ruleset.steps(&[plain(flags(FIN | SYN | RST | ACK, SYN))], family);
    let ends = ruleset.steps(&[some(FIN | RST)], family);
    let pushes = ruleset.steps(&[some(PSH)], family);
    let (asked, answered, open) = (asked(family), answered(family), open(family));
    let jump = [Expression::Jump(new.clone())];
    let is_open = [&loads[..], &[known(open)]].concat();
    let is_asked = [&loads[..], &[known(asked), unknown(answered)]].concat();
    let stays = |seconds| [Expression::Remember(open, seconds)];
    let opens = [
        Expression::Remember(open, OPEN),
        Expression::Remember(asked, PASSED),
    ];
    let remembers = |seconds| [Expression::Remember(asked, seconds)];
    let away = away();
    for rule in [
        [&begins[..], &jump].concat(),
        [&ends[..], &is_open, &stays(CLOSED), &away].concat(),
        [&pushes[..], &is_open, &stays(OPEN), &away].concat(),
        [&is_open[..], &away].concat(),
        [&is_asked[..], &opens, &away].concat(),
        // There is no room among those that are open.
        [&is_asked[..], &remembers(OPEN), &away].concat(),
    ] {
        ruleset.append(&lift, rule);
    }
    ruleset.append(&new, [&loads[..], &remembers(ASKED), &away].concat());
}

/// Sends the frame to the address that is loaded, with our sign.
fn away() -> [Expression; 4] {
    let sign = LIFTED_PRIORITY.to_ne_bytes();
    [
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
