//! What the kernel keeps of captured connections after they have ended: sockets in TIME_WAIT and
//! the like, for up to a minute. While the rules stand they do no harm. Without them, the kernel
//! finds such a socket for every packet between the same two ends and then does not forward it
//! (`tcp_v4_early_demux`, `ip_forward`): a client that uses its port again would not reach the Pod.
//!
//! From sock_diag(7) and linux/inet_diag.h.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::error::Error;
use crate::netlink::message::{Message, Refusal, u32_at};
use crate::netlink::socket::Socket;
use crate::selectors::{self, Cidr, Family, PortRange};

/// `SOCK_DIAG_BY_FAMILY` and `SOCK_DESTROY` (linux/sock_diag.h)
const BY_FAMILY: u16 = 20;
const DESTROY: u16 = 21;

/// `sizeof(struct inet_diag_sockid)`: two ports, two addresses of 16 bytes, device, cookie
pub const SOCKET_ID: usize = 48;

/// Where `struct inet_diag_msg` has the inode; its id begins at 4.
const INODE: usize = 68;

/// How many sockets one message to the kernel names, at most; each takes 72 bytes.
const AT_ONCE: usize = 500;

/// States of a TCP socket, each `1 << TCP_…` (include/net/tcp_states.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct States(u32);

impl States {
    /// The last packet of the handshake is still to come, or the first bytes behind it
    /// (TCP_DEFER_ACCEPT).
    pub const HANDSHAKE: States = States(1 << 3);
    /// The program has closed the connection, but the client has not confirmed all that was sent:
    /// FIN_WAIT1, LAST_ACK, CLOSING.
    pub const SENDING: States = States(1 << 4 | 1 << 9 | 1 << 11);
    /// The program has closed the connection: these, FIN_WAIT2 and TIME_WAIT.
    pub const CLOSED: States = States(States::SENDING.0 | 1 << 5 | 1 << 6);
    /// Both sides have closed the connection.
    pub const TIME_WAIT: States = States(1 << 6);
}

/// The sockets of captured connections.
#[derive(Debug)]
pub struct SockDiag {
    socket: Socket,
    families: Vec<Family>,
    cidrs: Vec<Cidr>,
    ports: Vec<PortRange>,
}

impl SockDiag {
    /// The sockets with a local address and port out of these.
    ///
    /// # Errors
    /// What the kernel answers to a new netlink socket.
    pub fn new(cidrs: &[Cidr], ports: &[PortRange]) -> Result<SockDiag, Error> {
        let socket = Socket::open(libc::NETLINK_SOCK_DIAG).map_err(|error| {
            let error = Error::new("open a netlink socket", error);
            match error.errno() {
                libc::EPROTONOSUPPORT => {
                    error.hint("the kernel lacks sock_diag: module tcp_diag, CONFIG_INET_DIAG")
                }
                _ => error,
            }
        })?;
        Ok(SockDiag {
            socket,
            families: selectors::families(cidrs).collect(),
            cidrs: cidrs.to_vec(),
            ports: ports.to_vec(),
        })
    }

    /// Whether there are any in these states.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn exist(&mut self, states: States) -> Result<bool, Error> {
        for family in self.families.clone() {
            if !self.find(family, states).map_err(explain)?.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Removes those in these states. A client that has not closed its side is sent a reset.
    ///
    /// # Errors
    /// What the kernel answers, such as `EOPNOTSUPP` without `CONFIG_INET_DIAG_DESTROY`.
    pub fn destroy(&mut self, states: States) -> Result<(), Error> {
        let mut outcome = Ok(());
        for family in self.families.clone() {
            outcome = outcome.and(self.destroy_of(family, states).map_err(explain));
        }
        outcome
    }

    fn destroy_of(&mut self, family: Family, states: States) -> Result<(), Refusal> {
        let mut outcome = Ok(());
        for some in self.find(family, states)?.chunks(AT_ONCE) {
            let mut messages: Vec<Message> = some
                .iter()
                .map(|id| request(DESTROY, 0, family, states, id))
                .collect();
            messages.iter_mut().last().map(Message::acknowledge);
            match self.socket.request(&messages) {
                // It has ended by itself.
                Err(refusal) if refusal.errno == libc::ENOENT => {}
                result => outcome = outcome.and(result),
            }
        }
        outcome
    }

    fn find(&mut self, family: Family, states: States) -> Result<Vec<[u8; SOCKET_ID]>, Refusal> {
        let mut found = Vec::new();
        let question = request(BY_FAMILY, libc::NLM_F_DUMP, family, states, &[0; SOCKET_ID]);
        let SockDiag {
            socket,
            cidrs,
            ports,
            ..
        } = self;
        socket.ask(question, |answer| {
            found.extend(read_ended(family, answer.payload, cidrs, ports));
        })?;
        Ok(found)
    }
}

/// The id of a socket with a local address and port out of these, that no process holds: one that is
/// held has an inode, and is another program's.
pub fn read_ended(
    family: Family,
    payload: &[u8],
    cidrs: &[Cidr],
    ports: &[PortRange],
) -> Option<[u8; SOCKET_ID]> {
    let id = payload.get(4..)?.first_chunk()?;
    let (address, port) = local_end(family, id)?;
    let captured = cidrs.iter().any(|cidr| cidr.contains(address))
        && ports
            .iter()
            .any(|ports| (ports.low..=ports.high).contains(&port));
    (captured && u32_at(payload, INODE) == Some(0)).then_some(*id)
}

/// The address and port that the client connected to: network order, the port first.
fn local_end(family: Family, id: &[u8; SOCKET_ID]) -> Option<(IpAddr, u16)> {
    let address = match family {
        Family::V4 => Ipv4Addr::from(*id.get(4..)?.first_chunk::<4>()?).into(),
        Family::V6 => Ipv6Addr::from(*id.get(4..)?.first_chunk::<16>()?).into(),
    };
    Some((address, u16::from_be_bytes(*id.first_chunk()?)))
}

/// `struct inet_diag_req_v2`: family, protocol, extensions, padding, states, and the id.
fn request(
    kind: u16,
    flags: libc::c_int,
    family: Family,
    states: States,
    id: &[u8; SOCKET_ID],
) -> Message {
    let mut header = [0; 8 + SOCKET_ID];
    header[0] = family.number();
    header[1] = libc::IPPROTO_TCP as u8;
    header[4..8].copy_from_slice(&states.0.to_ne_bytes());
    header[8..].copy_from_slice(id);
    Message::new(kind, flags, &header)
}

fn explain(refusal: Refusal) -> Error {
    Error::numbered("end what is left of captured connections", refusal.errno)
        .hint("for a minute, a client that uses its port again may not reach the Pod")
}
