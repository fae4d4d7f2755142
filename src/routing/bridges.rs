//! Lists the bridges of this network namespace: their ports, and the subnets of their IP addresses, whose
//! hosts IP reaches through the bridge.
//!
//! Nothing here changes the rules that use the list: the guard calls [`BridgeMonitor::refresh`] when
//! [`BridgeMonitor::is_due`], and [`BridgeMonitor::mark_applied`] when the rules match the list. From
//! rtnetlink(7) and linux/if_link.h.

use std::time::{Duration, Instant};

use crate::error::Error;
use crate::log::escape::escaped;
use crate::log::once::LogOnce;
use crate::netlink::message::{Message, attribute, u32_at};
use crate::netlink::socket::Socket;
use crate::routing::rtnetlink::{self, IFI_INDEX, IFINFOMSG};
use crate::selectors::{Cidr, Family};

const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_BR_VLAN_FILTERING: u16 = 7;

/// `sizeof(struct ifaddrmsg)`: family, prefix length, flags, scope, index
const IFADDRMSG: usize = size_of::<libc::ifaddrmsg>();

/// Delay before the next attempt after a failure.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Shortest interval between refreshes that changes of devices cause.
const MIN_INTERVAL: Duration = Duration::from_millis(100);

/// Longest time for which applied rules count as current. They also depend on br_netfilter, and the
/// kernel sends no notification when that module is loaded.
const MAX_AGE: Duration = Duration::from_secs(60);

/// Longest list of names, in bytes, but for [`DOTS`].
const MAX_NAMES: usize = 200;

/// What follows each name in the list.
const SEPARATOR: &[u8] = b", ";

/// What stands for the names that do not fit.
const DOTS: &[u8] = b"...";

/// The bridges of a node, each list in the order of the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BridgeTopology {
    /// Device indices and MAC addresses of the ports of all bridges.
    pub ports: Vec<(u32, [u8; 6])>,
    /// The subnets whose hosts IP reaches through a bridge; those of bridges with VLAN filtering are not
    /// among them.
    pub subnets: Vec<Cidr>,
}

/// The bridges at the last refresh, and the time of the next one.
#[derive(Debug)]
pub struct BridgeMonitor {
    socket: Socket,
    topology: BridgeTopology,
    /// See [`BridgeMonitor::names`]. Each is followed by [`SEPARATOR`].
    names: Vec<u8>,
    refreshed_at: Instant,
    /// When the rules were made to match `topology`; `None` if they do not.
    applied_at: Option<Instant>,
    /// When the next refresh is due; `None` until a device changes.
    due: Option<Instant>,
    errors: LogOnce,
}

impl BridgeMonitor {
    /// Opens the socket. The lists are empty until [`BridgeMonitor::refresh`].
    ///
    /// # Errors
    /// `EMFILE`, or any other error of socket(2).
    pub fn open() -> Result<BridgeMonitor, Error> {
        Ok(BridgeMonitor {
            socket: Socket::open(libc::NETLINK_ROUTE)?,
            topology: BridgeTopology::default(),
            names: Vec::new(),
            refreshed_at: Instant::now(),
            applied_at: None,
            due: None,
            errors: LogOnce::default(),
        })
    }

    /// The bridges at the last refresh.
    pub fn topology(&self) -> &BridgeTopology {
        &self.topology
    }

    /// The names of the bridges, with ports or without, escaped: those that were listed last, which the rules match
    /// unless the refresh failed after that; or as many as [`MAX_NAMES`] allows.
    pub fn names(&self) -> &[u8] {
        self.names.strip_suffix(SEPARATOR).unwrap_or(&self.names)
    }

    /// When the next refresh is due.
    pub fn deadline(&self) -> Option<Instant> {
        self.due
    }

    /// Schedules a refresh because a device has changed.
    pub fn schedule_refresh(&mut self) {
        let soon = self.refreshed_at + MIN_INTERVAL;
        self.due = Some(self.due.map_or(soon, |due| due.min(soon)));
    }

    /// Whether a refresh is due.
    pub fn is_due(&self) -> bool {
        self.due.is_some_and(|due| Instant::now() >= due)
    }

    /// Lists the bridges again.
    ///
    /// # Errors
    /// Any error of the dump, such as `ENOBUFS`; the next refresh is due after a second.
    pub fn refresh(&mut self) -> Result<(), Error> {
        let now = Instant::now();
        self.refreshed_at = now;
        self.due = Some(now + RETRY_DELAY);
        let topology = self.list()?;
        let is_current =
            |applied_at: &Instant| topology == self.topology && now < *applied_at + MAX_AGE;
        self.applied_at = self.applied_at.filter(is_current);
        self.topology = topology;
        self.schedule_regular_refresh();
        Ok(())
    }

    /// Whether the rules have to be changed to match the lists.
    pub fn is_stale(&self) -> bool {
        self.applied_at.is_none()
    }

    /// Records that the rules match the lists.
    pub fn mark_applied(&mut self) {
        self.applied_at = Some(Instant::now());
        self.schedule_regular_refresh();
    }

    /// Whether to log that a refresh, or the change of the rules after it, failed; see [`LogOnce`].
    pub fn should_log_error(&self) -> bool {
        self.errors.should_log()
    }

    /// Without ports of bridges, no refresh is due until a device changes.
    fn schedule_regular_refresh(&mut self) {
        if let Some(applied_at) = self.applied_at {
            self.due = (!self.topology.ports.is_empty()).then_some(applied_at + MAX_AGE);
        }
    }

    fn list(&mut self) -> Result<BridgeTopology, Error> {
        let fault = |refusal| rtnetlink::error("list the ports of bridges", refusal);
        let (mut ports, mut bridges, mut subnets) = (Vec::new(), Vec::new(), Vec::new());
        let mut names = Vec::new();
        let links = Message::new(libc::RTM_GETLINK, libc::NLM_F_DUMP, &[0; IFINFOMSG]);
        self.socket
            .query(links, |link| {
                ports.extend(read_port(link.payload));
                if let Some(bridge) = read_bridge(link.payload) {
                    bridges.push(bridge);
                    push_name(&mut names, link.payload);
                }
            })
            .map_err(fault)?;
        let addresses = Message::new(libc::RTM_GETADDR, libc::NLM_F_DUMP, &[0; IFADDRMSG]);
        self.socket
            .query(addresses, |address| {
                subnets.extend(read_subnet(address.payload));
            })
            .map_err(fault)?;
        let is_of_bridge = |(device, _): &(u32, Cidr)| {
            bridges
                .iter()
                .any(|it: &Bridge| it.index == *device && !it.has_vlan_filtering)
        };
        let subnets = subnets.into_iter().filter(is_of_bridge);
        let subnets = subnets.map(|(_, subnet)| subnet).collect();
        self.names = names;
        Ok(BridgeTopology { ports, subnets })
    }
}

/// A bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bridge {
    /// The device index.
    pub index: u32,
    /// Whether it filters VLANs. Such a bridge drops a frame to itself, even one between two of its
    /// ports, if it is no member of the frame's VLAN (`br_pass_frame_up`, net/bridge/br_input.c).
    has_vlan_filtering: bool,
}

/// Parses a device (`struct ifinfomsg`) that is a port of a bridge: its index and MAC address.
pub fn read_port(payload: &[u8]) -> Option<(u32, [u8; 6])> {
    let device = payload.get(IFINFOMSG..)?;
    let info = attribute(device, libc::IFLA_LINKINFO)?;
    let mac = attribute(device, libc::IFLA_ADDRESS)?.try_into().ok()?;
    let port = (u32_at(payload, IFI_INDEX)?, mac);
    (attribute(info, IFLA_INFO_SLAVE_KIND)? == b"bridge\0").then_some(port)
}

/// Parses a device (`struct ifinfomsg`) that is a bridge.
pub fn read_bridge(payload: &[u8]) -> Option<Bridge> {
    let device = payload.get(IFINFOMSG..)?;
    let info = attribute(device, libc::IFLA_LINKINFO)?;
    let data = attribute(info, IFLA_INFO_DATA)?;
    let bridge = Bridge {
        index: u32_at(payload, IFI_INDEX)?,
        has_vlan_filtering: attribute(data, IFLA_BR_VLAN_FILTERING).is_some_and(|on| on != [0]),
    };
    (attribute(info, IFLA_INFO_KIND)? == b"bridge\0").then_some(bridge)
}

/// Appends the name of a device (`struct ifinfomsg`), which may have any bytes but `/`, `:` and whitespace
/// (`dev_valid_name`, net/core/dev.c), to a list of at most [`MAX_NAMES`] bytes. The first name that does not fit
/// ends the list, with [`DOTS`].
fn push_name(names: &mut Vec<u8>, payload: &[u8]) {
    if names.ends_with(DOTS) {
        return;
    }
    let device = payload.get(IFINFOMSG..).unwrap_or_default();
    let name = attribute(device, libc::IFLA_IFNAME).unwrap_or_default();
    let name = escaped(name.strip_suffix(b"\0").unwrap_or(name)).to_string();
    if names.len() + name.len() + SEPARATOR.len() <= MAX_NAMES {
        names.extend_from_slice(name.as_bytes());
        names.extend_from_slice(SEPARATOR);
    } else {
        names.extend_from_slice(DOTS);
    }
}

/// Parses an address (`struct ifaddrmsg`) of global scope: the device index and the subnet.
pub fn read_subnet(payload: &[u8]) -> Option<(u32, Cidr)> {
    let header: &[u8; IFADDRMSG] = payload.first_chunk()?;
    let (prefix, scope) = (header[1], header[3]);
    let address = attribute(&payload[IFADDRMSG..], libc::IFA_ADDRESS)?;
    let address = Family::from_number(header[0])?.read_address(address)?;
    let subnet = Cidr::new(address, prefix)?;
    (scope < libc::RT_SCOPE_LINK).then_some((u32_at(header, IFI_INDEX)?, subnet))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(bridges: impl IntoIterator<Item = Vec<u8>>) -> String {
        let mut names = Vec::new();
        for name in bridges {
            let mut device = Message::new(libc::RTM_NEWLINK, 0, &[0; IFINFOMSG]);
            device.put(libc::IFLA_IFNAME, &[&name, &b"\0"[..]].concat());
            push_name(&mut names, &device.to_bytes(1)[16..]);
        }
        String::from_utf8(names).unwrap()
    }

    #[test]
    fn the_names_of_bridges_are_a_list_of_limited_length() {
        let names = list((1..=1000).map(|number| format!("bridge{number}").into_bytes()));
        assert!(names.starts_with("bridge1, bridge2, "), "{names}");
        assert!(
            names.len() <= MAX_NAMES + DOTS.len() && names.ends_with(", ..."),
            "{names}"
        );
    }

    #[test]
    fn the_list_of_names_ends_at_the_first_that_does_not_fit() {
        let long = || std::iter::repeat_n(b"a-bridge-longer".to_vec(), 12);
        let names = list(long().chain([b"b0".to_vec()]));
        assert_eq!(names.matches("longer, ").count(), 11, "{names}");
        assert!(names.ends_with("longer, ..."), "{names}");
        assert!(list(long().take(11).chain([b"b0".to_vec()])).ends_with(", b0, "));
    }

    #[test]
    fn a_name_is_printable_whatever_it_has_in_it() {
        let names = list([b"br\xff\x1b[2J".to_vec(), "brü".into(), b"cni0".to_vec()]);
        assert_eq!(names, r"br\xff\x1b[2J, br\xc3\xbc, cni0, ");
    }
}
