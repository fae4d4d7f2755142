//! Duplicates a descriptor of another process, to act as an attacker in that process.

#![allow(unsafe_code)]

use std::fs;
use std::os::fd::FromRawFd;
use std::os::unix::net::UnixStream;

use nix::unistd::Pid;

/// The server's end of the control socket, its only UNIX socket.
pub fn control_socket(server: Pid) -> UnixStream {
    let sockets = fs::read_to_string(format!("/proc/{server}/net/unix")).unwrap();
    let inodes: Vec<&str> = sockets
        .lines()
        .filter_map(|line| line.split_whitespace().nth(6))
        .collect();
    let is_unix = |link: &str| inodes.iter().any(|it| link == format!("socket:[{it}]"));
    let found: Vec<i32> = fs::read_dir(format!("/proc/{server}/fd"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| fs::read_link(path).is_ok_and(|link| is_unix(link.to_str().unwrap())))
        .map(|path| path.file_name().unwrap().to_str().unwrap().parse().unwrap())
        .collect();
    assert_eq!(found.len(), 1, "{found:?}");
    duplicate(server, found[0])
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
