//! Typed rules, written to the kernel as one nf_tables transaction.
//!
//! Whether a packet is captured is decided by two lines of src/rules/bundled.iptables: in PREROUTING
//! `-j TPROXY-POD` selects captured addresses and ports, in TPROXY-POD `--syn -j TPROXY` hands the packet
//! to the listener. The way of such a line into the kernel, in the order of the calls:
//!
//! ```text
//! rules::script::parse        text                -> Script of typed rules
//! compile::compile            Script              -> Ruleset: chains, sets, rules
//!   matches::expressions        -d, --dport, --syn  -> expressions that test the packet
//!   compile::action             -j TPROXY           -> expressions that act on it
//! Table::install              owns the tables     -> one transaction for both
//!   Batch::write                Ruleset             -> messages, in order
//!   messages::new_rule          rule                -> netlink message
//!   Expression::write           expression          -> netlink attributes
//!   Batch::commit               messages            -> the kernel
//! ```
//!
//! A rule of PREROUTING is written twice, to the base chains PREROUTING and REDIRECTED: the second takes
//! packets that were redirected from a bridge (`ruleset::REDIRECTED` says why).
//!
//! The guard makes these calls once the server is ready (src/guard). `bridge` builds the rules of the
//! second table, which redirects frames from bridges to these rules; `nft` lists header fields.
//!
//! Imports go one way: nft, expression, ruleset, matches, compile and bridge, messages, batch, table;
//! each file imports only files before it.

pub mod batch;
pub mod bridge;
pub mod compile;
pub mod expression;
mod matches;
pub mod messages;
pub mod nft;
pub mod ruleset;
pub mod table;
