//! Log lines on stderr: the time, the level, the message. The level is `RUST_LOG`, `info` if unset.

use std::fmt;
use std::io::Write;

use crate::clock::Moment;

/// Starts logging.
pub fn start() {
    let level = env_logger::Env::default().default_filter_or("info");
    env_logger::Builder::from_env(level)
        .format(|out, record| {
            writeln!(
                out,
                "{} {:5} {}",
                Moment::now().rfc3339(),
                record.level(),
                record.args()
            )
        })
        .init();
}

/// Bytes that somebody sent, safe to show: printable ASCII as it is, all else as `\n`, `\x1b`, `\"`.
pub fn escaped(bytes: &[u8]) -> impl fmt::Display {
    bytes.escape_ascii()
}
