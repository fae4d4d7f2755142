//! The ports of bridges that can hand what is for them to IP: those whose bridge has an address,
//! which leads back to the Pods. From rtnetlink(7) and linux/if_link.h.

use crate::capture::Family;
use crate::error::Error;
use crate::netlink::{Message, Socket, attributes, u32_at};
use crate::routing::{IFI_INDEX, IFINFOMSG, explain};

const IFLA_INFO_SLAVE_KIND: u16 = 4;

/// `sizeof(struct ifaddrmsg)`: family, prefix length, flags, scope, index
const IFADDRMSG: usize = 8;

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

/// The ports of each family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    v4: Vec<Port>,
    v6: Vec<Port>,
}

/// The bridges of this network namespace.
#[derive(Debug)]
pub struct Bridges {
    socket: Socket,
    ports: Ports,
}

impl Ports {
    /// Those whose bridge has an address of this family.
    pub fn of(&self, family: Family) -> &[Port] {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }
}

impl Bridges {
    /// A socket to ask with.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn open() -> Result<Bridges, Error> {
        let socket = Socket::open(libc::NETLINK_ROUTE)
            .map_err(|error| Error::new("open a netlink socket", error))?;
        let ports = Ports::default();
        Ok(Bridges { socket, ports })
    }

    /// The ports that there were when the kernel was asked.
    pub fn ports(&self) -> &Ports {
        &self.ports
    }

    /// Asks the kernel again; whether there are others now.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn refresh(&mut self) -> Result<bool, Error> {
        let ports = self.list()?;
        let are_others = ports != self.ports;
        self.ports = ports;
        Ok(are_others)
    }

    fn list(&mut self) -> Result<Ports, Error> {
        let fault = |refusal| explain("list the ports of bridges".to_owned(), refusal);
        let mut ports = Vec::new();
        let links = Message::new(libc::RTM_GETLINK, libc::NLM_F_DUMP, &[0; IFINFOMSG]);
        self.socket
            .ask(links, |link| ports.extend(read_port(link.payload)))
            .map_err(fault)?;
        ports.sort_unstable();
        let mut with = |family: Family| -> Result<Vec<Port>, Error> {
            let mut header = [0; IFADDRMSG];
            header[0] = family.number();
            let addresses = Message::new(libc::RTM_GETADDR, libc::NLM_F_DUMP, &header);
            let mut devices = Vec::new();
            let asked = self
                .socket
                .ask(addresses, |it| devices.extend(read_address(it.payload)));
            match asked {
                // A kernel without the family has no addresses of it.
                Err(refusal) if refusal.errno == libc::EOPNOTSUPP => {}
                asked => asked.map_err(fault)?,
            }
            let mut with = ports.clone();
            with.retain(|port| devices.contains(&port.bridge));
            Ok(with)
        };
        let (v4, v6) = (with(Family::V4)?, with(Family::V6)?);
        Ok(Ports { v4, v6 })
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

/// The index of a device that has an address which is not only its link's.
pub fn read_address(payload: &[u8]) -> Option<u32> {
    let header: &[u8; IFADDRMSG] = payload.first_chunk()?;
    (header[3] < libc::RT_SCOPE_LINK).then(|| u32_at(header, 4))?
}
