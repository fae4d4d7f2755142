//! What the server is started with: options, and what the guard has found out before the fork.

use crate::http::directives::Directives;

/// What the server is started with.
#[derive(Clone, Debug)]
pub struct Config {
    /// The most connections that are served at once.
    pub max_connections: usize,
    /// The status and the delay of an echo, unless the request has others.
    pub directives: Directives,
    /// What is captured, by the options or by the rules of a file, as the log says it.
    pub captured: String,
    /// Whether what the node itself sends is captured.
    pub captures_output: bool,
    /// Whether the kernel removes the tables with the guard.
    pub is_owned: bool,
}
