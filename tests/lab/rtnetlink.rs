//! Rules and routes of a namespace: notifications, and fast changes.

use std::collections::VecDeque;
use std::io::Write;
use std::os::fd::AsFd;
use std::process::{Child, ChildStdin, Stdio};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tproxy_pod::netlink::message::Message;
use tproxy_pod::netlink::socket::Socket;

use super::{Namespace, PATIENCE};

/// Receives notifications of changed rules, routes and addresses.
pub struct Monitor {
    socket: Socket,
    seen: VecDeque<(u16, Instant)>,
}

impl Monitor {
    /// Subscribes to the multicast groups.
    pub fn new(namespace: &Namespace) -> Monitor {
        let socket = namespace.enter(|| Socket::open(libc::NETLINK_ROUTE).unwrap());
        for group in [
            libc::RTNLGRP_IPV4_RULE,
            libc::RTNLGRP_IPV6_RULE,
            libc::RTNLGRP_IPV4_ROUTE,
            libc::RTNLGRP_IPV6_ROUTE,
        ] {
            socket.subscribe(group).unwrap();
        }
        Monitor {
            socket,
            seen: VecDeque::new(),
        }
    }

    /// Time of arrival of the next message of a type, such as `RTM_DELRULE`.
    pub fn next(&mut self, kind: u16) -> Instant {
        let deadline = Instant::now() + *PATIENCE;
        loop {
            while let Some((seen, when)) = self.seen.pop_front() {
                if seen == kind {
                    return when;
                }
            }
            assert!(Instant::now() < deadline, "no message of type {kind}");
            let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::from(100u8)).unwrap();
            let (seen, now) = (&mut self.seen, Instant::now());
            let read = self
                .socket
                .read_notifications(|message| seen.push_back((message.kind, now)));
            read.unwrap();
        }
    }
}

/// Some hundred IPv4 rules of priority 3, to be added and deleted as fast as possible.
pub struct Rules(Socket);

impl Rules {
    pub fn new(namespace: &Namespace) -> Rules {
        Rules(namespace.enter(|| Socket::open(libc::NETLINK_ROUTE).unwrap()))
    }

    /// Adds the rules (`RTM_NEWRULE`), or deletes them (`RTM_DELRULE`).
    pub fn change(&mut self, kind: u16) {
        /// linux/fib_rules.h
        const FRA_PRIORITY: u16 = 6;
        const FRA_FWMARK: u16 = 10;
        const FR_ACT_UNREACHABLE: u8 = 7;
        let mut header = [0; 12];
        (header[0], header[7]) = (libc::AF_INET as u8, FR_ACT_UNREACHABLE);
        let message = |number| {
            let mut message = Message::new(kind, libc::NLM_F_CREATE, &header);
            message
                .put_ne32(FRA_PRIORITY, 3)
                .put_ne32(FRA_FWMARK, number << 8);
            message
        };
        let mut messages: Vec<Message> = (1..500u32).map(message).collect();
        messages.iter_mut().last().map(Message::request_ack);
        self.0.request(&messages).unwrap();
    }
}

/// A running ip(8) that executes lines, and ignores their errors.
pub struct Batch {
    child: Child,
    lines: Option<ChildStdin>,
}

impl Batch {
    /// Starts ip(8) in a namespace, for a family: `-4` or `-6`.
    pub fn new(namespace: &Namespace, family: &str) -> Batch {
        let mut command = namespace.command("ip");
        command.args([family, "-force", "-batch", "-"]);
        let quiet = command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = quiet.stdin(Stdio::piped()).spawn().unwrap();
        let lines = child.stdin.take();
        Batch { child, lines }
    }

    /// Executes lines.
    pub fn execute(&mut self, lines: &str) {
        let text = format!("{lines}\n");
        self.lines
            .as_mut()
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
    }

    /// Waits until all lines are executed.
    pub fn finish(mut self) {
        drop(self.lines.take());
        self.child.wait().unwrap();
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        drop(self.lines.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
