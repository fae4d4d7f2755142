//! Reports changes of rules, routes and devices, by rtnetlink notifications. Changes nothing itself:
//! the guard restores rules and routes, and lists the bridges again. From rtnetlink(7).

use std::os::fd::{AsFd, BorrowedFd};

use crate::error::Error;
use crate::netlink::message::{ReceivedMessage, u32_at};
use crate::netlink::socket::Socket;
use crate::routing::node_routes::may_lead_into;
use crate::routing::policy::Routing;
use crate::routing::rtnetlink::{IFI_INDEX, LOOPBACK};
use crate::selectors::Cidr;

/// The multicast groups (linux/rtnetlink.h). Those of addresses are among them because the kernel
/// deletes IPv4 routes with the last address of their device and sends no notification of a route, and
/// because `::1` returns to lo when IPv6 is enabled on it again.
const GROUPS: [u32; 7] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV4_RULE,
    libc::RTNLGRP_IPV6_ROUTE,
    libc::RTNLGRP_IPV6_RULE,
];

/// Changes since the last read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Changes {
    /// An expected rule or route may be missing.
    pub loss: bool,
    /// Some notifications could not be read, and may have reported anything.
    pub overflow: bool,
    /// A device other than lo, or one of its addresses, has changed.
    pub devices: bool,
    /// A route has appeared that may lead into a block which had none.
    pub routes: bool,
}

/// A socket that receives notifications.
#[derive(Debug)]
pub struct Monitor {
    socket: Socket,
}

impl Monitor {
    /// Subscribes to notifications of this network namespace.
    ///
    /// # Errors
    /// `EMFILE`, or any other error of socket(2) and setsockopt(2).
    pub fn start() -> Result<Monitor, Error> {
        let socket = Socket::open(libc::NETLINK_ROUTE)?;
        GROUPS
            .into_iter()
            .try_for_each(|group| socket.subscribe(group))
            .map_err(|error| Error::new("watch rules and routes", error))?;
        Ok(Monitor { socket })
    }

    /// Reads pending notifications; more may be pending afterwards. `unrouted` are the blocks without a route.
    /// If some notifications were lost (`ENOBUFS`), or reading fails, devices and routes count as changed, too.
    pub fn changes(&mut self, routing: &Routing, unrouted: &[Cidr]) -> Changes {
        let mut changes = Changes::default();
        let read = self.socket.read_notifications(|message| {
            changes.loss |= affects_routing(routing, message);
            changes.devices |= affects_devices(message);
            changes.routes |= may_lead_into(unrouted, message);
        });
        Changes {
            loss: changes.loss,
            overflow: read.is_err(),
            devices: changes.devices || read.is_err(),
            routes: changes.routes || read.is_err(),
        }
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Whether the notification reports a change of a device other than lo, or of its addresses.
pub fn affects_devices(message: ReceivedMessage<'_>) -> bool {
    device(message).is_some_and(|index| index != LOOPBACK)
}

/// Whether an expected rule or route may be missing: one was deleted, a route was replaced, or lo or
/// its addresses have changed.
pub fn affects_routing(routing: &Routing, message: ReceivedMessage<'_>) -> bool {
    let is_replacement = i32::from(message.flags) & libc::NLM_F_REPLACE != 0;
    match message.kind {
        libc::RTM_DELRULE => routing.expects_rule(message.payload),
        libc::RTM_DELROUTE => routing.expects_route(message.payload),
        libc::RTM_NEWROUTE if is_replacement => routing.expects_route(message.payload),
        _ => device(message) == Some(LOOPBACK),
    }
}

/// The device index of a notification about a device or an address.
fn device(message: ReceivedMessage<'_>) -> Option<u32> {
    match message.kind {
        libc::RTM_NEWLINK | libc::RTM_DELLINK | libc::RTM_NEWADDR | libc::RTM_DELADDR => {
            u32_at(message.payload, IFI_INDEX)
        }
        _ => None,
    }
}
