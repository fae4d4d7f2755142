//! An accepted command line means the same when it is formatted again, in either form. The bundled script
//! captures exactly what the options name.

#![no_main]

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use libfuzzer_sys::fuzz_target;
use tproxy_pod::nftables::compile::compile;
use tproxy_pod::options::{Command, Options, parse};
use tproxy_pod::rules::reach;
use tproxy_pod::rules::rule::Protocol;
use tproxy_pod::rules::script::Listing;
use tproxy_pod::rules::template::{BUNDLED, Values, render};
use tproxy_pod::selectors::{Cidr, Family, join};
use tproxy_pod_fuzz::iptables;
use tproxy_pod_fuzz::nft::Machine;
use tproxy_pod_fuzz::packet::{self, Packet};

fuzz_target!(|input: &[u8]| {
    let words = input.split(|byte| *byte == b'\n');
    let command = match parse(words.map(|word| OsString::from_vec(word.to_vec()))) {
        Err(error) => return assert!(!error.to_string().is_empty()),
        Ok(command) => command,
    };
    let (options, print) = match &command {
        Command::Run(options) | Command::Check(options) => (options, None),
        Command::PrintRules(options, family) => (options, Some(*family)),
        Command::Help | Command::Version => return,
    };
    for short in [true, false] {
        let mut words = formatted(options, print, short);
        if let Command::Check(_) = command {
            words.push("--check".into());
        }
        assert_eq!(parse(words).as_ref(), Ok(&command));
    }
    assert!((1..=65_535).contains(&options.max_connections) && options.port > 0);
    for mark in options.marks.all() {
        assert!(mark.value != 0 && mark.value & !mark.mask == 0);
    }
    for family in options.families() {
        assert_captures(options, family);
    }
});

/// The command line with every option: in short form, followed by its value, or in long form, with `=`.
fn formatted(options: &Options, print: Option<Family>, short: bool) -> Vec<OsString> {
    let family = print.map(|family| match family {
        Family::V4 => "v4",
        Family::V6 => "v6",
    });
    let pairs = [
        ("-p", "--port", Some(options.port.to_string().into())),
        ("-c", "--cidr", Some(join(&options.cidrs).into())),
        ("-d", "--dport", Some(join(&options.dports).into())),
        (
            "--mark",
            "--mark",
            Some(options.marks.received.to_string().into()),
        ),
        (
            "--node-mark",
            "--node-mark",
            options.marks.sent.map(|mark| mark.to_string().into()),
        ),
        ("--table", "--table", Some(options.table.to_string().into())),
        (
            "--rules",
            "--rules",
            options.rules.clone().map(OsString::from),
        ),
        ("--print-rules", "--print-rules", family.map(OsString::from)),
        (
            "--max-connections",
            "--max-connections",
            Some(options.max_connections.to_string().into()),
        ),
    ];
    let mut words = Vec::new();
    words.extend(options.marks.sent.map(|_| OsString::from("--from-node")));
    for (short_name, name, value) in pairs {
        match value {
            Some(value) if short => words.extend([short_name.into(), value]),
            Some(value) => words.push([OsString::from(name), value].join("=".as_ref())),
            None => {}
        }
    }
    words
}

/// Asserts, at the edges of ranges, that the script of a family captures exactly what the options name.
fn assert_captures(options: &Options, family: Family) {
    let values = Values {
        cidrs: options.cidrs_of(family).collect(),
        dports: options.dports.clone(),
        on_ip: family.loopback(),
        on_port: options.port,
        marks: options.marks,
    };
    let lines = render(BUNDLED, &values).unwrap();
    let listing = Listing::parse(&lines, family).unwrap();
    assert_eq!(reach::check(&listing, &values), Ok(()));
    let script = listing.into_script();
    let selector = options.marks.received;
    let ruleset = compile(std::slice::from_ref(&script), selector);
    let machine = Machine::new(&ruleset);
    for packet in packet::at_the_edges(&script) {
        let fate = iptables::fate(&script, &packet, selector).unwrap();
        assert_eq!(machine.fate(&packet), Some(fate.clone()));
        let is_captured = is_named(options, &packet) && !packet.is_local[1];
        let handed = is_captured && !packet.is_sent && is_syn(&packet) && packet.has_listener;
        let listener = handed.then_some((Some(family.loopback()), options.port));
        assert_eq!(fate.listener, listener, "{packet:?}");
        assert!(fate.accepted);
        if let Some(mark) = options.marks.sent.filter(|_| packet.is_sent) {
            let opens = is_captured && is_syn(&packet) && packet.connection_mark.is_some();
            assert!(!opens || fate.mark & mark.mask == mark.value, "{packet:?}");
        }
    }
}

fn is_named(options: &Options, packet: &Packet) -> bool {
    let (bits, to) = (packet.family.address_bits(), packet.addresses[1]);
    let holds = |cidr: Cidr| {
        let free = u32::from(bits - cidr.prefix());
        let network = packet::number(cidr.network());
        network.checked_shr(free).unwrap_or(0) == to.checked_shr(free).unwrap_or(0)
    };
    let port = packet.ports[1];
    options.cidrs_of(packet.family).any(holds)
        && options
            .dports
            .iter()
            .any(|ports| ports.low <= port && port <= ports.high)
}

fn is_syn(packet: &Packet) -> bool {
    packet.protocol == Protocol::Tcp && packet.flags & 0x17 == 0x02
}
