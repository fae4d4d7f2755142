//! A parser of scripts in iptables-restore syntax: the table mangle, with PREROUTING, OUTPUT and user chains.
//! A [`Listing`] has the rules as their lines write them, a [`Script`] as they are loaded. Errors carry
//! the number of the template's line. Rules are left to `line`.

use crate::rules::error::{ScriptError, SyntaxError, require};
use crate::rules::limits::LONGEST_LINE;
use crate::rules::line::{self, Command};
use crate::rules::rule::{Rule, Target, Test, merge_adjacent, split_lists};
use crate::rules::template::Line;
use crate::rules::values::check_chain_name;
use crate::selectors::{Family, Mark, number};

/// The built-in chain for packets that the node receives.
pub const PREROUTING: &str = "PREROUTING";

/// The built-in chain for packets that the node itself sends.
pub const OUTPUT: &str = "OUTPUT";

/// The built-in chains that may have rules.
const BUILT_IN: [&str; 2] = [PREROUTING, OUTPUT];

/// The built-in chains of mangle that have to be empty.
const EMPTY: [&str; 3] = ["INPUT", "FORWARD", "POSTROUTING"];

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

    /// The script while the server drains: new connections pass to the Pods, and handshakes by SYN cookie that
    /// have begun to the listener. Open connections still reach the server if a rule other than TPROXY marks
    /// their packets, and those of the node if they were marked by CONNMARK. A SYN with the mark `sent` still
    /// goes to the listener: OUTPUT has already routed it to lo.
    pub fn draining(&self, sent: Option<Mark>) -> Script {
        let mut script = self.clone();
        for chain in &mut script.chains {
            chain.rules = std::mem::take(&mut chain.rules)
                .into_iter()
                .flat_map(|rule| draining(rule, sent))
                .collect();
        }
        script
    }
}

/// The rules that replace a rule while the server drains.
fn draining(mut rule: Rule, sent: Option<Mark>) -> Vec<Rule> {
    match rule.target {
        Some(Target::Tproxy { .. }) if !rule.takes_handshakes() => {
            let marked = sent.map(|mark| {
                let mut marked = rule.clone();
                marked.matches.push(Test::Mark(mark).into());
                marked
            });
            rule.target = match rule.takes_syns() {
                true => Some(Target::Release),
                false => Some(Target::Accept),
            };
            marked.into_iter().chain([rule]).collect()
        }
        Some(Target::ConnectionMark(_)) => Vec::new(),
        _ => vec![rule],
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

/// A script as it is written: its chains, and the rule of each line.
#[derive(Debug)]
pub struct Listing<'l> {
    /// The family.
    pub family: Family,
    /// PREROUTING and OUTPUT, then the user chains.
    pub chains: Vec<String>,
    /// The rules of all chains, in the order of the lines.
    pub rules: Vec<ListedRule<'l>>,
    /// The first line for the other family alone, and its `-4` or `-6`.
    pub other_family: Option<(&'l Line, String)>,
    /// The last line.
    pub end: &'l Line,
}

/// The rule of a line.
#[derive(Debug)]
pub struct ListedRule<'l> {
    /// The line.
    pub line: &'l Line,
    /// The chain to which the rule is appended.
    pub chain: String,
    /// The rule, its lists not split yet.
    pub rule: Rule,
}

impl<'l> Listing<'l> {
    /// Parses the lines of a rendered template.
    ///
    /// # Errors
    /// The first line that iptables-restore refuses or that is not supported.
    pub fn parse(lines: &'l [Line], family: Family) -> Result<Listing<'l>, ScriptError> {
        let nothing = || SyntaxError::new("", "expected *mangle").at(1);
        let mut parser = ScriptParser {
            section: Section::BeforeTable,
            listing: Listing {
                family,
                chains: BUILT_IN.map(str::to_owned).into(),
                rules: Vec::new(),
                other_family: None,
                end: lines.last().ok_or_else(nothing)?,
            },
        };
        for line in lines {
            parser.line(line).map_err(|error| error.at(line.number))?;
        }
        let ScriptParser { section, listing } = parser;
        let end = listing.end.number;
        match section {
            Section::BeforeTable => Err(SyntaxError::new("", "expected *mangle").at(end)),
            Section::Table => Err(SyntaxError::new("", "expected COMMIT at the end").at(end)),
            Section::AfterCommit => Ok(()),
        }?;
        listing.refuse_loops()?;
        listing.refuse_in_output()?;
        Ok(listing)
    }

    /// The rules of each chain, merged where that is the same.
    pub fn into_script(self) -> Script {
        let new = |name| Chain {
            name,
            rules: Vec::new(),
        };
        let mut chains: Vec<Chain> = self.chains.into_iter().map(new).collect();
        for ListedRule { chain, rule, .. } in self.rules {
            if let Some(known) = chains.iter_mut().find(|known| known.name == chain) {
                known.rules.append(&mut split_lists(rule));
            }
        }
        for chain in &mut chains {
            chain.rules = merge_adjacent(std::mem::take(&mut chain.rules));
        }
        let family = self.family;
        Script { family, chains }
    }

    /// The chains to which jumps from `start` lead, which itself is among them only if a jump leads back.
    fn chains_from(&self, start: &str) -> Vec<&str> {
        self.chains_by(|_| true, start)
    }

    /// The same by those jumps alone that a packet `passes`.
    pub fn chains_by(&self, passes: fn(&Rule) -> bool, start: &str) -> Vec<&str> {
        let mut reached: Vec<&str> = self.jumps_by(passes, start).collect();
        let mut next = 0;
        while let Some(chain) = reached.get(next).copied() {
            for to in self.jumps_by(passes, chain) {
                if !reached.contains(&to) {
                    reached.push(to);
                }
            }
            next += 1;
        }
        reached
    }

    fn jumps_by(&self, passes: fn(&Rule) -> bool, chain: &str) -> impl Iterator<Item = &str> {
        let rules = self
            .rules
            .iter()
            .filter(move |listed| listed.chain == chain && passes(&listed.rule));
        rules.filter_map(|listed| listed.rule.jump())
    }

    /// Refuses jumps that lead back to their own chain. The kernel refuses them too, but does not name
    /// the line.
    fn refuse_loops(&self) -> Result<(), ScriptError> {
        let in_loop = |chain: &String| self.chains_from(chain).contains(&chain.as_str());
        let looped: Vec<&String> = self.chains.iter().filter(|chain| in_loop(chain)).collect();
        let mut rules = self.rules.iter();
        let loops = |listed: &&ListedRule| {
            let back =
                |to| to == listed.chain || self.chains_from(to).contains(&listed.chain.as_str());
            looped.contains(&&listed.chain) && listed.rule.jump().is_some_and(back)
        };
        let Some(listed) = rules.find(loops) else {
            return Ok(());
        };
        let to = listed.rule.jump().unwrap_or_default();
        let expected = "expected a chain that does not lead back here";
        Err(SyntaxError::new(to, expected).at(listed.line.number))
    }

    /// Refuses rules that a packet of OUTPUT may reach, but that the kernel allows in PREROUTING alone.
    fn refuse_in_output(&self) -> Result<(), ScriptError> {
        let reached = self.chains_from(OUTPUT);
        for ListedRule { line, chain, rule } in &self.rules {
            let is_reached = chain == OUTPUT || reached.contains(&chain.as_str());
            if let Some(word) = prerouting_only(rule, chain).filter(|_| is_reached) {
                let expected = "expected it in PREROUTING alone, not where OUTPUT leads";
                return Err(SyntaxError::new(word, expected).at(line.number));
            }
        }
        Ok(())
    }
}

/// The part of a script that a line belongs to.
enum Section {
    BeforeTable,
    Table,
    AfterCommit,
}

struct ScriptParser<'l> {
    section: Section,
    listing: Listing<'l>,
}

impl<'l> ScriptParser<'l> {
    fn line(&mut self, line: &'l Line) -> Result<(), SyntaxError> {
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
            Section::BeforeTable => {
                let expected = match text.starts_with('*') {
                    true => "expected *mangle",
                    false => "expected *mangle first",
                };
                require(is_table(text), text, expected)?;
                self.section = Section::Table;
            }
            Section::Table if text == "COMMIT" => self.section = Section::AfterCommit,
            Section::Table => match text.strip_prefix(':') {
                Some(declaration) => self.declare(text, declaration)?,
                None => self.command(line)?,
            },
            Section::AfterCommit => {
                return Err(SyntaxError::new(text, "expected nothing after COMMIT"));
            }
        }
        Ok(())
    }

    /// Parses `CHAIN POLICY [PACKETS:BYTES]`; the counters are optional.
    fn declare(&mut self, line: &str, declaration: &str) -> Result<(), SyntaxError> {
        let words: Vec<&str> = blank_separated(declaration).collect();
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
        if is_built_in(name) {
            return require(policy == "ACCEPT", policy, "expected the policy ACCEPT");
        }
        let expected = "expected - in place of a policy for a user chain";
        require(policy == "-", policy, expected)?;
        self.add_chain(name)
    }

    /// Adds a user chain.
    fn add_chain(&mut self, name: &str) -> Result<(), SyntaxError> {
        let chains = &mut self.listing.chains;
        let is_new = chains.iter().all(|chain| chain != name) && !is_built_in(name);
        require(is_new, name, "expected it to be declared once")?;
        check_chain_name(name)?;
        chains.push(name.to_owned());
        Ok(())
    }

    /// Parses any other line in the table: `-A` or `-N`, after the counters of `iptables-save -c`.
    fn command(&mut self, line: &'l Line) -> Result<(), SyntaxError> {
        let text = without_counters(&line.text)?;
        let chains = &self.listing.chains;
        let is_declared =
            |name: &str| !is_built_in(name) && chains.iter().any(|chain| chain == name);
        match line::parse(text, self.listing.family, is_declared)? {
            Command::Append(chain, rule) => {
                let expected = "expected PREROUTING, OUTPUT or a chain declared above";
                require(chains.contains(&chain), &chain, expected)?;
                self.listing.rules.push(ListedRule { line, chain, rule });
            }
            Command::NewChain(name) => self.add_chain(&name)?,
            Command::OtherFamily(option) => {
                self.listing.other_family.get_or_insert((line, option));
            }
        }
        Ok(())
    }
}

fn is_built_in(chain: &str) -> bool {
    BUILT_IN.contains(&chain) || EMPTY.contains(&chain)
}

/// Whether a line begins the table mangle. iptables-restore reads a blank after the asterisk, and
/// nothing after the name.
fn is_table(text: &str) -> bool {
    let name = text.strip_prefix('*').map(blank_separated);
    name.is_some_and(|mut words| words.next() == Some("mangle"))
}

fn blank_separated(text: &str) -> impl Iterator<Item = &str> {
    text.split([' ', '\t']).filter(|word| !word.is_empty())
}

/// A line without the counters at its start, `[PACKETS:BYTES]`.
fn without_counters(text: &str) -> Result<&str, SyntaxError> {
    if !text.starts_with('[') {
        return Ok(text);
    }
    let after = text.find(']').map_or(text.len(), |end| end + 1);
    let (counters, rest) = text.split_at(after);
    let expected = "expected counters as [PACKETS:BYTES]";
    require(are_counters(counters), counters, expected)?;
    Ok(rest)
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
