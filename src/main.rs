//! tproxy-pod answers HTTP sent to any Pod address on a captured port, without touching the Pods.
//!
//! The options are checked, the script is read, the nf_tables table is claimed, the transparent
//! listeners are bound; then there are two processes. The server gives up all privilege and answers
//! requests. The guard, once the server is ready, installs the mark rule, the AnyIP routes and, last,
//! the rules; it waits for a signal, lets the server finish, and undoes it all in the opposite
//! order. If the server dies, the guard undoes everything at once.

use std::fmt::Display;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use nix::unistd::{ForkResult, getpid};

use tproxy_pod::error::{Error, words};
use tproxy_pod::guard::reconciler::Reconciler;
use tproxy_pod::guard::server_process::ServerProcess;
use tproxy_pod::guard::{self, Guard};
use tproxy_pod::log::logger;
use tproxy_pod::nftables::batch::CommitMode;
use tproxy_pod::nftables::bridge::BridgeRedirect;
use tproxy_pod::nftables::table::Table;
use tproxy_pod::options::{self, Command, HELP, Options};
use tproxy_pod::routing::bridges::BridgeMonitor;
use tproxy_pod::routing::monitor::Monitor;
use tproxy_pod::routing::policy::Routing;
use tproxy_pod::routing::sock_diag::SockDiag;
use tproxy_pod::rules::script::Script;
use tproxy_pod::rules::template::{self, Template, Values};
use tproxy_pod::selectors::{self, Family};
use tproxy_pod::server::Listeners;
use tproxy_pod::server::listener;
use tproxy_pod::{check, rules, sandbox, server, sys};

/// Wrong usage.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    match options::parse(std::env::args_os().skip(1)) {
        Ok(Command::Help) => print(HELP),
        Ok(Command::Version) => print(concat!("tproxy-pod ", env!("CARGO_PKG_VERSION"), "\n")),
        Ok(Command::PrintRules(options, family)) => print_rules(&options, family),
        Ok(Command::Run(options)) => with_scripts(&options, run),
        Ok(Command::Check(options)) => with_scripts(&options, check),
        Err(error) => refuse(&error),
    }
}

fn with_scripts(options: &Options, act: fn(&Options, Vec<Script>) -> ExitCode) -> ExitCode {
    match read_scripts(options) {
        Ok(scripts) => act(options, scripts),
        Err(error) => refuse(&error),
    }
}

/// What this node can do.
fn check(options: &Options, scripts: Vec<Script>) -> ExitCode {
    match check::run(options, &scripts) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

fn run(options: &Options, scripts: Vec<Script>) -> ExitCode {
    logger::start();
    let status = intercept(options, scripts).unwrap_or_else(|error| fail(&error));
    log::logger().flush();
    status
}

fn intercept(options: &Options, scripts: Vec<Script>) -> Result<ExitCode, Error> {
    let signals = guard::block_signals()?;
    let table = Table::claim(CommitMode::Commit, options.families())?;
    let listeners = bind(options)?;
    let fault = |error: std::io::Error| Error::new("start the server", error);
    let (guards_end, servers_end) = UnixStream::pair().map_err(fault)?;
    let parent = getpid();
    match sys::fork_single_threaded().map_err(fault)? {
        ForkResult::Child => {
            drop((table, signals, guards_end));
            let limit = options.max_connections;
            let served = server::run(listeners, servers_end, parent, limit);
            Ok(status(served))
        }
        ForkResult::Parent { child } => {
            drop((listeners, servers_end));
            let routing = Routing::new(&options.cidrs, options.mark, options.table)?;
            let guard = Guard {
                signals,
                server: ServerProcess::new(child, guards_end),
                table,
                reconciler: Reconciler::new(routing, Monitor::start()?),
                sock_diag: SockDiag::new(&options.cidrs, &options.dports)?,
                scripts,
                bridge_redirect: BridgeRedirect::new(&options.cidrs, &options.dports),
                bridge_monitor: BridgeMonitor::open()?,
            };
            sandbox::enter_guard(child)?;
            let fault = |error| Error::new("start a thread", error);
            logger::start_writer().map_err(fault)?;
            Ok(status(guard.run()))
        }
    }
}

/// A transparent listener for each family with a captured CIDR, and one at the same address for the
/// node itself: its probes shall not wait behind clients.
fn bind(options: &Options) -> Result<Listeners, Error> {
    let (mut transparent, mut direct) = (Vec::new(), Vec::new());
    for family in options.families() {
        let listener = listener::bind(family, options.port)?;
        let address = SocketAddr::new(family.loopback(), options.port);
        log::info!("Binding TCP TProxy listener to {address}");
        match listener::bind_direct(&listener) {
            Ok(listener) => direct.push(listener),
            Err(error) => log::info!("Probes of {address} wait behind clients: {error}"),
        }
        transparent.push(listener);
    }
    let cidrs = selectors::join(&options.cidrs);
    let ports = selectors::join(&options.dports);
    log::info!("Capturing TCP to {cidrs} port {ports}");
    Ok(Listeners {
        transparent,
        direct,
    })
}

/// The values of the template's variables, for one family.
fn values(options: &Options, family: Family) -> Values {
    Values {
        cidrs: options.cidrs_of(family).collect(),
        dports: options.dports.clone(),
        on_ip: family.loopback(),
        on_port: options.port,
        mark: options.mark,
    }
}

/// The scripts of all families with a captured CIDR.
fn read_scripts(options: &Options) -> Result<Vec<Script>, String> {
    let template = Template::read(options.rules.as_deref())?;
    let load = |family| rules::load(&template, &values(options, family), family);
    options
        .families()
        .map(|family| load(family).map(|(_, script)| script))
        .collect()
}

/// The script of one family, as it would be loaded.
fn print_rules(options: &Options, family: Family) -> ExitCode {
    let loaded = Template::read(options.rules.as_deref())
        .and_then(|template| rules::load(&template, &values(options, family), family));
    match loaded {
        Ok((lines, _)) => print(&template::text(&lines)),
        Err(error) => refuse(&error),
    }
}

/// Writes to stdout; a reader that has gone away is no failure of ours.
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
    ExitCode::from(USAGE)
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
