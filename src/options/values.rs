//! The values of options. An error says what was expected; the caller adds the option and its value.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::http::directives;
use crate::http::status::Status;
use crate::log::LogFormat;
use crate::selectors::{self, Cidr, Family, Mark, PortRange};

fn number<T: TryFrom<u64>>(text: &str, low: u64, high: u64) -> Result<T, String> {
    selectors::number(text)
        .filter(|number| (low..=high).contains(number))
        .and_then(|number| T::try_from(number).ok())
        .ok_or_else(|| format!("expected a number from {low} to {high}"))
}

/// A port, or a count of connections.
pub fn up_to_65535<T: TryFrom<u64>>(text: &str) -> Result<T, String> {
    number(text, 1, 65535)
}

pub fn cidrs(text: &str) -> Result<Vec<Cidr>, String> {
    let mut cidrs: Vec<Cidr> = Vec::new();
    for cidr in selectors::list(text, Cidr::from_str)? {
        if !cidrs.contains(&cidr) {
            cidrs.push(cidr);
        }
    }
    Ok(cidrs)
}

pub fn dports(text: &str) -> Result<Vec<PortRange>, String> {
    selectors::list(text, |item| match PortRange::from_str(item) {
        Ok(range) if range.low > 0 => Ok(range),
        _ if !item.contains(':') => Err("expected a port from 1 to 65535".to_owned()),
        Ok(_) => Err("expected ports from 1 to 65535".to_owned()),
        Err(expected) => Err(expected),
    })
}

pub fn mark(text: &str) -> Result<Mark, String> {
    let mark = Mark::from_str(text)?;
    if !text.contains('/') {
        return Err("expected VALUE/MASK, such as 0x1/0x1".to_owned());
    }
    if mark.value & !mark.mask != 0 {
        return Err("expected a value within its mask".to_owned());
    }
    if mark.value == 0 {
        return Err("expected a value that is not 0, which is what other packets carry".to_owned());
    }
    Ok(mark)
}

/// Refuses `RT_TABLE_DEFAULT`, `RT_TABLE_MAIN` and `RT_TABLE_LOCAL` (linux/rtnetlink.h), which the node
/// itself uses.
pub fn table(text: &str) -> Result<u32, String> {
    match number(text, 1, u32::MAX.into())? {
        253..=255 => {
            Err("expected a table other than default, main and local (253 to 255)".to_owned())
        }
        table => Ok(table),
    }
}

pub fn file(text: &str) -> Result<PathBuf, String> {
    match text {
        "" => Err("expected a file".to_owned()),
        _ => Ok(text.into()),
    }
}

pub fn family(text: &str) -> Result<Family, String> {
    match text {
        "v4" => Ok(Family::V4),
        "v6" => Ok(Family::V6),
        _ => Err("expected v4 or v6".to_owned()),
    }
}

/// The longest delay of all echoes.
const MAX_DELAY: Duration = Duration::from_secs(60);

pub fn status(text: &str) -> Result<Status, String> {
    let status = directives::parse_status(text.as_bytes());
    status.ok_or_else(|| "expected a number from 200 to 599".to_owned())
}

pub fn delay(text: &str) -> Result<Duration, String> {
    let delay = directives::parse_delay(text.as_bytes(), MAX_DELAY);
    delay.ok_or_else(|| "expected a duration such as 250ms or 2s, at most 60s".to_owned())
}

pub fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("expected text or json".to_owned()),
    }
}

pub fn address(text: &str) -> Result<SocketAddr, String> {
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 => Ok(address),
        _ => Err("expected ADDRESS:PORT, such as 0.0.0.0:9180 or [::]:9180".to_owned()),
    }
}
