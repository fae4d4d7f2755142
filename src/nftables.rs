//! The table `inet tproxy-pod`: claimed for this process, replaced and removed in one nf_tables
//! transaction each.
//!
//! With `NFT_TABLE_F_OWNER` (Linux 5.12) the kernel keeps everybody else's hands off the table and
//! removes it when the process ends, however it ends. From linux/netfilter/nf_tables.h and
//! linux/netfilter/nfnetlink.h.

use std::thread;
use std::time::{Duration, Instant};

use libc::c_int;

use crate::compile::{CompiledRule, Ruleset, Set, compile, key};
use crate::error::Error;
use crate::expression::{ANONYMOUS_SET, NFTA_DATA_VALUE, NFTA_LIST_ELEM};
use crate::netlink::{Message, Refusal, Socket, attributes};
use crate::script::{PREROUTING, Script};

/// The name of the table, of the family `inet`.
pub const TABLE: &str = "tproxy-pod";

const NFT_TABLE_F_OWNER: u32 = 2;
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_TABLE_FLAGS: u16 = 2;
const NFTA_TABLE_OWNER: u16 = 7;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_SET_TABLE: u16 = 1;
const NFTA_SET_NAME: u16 = 2;
const NFTA_SET_FLAGS: u16 = 3;
const NFTA_SET_KEY_TYPE: u16 = 4;
const NFTA_SET_KEY_LEN: u16 = 5;
const NFTA_SET_ID: u16 = 10;
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_SET_ELEM_LIST_SET_ID: u16 = 4;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_FLAGS: u16 = 3;

/// `NF_IP_PRI_MANGLE` (linux/netfilter_ipv4.h)
const PRIORITY_MANGLE: i32 = -150;

/// How long a table may still be there whose owner was killed.
const RELEASE: Duration = Duration::from_secs(1);

/// An element takes at most 44 bytes, an attribute at most 65,535.
const ELEMENTS_PER_MESSAGE: usize = 1000;

/// The table, and the socket that owns it.
#[derive(Debug)]
pub struct Table {
    socket: Socket,
    /// The flags that the table has now, or would be created with.
    flags: u32,
    has_rules: bool,
}

impl Table {
    /// Claims the table: from here on it belongs to this process, and is empty. Before Linux 5.12
    /// nothing is claimed and nothing created yet.
    ///
    /// # Errors
    /// `EPERM` if the table belongs to another process, or `CAP_NET_ADMIN` is missing.
    pub fn claim() -> Result<Table, Error> {
        let socket = Socket::open(libc::NETLINK_NETFILTER)
            .map_err(|error| Error::new("open a netlink socket", error))?;
        let mut table = Table {
            socket,
            flags: 0,
            has_rules: false,
        };
        let refused = || Error::numbered(format!("create table inet {TABLE}"), libc::EPERM);
        let deadline = Instant::now() + RELEASE;
        loop {
            let Err(error) = table.transaction(NFT_TABLE_F_OWNER, &Ruleset::default()) else {
                return Ok(table);
            };
            match (error.errno(), table.owner()) {
                (libc::EINVAL | libc::EOPNOTSUPP, _) => return Ok(table),
                (libc::EPERM, Err(_)) => return Err(refused().hint("CAP_NET_ADMIN is needed")),
                // Its owner may be about to end, or has ended just now.
                (libc::EPERM, Ok(_)) if Instant::now() < deadline => thread::sleep(RELEASE / 100),
                (libc::EPERM, Ok(Some(port))) => {
                    return Err(refused().hint(format!(
                        "the table has an owner, netlink port {port}: another tproxy-pod is running"
                    )));
                }
                _ => return Err(error),
            }
        }
    }

    /// Whether the kernel removes the table with this process.
    pub fn is_owned(&self) -> bool {
        self.flags & NFT_TABLE_F_OWNER != 0
    }

    /// Puts the rules of these scripts in place of all that is in the table.
    ///
    /// # Errors
    /// The part of the table that the kernel refuses; nothing is changed then.
    pub fn replace(&mut self, scripts: &[Script]) -> Result<(), Error> {
        self.transaction(self.flags, &compile(scripts))?;
        self.has_rules = true;
        Ok(())
    }

    /// Whether rules were put into it.
    pub fn has_rules(&self) -> bool {
        self.has_rules
    }

    /// Removes the table.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn remove(&mut self) -> Result<(), Error> {
        let mut batch = Batch::new();
        batch.table(libc::NFT_MSG_NEWTABLE, self.flags);
        batch.table(libc::NFT_MSG_DELTABLE, 0);
        batch.commit(&mut self.socket)
    }

    /// Adding the table before it is deleted makes one transaction serve whether it is there or not.
    fn transaction(&mut self, flags: u32, ruleset: &Ruleset) -> Result<(), Error> {
        let mut batch = Batch::new();
        batch.table(libc::NFT_MSG_NEWTABLE, self.flags);
        batch.table(libc::NFT_MSG_DELTABLE, 0);
        batch.table(libc::NFT_MSG_NEWTABLE, flags);
        ruleset.chains.iter().for_each(|chain| batch.chain(chain));
        (0..)
            .zip(&ruleset.sets)
            .for_each(|(id, set)| batch.set(id, set));
        ruleset.rules.iter().for_each(|rule| batch.rule(rule));
        batch.commit(&mut self.socket)?;
        self.flags = flags;
        Ok(())
    }

    /// The netlink port of the table's owner, if it has one.
    ///
    /// # Errors
    /// `EPERM` if this process may not ask.
    fn owner(&mut self) -> Result<Option<u32>, Refusal> {
        let mut question = message(libc::NFT_MSG_GETTABLE, libc::NLM_F_ACK);
        question.put_text(NFTA_TABLE_NAME, TABLE);
        let mut owner = None;
        let asked = self
            .socket
            .ask(question, |answer| owner = read_owner(answer.payload));
        match asked {
            Err(refusal) if refusal.errno == libc::ENOENT => Ok(None),
            asked => asked.map(|()| owner),
        }
    }
}

/// The netlink port of a table's owner, behind `struct nfgenmsg`.
pub fn read_owner(payload: &[u8]) -> Option<u32> {
    let (_, port) = attributes(payload.get(4..)?).find(|(kind, _)| *kind == NFTA_TABLE_OWNER)?;
    Some(u32::from_be_bytes(*port.first_chunk()?))
}

/// A request of the nf_tables subsystem; `struct nfgenmsg` holds family, version and a resource id.
fn message(kind: c_int, flags: c_int) -> Message {
    let kind = (libc::NFNL_SUBSYS_NFTABLES << 8 | kind) as u16;
    Message::new(
        kind,
        flags,
        &[libc::NFPROTO_INET as u8, libc::NFNETLINK_V0 as u8, 0, 0],
    )
}

/// A transaction that is being written: each message with the words for what it asks.
struct Batch {
    messages: Vec<(Message, String)>,
}

impl Batch {
    fn new() -> Batch {
        Batch {
            messages: Vec::new(),
        }
    }

    fn add(&mut self, message: Message, attempt: String) {
        self.messages.push((message, attempt));
    }

    fn table(&mut self, kind: c_int, flags: u32) {
        let create = kind == libc::NFT_MSG_NEWTABLE;
        let mut table = message(kind, if create { libc::NLM_F_CREATE } else { 0 });
        table.put_text(NFTA_TABLE_NAME, TABLE);
        if create {
            table.put_be32(NFTA_TABLE_FLAGS, flags);
        }
        let verb = if create { "create" } else { "delete" };
        self.add(table, format!("{verb} table inet {TABLE}"));
    }

    fn chain(&mut self, name: &str) {
        let mut chain = message(libc::NFT_MSG_NEWCHAIN, libc::NLM_F_CREATE);
        chain
            .put_text(NFTA_CHAIN_TABLE, TABLE)
            .put_text(NFTA_CHAIN_NAME, name);
        if name == PREROUTING {
            chain
                .nest(NFTA_CHAIN_HOOK, |hook| {
                    hook.put_be32(NFTA_HOOK_HOOKNUM, libc::NF_INET_PRE_ROUTING as u32)
                        .put_be32(NFTA_HOOK_PRIORITY, PRIORITY_MANGLE as u32);
                })
                .put_be32(NFTA_CHAIN_POLICY, libc::NF_ACCEPT as u32)
                .put_text(NFTA_CHAIN_TYPE, "filter");
        }
        self.add(chain, format!("create chain {name} in table inet {TABLE}"));
    }

    /// An anonymous set, and its elements: the first value of every range, and the first behind it.
    fn set(&mut self, id: u32, set: &Set) {
        let attempt = format!(
            "create a set of {} ranges in table inet {TABLE}",
            set.ranges.len()
        );
        let flags = libc::NFT_SET_ANONYMOUS | libc::NFT_SET_CONSTANT | libc::NFT_SET_INTERVAL;
        let mut new = message(libc::NFT_MSG_NEWSET, libc::NLM_F_CREATE);
        new.put_text(NFTA_SET_TABLE, TABLE)
            .put_text(NFTA_SET_NAME, ANONYMOUS_SET)
            .put_be32(NFTA_SET_FLAGS, flags as u32)
            .put_be32(NFTA_SET_KEY_TYPE, set.key_type)
            .put_be32(NFTA_SET_KEY_LEN, set.width as u32)
            .put_be32(NFTA_SET_ID, id);
        self.add(new, attempt.clone());
        let highest = u128::MAX >> (128 - 8 * set.width);
        let bounds: Vec<(u128, c_int)> = set
            .ranges
            .iter()
            .flat_map(|range| {
                let end = (*range.end() < highest)
                    .then(|| (range.end() + 1, libc::NFT_SET_ELEM_INTERVAL_END));
                std::iter::once((*range.start(), 0)).chain(end)
            })
            .collect();
        for some in bounds.chunks(ELEMENTS_PER_MESSAGE) {
            let mut elements = message(libc::NFT_MSG_NEWSETELEM, libc::NLM_F_CREATE);
            elements
                .put_text(NFTA_SET_ELEM_LIST_TABLE, TABLE)
                .put_text(NFTA_SET_ELEM_LIST_SET, ANONYMOUS_SET)
                .put_be32(NFTA_SET_ELEM_LIST_SET_ID, id)
                .nest(NFTA_SET_ELEM_LIST_ELEMENTS, |list| {
                    some.iter()
                        .for_each(|(bound, flags)| element(list, &key(*bound, set.width), *flags));
                });
            self.add(elements, attempt.clone());
        }
    }

    fn rule(&mut self, rule: &CompiledRule) {
        let mut new = message(
            libc::NFT_MSG_NEWRULE,
            libc::NLM_F_CREATE | libc::NLM_F_APPEND,
        );
        new.put_text(NFTA_RULE_TABLE, TABLE)
            .put_text(NFTA_RULE_CHAIN, &rule.chain)
            .nest(NFTA_RULE_EXPRESSIONS, |list| {
                rule.expressions
                    .iter()
                    .for_each(|expression| expression.write(list))
            });
        self.add(
            new,
            format!("add a rule to chain {} in table inet {TABLE}", rule.chain),
        );
    }

    /// The kernel takes all of the messages or none; the last of them is acknowledged.
    fn commit(mut self, socket: &mut Socket) -> Result<(), Error> {
        let frame = |kind: c_int| {
            let [high, low] = (libc::NFNL_SUBSYS_NFTABLES as u16).to_be_bytes();
            Message::new(
                kind as u16,
                0,
                &[libc::AF_UNSPEC as u8, libc::NFNETLINK_V0 as u8, high, low],
            )
        };
        if let Some((last, _)) = self.messages.last_mut() {
            last.acknowledge();
        }
        let (messages, attempts): (Vec<_>, Vec<_>) = self.messages.into_iter().unzip();
        let mut framed = vec![frame(libc::NFNL_MSG_BATCH_BEGIN)];
        framed.extend(messages);
        framed.push(frame(libc::NFNL_MSG_BATCH_END));
        socket.request(framed).map_err(
            |Refusal {
                 message,
                 errno,
                 words,
             }| {
                let attempt = message.checked_sub(1).and_then(|at| attempts.get(at));
                let whole = || format!("change table inet {TABLE}");
                let error = Error::numbered(attempt.cloned().unwrap_or_else(whole), errno);
                match words {
                    Some(words) => error.hint(words),
                    None => error,
                }
            },
        )
    }
}

fn element(list: &mut Message, key: &[u8], flags: c_int) {
    list.nest(NFTA_LIST_ELEM, |element| {
        element.nest(NFTA_SET_ELEM_KEY, |data| {
            data.put(NFTA_DATA_VALUE, key);
        });
        if flags != 0 {
            element.put_be32(NFTA_SET_ELEM_FLAGS, flags as u32);
        }
    });
}
