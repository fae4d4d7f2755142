//! The iptables-restore script: its syntax, its meaning, its refusals.

#[path = "../lab/mod.rs"]
mod lab;

mod meaning;
mod refusals;
mod restore;
mod syntax;
