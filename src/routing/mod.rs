//! The routing policy, bridges and sockets of the node, read and changed by rtnetlink(7) and
//! sock_diag(7).
//!
//! `rtnetlink` has the constants that the other files share, and `loopback` the state of the device lo.
//! `entry` describes the rules and routes of tproxy-pod, `installed` lists those in the kernel,
//! `policy` adds and removes them, and `monitor` reports changes. `node_routes` says which routes of the
//! node lead into captured blocks, and `block_survey` which blocks have none. `bridges` lists the node's bridges;
//! `own_addresses` lists the addresses of the node itself; `sock_diag` finds and destroys sockets of ended
//! connections.

pub mod block_survey;
pub mod bridges;
pub mod entry;
pub mod installed;
pub mod loopback;
pub mod monitor;
pub mod node_routes;
pub mod own_addresses;
pub mod policy;
mod rtnetlink;
pub mod sock_diag;
