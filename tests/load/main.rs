//! Many clients at once. A crate of its own: the others would lose the time that its tests take.

#[path = "../lab/mod.rs"]
mod lab;

mod crowd;
mod limits;
mod overload;
