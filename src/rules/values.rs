//! The values that the options of a rule take.

use std::ops::RangeInclusive;

use crate::rules::rule::{Protocol, Ranges, Target, Test, merge};
use crate::selectors::{Cidr, Family, Mark, PortRange, list_with};

use super::line::{RuleError, TARGETS, Words};

pub(super) fn ports_range(ports: PortRange) -> RangeInclusive<u128> {
    ports.low.into()..=ports.high.into()
}

/// Blocks of a family, in the order in which they stand.
pub(super) fn blocks(text: &str, family: Family) -> Result<Ranges, String> {
    let cidrs = list_with(text, |item| match Cidr::parse_masked(item)? {
        cidr if cidr.family() == family => Ok(cidr),
        _ => Err(format!("expected an {family} block")),
    })?;
    Ok(cidrs.iter().map(Cidr::range).collect())
}

/// The ports of `-m multiport`.
pub(super) fn multiport(text: &str) -> Result<Ranges, String> {
    let ports = list_with(text, |item| match item.parse()? {
        PortRange { low, high } if low == high && item.contains(':') => {
            Err("expected a range to end above its start".to_owned())
        }
        range => Ok(range),
    })?;
    match ports.iter().map(PortRange::multiport_slots).sum::<usize>() <= 15 {
        true => Ok(merge(ports.into_iter().map(ports_range).collect())),
        false => Err("expected at most 15 ports, of which a range counts as two".to_owned()),
    }
}

pub(super) fn protocol(text: &str) -> Result<Protocol, String> {
    match text {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        _ => Err("expected tcp or udp".to_owned()),
    }
}

/// `IFNAMSIZ` (linux/if.h) leaves 15 bytes for a name.
pub(super) fn interface(words: &mut Words<'_>) -> Result<Test, RuleError> {
    words.parse(|text| {
        let bad = text.is_empty()
            || text.len() > 15
            || text.contains(|c: char| c == '/' || c.is_whitespace());
        if bad {
            return Err(
                "expected an interface of 1 to 15 letters, with + for any ending".to_owned(),
            );
        }
        let (name, prefix) = text
            .strip_suffix('+')
            .map_or((text, false), |name| (name, true));
        Ok(Test::Interface {
            name: name.to_owned(),
            prefix,
        })
    })
}

pub(super) fn tcp_flags(text: &str) -> Result<u8, String> {
    let flags = list_with(text, |flag| match flag {
        "FIN" => Ok(0x01),
        "SYN" => Ok(0x02),
        "RST" => Ok(0x04),
        "PSH" => Ok(0x08),
        "ACK" => Ok(0x10),
        "URG" => Ok(0x20),
        "ALL" => Ok(0x3f),
        "NONE" => Ok(0),
        _ => Err("expected flags out of SYN, ACK, FIN, RST, URG, PSH, ALL, NONE".to_owned()),
    })?;
    Ok(flags.into_iter().fold(0, std::ops::BitOr::bitor))
}

/// `XT_MAX_COMMENT_LEN` (linux/netfilter/xt_comment.h) is 256 with the closing NUL.
pub(super) fn comment(text: &str) -> Result<(), String> {
    match text.len() {
        0..=255 => Ok(()),
        _ => Err("expected at most 255 bytes".to_owned()),
    }
}

pub(super) fn target(name: &str, declared: impl Fn(&str) -> bool) -> Result<Target, RuleError> {
    let unset = Mark { value: 0, mask: 0 };
    Ok(match name {
        "ACCEPT" => Target::Accept,
        "DROP" => Target::Drop,
        "RETURN" => Target::Return,
        "MARK" => Target::Mark(unset),
        "TPROXY" => Target::Tproxy {
            address: None,
            port: 0,
            mark: unset,
        },
        chain if declared(chain) => Target::Jump(chain.to_owned()),
        _ => return Err(RuleError::new(name, format!("supported are {TARGETS}"))),
    })
}

/// Whether a user chain may have this name: neither an option nor a target of iptables' own, and
/// short enough (`XT_EXTENSION_MAXNAMELEN`, linux/netfilter/x_tables.h, is 29 with the closing NUL).
///
/// # Errors
/// What is expected instead.
pub fn check_chain_name(name: &str) -> Result<(), RuleError> {
    let reserved = target(name, |_| false).is_ok() || name == "QUEUE";
    let ascii = name
        .bytes()
        .all(|byte| byte.is_ascii_graphic() && byte != b'"');
    match (1..=28).contains(&name.len()) && ascii && !name.starts_with(['-', '!']) && !reserved {
        true => Ok(()),
        false => Err(RuleError::new(
            name,
            "expected a chain name of 1 to 28 letters that is no target and starts with neither - nor !",
        )),
    }
}
