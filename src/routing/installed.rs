//! Rules and routes as the kernel lists them. From rtnetlink(7) and linux/fib_rules.h.

use std::net::IpAddr;

use super::policy::{
    Entry, FR_ACT_TO_TBL, FRA_FWMARK, FRA_FWMASK, FRA_IIFNAME, FRA_PRIORITY, FRA_PROTOCOL,
    FRA_TABLE, LOOPBACK, PROTOCOL,
};
use crate::netlink::message::{attributes, u32_at};
use crate::selectors::{Cidr, Family, Mark};

const FRA_DST: u16 = 1;
const FRA_SUPPRESS_IFGROUP: u16 = 13;
const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
const FIB_RULE_INVERT: u32 = 2;

/// An entry that was found, and whether it is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstalledEntry {
    /// What it does, if it is plain.
    pub entry: Entry,
    /// Where a rule stands among others (`FRA_PRIORITY`).
    pub priority: u32,
    /// Whether it carries our protocol number.
    pub ours: bool,
    /// Whether it is no more than its entry says: a rule may have other conditions, a route may lead
    /// elsewhere.
    pub plain: bool,
}

impl InstalledEntry {
    /// Whether it does the work of one of ours, and no later.
    pub fn serves(&self, wanted: Entry) -> bool {
        self.plain && self.entry == wanted && self.priority <= wanted.priority()
    }

    /// Why one of ours and this one cannot both do their work.
    pub fn bars(&self, wanted: Entry) -> Option<String> {
        match (self.entry, wanted) {
            _ if self.ours => None,
            (
                Entry::Rule {
                    family,
                    mark,
                    table,
                },
                Entry::Rule {
                    family: wanted_family,
                    mark: wanted_mark,
                    table: wanted_table,
                },
            ) if family == wanted_family && table != wanted_table && overlap(mark, wanted_mark) => {
                let priority = self.priority;
                Some(format!(
                    "the rule with priority {priority} uses the mark; see --mark"
                ))
            }
            (
                Entry::Route { cidr, table },
                Entry::Route {
                    cidr: block,
                    table: wanted_table,
                },
            ) if !self.plain && table == wanted_table && is_within(cidr, block) => {
                Some(another_route(cidr))
            }
            _ => None,
        }
    }
}

/// Why a route to `cidr` is in the way.
pub fn another_route(cidr: Cidr) -> String {
    format!("the table has another route to {cidr}; see --table")
}

/// Whether a packet can have both marks by a bit that both ask for.
fn overlap(one: Mark, other: Mark) -> bool {
    let common = one.mask & other.mask;
    common != 0 && (one.value ^ other.value) & common == 0
}

fn is_within(part: Cidr, block: Cidr) -> bool {
    part.prefix() >= block.prefix() && block.contains(part.network())
}

/// A rule that asks for a mark. It is plain if it asks for nothing else, and leads to a table.
pub fn read_rule(family: Family, payload: &[u8]) -> Option<InstalledEntry> {
    let header: &[u8; 12] = payload.first_chunk()?;
    let flags = u32_at(payload, 8)?;
    let mut plain = header[1..4] == [0; 3] && header[7] == FR_ACT_TO_TBL && flags == 0;
    let mut mark = Mark {
        value: 0,
        mask: u32::MAX,
    };
    let (mut table, mut priority, mut protocol) = (u32::from(header[4]), 0, 0);
    let mut of_node = false;
    for (kind, value) in attributes(&payload[12..]) {
        match (kind, u32_at(value, 0)) {
            (FRA_FWMARK, Some(number)) => mark.value = number,
            (FRA_FWMASK, Some(number)) => mark.mask = number,
            (FRA_TABLE, Some(number)) => table = number,
            (FRA_PRIORITY, Some(number)) => priority = number,
            (FRA_PROTOCOL, _) => protocol = *value.first()?,
            (FRA_IIFNAME, _) if value == b"lo\0" => of_node = true,
            (FRA_SUPPRESS_PREFIXLEN | FRA_SUPPRESS_IFGROUP, Some(u32::MAX)) => {}
            (FRA_DST.., _) => plain = false,
            _ => {}
        }
    }
    let entry = match of_node {
        true if table == libc::RT_TABLE_MAIN.into() => Entry::Return { family, mark },
        _ => Entry::Rule {
            family,
            mark,
            table,
        },
    };
    plain &= !of_node || matches!(entry, Entry::Return { .. });
    (mark.value != 0 && flags & FIB_RULE_INVERT == 0).then_some(InstalledEntry {
        entry,
        priority,
        ours: plain && protocol == PROTOCOL,
        plain,
    })
}

/// A route. It is plain if it is an AnyIP route.
pub fn read_route(family: Family, table: u32, payload: &[u8]) -> Option<InstalledEntry> {
    let header: &[u8; 12] = payload.first_chunk()?;
    let (prefix, protocol, kind) = (header[1], header[5], header[7]);
    let mut network = match family {
        Family::V4 => IpAddr::from([0u8; 4]),
        Family::V6 => IpAddr::from([0u8; 16]),
    };
    let mut device = None;
    for (kind, value) in attributes(&payload[12..]) {
        match kind {
            libc::RTA_DST if family == Family::V4 => {
                network = IpAddr::from(*value.first_chunk::<4>()?)
            }
            libc::RTA_DST => network = IpAddr::from(*value.first_chunk::<16>()?),
            libc::RTA_OIF => device = u32_at(value, 0),
            libc::RTA_TABLE if u32_at(value, 0) != Some(table) => return None,
            _ => {}
        }
    }
    let cidr = Cidr::parse_masked(&format!("{network}/{prefix}")).ok()?;
    let plain = kind == libc::RTN_LOCAL && device == Some(LOOPBACK);
    Some(InstalledEntry {
        entry: Entry::Route { cidr, table },
        priority: 0,
        ours: plain && protocol == PROTOCOL,
        plain,
    })
}
