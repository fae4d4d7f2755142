//! A script in iptables-restore syntax, read into typed rules.
//!
//! In the order in which data passes through: `template` fills in the variables of a script, the
//! bundled one (`bundled.iptables`) or the user's; `script` reads its lines, `line` one rule, `values`
//! what its options take; `rule` has the types that come out.

pub mod error;
mod limits;
mod line;
pub mod rule;
pub mod script;
pub mod tcp;
pub mod template;
mod values;
mod words;
