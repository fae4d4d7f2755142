//! What rtnetlink(7) and sock_diag(7) say, and what is asked of them.
//!
//! `policy` installs the mark rules and the AnyIP routes, `installed` reads those that there are, `monitor`
//! tells of changes; `bridges` lists the node's bridges; `sock_diag` finds and ends sockets.

pub mod bridges;
pub mod installed;
pub mod monitor;
pub mod policy;
pub mod sock_diag;
