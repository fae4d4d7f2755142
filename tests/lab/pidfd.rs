//! Duplicates a descriptor of another process, to act as an attacker in that process.

#![allow(unsafe_code)]

use std::fs;
use std::os::fd::FromRawFd;
use std::os::unix::net::UnixStream;

use nix::unistd::Pid;

/// A process's end of the control socket, its only UNIX stream socket.
pub fn control_socket(process: Pid) -> UnixStream {
    let sockets = fs::read_to_string(format!("/proc/{process}/net/unix")).unwrap();
    // Columns: address, references, protocol, flags, type, state, inode (proc_pid_net(5)).
    let columns = sockets
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    let streams = columns.filter(|it| it[4] == "0001");
    let inodes: Vec<&str> = streams.map(|it| it[6]).collect();
    let is_unix = |link: &str| inodes.iter().any(|it| link == format!("socket:[{it}]"));
    let found: Vec<i32> = fs::read_dir(format!("/proc/{process}/fd"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| fs::read_link(path).is_ok_and(|link| is_unix(link.to_str().unwrap())))
        .map(|path| path.file_name().unwrap().to_str().unwrap().parse().unwrap())
        .collect();
    assert_eq!(found.len(), 1, "{found:?}");
    duplicate(process, found[0])
}

/// pidfd_open(2) and pidfd_getfd(2).
fn duplicate(process: Pid, descriptor: i32) -> UnixStream {
    // SAFETY: no pointers are passed; the results are new descriptors with no other owner.
    unsafe {
        let process = libc::syscall(libc::SYS_pidfd_open, process.as_raw(), 0);
        let duplicate = libc::syscall(libc::SYS_pidfd_getfd, process, descriptor, 0);
        assert!(duplicate >= 0, "{}", std::io::Error::last_os_error());
        libc::close(process as i32);
        UnixStream::from_raw_fd(duplicate as i32)
    }
}
