//! HTTP/1: requests, responses, refusals.

#[path = "../lab/mod.rs"]
mod lab;
mod stream;

mod directives;
mod json;
mod reading;
mod refusals;
mod responses;
mod smuggling;
