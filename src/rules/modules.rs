//! The modules of a line: each `-m NAME`, with the options given to it. As in iptables, a module may be
//! loaded several times, and an option belongs to the last one that has it.

use crate::rules::error::{SyntaxError, require};
use crate::rules::rule::{Protocol, Test};

/// The supported modules, for error messages.
pub const MODULES: &str = "-m tcp, udp, multiport, addrtype, socket, mark, connmark or comment";

/// Modules without a required option.
const PLAIN: [&str; 3] = ["tcp", "udp", "socket"];

/// Modules that take exactly one option.
const OF_ONE_OPTION: [&str; 4] = ["multiport", "mark", "connmark", "comment"];

/// Options that exclude each other.
const EXCLUSIVE: [&str; 2] = ["--syn", "--tcp-flags"];

/// The options of a module; none of one that is not supported.
fn options(module: &str) -> &'static [&'static str] {
    match module {
        "tcp" => &["--sport", "--dport", "--syn", "--tcp-flags"],
        "udp" => &["--sport", "--dport"],
        "multiport" => &["--sports", "--dports", "--ports"],
        "addrtype" => &["--src-type", "--dst-type"],
        "socket" => &["--transparent", "--nowildcard"],
        "mark" | "connmark" => &["--mark"],
        "comment" => &["--comment"],
        _ => &[],
    }
}

/// Whether this is an option of a module.
pub fn is_option(word: &str) -> bool {
    let mut modules = PLAIN.iter().chain(&OF_ONE_OPTION).chain(&["addrtype"]);
    modules.any(|module| options(module).contains(&word))
}

/// The modules of a line, in its order.
#[derive(Default)]
pub struct Modules<'a> {
    loaded: Vec<Module<'a>>,
}

/// A module, and the options given to it.
struct Module<'a> {
    name: &'a str,
    given: Vec<&'a str>,
}

impl<'a> Modules<'a> {
    /// Loads a module.
    ///
    /// # Errors
    /// A module that is not supported.
    pub fn load(&mut self, name: &'a str) -> Result<(), SyntaxError> {
        let is_supported = !options(name).is_empty();
        require(is_supported, name, format!("supported are {MODULES}"))?;
        let given = Vec::new();
        self.loaded.push(Module { name, given });
        Ok(())
    }

    /// Whether no module is loaded.
    pub fn is_empty(&self) -> bool {
        self.loaded.is_empty()
    }

    /// Whether a module is loaded.
    pub fn has(&self, name: &str) -> bool {
        self.loaded.iter().any(|module| module.name == name)
    }

    /// Of these modules, which have an option in common, the one that gets it: iptables takes the one whose
    /// first `-m` came last.
    pub fn owner(&self, names: &[&str]) -> Option<&'a str> {
        let first = |name: &&str| self.loaded.iter().position(|module| module.name == *name);
        let at = names.iter().filter_map(first).max()?;
        Some(self.loaded[at].name)
    }

    /// Gives an option to the last module of this name.
    ///
    /// # Errors
    /// The module is not loaded, or has the option or one that excludes it.
    pub fn give(&mut self, name: &str, option: &'a str) -> Result<(), SyntaxError> {
        let mut loaded = self.loaded.iter_mut().rev();
        let Some(module) = loaded.find(|module| module.name == name) else {
            let expected = format!("expected -m {name} in front of it");
            return Err(SyntaxError::new(option, expected));
        };
        if OF_ONE_OPTION.contains(&name) {
            let expected = format!("expected one option for each -m {name}");
            require(module.given.is_empty(), option, expected)?;
        }
        let is_new = !module.given.contains(&option);
        require(is_new, option, "expected it once")?;
        if let Some(other) = module.given.iter().find(|it| EXCLUSIVE.contains(it)) {
            let expected = format!("expected it without {other}");
            require(!EXCLUSIVE.contains(&option), option, expected)?;
        }
        module.given.push(option);
        Ok(())
    }

    /// The tests of `-m socket`.
    pub fn sockets(&self) -> impl Iterator<Item = Test> {
        let sockets = self.loaded.iter().filter(|module| module.name == "socket");
        sockets.map(|module| Test::Socket {
            transparent: module.given.contains(&"--transparent"),
            with_wildcards: module.given.contains(&"--nowildcard"),
        })
    }

    /// Checks the modules at the end of a line.
    ///
    /// # Errors
    /// A module of another protocol, or one without the option that it requires.
    pub fn check(&self, protocol: Option<Protocol>) -> Result<(), SyntaxError> {
        let protocol = protocol.map(Protocol::name);
        for Module { name, .. } in &self.loaded {
            let agrees = !["tcp", "udp"].contains(name) || Some(*name) == protocol;
            require(agrees, name, format!("expected -p {name} as well"))?;
        }
        for module in &self.loaded {
            let expected = format!("expected {} after it", options(module.name).join(" or "));
            let is_complete = PLAIN.contains(&module.name) || !module.given.is_empty();
            require(is_complete, module.name, expected)?;
        }
        Ok(())
    }
}
