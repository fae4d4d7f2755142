//! The command line: text → checked options. Reads no file and changes nothing. An error names the
//! option, its value and what was expected. The values themselves are parsed in `values`.

#[cfg(test)]
mod tests;
mod values;

use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::http::directives::Directives;
use crate::http::status::Status;
use crate::log::LogFormat;
use crate::options::values::{
    address, cidrs, delay, dports, family, file, log_format, mark, status, table, up_to_65535,
};
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
      --status CODE        the status of every echo, 200 to 599                  [200]
      --delay DURATION     how long every echo waits, such as 250ms or 2s        [0ms]
      --log-format FORMAT  text or json                                          [text]
      --metrics ADDR:PORT  metrics and health beside those on loopback
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
    /// The status and the delay of an echo, unless the request has others.
    pub directives: Directives,
    /// The format of log lines.
    pub log_format: LogFormat,
    /// Where a second listener gives metrics and health.
    pub metrics: Option<SocketAddr>,
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
    status: Option<Status>,
    delay: Option<Duration>,
    log_format: Option<LogFormat>,
    metrics: Option<SocketAddr>,
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
            "--status" => store(&mut self.status, name, value, status),
            "--delay" => store(&mut self.delay, name, value, delay),
            "--log-format" => store(&mut self.log_format, name, value, log_format),
            "--metrics" => store(&mut self.metrics, name, value, address),
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
            directives: Directives {
                status: self.status.unwrap_or(Status::OK),
                delay: self.delay.unwrap_or_default(),
            },
            log_format: self.log_format.unwrap_or_default(),
            metrics: self.metrics,
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
