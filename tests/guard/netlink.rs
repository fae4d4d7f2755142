//! Netlink sockets whose receive buffer overflows.

use tproxy_pod::netlink::message::Message;
use tproxy_pod::netlink::socket::Socket;
use tproxy_pod::routing::sock_diag::{SOCKET_ID, SOCKETS_PER_REQUEST, TcpStates, destroy};
use tproxy_pod::selectors::Family;

#[test]
fn acknowledgements_that_were_lost_do_not_spoil_the_next_request() {
    let mut socket = Socket::open(libc::NETLINK_ROUTE).unwrap();
    let header = [libc::AF_INET as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let absent = Message::new(libc::RTM_DELRULE, libc::NLM_F_ACK, &header);
    let refused = socket.request(&vec![absent.clone(); 2000]).unwrap_err();
    assert_eq!(refused.errno, libc::ENOBUFS);
    let refused = socket.request(&[absent]).unwrap_err();
    assert_eq!(refused.errno, libc::ENOENT);
}

#[test]
fn a_request_whose_sockets_have_all_ended_says_so() {
    let mut socket = Socket::open(libc::NETLINK_SOCK_DIAG).unwrap();
    let ended = [[0; SOCKET_ID]; SOCKETS_PER_REQUEST];
    let refused = destroy(&mut socket, Family::V4, TcpStates::TIME_WAIT, &ended).unwrap_err();
    assert_eq!(refused.errno, libc::ENOENT);
}
