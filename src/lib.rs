//! The parts of tproxy-pod. `main.rs` tells how they work together; tests and fuzzers reach them
//! here. Imports point down: a folder imports those that stand below it, and no two files import
//! each other.

pub mod check;
pub mod options;

pub mod guard;
pub mod server;

pub mod http;
pub mod nftables;
pub mod routing;

pub mod log;
pub mod netlink;
pub mod rules;
pub mod sandbox;

pub mod error;
pub mod lock;
pub mod selectors;
pub mod sys;
