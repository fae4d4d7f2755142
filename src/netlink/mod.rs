//! Netlink without a family: messages and attributes (`message`), and the sockets that exchange them
//! (`socket`).

pub mod message;
pub mod socket;
