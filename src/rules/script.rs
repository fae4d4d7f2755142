//! A parser of scripts in iptables-restore syntax: the table mangle, with PREROUTING and user chains.
//! Its errors carry the number of the template's line. Rules are left to `line`.

use crate::rules::error::{ScriptError, SyntaxError, require};
use crate::rules::limits::LONGEST_LINE;
use crate::rules::line;
use crate::rules::rule::{Rule, Target, merge_adjacent, split_lists};
use crate::rules::template::Line;
use crate::rules::values::check_chain_name;
use crate::selectors::{Family, number};

/// The one supported built-in chain.
pub const PREROUTING: &str = "PREROUTING";

/// The rules of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    /// The family.
    pub family: Family,
    /// PREROUTING, then the user chains in the order of the script.
    pub chains: Vec<Chain>,
}

impl Script {
    /// The script while the server drains: new connections pass to the Pods. Open connections still reach
    /// the server if a rule other than TPROXY marks their packets.
    pub fn draining(&self) -> Script {
        let mut script = self.clone();
        for rule in script.chains.iter_mut().flat_map(|chain| &mut chain.rules) {
            if let Some(Target::Tproxy { .. }) = rule.target {
                rule.target = Some(Target::Accept);
            }
        }
        script
    }
}

/// A chain and its rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The name in the script.
    pub name: String,
    /// The rules, in the order of evaluation.
    pub rules: Vec<Rule>,
}

impl Chain {
    fn new(name: &str) -> Chain {
        Chain {
            name: name.to_owned(),
            rules: Vec::new(),
        }
    }
}

/// Parses the lines of a rendered template.
///
/// # Errors
/// The first line that iptables-restore refuses or that is not supported.
pub fn parse(lines: &[Line], family: Family) -> Result<Script, ScriptError> {
    let mut parser = ScriptParser {
        family,
        section: Section::BeforeTable,
        chains: vec![Chain::new(PREROUTING)],
        jumps: Vec::new(),
    };
    for line in lines {
        parser.line(line).map_err(|error| error.at(line.number))?;
    }
    let last = lines.last().map_or(1, |line| line.number);
    match parser.section {
        Section::BeforeTable => Err(SyntaxError::new("", "expected *mangle").at(last)),
        Section::Table => Err(SyntaxError::new("", "expected COMMIT at the end").at(last)),
        Section::AfterCommit => Ok(()),
    }?;
    refuse_loops(&parser.jumps)?;
    for chain in &mut parser.chains {
        chain.rules = merge_adjacent(std::mem::take(&mut chain.rules));
    }
    Ok(Script {
        family,
        chains: parser.chains,
    })
}

/// The part of a script that a line belongs to.
enum Section {
    BeforeTable,
    Table,
    AfterCommit,
}

/// A rule with a user chain as its target.
struct Jump {
    line: usize,
    from: String,
    to: String,
}

struct ScriptParser {
    family: Family,
    section: Section,
    chains: Vec<Chain>,
    jumps: Vec<Jump>,
}

impl ScriptParser {
    fn line(&mut self, line: &Line) -> Result<(), SyntaxError> {
        let text = line.text.as_str();
        require(
            text.len() <= LONGEST_LINE,
            text,
            "expected at most 10239 bytes",
        )?;
        if text.is_empty() || text.starts_with('#') {
            return Ok(());
        }
        match self.section {
            Section::BeforeTable if text == "*mangle" => self.section = Section::Table,
            Section::BeforeTable => return Err(SyntaxError::new(text, "expected *mangle first")),
            Section::Table if text == "COMMIT" => self.section = Section::AfterCommit,
            Section::Table => match text.strip_prefix(':') {
                Some(declaration) => self.declare(text, declaration)?,
                None => self.append(line)?,
            },
            Section::AfterCommit => {
                return Err(SyntaxError::new(text, "expected nothing after COMMIT"));
            }
        }
        Ok(())
    }

    /// Parses `CHAIN POLICY [PACKETS:BYTES]`; the counters are optional.
    fn declare(&mut self, line: &str, declaration: &str) -> Result<(), SyntaxError> {
        let words = declaration.split([' ', '\t']);
        let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
        let (name, policy) = match words.as_slice() {
            [name, policy] => (*name, *policy),
            [name, policy, counters] if are_counters(counters) => (*name, *policy),
            _ => {
                return Err(SyntaxError::new(
                    line,
                    "expected :CHAIN POLICY [PACKETS:BYTES]",
                ));
            }
        };
        match name {
            PREROUTING => require(policy == "ACCEPT", policy, "expected the policy ACCEPT"),
            "INPUT" | "OUTPUT" | "FORWARD" | "POSTROUTING" => Err(SyntaxError::new(
                name,
                "the one built-in chain that is supported is PREROUTING",
            )),
            _ => {
                let expected = "expected - in place of a policy for a user chain";
                require(policy == "-", policy, expected)?;
                let is_new = self.chains.iter().all(|chain| chain.name != name);
                require(is_new, name, "expected it to be declared once")?;
                check_chain_name(name)?;
                self.chains.push(Chain::new(name));
                Ok(())
            }
        }
    }

    /// Parses an `-A` line.
    fn append(&mut self, line: &Line) -> Result<(), SyntaxError> {
        let is_declared =
            |name: &str| name != PREROUTING && self.chains.iter().any(|chain| chain.name == name);
        let (name, rule) = line::parse(&line.text, self.family, is_declared)?;
        let mut chains = self.chains.iter_mut();
        let chain = chains.find(|chain| chain.name == name).ok_or_else(|| {
            SyntaxError::new(&name, "expected PREROUTING or a chain declared above")
        })?;
        if let Some(Target::Jump(to)) = &rule.target {
            self.jumps.push(Jump {
                line: line.number,
                from: name,
                to: to.clone(),
            });
        }
        chain.rules.extend(split_lists(rule));
        Ok(())
    }
}

fn are_counters(text: &str) -> bool {
    let counters = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']')?.split_once(':'));
    counters.is_some_and(|(packets, bytes)| {
        [packets, bytes]
            .iter()
            .all(|count| number(count).is_some() && !count.starts_with("0x"))
    })
}

/// Refuses jumps that lead back to their own chain. The kernel refuses them too, but does not name
/// the line.
fn refuse_loops(jumps: &[Jump]) -> Result<(), ScriptError> {
    for jump in jumps {
        let mut reached = vec![jump.to.as_str()];
        let mut next = 0;
        while let Some(chain) = reached.get(next).copied() {
            if chain == jump.from {
                let expected = "expected a chain that does not lead back here";
                return Err(SyntaxError::new(&jump.to, expected).at(jump.line));
            }
            for further in jumps.iter().filter(|further| further.from == chain) {
                if !reached.contains(&further.to.as_str()) {
                    reached.push(&further.to);
                }
            }
            next += 1;
        }
    }
    Ok(())
}
