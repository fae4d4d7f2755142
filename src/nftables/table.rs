//! The tables `inet tproxy-pod` and `bridge tproxy-pod`: claimed for this process, replaced and
//! removed in one nf_tables transaction each.
//!
//! With `NFT_TABLE_F_OWNER` (Linux 5.12) the kernel keeps everybody else's hands off the tables and
//! removes them when the process ends, however it ends. From linux/netfilter/nf_tables.h.

use std::io::ErrorKind;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::thread;
use std::time::{Duration, Instant};

use super::batch::{Batch, NFTA_TABLE_NAME, Refused, TABLE, message};
use crate::error::Error;
use crate::netlink::message::{Refusal, attributes};
use crate::netlink::socket::Socket;
use crate::nftables::bridge::{BridgeRedirect, PORTS, from_chain, new_chain};
use crate::nftables::compile::{Ruleset, compile};
use crate::routing::bridges::BridgeMonitor;
use crate::rules::script::Script;
use crate::selectors::Family;

pub use super::batch::{Effect, Layer};

const NFT_TABLE_F_OWNER: u32 = 2;
const NFTA_TABLE_OWNER: u16 = 7;

/// How long a table may still be there whose owner was killed.
const RELEASE: Duration = Duration::from_secs(1);

/// The tables, and the socket that owns them.
#[derive(Debug)]
pub struct Table {
    socket: Socket,
    /// Whether what is asked is done.
    effect: Effect,
    /// Where the rules are.
    layer: Layer,
    /// The flags that the table has now, or would be created with.
    flags: u32,
    /// What tells other instances that this one is there, where the table itself cannot.
    presence: Option<UnixDatagram>,
    has_rules: bool,
    /// What is in it.
    ruleset: Ruleset,
    /// Whether frames are lifted from bridges, by a table of its own.
    lifts: bool,
}

impl Table {
    /// Claims the table for rules of these families: from here on it belongs to this process, and is
    /// empty. Before Linux 5.12 nothing is claimed and nothing created yet.
    ///
    /// # Errors
    /// `EPERM` if the table belongs to another process, or `CAP_NET_ADMIN` is missing; what the kernel
    /// lacks.
    pub fn claim(
        effect: Effect,
        mut families: impl Iterator<Item = Family>,
    ) -> Result<Table, Error> {
        let socket = Socket::open(libc::NETLINK_NETFILTER).map_err(|error| {
            let error = Error::new("open a netlink socket", error);
            match error.errno() {
                libc::EPROTONOSUPPORT => error
                    .hint("the kernel lacks nfnetlink: module nfnetlink, CONFIG_NETFILTER_NETLINK"),
                _ => error,
            }
        })?;
        let mut table = Table {
            socket,
            effect,
            layer: Layer::Inet,
            flags: 0,
            presence: None,
            has_rules: false,
            ruleset: Ruleset::default(),
            lifts: false,
        };
        let is_ipv4_alone = families.all(|family| family == Family::V4);
        let mut flags = NFT_TABLE_F_OWNER;
        let start = Instant::now();
        loop {
            let Err(error) = table.create(flags) else {
                return Ok(table);
            };
            let layer = table.layer;
            let owner = table.owner(layer).map_err(|refusal| refusal.errno);
            match (error.errno(), owner) {
                (libc::EINVAL, _) if flags != 0 => {
                    table.presence = Some(present(layer)?);
                    flags = 0;
                }
                (libc::EOPNOTSUPP | libc::ENOENT, _)
                    if is_ipv4_alone && table.layer == Layer::Inet =>
                {
                    table.layer = Layer::Ip;
                }
                (libc::EPERM, Err(libc::EPERM)) => {
                    return Err(error.hint("CAP_NET_ADMIN is needed"));
                }
                // Its owner may be about to end, or has ended just now.
                (libc::EPERM, owner) if start.elapsed() < release(owner.ok().flatten()) => {
                    thread::sleep(RELEASE / 100);
                }
                (libc::EPERM, Ok(Some(port))) => {
                    return Err(error.hint(format!(
                        "the table has an owner, netlink port {port}: another tproxy-pod is running"
                    )));
                }
                (libc::EOPNOTSUPP | libc::ENOENT, _) => {
                    return Err(error.hint("the kernel lacks CONFIG_NF_TABLES_INET, or IPv6"));
                }
                _ => return Err(error),
            }
        }
    }

    /// The tables that are there and have no owner: as long as nothing is claimed, somebody else's.
    pub fn without_owner(&mut self) -> Vec<Layer> {
        let mut layers = vec![self.layer, Layer::Bridge];
        layers.retain(|layer| matches!(self.owner(*layer), Ok(None)));
        layers
    }

    /// Whether the kernel removes the table with this process.
    pub fn is_owned(&self) -> bool {
        self.flags & NFT_TABLE_F_OWNER != 0
    }

    /// Whether frames are lifted from bridges.
    pub fn lifts(&self) -> bool {
        self.lifts
    }

    /// Where there are rules.
    pub fn layers(&self) -> Vec<Layer> {
        let scripts = self.has_rules.then_some(self.layer);
        let lift = self.lifts.then_some(Layer::Bridge);
        scripts.into_iter().chain(lift).collect()
    }

    /// Puts the rules of these scripts in place of all that is in the table, and has frames lifted
    /// from these bridges by rules of their own, if the kernel can; returns why it cannot.
    ///
    /// # Errors
    /// The part of the table that the kernel refuses; nothing is changed then.
    pub fn install(
        &mut self,
        scripts: &[Script],
        lift: &BridgeRedirect,
        bridges: &BridgeMonitor,
    ) -> Result<Option<Error>, Error> {
        self.ruleset = compile(scripts);
        let unlifted = match self.install_both(lift, bridges) {
            Ok(()) => None,
            Err(Refused {
                layer: Some(Layer::Bridge),
                error,
            }) => {
                self.replacing().commit(&mut self.socket, self.effect)?;
                Some(error)
            }
            Err(refused) => return Err(refused.error),
        };
        self.lifts = unlifted.is_none();
        self.has_rules = true;
        Ok(unlifted)
    }

    fn install_both(
        &mut self,
        lift: &BridgeRedirect,
        bridges: &BridgeMonitor,
    ) -> Result<(), Refused> {
        let layer = Layer::Bridge;
        if !self.is_owned() {
            let error = Error::numbered(format!("create table {layer}"), libc::EOPNOTSUPP);
            return Err(Refused {
                layer: Some(layer),
                error: error.hint("SIGKILL would leave it, and what it lifts may be lost then"),
            });
        }
        let mut batch = self.replacing();
        batch.delete(layer, 0);
        batch.create(layer, self.flags);
        batch.fill(layer, &lift.base());
        follow(&mut batch, lift, bridges);
        batch.commit(&mut self.socket, self.effect)
    }

    /// Has frames lifted from these bridges, and from no others. The rest is made anew: the chain
    /// of lifted packets has to come ahead of what br_netfilter may have added with a bridge, and of
    /// two with one priority the later comes first (`nf_hook_entries_grow`, net/netfilter/core.c).
    ///
    /// # Errors
    /// The part of the tables that the kernel refuses; nothing is changed then.
    pub fn follow(&mut self, lift: &BridgeRedirect, bridges: &BridgeMonitor) -> Result<(), Error> {
        let mut batch = self.replacing();
        for family in lift.families() {
            batch.flush(Layer::Bridge, &from_chain(family));
        }
        follow(&mut batch, lift, bridges);
        Ok(batch.commit(&mut self.socket, self.effect)?)
    }

    /// Puts the rules of these scripts in place of all that is in the table; no more connections are
    /// lifted from bridges than those that are already.
    ///
    /// # Errors
    /// The part of the tables that the kernel refuses; nothing is changed then.
    pub fn drain(&mut self, scripts: &[Script], lift: &BridgeRedirect) -> Result<(), Error> {
        self.ruleset = compile(scripts);
        let mut batch = self.replacing();
        for family in lift.families().filter(|_| self.lifts) {
            batch.flush(Layer::Bridge, &new_chain(family));
        }
        Ok(batch.commit(&mut self.socket, self.effect)?)
    }

    /// Removes the tables.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn remove(&mut self) -> Result<(), Error> {
        let mut batch = Batch::default();
        batch.delete(self.layer, self.flags);
        if self.lifts {
            batch.delete(Layer::Bridge, self.flags);
        }
        Ok(batch.commit(&mut self.socket, self.effect)?)
    }

    fn replacing(&self) -> Batch {
        let mut batch = Batch::default();
        batch.delete(self.layer, self.flags);
        batch.create(self.layer, self.flags);
        batch.fill(self.layer, &self.ruleset);
        batch
    }

    /// Creates the table without rules, in place of one that is there. One that would have no owner is
    /// only tried.
    fn create(&mut self, flags: u32) -> Result<(), Error> {
        let mut batch = Batch::default();
        batch.delete(self.layer, self.flags);
        batch.create(self.layer, flags);
        batch.fill(self.layer, &compile(&[]));
        if flags & NFT_TABLE_F_OWNER == 0 {
            batch.delete(self.layer, flags);
        }
        batch.commit(&mut self.socket, self.effect)?;
        self.flags = flags;
        Ok(())
    }

    /// The netlink port of a table's owner, if it has one.
    ///
    /// # Errors
    /// `ENOENT` if there is no such table, `EPERM` if this process may not ask.
    fn owner(&mut self, layer: Layer) -> Result<Option<u32>, Refusal> {
        let mut question = message(layer, libc::NFT_MSG_GETTABLE, libc::NLM_F_ACK);
        question.put_text(NFTA_TABLE_NAME, TABLE);
        let mut owner = None;
        self.socket
            .ask(question, |answer| owner = read_owner(answer.payload))?;
        Ok(owner)
    }
}

/// A name in the network namespace, which one process can have, for as long as it lives (unix(7),
/// "abstract").
fn present(layer: Layer) -> Result<UnixDatagram, Error> {
    let start = Instant::now();
    loop {
        let name = SocketAddr::from_abstract_name(TABLE);
        match name.and_then(|name| UnixDatagram::bind_addr(&name)) {
            // Who has it may be about to end.
            Err(error) if error.kind() == ErrorKind::AddrInUse && start.elapsed() < RELEASE => {
                thread::sleep(RELEASE / 100);
            }
            bound => {
                return bound.map_err(|error| {
                    Error::new(format!("create table {layer}"), error)
                        .hint("another tproxy-pod is running")
                });
            }
        }
    }
}

/// The rules and ports of these bridges.
fn follow(batch: &mut Batch, lift: &BridgeRedirect, bridges: &BridgeMonitor) {
    batch.fill(Layer::Bridge, &lift.follow(bridges));
    batch.fill_map(Layer::Bridge, PORTS, bridges.ports());
}

/// How long to wait for a table that this is the owner of: without one, it can be had now.
fn release(owner: Option<u32>) -> Duration {
    match owner {
        Some(_) => RELEASE,
        None => 2 * RELEASE,
    }
}

/// The netlink port of a table's owner, behind `struct nfgenmsg`.
pub fn read_owner(payload: &[u8]) -> Option<u32> {
    let (_, port) = attributes(payload.get(4..)?).find(|(kind, _)| *kind == NFTA_TABLE_OWNER)?;
    Some(u32::from_be_bytes(*port.first_chunk()?))
}
