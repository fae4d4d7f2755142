//! Evaluates the rules of a script for a packet, as iptables(8) and iptables-extensions(8) define; except that
//! TPROXY without a listener lets it continue, and remembers the connections whose SYNs it takes.

use tproxy_pod::rules::rule::{AddressOf, Match, PortOf, Protocol, Ranges, Rule, Target, Test};
use tproxy_pod::rules::script::{OUTPUT, PREROUTING, Script};
use tproxy_pod::selectors::Mark;

use crate::packet::{BUDGET, Fate, Packet};

/// Verdict for a packet; `None` if too many rules would have to be tried. A packet that gets the mark `selector`
/// is tagged.
pub fn fate(script: &Script, packet: &Packet, selector: Mark) -> Option<Fate> {
    let mut run = Run {
        script,
        selector,
        is_tagged: false,
        packet: packet.clone(),
        listener: None,
        budget: BUDGET,
    };
    let start = if packet.is_sent { OUTPUT } else { PREROUTING };
    let accepted = run.chain(start)?.unwrap_or(true);
    Some(Fate {
        accepted,
        mark: run.packet.mark,
        connection_mark: run.packet.connection_mark,
        is_tagged: run.is_tagged,
        listener: run.listener,
        is_remembered: run.packet.is_remembered,
    })
}

struct Run<'s> {
    script: &'s Script,
    selector: Mark,
    is_tagged: bool,
    packet: Packet,
    listener: Option<(Option<std::net::IpAddr>, u16)>,
    budget: usize,
}

impl Run<'_> {
    /// Whether a chain accepts or drops the packet; inside, `None` if the packet returns from it.
    fn chain(&mut self, name: &str) -> Option<Option<bool>> {
        let chain = self.script.chains.iter().find(|chain| chain.name == name);
        for rule in &chain.expect("jumps lead to chains").rules {
            self.budget = self.budget.checked_sub(1)?;
            if !matches(rule, &self.packet) {
                continue;
            }
            match &rule.target {
                Some(Target::Accept) => return Some(Some(true)),
                Some(Target::Drop) => return Some(Some(false)),
                Some(Target::Return) => return Some(None),
                Some(Target::Mark(mark)) => self.mark(*mark),
                Some(Target::ConnectionMark(mark)) => {
                    let old = self.packet.connection_mark;
                    self.packet.connection_mark = old.map(|old| marked(old, *mark));
                }
                Some(Target::Tproxy {
                    address,
                    port,
                    mark,
                }) if self.packet.has_listener => {
                    self.listener = Some((*address, *port));
                    self.mark(*mark);
                    self.packet.is_remembered |= rule.takes_syns() && !self.packet.is_full;
                    return Some(Some(true));
                }
                Some(Target::Release) => {
                    self.packet.is_remembered = false;
                    return Some(Some(true));
                }
                Some(Target::Jump(to)) => {
                    if let Some(verdict) = self.chain(to)? {
                        return Some(Some(verdict));
                    }
                }
                Some(Target::Tproxy { .. }) | None => {}
            }
        }
        Some(None)
    }

    fn mark(&mut self, mark: Mark) {
        self.packet.mark = marked(self.packet.mark, mark);
        let sets = |old| marked(old, mark) & self.selector.mask == self.selector.value;
        self.is_tagged |= sets(0) && sets(u32::MAX);
    }
}

/// "Zero out the bits given by mask and XOR value."
fn marked(old: u32, mark: Mark) -> u32 {
    (old & !mark.mask) ^ mark.value
}

fn matches(rule: &Rule, packet: &Packet) -> bool {
    rule.matches.iter().all(|it| matches_one(it, packet))
}

/// The mark of a connection is compared only if there is one, whether `!` precedes the test or not.
fn matches_one(it: &Match, packet: &Packet) -> bool {
    let can_match = !matches!(it.test, Test::ConnectionMark(_)) || packet.connection_mark.is_some();
    can_match && holds(&it.test, packet) != it.negated
}

fn holds(test: &Test, packet: &Packet) -> bool {
    let [source, destination] = packet.ports.map(u128::from);
    match test {
        Test::Protocol(protocol) => packet.protocol == *protocol,
        Test::Ports(PortOf::Source, ranges) => is_in(ranges, source),
        Test::Ports(PortOf::Destination, ranges) => is_in(ranges, destination),
        Test::Ports(PortOf::Either, ranges) => is_in(ranges, source) || is_in(ranges, destination),
        Test::TcpFlags { mask, set } => {
            packet.protocol == Protocol::Tcp && packet.flags & mask == *set
        }
        Test::Mark(mark) => packet.mark & mark.mask == mark.value,
        Test::ConnectionMark(mark) => packet
            .connection_mark
            .is_some_and(|of_connection| of_connection & mark.mask == mark.value),
        Test::Local(AddressOf::Source) => packet.is_local[0],
        Test::Local(AddressOf::Destination) => packet.is_local[1],
        Test::Handshake => packet.is_remembered,
        Test::Interface { name, prefix: true } => packet.interface.starts_with(name),
        Test::Interface { name, .. } => packet.interface == *name,
        Test::Address(AddressOf::Source, ranges) => is_in(ranges, packet.addresses[0]),
        Test::Address(AddressOf::Destination, ranges) => is_in(ranges, packet.addresses[1]),
        Test::Socket {
            transparent,
            with_wildcards,
        } => packet.socket.is_some_and(|owner| {
            let counts = *with_wildcards || !owner.wildcard || !owner.full;
            counts && (owner.transparent || !transparent)
        }),
    }
}

fn is_in(ranges: &Ranges, number: u128) -> bool {
    ranges.iter().any(|range| range.contains(&number))
}
