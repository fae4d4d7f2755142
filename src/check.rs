//! `--check`: what this node can do, before anything is installed; a line for each part, and what to
//! do where one is missing.
//!
//! What the kernel has to have is tried, not guessed from its version: in a network namespace that
//! goes with the process, or, where none can be made, as far as it leaves nothing behind. What others
//! have on the node is only looked at.

use std::fmt::Display;
use std::io::Write;
use std::process::exit;

use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::ForkResult;

use crate::capture::Family;
use crate::connection::TIMEOUTS;
use crate::error::Error;
use crate::lift::{self, Lift};
use crate::nftables::{Effect, Table};
use crate::options::Options;
use crate::ports::Ports;
use crate::routing::{Routing, raise_loopback};
use crate::script::Script;
use crate::{listener, sys, sysctl};

/// What is known of the kernel, and what has been found.
#[derive(Clone, Copy, Debug)]
struct Findings {
    /// Nothing is missing.
    works: bool,
    /// Frames can be lifted from bridges.
    lifts: bool,
}

/// The exit status of the process that tries the kernel's part, and its bits.
const WORKS: i32 = 2;
const LIFTS: i32 = 1;

impl Findings {
    fn ok(self, what: impl Display) {
        line("ok", what);
    }

    fn limited(self, what: impl Display) {
        line("limited", what);
    }

    fn missing(&mut self, what: impl Display) {
        self.works = false;
        line("missing", what);
    }

    /// A part that is there, or an error that says what to do.
    fn part<T>(&mut self, what: impl Display, tried: Result<T, Error>) -> Option<T> {
        match tried {
            Ok(_) => self.ok(what),
            Err(ref error) => self.missing(error),
        }
        tried.ok()
    }
}

/// A reader that has gone away is no failure of ours: the exit status says it too.
fn line(verdict: &str, what: impl Display) {
    let _ = writeln!(std::io::stdout(), "{verdict:<8} {what}");
}

/// Says what there is, and whether it would work.
pub fn run(options: &Options, scripts: &[Script]) -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    line("ok", format_args!("Linux {}", release.trim()));
    let mut findings = match apart(options, scripts) {
        Ok(findings) => findings,
        Err(error) => {
            line("missing", error);
            return false;
        }
    };
    look_at_node(options, &mut findings);
    look_at_sysctls(options, findings);
    findings.works
}

/// Tries the kernel's part in a process of its own, which takes its namespace along.
fn apart(options: &Options, scripts: &[Script]) -> Result<Findings, Error> {
    let fault = |error| Error::new("start a process", error);
    match sys::fork_single_threaded().map_err(fault)? {
        ForkResult::Child => {
            let mut findings = Findings {
                works: true,
                lifts: false,
            };
            try_kernel(options, scripts, &mut findings);
            let Findings { works, lifts } = findings;
            exit(WORKS * i32::from(works) + LIFTS * i32::from(lifts));
        }
        ForkResult::Parent { child } => match waitpid(child, None) {
            Ok(WaitStatus::Exited(_, bits)) => Ok(Findings {
                works: bits & WORKS != 0,
                lifts: bits & LIFTS != 0,
            }),
            _ => Err(Error::numbered("try the kernel's part", libc::ECHILD)),
        },
    }
}

/// A network namespace of this process's own.
fn leave() -> Result<(), Error> {
    let network = CloneFlags::CLONE_NEWNET;
    unshare(network | CloneFlags::CLONE_NEWUSER)
        .or_else(|_| unshare(network))
        .map_err(|errno| Error::new("make a namespace", errno))?;
    raise_loopback()
}

fn try_kernel(options: &Options, scripts: &[Script], findings: &mut Findings) {
    let left = leave();
    let effect = match left {
        Ok(()) => Effect::Lasting,
        Err(_) => Effect::None,
    };
    let claimed = Table::claim(effect, options.families());
    let Some(mut table) = findings.part("nf_tables", claimed) else {
        return;
    };
    match table.is_owned() {
        true => findings.ok("tables with an owner: the kernel removes them with the process"),
        false => findings.limited(
            "no tables with an owner, which Linux 5.12 has: SIGKILL would leave them, and others \
             can remove them",
        ),
    }
    let lift = Lift::new(
        options.families().collect(),
        &options.cidrs,
        &options.dports,
    );
    match table.install(scripts, &lift, &Ports::default()) {
        Err(error) => findings.missing(error),
        Ok(unlifted) => {
            findings.ok("the rules, with TPROXY and the sockets that own packets");
            match unlifted {
                None => findings.lifts = true,
                Some(reason) => findings.limited(format_args!(
                    "Pods of one bridge are not captured: {reason}"
                )),
            }
        }
    }
    if findings.lifts {
        findings.ok("Pods of one bridge are captured");
    }
    match left {
        Err(error) => {
            findings.limited(format_args!("mark rule and routes were not tried: {error}"))
        }
        Ok(()) => {
            let routing = Routing::new(&options.cidrs, options.mark, options.table);
            let installed = routing.and_then(|mut routing| routing.install().1);
            findings.part("mark rule and AnyIP routes", installed);
        }
    }
}

/// What the process may do here, and what others have.
fn look_at_node(options: &Options, findings: &mut Findings) {
    for family in options.families() {
        let address = std::net::SocketAddr::new(family.loopback(), options.port);
        let bound = listener::bind(family, options.port, TIMEOUTS);
        findings.part(format_args!("transparent listener at {address}"), bound);
    }
    let claimed = Table::claim(Effect::None, options.families());
    if let Some(mut table) = findings.part("nobody else owns the tables", claimed) {
        for layer in table.without_owner() {
            findings.limited(format_args!(
                "there is a table {layer} without an owner: it would be replaced"
            ));
        }
    }
    let (mark, table) = (options.mark, options.table);
    let routing = Routing::new(&options.cidrs, mark, table);
    findings.part(
        format_args!(
            "no rule or route of others uses mark {mark} or table {table} for something else"
        ),
        routing.and_then(|mut routing| routing.require_room()),
    );
}

fn look_at_sysctls(options: &Options, findings: Findings) {
    let above = |name: &str, limit: u32, consequence: &str| {
        let (name, value) = sysctl::highest(name);
        match value > limit {
            true => findings.limited(format_args!("{name} is {value}: {consequence}")),
            false => findings.ok(format_args!("{name} is {value}")),
        }
    };
    let mut lifts = findings.lifts;
    for family in options.families().filter(|_| findings.lifts) {
        if let Some(reason) = lift::obstacle(family) {
            lifts = false;
            findings.limited(format_args!(
                "{family} between Pods of one bridge is not captured: {reason}"
            ));
        }
    }
    if !lifts {
        let stuck =
            "Pods on bridges time out at captured addresses beyond their bridge; 0 would do";
        above("net.bridge.bridge-nf-call-iptables", 0, stuck);
    }
    if options.families().any(|family| family == Family::V4) {
        let stuck = "Pods inside the captured blocks time out; 0 would do";
        above("net.ipv4.conf.*.src_valid_mark", 0, stuck);
    }
    let lost = "the Pod refuses what comes behind a cookie; 1 would do";
    above("net.ipv4.tcp_syncookies", 1, lost);
    match sysctl::read("net.core.somaxconn") {
        Some(some @ ..4096) => findings.limited(format_args!(
            "net.core.somaxconn is {some}: more clients that come at once are refused; 4096 is usual"
        )),
        some => findings.ok(format_args!("net.core.somaxconn is {}", some.unwrap_or(0))),
    }
}
