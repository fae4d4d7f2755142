//! Many clients at the same time. A crate of its own: its load would delay other tests.

#[path = "../lab/mod.rs"]
mod lab;

mod busy;
mod crowd;
mod crowds;
mod flood;
mod limits;
mod overload;
mod pressure;
