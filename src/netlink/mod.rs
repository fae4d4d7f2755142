//! Netlink without a protocol family (netlink(7)).
//!
//! `message` writes requests with their attributes and parses replies; `socket` sends requests and
//! reads acknowledgements, dumps and notifications.

pub mod message;
pub mod socket;
