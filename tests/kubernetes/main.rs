//! The image, the manifest and the demo.

#[path = "../lab/mod.rs"]
mod lab;
mod stage;

mod demo;
mod demo_cluster;
mod demo_kind;
mod image;
mod manifest;
