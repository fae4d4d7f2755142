//! Finds and destroys orphaned sockets of captured connections: those that no process holds, during
//! the handshake and, in TIME_WAIT and other states, for up to a minute after close(2).
//!
//! When the rules are gone, the kernel still finds such a socket for every packet of its addresses and
//! ports, and does not forward the packet (`tcp_v4_early_demux`, `ip_forward`): a client that uses its
//! port again cannot reach the Pod. Packets to an address of the node itself are never forwarded, and its
//! sockets are its own: they do not count. From sock_diag(7) and linux/inet_diag.h.

use std::net::IpAddr;

use crate::error::Error;
use crate::netlink::message::{Message, Refusal, u32_at};
use crate::netlink::socket::Socket;
use crate::routing::own_addresses;
use crate::selectors::{self, Cidr, Family, PortRange};

/// Message types (linux/sock_diag.h)
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;

/// `sizeof(struct inet_diag_sockid)`, in bytes: two ports, two addresses of 16 bytes, device, cookie
pub const SOCKET_ID: usize = 48;

/// Offset of the id in `struct inet_diag_msg`, in bytes
const IDIAG_ID: usize = 4;
/// Offset of the local address in the id, in bytes; the local port is its first field
const IDIAG_SRC: usize = 4;
/// Offset of the inode in `struct inet_diag_msg`, in bytes
const IDIAG_INODE: usize = 68;

/// Largest number of sockets in one request. The kernel answers for each that has ended meanwhile, and
/// that takes up to 768 bytes of the receive buffer, by default 208 KiB (`net.core.rmem_default`).
pub const SOCKETS_PER_REQUEST: usize = 200;

/// A set of TCP states, each a bit `1 << TCP_…` (include/net/tcp_states.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpStates(u32);

impl TcpStates {
    /// The handshake is not complete or, with TCP_DEFER_ACCEPT, no data has arrived yet.
    pub const SYN_RECV: TcpStates = TcpStates(1 << 3);
    /// FIN_WAIT1, LAST_ACK, CLOSING: the process has closed the connection, and the client has not
    /// acknowledged the FIN.
    pub const FIN_UNACKNOWLEDGED: TcpStates = TcpStates(1 << 4 | 1 << 9 | 1 << 11);
    /// The process has closed the connection: `FIN_UNACKNOWLEDGED`, FIN_WAIT2 and TIME_WAIT.
    pub const CLOSED_LOCALLY: TcpStates =
        TcpStates(TcpStates::FIN_UNACKNOWLEDGED.0 | 1 << 5 | 1 << 6);
    /// Both sides have closed the connection.
    pub const TIME_WAIT: TcpStates = TcpStates(1 << 6);
}

/// The sockets of captured connections.
#[derive(Debug)]
pub struct SockDiag {
    socket: Socket,
    /// For the node's own addresses.
    rtnetlink: Socket,
    families: Vec<Family>,
    cidrs: Vec<Cidr>,
    ports: Vec<PortRange>,
}

impl SockDiag {
    /// Selects the sockets whose local address and port are captured, and whose address is not the node's own.
    ///
    /// # Errors
    /// `EPROTONOSUPPORT` without `CONFIG_INET_DIAG`, `EMFILE`, or any other error of socket(2).
    pub fn new(cidrs: &[Cidr], ports: &[PortRange]) -> Result<SockDiag, Error> {
        let socket =
            Socket::open(libc::NETLINK_SOCK_DIAG).map_err(|error| match error.errno() {
                libc::EPROTONOSUPPORT => {
                    error.hint("the kernel lacks sock_diag: module tcp_diag, CONFIG_INET_DIAG")
                }
                _ => error,
            })?;
        Ok(SockDiag {
            socket,
            rtnetlink: Socket::open(libc::NETLINK_ROUTE)?,
            families: selectors::families(cidrs).collect(),
            cidrs: cidrs.to_vec(),
            ports: ports.to_vec(),
        })
    }

    /// Whether an orphaned socket is in one of these states. If the node's own addresses cannot be listed, its
    /// own sockets count, too.
    ///
    /// # Errors
    /// `ENOENT` without module tcp_diag, or any other error of the dump.
    pub fn has_any(&mut self, states: TcpStates) -> Result<bool, Error> {
        for family in self.families.clone() {
            let mut ids = self.find(family, states)?;
            let listed = self.remove_own(family, &mut ids);
            if listed.is_err() || !ids.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Destroys the orphaned sockets in these states. The kernel sends a reset to a client that has not
    /// closed its side. If the node's own addresses cannot be listed, that is an error, and no socket ends: a
    /// client of a Pod that has to wait for a minute is the lesser harm.
    ///
    /// # Errors
    /// `EOPNOTSUPP` without `CONFIG_INET_DIAG_DESTROY`, `EPERM`, or any error of the dump.
    pub fn destroy(&mut self, states: TcpStates) -> Result<(), Error> {
        let mut outcome = Ok(());
        for family in self.families.clone() {
            outcome = outcome.and(self.destroy_family(family, states));
        }
        outcome
    }

    fn destroy_family(&mut self, family: Family, states: TcpStates) -> Result<(), Error> {
        let mut outcome = Ok(());
        let mut ids = self.find(family, states)?;
        self.remove_own(family, &mut ids)?;
        for ids in ids.chunks(SOCKETS_PER_REQUEST) {
            match destroy(&mut self.socket, family, states, ids) {
                // The socket has ended since the dump.
                Err(refusal) if refusal.errno == libc::ENOENT => {}
                result => {
                    outcome = outcome
                        .and(result.map_err(|it| error("destroy sockets of ended connections", it)))
                }
            }
        }
        outcome
    }

    /// Finds the orphaned sockets in these states.
    fn find(&mut self, family: Family, states: TcpStates) -> Result<Vec<[u8; SOCKET_ID]>, Error> {
        let mut ids = Vec::new();
        let any = [0; SOCKET_ID];
        let query = request(SOCK_DIAG_BY_FAMILY, libc::NLM_F_DUMP, family, states, &any);
        let (cidrs, ports) = (&self.cidrs, &self.ports);
        let found = self.socket.query(query, |reply| {
            ids.extend(read_orphan(family, reply.payload, cidrs, ports));
        });
        found.map_err(|it| error("find sockets of ended connections", it))?;
        Ok(ids)
    }

    /// Removes the sockets at addresses of the node itself, which are not captured.
    fn remove_own(&mut self, family: Family, ids: &mut Vec<[u8; SOCKET_ID]>) -> Result<(), Error> {
        if ids.is_empty() {
            return Ok(());
        }
        let own = own_addresses::list(&mut self.rtnetlink, family, &self.cidrs)
            .map_err(|it| error("list the node's own addresses", it))?;
        let is_own = |address| own.iter().any(|own| own.contains(address));
        ids.retain(|id| !local_address(family, id).is_some_and(is_own));
        Ok(())
    }
}

/// Parses a socket (`struct inet_diag_msg`): its id, if its local address and port are captured and it
/// is orphaned. A socket that a process holds has an inode.
pub fn read_orphan(
    family: Family,
    payload: &[u8],
    cidrs: &[Cidr],
    ports: &[PortRange],
) -> Option<[u8; SOCKET_ID]> {
    let id: &[u8; SOCKET_ID] = payload.get(IDIAG_ID..)?.first_chunk()?;
    let port = u16::from_be_bytes(*id.first_chunk()?);
    let address = local_address(family, id)?;
    let is_captured = cidrs.iter().any(|cidr| cidr.contains(address))
        && ports
            .iter()
            .any(|ports| (ports.low..=ports.high).contains(&port));
    (is_captured && u32_at(payload, IDIAG_INODE) == Some(0)).then_some(*id)
}

/// The local address of a socket; `None` if an IPv6 socket has one of IPv4 (`::ffff:192.0.2.1`), as captured
/// connections never have: each family has its own listener.
fn local_address(family: Family, id: &[u8; SOCKET_ID]) -> Option<IpAddr> {
    let address = family.read_address(&id[IDIAG_SRC..])?;
    (address.to_canonical() == address).then_some(address)
}

/// Destroys the sockets with these ids, at most [`SOCKETS_PER_REQUEST`].
///
/// # Errors
/// `ENOENT` if one has ended, `EOPNOTSUPP` without `CONFIG_INET_DIAG_DESTROY`, or `EPERM`.
pub fn destroy(
    socket: &mut Socket,
    family: Family,
    states: TcpStates,
    ids: &[[u8; SOCKET_ID]],
) -> Result<(), Refusal> {
    let mut messages: Vec<Message> = ids
        .iter()
        .map(|id| request(SOCK_DESTROY, 0, family, states, id))
        .collect();
    messages.iter_mut().last().map(Message::request_ack);
    socket.request(&messages)
}

/// `struct inet_diag_req_v2`: family, protocol, extensions, padding, states, and the id.
fn request(
    kind: u16,
    flags: libc::c_int,
    family: Family,
    states: TcpStates,
    id: &[u8; SOCKET_ID],
) -> Message {
    let mut header = [0; 8 + SOCKET_ID];
    header[0] = family.number();
    header[1] = libc::IPPROTO_TCP as u8;
    header[4..8].copy_from_slice(&states.0.to_ne_bytes());
    header[8..].copy_from_slice(id);
    Message::new(kind, flags, &header)
}

fn error(attempt: &str, refusal: Refusal) -> Error {
    Error::numbered(attempt, refusal.errno)
        .hint("for a minute, a client that uses its port again may not reach the Pod")
}
