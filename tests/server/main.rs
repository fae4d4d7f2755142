//! The server with slow and hostile clients, and its log.

#[path = "../lab/mod.rs"]
mod lab;

mod acknowledgements;
mod deadlines;
mod hostile;
mod json_log;
mod logs;
mod metrics;
mod state;
