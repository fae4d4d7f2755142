//! A parser of `-A` lines. It refuses every word that is not supported, and every line that
//! iptables-restore refuses or reads in another way. The options are those of iptables(8) and
//! iptables-extensions(8).

use std::net::IpAddr;
use std::str::FromStr;

use crate::rules::error::{SyntaxError, require};
use crate::rules::limits::LONGEST_COMMENT;
use crate::rules::rule::{AddressOf, Match, PortOf, Protocol, Ranges, Rule, Target, Test};
use crate::rules::values::{
    TARGETS, blocks, check_address_type, interface, multiport, protocol, target, tcp_flags,
};
use crate::rules::words::{Words, split};
use crate::selectors::{Family, Mark, PortRange};

/// The supported options beside those of modules, for error messages.
const OPTIONS: &str = "-A, -p, -s, -d, -i, -m and -j; with -p tcp or -p udp: --sport, --dport; with -p tcp: --syn, --tcp-flags";

/// The supported modules, for error messages.
const MODULES: &str = "-m tcp, udp, multiport, addrtype, socket, mark, connmark or comment";

/// Options that exclude each other.
const EXCLUSIVE: [[&str; 2]; 2] = [["--syn", "--tcp-flags"], ["--set-mark", "--set-xmark"]];

/// Parses an `-A` line into the name of its chain and the rule.
///
/// `is_declared` tells whether the script has declared a user chain of that name above.
///
/// # Errors
/// The first word that is invalid or not supported.
pub fn parse(
    line: &str,
    family: Family,
    is_declared: impl Fn(&str) -> bool,
) -> Result<(String, Rule), SyntaxError> {
    let words = split(line)?;
    let mut parser = LineParser {
        family,
        is_declared,
        words: Words::new(&words),
        seen: Vec::new(),
        chain: None,
        protocol: None,
        modules: Vec::new(),
        matches: Vec::new(),
        target: None,
    };
    let mut negated = false;
    while let Some(word) = parser.words.next() {
        match (word, negated) {
            ("!", false) => negated = true,
            ("!", true) => return Err(SyntaxError::new(word, "expected one !")),
            _ => parser.option(word, std::mem::take(&mut negated))?,
        }
    }
    if negated {
        return Err(SyntaxError::new("!", "expected an option after it"));
    }
    parser.finish()
}

struct LineParser<'a, D> {
    family: Family,
    is_declared: D,
    words: Words<'a>,
    /// The options up to here, without `-m`.
    seen: Vec<&'a str>,
    chain: Option<String>,
    protocol: Option<Protocol>,
    /// The modules, each with the option that it still requires.
    modules: Vec<(&'a str, Option<&'static str>)>,
    matches: Vec<Match>,
    target: Option<Target>,
}

impl<'a, D: Fn(&str) -> bool> LineParser<'a, D> {
    fn option(&mut self, word: &'a str, negated: bool) -> Result<(), SyntaxError> {
        self.refuse_repeated(word)?;
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

    fn has_module(&self, module: &str) -> bool {
        self.modules.iter().any(|(name, _)| *name == module)
    }

    fn refuse_repeated(&mut self, word: &'a str) -> Result<(), SyntaxError> {
        require(!self.has(word), word, "expected it once")?;
        let exclusive = EXCLUSIVE.iter().filter(|pair| pair.contains(&word));
        if let Some(other) = exclusive.flatten().find(|other| self.has(other)) {
            let expected = format!("expected it without {other}");
            return Err(SyntaxError::new(word, expected));
        }
        if word != "-m" {
            self.seen.push(word);
        }
        Ok(())
    }

    /// Parses an option that may be negated. `None` for any other option.
    fn test(&mut self, word: &str, negated: bool) -> Result<Option<Test>, SyntaxError> {
        Ok(Some(match word {
            "-s" => Test::Address(AddressOf::Source, self.blocks(negated)?),
            "-d" => Test::Address(AddressOf::Destination, self.blocks(negated)?),
            "-i" => self.words.parse(interface)?,
            "--sport" => Test::Ports(PortOf::Source, self.port(word)?),
            "--dport" => Test::Ports(PortOf::Destination, self.port(word)?),
            "--sports" => Test::Ports(PortOf::Source, self.multiport(word)?),
            "--dports" => Test::Ports(PortOf::Destination, self.multiport(word)?),
            "--ports" => Test::Ports(PortOf::Either, self.multiport(word)?),
            "--syn" => {
                self.require_tcp(word)?;
                Test::SYN
            }
            "--tcp-flags" => {
                self.require_tcp(word)?;
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
    fn plain_option(&mut self, word: &str) -> Result<(), SyntaxError> {
        match word {
            "-A" => self.chain = Some(self.words.value()?.to_owned()),
            "-p" => {
                let family = self.family;
                let protocol = self.words.parse(|text| protocol(text, family))?;
                self.protocol = Some(protocol);
                self.matches.push(Test::Protocol(protocol).into());
            }
            "-m" => self.module()?,
            "-j" => self.target = Some(self.words.parse(|name| target(name, &self.is_declared))?),
            "--transparent" | "--nowildcard" => {
                let is_loaded = self.has_module("socket");
                require(is_loaded, word, "expected -m socket in front of it")?;
            }
            "--comment" => {
                self.satisfy("comment", word)?;
                let text = self.words.value()?;
                let is_short = text.len() <= LONGEST_COMMENT;
                require(is_short, text, "expected at most 255 bytes")?;
            }
            _ => return self.target_option(word),
        }
        Ok(())
    }

    fn module(&mut self) -> Result<(), SyntaxError> {
        let name = self.words.value()?;
        let required = match name {
            "tcp" | "udp" | "socket" => None,
            "multiport" => Some("--sports, --dports or --ports"),
            "mark" | "connmark" => Some("--mark"),
            "addrtype" => Some("--src-type or --dst-type"),
            "comment" => Some("--comment"),
            _ => return Err(SyntaxError::new(name, format!("supported are {MODULES}"))),
        };
        let is_second_socket = name == "socket" && self.has_module(name);
        require(!is_second_socket, name, "expected it once")?;
        self.modules.push((name, required));
        Ok(())
    }

    /// Marks the option that the last `-m module` requires as found.
    fn satisfy(&mut self, module: &str, option: &str) -> Result<(), SyntaxError> {
        let mut modules = self.modules.iter_mut().rev();
        match modules.find(|(name, _)| *name == module) {
            Some((_, missing @ Some(_))) => {
                *missing = None;
                Ok(())
            }
            Some(_) => Err(SyntaxError::new(
                option,
                format!("expected one option for each -m {module}"),
            )),
            None => Err(SyntaxError::new(
                option,
                format!("expected -m {module} in front of it"),
            )),
        }
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
            _ => {
                return Err(SyntaxError::new(
                    word,
                    format!("supported are {OPTIONS}; {MODULES}; {TARGETS}"),
                ));
            }
        }
        Ok(())
    }

    /// Parses the mark of the last `-m mark` or `-m connmark`, as iptables does.
    fn mark(&mut self, word: &str) -> Result<Test, SyntaxError> {
        let mut modules = self.modules.iter().rev().map(|(name, _)| *name);
        let module = modules.find(|name| matches!(*name, "mark" | "connmark"));
        let module = module.unwrap_or("mark");
        self.satisfy(module, word)?;
        let mark = self.words.parse(Mark::from_str)?;
        Ok(match module {
            "connmark" => Test::ConnectionMark(mark),
            _ => Test::Mark(mark),
        })
    }

    fn local(&mut self, of: AddressOf, word: &str) -> Result<Test, SyntaxError> {
        self.satisfy("addrtype", word)?;
        self.words.parse(check_address_type)?;
        Ok(Test::Local(of))
    }

    fn blocks(&mut self, negated: bool) -> Result<Ranges, SyntaxError> {
        self.words
            .parse(|text| match negated && text.contains(',') {
                true => Err("expected a single block after !".to_owned()),
                false => blocks(text, self.family),
            })
    }

    fn port(&mut self, word: &str) -> Result<Ranges, SyntaxError> {
        self.require_protocol(word)?;
        let transport_is_loaded = self.has_module("tcp")
            || self.has_module("udp")
            || ["--sport", "--dport", "--syn", "--tcp-flags"]
                .iter()
                .any(|option| *option != word && self.has(option));
        // iptables accepts abbreviated options: before tcp or udp is loaded, --dport means --dports.
        require(
            transport_is_loaded || !self.has_module("multiport"),
            word,
            "expected it, or -m tcp or udp, in front of -m multiport",
        )?;
        Ok(vec![self.words.parse(PortRange::from_str)?.range()])
    }

    fn multiport(&mut self, word: &str) -> Result<Ranges, SyntaxError> {
        self.satisfy("multiport", word)?;
        self.require_protocol(word)?;
        self.words.parse(multiport)
    }

    fn require_protocol(&self, word: &str) -> Result<(), SyntaxError> {
        let expected = "expected -p tcp or -p udp in front of it";
        require(
            self.protocol.is_some_and(Protocol::has_ports),
            word,
            expected,
        )
    }

    fn require_tcp(&self, word: &str) -> Result<(), SyntaxError> {
        let is_tcp = self.protocol == Some(Protocol::Tcp);
        require(is_tcp, word, "expected -p tcp in front of it")
    }

    fn finish(mut self) -> Result<(String, Rule), SyntaxError> {
        let chain = self.chain.take();
        let chain = chain.ok_or_else(|| SyntaxError::new("", "expected -A CHAIN"))?;
        self.check_modules()?;
        if self.has_module("socket") {
            let socket = Test::Socket {
                transparent: self.has("--transparent"),
                with_wildcards: self.has("--nowildcard"),
            };
            self.matches.push(socket.into());
        }
        self.check_target()?;
        let rule = Rule {
            matches: self.matches,
            target: self.target,
        };
        Ok((chain, rule))
    }

    fn check_modules(&self) -> Result<(), SyntaxError> {
        let protocol = self.protocol.map(Protocol::name);
        for (name, _) in &self.modules {
            let agrees = !["tcp", "udp"].contains(name) || Some(*name) == protocol;
            require(agrees, name, format!("expected -p {name} as well"))?;
        }
        for (name, missing) in &self.modules {
            let expected = format!("expected {} after it", missing.unwrap_or_default());
            require(missing.is_none(), name, expected)?;
        }
        Ok(())
    }

    fn check_target(&self) -> Result<(), SyntaxError> {
        let (word, expected) = match self.target {
            Some(Target::Return) if self.has_module("socket") && !self.has("--nowildcard") => {
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
