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
use nix::unistd::{ForkResult, getpid};

use crate::error::Error;
use crate::nftables::batch::CommitMode;
use crate::nftables::bridge::{BridgeRedirect, Bridges};
use crate::nftables::compile::compile;
use crate::nftables::table::Table;
use crate::options::Options;
use crate::routing::policy::{Routing, raise_loopback};
use crate::routing::sock_diag::SockDiag;
use crate::rules::script::Script;
use crate::server::listener;
use crate::{sandbox, sys};

/// What has been found.
#[derive(Clone, Copy, Debug)]
struct Findings {
    /// Nothing is missing.
    works: bool,
}

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
    let mut findings = Findings { works: true };
    match apart(options, scripts) {
        Ok(works) => findings.works = works,
        Err(error) => findings.missing(error),
    }
    look_at_node(options, &mut findings);
    look_at_sysctls(findings);
    findings.works
}

/// Tries the kernel's part in a process of its own, which takes its namespace along.
fn apart(options: &Options, scripts: &[Script]) -> Result<bool, Error> {
    let fault = |error| Error::new("start a process", error);
    match sys::fork_single_threaded().map_err(fault)? {
        ForkResult::Child => {
            let mut findings = Findings { works: true };
            try_kernel(options, scripts, &mut findings);
            exit(i32::from(!findings.works));
        }
        ForkResult::Parent { child } => match waitpid(child, None) {
            Ok(WaitStatus::Exited(_, status)) => Ok(status == 0),
            _ => Err(Error::new(
                "try the kernel's part",
                std::io::Error::other("the process that tried it was killed"),
            )),
        },
    }
}

/// A network namespace of this process's own: of root's, where it is, because others may not have long
/// transactions.
fn leave() -> Result<(), Error> {
    let enter = |flags| unshare(flags).map_err(|errno| Error::new("make a namespace", errno));
    let network = CloneFlags::CLONE_NEWNET;
    let of_root = enter(network).and_then(|()| raise_loopback());
    of_root.or_else(|_| {
        enter(network | CloneFlags::CLONE_NEWUSER)?;
        raise_loopback()
    })
}

fn try_kernel(options: &Options, scripts: &[Script], findings: &mut Findings) {
    let left = leave();
    let mode = match left {
        Ok(()) => CommitMode::Commit,
        Err(_) => CommitMode::DryRun,
    };
    let claimed = Table::claim(mode, options.families());
    if let Some(table) = findings.part("nf_tables", claimed) {
        try_rules(options, scripts, table, findings);
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
    let sockets = SockDiag::new(&options.cidrs, &options.dports);
    findings.part("a way to end what is left of connections", sockets);
    let confined = sandbox::enter_guard(getpid());
    findings.part("filters of system calls", confined);
}

fn try_rules(options: &Options, scripts: &[Script], mut table: Table, findings: &mut Findings) {
    match table.is_owned() {
        true => findings.ok("tables with an owner: the kernel removes them with the process"),
        false => findings.limited(
            "no tables with an owner, which Linux 5.12 has: SIGKILL would leave them, and others \
             can remove them",
        ),
    }
    let redirect = BridgeRedirect::new(&options.cidrs, &options.dports);
    let installed = table.install(&compile(scripts), &redirect.table(&Bridges::default()));
    let rules = "the rules, with TPROXY and the sockets that own packets";
    match findings.part(rules, installed) {
        Some(None) => findings.ok("Pods of one bridge are captured"),
        Some(Some(reason)) => findings.limited(format_args!(
            "Pods of one bridge are not captured, and with bridge-nf-call-iptables=1 they time out \
             at captured addresses beyond it: {reason}"
        )),
        None => {}
    }
}

/// What the process may do here, and what others have.
fn look_at_node(options: &Options, findings: &mut Findings) {
    for family in options.families() {
        let address = std::net::SocketAddr::new(family.loopback(), options.port);
        let bound = listener::bind(family, options.port);
        findings.part(format_args!("transparent listener at {address}"), bound);
    }
    let claimed = Table::claim(CommitMode::DryRun, options.families());
    if let Some(mut table) = findings.part("nobody else owns the tables", claimed) {
        for table in table.without_owner() {
            findings.limited(format_args!(
                "there is a table {table} without an owner: it would be replaced"
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

fn look_at_sysctls(findings: Findings) {
    match sysctl("net.ipv4.tcp_syncookies") {
        Some(always @ 2..) => findings.limited(format_args!(
            "net.ipv4.tcp_syncookies is {always}: the Pod refuses what comes behind a cookie; 1 \
             would do"
        )),
        value => findings.ok(format_args!(
            "net.ipv4.tcp_syncookies is {}",
            value.unwrap_or(0)
        )),
    }
    match sysctl("net.core.somaxconn") {
        Some(some @ ..4096) => findings.limited(format_args!(
            "net.core.somaxconn is {some}: more clients that come at once are refused; 4096 is usual"
        )),
        value => findings.ok(format_args!("net.core.somaxconn is {}", value.unwrap_or(0))),
    }
}

/// The value; `None` where this kernel has none of that name.
fn sysctl(name: &str) -> Option<u32> {
    let path = format!("/proc/sys/{}", name.replace('.', "/"));
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}
