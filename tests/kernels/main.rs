//! Other kernels, emulated.

#[path = "../lab/mod.rs"]
mod lab;

mod lacking;
