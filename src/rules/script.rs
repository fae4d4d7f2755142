//! The script in iptables-restore syntax: lines as chains of rules. Errors carry the line of the
//! template that it was rendered from.
//!
//! The syntax is that of `iptables-restore` (iptables 1.8, `add_param_to_argv`): words are separated
//! by blanks, double quotes keep blanks, a backslash inside them keeps the next character.

use std::fmt;

use crate::log::text::escaped;
use crate::rules::line::{self, RuleError};
use crate::rules::rule::{self, Rule, Target};
use crate::rules::template::Line;
use crate::selectors::{self, Family};

/// The one built-in chain that is supported.
pub const PREROUTING: &str = "PREROUTING";

/// iptables-restore refuses a longer word ("Parameter too long!", `xt_param_buf`).
pub const LONGEST_WORD: usize = 1023;

/// The rules of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    /// The family.
    pub family: Family,
    /// PREROUTING first, then the user chains in the order of the script.
    pub chains: Vec<Chain>,
}

impl Script {
    /// The script for an orderly stop: what would be handed to the listener goes on untouched, what
    /// belongs to an open connection still comes.
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
    /// The name that the script gives it.
    pub name: String,
    /// In the order in which they are tried.
    pub rules: Vec<Rule>,
}

/// Why a script was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScriptError {
    /// The line, counted from 1.
    pub line: usize,
    /// The word that was not expected; empty if one is missing.
    pub word: String,
    /// What was expected in its place.
    pub expected: String,
}

impl fmt::Display for ScriptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.word.is_empty() {
            true => write!(f, "line {}: {}", self.line, self.expected),
            false => write!(
                f,
                "line {}: \"{}\": {}",
                self.line,
                escaped(self.word.as_bytes()),
                self.expected
            ),
        }
    }
}

impl ScriptError {
    /// An error about `word`, in a line counted from 1.
    pub fn new(line: usize, word: &str, expected: &str) -> ScriptError {
        ScriptError {
            line,
            word: word.to_owned(),
            expected: expected.to_owned(),
        }
    }

    fn at(line: usize) -> impl Fn(RuleError) -> ScriptError {
        move |RuleError { word, expected }| ScriptError {
            line,
            word,
            expected,
        }
    }
}

/// Reads rendered lines.
///
/// # Errors
/// The first line that `iptables-restore` would refuse or that is not supported.
pub fn parse(lines: &[Line], family: Family) -> Result<Script, ScriptError> {
    let mut section = Section::Before;
    let mut chains = vec![Chain {
        name: PREROUTING.to_owned(),
        rules: Vec::new(),
    }];
    let mut jumps = Vec::new();
    for Line { number, text } in lines {
        let number = *number;
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        section = match (section, text.as_str()) {
            (Section::Before, "*mangle") => Section::Inside,
            (Section::Before, _) => {
                return Err(ScriptError::new(number, text, "expected *mangle first"));
            }
            (Section::Inside, "COMMIT") => Section::After,
            (Section::Inside, text) if text.starts_with(':') => {
                declare(&mut chains, text).map_err(ScriptError::at(number))?;
                Section::Inside
            }
            (Section::Inside, text) => {
                append(
                    &mut chains,
                    &mut jumps,
                    family,
                    &Line {
                        number,
                        text: text.to_owned(),
                    },
                )?;
                Section::Inside
            }
            (Section::After, _) => {
                return Err(ScriptError::new(
                    number,
                    text,
                    "expected nothing behind COMMIT",
                ));
            }
        };
    }
    let last = lines.last().map_or(1, |line| line.number);
    match section {
        Section::Before => return Err(ScriptError::new(last, "", "expected *mangle")),
        Section::Inside => return Err(ScriptError::new(last, "", "expected COMMIT at the end")),
        Section::After => {}
    }
    refuse_loops(&jumps)?;
    for chain in &mut chains {
        chain.rules = rule::coalesce(std::mem::take(&mut chain.rules));
    }
    Ok(Script { family, chains })
}

/// Where in the script a line stands.
#[derive(Clone, Copy)]
enum Section {
    Before,
    Inside,
    After,
}

/// A rule that jumps.
struct Jump {
    line: usize,
    from: String,
    to: String,
}

/// `:CHAIN POLICY [PACKETS:BYTES]`, the counters optional.
fn declare(chains: &mut Vec<Chain>, text: &str) -> Result<(), RuleError> {
    let words: Vec<&str> = text
        .strip_prefix(':')
        .unwrap_or(text)
        .split_whitespace()
        .collect();
    let (name, policy) = match words.as_slice() {
        [name, policy] => (*name, *policy),
        [name, policy, counters] if are_counters(counters) => (*name, *policy),
        _ => {
            return Err(RuleError::new(
                text,
                "expected :CHAIN POLICY [PACKETS:BYTES]",
            ));
        }
    };
    match (name, policy) {
        (PREROUTING, "ACCEPT") => Ok(()),
        (PREROUTING, _) => Err(RuleError::new(policy, "expected the policy ACCEPT")),
        ("INPUT" | "OUTPUT" | "FORWARD" | "POSTROUTING", _) => Err(RuleError::new(
            name,
            "the one built-in chain that is supported is PREROUTING",
        )),
        (_, "-") if chains.iter().any(|chain| chain.name == name) => {
            Err(RuleError::new(name, "expected it to be declared once"))
        }
        (_, "-") => {
            line::check_chain_name(name)?;
            chains.push(Chain {
                name: name.to_owned(),
                rules: Vec::new(),
            });
            Ok(())
        }
        _ => Err(RuleError::new(
            policy,
            "expected - in place of a policy for a user chain",
        )),
    }
}

fn are_counters(text: &str) -> bool {
    text.strip_prefix('[')
        .and_then(|text| text.strip_suffix(']')?.split_once(':'))
        .is_some_and(|(packets, bytes)| {
            [packets, bytes]
                .iter()
                .all(|count| selectors::number(count).is_some() && !count.starts_with("0x"))
        })
}

fn append(
    chains: &mut [Chain],
    jumps: &mut Vec<Jump>,
    family: Family,
    line: &Line,
) -> Result<(), ScriptError> {
    let at = ScriptError::at(line.number);
    let words = words(&line.text).map_err(&at)?;
    let declared = |name: &str| name != PREROUTING && chains.iter().any(|chain| chain.name == name);
    let (name, rule) = line::parse(&words, family, declared).map_err(&at)?;
    let chain = chains
        .iter_mut()
        .find(|chain| chain.name == name)
        .ok_or_else(|| {
            at(RuleError::new(
                &name,
                "expected PREROUTING or a chain declared above",
            ))
        })?;
    if let Some(Target::Jump(to)) = &rule.target {
        jumps.push(Jump {
            line: line.number,
            from: name,
            to: to.clone(),
        });
    }
    chain.rules.extend(rule::apart(rule));
    Ok(())
}

/// The kernel refuses chains that lead back to themselves, but cannot say where.
fn refuse_loops(jumps: &[Jump]) -> Result<(), ScriptError> {
    for jump in jumps {
        let mut reached = vec![jump.to.as_str()];
        let mut next = 0;
        while let Some(chain) = reached.get(next).copied() {
            if chain == jump.from {
                return Err(ScriptError::new(
                    jump.line,
                    &jump.to,
                    "expected a chain that does not lead back here",
                ));
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

/// Splits a line into words.
fn words(text: &str) -> Result<Vec<String>, RuleError> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '"' => {
                quoted(&mut letters, &mut word)
                    .ok_or_else(|| RuleError::new(text, "expected a closing quote"))?;
                words.push(std::mem::take(&mut word));
            }
            ' ' | '\t' if word.is_empty() => {}
            ' ' | '\t' => words.push(std::mem::take(&mut word)),
            letter => word.push(letter),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    for word in &words {
        if word.len() > LONGEST_WORD {
            return Err(RuleError::new(word, "expected at most 1023 bytes"));
        }
        // Where it stands, a line ends for iptables, and a name for the kernel.
        if word.contains('\0') {
            return Err(RuleError::new(word, "expected no NUL"));
        }
    }
    Ok(words)
}

/// Reads up to the closing quote, which ends the word.
fn quoted(letters: &mut std::str::Chars<'_>, word: &mut String) -> Option<()> {
    loop {
        match letters.next()? {
            '"' => return Some(()),
            '\\' => word.push(letters.next()?),
            letter => word.push(letter),
        }
    }
}
