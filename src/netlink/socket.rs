//! A netlink socket: requests with their acknowledgements, dumps, and notifications.
//!
//! The kernel processes a request and queues its reply before sendto(2) returns
//! (`netlink_unicast_kernel`, net/netlink/af_netlink.c), so no call here blocks. From netlink(7).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use libc::c_int;

use crate::error::Error;
use crate::netlink::message::{Message, ReceivedMessage, Refusal, messages, read_acknowledgement};
use crate::sys;

/// Largest datagram of a dump, in bytes (`netlink_dump`, net/netlink/af_netlink.c); others are shorter.
const MAX_DATAGRAM: usize = 32 * 1024;

/// Largest number of datagrams that one [`Socket::read_notifications`] reads.
const MAX_DATAGRAMS_PER_READ: usize = 500;

/// Largest request that fits the default send buffer, in bytes: net.core.wmem_default is 208 KiB.
const MAX_DEFAULT_REQUEST: usize = 64 * 1024;

/// A netlink socket.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens a socket of a protocol such as `NETLINK_ROUTE`.
    ///
    /// # Errors
    /// `EPROTONOSUPPORT` if the kernel lacks the protocol, `EMFILE`, or any other error of socket(2),
    /// setsockopt(2) and bind(2).
    pub fn open(protocol: c_int) -> Result<Socket, Error> {
        Socket::open_bound(protocol).map_err(|error| Error::new("open a netlink socket", error))
    }

    fn open_bound(protocol: c_int) -> io::Result<Socket> {
        let fd = sys::socket(libc::AF_NETLINK, libc::SOCK_RAW, protocol)?;
        for option in [
            libc::NETLINK_EXT_ACK,
            libc::NETLINK_CAP_ACK,
            libc::NETLINK_GET_STRICT_CHK,
        ] {
            sys::set_option(fd.as_fd(), libc::SOL_NETLINK, option, 1 as c_int)?;
        }
        sys::bind_netlink(fd.as_fd())?;
        Ok(Socket {
            fd,
            sequence: 0,
            buffer: vec![0; MAX_DATAGRAM],
        })
    }

    /// Subscribes to the notifications of a multicast group, such as `RTNLGRP_IPV4_RULE`.
    ///
    /// # Errors
    /// `EPERM`, `EINVAL` if there is no such group, or any other error of setsockopt(2).
    pub fn subscribe(&self, group: u32) -> io::Result<()> {
        sys::set_option(
            self.fd.as_fd(),
            libc::SOL_NETLINK,
            libc::NETLINK_ADD_MEMBERSHIP,
            group,
        )
    }

    /// Sends messages, at least one of which has `NLM_F_ACK`, and reads the acknowledgements.
    ///
    /// # Errors
    /// The error number of the first message that the kernel refuses, such as `EPERM`; `EPROTO` if no
    /// acknowledgement came; any error of sendto(2) and recvfrom(2).
    pub fn request(&mut self, messages: &[Message]) -> Result<(), Refusal> {
        self.exchange(messages, |_| {})
    }

    /// Sends a query with `NLM_F_DUMP`, or with `NLM_F_ACK` for a single object, and calls `each` for
    /// every message of the reply.
    ///
    /// # Errors
    /// As [`Socket::request`].
    pub fn query(
        &mut self,
        message: Message,
        each: impl FnMut(ReceivedMessage<'_>),
    ) -> Result<(), Refusal> {
        self.exchange(&[message], each)
    }

    /// Reads pending notifications, of at most `MAX_DATAGRAMS_PER_READ` datagrams, and calls `each`
    /// for every one.
    ///
    /// # Errors
    /// `ENOBUFS` if notifications were lost, or any other error of recvfrom(2).
    pub fn read_notifications(
        &mut self,
        mut each: impl FnMut(ReceivedMessage<'_>),
    ) -> io::Result<()> {
        for _ in 0..MAX_DATAGRAMS_PER_READ {
            match self.receive()? {
                Some(datagram) => messages(datagram).for_each(&mut each),
                None => break,
            }
        }
        Ok(())
    }

    fn exchange(
        &mut self,
        requests: &[Message],
        mut each: impl FnMut(ReceivedMessage<'_>),
    ) -> Result<(), Refusal> {
        let first = self.sequence.wrapping_add(1);
        self.send(requests)?;
        let last = self.sequence;
        let (mut outcome, mut is_acknowledged) = (Ok(()), false);
        loop {
            let datagram = match self.receive() {
                Ok(Some(datagram)) => datagram,
                Ok(None) => break,
                // Replies were lost; while others wait to be read, the kernel drops the next ones, too.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    outcome = outcome.and(Err(error.into()));
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            // A failed exchange may have left replies with earlier sequence numbers.
            let replies = messages(datagram)
                .filter(|it| it.sequence.wrapping_sub(first) <= last.wrapping_sub(first));
            for message in replies {
                match i32::from(message.kind) {
                    libc::NLMSG_ERROR | libc::NLMSG_DONE => {
                        outcome = outcome.and(read_acknowledgement(message, first));
                        is_acknowledged = true;
                    }
                    _ => each(message),
                }
            }
        }
        match is_acknowledged {
            true => outcome,
            false => outcome.and(Err(io::Error::from_raw_os_error(libc::EPROTO).into())),
        }
    }

    /// Sends all messages in one datagram.
    fn send(&mut self, requests: &[Message]) -> io::Result<()> {
        let mut bytes = Vec::new();
        for message in requests {
            self.sequence = self.sequence.wrapping_add(1);
            bytes.extend(message.to_bytes(self.sequence));
        }
        if bytes.len() > MAX_DEFAULT_REQUEST {
            // sendto(2) refuses a datagram that is longer than the send buffer (EMSGSIZE).
            let size = c_int::try_from(bytes.len() + MAX_DEFAULT_REQUEST).unwrap_or(c_int::MAX);
            let set = |option| sys::set_option(self.fd.as_fd(), libc::SOL_SOCKET, option, size);
            // SO_SNDBUFFORCE needs CAP_NET_ADMIN in the initial user namespace; net.core.wmem_max
            // limits SO_SNDBUF.
            set(libc::SO_SNDBUFFORCE).or_else(|_| set(libc::SO_SNDBUF))?;
        }
        sys::send(self.fd.as_fd(), &bytes)
    }

    /// Receives a datagram; `None` if none is pending.
    fn receive(&mut self) -> io::Result<Option<&[u8]>> {
        match sys::receive(self.fd.as_fd(), &mut self.buffer) {
            Ok(datagram) => Ok(Some(datagram)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
