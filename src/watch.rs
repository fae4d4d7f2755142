//! Notices that rules, routes or devices have changed, so that what is ours can be put back. From
//! rtnetlink(7).

use std::os::fd::{AsFd, BorrowedFd};

use crate::error::Error;
use crate::netlink::{Received, Socket, attributes, u32_at};
use crate::routing::{IFI_INDEX, LOOPBACK, Routing};

/// The notifications that tell of lost rules and routes (linux/rtnetlink.h). The routes of IPv4
/// vanish with their device, without a word of their own.
const GROUPS: [u32; 5] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV4_RULE,
    libc::RTNLGRP_IPV6_ROUTE,
    libc::RTNLGRP_IPV6_RULE,
];

/// Notices changes of rules, routes and devices.
#[derive(Debug)]
pub struct Watch {
    socket: Socket,
}

impl Watch {
    /// Starts watching.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn start() -> Result<Watch, Error> {
        let fault = |cause: std::io::Error| Error::new("watch rules and routes", cause);
        let socket = Socket::open(libc::NETLINK_ROUTE).map_err(fault)?;
        GROUPS
            .into_iter()
            .try_for_each(|group| socket.subscribe(group))
            .map_err(fault)?;
        Ok(Watch { socket })
    }

    /// Whether something may have gone since the last time that `routing` wants.
    pub fn has_lost(&mut self, routing: &Routing) -> bool {
        let mut lost = false;
        let read = self
            .socket
            .notifications(|message| lost |= concerns(routing, message));
        // Notifications that were lost (ENOBUFS) may have been about ours.
        lost || read.is_err()
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A rule is gone, a route of our table is gone, or `lo` has changed.
fn concerns(routing: &Routing, message: Received<'_>) -> bool {
    let attribute = |wanted: u16, number: u32| {
        let mut found = attributes(message.payload.get(12..).unwrap_or_default());
        found.any(|(kind, value)| kind == wanted && u32_at(value, 0) == Some(number))
    };
    match message.kind {
        libc::RTM_DELRULE => true,
        libc::RTM_DELROUTE => attribute(libc::RTA_TABLE, routing.table()),
        libc::RTM_NEWLINK | libc::RTM_DELLINK => {
            u32_at(message.payload, IFI_INDEX) == Some(LOOPBACK)
        }
        _ => false,
    }
}
