//! Privileges that the two processes have dropped. Each forbidden system call is made inside a process, and
//! kills it.

use crate::lab::inject::{Call, call, call_with, inject, inject_once};
use crate::lab::{CIDRS, Daemon, Lab, POD, wait_until};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

/// Status of every thread of a process; a thread may end meanwhile.
fn threads(process: Pid) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
    tasks
        .filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("status")).ok())
        .collect()
}

/// A field of a status file.
fn field<'s>(status: &'s str, name: &str) -> &'s str {
    let mut lines = status.lines();
    let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value
        .unwrap_or_else(|| panic!("no {name} in {status}"))
        .trim()
}

const SECCOMP_MODE_FILTER: &str = "2";

#[test]
fn no_thread_of_the_server_has_a_capability() {
    let lab = Lab::new();
    let daemon = lab.start(&["--cidr", CIDRS]);
    assert!(lab.client.get(POD, "/").contains("Request received"));
    let threads = threads(daemon.server());
    assert!(threads.len() > 2, "the first one, and those that serve");
    for status in threads {
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(field(&status, set), "0000000000000000", "{status}");
        }
        assert_eq!(field(&status, "NoNewPrivs"), "1");
        assert_eq!(field(&status, "Seccomp"), SECCOMP_MODE_FILTER);
    }
}

#[test]
fn the_guard_has_one_capability() {
    const NET_ADMIN: &str = "0000000000001000";
    let lab = Lab::new();
    let daemon = lab.start(&["--cidr", CIDRS]);
    for status in threads(daemon.guard()) {
        for (set, held) in [
            ("CapInh", "0000000000000000"),
            ("CapPrm", NET_ADMIN),
            ("CapEff", NET_ADMIN),
            ("CapAmb", "0000000000000000"),
        ] {
            assert_eq!(field(&status, set), held, "{set} in {status}");
        }
        assert_eq!(field(&status, "NoNewPrivs"), "1");
        assert_eq!(field(&status, "Seccomp"), SECCOMP_MODE_FILTER);
    }
}

/// System calls that are forbidden in both processes, with any arguments.
fn forbidden() -> Vec<Call> {
    #[cfg(target_arch = "x86_64")]
    let of_this_architecture = [libc::SYS_open, libc::SYS_fork, libc::SYS_vfork, X32_GETTID];
    #[cfg(target_arch = "aarch64")]
    let of_this_architecture = [];
    let everywhere = [
        // Execution of other programs.
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_clone3,
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_pidfd_open,
        libc::SYS_pidfd_getfd,
        libc::SYS_tkill,
        libc::SYS_tgkill,
        // New sockets.
        libc::SYS_socket,
        libc::SYS_socketpair,
        libc::SYS_bind,
        libc::SYS_connect,
        libc::SYS_listen,
        libc::SYS_sendmsg,
        libc::SYS_sendmmsg,
        libc::SYS_recvmsg,
        // Files.
        libc::SYS_openat,
        libc::SYS_openat2,
        libc::SYS_open_by_handle_at,
        libc::SYS_unlinkat,
        libc::SYS_memfd_create,
        libc::SYS_ioctl,
        libc::SYS_io_uring_setup,
        // Namespaces, mounts and the kernel.
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_mount,
        libc::SYS_pivot_root,
        libc::SYS_chroot,
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_userfaultfd,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_kexec_load,
        libc::SYS_reboot,
        libc::SYS_keyctl,
        // Privileges.
        libc::SYS_setuid,
        libc::SYS_capset,
        libc::SYS_prctl,
        libc::SYS_seccomp,
        libc::SYS_personality,
        libc::SYS_prlimit64,
        NONE_SUCH,
    ];
    let numbers = everywhere.into_iter().chain(of_this_architecture);
    let limited = [
        // A new process, and a thread in new namespaces.
        call_with(libc::SYS_clone, [libc::SIGCHLD as u64]),
        call_with(libc::SYS_clone, [THREAD | libc::CLONE_NEWNET as u64]),
        call_with(libc::SYS_clone, [THREAD | 1 << 32]),
        // Executable memory.
        call_with(libc::SYS_mmap, [0, 4096, libc::PROT_EXEC as u64]),
        call_with(libc::SYS_mprotect, [0, 4096, libc::PROT_EXEC as u64]),
        // A destination address, whose lower 32 bits are 0.
        call_with(libc::SYS_sendto, [0, 0, 0, 0, 1]),
        call_with(libc::SYS_sendto, [0, 0, 0, 0, 1 << 32]),
        // Socket options.
        socket_option(libc::SOL_IP, libc::IP_TRANSPARENT),
        socket_option(libc::SOL_SOCKET, libc::SO_MARK),
        socket_option(libc::SOL_SOCKET, libc::SO_BINDTODEVICE),
        socket_option(libc::SOL_TCP, libc::SO_SNDTIMEO),
        // SO_PRIORITY
        socket_option(libc::SOL_SOCKET, libc::TCP_QUICKACK),
        get_socket_option(libc::SOL_TCP, libc::TCP_REPAIR),
        get_socket_option(libc::SOL_SOCKET, libc::TCP_INFO),
    ];
    numbers.map(call).chain(limited).collect()
}

/// SYS_gettid with the x32 ABI bit (`__X32_SYSCALL_BIT`, asm/unistd.h).
#[cfg(target_arch = "x86_64")]
const X32_GETTID: libc::c_long = 0x4000_0000 | libc::SYS_gettid;

const NONE_SUCH: libc::c_long = 0x0fff_ffff;

/// Flags of clone(2) in musl's pthread_create(3).
const THREAD: u64 = 0x7d_0f00;

fn socket_option(level: libc::c_int, name: libc::c_int) -> Call {
    call_with(libc::SYS_setsockopt, [0, level as u64, name as u64])
}

fn get_socket_option(level: libc::c_int, name: libc::c_int) -> Call {
    call_with(libc::SYS_getsockopt, [0, level as u64, name as u64])
}

#[test]
fn the_server_dies_of_every_call_that_it_does_not_need() {
    let lab = Lab::new();
    let of_the_guard = [
        call(libc::SYS_wait4),
        call_with(libc::SYS_kill, [1, libc::SIGKILL as u64]),
        socket_option(libc::SOL_SOCKET, libc::SO_SNDBUFFORCE),
    ];
    for call in forbidden().into_iter().chain(of_the_guard) {
        let mut daemon = lab.start(&["--cidr", CIDRS]);
        inject(daemon.server(), call);
        assert_eq!(daemon.wait().code(), Some(1), "{call:?}");
        assert!(
            daemon.log().contains("the server was killed by SIGSYS"),
            "{call:?}: {}",
            daemon.log()
        );
        assert_eq!(lab.remains(), [""; 0]);
    }
}

#[test]
fn the_guard_dies_of_every_call_that_it_does_not_need() {
    let lab = Lab::new();
    let of_the_server = [
        call(libc::SYS_accept4),
        call(libc::SYS_getsockname),
        socket_option(libc::SOL_SOCKET, libc::SO_SNDTIMEO),
        socket_option(libc::SOL_TCP, libc::TCP_QUICKACK),
        get_socket_option(libc::SOL_TCP, libc::TCP_INFO),
    ];
    for call in forbidden().into_iter().chain(of_the_server) {
        assert_kills_guard(&lab, |_| call);
    }
    assert_kills_guard(&lab, |daemon| {
        let server = daemon.server().as_raw() as u64;
        call_with(libc::SYS_kill, [server, libc::SIGTERM as u64])
    });
    assert_kills_guard(&lab, |_| {
        call_with(libc::SYS_kill, [1, libc::SIGKILL as u64])
    });
}

/// Checks that a call kills the guard, and the server with it.
fn assert_kills_guard(lab: &Lab, call: impl FnOnce(&Daemon) -> Call) {
    use std::os::unix::process::ExitStatusExt;
    let mut daemon = lab.start(&["--cidr", CIDRS]);
    let call = call(&daemon);
    inject(daemon.guard(), call);
    let status = daemon.wait();
    assert_eq!(status.signal(), Some(Signal::SIGSYS as i32), "{call:?}");
    wait_until("the table is gone", || {
        !lab.remains().iter().any(|line| line.contains("tproxy-pod"))
    });
}

#[test]
fn what_a_process_needs_can_be_called_from_inside() {
    let lab = Lab::new();
    let mut daemon = lab.start(&["--cidr", CIDRS]);
    for process in [daemon.server(), daemon.guard()] {
        let thread = inject_once(process, call(libc::SYS_gettid));
        assert_eq!(thread, i64::from(process.as_raw()));
    }
    assert!(lab.client.get(POD, "/").contains("Request received"));
    assert_eq!(daemon.stop(), Some(0));
}
