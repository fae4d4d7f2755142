//! The parts of tproxy-pod. `main.rs` tells how they work together; tests and fuzzers reach them
//! here.

pub mod answer;
pub mod body;
pub mod buffer;
pub mod capture;
pub mod child;
pub mod clock;
pub mod compile;
pub mod connection;
pub mod echo;
pub mod error;
pub mod expression;
pub mod guard;
pub mod http;
pub mod idle;
pub mod listener;
pub mod log_queue;
pub mod logging;
pub mod netlink;
pub mod nftables;
pub mod options;
pub mod room;
pub mod routing;
pub mod rule;
pub mod rule_line;
pub mod sandbox;
pub mod script;
pub mod seccomp;
pub mod server;
pub mod sockets;
pub mod sys;
pub mod template;
pub mod text;
pub mod watch;
pub mod wire;
