//! The types of a rule: matches and a target, as in iptables(8) and iptables-extensions(8). Here they
//! are also split and merged; `nftables` translates them for the kernel.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use crate::rules::tcp::{ACK, FIN, RST, SYN};
use crate::selectors::{Family, Mark};

/// A rule: a packet that passes every match goes to the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The matches, all of which a packet must pass.
    pub matches: Vec<Match>,
    /// The target; a rule without one does nothing.
    pub target: Option<Target>,
}

impl Rule {
    /// The chain to which the rule jumps.
    pub fn jump(&self) -> Option<&str> {
        match &self.target {
            Some(Target::Jump(chain)) => Some(chain),
            _ => None,
        }
    }

    /// Whether TPROXY takes nothing but SYNs by this rule.
    pub fn takes_syns(&self) -> bool {
        let is_tproxy = matches!(self.target, Some(Target::Tproxy { .. }));
        is_tproxy && self.matches.iter().any(Match::selects_syns)
    }

    /// Whether it takes nothing but other packets of connections whose SYN TPROXY has taken.
    pub fn takes_handshakes(&self) -> bool {
        self.matches.contains(&Test::Handshake.into())
    }
}

/// A test, or its negation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    /// Whether a `!` precedes the test.
    pub negated: bool,
    /// The test itself.
    pub test: Test,
}

impl Match {
    /// Whether only packets with the flag SYN pass.
    pub fn selects_syns(&self) -> bool {
        let has_syn = |set| !self.negated && set & SYN != 0;
        matches!(self.test, Test::TcpFlags { set, .. } if has_syn(set))
    }
}

impl From<Test> for Match {
    /// A test that has to hold.
    fn from(test: Test) -> Match {
        let negated = false;
        Match { negated, test }
    }
}

/// Ranges of addresses or ports. After [`merge`] they are in ascending order and do not touch.
pub type Ranges = Vec<RangeInclusive<u128>>;

/// A test of a packet. The head of src/rules/mod.rs lists what a new one needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Test {
    /// `-p`
    Protocol(Protocol),
    /// `--sport`, `--dport`, and the lists of `-m multiport`
    Ports(PortOf, Ranges),
    /// `--tcp-flags MASK SET`, `--syn`: of the flags in `mask`, exactly those in `set` are set
    TcpFlags {
        /// The flags to examine, bits of `rules::tcp`.
        mask: u8,
        /// The flags that must be set.
        set: u8,
    },
    /// `-m mark --mark`
    Mark(Mark),
    /// `-m connmark --mark`: the mark of the packet's conntrack entry; without one the test fails
    ConnectionMark(Mark),
    /// `-m addrtype --src-type LOCAL`, `--dst-type LOCAL`: the address is one of the node's own
    Local(AddressOf),
    /// `-i NAME`, or `-i PREFIX+`
    Interface {
        /// The name, or the prefix of it.
        name: String,
        /// Whether `name` is a prefix.
        prefix: bool,
    },
    /// `-s`, `-d`; one block before [`merge_adjacent`]
    Address(AddressOf, Ranges),
    /// `-m socket`: a local socket matches the packet
    Socket {
        /// Only a socket with `IP_TRANSPARENT`.
        transparent: bool,
        /// `--nowildcard`: also a socket that is bound to any address, which iptables ignores otherwise.
        with_wildcards: bool,
    },
    /// Of the packet's connection, TPROXY has taken a SYN, or another packet that passed this test, in the last 10 s.
    /// No option is this: it is the test of the rules that `handshakes` adds.
    Handshake,
}

impl Test {
    /// `--syn`: the first segment of a connection.
    pub const SYN: Test = Test::TcpFlags {
        mask: FIN | SYN | RST | ACK,
        set: SYN,
    };
}

/// A protocol above IP, with its number in the IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP
    Tcp = libc::IPPROTO_TCP as isize,
    /// UDP
    Udp = libc::IPPROTO_UDP as isize,
    /// ICMP, of IPv4
    Icmp = libc::IPPROTO_ICMP as isize,
    /// ICMPv6
    Icmpv6 = libc::IPPROTO_ICMPV6 as isize,
}

impl Protocol {
    /// The name in a script.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Icmp => "icmp",
            Protocol::Icmpv6 => "ipv6-icmp",
        }
    }

    /// Whether its header has ports.
    pub fn has_ports(self) -> bool {
        matches!(self, Protocol::Tcp | Protocol::Udp)
    }

    /// The protocol of ICMP messages in this family.
    pub fn icmp_of(family: Family) -> Protocol {
        match family {
            Family::V4 => Protocol::Icmp,
            Family::V6 => Protocol::Icmpv6,
        }
    }
}

/// An address field of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressOf {
    /// `-s`
    Source,
    /// `-d`
    Destination,
}

/// A port field of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortOf {
    /// `--sport`, `--sports`
    Source,
    /// `--dport`, `--dports`
    Destination,
    /// `--ports`: at least one of the two
    Either,
}

/// The target of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The packet leaves the table and continues.
    Accept,
    /// The packet is dropped.
    Drop,
    /// The packet continues after the rule that jumped to this chain.
    Return,
    /// The packet gets a mark: `mark = mark & !mask ^ value`
    Mark(Mark),
    /// The packet's conntrack entry gets a mark in the same way.
    ConnectionMark(Mark),
    /// A transparent socket gets the packet, which is marked as in [`Target::Mark`] and accepted.
    /// Without such a socket the packet continues with the next rule.
    Tproxy {
        /// The address of the socket; by default that of the incoming interface.
        address: Option<IpAddr>,
        /// The port of the socket, host order; 0 means the destination port of the packet.
        port: u16,
        /// The mark.
        mark: Mark,
    },
    /// The packet is accepted, and [`Test::Handshake`] no longer holds for its connection. No option is this:
    /// it stands for TPROXY while the server drains.
    Release,
    /// The packet traverses a user chain.
    Jump(String),
}

/// Sorts ranges and merges those that overlap or touch.
pub fn merge(mut ranges: Ranges) -> Ranges {
    ranges.sort_unstable_by_key(|range| *range.start());
    ranges.dedup_by(|range, last| {
        let touches = *range.start() <= last.end().saturating_add(1);
        if touches {
            *last = *last.start()..=*last.end().max(range.end());
        }
        touches
    });
    ranges
}

/// Splits a rule with lists of addresses into one rule for each combination of blocks, as iptables
/// does. Blocks may overlap: a packet in two of them passes both rules.
pub fn split_lists(rule: Rule) -> Vec<Rule> {
    let mut rules = vec![rule];
    for at in 0..rules[0].matches.len() {
        let split = |mut rule: Rule| match &mut rule.matches[at].test {
            Test::Address(of, ranges) => {
                let (of, ranges) = (*of, std::mem::take(ranges));
                let one = |range| {
                    let mut one = rule.clone();
                    one.matches[at].test = Test::Address(of, vec![range]);
                    one
                };
                ranges.into_iter().map(one).collect()
            }
            _ => vec![rule],
        };
        rules = rules.into_iter().flat_map(split).collect();
    }
    rules
}

/// Merges adjacent rules that differ in one list of addresses or ports: iptables needs a line for
/// every 15 ports, nf_tables has sets.
pub fn merge_adjacent(rules: Vec<Rule>) -> Vec<Rule> {
    let mut merged: Vec<Rule> = Vec::with_capacity(rules.len());
    for rule in rules {
        merged.push(rule);
        while let [.., a, b] = merged.as_mut_slice()
            && merge_pair(a, b)
        {
            merged.pop();
        }
    }
    merged
}

/// Merges a rule into another that differs in one list. `false` if they differ otherwise, or if a packet can
/// pass both. No list is copied: there may be thousands of rules, and a list of thousands.
fn merge_pair(a: &mut Rule, b: &Rule) -> bool {
    if a.target != b.target || a.matches.len() != b.matches.len() {
        return false;
    }
    let pairs = a.matches.iter_mut().zip(&b.matches);
    let mut different = pairs.filter(|(ours, theirs)| *ours != *theirs);
    let (Some((ours, theirs)), None) = (different.next(), different.next()) else {
        return false;
    };
    if ours.negated || theirs.negated {
        return false;
    }
    match (&mut ours.test, &theirs.test) {
        (Test::Address(of, ours), Test::Address(too, theirs)) if of == too => {
            add_disjoint(ours, theirs)
        }
        (Test::Ports(of, ours), Test::Ports(too, theirs)) if of == too && *of != PortOf::Either => {
            add_disjoint(ours, theirs)
        }
        _ => false,
    }
}

/// Adds ranges to others, unless they overlap.
fn add_disjoint(ranges: &mut Ranges, others: &Ranges) -> bool {
    let overlaps = |other: &RangeInclusive<u128>| {
        let mut ranges = ranges.iter();
        ranges.any(|range| range.start() <= other.end() && other.start() <= range.end())
    };
    if others.iter().any(overlaps) {
        return false;
    }
    ranges.extend_from_slice(others);
    *ranges = merge(std::mem::take(ranges));
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_sorted_and_merged_where_they_overlap_or_touch() {
        assert_eq!(merge(vec![8..=9, 1..=2, 4..=5, 3..=3]), [1..=5, 8..=9]);
        assert_eq!(merge(vec![1..=9, 3..=4]), [1..=9]);
        assert_eq!(merge(vec![3..=4, 7..=8, 1..=9]), [1..=9]);
        assert_eq!(
            merge(vec![0..=0, u128::MAX..=u128::MAX, 5..=u128::MAX]),
            [0..=0, 5..=u128::MAX]
        );
        assert_eq!(merge(vec![]), []);
    }
}
