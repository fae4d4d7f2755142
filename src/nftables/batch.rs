//! A transaction of nf_tables: messages that the kernel takes all, or none of.
//!
//! From linux/netfilter/nf_tables.h and linux/netfilter/nfnetlink.h.

use std::fmt;

use libc::c_int;

use crate::error::Error;
use crate::netlink::message::{Message, Refusal, attributes};
use crate::netlink::socket::Socket;
use crate::nftables::compile::{
    CompiledRule, Kind, LIFTED, Named, Ruleset, Set, TYPE_ETHERADDR, key,
};
use crate::nftables::expression::{ANONYMOUS_SET, NFTA_EXPR_NAME, NFTA_LIST_ELEM, value};
use crate::routing::bridges::Port;
use crate::rules::script::PREROUTING;

/// The name of the tables.
pub const TABLE: &str = "tproxy-pod";

/// A table: its name
pub const NFTA_TABLE_NAME: u16 = 1;
const NFTA_TABLE_FLAGS: u16 = 2;
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
const NFTA_SET_DATA_TYPE: u16 = 6;
const NFTA_SET_DATA_LEN: u16 = 7;
const NFTA_SET_DESC: u16 = 9;
const NFTA_SET_DESC_SIZE: u16 = 1;
const NFTA_SET_ID: u16 = 10;
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_SET_ELEM_LIST_SET_ID: u16 = 4;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_DATA: u16 = 2;
const NFTA_SET_ELEM_FLAGS: u16 = 3;

/// `NF_IP_PRI_MANGLE` (linux/netfilter_ipv4.h)
const PRIORITY_MANGLE: c_int = -150;

/// An element takes at most 44 bytes, an attribute at most 65,535.
const ELEMENTS_PER_MESSAGE: usize = 1000;

/// Where a table meets packets: the family of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// IPv4 and IPv6.
    Inet,
    /// IPv4 alone: a kernel without IPv6 has no other (`NF_TABLES_INET`, net/netfilter/Kconfig).
    Ip,
    /// Frames that a bridge has received.
    Bridge,
}

impl Layer {
    fn nfproto(self) -> u8 {
        (match self {
            Layer::Inet => libc::NFPROTO_INET,
            Layer::Ip => libc::NFPROTO_IPV4,
            Layer::Bridge => libc::NFPROTO_BRIDGE,
        }) as u8
    }

    /// On a bridge, behind those that filter frames, and ahead of br_netfilter, which would run the
    /// hooks of IP for a frame that stays on the bridge.
    fn priority(self) -> c_int {
        match self {
            Layer::Inet | Layer::Ip => PRIORITY_MANGLE,
            Layer::Bridge => libc::NF_BR_PRI_BRNF - 1,
        }
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = match self {
            Layer::Inet => "inet",
            Layer::Ip => "ip",
            Layer::Bridge => "bridge",
        };
        write!(f, "{family} {TABLE}")
    }
}

/// A request of the nf_tables subsystem; `struct nfgenmsg` holds family, version and a resource id.
pub fn message(layer: Layer, kind: c_int, flags: c_int) -> Message {
    let kind = (libc::NFNL_SUBSYS_NFTABLES << 8 | kind) as u16;
    let header = [layer.nfproto(), libc::NFNETLINK_V0 as u8, 0, 0];
    Message::new(kind, flags, &header)
}

/// What becomes of a transaction that the kernel takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It is done.
    Lasting,
    /// Nothing: it is only tried.
    Tried,
}

/// A transaction that is being written: each message with its table, and the words for what it asks.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    messages: Vec<Message>,
    attempts: Vec<(Layer, String)>,
    /// How many anonymous sets there are so far.
    sets: u32,
}

/// Why a transaction was refused, and which table's part of it.
#[derive(Debug)]
pub struct Refused {
    /// The table; the first one's, if the whole was refused.
    pub layer: Option<Layer>,
    /// What was asked, and the kernel's answer.
    pub error: Error,
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Error {
        refused.error
    }
}

impl Batch {
    fn add(&mut self, layer: Layer, message: Message, attempt: String) {
        self.messages.push(message);
        self.attempts.push((layer, attempt));
    }

    /// Creates a table, or finds that it is there, with these flags.
    pub fn create(&mut self, layer: Layer, flags: u32) {
        let mut table = message(layer, libc::NFT_MSG_NEWTABLE, libc::NLM_F_CREATE);
        table
            .put_text(NFTA_TABLE_NAME, TABLE)
            .put_be32(NFTA_TABLE_FLAGS, flags);
        self.add(layer, table, format!("create table {layer}"));
    }

    /// Deletes a table that may not be there; if it is, it has these flags.
    pub fn delete(&mut self, layer: Layer, flags: u32) {
        self.create(layer, flags);
        let mut table = message(layer, libc::NFT_MSG_DELTABLE, 0);
        table.put_text(NFTA_TABLE_NAME, TABLE);
        self.add(layer, table, format!("delete table {layer}"));
    }

    /// Fills a table.
    pub fn fill(&mut self, layer: Layer, ruleset: &Ruleset) {
        for chain in &ruleset.chains {
            self.chain(layer, chain);
        }
        for named in &ruleset.named {
            self.named(layer, named);
        }
        let first_set = self.sets;
        for (id, set) in (first_set..).zip(&ruleset.sets) {
            self.set(layer, id, set);
        }
        self.sets += ruleset.sets.len() as u32;
        for rule in &ruleset.rules {
            self.rule(layer, rule, first_set);
        }
    }

    /// Removes all rules of a chain.
    pub fn flush(&mut self, layer: Layer, chain: &str) {
        let mut rules = message(layer, libc::NFT_MSG_DELRULE, 0);
        rules
            .put_text(NFTA_RULE_TABLE, TABLE)
            .put_text(NFTA_RULE_CHAIN, chain);
        self.add(
            layer,
            rules,
            format!("flush chain {chain} in table {layer}"),
        );
    }

    fn chain(&mut self, layer: Layer, name: &str) {
        let mut chain = message(layer, libc::NFT_MSG_NEWCHAIN, libc::NLM_F_CREATE);
        chain
            .put_text(NFTA_CHAIN_TABLE, TABLE)
            .put_text(NFTA_CHAIN_NAME, name);
        let priority = match name {
            PREROUTING => Some(layer.priority()),
            LIFTED => Some(libc::NF_IP_PRI_FIRST),
            _ => None,
        };
        if let Some(priority) = priority {
            // NF_BR_PRE_ROUTING is the same number.
            chain
                .nest(NFTA_CHAIN_HOOK, |hook| {
                    hook.put_be32(NFTA_HOOK_HOOKNUM, libc::NF_INET_PRE_ROUTING as u32)
                        .put_be32(NFTA_HOOK_PRIORITY, priority as u32);
                })
                .put_be32(NFTA_CHAIN_POLICY, libc::NF_ACCEPT as u32)
                .put_text(NFTA_CHAIN_TYPE, "filter");
        }
        self.add(
            layer,
            chain,
            format!("create chain {name} in table {layer}"),
        );
    }

    fn named(&mut self, layer: Layer, named: &Named) {
        let flags = match named.kind {
            Kind::Connections(_) => libc::NFT_SET_EVAL | libc::NFT_SET_TIMEOUT,
            Kind::Hardware => libc::NFT_SET_MAP,
        };
        let mut new = new_set(layer, named.name, flags, named.key_type, named.width);
        match named.kind {
            Kind::Connections(size) => new.nest(NFTA_SET_DESC, |description| {
                description.put_be32(NFTA_SET_DESC_SIZE, size);
            }),
            Kind::Hardware => new
                .put_be32(NFTA_SET_DATA_TYPE, TYPE_ETHERADDR)
                .put_be32(NFTA_SET_DATA_LEN, 6),
        };
        // nf_tables asks for an id, also where a name finds the set.
        new.put_be32(NFTA_SET_ID, u32::MAX);
        let name = named.name;
        self.add(layer, new, format!("create set {name} in table {layer}"));
    }

    /// Puts these devices in place of all that a map of hardware addresses has.
    pub fn fill_map(&mut self, layer: Layer, name: &str, ports: &[Port]) {
        let attempt = format!("fill map {name} in table {layer}");
        let of = |kind, flags| {
            let mut elements = message(layer, kind, flags);
            elements
                .put_text(NFTA_SET_ELEM_LIST_TABLE, TABLE)
                .put_text(NFTA_SET_ELEM_LIST_SET, name);
            elements
        };
        self.add(layer, of(libc::NFT_MSG_DELSETELEM, 0), attempt.clone());
        for some in ports.chunks(ELEMENTS_PER_MESSAGE) {
            let mut elements = of(libc::NFT_MSG_NEWSETELEM, libc::NLM_F_CREATE);
            elements.nest(NFTA_SET_ELEM_LIST_ELEMENTS, |list| {
                for port in some {
                    list.nest(NFTA_LIST_ELEM, |element| {
                        value(element, NFTA_SET_ELEM_KEY, &port.index.to_ne_bytes());
                        value(element, NFTA_SET_ELEM_DATA, &port.hardware);
                    });
                }
            });
            self.add(layer, elements, attempt.clone());
        }
    }

    /// An anonymous set, and its elements: the first value of every range, and the first behind it.
    fn set(&mut self, layer: Layer, id: u32, set: &Set) {
        let ranges = set.ranges.len();
        let attempt = format!("create a set of {ranges} ranges in table {layer}");
        let flags = libc::NFT_SET_ANONYMOUS | libc::NFT_SET_CONSTANT | libc::NFT_SET_INTERVAL;
        let mut new = new_set(layer, ANONYMOUS_SET, flags, set.key_type, set.width);
        new.put_be32(NFTA_SET_ID, id);
        self.add(layer, new, attempt.clone());
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
            let mut elements = message(layer, libc::NFT_MSG_NEWSETELEM, libc::NLM_F_CREATE);
            elements
                .put_text(NFTA_SET_ELEM_LIST_TABLE, TABLE)
                .put_text(NFTA_SET_ELEM_LIST_SET, ANONYMOUS_SET)
                .put_be32(NFTA_SET_ELEM_LIST_SET_ID, id)
                .nest(NFTA_SET_ELEM_LIST_ELEMENTS, |list| {
                    some.iter()
                        .for_each(|(bound, flags)| element(list, &key(*bound, set.width), *flags));
                });
            self.add(layer, elements, attempt.clone());
        }
    }

    fn rule(&mut self, layer: Layer, rule: &CompiledRule, first_set: u32) {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_APPEND;
        let mut new = message(layer, libc::NFT_MSG_NEWRULE, flags);
        new.put_text(NFTA_RULE_TABLE, TABLE)
            .put_text(NFTA_RULE_CHAIN, &rule.chain)
            .nest(NFTA_RULE_EXPRESSIONS, |list| {
                rule.expressions
                    .iter()
                    .for_each(|expression| expression.write(list, first_set))
            });
        let chain = &rule.chain;
        self.add(
            layer,
            new,
            format!("add a rule to chain {chain} in table {layer}"),
        );
    }

    /// Has the kernel do all of it, or nothing; what is only tried, it undoes before it answers.
    ///
    /// # Errors
    /// The first message that it refuses.
    pub fn commit(mut self, socket: &mut Socket, effect: Effect) -> Result<(), Refused> {
        if let Some(last) = self.messages.last_mut() {
            last.acknowledge();
        }
        let mut framed = vec![frame(libc::NFNL_MSG_BATCH_BEGIN)];
        framed.append(&mut self.messages);
        // Without its end the kernel checks a transaction, and does not do it (`nfnetlink_rcv_batch`).
        if effect == Effect::Lasting {
            framed.push(frame(libc::NFNL_MSG_BATCH_END));
        }
        socket
            .request(&framed)
            .map_err(|refusal| self.refused(refusal, &framed))
    }

    fn refused(&self, refusal: Refusal, framed: &[Message]) -> Refused {
        let attempt = refusal.message.checked_sub(1);
        let attempt = attempt.and_then(|at| self.attempts.get(at));
        let (layer, words) = attempt.or(self.attempts.first()).cloned().unzip();
        let error = Error::numbered(words.unwrap_or_default(), refusal.errno);
        let message = framed.get(refusal.message);
        let error = match (missing(&refusal, message), refusal.words) {
            (Some(part), _) => error.hint(part),
            (None, Some(words)) => error.hint(words),
            (None, None) => error,
        };
        Refused { layer, error }
    }
}

/// The part of the kernel whose lack is the reason.
fn missing(refusal: &Refusal, message: Option<&Message>) -> Option<String> {
    if refusal.errno == libc::EOPNOTSUPP && refusal.message == 0 {
        return Some(lacks("nf_tables", "module nf_tables, CONFIG_NF_TABLES"));
    }
    let expression = message?.at(refusal.offset?)?;
    let (_, name) = attributes(expression).find(|(kind, _)| *kind == NFTA_EXPR_NAME)?;
    let name = String::from_utf8_lossy(name);
    let name = name.trim_end_matches('\0');
    let part = format!(
        "module nft_{name}, CONFIG_NFT_{}",
        name.to_ascii_uppercase()
    );
    (refusal.errno == libc::ENOENT).then(|| lacks(&format!("the expression {name}"), &part))
}

fn lacks(what: &str, part: &str) -> String {
    format!("the kernel lacks {what}: {part}")
}

/// The first or the last message of a transaction.
fn frame(kind: c_int) -> Message {
    let [high, low] = (libc::NFNL_SUBSYS_NFTABLES as u16).to_be_bytes();
    let header = [libc::AF_UNSPEC as u8, libc::NFNETLINK_V0 as u8, high, low];
    Message::new(kind as u16, 0, &header)
}

fn new_set(layer: Layer, name: &str, flags: c_int, key_type: u32, width: usize) -> Message {
    let mut new = message(layer, libc::NFT_MSG_NEWSET, libc::NLM_F_CREATE);
    new.put_text(NFTA_SET_TABLE, TABLE)
        .put_text(NFTA_SET_NAME, name)
        .put_be32(NFTA_SET_FLAGS, flags as u32)
        .put_be32(NFTA_SET_KEY_TYPE, key_type)
        .put_be32(NFTA_SET_KEY_LEN, width as u32);
    new
}

fn element(list: &mut Message, key: &[u8], flags: c_int) {
    list.nest(NFTA_LIST_ELEM, |element| {
        value(element, NFTA_SET_ELEM_KEY, key);
        if flags != 0 {
            element.put_be32(NFTA_SET_ELEM_FLAGS, flags as u32);
        }
    });
}
