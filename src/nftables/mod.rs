//! Parsed rules, written to the kernel as one nf_tables transaction.
//!
//! Three lines of src/rules/bundled.iptables decide whether a packet is captured: `-j TPROXY-POD` selects
//! the captured addresses and ports, `--syn -j TPROXY` hands a SYN to the listener, `-m socket -j MARK`
//! marks the later packets of its connections. The way of such a line into the kernel, in the order of
//! the calls:
//!
//! ```text
//! rules::load                 template            -> Script: chains of parsed rules
//! compile::compile            Script              -> Ruleset: chains, sets, rules
//!   matches::expressions        -d, --dports, --syn -> expressions that test the packet
//!   compile::action             -j TPROXY           -> expressions that act on it
//! Tables::install             both Rulesets       -> one transaction
//!   Batch::write                Ruleset             -> messages, in order
//!   messages::new_rule          rule                -> netlink message
//!   Expression::write           expression          -> netlink attributes
//!   Batch::commit               messages            -> the kernel
//! ```
//!
//! A rule of PREROUTING is written twice, to the base chains PREROUTING and REDIRECTED: the second takes
//! packets that were redirected from a bridge (`ruleset::REDIRECTED` says why). SYNs that TPROXY takes are
//! remembered in a set of `connections`, for handshakes by SYN cookie (`rules::handshakes` says why).
//!
//! The guard makes these calls once the server is ready (src/guard). `bridge` builds the rules of the
//! second table, which redirects frames from bridges to the IP stack, so that the first table sees them.
//! It selects them by `--cidr` and `--dport`, whatever the script says. `nft` lists header fields.
//!
//! Imports go one way: nft, expression, encode, ruleset, connections, matches, compile and bridge, messages, batch, table;
//! each file imports only files before it.

pub mod batch;
pub mod bridge;
pub mod compile;
pub mod connections;
pub mod encode;
pub mod expression;
mod matches;
pub mod messages;
pub mod nft;
pub mod ruleset;
pub mod table;
