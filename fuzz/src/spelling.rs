//! Formats parsed rules as a script for iptables-restore.

use std::ops::RangeInclusive;

use tproxy_pod::rules::rule::{AddressOf, Match, PortOf, Protocol, Ranges, Rule, Target, Test};
use tproxy_pod::rules::script::Script;
use tproxy_pod::rules::template::Line;
use tproxy_pod::selectors::{Cidr, Family};

use crate::packet::address;

/// Most lines of a script: lists of both addresses multiply.
const LINES: usize = 3000;

/// Lines of a script; `None` if they are too many.
pub fn lines(script: &Script) -> Option<Vec<Line>> {
    let declared = script
        .user_chains()
        .enumerate()
        .map(|(nth, chain)| match nth % 2 {
            0 => format!(":{} - [1:2]", chain.name),
            _ => format!("-N {}", quoted(&chain.name)),
        });
    let for_the_other = match script.family {
        Family::V4 => "-6 what it says",
        Family::V6 => "-4 what it says",
    };
    let first = ["* mangle", ":INPUT ACCEPT [0:0]", for_the_other].map(str::to_owned);
    let mut texts: Vec<String> = first.into_iter().chain(declared).collect();
    for chain in &script.chains {
        for rule in &chain.rules {
            texts.extend(rule_lines(&chain.name, rule, script.family));
            if texts.len() > LINES {
                return None;
            }
        }
    }
    texts.push("COMMIT".to_owned());
    let number = |(number, text)| Line { number, text };
    Some((1..).zip(texts).map(number).collect())
}

/// Lines of one rule: long lists need several.
fn rule_lines(chain: &str, rule: &Rule, family: Family) -> Vec<String> {
    let mut parts: Vec<(usize, Vec<String>)> = Vec::new();
    parts.extend(rule.matches.iter().map(|it| spellings(it, family)));
    // The protocol comes first.
    parts.sort_by_key(|(order, _)| *order);
    let mut lines = vec![format!("-A {chain}")];
    for (_, spellings) in parts {
        let with = |line: &String| {
            let with = |spelling: &String| format!("{line} {spelling}");
            spellings.iter().map(with).collect::<Vec<_>>()
        };
        lines = lines.iter().flat_map(with).take(LINES + 1).collect();
    }
    let target = rule.target.as_ref().map(target).unwrap_or_default();
    let counted = |line: &String| format!("[3:180] {line}{target}");
    lines.iter().map(counted).collect()
}

/// How a test is written, in one of several lines each, and its position in them.
fn spellings(it: &Match, family: Family) -> (usize, Vec<String>) {
    let (order, module, options) = match &it.test {
        Test::Protocol(Protocol::Tcp) => (0, "", vec!["-p TCP".to_owned()]),
        Test::Protocol(Protocol::Udp) => (0, "", vec!["-p 17".to_owned()]),
        Test::Protocol(Protocol::Icmp) => (0, "", vec!["-p 1".to_owned()]),
        Test::Protocol(Protocol::Icmpv6) => (0, "", vec!["-p IPv6-ICMP".to_owned()]),
        Test::Ports(of, ranges) => (2, "-m multiport ", multiport(*of, ranges, it.negated)),
        Test::TcpFlags { mask, set } => {
            let (mask, set) = (flags(*mask), flags(*set));
            (2, "-m tcp ", vec![format!("--tcp-flags {mask} {set}")])
        }
        Test::Mark(mark) => (2, "-m mark ", vec![format!("--mark {mark}")]),
        // Behind the last -m mark, which would get the option otherwise.
        Test::ConnectionMark(mark) => (3, "-m connmark ", vec![format!("--mark {mark}")]),
        Test::Local(AddressOf::Source) => (2, "-m addrtype ", vec!["--src-type LOCAL".to_owned()]),
        Test::Local(_) => (2, "-m addrtype ", vec!["--dst-type LOCAL".to_owned()]),
        Test::Interface { name, prefix } => {
            let plus = if *prefix { "+" } else { "" };
            let name = quoted(&format!("{name}{plus}"));
            (2, "", vec![format!("-i {name}")])
        }
        Test::Address(of, ranges) => (2, "", addresses(*of, ranges, family)),
        Test::Handshake => panic!("no script has this test"),
        Test::Socket {
            transparent,
            with_wildcards,
        } => {
            let transparent = if *transparent { " --transparent" } else { "" };
            let with_wildcards = if *with_wildcards { " --nowildcard" } else { "" };
            (
                2,
                "-m socket",
                vec![format!("{transparent}{with_wildcards}")],
            )
        }
    };
    let not = if it.negated { "! " } else { "" };
    let spelled = |option: &String| format!("{module}{not}{option}");
    (order, options.iter().map(spelled).collect())
}

fn addresses(of: AddressOf, ranges: &Ranges, family: Family) -> Vec<String> {
    let name = match of {
        AddressOf::Source => "-s",
        AddressOf::Destination => "-d",
    };
    let blocks: Vec<String> = ranges.iter().flat_map(|it| blocks(it, family)).collect();
    // 23 IPv6 blocks of 43 characters, with commas, are a word of 1011 characters.
    let lists = blocks.chunks(23);
    lists
        .map(|some| format!("{name} {}", some.join(",")))
        .collect()
}

fn multiport(of: PortOf, ranges: &Ranges, negated: bool) -> Vec<String> {
    let name = match of {
        PortOf::Source => "--sports",
        PortOf::Destination => "--dports",
        PortOf::Either => "--ports",
    };
    let all: Vec<String> = ranges.iter().map(ports).collect();
    // A list that may not be split came from one with 15 places.
    let is_one = of == PortOf::Either || negated;
    let lists = all.chunks(if is_one { 15 } else { 7 });
    lists
        .map(|some| format!("{name} {}", some.join(",")))
        .collect()
}

fn ports(range: &RangeInclusive<u128>) -> String {
    match range.start() == range.end() {
        true => range.start().to_string(),
        false => format!("{}:{}", range.start(), range.end()),
    }
}

fn flags(bits: u8) -> String {
    let names = ["FIN", "SYN", "RST", "PSH", "ACK", "URG"];
    let set = names
        .iter()
        .enumerate()
        .filter(|(bit, _)| bits >> bit & 1 == 1);
    let set: Vec<&str> = set.map(|(_, name)| *name).collect();
    if set.is_empty() {
        "NONE".to_owned()
    } else {
        set.join(",")
    }
}

/// A word in quotes.
fn quoted(word: &str) -> String {
    format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\""))
}

/// The largest blocks that make up a range.
fn blocks(range: &RangeInclusive<u128>, family: Family) -> Vec<String> {
    let ones = |bits: u8| u128::MAX.checked_shr(128 - u32::from(bits)).unwrap_or(0);
    let mut blocks = Vec::new();
    let mut start = *range.start();
    loop {
        let fits = |bits: &u8| start & ones(*bits) == 0 && start | ones(*bits) <= *range.end();
        let bits = (0..=family.address_bits()).rev().find(fits).unwrap_or(0);
        let prefix = family.address_bits() - bits;
        let block = format!("{}/{prefix}", address(family, start));
        assert!(block.parse::<Cidr>().is_ok(), "{block}");
        blocks.push(block);
        match start | ones(bits) {
            last if last >= *range.end() => return blocks,
            last => start = last + 1,
        }
    }
}

fn target(target: &Target) -> String {
    match target {
        Target::Accept => " -j ACCEPT".to_owned(),
        Target::Drop => " -j DROP".to_owned(),
        Target::Return => " -j RETURN".to_owned(),
        Target::Mark(mark) => format!(" -j MARK --set-xmark {mark}"),
        Target::ConnectionMark(mark) => format!(" -j CONNMARK --set-xmark {mark}"),
        Target::Tproxy {
            address,
            port,
            mark,
        } => {
            let on_ip = address.map(|address| format!(" --on-ip {address}"));
            let on_ip = on_ip.unwrap_or_default();
            format!(" -j TPROXY --on-port {port}{on_ip} --tproxy-mark {mark}")
        }
        Target::Jump(chain) => format!(" -j {chain}"),
        Target::Release => panic!("no script has this target"),
    }
}
