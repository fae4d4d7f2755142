//! The state of the device lo, to which the AnyIP routes lead. From rtnetlink(7).

use crate::error::Error;
use crate::netlink::message::{Message, u32_at};
use crate::netlink::socket::Socket;
use crate::routing::rtnetlink::{self, IFI_FLAGS, IFI_INDEX, IFINFOMSG, LOOPBACK};

/// Brings lo up in this network namespace.
///
/// # Errors
/// `EPERM` without CAP_NET_ADMIN, `EMFILE`, or any other error of socket(2).
pub fn set_up() -> Result<(), Error> {
    let mut header = device_header();
    let up = (libc::IFF_UP as u32).to_ne_bytes();
    header[IFI_FLAGS..].copy_from_slice(&[up, up].concat());
    Socket::open(libc::NETLINK_ROUTE)?
        .request(&[Message::new(libc::RTM_NEWLINK, libc::NLM_F_ACK, &header)])
        .map_err(|refusal| rtnetlink::error("set the device lo up", refusal))
}

/// Checks that lo is up: some kernels accept a route to lo while it is down, and delete it when lo
/// comes up.
///
/// # Errors
/// `ENETDOWN` if lo is down, or any other error of the query.
pub fn require_up(socket: &mut Socket) -> Result<(), Error> {
    let attempt = "add routes to dev lo";
    let query = Message::new(libc::RTM_GETLINK, libc::NLM_F_ACK, &device_header());
    let mut flags = 0;
    socket
        .query(query, |reply| {
            flags = u32_at(reply.payload, IFI_FLAGS).unwrap_or(0);
        })
        .map_err(|refusal| rtnetlink::error(attempt, refusal))?;
    match flags & libc::IFF_UP as u32 {
        0 => Err(Error::numbered(attempt, libc::ENETDOWN).hint("the device lo must be up")),
        _ => Ok(()),
    }
}

/// `struct ifinfomsg` with the index of lo.
fn device_header() -> [u8; IFINFOMSG] {
    let mut header = [0; IFINFOMSG];
    header[IFI_INDEX..IFI_FLAGS].copy_from_slice(&LOOPBACK.to_ne_bytes());
    header
}
