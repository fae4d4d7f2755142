//! A netlink socket: requests, their acknowledgements, dumps, and notifications.
//!
//! From netlink(7). The kernel answers a request before `send` returns, so nothing here waits.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use libc::c_int;

use crate::netlink::message::{Message, Received, Refusal, messages, refused};
use crate::sys;

/// The kernel writes datagrams of up to 32 KiB (`netlink_dump`, net/netlink/af_netlink.c).
const LONGEST_DATAGRAM: usize = 32 * 1024;

/// How many notifications are read at once, at most: while they pour in, other things happen too.
const AT_ONCE: usize = 500;

/// What the send buffer holds in any case (net.core.wmem_default is 208 KiB).
const SMALL: usize = 64 * 1024;

/// A netlink socket.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// A socket for requests of a protocol such as `NETLINK_ROUTE`.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn open(protocol: c_int) -> io::Result<Socket> {
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
            buffer: vec![0; LONGEST_DATAGRAM],
        })
    }

    /// Has the notifications of a group, such as `RTNLGRP_IPV4_RULE`, sent to this socket.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn subscribe(&self, group: u32) -> io::Result<()> {
        sys::set_option(
            self.fd.as_fd(),
            libc::SOL_NETLINK,
            libc::NETLINK_ADD_MEMBERSHIP,
            group,
        )
    }

    /// Sends messages, one of which asks for an acknowledgement (`NLM_F_ACK`).
    ///
    /// # Errors
    /// The first message that the kernel refuses.
    pub fn request(&mut self, messages: &[Message]) -> Result<(), Refusal> {
        self.exchange(messages, |_| {})
    }

    /// Sends a request with `NLM_F_DUMP`, or with `NLM_F_ACK` for a single answer, and hands every
    /// message of the answer to `each`.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn ask(&mut self, message: Message, each: impl FnMut(Received<'_>)) -> Result<(), Refusal> {
        self.exchange(&[message], each)
    }

    /// Reads notifications that are there, a few hundred at most, and hands each to `each`.
    ///
    /// # Errors
    /// `ENOBUFS` if some were lost, or what the kernel answers.
    pub fn notifications(&mut self, mut each: impl FnMut(Received<'_>)) -> io::Result<()> {
        for _ in 0..AT_ONCE {
            match sys::receive(self.fd.as_fd(), &mut self.buffer) {
                Ok(datagram) => messages(datagram).for_each(&mut each),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn exchange(
        &mut self,
        requests: &[Message],
        mut each: impl FnMut(Received<'_>),
    ) -> Result<(), Refusal> {
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        for message in requests {
            self.sequence = self.sequence.wrapping_add(1);
            bytes.extend(message.finish(self.sequence));
        }
        if bytes.len() > SMALL {
            // The kernel takes nothing that is longer than the socket's buffer.
            let room = c_int::try_from(bytes.len() + SMALL).unwrap_or(c_int::MAX);
            let set = |option| sys::set_option(self.fd.as_fd(), libc::SOL_SOCKET, option, room);
            // Without privilege over the whole machine there is an upper limit.
            set(libc::SO_SNDBUFFORCE).or_else(|_| set(libc::SO_SNDBUF))?;
        }
        sys::send(self.fd.as_fd(), &bytes)?;
        let mut refusal = None;
        let mut acknowledged = false;
        loop {
            let datagram = match sys::receive(self.fd.as_fd(), &mut self.buffer) {
                Ok(datagram) => datagram,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            };
            // The rest is what an exchange that failed left unread.
            let last = self.sequence;
            let answers = messages(datagram)
                .filter(|it| it.sequence.wrapping_sub(first) <= last.wrapping_sub(first));
            for message in answers {
                match i32::from(message.kind) {
                    libc::NLMSG_ERROR | libc::NLMSG_DONE => match refused(message, first) {
                        Some(error) => refusal = refusal.or(Some(error)),
                        None => acknowledged = true,
                    },
                    _ => each(message),
                }
            }
        }
        match refusal {
            Some(refusal) => Err(refusal),
            None if acknowledged => Ok(()),
            None => Err(Refusal {
                message: 0,
                errno: libc::EPROTO,
                words: None,
                offset: None,
            }),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
