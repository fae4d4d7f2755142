//! Rules as types: what a packet has to be, and what is done with it. The meaning is that of
//! iptables(8) and iptables-extensions(8).

use std::net::IpAddr;
use std::ops::RangeInclusive;

use crate::selectors::Mark;

/// A rule: if every match holds, the target is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What a packet has to be.
    pub matches: Vec<Match>,
    /// What is done with it; a rule without a target does nothing.
    pub target: Option<Target>,
}

/// A test, or its opposite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    /// Whether the test has a `!` in front.
    pub negated: bool,
    /// The test itself.
    pub test: Test,
}

/// Ranges of addresses or ports: in ascending order, apart from each other.
pub type Ranges = Vec<RangeInclusive<u128>>;

/// What can be asked of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Test {
    /// `-p`
    Protocol(Protocol),
    /// `--sport`, `--dport`, and the lists of `-m multiport`
    Ports(PortOf, Ranges),
    /// `--tcp-flags MASK SET`, `--syn`: of the flags in `mask`, exactly those in `set` are there
    TcpFlags {
        /// The flags that are looked at, as in byte 13 of the TCP header (RFC 9293, 3.1).
        mask: u8,
        /// Those of them that are set.
        set: u8,
    },
    /// `-m mark --mark`
    Mark(Mark),
    /// `-i NAME`, or `-i PREFIX+`
    Interface {
        /// The name, or its first letters.
        name: String,
        /// Whether more letters may follow.
        prefix: bool,
    },
    /// `-s`, `-d`; one rule for each block until [`coalesce`] has seen them
    Address(AddressOf, Ranges),
    /// `-m socket`: a local socket owns the packet
    Socket {
        /// Only a socket with `IP_TRANSPARENT`.
        transparent: bool,
        /// A socket bound to any address too.
        nowildcard: bool,
    },
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
}

/// Which address of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressOf {
    /// `-s`
    Source,
    /// `-d`
    Destination,
}

/// Which port of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortOf {
    /// `--sport`, `--sports`
    Source,
    /// `--dport`, `--dports`
    Destination,
    /// `--ports`: one of the two
    Either,
}

/// What is done with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// It goes on to the next table.
    Accept,
    /// It is lost.
    Drop,
    /// It goes on behind the rule that jumped here.
    Return,
    /// `mark = mark & !mask ^ value`
    Mark(Mark),
    /// It goes to a transparent listener, if there is one; then it is marked like [`Target::Mark`].
    Tproxy {
        /// The listener's address; the address of the interface it came in by, if none.
        address: Option<IpAddr>,
        /// The listener's port, host order; the packet's own, if 0.
        port: u16,
        /// The mark.
        mark: Mark,
    },
    /// It goes through a user chain.
    Jump(String),
}

/// Sorts ranges, and joins those that overlap or touch.
pub fn merge(ranges: Ranges) -> Ranges {
    ranges.into_iter().fold(Ranges::new(), with)
}

/// Ranges with one more.
fn with(mut merged: Ranges, range: RangeInclusive<u128>) -> Ranges {
    let first = merged.partition_point(|other| other.end().saturating_add(1) < *range.start());
    let behind = merged.partition_point(|other| *other.start() <= range.end().saturating_add(1));
    let touched = &merged[first..behind];
    let start = touched
        .first()
        .map_or(*range.start(), |first| *first.start().min(range.start()));
    let end = touched
        .last()
        .map_or(*range.end(), |last| *last.end().max(range.end()));
    merged.splice(first..behind, [start..=end]);
    merged
}

/// A rule for every block of the lists of a rule, as iptables makes them: a packet meets each that
/// it is in.
pub fn apart(rule: Rule) -> Vec<Rule> {
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

/// Two rules next to each other that differ in one list of addresses or ports are one rule, with
/// the lists joined: iptables needs a line for every 15 ports, nf_tables has sets.
pub fn coalesce(rules: Vec<Rule>) -> Vec<Rule> {
    let mut joined: Vec<Rule> = Vec::with_capacity(rules.len());
    for rule in rules {
        joined.push(rule);
        while let [.., a, b] = joined.as_slice()
            && let Some(both) = join(a, b)
        {
            joined.truncate(joined.len() - 2);
            joined.push(both);
        }
    }
    joined
}

/// One rule for two, if they differ in one list and no packet is in both.
fn join(a: &Rule, b: &Rule) -> Option<Rule> {
    if a.target != b.target || a.matches.len() != b.matches.len() {
        return None;
    }
    let mut different = (0..a.matches.len()).filter(|at| a.matches.get(*at) != b.matches.get(*at));
    let (at, None) = (different.next()?, different.next()) else {
        return None;
    };
    let test = match (a.matches.get(at)?, b.matches.get(at)?) {
        (
            Match {
                negated: false,
                test: Test::Address(of, ours),
            },
            Match {
                negated: false,
                test: Test::Address(too, theirs),
            },
        ) if of == too => Test::Address(*of, union(ours, theirs)?),
        (
            Match {
                negated: false,
                test: Test::Ports(of, ours),
            },
            Match {
                negated: false,
                test: Test::Ports(too, theirs),
            },
        ) if of == too && *of != PortOf::Either => Test::Ports(*of, union(ours, theirs)?),
        _ => return None,
    };
    let mut both = a.clone();
    both.matches.get_mut(at)?.test = test;
    Some(both)
}

fn union(a: &Ranges, b: &Ranges) -> Option<Ranges> {
    let overlap = a.iter().any(|a| {
        b.iter()
            .any(|b| a.start() <= b.end() && b.start() <= a.end())
    });
    (!overlap).then(|| b.iter().cloned().fold(a.clone(), with))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_sorted_and_joined_where_they_overlap_or_touch() {
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
