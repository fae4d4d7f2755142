//! Many clients at the same time. A crate of its own: its load would delay other tests.

#[path = "../lab/mod.rs"]
mod lab;

mod crowd;
mod limits;
mod overload;
