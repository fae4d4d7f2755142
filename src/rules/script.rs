//! A parser of scripts in iptables-restore syntax: the table mangle, with PREROUTING, OUTPUT and user chains.
//! Its errors carry the number of the template's line. Rules are left to `line`.

use crate::rules::error::{ScriptError, SyntaxError, require};
use crate::rules::limits::LONGEST_LINE;
use crate::rules::line;
use crate::rules::rule::{Rule, Target, Test, merge_adjacent, split_lists};
use crate::rules::template::Line;
use crate::rules::values::check_chain_name;
use crate::selectors::{Family, number};

/// The built-in chain for packets that the node receives.
pub const PREROUTING: &str = "PREROUTING";

/// The built-in chain for packets that the node itself sends.
pub const OUTPUT: &str = "OUTPUT";

/// The supported built-in chains.
const BUILT_IN: [&str; 2] = [PREROUTING, OUTPUT];

/// The rules of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    /// The family.
    pub family: Family,
    /// PREROUTING and OUTPUT, then the user chains in the order of the script.
    pub chains: Vec<Chain>,
}

impl Script {
    /// The chains that other chains call.
    pub fn user_chains(&self) -> impl Iterator<Item = &Chain> {
        let chains = self.chains.iter();
        chains.filter(|chain| !BUILT_IN.contains(&chain.name.as_str()))
    }

    /// Whether a rule concerns packets that the node itself sends.
    pub fn has_output(&self) -> bool {
        let mut chains = self.chains.iter();
        chains.any(|chain| chain.name == OUTPUT && !chain.rules.is_empty())
    }

    /// Removes the rules for packets that the node itself sends.
    pub fn clear_output(&mut self) {
        for chain in self.chains.iter_mut().filter(|chain| chain.name == OUTPUT) {
            chain.rules.clear();
        }
    }

    /// The script while the server drains: new connections pass to the Pods. Open connections still reach
    /// the server if a rule other than TPROXY marks their packets, and those of the node if they were marked
    /// by CONNMARK.
    pub fn draining(&self) -> Script {
        let mut script = self.clone();
        for rule in script.chains.iter_mut().flat_map(|chain| &mut chain.rules) {
            match rule.target {
                Some(Target::Tproxy { .. }) => rule.target = Some(Target::Accept),
                Some(Target::ConnectionMark(_)) => rule.target = None,
                _ => {}
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
        chains: BUILT_IN.map(Chain::new).into(),
        jumps: Vec::new(),
        prerouting_only: Vec::new(),
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
    refuse_in_output(&parser.prerouting_only, &parser.jumps)?;
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

/// A rule that the kernel allows in PREROUTING alone.
struct PreroutingOnly {
    line: usize,
    chain: String,
    word: &'static str,
}

struct ScriptParser {
    family: Family,
    section: Section,
    chains: Vec<Chain>,
    jumps: Vec<Jump>,
    prerouting_only: Vec<PreroutingOnly>,
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
            PREROUTING | OUTPUT => {
                require(policy == "ACCEPT", policy, "expected the policy ACCEPT")
            }
            "INPUT" | "FORWARD" | "POSTROUTING" => Err(SyntaxError::new(
                name,
                "the built-in chains that are supported are PREROUTING and OUTPUT",
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
        let is_declared = |name: &str| {
            !BUILT_IN.contains(&name) && self.chains.iter().any(|chain| chain.name == name)
        };
        let (name, rule) = line::parse(&line.text, self.family, is_declared)?;
        let mut chains = self.chains.iter_mut();
        let chain = chains.find(|chain| chain.name == name).ok_or_else(|| {
            SyntaxError::new(
                &name,
                "expected PREROUTING, OUTPUT or a chain declared above",
            )
        })?;
        if let Some(word) = prerouting_only(&rule, &name) {
            self.prerouting_only.push(PreroutingOnly {
                line: line.number,
                chain: name.clone(),
                word,
            });
        }
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

/// The word of a rule that iptables refuses outside PREROUTING.
fn prerouting_only(rule: &Rule, chain: &str) -> Option<&'static str> {
    let tests = || rule.matches.iter().map(|it| &it.test);
    match rule.target {
        Some(Target::Tproxy { .. }) => Some("TPROXY"),
        _ if tests().any(|it| matches!(it, Test::Socket { .. })) => Some("socket"),
        _ if chain == OUTPUT && tests().any(|it| matches!(it, Test::Interface { .. })) => {
            Some("-i")
        }
        _ => None,
    }
}

/// The chains that a packet in `start` may traverse, without `start` itself unless a jump leads back to it.
fn reachable<'a>(start: &str, jumps: &'a [Jump]) -> Vec<&'a str> {
    let mut reached: Vec<&str> = Vec::new();
    let mut next = 0;
    let mut chain = start;
    loop {
        for jump in jumps.iter().filter(|jump| jump.from == chain) {
            if !reached.contains(&jump.to.as_str()) {
                reached.push(&jump.to);
            }
        }
        match reached.get(next) {
            Some(further) => chain = further,
            None => return reached,
        }
        next += 1;
    }
}

/// Refuses jumps that lead back to their own chain. The kernel refuses them too, but does not name
/// the line.
fn refuse_loops(jumps: &[Jump]) -> Result<(), ScriptError> {
    let is_loop = |jump: &&Jump| {
        jump.to == jump.from || reachable(&jump.to, jumps).contains(&jump.from.as_str())
    };
    match jumps.iter().find(is_loop) {
        Some(jump) => {
            let expected = "expected a chain that does not lead back here";
            Err(SyntaxError::new(&jump.to, expected).at(jump.line))
        }
        None => Ok(()),
    }
}

/// Refuses rules that a packet of OUTPUT may reach, but that the kernel allows in PREROUTING alone.
fn refuse_in_output(rules: &[PreroutingOnly], jumps: &[Jump]) -> Result<(), ScriptError> {
    let reached = reachable(OUTPUT, jumps);
    let is_in_output =
        |it: &&PreroutingOnly| it.chain == OUTPUT || reached.contains(&it.chain.as_str());
    match rules.iter().find(is_in_output) {
        Some(it) => {
            let expected = "expected it in PREROUTING alone, not where OUTPUT leads";
            Err(SyntaxError::new(it.word, expected).at(it.line))
        }
        None => Ok(()),
    }
}
