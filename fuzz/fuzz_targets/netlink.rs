//! Parsing arbitrary bytes as netlink messages terminates and stays within the bytes. The request for a parsed
//! rule or route parses as the same entry. A written message parses as what was written.

#![no_main]

use std::ops::Range;
use std::sync::LazyLock;

use libfuzzer_sys::arbitrary::{Arbitrary, Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use tproxy_pod::netlink::message::{
    Message, ReceivedMessage, attributes, messages, read_acknowledgement,
};
use tproxy_pod::nftables::table::read_owner;
use tproxy_pod::routing::bridges::{read_bridge, read_port, read_subnet};
use tproxy_pod::routing::entry::Entry;
use tproxy_pod::routing::installed::{InstalledEntry, read_route, read_rule};
use tproxy_pod::routing::monitor::{affects_devices, affects_routing};
use tproxy_pod::routing::node_routes::{may_lead_into, read_node_route};
use tproxy_pod::routing::own_addresses::read_local_route;
use tproxy_pod::routing::policy::Routing;
use tproxy_pod::routing::sock_diag::read_orphan;
use tproxy_pod::selectors::{Cidr, Family, Mark, Marks, PortRange};

const TABLE: u32 = 100;

static CIDRS: LazyLock<[Cidr; 2]> =
    LazyLock::new(|| ["10.244.0.0/16", "fd00:10:244::/56"].map(|cidr| cidr.parse().unwrap()));

/// Has a socket, and sends nothing here.
static ROUTING: LazyLock<Routing> = LazyLock::new(|| {
    let marks = Marks {
        received: Mark { value: 1, mask: 1 },
        sent: Some(Mark { value: 2, mask: 2 }),
    };
    Routing::new(&*CIDRS, marks, TABLE).unwrap()
});

fuzz_target!(|input: &[u8]| {
    let mut end = 0;
    for message in messages(input) {
        end = behind(input, message.payload, end);
        read(message);
    }
    if let Ok(puts) = <Vec<Put>>::arbitrary(&mut Unstructured::new(input)) {
        assert_reads_back(&puts);
    }
});

/// The end of `part`, a slice of `whole` after its first `end` bytes and a header.
fn behind(whole: &[u8], part: &[u8], end: usize) -> usize {
    let Range { start, end: last } = whole.as_ptr_range();
    let bounds = part.as_ptr_range();
    assert!(start <= bounds.start && bounds.end <= last, "it is inside");
    let offset = bounds.start as usize - start as usize;
    assert!(offset >= end + 4, "a header stands in front of it");
    offset + part.len()
}

/// Parses a message as every type.
fn read(message: ReceivedMessage<'_>) {
    let mut end = 0;
    for (_, value) in attributes(message.payload) {
        end = behind(message.payload, value, end);
    }
    if let Err(refusal) = read_acknowledgement(message, 1) {
        assert!(refusal.errno != 0);
    }
    let _ = (
        affects_routing(&ROUTING, message),
        read_owner(message.payload),
    );
    let index = message.payload.get(4..8);
    if let Some((port, _)) = read_port(message.payload) {
        assert_eq!(index, Some(&port.to_ne_bytes()[..]));
    }
    if let Some((device, _)) = read_subnet(message.payload) {
        assert_eq!(index, Some(&device.to_ne_bytes()[..]));
    }
    if let Some(bridge) = read_bridge(message.payload) {
        assert_eq!(index, Some(&bridge.index.to_ne_bytes()[..]));
    }
    let _ = affects_devices(message);
    if let Some(route) = read_node_route(TABLE, message.payload) {
        assert!(route.leads_into(route.destination) || route.destination.prefix() == 0);
    }
    if let Some(own) = read_local_route(message.payload) {
        assert_eq!(message.payload[0], own.family().number());
        assert_eq!(message.payload[1], own.prefix());
    }
    if may_lead_into(&*CIDRS, message) {
        assert_eq!(message.kind, libc::RTM_NEWROUTE);
    }
    if let Some(found) = read_rule(message.payload) {
        assert_request_parses_as(found);
    }
    if let Some(found) = read_route(TABLE, message.payload) {
        assert_request_parses_as(found);
    }
    for family in Family::ALL {
        socket(family, message.payload);
    }
}

/// Asserts that the request that adds an entry parses as that entry, with the program's protocol number.
fn assert_request_parses_as(found: InstalledEntry) {
    if !found.is_exact {
        return;
    }
    let own = InstalledEntry {
        is_own: true,
        priority: found.entry.priority(),
        ..found
    };
    let bytes = found.entry.add_request().to_bytes(7);
    let [message] = messages(&bytes).collect::<Vec<_>>()[..] else {
        panic!("one message");
    };
    let again = match found.entry {
        Entry::AnyIpRoute { .. } => read_route(TABLE, message.payload),
        _ => read_rule(message.payload),
    };
    assert_eq!(again, Some(own));
}

/// Asserts that only orphaned sockets with a captured address and port are parsed.
fn socket(family: Family, payload: &[u8]) {
    let port = PortRange {
        low: 8180,
        high: 8180,
    };
    if let Some(id) = read_orphan(family, payload, &*CIDRS, &[port]) {
        assert_eq!(id[..2], 8180u16.to_be_bytes());
        assert!(matches!(
            (family, &id[4..11]),
            (Family::V4, [10, 244, ..]) | (Family::V6, [0xfd, 0, 0, 0x10, 2, 0x44, 0])
        ));
        assert_eq!(payload[68..72], [0; 4]);
    }
}

/// An element of a message.
#[derive(Debug)]
enum Put {
    Bytes(u16, Vec<u8>),
    Text(u16, String),
    Be32(u16, u32),
    Ne32(u16, u32),
    Nest(u16, Vec<Put>),
}

impl<'a> Arbitrary<'a> for Put {
    fn arbitrary(input: &mut Unstructured<'a>) -> Result<Put> {
        let kind = input.int_in_range(0..=libc::NLA_TYPE_MASK as u16)?;
        Ok(match input.int_in_range(0..=4)? {
            0 => Put::Bytes(kind, input.arbitrary()?),
            1 => Put::Text(kind, input.arbitrary()?),
            2 => Put::Be32(kind, input.arbitrary()?),
            3 => Put::Ne32(kind, input.arbitrary()?),
            _ => Put::Nest(kind, input.arbitrary()?),
        })
    }
}

fn assert_reads_back(puts: &[Put]) {
    let mut message = Message::new(7, libc::NLM_F_CREATE, &[1, 2, 3]);
    puts.iter().for_each(|put| write(&mut message, put));
    message.request_ack();
    let mut bytes = message.to_bytes(9);
    bytes.extend(Message::new(8, 0, &[]).to_bytes(10));
    let [first, second] = messages(&bytes).collect::<Vec<_>>()[..] else {
        panic!("two messages");
    };
    assert_eq!((first.kind, first.sequence), (7, 9));
    assert_eq!((second.kind, second.sequence), (8, 10));
    assert_eq!(second.payload, []);
    compare(&first.payload[4..], puts);
}

fn write(message: &mut Message, put: &Put) {
    match put {
        Put::Bytes(kind, bytes) => message.put(*kind, bytes),
        Put::Text(kind, text) => message.put_text(*kind, text),
        Put::Be32(kind, number) => message.put_be32(*kind, *number),
        Put::Ne32(kind, number) => message.put_ne32(*kind, *number),
        Put::Nest(kind, puts) => message.nest(*kind, |inner| {
            puts.iter().for_each(|put| write(inner, put));
        }),
    };
}

fn compare(bytes: &[u8], puts: &[Put]) {
    let read: Vec<(u16, &[u8])> = attributes(bytes).collect();
    assert_eq!(read.len(), puts.len());
    for ((kind, value), put) in read.into_iter().zip(puts) {
        match put {
            Put::Bytes(of, bytes) => assert_eq!((kind, value), (*of, bytes.as_slice())),
            Put::Text(of, text) => {
                assert_eq!(
                    (kind, value),
                    (*of, [text.as_bytes(), &[0]].concat().as_slice())
                );
            }
            Put::Be32(of, number) => assert_eq!((kind, value), (*of, &number.to_be_bytes()[..])),
            Put::Ne32(of, number) => assert_eq!((kind, value), (*of, &number.to_ne_bytes()[..])),
            Put::Nest(of, inner) => {
                assert_eq!(kind, *of);
                compare(value, inner);
            }
        }
    }
}
