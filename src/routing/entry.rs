//! The rules and routes that tproxy-pod adds, and the requests that add and delete them.
//!
//! All have a protocol number of their own (`rtm_protocol`, `FRA_PROTOCOL`), by which tproxy-pod
//! recognizes them later. From rtnetlink(7), linux/rtnetlink.h and linux/fib_rules.h.

use std::fmt;
use std::net::IpAddr;

use libc::c_int;

use crate::netlink::message::Message;
use crate::routing::rtnetlink::{
    FR_ACT_GOTO, FR_ACT_NOP, FR_ACT_TO_TBL, FRA_FWMARK, FRA_FWMASK, FRA_GOTO, FRA_IIFNAME,
    FRA_PRIORITY, FRA_PROTOCOL, FRA_TABLE, LOOPBACK, ROUTE_HEADER,
};
use crate::selectors::{Cidr, Family, Mark};

/// The protocol number of tproxy-pod: `'T'`, unassigned in linux/rtnetlink.h
pub const PROTOCOL: u8 = 84;

/// Priorities of the rules. Those of CNI plugins start at 9 (Cilium) and 10 (AWS).
const REVERSE_PATH_RULE_PRIORITY: u32 = 7;
const MARK_RULE_PRIORITY: u32 = 8;
/// Where a [`Entry::ReversePathRule`] leads.
pub const TARGET_PRIORITY: u32 = 9;

/// A rule of the routing policy, or a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// `iif lo fwmark MARK goto 9`
    ReversePathRule {
        /// The address family.
        family: Family,
        /// The mark of the packets.
        mark: Mark,
    },
    /// `nop`, with the priority 9: the rule to which a [`Entry::ReversePathRule`] leads
    ReversePathTarget {
        /// The address family.
        family: Family,
    },
    /// `fwmark MARK lookup TABLE`
    MarkRule {
        /// The address family.
        family: Family,
        /// The mark of the packets.
        mark: Mark,
        /// The routing table with the AnyIP routes.
        table: u32,
    },
    /// `local CIDR dev lo table TABLE`
    AnyIpRoute {
        /// The local addresses.
        cidr: Cidr,
        /// The routing table of the route.
        table: u32,
    },
}

impl Entry {
    /// Whether it is a route, and no rule.
    pub fn is_route(self) -> bool {
        matches!(self, Entry::AnyIpRoute { .. })
    }

    /// The priority with which tproxy-pod adds a rule; 0 for a route.
    pub fn priority(self) -> u32 {
        match self {
            Entry::ReversePathRule { .. } => REVERSE_PATH_RULE_PRIORITY,
            Entry::ReversePathTarget { .. } => TARGET_PRIORITY,
            Entry::MarkRule { .. } => MARK_RULE_PRIORITY,
            Entry::AnyIpRoute { .. } => 0,
        }
    }

    /// The request that adds the entry; the kernel refuses it with `EEXIST` if the entry exists.
    pub fn add_request(self) -> Message {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL | libc::NLM_F_ACK;
        match self {
            Entry::AnyIpRoute { .. } => self.request(libc::RTM_NEWROUTE, flags, 0),
            _ => self.request(libc::RTM_NEWRULE, flags, self.priority()),
        }
    }

    /// The request that deletes the entry; a rule has this priority. The kernel compares only what the request
    /// names, so a rule with further conditions is deleted, too.
    pub fn delete_request(self, priority: u32) -> Message {
        match self {
            Entry::AnyIpRoute { .. } => self.request(libc::RTM_DELROUTE, libc::NLM_F_ACK, 0),
            _ => self.request(libc::RTM_DELRULE, libc::NLM_F_ACK, priority),
        }
    }

    fn request(self, kind: u16, flags: c_int, priority: u32) -> Message {
        let rule = |family, action| {
            let mut message = Message::new(kind, flags, &rule_header(family, action));
            message
                .put_ne32(FRA_PRIORITY, priority)
                .put(FRA_PROTOCOL, &[PROTOCOL]);
            message
        };
        match self {
            Entry::ReversePathRule { family, mark } => {
                let mut message = rule(family, FR_ACT_GOTO);
                put_mark(&mut message, mark)
                    .put_text(FRA_IIFNAME, "lo")
                    .put_ne32(FRA_GOTO, TARGET_PRIORITY);
                message
            }
            Entry::ReversePathTarget { family } => rule(family, FR_ACT_NOP),
            Entry::MarkRule {
                family,
                mark,
                table,
            } => {
                let mut message = rule(family, FR_ACT_TO_TBL);
                put_mark(&mut message, mark).put_ne32(FRA_TABLE, table);
                message
            }
            Entry::AnyIpRoute { cidr, table } => route(kind, flags, cidr, table),
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
            Entry::ReversePathRule { family, mark } => {
                let prefix = prefix(family);
                write!(
                    f,
                    "{prefix}rule iif lo fwmark {mark} goto {TARGET_PRIORITY}"
                )
            }
            Entry::ReversePathTarget { family } => {
                write!(f, "{}rule priority {TARGET_PRIORITY} nop", prefix(family))
            }
            Entry::MarkRule {
                family,
                mark,
                table,
            } => write!(f, "{}rule fwmark {mark} lookup {table}", prefix(family)),
            Entry::AnyIpRoute { cidr, table } => {
                write!(f, "route local {cidr} dev lo table {table}")
            }
        }
    }
}

fn put_mark(message: &mut Message, mark: Mark) -> &mut Message {
    message
        .put_ne32(FRA_FWMARK, mark.value)
        .put_ne32(FRA_FWMASK, mark.mask)
}

/// A request about an AnyIP route.
fn route(kind: u16, flags: c_int, cidr: Cidr, table: u32) -> Message {
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

/// `struct fib_rule_hdr`: family, prefix lengths of destination and source, TOS, table, two unused
/// bytes, action, flags. The table is an attribute, because it may exceed 255.
pub fn rule_header(family: Family, action: u8) -> [u8; ROUTE_HEADER] {
    [family.number(), 0, 0, 0, 0, 0, 0, action, 0, 0, 0, 0]
}

/// `struct rtmsg`: family, prefix lengths of destination and source, TOS, table, protocol, scope,
/// type, flags. The table is an attribute, because it may exceed 255.
pub fn route_header(
    family: Family,
    prefix: u8,
    protocol: u8,
    scope: u8,
    kind: u8,
) -> [u8; ROUTE_HEADER] {
    let family = family.number();
    [family, prefix, 0, 0, 0, protocol, scope, kind, 0, 0, 0, 0]
}
