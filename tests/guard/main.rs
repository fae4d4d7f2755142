//! The guard: start, stop, death, reconciliation, sandbox.

#[path = "../lab/mod.rs"]
mod lab;

mod breach;
mod check;
mod death;
mod healing;
mod lifecycle;
mod sandbox;
mod stop;
