//! What the kernel keeps of captured connections after they have ended: sockets in TIME_WAIT and
//! the like, for up to a minute. While the rules stand they do no harm. Without them, the kernel
//! finds such a socket for every packet between the same two ends and then does not forward it
//! (`tcp_v4_early_demux`, `ip_forward`): a client that uses its port again would not reach the Pod.
//!
//! From sock_diag(7) and linux/inet_diag.h.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::capture::{Cidr, Family, PortRange};
use crate::error::Error;
use crate::netlink::{Message, Refusal, Socket};

/// `SOCK_DIAG_BY_FAMILY` and `SOCK_DESTROY` (linux/sock_diag.h)
const BY_FAMILY: u16 = 20;
const DESTROY: u16 = 21;

/// `sizeof(struct inet_diag_sockid)`: two ports, two addresses of 16 bytes, device, cookie
const SOCKET_ID: usize = 48;

/// How many sockets one message to the kernel names, at most; each takes 72 bytes.
const AT_ONCE: usize = 500;

/// States of a TCP socket, as a mask of `1 << TCP_…` (include/net/tcp_states.h).
#[derive(Clone, Copy, Debug)]
pub enum States {
    /// The connection has ended on both sides.
    TimeWait = 1 << 6,
    /// All but listening.
    Connections = !(1 << 10),
}

/// The sockets of captured connections.
#[derive(Debug)]
pub struct Sockets {
    cidrs: Vec<Cidr>,
    ports: Vec<PortRange>,
}

impl Sockets {
    /// The sockets with a local address and port out of these.
    pub fn new(cidrs: &[Cidr], ports: &[PortRange]) -> Sockets {
        Sockets {
            cidrs: cidrs.to_vec(),
            ports: ports.to_vec(),
        }
    }

    /// Removes those in certain states. A client whose connection is open is sent a reset.
    ///
    /// # Errors
    /// What the kernel answers, such as `EOPNOTSUPP` without `CONFIG_INET_DIAG_DESTROY`.
    pub fn destroy(&self, states: States) -> Result<(), Error> {
        let mut socket = Socket::open(libc::NETLINK_SOCK_DIAG)
            .map_err(|error| Error::new("open a netlink socket", error))?;
        let captured = |family: &Family| self.cidrs.iter().any(|cidr| cidr.family() == *family);
        for family in Family::ALL.into_iter().filter(captured) {
            let found = self.find(&mut socket, family, states).map_err(explain)?;
            for some in found.chunks(AT_ONCE) {
                let mut messages: Vec<Message> = some
                    .iter()
                    .map(|id| request(DESTROY, 0, family, states, id))
                    .collect();
                messages.iter_mut().last().map(Message::acknowledge);
                match socket.request(messages) {
                    // It has ended by itself.
                    Err(refusal) if refusal.errno == libc::ENOENT => {}
                    result => result.map_err(explain)?,
                }
            }
        }
        Ok(())
    }

    fn find(
        &self,
        socket: &mut Socket,
        family: Family,
        states: States,
    ) -> Result<Vec<[u8; SOCKET_ID]>, Refusal> {
        let captured = |(address, port): (IpAddr, u16)| {
            self.cidrs.iter().any(|cidr| cidr.contains(address))
                && self
                    .ports
                    .iter()
                    .any(|ports| (ports.low..=ports.high).contains(&port))
        };
        let mut found = Vec::new();
        let question = request(BY_FAMILY, libc::NLM_F_DUMP, family, states, &[0; SOCKET_ID]);
        socket.ask(question, |answer| {
            // struct inet_diag_msg: family, state, timer, retransmissions, and the id
            let id = answer.payload.get(4..).and_then(<[u8]>::first_chunk);
            let ours = id.filter(|id| local_end(family, id).is_some_and(captured));
            found.extend(ours);
        })?;
        Ok(found)
    }
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
    header[4..8].copy_from_slice(&(states as i32).to_ne_bytes());
    header[8..].copy_from_slice(id);
    Message::new(kind, flags, &header)
}

fn explain(refusal: Refusal) -> Error {
    Error::numbered("end the sockets of captured connections", refusal.errno)
        .hint("a client that uses a port again within a minute may not reach its Pod")
}
