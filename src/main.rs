//! tproxy-pod answers HTTP sent to any Pod address on a captured port, without touching the Pods.
//!
//! 1. The options are checked and the rules are parsed; nothing has changed yet.
//! 2. The nf_tables table is claimed and the transparent listeners are bound.
//! 3. The process forks. The child, the server, gives up all privilege and answers requests.
//! 4. The parent, the guard, waits until the server is ready, then installs the AnyIP routes, the fwmark
//!    rules and, last, the tables.
//! 5. At SIGTERM the guard turns TPROXY rules to ACCEPT, lets the server finish its connections, and undoes the
//!    rest in the opposite order. If the server dies, it undoes everything immediately.

use std::fmt::Display;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use nix::unistd::{ForkResult, getpid};

use tproxy_pod::error::{Error, words};
use tproxy_pod::guard::block_monitor::BlockMonitor;
use tproxy_pod::guard::reconciler::Reconciler;
use tproxy_pod::guard::reporter::Reporter;
use tproxy_pod::guard::server_process::ServerProcess;
use tproxy_pod::guard::{self, Guard};
use tproxy_pod::log::{LogFormat, logger};
use tproxy_pod::nftables::batch::CommitMode;
use tproxy_pod::nftables::bridge::BridgeRedirect;
use tproxy_pod::nftables::compile::compile;
use tproxy_pod::nftables::table::Tables;
use tproxy_pod::options::{self, Command, HELP, Options};
use tproxy_pod::routing::bridges::BridgeMonitor;
use tproxy_pod::routing::monitor::Monitor;
use tproxy_pod::routing::policy::Routing;
use tproxy_pod::routing::sock_diag::SockDiag;
use tproxy_pod::rules::Rules;
use tproxy_pod::rules::script::Script;
use tproxy_pod::rules::template::{self, Template, Values};
use tproxy_pod::selectors::{self, Family};
use tproxy_pod::server::config::Config;
use tproxy_pod::server::listener::{self, Listeners};
use tproxy_pod::{check, rules, sandbox, server, sys};

/// Exit status of a wrong command line or script
const USAGE_STATUS: u8 = 2;

fn main() -> ExitCode {
    match options::parse(std::env::args_os().skip(1)) {
        Ok(Command::Help) => print(HELP),
        Ok(Command::Version) => print(concat!("tproxy-pod ", env!("CARGO_PKG_VERSION"), "\n")),
        Ok(Command::PrintRules(options, family)) => print_rules(&options, family),
        Ok(Command::Run(options)) => with_rules(&options, run),
        Ok(Command::Check(options)) => with_rules(&options, check),
        Err(error) => refuse(&error),
    }
}

/// Parses the rules of all families, and passes them to `act`.
fn with_rules(options: &Options, act: fn(&Options, Vec<Rules>) -> ExitCode) -> ExitCode {
    match read_rules(options) {
        Ok(rules) => act(options, rules),
        Err(error) if options.log_format == LogFormat::Json => {
            logger::start(LogFormat::Json);
            log::error!("{error}");
            ExitCode::from(USAGE_STATUS)
        }
        Err(error) => refuse(&error),
    }
}

/// `--check`
fn check(options: &Options, rules: Vec<Rules>) -> ExitCode {
    match check::run(options, &scripts(rules)) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// Captures connections until a stop; the last log lines are written then.
fn run(options: &Options, rules: Vec<Rules>) -> ExitCode {
    logger::start(options.log_format);
    let status = start_processes(options, rules).unwrap_or_else(|error| fail(&error));
    log::logger().flush();
    status
}

/// Forks into server and guard, and runs each to its end.
///
/// # Errors
/// The first request that the kernel refused before the guard runs: nothing is installed then.
fn start_processes(options: &Options, rules: Vec<Rules>) -> Result<ExitCode, Error> {
    let signals = guard::block_signals()?;
    let tables = Tables::claim(CommitMode::Commit, options.families())?;
    let listeners = bind(options)?;
    let captured = captured(options, &rules);
    log::info!("Capturing {captured}");
    let mut scripts = scripts(rules);
    if !tables.is_owned() {
        clear_output(&mut scripts);
    }
    let fault = |error: std::io::Error| Error::new("start the server", error);
    let (guard_end, server_end) = UnixStream::pair().map_err(fault)?;
    let guard_pid = getpid();
    match sys::fork_single_threaded().map_err(fault)? {
        ForkResult::Child => {
            let config = Config {
                max_connections: options.max_connections,
                directives: options.directives,
                captured,
                captures_output: scripts.iter().any(Script::has_output),
                is_owned: tables.is_owned(),
            };
            drop((tables, signals, guard_end));
            let served = server::run(listeners, server_end, guard_pid, config);
            Ok(status(served))
        }
        ForkResult::Parent { child } => {
            drop((listeners, server_end));
            let draining = scripts.iter().map(|it| it.draining(options.marks.sent));
            let draining: Vec<Script> = draining.collect();
            let routing = Routing::new(&options.cidrs, options.marks, options.table)?;
            let guard = Guard {
                signals,
                server: ServerProcess::new(child, guard_end),
                reporter: Reporter::default(),
                tables,
                reconciler: Reconciler::new(routing, Monitor::start()?),
                sock_diag: SockDiag::new(&options.cidrs, &options.dports)?,
                rules: compile(&scripts, options.marks.received),
                draining_rules: compile(&draining, options.marks.received),
                bridge_redirect: BridgeRedirect::new(&options.cidrs, &options.dports),
                bridge_monitor: BridgeMonitor::open()?,
                block_monitor: BlockMonitor::open(&options.cidrs, options.table)?,
            };
            sandbox::enter_guard(child)?;
            let fault = |error| Error::new("start a thread", error);
            logger::start_writer().map_err(fault)?;
            Ok(status(guard.run()))
        }
    }
}

/// Removes the rules for what the node itself sends. Where the kernel does not remove the tables with this
/// process, they would refuse the node's connections to Pods after a SIGKILL: TPROXY cannot let a packet go
/// to the Pod that OUTPUT has routed to lo.
fn clear_output(scripts: &mut [Script]) {
    if scripts.iter().any(Script::has_output) {
        log::warn!(
            "Not capturing what the node sends: without an owner, which tables have since Linux 5.12, \
             SIGKILL would leave the rules"
        );
    }
    scripts.iter_mut().for_each(Script::clear_output);
}

/// Binds a transparent listener for each family with a captured CIDR, and a direct one at the same address:
/// probes of the node must not wait behind clients; and the listener of `--metrics`.
///
/// # Errors
/// `EADDRINUSE`, `EPERM`, or any other error of a listener.
fn bind(options: &Options) -> Result<Listeners, Error> {
    let (mut transparent, mut direct) = (Vec::new(), Vec::new());
    for family in options.families() {
        let listener = listener::bind(family, options.port)?;
        let address = SocketAddr::new(family.loopback(), options.port);
        log::info!("Binding TCP TProxy listener to {address}");
        direct.push(listener::bind_direct(&listener)?);
        transparent.push(listener);
    }
    let metrics = options.metrics.map(listener::bind_metrics).transpose()?;
    if let Some(address) = options.metrics {
        log::info!("Serving metrics at {address}");
    }
    Ok(Listeners {
        transparent,
        direct,
        metrics,
    })
}

/// What decides which connections are captured: the options, or the rules of a file.
fn captured(options: &Options, rules: &[Rules]) -> String {
    let Some(file) = &options.rules else {
        let cidrs = selectors::join(&options.cidrs);
        let ports = selectors::join(&options.dports);
        return format!("TCP to {cidrs} port {ports}");
    };
    let count = |rules: &Rules| format!("{} for {}", rules.count, rules.script.family);
    let counts = rules.iter().map(count).collect::<Vec<_>>().join(", ");
    let file = file.display();
    format!("by --rules {file} (rules: {counts}); --cidr and --dport only set routes and bridges")
}

/// The values of the template's variables, for one family.
fn values(options: &Options, family: Family) -> Values {
    Values {
        cidrs: options.cidrs_of(family).collect(),
        dports: options.dports.clone(),
        on_ip: family.loopback(),
        on_port: options.port,
        marks: options.marks,
    }
}

/// The rules of all families with a captured CIDR.
fn read_rules(options: &Options) -> Result<Vec<Rules>, String> {
    let template = Template::read(options.rules.as_deref())?;
    let load = |family| rules::load(&template, &values(options, family), family);
    options.families().map(load).collect()
}

/// The scripts alone.
fn scripts(rules: Vec<Rules>) -> Vec<Script> {
    rules.into_iter().map(|rules| rules.script).collect()
}

/// `--print-rules`: the script of one family as it would be loaded
fn print_rules(options: &Options, family: Family) -> ExitCode {
    let loaded = Template::read(options.rules.as_deref())
        .and_then(|template| rules::load(&template, &values(options, family), family));
    match loaded {
        Ok(rules) => print(&template::text(&rules.lines)),
        Err(error) => refuse(&error),
    }
}

/// Writes to stdout. `EPIPE` is success: the reader has what it wanted.
fn print(text: &str) -> ExitCode {
    use std::io::{ErrorKind, Write};
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            eprintln!("tproxy-pod: write to stdout: {}", words(&error));
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}

fn refuse(error: &dyn Display) -> ExitCode {
    eprintln!("tproxy-pod: {error}");
    ExitCode::from(USAGE_STATUS)
}

fn status<E: Display>(outcome: Result<(), E>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn fail(error: &dyn Display) -> ExitCode {
    log::error!("{error}");
    ExitCode::FAILURE
}
