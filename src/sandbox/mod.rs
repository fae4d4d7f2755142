//! What the two processes give up before they do their work: capabilities, the way to new ones, and
//! the system calls that they do not need. The server's life ends with the guard's.
//!
//! The calls are those that Rust's standard library makes with musl; with another C library it makes
//! others, and would be killed.

mod seccomp;

use libc::c_long;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid};

use crate::error::Error;
use crate::sandbox::seccomp::{Allowed, Condition, filter};
use crate::sys;

/// `CAP_NET_ADMIN` (linux/capability.h), as a set
const NET_ADMIN: u64 = 1 << 12;

/// What both processes need: memory, threads, locks, the time, and connected sockets.
const BOTH: &[Allowed<'_>] = &[
    // To whom the socket is connected, not to an address.
    only(libc::SYS_sendto, &[Condition::is(4, 0)]),
    any(libc::SYS_recvfrom),
    any(libc::SYS_futex),
    any(libc::SYS_write),
    any(libc::SYS_close),
    any(libc::SYS_shutdown),
    #[cfg(target_arch = "x86_64")]
    any(libc::SYS_poll),
    any(libc::SYS_ppoll),
    any(libc::SYS_clock_nanosleep),
    // Where the vDSO has no clock.
    any(libc::SYS_clock_gettime),
    any(libc::SYS_brk),
    any(libc::SYS_munmap),
    any(libc::SYS_mremap),
    any(libc::SYS_madvise),
    // Memory for data, not for code.
    only(libc::SYS_mmap, &[NOT_EXECUTABLE]),
    only(libc::SYS_mprotect, &[NOT_EXECUTABLE]),
    only(libc::SYS_clone, &[IS_THREAD]),
    any(libc::SYS_gettid),
    any(libc::SYS_sigaltstack),
    any(libc::SYS_rt_sigprocmask),
    any(libc::SYS_rt_sigaction),
    any(libc::SYS_rt_sigreturn),
    // After SIGSTOP and SIGCONT.
    any(libc::SYS_restart_syscall),
    any(libc::SYS_exit),
    any(libc::SYS_exit_group),
    // The standard library checks a descriptor before it closes it.
    #[cfg(debug_assertions)]
    only(libc::SYS_fcntl, &[Condition::is(1, libc::F_GETFD as u64)]),
];

/// What only the server needs: connections, their time-outs, and what became of what was sent.
const SERVER: &[Allowed<'_>] = &[
    any(libc::SYS_epoll_pwait),
    // Listeners that were added before are armed again.
    only(
        libc::SYS_epoll_ctl,
        &[Condition::is(1, libc::EPOLL_CTL_MOD as u64)],
    ),
    any(libc::SYS_accept4),
    any(libc::SYS_getsockname),
    only(libc::SYS_setsockopt, &socket_option(libc::SO_RCVTIMEO)),
    only(libc::SYS_setsockopt, &socket_option(libc::SO_LINGER)),
    only(libc::SYS_getsockopt, &option(libc::SOL_TCP, libc::TCP_INFO)),
];

/// What only the guard needs, but for a way to kill the server: signals, the server's end, and room
/// for long netlink messages.
const GUARD: &[Allowed<'_>] = &[
    any(libc::SYS_read),
    any(libc::SYS_wait4),
    only(libc::SYS_setsockopt, &socket_option(libc::SO_SNDBUF)),
    only(libc::SYS_setsockopt, &socket_option(libc::SO_SNDBUFFORCE)),
];

const NOT_EXECUTABLE: Condition = Condition {
    argument: 2,
    mask: libc::PROT_EXEC as u64,
    value: 0,
};

/// The flags with which musl starts a thread (`__pthread_create`, src/thread/pthread_create.c).
const IS_THREAD: Condition = Condition::is(
    0,
    (libc::CLONE_VM
        | libc::CLONE_FS
        | libc::CLONE_FILES
        | libc::CLONE_SIGHAND
        | libc::CLONE_THREAD
        | libc::CLONE_SYSVSEM
        | libc::CLONE_SETTLS
        | libc::CLONE_PARENT_SETTID
        | libc::CLONE_CHILD_CLEARTID
        | libc::CLONE_DETACHED) as u64,
);

const fn socket_option(name: libc::c_int) -> [Condition; 2] {
    option(libc::SOL_SOCKET, name)
}

const fn option(level: libc::c_int, name: libc::c_int) -> [Condition; 2] {
    [
        Condition::is(1, level as u64),
        Condition::is(2, name as u64),
    ]
}

const fn any(call: c_long) -> Allowed<'static> {
    only(call, &[])
}

const fn only(call: c_long, conditions: &'static [Condition]) -> Allowed<'static> {
    Allowed { call, conditions }
}

/// Confines this process, whose parent is `guard`, to serving: no capability is left to it, and no
/// call that leads to a file, to another process, or to a connection of its own. To be called before
/// it starts a thread.
///
/// # Errors
/// What could not be given up.
pub fn enter_server(guard: Pid) -> Result<(), Error> {
    prctl::set_pdeathsig(Signal::SIGKILL)
        .map_err(|errno| Error::new("die with the guard", errno))?;
    if getppid() != guard {
        return Err(Error::numbered("die with the guard", libc::ESRCH));
    }
    enter(0, &[BOTH, SERVER].concat())
}

/// Confines this process to netlink sockets that are open, and to `server`, which it may kill. It keeps
/// CAP_NET_ADMIN alone. To be called before it starts a thread.
///
/// # Errors
/// What could not be given up.
pub fn enter_guard(server: Pid) -> Result<(), Error> {
    let kill = [
        Condition::is(0, server.as_raw() as u64),
        Condition::is(1, libc::SIGKILL as u64),
    ];
    let kill = Allowed {
        call: libc::SYS_kill,
        conditions: &kill,
    };
    enter(NET_ADMIN, &[BOTH, GUARD, &[kill]].concat())
}

fn enter(capabilities: u64, calls: &[Allowed<'_>]) -> Result<(), Error> {
    prctl::set_no_new_privs().map_err(|errno| Error::new("set no_new_privs", errno))?;
    sys::keep_capabilities(capabilities).map_err(|error| Error::new("drop capabilities", error))?;
    sys::filter_calls(&filter(calls)).map_err(|error| Error::new("filter system calls", error))
}
