//! The iptables-restore script: syntax, semantics, refusals.

#[path = "../lab/mod.rs"]
mod lab;

mod meaning;
mod reach;
mod on_the_node;
mod refusals;
mod restore;
mod syntax;
