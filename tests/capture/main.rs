//! What is captured and what is not, with real packets.

mod kube_proxy;
#[path = "../lab/mod.rs"]
mod lab;
mod matrix;

mod bridge;
mod cni;
mod cookies;
mod from_node;
mod icmp;
mod neighbours;
mod own_addresses;
mod packets;
mod services;
mod shared_routing;
mod source_validation;
