//! Lists the rules and routes in the kernel, and compares them with those that tproxy-pod adds.
//! Changes nothing. From rtnetlink(7), linux/rtnetlink.h and linux/fib_rules.h.

use crate::error::Error;
use crate::netlink::message::{Message, ReceivedMessage, attributes, u32_at};
use crate::netlink::socket::Socket;
use crate::routing::entry::{Entry, PROTOCOL, TARGET_PRIORITY, route_header, rule_header};
use crate::routing::rtnetlink::{
    self, FIB_RULE_INVERT, FIB_RULE_UNRESOLVED, FR_ACT_GOTO, FR_ACT_NOP, FR_ACT_TO_TBL, FRA_DST,
    FRA_FWMARK, FRA_FWMASK, FRA_GOTO, FRA_IIFNAME, FRA_PRIORITY, FRA_PROTOCOL,
    FRA_SUPPRESS_IFGROUP, FRA_SUPPRESS_PREFIXLEN, FRA_TABLE, LOOPBACK, ROUTE_HEADER,
};
use crate::selectors::{Cidr, Family, Mark};

/// A rule or route in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstalledEntry {
    /// The closest [`Entry`]; the same one if `is_exact`.
    pub entry: Entry,
    /// The priority of a rule (`FRA_PRIORITY`); 0 for a route.
    pub priority: u32,
    /// Whether tproxy-pod added it, perhaps an earlier version: it has [`PROTOCOL`].
    pub is_own: bool,
    /// Whether `entry` describes it completely: a rule has no other condition, a route is local and
    /// leads to lo.
    pub is_exact: bool,
}

impl InstalledEntry {
    /// Whether it does the same as `expected`, and no later: the number of its priority is not higher.
    pub fn satisfies(&self, expected: Entry) -> bool {
        self.is_exact && self.entry == expected && self.priority <= expected.priority()
    }

    /// Whether it is one of `expected`, whatever its priority.
    pub fn is_among(&self, expected: &[Entry]) -> bool {
        self.is_exact && expected.contains(&self.entry)
    }

    /// Why another process's entry and `expected` cannot both have effect; `None` if they can. `mark_option` is
    /// the option that gives the mark of `expected`.
    pub fn conflict_with(&self, expected: Entry, mark_option: &str) -> Option<String> {
        if self.is_own {
            return None;
        }
        match (self.entry, expected) {
            (
                Entry::MarkRule {
                    family,
                    mark,
                    table,
                },
                Entry::MarkRule {
                    family: expected_family,
                    mark: expected_mark,
                    table: expected_table,
                },
            ) if family == expected_family
                && table != expected_table
                && overlap(mark, expected_mark) =>
            {
                let priority = self.priority;
                Some(format!(
                    "the rule with priority {priority} uses the mark; see {mark_option}"
                ))
            }
            (
                Entry::AnyIpRoute { cidr, table },
                Entry::AnyIpRoute {
                    cidr: expected_cidr,
                    table: expected_table,
                },
            ) if !self.is_exact && table == expected_table && is_within(cidr, expected_cidr) => {
                Some(another_route(cidr))
            }
            _ => None,
        }
    }
}

/// The reason for a conflict with a route to `cidr`.
pub fn another_route(cidr: Cidr) -> String {
    format!("the table has another route to {cidr}; see --table")
}

/// Whether two rules test a common bit of the mark, and require the same of all common bits.
fn overlap(one: Mark, other: Mark) -> bool {
    let common = one.mask & other.mask;
    common != 0 && (one.value ^ other.value) & common == 0
}

/// Whether `outer` contains all of `inner`.
pub fn is_within(inner: Cidr, outer: Cidr) -> bool {
    inner.prefix() >= outer.prefix() && outer.contains(inner.network())
}

/// Lists the rules with a mark or without effect, and the routes of `table` and of the tables to which tproxy-pod's own
/// rules lead. A dump may miss a rule if another is deleted meanwhile.
///
/// # Errors
/// `EPERM`; for one of `families`, any error of the dump except `ENOENT`.
pub fn list(
    socket: &mut Socket,
    families: &[Family],
    table: u32,
) -> Result<Vec<InstalledEntry>, Error> {
    let mut installed: Vec<InstalledEntry> = Vec::new();
    for family in Family::ALL {
        let is_required = families.contains(&family);
        let query = Message::new(libc::RTM_GETRULE, libc::NLM_F_DUMP, &rule_header(family, 0));
        dump(socket, query, "list rules", is_required, |reply| {
            installed.extend(read_rule(reply.payload));
        })?;
        let mut tables = vec![table];
        for it in installed.iter().filter(|it| it.is_own) {
            match it.entry {
                Entry::MarkRule { table, .. } if !tables.contains(&table) => tables.push(table),
                _ => {}
            }
        }
        for table in tables {
            let header = route_header(family, 0, 0, 0, 0);
            let mut query = Message::new(libc::RTM_GETROUTE, libc::NLM_F_DUMP, &header);
            query.put_ne32(libc::RTA_TABLE, table);
            dump(socket, query, "list routes", is_required, |reply| {
                installed.extend(read_route(table, reply.payload));
            })?;
        }
    }
    Ok(installed)
}

/// Dumps rules or routes. A kernel without the table answers `ENOENT`; one without the family answers
/// with another error, which is ignored if the family is not required.
fn dump(
    socket: &mut Socket,
    query: Message,
    attempt: &str,
    is_required: bool,
    each: impl FnMut(ReceivedMessage<'_>),
) -> Result<(), Error> {
    match socket.query(query, each) {
        Err(refusal) if refusal.errno == libc::ENOENT => Ok(()),
        Err(refusal) if !is_required && refusal.errno != libc::EPERM => Ok(()),
        result => result.map_err(|refusal| rtnetlink::error(attempt, refusal)),
    }
}

/// Parses a rule that matches a mark, or does nothing; `None` for any other rule.
pub fn read_rule(payload: &[u8]) -> Option<InstalledEntry> {
    let header: &[u8; ROUTE_HEADER] = payload.first_chunk()?;
    let family = Family::from_number(header[0])?;
    let flags = u32_at(header, 8)?;
    let mut is_exact = header[1..4] == [0; 3] && flags & !FIB_RULE_UNRESOLVED == 0;
    let mut mark = Mark {
        value: 0,
        mask: u32::MAX,
    };
    let (mut table, mut priority, mut protocol) = (u32::from(header[4]), 0, 0);
    let (mut has_iif_lo, mut target) = (false, None);
    for (kind, value) in attributes(&payload[ROUTE_HEADER..]) {
        match (kind, u32_at(value, 0)) {
            (FRA_FWMARK, Some(number)) => mark.value = number,
            (FRA_FWMASK, Some(number)) => mark.mask = number,
            (FRA_TABLE, Some(number)) => table = number,
            (FRA_PRIORITY, Some(number)) => priority = number,
            (FRA_PROTOCOL, _) => protocol = *value.first()?,
            (FRA_IIFNAME, _) if value == b"lo\0" => has_iif_lo = true,
            (FRA_SUPPRESS_PREFIXLEN | FRA_SUPPRESS_IFGROUP, Some(u32::MAX)) => {}
            (FRA_GOTO, Some(number)) => target = Some(number),
            // Any other attribute is a further condition or action.
            (FRA_DST.., _) => is_exact = false,
            _ => {}
        }
    }
    let (entry, has_its_conditions) = match (header[7], mark.value) {
        (FR_ACT_NOP, 0) => (
            Entry::ReversePathTarget { family },
            !has_iif_lo && priority == TARGET_PRIORITY,
        ),
        (_, 0) => return None,
        (FR_ACT_GOTO, _) if has_iif_lo && target == Some(TARGET_PRIORITY) => {
            (Entry::ReversePathRule { family, mark }, true)
        }
        // It is for lookups of the node itself, and harms none.
        _ if has_iif_lo && table == u32::from(libc::RT_TABLE_MAIN) && protocol != PROTOCOL => {
            return None;
        }
        (action, _) => (
            Entry::MarkRule {
                family,
                mark,
                table,
            },
            !has_iif_lo && action == FR_ACT_TO_TBL,
        ),
    };
    is_exact &= has_its_conditions;
    (flags & FIB_RULE_INVERT == 0).then_some(InstalledEntry {
        entry,
        priority,
        is_own: protocol == PROTOCOL,
        is_exact,
    })
}

/// Parses a route of `table`; `None` for a route of another table. It is exact if it is an AnyIP route.
pub fn read_route(table: u32, payload: &[u8]) -> Option<InstalledEntry> {
    let header: &[u8; ROUTE_HEADER] = payload.first_chunk()?;
    let family = Family::from_number(header[0])?;
    let (prefix, protocol, kind) = (header[1], header[5], header[7]);
    let mut network = family.read_address(&[0; 16])?;
    let mut device = None;
    for (kind, value) in attributes(&payload[ROUTE_HEADER..]) {
        match kind {
            libc::RTA_DST => network = family.read_address(value)?,
            libc::RTA_OIF => device = u32_at(value, 0),
            libc::RTA_TABLE if u32_at(value, 0) != Some(table) => return None,
            _ => {}
        }
    }
    let cidr = Cidr::new(network, prefix)?;
    let is_exact = kind == libc::RTN_LOCAL && device == Some(LOOPBACK);
    Some(InstalledEntry {
        entry: Entry::AnyIpRoute { cidr, table },
        priority: 0,
        is_own: is_exact && protocol == PROTOCOL,
        is_exact,
    })
}
