//! What selects packets: address families, CIDRs, port ranges and marks, as the command line and the
//! script write them. A type holds valid values only, so that nothing is checked twice.
//!
//! A parser's error says what was expected; the caller adds the option, or the line and the word. `text` has the
//! numbers and lists in them, `mark` the marks.

mod mark;
mod text;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::str::FromStr;

pub use crate::selectors::mark::{Mark, Marks};
pub use crate::selectors::text::{join, list, number};

/// An IP address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

impl Family {
    /// Both families, in the order of all processing.
    pub const ALL: [Family; 2] = [Family::V4, Family::V6];

    /// The family of `address`.
    pub fn of(address: IpAddr) -> Family {
        match address {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        }
    }

    /// The family with this number.
    pub fn from_number(number: u8) -> Option<Family> {
        Family::ALL.into_iter().find(|it| it.number() == number)
    }

    /// The address of this family with which `bytes` begin, in network order.
    pub fn read_address(self, bytes: &[u8]) -> Option<IpAddr> {
        Some(match self {
            Family::V4 => IpAddr::from(*bytes.first_chunk::<4>()?),
            Family::V6 => IpAddr::from(*bytes.first_chunk::<16>()?),
        })
    }

    /// The number of the family in the kernel (`AF_INET`, `AF_INET6`; `NFPROTO_IPV4` and `NFPROTO_IPV6`
    /// are the same).
    pub fn number(self) -> u8 {
        match self {
            Family::V4 => libc::AF_INET as u8,
            Family::V6 => libc::AF_INET6 as u8,
        }
    }

    /// The length of an address, in bits.
    pub fn address_bits(self) -> u8 {
        match self {
            Family::V4 => 32,
            Family::V6 => 128,
        }
    }

    /// The loopback address, to which the listener binds.
    pub fn loopback(self) -> IpAddr {
        match self {
            Family::V4 => Ipv4Addr::LOCALHOST.into(),
            Family::V6 => Ipv6Addr::LOCALHOST.into(),
        }
    }

    /// Suffix of the names of chains and sets of one family.
    pub fn suffix(self) -> &'static str {
        match self {
            Family::V4 => "-v4",
            Family::V6 => "-v6",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
    }
}

/// An address block, `ADDRESS/PREFIX`; the bits after the prefix are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    network: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// The block that contains `address`; `None` if the prefix length is out of range.
    pub fn new(address: IpAddr, prefix: u8) -> Option<Cidr> {
        let host_bits = Family::of(address).address_bits().checked_sub(prefix)?;
        let mask = u128::MAX.checked_shl(host_bits.into()).unwrap_or(0);
        let network = match address {
            IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits() & mask as u32).into(),
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & mask).into(),
        };
        Some(Cidr { network, prefix })
    }

    /// Parses `ADDRESS[/PREFIX]` and clears the host bits, as iptables does for `-s` and `-d`.
    ///
    /// # Errors
    /// An invalid address, or a prefix length out of range.
    pub fn parse_masked(text: &str) -> Result<Cidr, String> {
        Cidr::parse(text).map(|(_, cidr)| cidr)
    }

    /// Parses `ADDRESS[/PREFIX]`: the address, and the block that contains it.
    fn parse(text: &str) -> Result<(IpAddr, Cidr), String> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| {
            "expected an address block such as 10.244.0.0/16 or fd00:10:244::/56".to_owned()
        })?;
        let bits = Family::of(address).address_bits();
        prefix
            .map_or(Some(bits.into()), number)
            .and_then(|prefix| Cidr::new(address, prefix.try_into().ok()?))
            .map(|cidr| (address, cidr))
            .ok_or_else(|| format!("expected a prefix length from 0 to {bits}"))
    }

    /// The first address of the block.
    pub fn network(&self) -> IpAddr {
        self.network
    }

    /// The prefix length, in bits.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The family of the block.
    pub fn family(&self) -> Family {
        Family::of(self.network)
    }

    /// The addresses of the block, as numbers.
    pub fn range(&self) -> RangeInclusive<u128> {
        let low = match self.network {
            IpAddr::V4(network) => network.to_bits().into(),
            IpAddr::V6(network) => network.to_bits(),
        };
        let host_bits = self.family().address_bits() - self.prefix;
        low..=low | !u128::MAX.checked_shl(host_bits.into()).unwrap_or(0)
    }

    /// Whether the block contains `address`.
    pub fn contains(&self, address: IpAddr) -> bool {
        Cidr::new(address, self.prefix) == Some(*self)
    }
}

impl FromStr for Cidr {
    type Err = String;

    /// Parses `ADDRESS[/PREFIX]`. The error for host bits suggests the block and the single address.
    fn from_str(text: &str) -> Result<Cidr, String> {
        let (address, cidr) = Cidr::parse(text)?;
        if cidr.network == address {
            return Ok(cidr);
        }
        let bits = cidr.family().address_bits();
        Err(format!(
            "expected no host bits: {cidr} is the block, {address}/{bits} the single address"
        ))
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

/// TCP or UDP ports, `PORT` or `LOW:HIGH`, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    /// The first port.
    pub low: u16,
    /// The last port, not below `low`.
    pub high: u16,
}

impl PortRange {
    /// The ports of the range, as numbers.
    pub fn range(&self) -> RangeInclusive<u128> {
        self.low.into()..=self.high.into()
    }

    /// Slots in a list of `-m multiport`, which has 15 (`XT_MULTI_PORTS`).
    pub fn multiport_slots(&self) -> usize {
        if self.low == self.high { 1 } else { 2 }
    }
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<PortRange, String> {
        // iptables accepts hexadecimal ports for some options only.
        let port = |text: &str| {
            number(text)
                .filter(|_| !text.starts_with("0x"))
                .and_then(|port| u16::try_from(port).ok())
                .ok_or_else(|| "expected ports from 0 to 65535, as PORT or LOW:HIGH".to_owned())
        };
        let (low, high) = text.split_once(':').unwrap_or((text, text));
        let (low, high) = (port(low)?, port(high)?);
        if low > high {
            return Err(format!("expected the lower port first, as in {high}:{low}"));
        }
        Ok(PortRange { low, high })
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.low == self.high {
            true => write!(f, "{}", self.low),
            false => write!(f, "{}:{}", self.low, self.high),
        }
    }
}

/// The families of `cidrs`, IPv4 first.
pub fn families(cidrs: &[Cidr]) -> impl Iterator<Item = Family> {
    let has = |family: &Family| cidrs.iter().any(|cidr| cidr.family() == *family);
    Family::ALL.into_iter().filter(has)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_bits_name_the_block_and_the_single_address() {
        let error = "10.244.0.1/16".parse::<Cidr>().unwrap_err();
        assert_eq!(
            error,
            "expected no host bits: 10.244.0.0/16 is the block, 10.244.0.1/32 the single address"
        );
    }

    #[test]
    fn the_script_clears_host_bits_as_iptables_does() {
        let masked = |text: &str| Cidr::parse_masked(text).unwrap().to_string();
        assert_eq!(masked("10.244.7.1/16"), "10.244.0.0/16");
        assert_eq!(masked("fd00::5/64"), "fd00::/64");
        assert_eq!(masked("1.2.3.4/0"), "0.0.0.0/0");
    }

    #[test]
    fn a_block_covers_its_first_to_its_last_address() {
        let range = |text: &str| text.parse::<Cidr>().unwrap().range();
        assert_eq!(range("10.244.0.0/16"), 0x0af4_0000..=0x0af4_ffff);
        assert_eq!(range("0.0.0.0/0"), 0..=0xffff_ffff);
        assert_eq!(range("10.0.0.1"), 0x0a00_0001..=0x0a00_0001);
        assert_eq!(range("::/0"), 0..=u128::MAX);
        assert_eq!(range("fd00::/8"), 0xfd << 120..=(0xfe << 120) - 1);
    }

    #[test]
    fn prefixes_out_of_range_are_refused_with_the_limit() {
        let error = |text: &str| text.parse::<Cidr>().unwrap_err();
        let expected = "expected a prefix length from 0 to";
        assert_eq!(error("10.244.0.0/33"), format!("{expected} 32"));
        assert_eq!(error("::/129"), format!("{expected} 128"));
        for prefix in ["", "+8", " 8", "08", "-1"] {
            let error = error(&format!("10.0.0.0/{prefix}"));
            assert_eq!(error, format!("{expected} 32"), "{prefix}");
        }
    }

    #[test]
    fn port_ranges_are_ordered() {
        assert_eq!(
            "9000:8000".parse::<PortRange>().unwrap_err(),
            "expected the lower port first, as in 8000:9000"
        );
        assert_eq!("80:90".parse(), Ok(PortRange { low: 80, high: 90 }));
        for bad in ["", ":", "80:", ":80", "70000", "+1", "1:2:3", "010"] {
            assert!(bad.parse::<PortRange>().is_err(), "{bad}");
        }
    }

    #[test]
    fn marks_are_hexadecimal_or_decimal() {
        let mark = |value, mask| Ok(Mark { value, mask });
        assert_eq!("0x10/0xff".parse(), mark(16, 255));
        assert_eq!("16".parse(), mark(16, u32::MAX));
        for bad in ["", "/", "0x", "0x1/", "0x100000000/1", "010", "-1"] {
            assert!(bad.parse::<Mark>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_list_error_names_the_item() {
        let error = list("80,x,90", PortRange::from_str).unwrap_err();
        assert_eq!(
            error,
            "in the list item \"x\": expected ports from 0 to 65535, as PORT or LOW:HIGH"
        );
    }
}
