//! SYNs of more connections than the rules can remember: clients are captured all the same.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::str::FromStr;
use std::thread;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
};

use crate::lab::script::ScriptFile;
use crate::lab::{Lab, Namespace, POD, wait_within};

/// An address without a Pod
const ABSENT: &str = "10.244.77.77:8180";

/// Connections in the flood: the set has space for 262,144
const FLOOD: u32 = 270_000;

/// Threads that send it
const THREADS: usize = 6;

/// TPROXY takes SYNs and accepts them, in whatever chain it stands; those that it does not accept are dropped.
const SCRIPT: &str = "*mangle
:TPROXY-POD - [0:0]
-A PREROUTING -d ${CIDRS} -p tcp --dport 8180 -j TPROXY-POD
-A PREROUTING -d ${CIDRS} -p tcp --dport 8180 --syn -j DROP
-A TPROXY-POD -p tcp --syn -j TPROXY --on-ip ${ON_IP} --on-port ${ON_PORT} --tproxy-mark ${MARK}
-A TPROXY-POD -p tcp --syn -j DROP
-A TPROXY-POD -p tcp -m socket --transparent -j MARK --set-xmark ${MARK}
COMMIT
";

/// A SYN to the Pod's port 8180, from port and address of the sender's number. Its checksum is wrong: behind the
/// rules, which do not read it, the kernel drops the packet, so that the listener's queue stays empty.
fn syn(sender: u32) -> [u8; 40] {
    let [_, host, port @ ..] = sender.to_be_bytes();
    let mut packet = [0; 40];
    packet[0] = 0x45;
    packet[8] = 64;
    packet[9] = libc::IPPROTO_TCP as u8;
    packet[12..16].copy_from_slice(&[198, 51, 100, host]);
    packet[16..20].copy_from_slice(&[10, 244, 0, 5]);
    packet[20..22].copy_from_slice(&port);
    packet[22..24].copy_from_slice(&8180u16.to_be_bytes());
    packet[32] = 0x50;
    packet[33] = 0x02;
    packet
}

/// Sends the SYNs within the 10 s for which they are remembered, by several threads, so that they get their share of a
/// busy machine. The kernel fills in the checksum of the IP header (raw(7)).
fn flood(client: &Namespace) {
    let send = |first| {
        let (kind, flag) = (SockType::Raw, SockFlag::SOCK_CLOEXEC);
        let raw = socket(AddressFamily::Inet, kind, flag, SockProtocol::Raw).unwrap();
        let pod = SockaddrIn::from_str(POD).unwrap();
        for sender in (first..FLOOD).step_by(THREADS) {
            sendto(raw.as_raw_fd(), &syn(sender), &pod, MsgFlags::empty()).unwrap();
        }
    };
    thread::scope(|scope| {
        for first in 0..THREADS as u32 {
            scope.spawn(move || client.enter(|| send(first)));
        }
    });
}

/// What a client receives until the server closes.
fn ask(client: &Namespace, address: &str) -> std::io::Result<String> {
    let mut connection = client.connect(address)?;
    connection.write_all(b"GET / HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Whether a client is not remembered: its handshake is by cookie, and the Pod refuses its next packet.
fn is_full(lab: &Lab) -> bool {
    lab.node.sysctl("net.ipv4.tcp_syncookies", "2");
    let answer = ask(&lab.client, POD);
    let refused = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
    match &answer {
        Err(error) => assert!(refused.contains(&error.kind()), "{error}"),
        Ok(text) => assert!(text.contains("Request received from "), "{text}"),
    }
    answer.is_err()
}

/// The set is still full after the clients have come, so that it was before. A SYN that is dropped is retransmitted
/// until the set has space, and then it is not full.
#[test]
fn a_full_set_costs_no_syn_its_capture() {
    let lab = Lab::new();
    lab.pod.serve(8180);
    let script = ScriptFile::new(SCRIPT);
    let _daemon = lab.start(&["--rules", script.path()]);
    let time = Duration::from_secs(30);
    wait_within(time, "the set stays full while clients come", || {
        flood(&lab.client);
        for cookies in ["1", "0"] {
            lab.node.sysctl("net.ipv4.tcp_syncookies", cookies);
            for address in [POD, ABSENT] {
                let answer = ask(&lab.client, address).unwrap();
                assert!(answer.contains("Request received from "), "{answer}");
            }
        }
        is_full(&lab)
    });
}
