//! A script in iptables-restore syntax, and what it parses to.
//!
//! In the order in which data passes through: `template` renders the bundled template
//! (`bundled.iptables`) or a file into lines; `script` parses chains, `line` one rule, whose `words`
//! it splits, `modules` the options of each `-m`, `values` the values of options, and `hints` says what to
//! write instead; `rule` holds the result, `tcp` its TCP flags; `reach` checks that the rules lead to the
//! listener; `handshakes` adds rules for SYN cookies. `limits` and `error` serve all of them. [`load`] takes a
//! template all the way.
//!
//! A new match, such as `-m ttl`, needs a change in each of these places:
//!
//! ```text
//! src/rules/rule.rs         a variant of Test; split_lists and merge_pair, if its value is a list
//! src/rules/modules.rs      its module and the options of it
//! src/rules/line.rs         its option in LineParser::test; a refusal for a family that has no such match
//! src/rules/values.rs       a parser of its value, if no other option has such values
//! src/nftables/nft.rs       the header field that it reads, if no other match reads it
//! src/nftables/matches.rs   its nf_tables expressions and their cost; the compiler points here
//! tests/rules/              what it means, and what is refused
//! fuzz/src/                 iptables.rs: the model; packet.rs: packets at its edges; spelling.rs
//! docs/rules.md             the table of supported options
//! ```

pub mod error;
mod handshakes;
mod hints;
pub mod limits;
mod line;
mod modules;
pub mod reach;
pub mod rule;
pub mod script;
pub mod tcp;
pub mod template;
mod values;
mod words;

use crate::rules::script::{Listing, Script};
use crate::rules::template::{Line, Template, Values};
use crate::selectors::Family;

/// The rules of one family, ready to be printed or installed.
pub struct Rules {
    /// The rendered lines.
    pub lines: Vec<Line>,
    /// What they mean.
    pub script: Script,
    /// The number of lines of the template with a rule for the family.
    pub count: usize,
}

/// Renders a template for one family, parses the lines, and checks that they lead to the listener.
///
/// # Errors
/// A line that cannot be rendered or parsed, or that keeps packets from the listener. The text names the
/// template, the family, the line and the word.
pub fn load(template: &Template, values: &Values, family: Family) -> Result<Rules, String> {
    let parse = |lines: Vec<Line>| {
        let listing = Listing::parse(&lines, family)?;
        reach::check(&listing, values)?;
        let numbers = listing.rules.iter().map(|listed| listed.line.number);
        let mut numbers: Vec<usize> = numbers.collect();
        numbers.dedup();
        let count = numbers.len();
        let script = listing.into_script().with_handshakes();
        Ok(Rules {
            lines,
            script,
            count,
        })
    };
    template::render(&template.text, values)
        .and_then(parse)
        .map_err(|error| format!("{} for {family}, {error}", template.name))
}
