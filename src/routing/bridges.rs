//! The bridges of a node: their ports, which hand what is for them to IP, and the neighbours to whom IP
//! finds the way back. From rtnetlink(7) and linux/if_link.h.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::netlink::message::{Message, attributes, u32_at};
use crate::netlink::socket::Socket;
use crate::routing::policy::{IFI_INDEX, IFINFOMSG, explain};
use crate::rules::rule::{Ranges, merge};
use crate::selectors::{Cidr, Family};

const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_BR_VLAN_FILTERING: u16 = 7;

const IFA_ADDRESS: u16 = 1;

/// `sizeof(struct ifaddrmsg)`: family, prefix length, flags, scope, index
const IFADDRMSG: usize = 8;

/// How long what failed is left alone.
const RETRY: Duration = Duration::from_secs(1);

/// How long the bridges are left alone after they were looked at, whatever becomes of devices.
const PAUSE: Duration = Duration::from_millis(100);

/// How often the rules follow the bridges without a word from the kernel: that br_netfilter was loaded
/// is not told.
const REGULAR: Duration = Duration::from_secs(60);

/// A port of a bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    /// The index of the device.
    pub index: u32,
    /// Its hardware address.
    pub hardware: [u8; 6],
}

/// What there is of bridges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct BridgeTopology {
    /// The ports, by their indices.
    ports: Vec<Port>,
    /// The hardware addresses of the bridges themselves, as numbers.
    own: Ranges,
    /// The addresses that are on the links of bridges, of each family.
    v4: Ranges,
    v6: Ranges,
}

/// The bridges of this network namespace, as they were when they were looked at.
#[derive(Debug)]
pub struct BridgeMonitor {
    socket: Socket,
    seen: BridgeTopology,
    looked: Instant,
    followed: Instant,
    /// When to look at them; never, if nothing changes.
    due: Option<Instant>,
    /// The rules have not followed them yet.
    are_ahead: bool,
    /// It is known that they cannot.
    is_known: bool,
}

impl BridgeMonitor {
    /// None, until they are looked at.
    ///
    /// # Errors
    /// What the kernel answers to a new netlink socket.
    pub fn open() -> Result<BridgeMonitor, Error> {
        let socket = Socket::open(libc::NETLINK_ROUTE)
            .map_err(|error| Error::new("open a netlink socket", error))?;
        let now = Instant::now();
        Ok(BridgeMonitor {
            socket,
            seen: BridgeTopology::default(),
            looked: now,
            followed: now,
            due: None,
            are_ahead: true,
            is_known: false,
        })
    }

    /// Their ports.
    pub fn ports(&self) -> &[Port] {
        &self.seen.ports
    }

    /// Their own hardware addresses, as numbers: what is sent there is for IP.
    pub fn own(&self) -> &Ranges {
        &self.seen.own
    }

    /// The addresses of their neighbours: IP finds the way back to them.
    pub fn neighbours(&self, family: Family) -> &Ranges {
        match family {
            Family::V4 => &self.seen.v4,
            Family::V6 => &self.seen.v6,
        }
    }

    /// When they have to be looked at.
    pub fn deadline(&self) -> Option<Instant> {
        self.due
    }

    /// Whether they have to be looked at now; `have_changed` if the kernel tells of devices.
    pub fn are_due(&mut self, have_changed: bool) -> bool {
        if have_changed {
            let soon = self.looked + PAUSE;
            self.due = Some(self.due.map_or(soon, |due| due.min(soon)));
        }
        self.due.is_some_and(|due| Instant::now() >= due)
    }

    /// Looks at them; whether the rules have to follow.
    ///
    /// # Errors
    /// What the kernel answers; they are looked at again.
    pub fn look(&mut self) -> Result<bool, Error> {
        self.looked = Instant::now();
        self.due = Some(self.looked + RETRY);
        let seen = self.list()?;
        let is_time = self.looked >= self.followed + REGULAR;
        self.are_ahead |= seen != self.seen || is_time;
        self.seen = seen;
        if !self.are_ahead {
            self.rest();
        }
        Ok(self.are_ahead)
    }

    /// The rules have followed.
    pub fn are_followed(&mut self) {
        self.followed = Instant::now();
        self.are_ahead = false;
        self.rest();
    }

    /// Whether it is the first time since then that the rules cannot follow.
    pub fn is_news(&mut self) -> bool {
        !std::mem::replace(&mut self.is_known, true)
    }

    fn rest(&mut self) {
        self.is_known = false;
        let regular = self.followed + REGULAR;
        self.due = (!self.seen.ports.is_empty()).then_some(regular);
    }

    fn list(&mut self) -> Result<BridgeTopology, Error> {
        let fault = |refusal| explain("list the ports of bridges".to_owned(), refusal);
        let (mut ports, mut bridges, mut addresses) = (Vec::new(), Vec::new(), Vec::new());
        let links = Message::new(libc::RTM_GETLINK, libc::NLM_F_DUMP, &[0; IFINFOMSG]);
        self.socket
            .ask(links, |link| {
                ports.extend(read_port(link.payload));
                bridges.extend(read_bridge(link.payload));
            })
            .map_err(fault)?;
        ports.sort_unstable();
        let question = Message::new(libc::RTM_GETADDR, libc::NLM_F_DUMP, &[0; IFADDRMSG]);
        self.socket
            .ask(question, |it| addresses.extend(read_address(it.payload)))
            .map_err(fault)?;
        let own = bridges.iter().map(|it: &Bridge| number(it.hardware));
        let plain = bridges.iter().filter(|it| !it.has_vlans);
        let plain: Vec<u32> = plain.map(|it| it.index).collect();
        let neighbours = |family| {
            let here =
                |(device, block): &&(u32, Cidr)| plain.contains(device) && block.family() == family;
            let blocks = addresses.iter().filter(here);
            merge(blocks.map(|(_, block)| block.range()).collect())
        };
        Ok(BridgeTopology {
            own: merge(own.map(|number| number..=number).collect()),
            v4: neighbours(Family::V4),
            v6: neighbours(Family::V6),
            ports,
        })
    }
}

/// A hardware address as a number.
fn number(hardware: [u8; 6]) -> u128 {
    let add = |number: u128, byte| number << 8 | u128::from(byte);
    hardware.into_iter().fold(0, add)
}

/// A bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bridge {
    /// The index of the device.
    pub index: u32,
    hardware: [u8; 6],
    /// It may drop what its ports send to each other, if it is for itself: what is of a VLAN that it
    /// is not in (`br_pass_frame_up`, net/bridge/br_input.c).
    has_vlans: bool,
}

/// A device that is the port of a bridge, behind `struct ifinfomsg`.
pub fn read_port(payload: &[u8]) -> Option<Port> {
    let index = u32_at(payload, IFI_INDEX)?;
    let (mut hardware, mut is_port) = (None, false);
    for (kind, value) in attributes(payload.get(IFINFOMSG..)?) {
        match kind {
            libc::IFLA_ADDRESS => hardware = value.try_into().ok(),
            libc::IFLA_LINKINFO => {
                is_port = attributes(value)
                    .any(|(kind, name)| kind == IFLA_INFO_SLAVE_KIND && name == b"bridge\0");
            }
            _ => {}
        }
    }
    let hardware = hardware?;
    is_port.then_some(Port { index, hardware })
}

/// A device that is a bridge, behind `struct ifinfomsg`.
pub fn read_bridge(payload: &[u8]) -> Option<Bridge> {
    let of_link = || attributes(payload.get(IFINFOMSG..).unwrap_or_default());
    let part = |wanted| of_link().find(|(kind, _)| *kind == wanted);
    let (_, link) = part(libc::IFLA_LINKINFO)?;
    let info = |wanted| attributes(link).find(|(kind, _)| *kind == wanted);
    let (_, name) = info(IFLA_INFO_KIND)?;
    let (_, data) = info(IFLA_INFO_DATA)?;
    let has_vlans = attributes(data).any(|(kind, on)| kind == IFLA_BR_VLAN_FILTERING && on != [0]);
    let (_, hardware) = part(libc::IFLA_ADDRESS)?;
    let bridge = Bridge {
        index: u32_at(payload, IFI_INDEX)?,
        hardware: hardware.try_into().ok()?,
        has_vlans,
    };
    (name.strip_suffix(&[0]).unwrap_or(name) == b"bridge").then_some(bridge)
}

/// A device, and a block of addresses that are on its link, if others may reach them by it.
pub fn read_address(payload: &[u8]) -> Option<(u32, Cidr)> {
    let header: &[u8; IFADDRMSG] = payload.first_chunk()?;
    let (prefix, scope) = (header[1], header[3]);
    let (_, address) = attributes(&payload[IFADDRMSG..]).find(|(kind, _)| *kind == IFA_ADDRESS)?;
    let address = match i32::from(header[0]) {
        libc::AF_INET => IpAddr::from(<[u8; 4]>::try_from(address).ok()?),
        libc::AF_INET6 => IpAddr::from(<[u8; 16]>::try_from(address).ok()?),
        _ => return None,
    };
    let block = Cidr::parse_masked(&format!("{address}/{prefix}")).ok()?;
    (scope < libc::RT_SCOPE_LINK).then_some((u32_at(header, 4)?, block))
}
