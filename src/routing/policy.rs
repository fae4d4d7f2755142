//! The mark rule and the AnyIP routes: packets with our mark look up a routing table in which every
//! captured CIDR is local. Ahead of it, another rule has the way back to a client looked up in the main
//! table, also if the client is within a captured CIDR: where the kernel validates sources by mark
//! (`src_valid_mark`, or a firewall's `fib saddr . mark`), it asks as `lo` (`__fib_validate_source`,
//! net/ipv4/fib_frontend.c).
//!
//! Both carry our own protocol number, so that what is ours can be told from what was there before:
//! a rule or route of somebody else's that does the same, and no later, is used, and stays. Where one
//! uses the mark or the table for something else, ours are not installed; once they are, it does not
//! keep them from being put back. From rtnetlink(7), linux/rtnetlink.h and linux/fib_rules.h.

use std::fmt;
use std::net::IpAddr;

use super::installed::{InstalledEntry, another_route, read_route, read_rule};
use crate::error::Error;
use crate::netlink::message::{Message, Received, Refusal, u32_at};
use crate::netlink::socket::Socket;
use crate::selectors::{self, Cidr, Family, Mark};

/// Who installed a rule or route (`rtm_protocol`): a number that is free in rtnetlink.h, `'T'`.
pub(super) const PROTOCOL: u8 = 84;

/// Ahead of the rules of CNI plugins, the first of which stand at 9 (Cilium) and 10 (AWS).
const PRIORITY: u32 = 8;
const PRIORITY_OF_RETURN: u32 = 7;

/// `LOOPBACK_IFINDEX` (include/net/flow.h): `lo` is the first device of every network namespace.
pub const LOOPBACK: u32 = 1;

pub(super) const FRA_IIFNAME: u16 = 3;
pub(super) const FRA_PRIORITY: u16 = 6;
pub(super) const FRA_FWMARK: u16 = 10;
pub(super) const FRA_TABLE: u16 = 15;
pub(super) const FRA_FWMASK: u16 = 16;
pub(super) const FRA_PROTOCOL: u16 = 21;
pub(super) const FR_ACT_TO_TBL: u8 = 1;

/// `sizeof(struct ifinfomsg)`: family, type, index, flags, change mask
pub const IFINFOMSG: usize = 16;
/// Where it has the index of the device, as `struct ifaddrmsg` has.
pub const IFI_INDEX: usize = 4;
const IFI_FLAGS: usize = 8;

/// What stands in the kernel's policy database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// `iif lo fwmark MARK lookup main`
    Return {
        /// Whose packets it selects.
        family: Family,
        /// The mark that they carry.
        mark: Mark,
    },
    /// `fwmark MARK lookup TABLE`
    Rule {
        /// Whose packets it selects.
        family: Family,
        /// The mark that they carry.
        mark: Mark,
        /// The routing table that they look up.
        table: u32,
    },
    /// `local CIDR dev lo table TABLE`
    Route {
        /// The addresses that are local.
        cidr: Cidr,
        /// The routing table that says so.
        table: u32,
    },
}

impl Entry {
    /// Where ours stands among others.
    pub(super) fn priority(self) -> u32 {
        match self {
            Entry::Return { .. } => PRIORITY_OF_RETURN,
            Entry::Rule { .. } => PRIORITY,
            Entry::Route { .. } => 0,
        }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = |family: &Family| match family {
            Family::V4 => "",
            Family::V6 => "IPv6 ",
        };
        match self {
            Entry::Return { family, mark } => {
                write!(f, "{}rule iif lo fwmark {mark} lookup main", prefix(family))
            }
            Entry::Rule {
                family,
                mark,
                table,
            } => write!(f, "{}rule fwmark {mark} lookup {table}", prefix(family)),
            Entry::Route { cidr, table } => write!(f, "route local {cidr} dev lo table {table}"),
        }
    }
}

/// Keeps the mark rule and the AnyIP routes of the captured CIDRs in place.
#[derive(Debug)]
pub struct Routing {
    socket: Socket,
    wanted: Vec<Entry>,
    table: u32,
}

impl Routing {
    /// The routing for these CIDRs. Nothing is changed yet.
    ///
    /// # Errors
    /// What the kernel answers to a new netlink socket.
    pub fn new(cidrs: &[Cidr], mark: Mark, table: u32) -> Result<Routing, Error> {
        let socket = Socket::open(libc::NETLINK_ROUTE)
            .map_err(|error| Error::new("open a netlink socket", error))?;
        let rules = selectors::families(cidrs).flat_map(|family| {
            [
                Entry::Return { family, mark },
                Entry::Rule {
                    family,
                    mark,
                    table,
                },
            ]
        });
        let routes = cidrs.iter().map(|cidr| Entry::Route { cidr: *cidr, table });
        Ok(Routing {
            socket,
            wanted: routes.chain(rules).collect(),
            table,
        })
    }

    /// Whether a rule does the work of one of ours; `payload` is its message.
    pub fn concerns_rule(&self, payload: &[u8]) -> bool {
        let rule = family_of(payload).and_then(|family| read_rule(family, payload));
        rule.is_some_and(|it| self.wanted.contains(&it.entry))
    }

    /// Whether a route of our table is in the place of one of ours; `payload` is its message.
    pub fn concerns_route(&self, payload: &[u8]) -> bool {
        let route = family_of(payload).and_then(|family| read_route(family, self.table, payload));
        route.is_some_and(|it| self.wanted.contains(&it.entry))
    }

    /// Adds all, where nobody else uses the mark or the table for something else; returns what
    /// [`Routing::restore`] does, and `EEXIST` for the first rule or route of somebody else's that bars
    /// one of ours.
    pub fn install(&mut self) -> (Vec<String>, Result<(), Error>) {
        match self.require_room() {
            Ok(()) => self.restore(),
            Err(error) => (Vec::new(), Err(error)),
        }
    }

    /// Whether nobody else uses the mark or the table for something else.
    ///
    /// # Errors
    /// `EEXIST` for the first rule or route that bars one of ours.
    pub fn require_room(&mut self) -> Result<(), Error> {
        let found = self.found()?;
        for entry in &self.wanted {
            if let Some(reason) = found.iter().find_map(|it| it.bars(*entry)) {
                return Err(exists(*entry, reason));
            }
        }
        Ok(())
    }

    /// Adds what is missing and removes what an earlier process of ours left behind, as far as the
    /// kernel lets it; returns what it added, and the first request that the kernel refused.
    pub fn restore(&mut self) -> (Vec<String>, Result<(), Error>) {
        // This comes first: it waits until a device that is changing has lost its routes.
        let mut outcome = self.require_loopback();
        let has_loopback = outcome.is_ok();
        let found = match self.found() {
            Ok(found) => found,
            Err(error) => return (Vec::new(), outcome.and(Err(error))),
        };
        for it in &found {
            if it.ours && !self.wanted.contains(&it.entry) {
                let deleted = self.delete(it.entry, it.priority);
                outcome = outcome.and(deleted.map(drop));
            }
        }
        let mut added = Vec::new();
        for entry in self.wanted.clone() {
            let is_there = found.iter().any(|it| it.serves(entry));
            let is_possible = has_loopback || !matches!(entry, Entry::Route { .. });
            if is_there || !is_possible {
                continue;
            }
            match self.add(entry) {
                Ok(true) => added.push(entry.to_string()),
                Ok(false) => {}
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        (added, outcome)
    }

    /// Removes what is ours, as far as the kernel lets it; returns what it removed, and the first
    /// request that the kernel refused.
    pub fn remove(&mut self) -> (Vec<String>, Result<(), Error>) {
        let (found, mut outcome) = match self.found() {
            Ok(found) => (found, Ok(())),
            Err(error) => (Vec::new(), Err(error)),
        };
        let mut removed = Vec::new();
        for it in found.iter().filter(|it| it.ours) {
            match self.delete(it.entry, it.priority) {
                Ok(true) => removed.push(it.entry.to_string()),
                Ok(false) => {}
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        // What the list lacked. It is rarely there, and a kernel may refuse the question.
        for entry in self.wanted.clone() {
            if let Ok(true) = self.delete(entry, entry.priority()) {
                removed.push(entry.to_string());
            }
        }
        (removed, outcome)
    }

    /// Some kernels take a route to `lo` while it is down, and lose it when it comes up.
    fn require_loopback(&mut self) -> Result<(), Error> {
        let attempt = "add routes to dev lo";
        let mut header = [0; IFINFOMSG];
        header[IFI_INDEX..IFI_FLAGS].copy_from_slice(&LOOPBACK.to_ne_bytes());
        let question = Message::new(libc::RTM_GETLINK, libc::NLM_F_ACK, &header);
        let mut flags = 0;
        self.socket
            .ask(question, |answer| {
                flags = u32_at(answer.payload, IFI_FLAGS).unwrap_or(0);
            })
            .map_err(|refusal| explain(attempt.to_owned(), refusal))?;
        match flags & libc::IFF_UP as u32 {
            0 => Err(Error::numbered(attempt, libc::ENETDOWN).hint("the device lo must be up")),
            _ => Ok(()),
        }
    }

    /// All rules with a mark, and all routes of the tables that ours are in. Some rules may be missing
    /// where others go while the kernel lists them.
    fn found(&mut self) -> Result<Vec<InstalledEntry>, Error> {
        let mut found = Vec::new();
        for family in Family::ALL {
            let mut question =
                Message::new(libc::RTM_GETRULE, libc::NLM_F_DUMP, &rule_header(family, 0));
            self.list("list rules", family, question.clone(), |answer| {
                found.extend(read_rule(family, answer.payload));
            })?;
            let of_ours = |it: &InstalledEntry| match it.entry {
                Entry::Rule { table, .. } if it.ours => Some(table),
                _ => None,
            };
            let mut tables = vec![self.table];
            for table in found.iter().filter_map(of_ours) {
                if !tables.contains(&table) {
                    tables.push(table);
                }
            }
            for table in tables {
                question = Message::new(
                    libc::RTM_GETROUTE,
                    libc::NLM_F_DUMP,
                    &route_header(family, 0, 0, 0, 0),
                );
                question.put_ne32(libc::RTA_TABLE, table);
                self.list("list routes", family, question, |answer| {
                    found.extend(read_route(family, table, answer.payload));
                })?;
            }
        }
        Ok(found)
    }

    /// A dump; a kernel without the family, or without the table, has nothing to list.
    fn list(
        &mut self,
        attempt: &str,
        family: Family,
        question: Message,
        each: impl FnMut(Received<'_>),
    ) -> Result<(), Error> {
        match self.socket.ask(question, each) {
            Err(refusal) if refusal.errno == libc::ENOENT => Ok(()),
            Err(refusal) if !self.wants(family) && refusal.errno != libc::EPERM => Ok(()),
            result => result.map_err(|refusal| explain(attempt.to_owned(), refusal)),
        }
    }

    fn wants(&self, family: Family) -> bool {
        self.wanted
            .iter()
            .any(|entry| matches!(entry, Entry::Rule { family: wanted, .. } if *wanted == family))
    }

    /// Whether it was added; a rule that is there after all needs not be.
    fn add(&mut self, entry: Entry) -> Result<bool, Error> {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL | libc::NLM_F_ACK;
        let kind = match entry {
            Entry::Return { .. } | Entry::Rule { .. } => libc::RTM_NEWRULE,
            Entry::Route { .. } => libc::RTM_NEWROUTE,
        };
        let message = entry_message(entry, kind, flags, entry.priority());
        match (self.socket.request(&[message]), entry) {
            (Ok(()), _) => Ok(true),
            (Err(refusal), Entry::Route { cidr, .. }) if refusal.errno == libc::EEXIST => {
                Err(exists(entry, another_route(cidr)))
            }
            (Err(refusal), _) if refusal.errno == libc::EEXIST => Ok(false),
            (Err(refusal), _) => Err(explain(format!("add {entry}"), refusal)),
        }
    }

    /// Whether it was deleted: what is gone already needs not be.
    fn delete(&mut self, entry: Entry, priority: u32) -> Result<bool, Error> {
        let kind = match entry {
            Entry::Return { .. } | Entry::Rule { .. } => libc::RTM_DELRULE,
            Entry::Route { .. } => libc::RTM_DELROUTE,
        };
        let message = entry_message(entry, kind, libc::NLM_F_ACK, priority);
        match self.socket.request(&[message]) {
            Ok(()) => Ok(true),
            Err(refusal) if matches!(refusal.errno, libc::ENOENT | libc::ESRCH) => Ok(false),
            Err(refusal) => Err(explain(format!("delete {entry}"), refusal)),
        }
    }
}

/// Has the loopback device of this network namespace come up.
///
/// # Errors
/// What the kernel answers.
pub fn raise_loopback() -> Result<(), Error> {
    let attempt = "raise the device lo";
    let mut socket =
        Socket::open(libc::NETLINK_ROUTE).map_err(|error| Error::new(attempt, error))?;
    let mut header = [0; IFINFOMSG];
    header[IFI_INDEX..IFI_FLAGS].copy_from_slice(&LOOPBACK.to_ne_bytes());
    let up = (libc::IFF_UP as u32).to_ne_bytes();
    header[IFI_FLAGS..].copy_from_slice(&[up, up].concat());
    socket
        .request(&[Message::new(libc::RTM_NEWLINK, libc::NLM_F_ACK, &header)])
        .map_err(|refusal| explain(attempt.to_owned(), refusal))
}

/// What was attempted, the kernel's answer, and what helps.
pub fn explain(attempt: String, refusal: Refusal) -> Error {
    let error = Error::numbered(attempt, refusal.errno);
    match (refusal.errno, refusal.words) {
        (libc::EPERM, _) => error.hint("CAP_NET_ADMIN is needed"),
        (libc::EACCES, _) => error.hint("is IPv6 disabled on lo?"),
        (_, Some(words)) => error.hint(words),
        (_, None) => error,
    }
}

/// `struct fib_rule_hdr`: family, lengths of destination and source, TOS, table, two bytes that are
/// not used, action, flags. Tables beyond 255 stand in an attribute.
fn rule_header(family: Family, action: u8) -> [u8; 12] {
    [family.number(), 0, 0, 0, 0, 0, 0, action, 0, 0, 0, 0]
}

/// `struct rtmsg`: family, lengths of destination and source, TOS, table, protocol, scope, type,
/// flags.
fn route_header(family: Family, prefix: u8, protocol: u8, scope: u8, kind: u8) -> [u8; 12] {
    let family = family.number();
    [family, prefix, 0, 0, 0, protocol, scope, kind, 0, 0, 0, 0]
}

/// A request of type `kind` about an entry; rules have a priority.
pub fn entry_message(entry: Entry, kind: u16, flags: libc::c_int, priority: u32) -> Message {
    let rule = |family, mark: Mark, table| {
        let mut message = Message::new(kind, flags, &rule_header(family, FR_ACT_TO_TBL));
        message
            .put_ne32(FRA_PRIORITY, priority)
            .put_ne32(FRA_FWMARK, mark.value)
            .put_ne32(FRA_FWMASK, mark.mask)
            .put_ne32(FRA_TABLE, table)
            .put(FRA_PROTOCOL, &[PROTOCOL]);
        message
    };
    match entry {
        Entry::Return { family, mark } => {
            let mut message = rule(family, mark, libc::RT_TABLE_MAIN.into());
            message.put_text(FRA_IIFNAME, "lo");
            message
        }
        Entry::Rule {
            family,
            mark,
            table,
        } => rule(family, mark, table),
        Entry::Route { cidr, table } => {
            let family = cidr.family();
            let scope = match family {
                Family::V4 => libc::RT_SCOPE_HOST,
                Family::V6 => libc::RT_SCOPE_UNIVERSE,
            };
            let header = route_header(family, cidr.prefix(), PROTOCOL, scope, libc::RTN_LOCAL);
            let mut message = Message::new(kind, flags, &header);
            match cidr.network() {
                IpAddr::V4(network) => message.put(libc::RTA_DST, &network.octets()),
                IpAddr::V6(network) => message.put(libc::RTA_DST, &network.octets()),
            };
            message
                .put_ne32(libc::RTA_OIF, LOOPBACK)
                .put_ne32(libc::RTA_TABLE, table);
            message
        }
    }
}

/// The family of a rule's or route's message.
fn family_of(payload: &[u8]) -> Option<Family> {
    let mut families = Family::ALL.into_iter();
    families.find(|family| payload.first() == Some(&family.number()))
}

/// Something of somebody else's is in the way of one of ours.
fn exists(entry: Entry, reason: String) -> Error {
    Error::numbered(format!("add {entry}"), libc::EEXIST).hint(reason)
}
