//! The tables `inet tproxy-pod` and `bridge tproxy-pod`: claimed for this process, written and removed,
//! each time in one transaction.
//!
//! With `NFT_TABLE_F_OWNER` (Linux 5.12, linux/netfilter/nf_tables.h) no other process can change the
//! tables, and the kernel removes them when this process ends, even by SIGKILL. Rules come as
//! [`Ruleset`]s; this file knows neither scripts nor bridges.

use std::io::ErrorKind;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::netlink::message::{Refusal, attribute};
use crate::netlink::socket::Socket;
use crate::nftables::batch::{Batch, CommitMode, Refused};
use crate::nftables::messages::{TABLE, TableFamily, get_table};
use crate::nftables::ruleset::Ruleset;
use crate::selectors::Family;

const NFT_TABLE_F_OWNER: u32 = 2;
const NFTA_TABLE_OWNER: u16 = 7;

/// Time that the kernel may take to remove the table of a killed owner.
const RELEASE_TIME: Duration = Duration::from_secs(1);

/// Interval between two attempts to claim a table.
const CLAIM_INTERVAL: Duration = Duration::from_millis(10);

/// The tables, and the socket that owns them.
#[derive(Debug)]
pub struct Tables {
    socket: Socket,
    mode: CommitMode,
    /// The family of the table of the scripts.
    family: TableFamily,
    /// The flags of the tables; 0 before they exist.
    flags: u32,
    /// The lock against a second instance, if the table cannot have an owner.
    instance_lock: Option<UnixDatagram>,
    /// The table of the scripts has rules.
    has_rules: bool,
    /// The table of the bridge exists.
    has_bridge_table: bool,
}

impl Tables {
    /// Claims the table of the scripts, for rules of these families: it is empty, and this process is
    /// its owner. Before Linux 5.12 the table is only checked, and a lock excludes other instances.
    ///
    /// # Errors
    /// `EPERM` if another process owns the table or CAP_NET_ADMIN is missing, `EADDRINUSE` if another
    /// instance has the lock, `EOPNOTSUPP`, `ENOENT` or `EPROTONOSUPPORT` if the kernel lacks a part of
    /// nf_tables.
    pub fn claim(
        mode: CommitMode,
        mut families: impl Iterator<Item = Family>,
    ) -> Result<Tables, Error> {
        let mut tables = Tables {
            socket: open_socket()?,
            mode,
            family: TableFamily::Inet,
            flags: 0,
            instance_lock: None,
            has_rules: false,
            has_bridge_table: false,
        };
        let is_ipv4_only = families.all(|family| family == Family::V4);
        let mut flags = NFT_TABLE_F_OWNER;
        let start = Instant::now();
        while let Err(error) = tables.create(flags) {
            let family = tables.family;
            let owner = tables.owner(family).map_err(|refusal| refusal.errno);
            match error.errno() {
                libc::EINVAL if flags != 0 => {
                    tables.instance_lock = Some(lock_instance(family)?);
                    flags = 0;
                }
                libc::EOPNOTSUPP | libc::ENOENT if is_ipv4_only && family == TableFamily::Inet => {
                    tables.family = TableFamily::Ip;
                }
                libc::EPERM if start.elapsed() < longest_wait(owner) => {
                    thread::sleep(CLAIM_INTERVAL);
                }
                _ => return Err(explain(error, owner)),
            }
        }
        Ok(tables)
    }

    /// The tables that exist and have no owner. Before anything is installed, they belong to another
    /// process.
    pub fn without_owner(&mut self) -> Vec<TableFamily> {
        let mut families = vec![self.family, TableFamily::Bridge];
        families.retain(|family| matches!(self.owner(*family), Ok(None)));
        families
    }

    /// Whether the kernel removes the tables with this process.
    pub fn is_owned(&self) -> bool {
        self.flags & NFT_TABLE_F_OWNER != 0
    }

    /// The tables that have rules.
    pub fn installed(&self) -> Vec<TableFamily> {
        let scripts = self.has_rules.then_some(self.family);
        let bridge = self.has_bridge_table.then_some(TableFamily::Bridge);
        scripts.into_iter().chain(bridge).collect()
    }

    /// Whether another process has removed the table of the scripts, which has no owner.
    pub fn is_removed(&mut self) -> bool {
        let is_absent = |refusal: Refusal| refusal.errno == libc::ENOENT;
        self.has_rules && self.owner(self.family).is_err_and(is_absent)
    }

    /// Replaces both tables. If the kernel refuses the table of the bridge, the other one is installed
    /// alone, and the reason is returned.
    ///
    /// # Errors
    /// The part of the table of the scripts that the kernel refuses; nothing has changed then.
    pub fn install(&mut self, rules: &Ruleset, bridge: &Ruleset) -> Result<Option<Error>, Error> {
        let no_bridge = match self.install_both(rules, bridge) {
            Ok(()) => None,
            Err(Refused {
                family: Some(TableFamily::Bridge),
                error,
            }) => {
                let batch = self.replace(rules);
                batch.commit(&mut self.socket, self.mode)?;
                Some(error)
            }
            Err(refused) => return Err(refused.error),
        };
        self.has_bridge_table = no_bridge.is_none();
        self.has_rules = true;
        Ok(no_bridge)
    }

    fn install_both(&mut self, rules: &Ruleset, bridge: &Ruleset) -> Result<(), Refused> {
        let family = TableFamily::Bridge;
        if !self.is_owned() {
            let error = Error::numbered(format!("create table {family}"), libc::EOPNOTSUPP);
            return Err(Refused {
                family: Some(family),
                error: error.hint("SIGKILL would leave it, and redirected frames may be lost then"),
            });
        }
        let mut batch = self.replace(rules);
        batch.delete(family, 0);
        batch.create(family, self.flags);
        batch.write(family, bridge);
        batch.commit(&mut self.socket, self.mode)
    }

    /// Replaces the chains of the table of the scripts, and writes a change into the table of the bridge, if
    /// there is one. The elements of sets stay.
    ///
    /// The chains are replaced even if their rules stay: the one for tagged packets has to run before the
    /// hooks of br_netfilter, which come with a bridge, and of two hooks with one priority the later one
    /// runs first (`nf_hook_entries_grow`, net/netfilter/core.c).
    ///
    /// # Errors
    /// The part of the tables that the kernel refuses; nothing has changed then.
    pub fn update(&mut self, rules: &Ruleset, bridge: &Ruleset) -> Result<(), Error> {
        let mut batch = Batch::default();
        batch.create(self.family, self.flags);
        batch.clear(self.family, rules);
        batch.write(self.family, rules);
        if self.has_bridge_table {
            batch.write(TableFamily::Bridge, bridge);
        }
        Ok(batch.commit(&mut self.socket, self.mode)?)
    }

    /// Removes the tables.
    ///
    /// # Errors
    /// `EPERM` if another process owns a table, `ENOMEM`, or any other error of a transaction.
    pub fn remove(&mut self) -> Result<(), Error> {
        let mut batch = Batch::default();
        batch.delete(self.family, self.flags);
        if self.has_bridge_table {
            batch.delete(TableFamily::Bridge, self.flags);
        }
        Ok(batch.commit(&mut self.socket, self.mode)?)
    }

    /// Starts a transaction that replaces the table of the scripts.
    fn replace(&self, rules: &Ruleset) -> Batch {
        let mut batch = Batch::default();
        batch.delete(self.family, self.flags);
        batch.create(self.family, self.flags);
        batch.write(self.family, rules);
        batch
    }

    /// Creates the table of the scripts with these flags, without rules. Without an owner it is deleted in
    /// the same transaction: the kernel only checks it.
    fn create(&mut self, flags: u32) -> Result<(), Error> {
        let mut batch = Batch::default();
        batch.delete(self.family, self.flags);
        batch.create(self.family, flags);
        batch.write(self.family, &Ruleset::without_rules());
        if flags & NFT_TABLE_F_OWNER == 0 {
            batch.delete(self.family, flags);
        }
        batch.commit(&mut self.socket, self.mode)?;
        self.flags = flags;
        Ok(())
    }

    /// The netlink port of the owner of a table, if it has one.
    ///
    /// # Errors
    /// `ENOENT` if there is no such table, `EPERM` if CAP_NET_ADMIN is missing.
    fn owner(&mut self, family: TableFamily) -> Result<Option<u32>, Refusal> {
        let mut owner = None;
        self.socket.query(get_table(family), |answer| {
            owner = read_owner(answer.payload)
        })?;
        Ok(owner)
    }
}

fn open_socket() -> Result<Socket, Error> {
    Socket::open(libc::NETLINK_NETFILTER).map_err(|error| match error.errno() {
        libc::EPROTONOSUPPORT => {
            error.hint("the kernel lacks nfnetlink: module nfnetlink, CONFIG_NETFILTER_NETLINK")
        }
        _ => error,
    })
}

/// Takes the lock against a second instance: an abstract socket address (unix(7)), which one process
/// in a network namespace can have, until it ends. Another process may be about to end.
fn lock_instance(family: TableFamily) -> Result<UnixDatagram, Error> {
    let start = Instant::now();
    loop {
        let address = SocketAddr::from_abstract_name(TABLE);
        let bound = address.and_then(|address| UnixDatagram::bind_addr(&address));
        let is_in_use = matches!(&bound, Err(error) if error.kind() == ErrorKind::AddrInUse);
        if !is_in_use || start.elapsed() >= RELEASE_TIME {
            let hint = "another tproxy-pod is running";
            return bound
                .map_err(|error| Error::new(format!("create table {family}"), error).hint(hint));
        }
        thread::sleep(CLAIM_INTERVAL);
    }
}

/// The time to wait for a table that the kernel refuses with `EPERM`. A table that has an owner may be
/// released; one that has none any more was just released, so another attempt is worth more time.
fn longest_wait(owner: Result<Option<u32>, i32>) -> Duration {
    match owner {
        Err(libc::EPERM) => Duration::ZERO,
        Ok(Some(_)) => RELEASE_TIME,
        _ => 2 * RELEASE_TIME,
    }
}

/// Adds the reason why a table cannot be claimed.
fn explain(error: Error, owner: Result<Option<u32>, i32>) -> Error {
    match (error.errno(), owner) {
        (libc::EPERM, Err(libc::EPERM)) => error.hint("CAP_NET_ADMIN is needed"),
        (libc::EPERM, Ok(Some(port))) => error.hint(format!(
            "the table has an owner, netlink port {port}: another tproxy-pod is running"
        )),
        (libc::EOPNOTSUPP | libc::ENOENT, _) => {
            error.hint("the kernel lacks CONFIG_NF_TABLES_INET, or IPv6")
        }
        _ => error,
    }
}

/// Reads the netlink port of the owner of a table, after `struct nfgenmsg`.
pub fn read_owner(payload: &[u8]) -> Option<u32> {
    let port = attribute(payload.get(4..)?, NFTA_TABLE_OWNER)?;
    Some(u32::from_be_bytes(*port.first_chunk()?))
}
