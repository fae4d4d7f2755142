//! What each process gives up before its work: capabilities, the means to gain new ones
//! (`no_new_privs`), and the system calls that it does not need. `seccomp` compiles the lists of
//! calls in this file into a filter. The server also dies with the guard (`PR_SET_PDEATHSIG`, prctl(2)).
//!
//! The lists are the calls of Rust's standard library on musl. On another C library it makes other calls,
//! and the filter would kill the process.

mod seccomp;

use libc::c_long;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid};

use crate::error::Error;
use crate::sandbox::seccomp::{Allowed, Condition, compile};
use crate::sys;

/// `CAP_NET_ADMIN` (linux/capability.h) as a set of one bit
const NET_ADMIN: u64 = 1 << 12;

/// System calls of both processes: memory, threads, locks, time, and connected sockets
const BOTH: &[Allowed<'_>] = &[
    // Only to the peer of a connected socket: no address.
    allow_if(libc::SYS_sendto, &[Condition::equals(4, 0)]),
    allow(libc::SYS_recvfrom),
    allow(libc::SYS_futex),
    allow(libc::SYS_write),
    allow(libc::SYS_close),
    allow(libc::SYS_shutdown),
    #[cfg(target_arch = "x86_64")]
    allow(libc::SYS_poll),
    allow(libc::SYS_ppoll),
    allow(libc::SYS_clock_nanosleep),
    // Where the vDSO cannot read the clock.
    allow(libc::SYS_clock_gettime),
    allow(libc::SYS_brk),
    allow(libc::SYS_munmap),
    allow(libc::SYS_mremap),
    allow(libc::SYS_madvise),
    // Memory for data, not for code (no PROT_EXEC).
    allow_if(libc::SYS_mmap, &[NOT_EXECUTABLE]),
    allow_if(libc::SYS_mprotect, &[NOT_EXECUTABLE]),
    allow_if(libc::SYS_clone, &[IS_THREAD]),
    allow(libc::SYS_gettid),
    allow(libc::SYS_sigaltstack),
    allow(libc::SYS_rt_sigprocmask),
    allow(libc::SYS_rt_sigaction),
    allow(libc::SYS_rt_sigreturn),
    // The kernel resumes calls with it after SIGSTOP and SIGCONT.
    allow(libc::SYS_restart_syscall),
    allow(libc::SYS_exit),
    allow(libc::SYS_exit_group),
    // In debug builds the standard library checks a descriptor before it closes it.
    #[cfg(debug_assertions)]
    allow_if(
        libc::SYS_fcntl,
        &[Condition::equals(1, libc::F_GETFD as u64)],
    ),
];

/// System calls of the server alone: accepting connections, their time-outs and acknowledgements, `TCP_INFO`, and
/// scheduling
const SERVER: &[Allowed<'_>] = &[
    allow(libc::SYS_epoll_pwait),
    // Listeners are added before the filter; after an event they are only armed again.
    allow_if(
        libc::SYS_epoll_ctl,
        &[Condition::equals(1, libc::EPOLL_CTL_MOD as u64)],
    ),
    allow(libc::SYS_accept4),
    allow(libc::SYS_getsockname),
    // Of the calling thread.
    allow_if(libc::SYS_sched_getattr, &[Condition::equals(0, 0)]),
    allow_if(libc::SYS_sched_setattr, &[Condition::equals(0, 0)]),
    allow_if(libc::SYS_setsockopt, &socket_option(libc::SO_RCVTIMEO)),
    allow_if(libc::SYS_setsockopt, &socket_option(libc::SO_LINGER)),
    allow_if(
        libc::SYS_setsockopt,
        &option(libc::SOL_TCP, libc::TCP_QUICKACK),
    ),
    allow_if(libc::SYS_getsockopt, &option(libc::SOL_TCP, libc::TCP_INFO)),
];

/// System calls of the guard alone: reading signals, waiting for the server, and send buffers for long
/// netlink messages. `enter_guard` adds kill(2) for the server.
const GUARD: &[Allowed<'_>] = &[
    allow(libc::SYS_read),
    allow(libc::SYS_wait4),
    allow_if(libc::SYS_setsockopt, &socket_option(libc::SO_SNDBUF)),
    allow_if(libc::SYS_setsockopt, &socket_option(libc::SO_SNDBUFFORCE)),
];

const NOT_EXECUTABLE: Condition = Condition {
    argument: 2,
    mask: libc::PROT_EXEC as u64,
    value: 0,
};

/// The flags with which musl starts a thread (`__pthread_create`, src/thread/pthread_create.c).
const IS_THREAD: Condition = Condition::equals(
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
        Condition::equals(1, level as u64),
        Condition::equals(2, name as u64),
    ]
}

const fn allow(call: c_long) -> Allowed<'static> {
    allow_if(call, &[])
}

const fn allow_if(call: c_long, conditions: &'static [Condition]) -> Allowed<'static> {
    Allowed { call, conditions }
}

/// Confines this process, a child of `guard`, to serving: it keeps no capability, and no call that opens
/// a file, reaches another process or makes a connection. Called before it starts a thread.
///
/// # Errors
/// `ESRCH` if the guard has ended, or any error of prctl(2), capset(2) or seccomp(2).
pub fn enter_server(guard: Pid) -> Result<(), Error> {
    prctl::set_pdeathsig(Signal::SIGKILL)
        .map_err(|errno| Error::new("die with the guard", errno))?;
    if getppid() != guard {
        return Err(Error::numbered("die with the guard", libc::ESRCH));
    }
    confine(0, &[BOTH, SERVER].concat())
}

/// Confines this process to its open netlink sockets and to `server`, which it may kill. It keeps only
/// `CAP_NET_ADMIN`. Called before it starts a thread.
///
/// # Errors
/// `EPERM` if it lacks `CAP_NET_ADMIN`, or any other error of prctl(2), capset(2) or seccomp(2).
pub fn enter_guard(server: Pid) -> Result<(), Error> {
    let kill = [
        Condition::equals(0, server.as_raw() as u64),
        Condition::equals(1, libc::SIGKILL as u64),
    ];
    let kill = Allowed {
        call: libc::SYS_kill,
        conditions: &kill,
    };
    confine(NET_ADMIN, &[BOTH, GUARD, &[kill]].concat())
}

fn confine(capabilities: u64, calls: &[Allowed<'_>]) -> Result<(), Error> {
    prctl::set_no_new_privs().map_err(|errno| Error::new("set no_new_privs", errno))?;
    sys::keep_capabilities(capabilities).map_err(|error| Error::new("drop capabilities", error))?;
    sys::set_seccomp_filter(&compile(calls))
        .map_err(|error| Error::new("filter system calls", error))
}
