//! Other kernels and another architecture, emulated.

#[path = "../lab/mod.rs"]
mod lab;

mod arm64;
mod lacking;
