//! Adds and removes the rules and AnyIP routes of the captured CIDRs.
//!
//! ```text
//! ip rule   7: iif lo fwmark MARK goto 9       per family: the reverse path of captured packets
//! ip rule   8: fwmark MARK lookup TABLE        per family: captured packets
//! ip rule   8: fwmark NODE_MARK lookup TABLE   per family, with --from-node: those that the node sends
//! ip rule   9: nop                             per family: where the first rule leads
//! ip route  local CIDR dev lo table TABLE      per CIDR: all its addresses are local (AnyIP)
//! ```
//!
//! Source validation by mark (`src_valid_mark`, or `fib saddr . mark` in a firewall) looks up the
//! client's address with the mark and `iif lo` (`__fib_validate_source`, net/ipv4/fib_frontend.c), and so do
//! answers where sockets inherit the mark (`tcp_fwmark_accept`). The first rule leads these lookups past the
//! second one to the node's own rules: a client may have a captured address, and any table may have its route.
//! Packets that the node receives never have `iif lo`. What the node itself sends has, so it has a mark of its
//! own.
//!
//! A rule or route of another process that does the same is used instead, and not removed. If one
//! conflicts, nothing is installed; one that appears later does not stop the restoring of entries. From
//! rtnetlink(7).

use crate::error::Error;
use crate::netlink::socket::Socket;
use crate::routing::entry::Entry;
use crate::routing::installed::{self, InstalledEntry, another_route, read_route, read_rule};
use crate::routing::{loopback, rtnetlink};
use crate::selectors::{self, Cidr, Family, Marks};

/// The rules and AnyIP routes of the captured CIDRs, and the socket that adds and removes them.
#[derive(Debug)]
pub struct Routing {
    socket: Socket,
    families: Vec<Family>,
    marks: Marks,
    table: u32,
    /// The entries that have to be installed, routes first.
    expected: Vec<Entry>,
}

impl Routing {
    /// The rules and routes for these CIDRs. Opens a socket and changes nothing.
    ///
    /// # Errors
    /// `EMFILE`, or any other error of socket(2).
    pub fn new(cidrs: &[Cidr], marks: Marks, table: u32) -> Result<Routing, Error> {
        let families: Vec<Family> = selectors::families(cidrs).collect();
        let routes = cidrs
            .iter()
            .map(|cidr| Entry::AnyIpRoute { cidr: *cidr, table });
        let rules = families.iter().flat_map(|&family| {
            let mark = marks.received;
            let reverse = [
                Entry::ReversePathTarget { family },
                Entry::ReversePathRule { family, mark },
            ];
            let lookup = move |mark| Entry::MarkRule {
                family,
                mark,
                table,
            };
            reverse.into_iter().chain(marks.all().map(lookup))
        });
        Ok(Routing {
            socket: Socket::open(libc::NETLINK_ROUTE)?,
            expected: routes.chain(rules).collect(),
            families,
            marks,
            table,
        })
    }

    /// Whether the message of a rule describes an expected one, or one that does the same.
    pub fn expects_rule(&self, payload: &[u8]) -> bool {
        let satisfies = |it: InstalledEntry| self.expected.iter().any(|entry| it.satisfies(*entry));
        read_rule(payload).is_some_and(satisfies)
    }

    /// Whether the message of a route has the table and destination of an expected one.
    pub fn expects_route(&self, payload: &[u8]) -> bool {
        read_route(self.table, payload).is_some_and(|it| self.expected.contains(&it.entry))
    }

    /// Checks for conflicts, then adds missing entries as [`Routing::restore`] does. Returns the added
    /// entries, and the first error.
    pub fn install(&mut self) -> (Vec<Entry>, Result<(), Error>) {
        match self.check_conflicts() {
            Ok(()) => self.restore(),
            Err(error) => (Vec::new(), Err(error)),
        }
    }

    /// Checks that no other process uses the mark or the table differently.
    ///
    /// # Errors
    /// `EEXIST` for the first conflict; `EPERM`, or any other error of the dump.
    pub fn check_conflicts(&mut self) -> Result<(), Error> {
        let installed = self.installed()?;
        for &entry in &self.expected {
            let mark_option = match entry {
                Entry::MarkRule { mark, .. } if Some(mark) == self.marks.sent => "--node-mark",
                _ => "--mark",
            };
            let conflict = |it: &InstalledEntry| it.conflict_with(entry, mark_option);
            if let Some(reason) = installed.iter().find_map(conflict) {
                return Err(exists(entry, reason));
            }
        }
        Ok(())
    }

    /// Deletes own entries that are not expected, which an earlier process left, and adds missing
    /// ones. Continues after errors. Returns the added entries, and the first error: `ENETDOWN` if lo
    /// is down, `EEXIST` for a conflict, `EPERM`, `EACCES`.
    pub fn restore(&mut self) -> (Vec<Entry>, Result<(), Error>) {
        // This query comes first: it takes rtnl_lock, so a device that is going down has lost its
        // routes when the dump starts.
        let mut outcome = loopback::require_up(&mut self.socket);
        let is_loopback_up = outcome.is_ok();
        let installed = match self.installed() {
            Ok(installed) => installed,
            Err(error) => return (Vec::new(), outcome.and(Err(error))),
        };
        for it in &installed {
            if it.is_own && !it.is_among(&self.expected) {
                let deleted = self.delete(it.entry, it.priority);
                outcome = outcome.and(deleted.map(drop));
            }
        }
        let mut added = Vec::new();
        for entry in self.expected.clone() {
            let is_satisfied = installed.iter().any(|it| it.satisfies(entry));
            let is_possible = is_loopback_up || !matches!(entry, Entry::AnyIpRoute { .. });
            if is_satisfied || !is_possible {
                continue;
            }
            match self.add(entry) {
                Ok(true) => added.push(entry),
                Ok(false) => {}
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        (added, outcome)
    }

    /// Deletes own entries. Continues after errors. Returns the deleted entries, and the first error.
    pub fn remove(&mut self) -> (Vec<Entry>, Result<(), Error>) {
        let (installed, mut outcome) = match self.installed() {
            Ok(installed) => (installed, Ok(())),
            Err(error) => (Vec::new(), Err(error)),
        };
        let mut removed = Vec::new();
        for it in installed.iter().filter(|it| it.is_own) {
            match self.delete(it.entry, it.priority) {
                Ok(true) => removed.push(it.entry),
                Ok(false) => {}
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        // The dump may have missed expected entries. They rarely exist, and a kernel without the
        // family refuses, so errors are ignored.
        for entry in self.expected.clone() {
            if let Ok(true) = self.delete(entry, entry.priority()) {
                removed.push(entry);
            }
        }
        (removed, outcome)
    }

    fn installed(&mut self) -> Result<Vec<InstalledEntry>, Error> {
        installed::list(&mut self.socket, &self.families, self.table)
    }

    /// Adds an entry. Returns `false` if it is a rule that exists already.
    fn add(&mut self, entry: Entry) -> Result<bool, Error> {
        match (self.socket.request(&[entry.add_request()]), entry) {
            (Ok(()), _) => Ok(true),
            (Err(refusal), Entry::AnyIpRoute { cidr, .. }) if refusal.errno == libc::EEXIST => {
                Err(exists(entry, another_route(cidr)))
            }
            (Err(refusal), _) if refusal.errno == libc::EEXIST => Ok(false),
            (Err(refusal), _) => Err(rtnetlink::error(format!("add {entry}"), refusal)),
        }
    }

    /// Deletes an entry. Returns `false` if it does not exist.
    fn delete(&mut self, entry: Entry, priority: u32) -> Result<bool, Error> {
        match self.socket.request(&[entry.delete_request(priority)]) {
            Ok(()) => Ok(true),
            Err(refusal) if matches!(refusal.errno, libc::ENOENT | libc::ESRCH) => Ok(false),
            Err(refusal) => Err(rtnetlink::error(format!("delete {entry}"), refusal)),
        }
    }
}

/// `EEXIST`: another process's rule or route conflicts with `entry`.
fn exists(entry: Entry, reason: String) -> Error {
    Error::numbered(format!("add {entry}"), libc::EEXIST).hint(reason)
}
