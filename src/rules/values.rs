//! The values of the options of a rule: addresses, ports, interfaces, flags and targets.
//!
//! Errors name what was expected; the caller adds the word.

use std::net::IpAddr;

use crate::rules::error::{SyntaxError, require};
use crate::rules::limits::{LONGEST_CHAIN_NAME, LONGEST_INTERFACE, MULTIPORT_SLOTS};
use crate::rules::rule::{Protocol, Ranges, Target, Test, merge};
use crate::rules::tcp::{ACK, FIN, PSH, RST, SYN, URG};
use crate::selectors::{Cidr, Family, Mark, PortRange, list};

/// The supported targets, for error messages.
pub const TARGETS: &str =
    "-j ACCEPT, DROP, RETURN, MARK, CONNMARK, TPROXY or a chain declared above";

/// Parses the address blocks of `-s` and `-d`, and keeps their order.
///
/// # Errors
/// A word that is no block.
pub fn blocks(text: &str) -> Result<Vec<Cidr>, String> {
    list(text, |item| match netmask(item) {
        Some((address, mask)) => masked(address, mask),
        None => Cidr::parse_masked(item),
    })
}

/// Splits `ADDRESS/NETMASK`, such as 10.0.0.0/255.0.0.0 or fd00::/ffff::. `None` for any other text.
fn netmask(text: &str) -> Option<(IpAddr, IpAddr)> {
    let (address, mask) = text.split_once('/')?;
    Some((address.parse().ok()?, mask.parse().ok()?))
}

/// The block of an address and its netmask.
fn masked(address: IpAddr, mask: IpAddr) -> Result<Cidr, String> {
    let (ones, all_ones) = match mask {
        IpAddr::V4(mask) => (mask.to_bits().leading_ones(), mask.to_bits().count_ones()),
        IpAddr::V6(mask) => (mask.to_bits().leading_ones(), mask.to_bits().count_ones()),
    };
    let prefix = u8::try_from(ones).ok().filter(|_| ones == all_ones);
    prefix
        .filter(|_| Family::of(address) == Family::of(mask))
        .and_then(|prefix| Cidr::new(address, prefix))
        .ok_or_else(|| "expected a netmask of ones followed by zeros".to_owned())
}

/// Parses the ports of `-m multiport`.
///
/// # Errors
/// A word that is no port or range, or more than [`MULTIPORT_SLOTS`].
pub fn multiport(text: &str) -> Result<Ranges, String> {
    let ports = list(text, |item| match item.parse()? {
        PortRange { low, high } if low == high && item.contains(':') => {
            Err("expected a range to end above its start".to_owned())
        }
        range => Ok(range),
    })?;
    match ports.iter().map(PortRange::multiport_slots).sum::<usize>() <= MULTIPORT_SLOTS {
        true => Ok(merge(ports.iter().map(PortRange::range).collect())),
        false => Err("expected at most 15 ports, of which a range counts as two".to_owned()),
    }
}

/// Parses the protocol of `-p`: a name in any case, or a number.
///
/// # Errors
/// Any other protocol than TCP, UDP and the family's ICMP.
pub fn protocol(text: &str, family: Family) -> Result<Protocol, String> {
    let icmp = Protocol::icmp_of(family);
    match (text.to_ascii_lowercase().as_str(), family) {
        ("tcp" | "6", _) => Ok(Protocol::Tcp),
        ("udp" | "17", _) => Ok(Protocol::Udp),
        ("icmp" | "1", Family::V4) | ("ipv6-icmp" | "icmpv6" | "58", Family::V6) => Ok(icmp),
        ("all" | "0", _) => Err("expected no -p for all protocols".to_owned()),
        _ => Err(format!("expected tcp, udp or {}", icmp.name())),
    }
}

/// Parses the address type of `-m addrtype`.
///
/// # Errors
/// Any other type than LOCAL.
pub fn check_address_type(text: &str) -> Result<(), String> {
    match text {
        "LOCAL" => Ok(()),
        _ => Err("the one supported type is LOCAL".to_owned()),
    }
}

/// Parses the interface of `-i`.
///
/// # Errors
/// A name that no interface can have.
pub fn interface(text: &str) -> Result<Test, String> {
    let is_invalid = text.is_empty()
        || text.len() > LONGEST_INTERFACE
        || text.contains(|c: char| c == '/' || c.is_whitespace());
    if is_invalid {
        return Err("expected an interface of 1 to 15 letters, with + for any ending".to_owned());
    }
    let prefix = text.strip_suffix('+');
    Ok(Test::Interface {
        name: prefix.unwrap_or(text).to_owned(),
        prefix: prefix.is_some(),
    })
}

/// Parses one of the two lists of `--tcp-flags`.
///
/// # Errors
/// A word that is no flag.
pub fn tcp_flags(text: &str) -> Result<u8, String> {
    let flags = list(text, |flag| match flag {
        "FIN" => Ok(FIN),
        "SYN" => Ok(SYN),
        "RST" => Ok(RST),
        "PSH" => Ok(PSH),
        "ACK" => Ok(ACK),
        "URG" => Ok(URG),
        "ALL" => Ok(FIN | SYN | RST | PSH | ACK | URG),
        "NONE" => Ok(0),
        _ => Err("expected flags out of SYN, ACK, FIN, RST, URG, PSH, ALL, NONE".to_owned()),
    })?;
    Ok(flags.into_iter().fold(0, std::ops::BitOr::bitor))
}

/// Parses the target of `-j`; its options are still unset.
///
/// # Errors
/// A target that is not supported, or a chain that is not declared.
pub fn target(name: &str, is_declared: impl Fn(&str) -> bool) -> Result<Target, String> {
    let unset = Mark { value: 0, mask: 0 };
    Ok(match name {
        "ACCEPT" => Target::Accept,
        "DROP" => Target::Drop,
        "RETURN" => Target::Return,
        "MARK" => Target::Mark(unset),
        "CONNMARK" => Target::ConnectionMark(unset),
        "TPROXY" => Target::Tproxy {
            address: None,
            port: 0,
            mark: unset,
        },
        chain if is_declared(chain) => Target::Jump(chain.to_owned()),
        _ => return Err(format!("supported are {TARGETS}")),
    })
}

/// Checks the name of a user chain.
///
/// # Errors
/// A name that iptables would read as an option or a target, or that is too long.
pub fn check_chain_name(name: &str) -> Result<(), SyntaxError> {
    let is_target = target(name, |_| false).is_ok() || name == "QUEUE";
    let is_ascii = name
        .bytes()
        .all(|byte| byte.is_ascii_graphic() && byte != b'"');
    let is_short = (1..=LONGEST_CHAIN_NAME).contains(&name.len());
    require(
        is_short && is_ascii && !name.starts_with(['-', '!']) && !is_target,
        name,
        "expected a chain name of 1 to 28 letters that is no target and starts with neither - nor !",
    )
}
