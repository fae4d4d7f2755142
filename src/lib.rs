//! The library of tproxy-pod: everything but `main`. Tests and fuzzers reach the modules here.
//!
//! Imports point down: a module uses those below it, and no two files import each other.
//!
//! | module       | what it does                                    | uses                                       |
//! |--------------|-------------------------------------------------|--------------------------------------------|
//! | `main.rs`    | starts the two processes                        | all                                        |
//! | [`check`]    | `--check`: reports what the node can do         | `options`, and what both processes use     |
//! | [`options`]  | command line → checked options                  | `http`, `log`                              |
//! | [`guard`]    | installs, reconciles, drains, undoes            | `server`, `nftables`, `routing`, `rules`   |
//! | [`server`]   | accepts and serves connections: threads, limits | `http`, `log`, `sandbox`                   |
//! | [`http`]     | bytes → request, response → bytes; no socket    | `log`                                      |
//! | [`nftables`] | parsed rules → one nf_tables transaction        | `rules`, `routing`, `netlink`              |
//! | [`routing`]  | mark rules, AnyIP routes, bridges, sockets      | `netlink`, `log`                           |
//! | [`rules`]    | iptables-restore text → parsed rules            | `log`                                      |
//! | [`netlink`]  | messages, attributes, sockets of any family     |                                            |
//! | [`log`]      | log lines and their queue                       |                                            |
//! | [`sandbox`]  | what each process gives up                      |                                            |
//!
//! Any of them may use [`selectors`] (CIDRs, ports, marks), [`error`], [`lock`] and [`sys`], the system calls.

pub mod check;
pub mod options;

pub mod guard;
pub mod server;

pub mod http;
pub mod nftables;
pub mod routing;

pub mod log;
pub mod netlink;
pub mod rules;
pub mod sandbox;

pub mod error;
pub mod lock;
pub mod selectors;
pub mod sys;
