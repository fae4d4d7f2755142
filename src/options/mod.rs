//! The command line: text → checked options. Reads no file and changes nothing. An error names the
//! option, its value and what was expected. The values themselves are parsed in `values`.

mod values;

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use crate::options::values::{cidrs, dports, family, file, mark, table, up_to_65535};
use crate::selectors::{self, Cidr, Family, Mark, Marks, PortRange};

/// The text of `--help`
pub const HELP: &str = "\
Answers HTTP sent to any Pod address on a captured port, without touching the Pods.

tproxy-pod [OPTIONS]
  -p, --port PORT          where the transparent listener binds, on loopback     [1]
  -c, --cidr CIDR,…        destinations to capture, IPv4 and IPv6                [10.244.0.0/16]
  -d, --dport PORT,…       destination ports to capture, LOW:HIGH for a range    [8180]
      --from-node          capture what the node itself sends, too
      --mark VALUE/MASK    the mark that selects the routing table               [0x1/0x1]
      --node-mark VALUE/MASK  with --from-node, the mark of what the node sends  [0x2/0x2]
      --table ID           the routing table with the AnyIP routes               [100]
      --rules FILE         your own iptables-restore script in place of the bundled one
      --print-rules v4|v6  print the script as it would be loaded, and exit
      --max-connections N  connections served at once                            [1024]
      --check              say what this node can do before anything is installed, and exit
  -h, --help    -V, --version

With --from-node, tproxy-pod answers the kubelet's probes of captured ports in place of the Pods.
Environment: RUST_LOG is the log level (info if unset), NODE_NAME is shown in every echo.
Exit status: 0 after an orderly stop, 1 for a failure while running, 2 for wrong usage; of --check,
0 if it would work.
";

/// The options, with the defaults in place of those that are not given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The port of the transparent listeners on loopback, in host order.
    pub port: u16,
    /// The destinations to capture; not empty.
    pub cidrs: Vec<Cidr>,
    /// The destination ports to capture; not empty.
    pub dports: Vec<PortRange>,
    /// The marks that select `table`.
    pub marks: Marks,
    /// The routing table with the AnyIP routes.
    pub table: u32,
    /// The script that replaces the bundled one.
    pub rules: Option<PathBuf>,
    /// The most connections that are served at once.
    pub max_connections: usize,
}

impl Options {
    /// The families with a captured CIDR, IPv4 first.
    pub fn families(&self) -> impl Iterator<Item = Family> {
        selectors::families(&self.cidrs)
    }

    /// The captured CIDRs of one family.
    pub fn cidrs_of(&self, family: Family) -> impl Iterator<Item = Cidr> {
        let cidrs = self.cidrs.iter().copied();
        cidrs.filter(move |cidr| cidr.family() == family)
    }
}

/// The action that the command line selects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Capture connections and answer them.
    Run(Options),
    /// Report what this node can do.
    Check(Options),
    /// Print the script of one family.
    PrintRules(Options, Family),
    /// Print the help text.
    Help,
    /// Print the version.
    Version,
}

/// An error of the command line, as one line without the program's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageError(String);

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (see tproxy-pod --help)", self.0)
    }
}

/// Parses the command line, without the program's name.
///
/// # Errors
/// The first option that is unknown, repeated, without a value, or with an invalid one.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, UsageError> {
    let mut parsed = ParsedOptions::default();
    let mut arguments = arguments.into_iter().map(|argument| {
        argument
            .into_string()
            .map_err(|raw| UsageError(format!("{}: expected UTF-8", raw.display())))
    });
    while let Some(argument) = arguments.next() {
        let argument = argument?;
        let (name, inline) = match argument.split_once('=') {
            Some((name, value)) if name.starts_with('-') => (name, Some(value.to_owned())),
            _ => (argument.as_str(), None),
        };
        match (name, &inline) {
            ("-h" | "--help", None) => return Ok(Command::Help),
            ("-V" | "--version", None) => return Ok(Command::Version),
            ("-h" | "--help" | "-V" | "--version" | "--check" | "--from-node", Some(value)) => {
                return Err(UsageError(format!("{name} {value}: expected no value")));
            }
            ("--check", None) => {
                set_flag(&mut parsed.check, name)?;
                continue;
            }
            ("--from-node", None) => {
                set_flag(&mut parsed.from_node, name)?;
                continue;
            }
            _ => {}
        }
        let value = match inline {
            Some(value) => Some(value),
            None => arguments.next().transpose()?,
        };
        parsed.set(name, value)?;
    }
    parsed.into_command()
}

/// The values on the command line; `None` for an option that is not given.
#[derive(Default)]
struct ParsedOptions {
    port: Option<u16>,
    cidrs: Option<Vec<Cidr>>,
    dports: Option<Vec<PortRange>>,
    mark: Option<Mark>,
    node_mark: Option<Mark>,
    table: Option<u32>,
    rules: Option<PathBuf>,
    print_rules: Option<Family>,
    max_connections: Option<usize>,
    check: bool,
    from_node: bool,
}

impl ParsedOptions {
    fn set(&mut self, name: &str, value: Option<String>) -> Result<(), UsageError> {
        match name {
            "-p" | "--port" => store(&mut self.port, name, value, up_to_65535),
            "-c" | "--cidr" => store(&mut self.cidrs, name, value, cidrs),
            "-d" | "--dport" => store(&mut self.dports, name, value, dports),
            "--mark" => store(&mut self.mark, name, value, mark),
            "--node-mark" => store(&mut self.node_mark, name, value, mark),
            "--table" => store(&mut self.table, name, value, table),
            "--rules" => store(&mut self.rules, name, value, file),
            "--print-rules" => store(&mut self.print_rules, name, value, family),
            "--max-connections" => store(&mut self.max_connections, name, value, up_to_65535),
            _ if name.starts_with('-') => Err(UsageError(format!("{name}: unknown option"))),
            _ => Err(UsageError(format!("{name}: unexpected argument"))),
        }
    }

    fn into_command(self) -> Result<Command, UsageError> {
        let marks = self.marks()?;
        let options = Options {
            port: self.port.unwrap_or(1),
            cidrs: self
                .cidrs
                .map_or_else(|| cidrs("10.244.0.0/16").map_err(UsageError), Ok)?,
            dports: self
                .dports
                .map_or_else(|| dports("8180").map_err(UsageError), Ok)?,
            marks,
            table: self.table.unwrap_or(100),
            rules: self.rules,
            max_connections: self.max_connections.unwrap_or(1024),
        };
        match self.print_rules {
            None if self.check => Ok(Command::Check(options)),
            None => Ok(Command::Run(options)),
            Some(_) if self.check => Err(UsageError(
                "--check: expected no --print-rules beside it".to_owned(),
            )),
            Some(family) if options.cidrs_of(family).next().is_none() => Err(UsageError(format!(
                "--print-rules: expected a captured {family} block in --cidr {}",
                selectors::join(&options.cidrs)
            ))),
            Some(family) => Ok(Command::PrintRules(options, family)),
        }
    }

    fn marks(&self) -> Result<Marks, UsageError> {
        let received = self.mark.unwrap_or(Mark { value: 1, mask: 1 });
        let sent = self.node_mark.unwrap_or(Mark { value: 2, mask: 2 });
        match (self.from_node, self.node_mark) {
            (true, _) if received.mask & sent.mask != 0 => Err(UsageError(format!(
                "--node-mark {sent}: expected other bits than those of --mark {received}"
            ))),
            (true, _) => Ok(Marks {
                received,
                sent: Some(sent),
            }),
            (false, None) => Ok(Marks {
                received,
                sent: None,
            }),
            (false, Some(_)) => Err(UsageError(format!(
                "--node-mark {sent}: expected --from-node beside it"
            ))),
        }
    }
}

fn set_flag(flag: &mut bool, name: &str) -> Result<(), UsageError> {
    match std::mem::replace(flag, true) {
        false => Ok(()),
        true => Err(UsageError(format!("{name}: the option was given before"))),
    }
}

/// Parses the value of an option, and stores it where none was stored before.
fn store<T>(
    slot: &mut Option<T>,
    name: &str,
    value: Option<String>,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<(), UsageError> {
    let value = value.ok_or_else(|| UsageError(format!("{name}: expected a value")))?;
    let refused = |expected: &str| UsageError(format!("{name} {value}: {expected}"));
    let parsed = parse(&value).map_err(|expected| refused(&expected))?;
    match slot.replace(parsed) {
        None => Ok(()),
        Some(_) => Err(refused("the option was given before")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Command, String> {
        parse(line.split_whitespace().map(OsString::from)).map_err(|error| error.0)
    }

    fn options(line: &str) -> Options {
        match read(line) {
            Ok(Command::Run(options)) => options,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn the_defaults_are_those_of_the_help_text() {
        let defaults = [
            ("-p", "1"),
            ("-c", "10.244.0.0/16"),
            ("-d", "8180"),
            ("--mark", "0x1/0x1"),
            ("--table", "100"),
            ("--max-connections", "1024"),
        ];
        let spelled = defaults.map(|(name, value)| format!("{name} {value}"));
        assert_eq!(options(""), options(&spelled.join(" ")));
        for (_, value) in defaults {
            assert!(HELP.contains(&format!("[{value}]")), "{value}");
        }
    }

    #[test]
    fn values_follow_a_space_or_an_equals_sign() {
        let spaced = options("--port 7 --cidr 10.0.0.0/8,fd00::/8 --dport 80,90:99 --rules a=b");
        let joined = options("--port=7 --cidr=10.0.0.0/8,fd00::/8 --dport=80,90:99 --rules=a=b");
        assert_eq!(spaced, joined);
        assert_eq!(spaced.rules, Some("a=b".into()));
        assert!(spaced.families().eq([Family::V4, Family::V6]));
    }

    #[test]
    fn a_wrong_value_is_refused_by_option_value_and_expectation() {
        for (line, expected) in [
            (
                "--cidr 10.244.0.0/33",
                "expected a prefix length from 0 to 32",
            ),
            (
                "--cidr 10.244.0.1/16",
                "expected no host bits: 10.244.0.0/16 is the block, 10.244.0.1/32 the single address",
            ),
            ("--dport 0", "expected a port from 1 to 65535"),
            ("--dport 70000", "expected a port from 1 to 65535"),
            (
                "--dport 9000:8000",
                "expected the lower port first, as in 8000:9000",
            ),
            ("--dport 0:8000", "expected ports from 1 to 65535"),
            ("--mark 0x2/0x1", "expected a value within its mask"),
            (
                "--mark 0/0",
                "expected a value that is not 0, which is what other packets carry",
            ),
            ("--mark 1", "expected VALUE/MASK, such as 0x1/0x1"),
            ("--node-mark 0x2/0x1", "expected a value within its mask"),
            ("--node-mark 0x2/0x2", "expected --from-node beside it"),
            (
                "--table 254",
                "expected a table other than default, main and local (253 to 255)",
            ),
            ("--port 65536", "expected a number from 1 to 65535"),
            ("--max-connections 0", "expected a number from 1 to 65535"),
            ("--print-rules v5", "expected v4 or v6"),
            ("--verbose", "unknown option"),
            ("serve", "unexpected argument"),
            ("--port", "expected a value"),
        ] {
            assert_eq!(read(line), Err(format!("{line}: {expected}")));
        }
    }

    #[test]
    fn options_that_cannot_stand_together_or_with_a_value_are_refused() {
        for (line, message) in [
            (
                "--print-rules v6",
                "--print-rules: expected a captured IPv6 block in --cidr 10.244.0.0/16",
            ),
            ("-p 1 --port 2", "--port 2: the option was given before"),
            ("--help=1", "--help 1: expected no value"),
            ("--check=1", "--check 1: expected no value"),
            ("--check --check", "--check: the option was given before"),
            ("--from-node=1", "--from-node 1: expected no value"),
            (
                "--from-node --from-node",
                "--from-node: the option was given before",
            ),
            (
                "--from-node --mark 0x6/0x6",
                "--node-mark 0x2/0x2: expected other bits than those of --mark 0x6/0x6",
            ),
            (
                "--from-node --node-mark 0x100/0x101",
                "--node-mark 0x100/0x101: expected other bits than those of --mark 0x1/0x1",
            ),
            (
                "--check --print-rules v4",
                "--check: expected no --print-rules beside it",
            ),
            ("--rules=", "--rules : expected a file"),
        ] {
            assert_eq!(read(line), Err(message.to_owned()), "{line}");
        }
    }

    #[test]
    fn what_the_node_sends_has_a_mark_with_the_option_only() {
        assert_eq!(options("").marks.sent, None);
        let marks = options("--from-node").marks;
        assert_eq!(marks, options("--from-node --node-mark 0x2/0x2").marks);
        assert_eq!(marks.sent, Some(Mark { value: 2, mask: 2 }));
        let others = options("--mark 0x10/0x30 --node-mark 0x40/0xc0 --from-node");
        assert_eq!(others.marks.received.to_string(), "0x10/0x30");
        assert_eq!(others.marks.sent.unwrap().to_string(), "0x40/0xc0");
        assert!(HELP.contains("[0x2/0x2]"));
    }

    #[test]
    fn a_block_that_is_given_twice_counts_once() {
        assert_eq!(options("-c 10.0.0.0/8,10.0.0.0/8").cidrs.len(), 1);
    }

    #[test]
    fn help_and_version_need_nothing_else() {
        assert_eq!(read("-h"), Ok(Command::Help));
        assert_eq!(read("--version --nonsense"), Ok(Command::Version));
    }

    #[test]
    fn a_check_is_for_the_options_that_stand_beside_it() {
        let checked = options("--port 7 -d 80");
        assert_eq!(read("--port 7 --check -d 80"), Ok(Command::Check(checked)));
    }

    #[test]
    fn printing_needs_a_captured_block_of_the_family() {
        let printed = Command::PrintRules(options("-c fd00::/8"), Family::V6);
        assert_eq!(read("--print-rules v6 -c fd00::/8"), Ok(printed));
    }
}
