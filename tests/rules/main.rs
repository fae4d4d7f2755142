//! The iptables-restore script: syntax, semantics, refusals.

#[path = "../lab/mod.rs"]
mod lab;

mod example;
mod meaning;
mod on_the_node;
mod reach;
mod refusals;
mod restore;
mod syntax;
