//! A script in iptables-restore syntax, parsed into typed rules.
//!
//! In the order in which data passes through: `template` renders the bundled template
//! (`bundled.iptables`) or a file into lines; `script` parses chains, `line` one rule, whose `words`
//! it splits, `values` the values of its options; `rule` holds the result, `tcp` its TCP flags.
//! `limits` and `error` serve all of them.

pub mod error;
pub mod limits;
mod line;
pub mod rule;
pub mod script;
pub mod tcp;
pub mod template;
mod values;
mod words;
