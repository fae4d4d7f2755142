//! Scripts as nf_tables expressions: what each rule of iptables means, step by step.
//!
//! Both families share one table of the family `inet`; their user chains are told apart by a
//! suffix. The tests of a rule run from the cheapest to the dearest, whatever their order in the
//! script, so that a packet for another port is done with after a few comparisons.

use std::ops::RangeInclusive;

use libc::c_int;

use crate::nftables::expression::{Expression, NFT_SOCKET_TRANSPARENT, NFT_SOCKET_WILDCARD};
use crate::rules::rule::{AddressOf, Match, PortOf, Protocol, Ranges, Rule, Target, Test};
use crate::rules::script::{PREROUTING, Script};
use crate::selectors::Family;

/// The chains, rules and sets of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// The names of the chains; [`PREROUTING`] and [`LIFTED`] are base chains.
    pub chains: Vec<String>,
    /// Anonymous sets, each for one rule.
    pub sets: Vec<Set>,
    /// Sets with a name.
    pub named: Vec<Named>,
    /// In the order in which they are appended.
    pub rules: Vec<CompiledRule>,
}

/// A set of ranges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// `TYPE_INET_SERVICE`, `TYPE_IPADDR` or `TYPE_IP6ADDR` of nft(8), for who lists the set.
    pub key_type: u32,
    /// The length of a key, in bytes.
    pub width: usize,
    /// In ascending order, apart from each other.
    pub ranges: Ranges,
}

/// A set that rules find by its name, and its elements change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// The name.
    pub name: &'static str,
    /// The types of a key's parts, as nft(8) packs them, for who lists the set.
    pub key_type: u32,
    /// The length of a key, in bytes.
    pub width: usize,
    /// What its elements are.
    pub kind: Kind,
}

/// What the elements of a named set are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Connections, at most so many, which rules add, and time removes.
    Connections(u32),
    /// The hardware addresses of devices.
    Hardware,
}

/// A rule that is ready to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompiledRule {
    /// The chain that it is appended to.
    pub chain: String,
    /// Its steps.
    pub expressions: Vec<Expression>,
}

/// The base chain with the same rules for packets that were lifted from a bridge. It is the first of
/// all: for packets that passed the rules of IP on the bridge already, because br_netfilter had them
/// do so, it skips all other chains (`ip_sabotage_in`, net/bridge/br_netfilter_hooks.c), and TPROXY's
/// choice of a socket does not outlive the way from the bridge to IP (`ip_rcv_core`).
pub const LIFTED: &str = "LIFTED";

/// By which such packets are known: the kernel's priority of a packet (`skb->priority`), which has no
/// meaning for one that is delivered here.
pub const LIFTED_PRIORITY: u32 = u32::from_be_bytes(*b"TPxy");

/// The steps of these scripts.
pub fn compile(scripts: &[Script]) -> Ruleset {
    let mut ruleset = Ruleset {
        chains: vec![PREROUTING.to_owned(), LIFTED.to_owned()],
        ..Ruleset::default()
    };
    for script in scripts {
        let users = script
            .chains
            .iter()
            .filter(|chain| chain.name != PREROUTING);
        ruleset
            .chains
            .extend(users.map(|chain| user_chain(&chain.name, script.family)));
    }
    for script in scripts {
        for chain in &script.chains {
            for rule in &chain.rules {
                if chain.name == PREROUTING {
                    ruleset.add(Place::Base(PREROUTING), rule, script.family);
                    ruleset.add(Place::Base(LIFTED), rule, script.family);
                } else {
                    ruleset.add(Place::User(&chain.name), rule, script.family);
                }
            }
        }
    }
    ruleset
}

/// The bytes of a number in network order.
pub fn key(number: u128, width: usize) -> Vec<u8> {
    number.to_be_bytes()[16 - width..].to_vec()
}

fn user_chain(name: &str, family: Family) -> String {
    match family {
        Family::V4 => format!("{name}-v4"),
        Family::V6 => format!("{name}-v6"),
    }
}

fn nfproto(family: Family) -> c_int {
    match family {
        Family::V4 => libc::NFPROTO_IPV4,
        Family::V6 => libc::NFPROTO_IPV6,
    }
}

/// Where a test stands in a rule; those with a lookup come late, the socket's last.
fn cost(test: &Test) -> usize {
    match test {
        Test::Protocol(_) => 0,
        Test::Mark(_) => 1,
        Test::TcpFlags { .. } => 2,
        Test::Ports(..) => 3,
        Test::Interface { .. } => 4,
        Test::Address(..) => 5,
        Test::Socket { .. } => HIGHEST_COST,
    }
}

const HIGHEST_COST: usize = 6;

/// The chain that a rule comes into.
#[derive(Clone, Copy)]
enum Place<'c> {
    Base(&'static str),
    User(&'c str),
}

impl Ruleset {
    fn add(&mut self, place: Place<'_>, rule: &Rule, family: Family) {
        let chain_name = match place {
            Place::Base(name) => name.to_owned(),
            Place::User(name) => user_chain(name, family),
        };
        for tests in alternatives(&rule.matches) {
            let mut steps = Vec::new();
            if let Place::Base(LIFTED) = place {
                steps.push(Expression::Meta(libc::NFT_META_PRIORITY));
                steps.push(equals(LIFTED_PRIORITY.to_ne_bytes().into()));
            }
            if let Place::Base(_) = place {
                steps.push(Expression::Meta(libc::NFT_META_NFPROTO));
                steps.push(equals(vec![nfproto(family) as u8]));
            }
            steps.extend(self.steps(&tests, family));
            let action = action(rule.target.as_ref(), family);
            let wildcards_count = !tests.iter().any(|it| {
                matches!(
                    it.test,
                    Test::Socket {
                        nowildcard: false,
                        ..
                    }
                )
            });
            if wildcards_count || action.is_empty() {
                steps.extend(action);
            } else {
                let beyond = self.beyond_wildcards(&chain_name, action);
                steps.push(Expression::Jump(beyond));
            }
            self.append(&chain_name, steps);
        }
    }

    /// The steps of these tests, from the cheapest to the dearest.
    pub fn steps(&mut self, tests: &[Match], family: Family) -> Vec<Expression> {
        let mut steps = Vec::new();
        for cost_now in 0..=HIGHEST_COST {
            for it in tests.iter().filter(|it| cost(&it.test) == cost_now) {
                self.test(&mut steps, it, family);
            }
        }
        steps
    }

    /// The steps for a frame to one of these hardware addresses.
    pub fn to_hardware(&mut self, addresses: &Ranges) -> [Expression; 2] {
        let base = libc::NFT_PAYLOAD_LL_HEADER;
        let load = Expression::Payload {
            base,
            offset: 0,
            length: 6,
        };
        [load, self.within(addresses, 6, TYPE_ETHERADDR, false)]
    }

    /// Appends a rule to a chain.
    pub fn append(&mut self, chain: &str, expressions: Vec<Expression>) {
        self.rules.push(CompiledRule {
            chain: chain.to_owned(),
            expressions,
        });
    }

    /// A chain that does `action` unless the packet's socket is bound to any address. The
    /// expression ends the rule for sockets that are not full ones (a handshake, TIME_WAIT), which
    /// iptables counts as bound to one: so what it matches returns, and the rest is acted on.
    fn beyond_wildcards(&mut self, chain: &str, action: Vec<Expression>) -> String {
        let name = format!("{chain}.{}", self.rules.len());
        let leave = vec![
            Expression::Socket(NFT_SOCKET_WILDCARD),
            equals(vec![1]),
            Expression::Verdict(libc::NFT_RETURN),
        ];
        self.chains.push(name.clone());
        self.append(&name, leave);
        self.append(&name, action);
        name
    }

    fn test(&mut self, steps: &mut Vec<Expression>, it: &Match, family: Family) {
        let negated = it.negated;
        match &it.test {
            Test::Protocol(protocol) => {
                steps.push(Expression::Meta(libc::NFT_META_L4PROTO));
                steps.push(Expression::Compare {
                    negated,
                    data: vec![protocol_number(*protocol)],
                });
            }
            Test::Ports(of, ranges) => {
                let offset = if *of == PortOf::Source { 0 } else { 2 };
                steps.push(Expression::Payload {
                    base: libc::NFT_PAYLOAD_TRANSPORT_HEADER,
                    offset,
                    length: 2,
                });
                steps.push(self.within(ranges, 2, TYPE_INET_SERVICE, negated));
            }
            Test::TcpFlags { mask, set } => {
                steps.push(Expression::Payload {
                    base: libc::NFT_PAYLOAD_TRANSPORT_HEADER,
                    offset: 13,
                    length: 1,
                });
                steps.push(Expression::Bitwise {
                    mask: vec![*mask],
                    xor: vec![0],
                });
                steps.push(Expression::Compare {
                    negated,
                    data: vec![*set],
                });
            }
            Test::Mark(mark) => {
                steps.push(Expression::Meta(libc::NFT_META_MARK));
                steps.push(Expression::Bitwise {
                    mask: mark.mask.to_ne_bytes().into(),
                    xor: vec![0; 4],
                });
                steps.push(Expression::Compare {
                    negated,
                    data: mark.value.to_ne_bytes().into(),
                });
            }
            Test::Interface { name, prefix } => {
                let mut data = name.clone().into_bytes();
                // The kernel compares at least a byte: any name is one that is not empty.
                let any = *prefix && name.is_empty();
                if any || !prefix {
                    data.resize(libc::IFNAMSIZ, 0);
                }
                steps.push(Expression::Meta(libc::NFT_META_IIFNAME));
                steps.push(Expression::Compare {
                    negated: negated != any,
                    data,
                });
            }
            Test::Address(of, ranges) => {
                let (offset, width, key_type) = address_field(*of, family);
                let length = width as u32;
                steps.push(Expression::Payload {
                    base: libc::NFT_PAYLOAD_NETWORK_HEADER,
                    offset,
                    length,
                });
                steps.push(self.within(ranges, width, key_type, negated));
            }
            Test::Socket { transparent, .. } => {
                steps.push(Expression::Socket(NFT_SOCKET_TRANSPARENT));
                if *transparent {
                    steps.push(equals(vec![1]));
                }
            }
        }
    }

    fn within(
        &mut self,
        ranges: &[RangeInclusive<u128>],
        width: usize,
        key_type: u32,
        negated: bool,
    ) -> Expression {
        match ranges {
            [range] if range.start() == range.end() => Expression::Compare {
                negated,
                data: key(*range.start(), width),
            },
            [range] => Expression::Range {
                negated,
                from: key(*range.start(), width),
                to: key(*range.end(), width),
            },
            ranges => {
                self.sets.push(Set {
                    key_type,
                    width,
                    ranges: ranges.to_vec(),
                });
                Expression::Lookup {
                    negated,
                    set: self.sets.len() as u32 - 1,
                }
            }
        }
    }
}

/// `nft`'s numbers for the types of keys (its include/datatype.h): an IPv4 address
pub const TYPE_IPADDR: u32 = 7;
/// An IPv6 address
pub const TYPE_IP6ADDR: u32 = 8;
/// A hardware address
pub const TYPE_ETHERADDR: u32 = 9;
/// A port
pub const TYPE_INET_SERVICE: u32 = 13;

/// Offset and length in bytes (RFC 791, 3.1; RFC 8200, 3), and the type of the key.
fn address_field(of: AddressOf, family: Family) -> (u32, usize, u32) {
    match (family, of) {
        (Family::V4, AddressOf::Source) => (12, 4, TYPE_IPADDR),
        (Family::V4, AddressOf::Destination) => (16, 4, TYPE_IPADDR),
        (Family::V6, AddressOf::Source) => (8, 16, TYPE_IP6ADDR),
        (Family::V6, AddressOf::Destination) => (24, 16, TYPE_IP6ADDR),
    }
}

fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => libc::IPPROTO_TCP as u8,
        Protocol::Udp => libc::IPPROTO_UDP as u8,
    }
}

/// The value is these bytes.
pub fn equals(data: Vec<u8>) -> Expression {
    Expression::Compare {
        negated: false,
        data,
    }
}

/// Lists of tests one of which, and only one, holds where `matches` hold: "one of the two ports" is
/// "the source port" or "the destination port and not the source port".
fn alternatives(matches: &[Match]) -> Vec<Vec<Match>> {
    let mut lists = vec![Vec::new()];
    for it in matches {
        let Test::Ports(PortOf::Either, ranges) = &it.test else {
            lists.iter_mut().for_each(|list| list.push(it.clone()));
            continue;
        };
        let port = |of, negated| Match {
            negated,
            test: Test::Ports(of, ranges.clone()),
        };
        let mut doubled = Vec::new();
        for list in lists {
            if !it.negated {
                doubled.push([list.as_slice(), &[port(PortOf::Source, false)]].concat());
            }
            let rest = [
                port(PortOf::Source, true),
                port(PortOf::Destination, it.negated),
            ];
            doubled.push([list.as_slice(), &rest].concat());
        }
        lists = doubled;
    }
    lists
}

/// TPROXY comes before the mark: without a listener the rule ends there, and the packet goes on to
/// the Pod, where iptables would drop it.
fn action(target: Option<&Target>, family: Family) -> Vec<Expression> {
    match target {
        None => Vec::new(),
        Some(Target::Accept) => vec![Expression::Verdict(libc::NF_ACCEPT)],
        Some(Target::Drop) => vec![Expression::Verdict(libc::NF_DROP)],
        Some(Target::Return) => vec![Expression::Verdict(libc::NFT_RETURN)],
        Some(Target::Mark(mark)) => vec![Expression::SetMark(*mark)],
        Some(Target::Jump(chain)) => vec![Expression::Jump(user_chain(chain, family))],
        Some(Target::Tproxy {
            address,
            port,
            mark,
        }) => vec![
            Expression::Tproxy {
                family: nfproto(family),
                address: *address,
                port: *port,
            },
            Expression::SetMark(*mark),
            Expression::Verdict(libc::NF_ACCEPT),
        ],
    }
}
