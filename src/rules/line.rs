//! A parser of `-A` and `-N` lines. It refuses every word that is not supported, and every line that
//! iptables-restore refuses or reads in another way. The options are those of iptables(8) and
//! iptables-extensions(8).

use std::net::IpAddr;
use std::str::FromStr;

use crate::rules::error::{SyntaxError, require};
use crate::rules::hints::unsupported;
use crate::rules::limits::LONGEST_COMMENT;
use crate::rules::modules::{self, Modules};
use crate::rules::rule::{AddressOf, Match, PortOf, Protocol, Ranges, Rule, Target, Test};
use crate::rules::values::{
    blocks, check_address_type, interface, multiport, protocol, target, tcp_flags,
};
use crate::rules::words::{Words, split};
use crate::selectors::{Cidr, Family, Mark, PortRange};

/// What a line does.
pub enum Command {
    /// `-A`: the name of the chain, and its new rule.
    Append(String, Rule),
    /// `-N`: declares a user chain.
    NewChain(String),
    /// Nothing: with `-4` or `-6` it is for the other family. The option as it is written.
    OtherFamily(String),
}

/// Parses a line. What follows a `-4` or `-6` for the other family is not read.
///
/// `is_declared` tells whether the script has declared a user chain of that name above.
///
/// # Errors
/// The first word that is invalid or not supported.
pub fn parse(
    line: &str,
    family: Family,
    is_declared: impl Fn(&str) -> bool,
) -> Result<Command, SyntaxError> {
    let words = split(line)?;
    let mut parser = LineParser {
        family,
        is_declared,
        words: Words::new(&words),
        seen: Vec::new(),
        chain: None,
        new_chain: None,
        protocol: None,
        modules: Modules::default(),
        matches: Vec::new(),
        target: None,
        other_family: None,
    };
    let mut negated = false;
    while let Some(word) = parser.words.next() {
        match (word, negated) {
            ("!", false) => negated = true,
            ("!", true) => return Err(SyntaxError::new(word, "expected one !")),
            ("-4" | "--ipv4" | "-6" | "--ipv6", false) => {
                if !word.ends_with(family_digit(family)) {
                    return Ok(Command::OtherFamily(word.to_owned()));
                }
            }
            _ => parser.option(word, std::mem::take(&mut negated))?,
        }
    }
    if negated {
        return Err(SyntaxError::new("!", "expected an option after it"));
    }
    parser.finish()
}

/// The last letter of the options for a family, `-4` or `--ipv4`.
fn family_digit(family: Family) -> char {
    match family {
        Family::V4 => '4',
        Family::V6 => '6',
    }
}

struct LineParser<'a, D> {
    family: Family,
    is_declared: D,
    words: Words<'a>,
    /// The options up to here, without those of modules.
    seen: Vec<&'a str>,
    chain: Option<String>,
    new_chain: Option<String>,
    protocol: Option<Protocol>,
    modules: Modules<'a>,
    matches: Vec<Match>,
    target: Option<Target>,
    /// The error for blocks of the other family, unless `-4` or `-6` follows.
    other_family: Option<SyntaxError>,
}

impl<'a, D: Fn(&str) -> bool> LineParser<'a, D> {
    fn option(&mut self, word: &'a str, negated: bool) -> Result<(), SyntaxError> {
        self.refuse_repeated(word)?;
        let is_rule = self.new_chain.is_none();
        require(is_rule, word, "expected nothing after -N CHAIN")?;
        match self.test(word, negated)? {
            Some(test) => self.matches.push(Match { negated, test }),
            None => {
                require(!negated, "!", format!("expected no ! in front of {word}"))?;
                self.plain_option(word)?;
            }
        }
        Ok(())
    }

    fn has(&self, option: &str) -> bool {
        self.seen.contains(&option)
    }

    /// Refuses an option that was there. Options of modules may be, and are refused by their module.
    fn refuse_repeated(&mut self, word: &'a str) -> Result<(), SyntaxError> {
        require(!self.has(word), word, "expected it once")?;
        let set_mark = ["--set-mark", "--set-xmark"];
        if let Some(other) = set_mark.iter().find(|other| self.has(other)) {
            let expected = format!("expected it without {other}");
            require(!set_mark.contains(&word), word, expected)?;
        }
        if word != "-m" && !modules::is_option(word) {
            self.seen.push(word);
        }
        Ok(())
    }

    /// Parses an option that may be negated. `None` for any other option.
    fn test(&mut self, word: &'a str, negated: bool) -> Result<Option<Test>, SyntaxError> {
        Ok(Some(match word {
            "-p" => {
                let family = self.family;
                let protocol = self.words.parse(|text| protocol(text, family))?;
                self.protocol = Some(protocol).filter(|_| !negated);
                Test::Protocol(protocol)
            }
            "-s" => Test::Address(AddressOf::Source, self.blocks(negated)?),
            "-d" => Test::Address(AddressOf::Destination, self.blocks(negated)?),
            "-i" => self.words.parse(interface)?,
            "--sport" => Test::Ports(PortOf::Source, self.port(word)?),
            "--dport" => Test::Ports(PortOf::Destination, self.port(word)?),
            "--sports" => Test::Ports(PortOf::Source, self.multiport(word)?),
            "--dports" => Test::Ports(PortOf::Destination, self.multiport(word)?),
            "--ports" => Test::Ports(PortOf::Either, self.multiport(word)?),
            "--syn" => {
                self.tcp_option(word)?;
                Test::SYN
            }
            "--tcp-flags" => {
                self.tcp_option(word)?;
                Test::TcpFlags {
                    mask: self.words.parse(tcp_flags)?,
                    set: self.words.parse(tcp_flags)?,
                }
            }
            "--mark" => self.mark(word)?,
            "--src-type" => self.local(AddressOf::Source, word)?,
            "--dst-type" => self.local(AddressOf::Destination, word)?,
            _ => return Ok(None),
        }))
    }

    /// Parses an option that cannot be negated.
    fn plain_option(&mut self, word: &'a str) -> Result<(), SyntaxError> {
        match word {
            "-A" => self.chain = Some(self.words.value()?.to_owned()),
            "-N" => {
                let is_first = self.seen == [word] && self.modules.is_empty();
                require(is_first, word, "expected it first in its line")?;
                self.new_chain = Some(self.words.value()?.to_owned());
            }
            "-m" => {
                let name = self.words.value()?;
                self.modules.load(name)?;
            }
            "-j" => self.target = Some(self.words.parse(|name| target(name, &self.is_declared))?),
            "--transparent" | "--nowildcard" => self.modules.give("socket", word)?,
            "--comment" => {
                self.modules.give("comment", word)?;
                let text = self.words.value()?;
                let is_short = text.len() <= LONGEST_COMMENT;
                require(is_short, text, "expected at most 255 bytes")?;
            }
            _ => return self.target_option(word),
        }
        Ok(())
    }

    fn target_option(&mut self, word: &str) -> Result<(), SyntaxError> {
        let family = self.family;
        match (&mut self.target, word) {
            (
                Some(Target::Mark(mark) | Target::ConnectionMark(mark)),
                "--set-mark" | "--set-xmark",
            ) => {
                *mark = self.words.parse(Mark::from_str)?;
                if word == "--set-mark" {
                    mark.mask |= mark.value;
                }
            }
            (Some(Target::Tproxy { port, .. }), "--on-port") => {
                *port = self.words.parse(|text| match PortRange::from_str(text) {
                    Ok(range) if !text.contains(':') => Ok(range.low),
                    _ => Err("expected a port from 0 to 65535".to_owned()),
                })?;
            }
            (Some(Target::Tproxy { address, .. }), "--on-ip") => {
                *address = Some(self.words.parse(|text| match text.parse::<IpAddr>() {
                    Ok(address) if Family::of(address) == family => Ok(address),
                    Ok(_) => Err(for_one_family(family, "address")),
                    _ => Err(format!("expected an {family} address")),
                })?);
            }
            (Some(Target::Tproxy { mark, .. }), "--tproxy-mark") => {
                *mark = self.words.parse(Mark::from_str)?;
            }
            (_, "--set-mark" | "--set-xmark") => {
                let expected = "expected -j MARK or -j CONNMARK in front of it";
                return Err(SyntaxError::new(word, expected));
            }
            (_, "--on-port" | "--on-ip" | "--tproxy-mark") => {
                return Err(SyntaxError::new(word, "expected -j TPROXY in front of it"));
            }
            _ => return Err(unsupported(word)),
        }
        Ok(())
    }

    fn mark(&mut self, word: &'a str) -> Result<Test, SyntaxError> {
        let module = self.modules.owner(&["mark", "connmark"]).unwrap_or("mark");
        self.modules.give(module, word)?;
        let mark = self.words.parse(Mark::from_str)?;
        Ok(match module {
            "connmark" => Test::ConnectionMark(mark),
            _ => Test::Mark(mark),
        })
    }

    fn local(&mut self, of: AddressOf, word: &'a str) -> Result<Test, SyntaxError> {
        self.modules.give("addrtype", word)?;
        self.words.parse(check_address_type)?;
        Ok(Test::Local(of))
    }

    fn blocks(&mut self, negated: bool) -> Result<Ranges, SyntaxError> {
        let text = self.words.value()?;
        let is_single = !negated || !text.contains(',');
        require(is_single, text, "expected a single block after !")?;
        let blocks = blocks(text).map_err(|expected| SyntaxError::new(text, expected))?;
        if blocks.iter().any(|block| block.family() != self.family) {
            let error = SyntaxError::new(text, for_one_family(self.family, "block"));
            self.other_family.get_or_insert(error);
        }
        Ok(blocks.iter().map(Cidr::range).collect())
    }

    fn port(&mut self, word: &'a str) -> Result<Ranges, SyntaxError> {
        let protocol = self.require_protocol(word)?;
        // iptables accepts abbreviated options: before tcp or udp is loaded, --dport means --dports.
        require(
            self.modules.has(protocol.name()) || !self.modules.has("multiport"),
            word,
            "expected it, or -m tcp or udp, in front of -m multiport",
        )?;
        self.transport_option(protocol, word)?;
        Ok(vec![self.words.parse(PortRange::from_str)?.range()])
    }

    fn multiport(&mut self, word: &'a str) -> Result<Ranges, SyntaxError> {
        self.modules.give("multiport", word)?;
        self.require_protocol(word)?;
        self.words.parse(multiport)
    }

    fn require_protocol(&self, word: &str) -> Result<Protocol, SyntaxError> {
        let expected = "expected -p tcp or -p udp in front of it";
        let protocol = self.protocol.filter(|it| it.has_ports());
        protocol.ok_or_else(|| SyntaxError::new(word, expected))
    }

    fn tcp_option(&mut self, word: &'a str) -> Result<(), SyntaxError> {
        let is_tcp = self.protocol == Some(Protocol::Tcp);
        require(is_tcp, word, "expected -p tcp in front of it")?;
        self.transport_option(Protocol::Tcp, word)
    }

    /// Gives an option to the module of the protocol, which it loads if that is not done yet.
    fn transport_option(&mut self, protocol: Protocol, word: &'a str) -> Result<(), SyntaxError> {
        if !self.modules.has(protocol.name()) {
            self.modules.load(protocol.name())?;
        }
        self.modules.give(protocol.name(), word)
    }

    fn finish(mut self) -> Result<Command, SyntaxError> {
        if let Some(name) = self.new_chain {
            return Ok(Command::NewChain(name));
        }
        let chain = self.chain.take();
        let chain = chain.ok_or_else(|| SyntaxError::new("", "expected -A CHAIN"))?;
        if let Some(error) = self.other_family {
            return Err(error);
        }
        self.modules.check(self.protocol)?;
        self.matches.extend(self.modules.sockets().map(Match::from));
        self.check_target()?;
        let rule = Rule {
            matches: self.matches,
            target: self.target,
        };
        Ok(Command::Append(chain, rule))
    }

    fn check_target(&self) -> Result<(), SyntaxError> {
        let (word, expected) = match self.target {
            Some(Target::Return) if self.matches.iter().any(ignores_wildcards) => {
                ("RETURN", "expected --nowildcard where -m socket returns")
            }
            Some(Target::Tproxy { .. }) if !self.has("--on-port") => {
                ("TPROXY", "expected --on-port")
            }
            Some(Target::Tproxy { .. }) if !self.protocol.is_some_and(Protocol::has_ports) => {
                ("TPROXY", "expected -p tcp or -p udp")
            }
            Some(Target::Mark(_)) if !self.has("--set-mark") && !self.has("--set-xmark") => {
                ("MARK", "expected --set-mark or --set-xmark")
            }
            Some(Target::ConnectionMark(_))
                if !self.has("--set-mark") && !self.has("--set-xmark") =>
            {
                ("CONNMARK", "expected --set-mark or --set-xmark")
            }
            _ => return Ok(()),
        };
        Err(SyntaxError::new(word, expected))
    }
}

/// Whether a match is `-m socket` without `--nowildcard`.
fn ignores_wildcards(it: &Match) -> bool {
    matches!(
        it.test,
        Test::Socket {
            with_wildcards: false,
            ..
        }
    )
}

/// What is expected in place of addresses of the other family.
fn for_one_family(family: Family, what: &str) -> String {
    let other = match family {
        Family::V4 => "-6",
        Family::V6 => "-4",
    };
    format!("expected an {family} {what}, or {other} at the start of the line")
}
