//! System calls that neither the standard library nor `nix` wraps as needed here, each in a function of
//! its own. It decides nothing: which calls are made, and with what values, is their callers'. The only
//! module with `unsafe`; the facts come from the man pages that each function names.

#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use libc::{c_int, c_void, socklen_t};
use nix::unistd::{ForkResult, fork};

fn check(result: c_int) -> io::Result<c_int> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}

/// socket(2) with `SOCK_CLOEXEC`.
///
/// # Errors
/// `EPERM`, `EMFILE`, `EAFNOSUPPORT`, `EPROTONOSUPPORT`, or any other error of socket(2).
pub fn socket(domain: c_int, kind: c_int, protocol: c_int) -> io::Result<OwnedFd> {
    // SAFETY: no pointers are passed; the result is a new descriptor, which nothing else owns.
    unsafe {
        let fd = check(libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// setsockopt(2) with a value of plain data, such as `c_int` or `timeval`.
///
/// # Errors
/// `EPERM`, `ENOPROTOOPT`, `EINVAL`, or any other error of setsockopt(2).
pub fn set_option<T: Copy>(
    fd: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
    value: T,
) -> io::Result<()> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes of `value`, which lives across the call.
    unsafe {
        let value = (&raw const value).cast::<c_void>();
        check(libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            value,
            mem::size_of::<T>() as socklen_t,
        ))?;
    }
    Ok(())
}

/// State and counters of a TCP socket (`TCP_INFO`, tcp(7)).
///
/// # Errors
/// `EBADF`, `EOPNOTSUPP`, or any other error of getsockopt(2).
pub fn tcp_info(descriptor: RawFd) -> io::Result<libc::tcp_info> {
    let mut length = mem::size_of::<libc::tcp_info>() as socklen_t;
    // SAFETY: all zeroes is a valid `tcp_info`, of which the kernel writes at most `length` bytes.
    unsafe {
        let mut info: libc::tcp_info = mem::zeroed();
        check(libc::getsockopt(
            descriptor,
            libc::SOL_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        ))?;
        Ok(info)
    }
}

/// bind(2) of a netlink socket to a port that the kernel chooses (netlink(7)): an unbound socket
/// receives no notifications.
///
/// # Errors
/// `EADDRINUSE`, `ENOMEM`, or any other error of bind(2).
pub fn bind_netlink(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: all zeroes is a valid `sockaddr_nl`, of which the kernel reads `size_of` bytes.
    unsafe {
        let mut address: libc::sockaddr_nl = mem::zeroed();
        address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
        let length = mem::size_of_val(&address) as socklen_t;
        check(libc::bind(
            fd.as_raw_fd(),
            (&raw const address).cast(),
            length,
        ))
        .map(drop)
    }
}

/// send(2) of one message.
///
/// # Errors
/// `EMSGSIZE` if less than all was sent, `EPERM`, `ENOBUFS`, or any other error of send(2).
pub fn send(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: the kernel reads `bytes.len()` bytes of `bytes`.
    let sent = unsafe { libc::send(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
    match usize::try_from(sent) {
        Ok(sent) if sent == bytes.len() => Ok(()),
        Ok(_) => Err(io::Error::from_raw_os_error(libc::EMSGSIZE)),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// recv(2) of one datagram, without blocking (`MSG_DONTWAIT`).
///
/// # Errors
/// `EAGAIN` if there is none, `EMSGSIZE` if it is longer than `buffer`, `ENOBUFS` if netlink dropped
/// notifications, or any other error of recv(2).
pub fn receive<'b>(fd: BorrowedFd<'_>, buffer: &'b mut [u8]) -> io::Result<&'b [u8]> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
    // SAFETY: the kernel writes at most `buffer.len()` bytes to `buffer`.
    let length = unsafe {
        libc::recv(
            fd.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            flags,
        )
    };
    match usize::try_from(length) {
        Ok(length) => buffer
            .get(..length)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EMSGSIZE)),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Gives back the memory of this thread's stack that nothing is in now, below the frames of its
/// callers. For threads other than the first, whose stack the kernel extends.
pub fn release_stack() {
    let (mut low, mut size) = (std::ptr::null_mut(), 0);
    // SAFETY: the attributes are initialized before they are read, and freed once.
    unsafe {
        let mut attributes = mem::zeroed();
        if libc::pthread_getattr_np(libc::pthread_self(), &raw mut attributes) != 0 {
            return;
        }
        libc::pthread_attr_getstack(&raw const attributes, &raw mut low, &raw mut size);
        libc::pthread_attr_destroy(&raw mut attributes);
    }
    release_below_this_frame(low);
}

/// Gives back what lies between the lowest address of this thread's stack and this frame: it is
/// zeroes when it is used again (madvise(2), MADV_DONTNEED).
#[inline(never)]
fn release_below_this_frame(low: *mut c_void) {
    /// What the rest of this frame and the calls made here take at most, in bytes.
    const CALLS: usize = 512;
    let frame = 0u8;
    // SAFETY: a stack grows downwards, so below the frames of this function and of what it calls
    // there is no object.
    unsafe {
        let page = libc::sysconf(libc::_SC_PAGESIZE) as usize;
        let end = ((&raw const frame).addr() - CALLS) & !(page - 1);
        let start = low.addr().next_multiple_of(page);
        if let Some(length @ 1..) = end.checked_sub(start) {
            // A kernel that refuses keeps the memory in use; nothing else comes of it.
            libc::madvise(low.with_addr(start), length, libc::MADV_DONTNEED);
        }
    }
}

/// Starts a thread that nothing joins, with a stack of `stack_size` bytes (pthread_create(3)).
///
/// `std::thread` gives each thread a second stack, on which it would report an overflow of the first. Either stack
/// takes two mappings, of which a process may have 65,530 (`vm.max_map_count`), and where the kernel refuses one for
/// the second, `std::thread` panics. Here an overflow meets the guard page, and SIGSEGV ends the process.
///
/// # Errors
/// `EAGAIN` without memory, a mapping or a process id left, or `EINVAL` for a stack that is too small.
pub fn spawn_detached<F: FnOnce() + Send + 'static>(stack_size: usize, work: F) -> io::Result<()> {
    extern "C" fn run<F: FnOnce()>(work: *mut c_void) -> *mut c_void {
        // SAFETY: `work` comes from `Box::into_raw` below, and only this thread gets it.
        let work = unsafe { Box::from_raw(work.cast::<F>()) };
        work();
        std::ptr::null_mut()
    }
    let work = Box::into_raw(Box::new(work));
    // SAFETY: the attributes are initialized before they are used, and freed once. After an error no thread has
    // got `work`.
    unsafe {
        let (mut thread, mut attributes) = (mem::zeroed(), mem::zeroed());
        let detached = libc::PTHREAD_CREATE_DETACHED;
        libc::pthread_attr_init(&raw mut attributes);
        libc::pthread_attr_setdetachstate(&raw mut attributes, detached);
        let mut error = libc::pthread_attr_setstacksize(&raw mut attributes, stack_size);
        if error == 0 {
            let attributes = &raw const attributes;
            error = libc::pthread_create(&raw mut thread, attributes, run::<F>, work.cast());
        }
        libc::pthread_attr_destroy(&raw mut attributes);
        if error != 0 {
            drop(Box::from_raw(work));
            return Err(io::Error::from_raw_os_error(error));
        }
    }
    Ok(())
}

/// Sets the scheduling policy of this thread, and its time slice (sched_setattr(2)). The nice value stays.
///
/// # Errors
/// `EINVAL` or `EPERM` if the kernel refuses the values, or `ENOSYS`.
pub fn set_scheduling(policy: c_int, slice: Duration) -> io::Result<()> {
    const SIZE: u32 = mem::size_of::<libc::sched_attr>() as u32;
    // SAFETY: all zeroes is a valid `sched_attr`, of which the kernel writes and reads at most `SIZE` bytes.
    unsafe {
        let mut attributes: libc::sched_attr = mem::zeroed();
        let got = libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, SIZE, 0);
        check(got as c_int)?;
        attributes.sched_policy = policy as u32;
        attributes.sched_runtime = slice.as_nanos() as u64;
        let set = libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0);
        check(set as c_int).map(drop)
    }
}

/// fork(2) of a process that has one thread.
///
/// # Errors
/// `EBUSY` if there are other threads: the child would inherit their locks. `EAGAIN`, `ENOMEM`, or an
/// error of reading /proc/self/status.
pub fn fork_single_threaded() -> io::Result<ForkResult> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    if !status.lines().any(|line| line == "Threads:\t1") {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    // SAFETY: the child of a single-threaded process may do whatever the parent may.
    unsafe { fork() }.map_err(io::Error::from)
}

/// Drops all capabilities of this thread but `kept`, a set of `1 << CAP_…`, from the effective and the
/// permitted set. The inheritable set becomes empty, and with it the ambient one (capset(2),
/// capabilities(7)).
///
/// # Errors
/// `EPERM` if the permitted set lacks one of `kept`.
pub fn keep_capabilities(kept: u64) -> io::Result<()> {
    /// `struct __user_cap_header_struct` (linux/capability.h)
    #[repr(C)]
    struct Header {
        version: u32,
        pid: c_int,
    }
    /// `struct __user_cap_data_struct`, for 32 capabilities
    #[repr(C)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    /// `_LINUX_CAPABILITY_VERSION_3`: two `Data` follow.
    const VERSION_3: u32 = 0x2008_0522;
    let header = Header {
        version: VERSION_3,
        pid: 0,
    };
    let data = [kept as u32, (kept >> 32) as u32].map(|kept| Data {
        effective: kept,
        permitted: kept,
        inheritable: 0,
    });
    // SAFETY: the kernel reads a header and two data structs, which is the layout of version 3.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, &raw const data) };
    check(result as c_int).map(drop)
}

/// Attaches a filter to the group of sockets that listen to one address: it returns the number of the socket
/// that gets a connection (`SO_ATTACH_REUSEPORT_CBPF`, socket(7)).
///
/// # Errors
/// `EINVAL` if the socket does not listen with `SO_REUSEPORT` or the kernel refuses the filter, or `ENOMEM`.
pub fn set_reuseport_filter(fd: BorrowedFd<'_>, filter: &[libc::sock_filter]) -> io::Result<()> {
    let option = libc::SO_ATTACH_REUSEPORT_CBPF;
    set_option(fd, libc::SOL_SOCKET, option, program(filter))
}

/// A filter as the kernel reads it; it writes nothing.
fn program(filter: &[libc::sock_filter]) -> libc::sock_fprog {
    libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_ptr().cast_mut(),
    }
}

/// Installs a filter of system calls for this thread and those that it starts (`SECCOMP_SET_MODE_FILTER`,
/// seccomp(2)). It cannot be removed.
///
/// # Errors
/// `EACCES` without no_new_privs, `EINVAL` if the kernel refuses the filter, or `ENOSYS`.
pub fn set_seccomp_filter(filter: &[libc::sock_filter]) -> io::Result<()> {
    let program = program(filter);
    let operation = libc::SECCOMP_SET_MODE_FILTER;
    // SAFETY: the kernel reads `len` instructions, and writes none.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, operation, 0, &raw const program) };
    check(result as c_int).map(drop)
}
