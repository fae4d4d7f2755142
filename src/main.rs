//! tproxy-pod answers HTTP sent to any Pod address on a captured port, without touching the Pods.
//!
//! The options are checked, the script is read, the nf_tables table is claimed, the transparent
//! listeners are bound; then there are two processes. The server gives up all privilege and answers
//! requests. The guard, once the server is ready, installs the mark rule, the AnyIP routes and, last,
//! the rules; it waits for a signal, lets the server finish, and undoes it all in the opposite
//! order. If the server dies, the guard undoes everything at once.

use std::fmt::Display;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use nix::unistd::{ForkResult, getpid};

use tproxy_pod::capture::{self, Family};
use tproxy_pod::connection::DEADLINES;
use tproxy_pod::error::Error;
use tproxy_pod::guard::{self, Guard, Server};
use tproxy_pod::nftables::Table;
use tproxy_pod::options::{self, Command, HELP, Options};
use tproxy_pod::routing::{Routing, Watch};
use tproxy_pod::script::{self, Script};
use tproxy_pod::sockets::Sockets;
use tproxy_pod::template::{self, Line, Values};
use tproxy_pod::{listener, logging, server, sys};

/// Wrong usage.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    match options::parse(std::env::args_os().skip(1)) {
        Ok(Command::Help) => print(HELP),
        Ok(Command::Version) => print(concat!("tproxy-pod ", env!("CARGO_PKG_VERSION"), "\n")),
        Ok(Command::PrintRules(options, family)) => match read_script(&options, family) {
            Ok((lines, _)) => print(&template::text(&lines)),
            Err(error) => refuse(&error),
        },
        Ok(Command::Run(options)) => match read_scripts(&options) {
            Ok(scripts) => run(&options, scripts),
            Err(error) => refuse(&error),
        },
        Err(error) => refuse(&error),
    }
}

fn run(options: &Options, scripts: Vec<Script>) -> ExitCode {
    logging::start();
    match intercept(options, scripts) {
        Ok(status) => status,
        Err(error) => fail(&error),
    }
}

fn intercept(options: &Options, scripts: Vec<Script>) -> Result<ExitCode, Error> {
    let signals = guard::block_signals()?;
    let table = Table::claim()?;
    let mut listeners = Vec::new();
    for family in options.families() {
        listeners.push(listener::bind(family, options.port, DEADLINES.idle)?);
        log::info!(
            "Binding TCP TProxy listener to {}",
            std::net::SocketAddr::new(family.loopback(), options.port)
        );
    }
    let (cidrs, ports) = (
        capture::join(&options.cidrs),
        capture::join(&options.dports),
    );
    log::info!("Capturing TCP to {cidrs} port {ports}");
    let fault = |error: std::io::Error| Error::new("start the server", error);
    let (guards_end, servers_end) = UnixStream::pair().map_err(fault)?;
    let parent = getpid();
    match sys::fork_single_threaded().map_err(fault)? {
        ForkResult::Child => {
            drop((table, signals, guards_end));
            Ok(
                match server::run(listeners, servers_end, parent, options.max_connections) {
                    Ok(()) => ExitCode::SUCCESS,
                    Err(error) => fail(&error),
                },
            )
        }
        ForkResult::Parent { child } => {
            drop((listeners, servers_end));
            let server = Server {
                pid: child,
                control: guards_end,
            };
            let routing = Routing::new(&options.cidrs, options.mark, options.table)?;
            let guard = Guard {
                signals,
                server,
                table,
                routing,
                sockets: Sockets::new(&options.cidrs, &options.dports),
                watch: Watch::start()?,
                scripts,
            };
            Ok(match guard.run() {
                Ok(()) => ExitCode::SUCCESS,
                Err(failure) => fail(&failure),
            })
        }
    }
}

/// The scripts of all families with a captured CIDR.
fn read_scripts(options: &Options) -> Result<Vec<Script>, String> {
    options
        .families()
        .map(|family| read_script(options, family).map(|(_, script)| script))
        .collect()
}

/// The script of one family, as text and as rules.
fn read_script(options: &Options, family: Family) -> Result<(Vec<Line>, Script), String> {
    let (name, template) = match &options.rules {
        None => (
            "the bundled script".to_owned(),
            template::BUNDLED.to_owned(),
        ),
        Some(path) => {
            let name = format!("--rules {}", path.display());
            let text = std::fs::read_to_string(path).map_err(|error| format!("{name}: {error}"))?;
            (name, text)
        }
    };
    let values = Values {
        cidrs: options.cidrs_of(family).collect(),
        dports: options.dports.clone(),
        on_ip: family.loopback(),
        on_port: options.port,
        mark: options.mark,
    };
    let lines = template::render(&template, &values)
        .map_err(|error| format!("{name} for {family}, {error}"))?;
    let script =
        script::parse(&lines, family).map_err(|error| format!("{name} for {family}, {error}"))?;
    Ok((lines, script))
}

/// Writes to stdout; a reader that has gone away is no failure of ours.
fn print(text: &str) -> ExitCode {
    use std::io::Write;
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn refuse(error: &dyn Display) -> ExitCode {
    eprintln!("tproxy-pod: {error}");
    ExitCode::from(USAGE)
}

fn fail(error: &dyn Display) -> ExitCode {
    log::error!("{error}");
    ExitCode::FAILURE
}
