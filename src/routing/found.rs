//! Rules and routes as the kernel lists them. From rtnetlink(7) and linux/fib_rules.h.

use std::net::IpAddr;

use super::{
    Entry, FR_ACT_TO_TBL, FRA_FWMARK, FRA_FWMASK, FRA_PRIORITY, FRA_PROTOCOL, FRA_TABLE, LOOPBACK,
    PROTOCOL,
};
use crate::capture::{Cidr, Family, Mark};
use crate::netlink::{attributes, u32_at};

const FRA_DST: u16 = 1;
const FRA_SUPPRESS_IFGROUP: u16 = 13;
const FRA_SUPPRESS_PREFIXLEN: u16 = 14;

/// An entry that was found, and whether it is ours.
pub(super) struct Found {
    pub entry: Entry,
    pub priority: u32,
    pub ours: bool,
}

/// A rule that selects by mark alone; one that asks for more is not the same.
pub(super) fn read_rule(family: Family, payload: &[u8]) -> Option<Found> {
    let header: &[u8; 12] = payload.first_chunk()?;
    let unconditional =
        header[1..4] == [0; 3] && header[7] == FR_ACT_TO_TBL && header[8..12] == [0; 4];
    let mut mark = Mark {
        value: 0,
        mask: u32::MAX,
    };
    let (mut table, mut priority, mut protocol) = (u32::from(header[4]), 0, 0);
    for (kind, value) in attributes(&payload[12..]) {
        match (kind, u32_at(value, 0)) {
            (FRA_FWMARK, Some(number)) => mark.value = number,
            (FRA_FWMASK, Some(number)) => mark.mask = number,
            (FRA_TABLE, Some(number)) => table = number,
            (FRA_PRIORITY, Some(number)) => priority = number,
            (FRA_PROTOCOL, _) => protocol = *value.first()?,
            (FRA_SUPPRESS_PREFIXLEN | FRA_SUPPRESS_IFGROUP, Some(u32::MAX)) => {}
            (FRA_DST.., _) => return None,
            _ => {}
        }
    }
    let entry = Entry::Rule {
        family,
        mark,
        table,
    };
    (unconditional && mark.value != 0).then_some(Found {
        entry,
        priority,
        ours: protocol == PROTOCOL,
    })
}

pub(super) fn read_route(family: Family, table: u32, payload: &[u8]) -> Option<Found> {
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
    let any_ip = kind == libc::RTN_LOCAL && device == Some(LOOPBACK);
    let cidr = Cidr::masking(&format!("{network}/{prefix}")).ok()?;
    any_ip.then_some(Found {
        entry: Entry::Route { cidr, table },
        priority: 0,
        ours: protocol == PROTOCOL,
    })
}
