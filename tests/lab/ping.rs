//! Echo requests of ICMP and ICMPv6, from sockets that need no program (`IPPROTO_ICMP`, icmp(7)).

use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, connect, socket,
};

/// Type of an echo request of ICMP, and of ICMPv6; the replies have the types 0 and 129
const ECHO: u8 = 8;
const ECHO6: u8 = 128;

/// Whether an address answers an echo request within a time, of the calling thread's namespace. The request is
/// sent again every 100 ms.
pub fn answers_ping(address: IpAddr, patience: Duration) -> bool {
    // Which groups may open such sockets.
    std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0").unwrap();
    let socket = ping_socket(address);
    socket
        .set_read_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    let kind = if address.is_ipv4() { ECHO } else { ECHO6 };
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        // An error that came back for the last request.
        let _ = socket.send(&[kind, 0, 0, 0, 0, 0, 0, 1]);
        let mut reply = [0; 8];
        if socket.recv(&mut reply).is_ok() && [0, ECHO6 + 1].contains(&reply[0]) {
            return true;
        }
    }
    false
}

/// A connected socket, on which a datagram is an ICMP message.
fn ping_socket(address: IpAddr) -> UdpSocket {
    let (family, protocol) = match address {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
    };
    let flags = SockFlag::SOCK_CLOEXEC;
    let ping = socket(family, SockType::Datagram, flags, protocol).unwrap();
    match address {
        IpAddr::V4(v4) => connect(
            ping.as_raw_fd(),
            &SockaddrIn::from(std::net::SocketAddrV4::new(v4, 0)),
        ),
        IpAddr::V6(v6) => connect(
            ping.as_raw_fd(),
            &SockaddrIn6::from(std::net::SocketAddrV6::new(v6, 0, 0, 0)),
        ),
    }
    .unwrap();
    UdpSocket::from(ping)
}
