//! How the words of an `-A` line become a [`Rule`]. What is not supported is an error that names
//! the word and what is.

use std::net::IpAddr;
use std::str::FromStr;

use crate::rules::rule::{AddressOf, Match, PortOf, Protocol, Ranges, Rule, Target, Test};
use crate::selectors::{Family, Mark, PortRange};

pub use super::values::check_chain_name;
use super::values::{
    blocks, comment, interface, multiport, ports_range, protocol, target, tcp_flags,
};

/// The options of a rule, for error messages.
const OPTIONS: &str = "-A, -p, -s, -d, -i, -m and -j; with -p tcp or -p udp: --sport, --dport; with -p tcp: --syn, --tcp-flags";
const MODULES: &str = "-m tcp, udp, multiport, socket, mark or comment";
pub(super) const TARGETS: &str = "-j ACCEPT, DROP, RETURN, MARK, TPROXY or a chain declared above";

/// Why a rule was refused: the word, and what was expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleError {
    /// The word as it stands in the script.
    pub word: String,
    /// What was expected in its place.
    pub expected: String,
}

impl RuleError {
    /// An error about `word`.
    pub fn new(word: &str, expected: impl Into<String>) -> RuleError {
        RuleError {
            word: word.to_owned(),
            expected: expected.into(),
        }
    }
}

/// Reads the words of an `-A` line: the chain that the rule is appended to, and the rule.
///
/// `declared` says whether a user chain of that name stands above.
///
/// # Errors
/// The first word that cannot be read, or is not supported.
pub fn parse(
    words: &[String],
    family: Family,
    declared: impl Fn(&str) -> bool,
) -> Result<(String, Rule), RuleError> {
    let mut draft = Draft::new(family);
    let mut words = Words {
        words: words.iter(),
        last: "",
    };
    let mut negated = false;
    while let Some(word) = words.next() {
        if word == "!" {
            match std::mem::replace(&mut negated, true) {
                false => continue,
                true => return Err(RuleError::new(word, "expected one !")),
            }
        }
        draft.option(word, std::mem::take(&mut negated), &mut words, &declared)?;
    }
    if negated {
        return Err(RuleError::new("!", "expected an option behind it"));
    }
    draft.finish()
}

/// The words of a line, from left to right.
pub(super) struct Words<'a> {
    words: std::slice::Iter<'a, String>,
    last: &'a str,
}

impl<'a> Words<'a> {
    fn next(&mut self) -> Option<&'a str> {
        let word = self.words.next()?;
        self.last = word;
        Some(word)
    }

    /// The value of the option that was read last.
    fn value(&mut self) -> Result<&'a str, RuleError> {
        let option = self.last;
        match self.next() {
            Some("!") => Err(RuleError::new(
                "!",
                format!("expected it in front of {option}"),
            )),
            Some(value) => Ok(value),
            None => Err(RuleError::new(option, "expected a value")),
        }
    }

    /// The value of the option that was read last, parsed.
    pub(super) fn parse<T>(
        &mut self,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Result<T, RuleError> {
        let value = self.value()?;
        read(value).map_err(|expected| RuleError::new(value, expected))
    }
}

/// A rule that is being read.
struct Draft {
    family: Family,
    chain: Option<String>,
    protocol: Option<Protocol>,
    /// `-m tcp` and `-m udp`, which must agree with `-p`.
    transports: Vec<Protocol>,
    /// The other modules, each with the option that it cannot do without while that is missing.
    modules: Vec<(&'static str, Option<&'static str>)>,
    matches: Vec<Match>,
    socket: Option<(bool, bool)>,
    target: Option<Target>,
    on_port: bool,
    seen: Vec<String>,
}

impl Draft {
    fn new(family: Family) -> Draft {
        Draft {
            family,
            chain: None,
            protocol: None,
            transports: Vec::new(),
            modules: Vec::new(),
            matches: Vec::new(),
            socket: None,
            target: None,
            on_port: false,
            seen: Vec::new(),
        }
    }

    fn option(
        &mut self,
        word: &str,
        negated: bool,
        words: &mut Words<'_>,
        declared: &impl Fn(&str) -> bool,
    ) -> Result<(), RuleError> {
        if word != "-m" {
            match self.seen.iter().any(|seen| seen == word) {
                true => return Err(RuleError::new(word, "expected it once")),
                false => self.seen.push(word.to_owned()),
            }
        }
        let other = match word {
            "--syn" => "--tcp-flags",
            "--tcp-flags" => "--syn",
            _ => "",
        };
        if self.seen.iter().any(|seen| seen == other) {
            return Err(RuleError::new(word, format!("expected it without {other}")));
        }
        let test = match word {
            "-s" => Test::Address(AddressOf::Source, self.blocks(negated, words)?),
            "-d" => Test::Address(AddressOf::Destination, self.blocks(negated, words)?),
            "-i" => interface(words)?,
            "--sport" => Test::Ports(PortOf::Source, self.port(word, words)?),
            "--dport" => Test::Ports(PortOf::Destination, self.port(word, words)?),
            "--syn" => self.tcp_only(word).map(|()| Test::TcpFlags {
                mask: 0x17,
                set: 0x02,
            })?,
            "--tcp-flags" => {
                self.tcp_only(word)?;
                Test::TcpFlags {
                    mask: words.parse(tcp_flags)?,
                    set: words.parse(tcp_flags)?,
                }
            }
            "--sports" => Test::Ports(PortOf::Source, self.multiport(word, words)?),
            "--dports" => Test::Ports(PortOf::Destination, self.multiport(word, words)?),
            "--ports" => Test::Ports(PortOf::Either, self.multiport(word, words)?),
            "--mark" => {
                self.fill("mark", word)?;
                Test::Mark(words.parse(str::parse)?)
            }
            _ if negated => {
                return Err(RuleError::new(
                    "!",
                    format!("expected no ! in front of {word}"),
                ));
            }
            _ => return self.plain_option(word, words, declared),
        };
        self.matches.push(Match { negated, test });
        Ok(())
    }

    /// The options that cannot be negated.
    fn plain_option(
        &mut self,
        word: &str,
        words: &mut Words<'_>,
        declared: &impl Fn(&str) -> bool,
    ) -> Result<(), RuleError> {
        match word {
            "-A" => self.chain = Some(words.value()?.to_owned()),
            "-p" => {
                let protocol = words.parse(protocol)?;
                self.protocol = Some(protocol);
                self.matches.push(Match {
                    negated: false,
                    test: Test::Protocol(protocol),
                });
            }
            "-m" => self.module(words.value()?)?,
            "-j" => self.target = Some(target(words.value()?, declared)?),
            "--transparent" => self.socket_option(word, |socket| socket.0 = true)?,
            "--nowildcard" => self.socket_option(word, |socket| socket.1 = true)?,
            "--comment" => {
                self.fill("comment", word)?;
                words.parse(comment)?;
            }
            _ => return self.target_option(word, words),
        }
        Ok(())
    }

    fn module(&mut self, name: &str) -> Result<(), RuleError> {
        match name {
            "tcp" => self.transports.push(Protocol::Tcp),
            "udp" => self.transports.push(Protocol::Udp),
            "multiport" => self
                .modules
                .push(("multiport", Some("--sports, --dports or --ports"))),
            "mark" => self.modules.push(("mark", Some("--mark"))),
            "comment" => self.modules.push(("comment", Some("--comment"))),
            "socket" if self.socket.is_none() => self.socket = Some((false, false)),
            "socket" => return Err(RuleError::new(name, "expected it once")),
            _ => return Err(RuleError::new(name, format!("supported are {MODULES}"))),
        }
        Ok(())
    }

    /// Gives the last module of that name the option that it waits for.
    fn fill(&mut self, module: &'static str, option: &str) -> Result<(), RuleError> {
        match self
            .modules
            .iter_mut()
            .rev()
            .find(|(name, _)| *name == module)
        {
            Some((_, missing @ Some(_))) => {
                *missing = None;
                Ok(())
            }
            Some(_) => Err(RuleError::new(
                option,
                format!("expected one option for each -m {module}"),
            )),
            None => Err(RuleError::new(
                option,
                format!("expected -m {module} in front of it"),
            )),
        }
    }

    fn socket_option(
        &mut self,
        word: &str,
        set: impl Fn(&mut (bool, bool)),
    ) -> Result<(), RuleError> {
        self.socket
            .as_mut()
            .map(set)
            .ok_or_else(|| RuleError::new(word, "expected -m socket in front of it"))
    }

    fn target_option(&mut self, word: &str, words: &mut Words<'_>) -> Result<(), RuleError> {
        let family = self.family;
        match (&mut self.target, word) {
            (Some(Target::Mark(mark)), "--set-mark" | "--set-xmark") => {
                if self
                    .seen
                    .iter()
                    .filter(|seen| seen.starts_with("--set-"))
                    .count()
                    > 1
                {
                    return Err(RuleError::new(
                        word,
                        "expected --set-mark or --set-xmark, not both",
                    ));
                }
                *mark = words.parse(Mark::from_str)?;
                if word == "--set-mark" {
                    mark.mask |= mark.value;
                }
            }
            (Some(Target::Tproxy { port, .. }), "--on-port") => {
                *port = words.parse(|text| match PortRange::from_str(text) {
                    Ok(range) if !text.contains(':') => Ok(range.low),
                    _ => Err("expected a port from 0 to 65535".to_owned()),
                })?;
                self.on_port = true;
            }
            (Some(Target::Tproxy { address, .. }), "--on-ip") => {
                *address = Some(words.parse(|text| match text.parse::<IpAddr>() {
                    Ok(address) if Family::of(address) == family => Ok(address),
                    _ => Err(format!("expected an {family} address")),
                })?);
            }
            (Some(Target::Tproxy { mark, .. }), "--tproxy-mark") => {
                *mark = words.parse(str::parse)?
            }
            (_, "--set-mark" | "--set-xmark") => {
                return Err(RuleError::new(word, "expected -j MARK in front of it"));
            }
            (_, "--on-port" | "--on-ip" | "--tproxy-mark") => {
                return Err(RuleError::new(word, "expected -j TPROXY in front of it"));
            }
            _ => {
                return Err(RuleError::new(
                    word,
                    format!("supported are {OPTIONS}; {MODULES}; {TARGETS}"),
                ));
            }
        }
        Ok(())
    }

    fn blocks(&self, negated: bool, words: &mut Words<'_>) -> Result<Ranges, RuleError> {
        words.parse(|text| match negated && text.contains(',') {
            true => Err("expected a single block behind !".to_owned()),
            false => blocks(text, self.family),
        })
    }

    fn port(&self, word: &str, words: &mut Words<'_>) -> Result<Ranges, RuleError> {
        let transport_is_loaded = !self.transports.is_empty()
            || self.seen.iter().any(|seen| {
                seen != word && matches!(&**seen, "--sport" | "--dport" | "--syn" | "--tcp-flags")
            });
        match self.protocol {
            // iptables lets options be cut short: it reads --dport as --dports then.
            Some(_)
                if !transport_is_loaded && self.modules.iter().any(|it| it.0 == "multiport") =>
            {
                Err(RuleError::new(
                    word,
                    "expected it, or -m tcp or udp, in front of -m multiport",
                ))
            }
            Some(_) => Ok(vec![ports_range(words.parse(PortRange::from_str)?)]),
            None => Err(RuleError::new(
                word,
                "expected -p tcp or -p udp in front of it",
            )),
        }
    }

    fn multiport(&mut self, word: &str, words: &mut Words<'_>) -> Result<Ranges, RuleError> {
        self.fill("multiport", word)?;
        if self.protocol.is_none() {
            return Err(RuleError::new(
                word,
                "expected -p tcp or -p udp in front of it",
            ));
        }
        words.parse(multiport)
    }

    fn tcp_only(&self, word: &str) -> Result<(), RuleError> {
        match self.protocol {
            Some(Protocol::Tcp) => Ok(()),
            _ => Err(RuleError::new(word, "expected -p tcp in front of it")),
        }
    }

    fn finish(mut self) -> Result<(String, Rule), RuleError> {
        let chain = self
            .chain
            .take()
            .ok_or_else(|| RuleError::new("", "expected -A CHAIN"))?;
        if let Some(transport) = self
            .transports
            .iter()
            .find(|it| Some(**it) != self.protocol)
        {
            let name = transport.name();
            return Err(RuleError::new(name, format!("expected -p {name} as well")));
        }
        if let Some((module, missing)) = self
            .modules
            .iter()
            .find_map(|(name, missing)| Some((name, (*missing)?)))
        {
            return Err(RuleError::new(
                module,
                format!("expected {missing} behind it"),
            ));
        }
        if let Some((transparent, nowildcard)) = self.socket {
            if self.target == Some(Target::Return) && !nowildcard {
                return Err(RuleError::new(
                    "RETURN",
                    "expected --nowildcard where -m socket returns",
                ));
            }
            self.matches.push(Match {
                negated: false,
                test: Test::Socket {
                    transparent,
                    nowildcard,
                },
            });
        }
        match self.target {
            Some(Target::Tproxy { .. }) if !self.on_port => {
                Err(RuleError::new("TPROXY", "expected --on-port"))
            }
            Some(Target::Tproxy { .. }) if self.protocol.is_none() => {
                Err(RuleError::new("TPROXY", "expected -p tcp or -p udp"))
            }
            Some(Target::Mark(_)) if !self.seen.iter().any(|seen| seen.starts_with("--set-")) => {
                Err(RuleError::new("MARK", "expected --set-mark or --set-xmark"))
            }
            target => Ok((
                chain,
                Rule {
                    matches: self.matches,
                    target,
                },
            )),
        }
    }
}

impl Protocol {
    fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        }
    }
}
