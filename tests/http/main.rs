//! HTTP/1 on the wire: requests, responses, refusals.

#[path = "../lab/mod.rs"]
mod lab;
mod stream;

mod reading;
mod refusals;
mod responses;
mod smuggling;
