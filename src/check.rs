//! `--check`: prints a line for each part that tproxy-pod needs: `ok`, `limited` or `missing`, with what
//! helps. Installs nothing on the node.
//!
//! What the kernel must support is tried, not guessed from its version: in a network namespace of a child
//! process, or, where none can be created, by transactions that the kernel checks and does not commit
//! ([`CommitMode::DryRun`]). Tables, rules and routes of other programs are only read.

use std::fmt::Display;
use std::io::Write;
use std::net::SocketAddr;
use std::process::exit;

use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, getpid};

use crate::error::Error;
use crate::netlink::socket::Socket;
use crate::nftables::batch::CommitMode;
use crate::nftables::bridge::BridgeRedirect;
use crate::nftables::compile::compile;
use crate::nftables::table::Tables;
use crate::options::Options;
use crate::routing::block_survey::survey;
use crate::routing::bridges::BridgeTopology;
use crate::routing::loopback;
use crate::routing::policy::Routing;
use crate::routing::sock_diag::SockDiag;
use crate::rules::script::Script;
use crate::server::listener;
use crate::{sandbox, sys};

/// The lines printed so far.
#[derive(Debug, Default)]
struct Report {
    is_missing: bool,
}

impl Report {
    fn missing(&mut self, error: &Error) {
        self.is_missing = true;
        print("missing", error);
    }

    /// `ok` with the name of the part, or `missing` with the error.
    fn part<T>(&mut self, name: impl Display, tried: Result<T, Error>) -> Option<T> {
        match tried {
            Ok(_) => ok(name),
            Err(ref error) => self.missing(error),
        }
        tried.ok()
    }
}

fn ok(text: impl Display) {
    print("ok", text);
}

fn limited(text: impl Display) {
    print("limited", text);
}

/// Writes a line to stdout. An error, such as `EPIPE`, is ignored: the exit status tells the result.
fn print(verdict: &str, text: impl Display) {
    let _ = writeln!(std::io::stdout(), "{verdict:<8} {text}");
}

/// Prints the report; returns whether nothing is missing.
pub fn run(options: &Options, scripts: &[Script]) -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    ok(format_args!("Linux {}", release.trim()));
    let mut report = Report::default();
    match check_kernel_in_child(options, scripts) {
        Ok(has_all) => report.is_missing = !has_all,
        Err(error) => report.missing(&error),
    }
    check_node(options, &mut report);
    check_sysctls();
    !report.is_missing
}

/// Checks the kernel in a child process, whose namespaces end with it; returns whether nothing is missing.
///
/// # Errors
/// `EAGAIN` or `ENOMEM` of fork(2), or the child was killed.
fn check_kernel_in_child(options: &Options, scripts: &[Script]) -> Result<bool, Error> {
    let fault = |error| Error::new("start a process", error);
    match sys::fork_single_threaded().map_err(fault)? {
        ForkResult::Child => {
            let mut report = Report::default();
            check_kernel(options, scripts, &mut report);
            exit(i32::from(report.is_missing));
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

/// Moves this process to a new network namespace: in the present user namespace if that is allowed,
/// because the size of nf_tables transactions is limited in others.
///
/// # Errors
/// `EPERM`, `ENOSPC`, or any other error of unshare(2), or of setting up `lo`.
fn enter_new_namespace() -> Result<(), Error> {
    let enter = |flags| unshare(flags).map_err(|errno| Error::new("make a namespace", errno));
    let network = CloneFlags::CLONE_NEWNET;
    let privileged = enter(network).and_then(|()| loopback::set_up());
    privileged.or_else(|_| {
        enter(network | CloneFlags::CLONE_NEWUSER)?;
        loopback::set_up()
    })
}

fn check_kernel(options: &Options, scripts: &[Script], report: &mut Report) {
    let entered = enter_new_namespace();
    let mode = match entered {
        Ok(()) => CommitMode::Commit,
        Err(_) => CommitMode::DryRun,
    };
    let claimed = Tables::claim(mode, options.families());
    if let Some(tables) = report.part("nf_tables", claimed) {
        check_rules(options, scripts, tables, report);
    }
    match entered {
        Err(error) => limited(format_args!("mark rule and routes were not tried: {error}")),
        Ok(()) => {
            let routing = Routing::new(&options.cidrs, options.marks, options.table);
            let installed = routing.and_then(|mut routing| routing.install().1);
            report.part("mark rule and AnyIP routes", installed);
        }
    }
    let sock_diag = SockDiag::new(&options.cidrs, &options.dports);
    report.part("a way to end what is left of connections", sock_diag);
    let confined = sandbox::enter_guard(getpid());
    report.part("filters of system calls", confined);
}

fn check_rules(options: &Options, scripts: &[Script], mut tables: Tables, report: &mut Report) {
    match tables.is_owned() {
        true => ok("tables with an owner: the kernel removes them with the process"),
        false => limited(
            "no tables with an owner, which Linux 5.12 has: SIGKILL would leave them, and others \
             can remove them",
        ),
    }
    let bridge_redirect = BridgeRedirect::new(&options.cidrs, &options.dports);
    let bridge_table = bridge_redirect.table(&BridgeTopology::default());
    let installed = tables.install(&compile(scripts, options.marks.received), &bridge_table);
    let rules = "the rules, with TPROXY and the sockets that own packets";
    match report.part(rules, installed) {
        Some(None) => ok("Pods of one bridge are captured"),
        Some(Some(reason)) => limited(format_args!(
            "Pods of one bridge are not captured, and with bridge-nf-call-iptables=1 they time out \
             at captured addresses beyond it: {reason}"
        )),
        None => {}
    }
}

/// Checks what depends on the node: the listeners' addresses, and tables, rules and routes of other
/// programs.
fn check_node(options: &Options, report: &mut Report) {
    for family in options.families() {
        let address = SocketAddr::new(family.loopback(), options.port);
        let bound = listener::bind(family, options.port);
        report.part(format_args!("transparent listener at {address}"), bound);
    }
    if let Some(address) = options.metrics {
        let bound = listener::bind_metrics(address);
        report.part(format_args!("listener for metrics at {address}"), bound);
    }
    let claimed = Tables::claim(CommitMode::DryRun, options.families());
    if let Some(mut tables) = report.part("the tables have no other owner", claimed) {
        for table in tables.without_owner() {
            limited(format_args!(
                "there is a table {table} without an owner: it would be replaced"
            ));
        }
    }
    let table = options.table;
    let marks: Vec<String> = options.marks.all().map(|mark| mark.to_string()).collect();
    let marks = marks.join(" or ");
    let routing = Routing::new(&options.cidrs, options.marks, table);
    report.part(
        format_args!(
            "no rule or route of others uses mark {marks} or table {table} for something else"
        ),
        routing.and_then(|mut routing| routing.check_conflicts()),
    );
    check_blocks(options);
}

/// Checks whether the node routes the captured blocks.
fn check_blocks(options: &Options) {
    let socket = Socket::open(libc::NETLINK_ROUTE);
    match socket.and_then(|mut socket| survey(&mut socket, &options.cidrs, options.table)) {
        Err(error) => limited(format_args!(
            "which captured blocks hold Pods cannot be told: {error}"
        )),
        Ok(survey) => options
            .cidrs
            .iter()
            .for_each(|block| match survey.warning(*block) {
                None => ok(format_args!("a route of this node leads into {block}")),
                Some(warning) => limited(warning),
            }),
    }
}

fn check_sysctls() {
    match sysctl("net.ipv4.tcp_syncookies") {
        Some(0) => limited(format_args!(
            "net.ipv4.tcp_syncookies is 0: a flood of SYNs keeps clients out; 1 would do"
        )),
        value => ok(format_args!(
            "net.ipv4.tcp_syncookies is {}",
            value.unwrap_or(0)
        )),
    }
    match sysctl("net.core.somaxconn") {
        Some(some @ ..4096) => limited(format_args!(
            "net.core.somaxconn is {some}: of more clients that come at once, some wait for \
             retransmissions; 4096 is usual"
        )),
        value => ok(format_args!("net.core.somaxconn is {}", value.unwrap_or(0))),
    }
}

/// The value of a sysctl; `None` where this kernel does not have it.
fn sysctl(name: &str) -> Option<u32> {
    let path = format!("/proc/sys/{}", name.replace('.', "/"));
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}
