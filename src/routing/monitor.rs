//! Notices that rules, routes or devices have changed, so that what is ours can be put back, and
//! follows the bridges. From rtnetlink(7).

use std::os::fd::{AsFd, BorrowedFd};

use crate::error::Error;
use crate::netlink::message::{Received, u32_at};
use crate::netlink::socket::Socket;
use crate::routing::policy::{IFI_INDEX, LOOPBACK, Routing};

/// The notifications that tell of lost rules and routes (linux/rtnetlink.h). The routes of IPv4
/// vanish with the last address of their device, without a word of their own. That IPv6 is enabled
/// again on `lo`, its address `::1` tells.
const GROUPS: [u32; 7] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV4_RULE,
    libc::RTNLGRP_IPV6_ROUTE,
    libc::RTNLGRP_IPV6_RULE,
];

/// What has changed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Changes {
    /// Something that the routing wants may have gone.
    pub loss: bool,
    /// A device or an address of one is another.
    pub devices: bool,
}

/// Notices changes of rules, routes and devices.
#[derive(Debug)]
pub struct Monitor {
    socket: Socket,
}

impl Monitor {
    /// Starts watching.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn start() -> Result<Monitor, Error> {
        let fault = |cause: std::io::Error| Error::new("watch rules and routes", cause);
        let socket = Socket::open(libc::NETLINK_ROUTE).map_err(fault)?;
        GROUPS
            .into_iter()
            .try_for_each(|group| socket.subscribe(group))
            .map_err(fault)?;
        Ok(Monitor { socket })
    }

    /// Reads what has changed. There may be more to read then.
    pub fn changes(&mut self, routing: &Routing) -> Changes {
        let mut changes = Changes::default();
        let read = self.socket.notifications(|message| {
            changes.loss |= concerns(routing, message);
            changes.devices |= concerns_devices(message);
        });
        // Notifications that were lost (ENOBUFS) may have been about ours.
        Changes {
            loss: changes.loss || read.is_err(),
            devices: changes.devices || read.is_err(),
        }
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Whether a device or an address of one has changed, other than of `lo`.
pub fn concerns_devices(message: Received<'_>) -> bool {
    let is_device = matches!(
        message.kind,
        libc::RTM_NEWLINK | libc::RTM_DELLINK | libc::RTM_NEWADDR | libc::RTM_DELADDR
    );
    is_device && u32_at(message.payload, IFI_INDEX) != Some(LOOPBACK)
}

/// Whether a rule like ours is gone, a route in the place of ours is gone or came in by replacing
/// another, or `lo` or its addresses have changed.
pub fn concerns(routing: &Routing, message: Received<'_>) -> bool {
    let replaces = i32::from(message.flags) & libc::NLM_F_REPLACE != 0;
    match message.kind {
        libc::RTM_DELRULE => routing.concerns_rule(message.payload),
        libc::RTM_DELROUTE => routing.concerns_route(message.payload),
        libc::RTM_NEWROUTE if replaces => routing.concerns_route(message.payload),
        libc::RTM_NEWLINK | libc::RTM_DELLINK | libc::RTM_NEWADDR | libc::RTM_DELADDR => {
            u32_at(message.payload, IFI_INDEX) == Some(LOOPBACK)
        }
        _ => false,
    }
}
