//! What happens to rules and routes in a namespace: heard as it happens, and brought about fast.

use std::collections::VecDeque;
use std::io::Write;
use std::os::fd::AsFd;
use std::process::{Child, ChildStdin, Stdio};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tproxy_pod::netlink::Socket;

use super::{Namespace, PATIENCE};

/// Notes when rules, routes and addresses change.
pub struct Monitor {
    socket: Socket,
    seen: VecDeque<(u16, Instant)>,
}

impl Monitor {
    /// Listens from here on.
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

    /// When the next message of a kind came, such as `RTM_DELRULE`.
    pub fn next(&mut self, kind: u16) -> Instant {
        let deadline = Instant::now() + PATIENCE;
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
                .notifications(|message| seen.push_back((message.kind, now)));
            read.unwrap();
        }
    }
}

/// ip(8), which carries out line after line, whether they succeed or not.
pub struct Batch {
    child: Child,
    lines: Option<ChildStdin>,
}

impl Batch {
    /// Starts it in a namespace, for a family: `-4` or `-6`.
    pub fn new(namespace: &Namespace, family: &str) -> Batch {
        let mut command = namespace.command("ip");
        command.args([family, "-force", "-batch", "-"]);
        let quiet = command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = quiet.stdin(Stdio::piped()).spawn().unwrap();
        let lines = child.stdin.take();
        Batch { child, lines }
    }

    /// Has it carry out lines.
    pub fn say(&mut self, lines: &str) {
        let text = format!("{lines}\n");
        self.lines
            .as_mut()
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
    }

    /// Waits until all is done.
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
