//! What a transaction writes into a table: chains, sets and compiled rules, as plain data.
//!
//! A [`Ruleset`] knows neither scripts nor netlink: `compile` and `bridge` build it, `batch` sends it.

use libc::c_int;

use crate::nftables::expression::Expression;
use crate::rules::script::{OUTPUT, PREROUTING};

/// Behind the translation of Services: a packet to a Service is one to a Pod then. The kernel runs all
/// chains of the type `nat` at -100, whatever priorities they have (`NF_IP_PRI_NAT_DST`,
/// linux/netfilter_ipv4.h; `nf_nat_register_fn`, net/netfilter/nf_nat_core.c).
const PRIORITY: c_int = libc::NF_IP_PRI_NAT_DST + 10;

/// The base chain for packets that come from a bridge with the tag below; it has the rules of
/// [`PREROUTING`]. It has to be the first chain of all: if br_netfilter has already passed such a packet
/// through the IP hooks, the kernel skips all other chains (`ip_sabotage_in`,
/// net/bridge/br_netfilter_hooks.c), and the socket that TPROXY chose there is lost between bridge and IP
/// (`ip_rcv_core`).
pub const REDIRECTED: &str = "REDIRECTED";

/// The tag, in `skb->priority`, of redirected frames and of all captured packets: on a bridge it is not known
/// whether IP will meet the packet again. For a packet that is delivered locally, the field has no other use.
pub const REDIRECTED_TAG: u32 = u32::from_be_bytes(*b"TPxy");

/// What a transaction writes into a table, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// New chains.
    pub chains: Vec<Chain>,
    /// New sets that rules find by name.
    pub named_sets: Vec<NamedSet>,
    /// Chains whose rules are removed.
    pub flushed_chains: Vec<String>,
    /// Rules to append.
    pub rules: Vec<CompiledRule>,
    /// The new elements of a map; they replace all that it has.
    pub map: Option<MapElements>,
}

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The name.
    pub name: String,
    /// The hook that calls the chain; `None` if the chain is no base chain.
    pub hook: Option<Hook>,
}

/// A hook of netfilter, and the place of a base chain in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// The number (`NF_INET_…`).
    pub number: c_int,
    /// The type of the chain, `filter` or `route`.
    pub kind: &'static str,
    /// Chains are called in ascending order.
    pub priority: c_int,
}

impl Hook {
    /// A chain of the type `filter` in the prerouting hook; that of a bridge has the same number
    /// (`NF_BR_PRE_ROUTING`).
    pub fn prerouting(priority: c_int) -> Hook {
        Hook {
            number: libc::NF_INET_PRE_ROUTING,
            kind: "filter",
            priority,
        }
    }
}

/// A set that rules find by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedSet {
    /// The name.
    pub name: String,
    /// The type's number for nft(8).
    pub key_type: u32,
    /// Length of a key, in bytes.
    pub key_length: u32,
    /// What it holds.
    pub kind: SetKind,
}

/// The kinds of named sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetKind {
    /// `flags dynamic,timeout`: rules add the elements, which expire.
    Dynamic {
        /// Most elements.
        size: u32,
    },
    /// A map to MAC addresses, values of `ether daddr`.
    EtherMap,
}

/// All elements of a [`SetKind::EtherMap`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapElements {
    /// The map's name.
    pub map: String,
    /// Indices of network devices and MAC addresses.
    pub elements: Vec<(u32, [u8; 6])>,
}

/// A rule of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompiledRule {
    /// The chain's name.
    pub chain: String,
    /// The steps.
    pub expressions: Vec<Expression>,
}

impl Ruleset {
    /// The base chains that every table of the scripts has, without rules.
    pub fn without_rules() -> Ruleset {
        let mut ruleset = Ruleset::default();
        ruleset.add_base_chain(PREROUTING, Hook::prerouting(PRIORITY));
        ruleset.add_base_chain(REDIRECTED, Hook::prerouting(libc::NF_IP_PRI_FIRST));
        ruleset
    }

    /// Adds the base chain [`OUTPUT`], which routes a packet again that it has marked.
    pub fn add_output(&mut self) {
        let hook = Hook {
            number: libc::NF_INET_LOCAL_OUT,
            kind: "route",
            priority: PRIORITY,
        };
        self.add_base_chain(OUTPUT, hook);
    }

    /// Adds a chain that a hook calls.
    pub fn add_base_chain(&mut self, name: &str, hook: Hook) {
        self.chains.push(Chain {
            name: name.to_owned(),
            hook: Some(hook),
        });
    }

    /// Adds a chain that other chains call.
    pub fn add_chain(&mut self, name: impl Into<String>) {
        self.chains.push(Chain {
            name: name.into(),
            hook: None,
        });
    }

    /// Appends a rule to a chain: the expressions of `parts`, one part after the other.
    pub fn append(&mut self, chain: &str, parts: &[&[Expression]]) {
        self.rules.push(CompiledRule {
            chain: chain.to_owned(),
            expressions: parts.concat(),
        });
    }
}
