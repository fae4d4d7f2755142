//! The guard: start, stop, death, reconciliation, sandbox.

#[path = "../lab/mod.rs"]
mod lab;

mod blocks;
mod breach;
mod check;
mod death;
mod lifecycle;
mod netlink;
mod own_connections;
mod readiness;
mod reconciler;
mod sandbox;
mod stop;
