//! The ports of bridges that can hand what is for them to IP, and whose Pods IP finds again: those of
//! bridges with an address, and without VLANs. From rtnetlink(7) and linux/if_link.h.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::capture::{Cidr, Family};
use crate::error::Error;
use crate::netlink::{Message, Socket, attributes, u32_at};
use crate::routing::{IFI_INDEX, IFINFOMSG, explain};
use crate::rule::{Ranges, merge};

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
    /// The index of the bridge.
    bridge: u32,
}

/// The ports of a family's bridges, and the addresses of their neighbours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    /// The ports, by their indices.
    pub ports: Vec<Port>,
    /// The addresses that are on the links of those bridges.
    pub neighbours: Ranges,
}

/// The bridges of this network namespace, as they were when they were looked at.
#[derive(Debug)]
pub struct Bridges {
    socket: Socket,
    v4: Ports,
    v6: Ports,
    seen: Instant,
    followed: Instant,
    /// When to look at them; never, if nothing changes.
    due: Option<Instant>,
    /// The rules have not followed them yet.
    are_ahead: bool,
    /// It is known that they cannot.
    is_known: bool,
}

impl Bridges {
    /// None, until they are looked at.
    ///
    /// # Errors
    /// What the kernel answers to a new netlink socket.
    pub fn open() -> Result<Bridges, Error> {
        let socket = Socket::open(libc::NETLINK_ROUTE)
            .map_err(|error| Error::new("open a netlink socket", error))?;
        let now = Instant::now();
        Ok(Bridges {
            socket,
            v4: Ports::default(),
            v6: Ports::default(),
            seen: now,
            followed: now,
            due: None,
            are_ahead: true,
            is_known: false,
        })
    }

    /// The ports whose bridge has an address of this family.
    pub fn of(&self, family: Family) -> &Ports {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    /// When they have to be looked at.
    pub fn deadline(&self) -> Option<Instant> {
        self.due
    }

    /// Whether they have to be looked at now; `have_changed` if the kernel tells of devices.
    pub fn are_due(&mut self, have_changed: bool) -> bool {
        if have_changed {
            let soon = self.seen + PAUSE;
            self.due = Some(self.due.map_or(soon, |due| due.min(soon)));
        }
        self.due.is_some_and(|due| Instant::now() >= due)
    }

    /// Looks at them; whether the rules have to follow.
    ///
    /// # Errors
    /// What the kernel answers; they are looked at again.
    pub fn look(&mut self) -> Result<bool, Error> {
        self.seen = Instant::now();
        self.due = Some(self.seen + RETRY);
        let (v4, v6) = self.list()?;
        let are_others = v4 != self.v4 || v6 != self.v6;
        let is_time = self.seen >= self.followed + REGULAR;
        self.are_ahead |= are_others || is_time;
        (self.v4, self.v6) = (v4, v6);
        if !self.are_ahead {
            self.rest();
        }
        Ok(self.are_ahead)
    }

    /// The rules have followed.
    pub fn are_followed(&mut self) {
        self.followed = Instant::now();
        self.are_ahead = false;
        self.is_known = false;
        self.rest();
    }

    /// Whether it is the first time since then that the rules cannot follow.
    pub fn is_news(&mut self) -> bool {
        !std::mem::replace(&mut self.is_known, true)
    }

    fn rest(&mut self) {
        let there_are = !(self.v4.ports.is_empty() && self.v6.ports.is_empty());
        self.due = there_are.then(|| self.followed + REGULAR);
    }

    fn list(&mut self) -> Result<(Ports, Ports), Error> {
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
        let of = |family| {
            let mut addresses = addresses.clone();
            addresses
                .retain(|(device, block)| bridges.contains(device) && block.family() == family);
            let mut ports = ports.clone();
            ports.retain(|port| addresses.iter().any(|(device, _)| *device == port.bridge));
            let neighbours = addresses.iter().map(|(_, block)| block.range());
            let neighbours = merge(neighbours.collect());
            Ports { ports, neighbours }
        };
        Ok((of(Family::V4), of(Family::V6)))
    }
}

/// A device that is the port of a bridge, behind `struct ifinfomsg`.
pub fn read_port(payload: &[u8]) -> Option<Port> {
    let index = u32_at(payload, IFI_INDEX)?;
    let (mut bridge, mut hardware, mut is_port) = (None, None, false);
    for (kind, value) in attributes(payload.get(IFINFOMSG..)?) {
        match kind {
            libc::IFLA_MASTER => bridge = u32_at(value, 0),
            libc::IFLA_ADDRESS => hardware = value.try_into().ok(),
            libc::IFLA_LINKINFO => {
                is_port = attributes(value)
                    .any(|(kind, name)| kind == IFLA_INFO_SLAVE_KIND && name == b"bridge\0");
            }
            _ => {}
        }
    }
    is_port.then_some(Port {
        index,
        hardware: hardware?,
        bridge: bridge?,
    })
}

/// The index of a device that is a bridge, and takes frames of all its ports for itself: one with VLANs
/// drops those of a VLAN that it is not in (`br_pass_frame_up`, net/bridge/br_input.c).
pub fn read_bridge(payload: &[u8]) -> Option<u32> {
    let mut links = attributes(payload.get(IFINFOMSG..)?);
    let (_, link) = links.find(|(kind, _)| *kind == libc::IFLA_LINKINFO)?;
    let part = |wanted| attributes(link).find(|(kind, _)| *kind == wanted);
    let (_, name) = part(IFLA_INFO_KIND)?;
    let (_, data) = part(IFLA_INFO_DATA)?;
    let has_vlans = attributes(data).any(|(kind, on)| kind == IFLA_BR_VLAN_FILTERING && on != [0]);
    let is_one = name.strip_suffix(&[0]).unwrap_or(name) == b"bridge" && !has_vlans;
    is_one.then(|| u32_at(payload, IFI_INDEX))?
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
    let block = Cidr::masking(&format!("{address}/{prefix}")).ok()?;
    (scope < libc::RT_SCOPE_LINK).then_some((u32_at(header, 4)?, block))
}
