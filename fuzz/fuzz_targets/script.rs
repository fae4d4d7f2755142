//! An accepted script means the same when it is printed and read again, when it is written anew from its parsed
//! rules, and when it is compiled.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tproxy_pod::netlink::message::{Message, attributes, messages};
use tproxy_pod::nftables::compile::compile;
use tproxy_pod::rules::error::ScriptError;
use tproxy_pod::rules::reach;
use tproxy_pod::rules::rule::{Protocol, Target, merge_adjacent, split_lists};
use tproxy_pod::rules::script::{Listing, Script};
use tproxy_pod::rules::template::{Line, Values, render, text};
use tproxy_pod::selectors::{Cidr, Family, Mark, Marks, PortRange, list};
use tproxy_pod_fuzz::nft::Machine;
use tproxy_pod_fuzz::{iptables, packet, spelling};

/// Mark of packets to the listener.
const SELECTOR: Mark = Mark { value: 1, mask: 1 };

fuzz_target!(|input: &[u8]| {
    let Some((choice, template)) = input.split_first() else {
        return;
    };
    let family = Family::ALL[usize::from(choice % 2)];
    let values = values(family, choice / 2 % 8);
    let template = String::from_utf8_lossy(template);
    let Ok(lines) = render(&template, &values) else {
        return;
    };
    let read = parse(&lines, family);
    let printed = render(&text(&lines), &values).unwrap();
    let Ok(script) = read else {
        assert!(parse(&printed, family).is_err());
        return;
    };
    assert_eq!(parse(&printed, family), Ok(script.clone()));
    assert_marked_for_the_listener(&lines, &script, &values);
    assert_same_when_compiled(&script);
    let loaded = script.clone().with_handshakes();
    assert_same_when_compiled(&loaded);
    assert_same_when_compiled(&loaded.draining("0x2/0x2".parse().ok()));
    assert_same_when_joined(&script);
    if let Some(lines) = spelling::lines(&script) {
        let again = parse(&lines, family).unwrap_or_else(|error| {
            panic!("{error} in\n{}", text(&lines));
        });
        for packet in packet::at_the_edges(&script) {
            let fates = [&script, &again].map(|script| iptables::fate(script, &packet, SELECTOR));
            if let [Some(first), Some(second)] = fates {
                assert_eq!(first, second, "{packet:?} in\n{}", text(&lines));
            }
        }
    }
});

fn parse(lines: &[Line], family: Family) -> Result<Script, ScriptError> {
    Listing::parse(lines, family).map(Listing::into_script)
}

/// In a script that passes the check, packets to the listener have its mark, and some rule leads there.
fn assert_marked_for_the_listener(lines: &[Line], script: &Script, values: &Values) {
    let listing = Listing::parse(lines, script.family).unwrap();
    if reach::check(&listing, values).is_err() {
        return;
    }
    let to_listener = Some((Some(values.on_ip), values.on_port));
    for packet in packet::at_the_edges(script) {
        let fate = iptables::fate(script, &packet, SELECTOR);
        if let Some(fate) = fate.filter(|fate| fate.listener == to_listener)
            && packet.protocol == Protocol::Tcp
        {
            assert_eq!(fate.mark & SELECTOR.mask, SELECTOR.value, "{packet:?}");
        }
    }
    let chains = script.chains.iter();
    let mut targets = chains.flat_map(|chain| chain.rules.iter().map(|rule| &rule.target));
    let leads = targets.any(|target| match target {
        Some(Target::Tproxy { address, port, .. }) => Some((*address, *port)) == to_listener,
        _ => false,
    });
    assert!(leads, "{script:?}");
}

/// Lists that fit into a line, or do not.
fn values(family: Family, choice: u8) -> Values {
    let few = match family {
        Family::V4 => "10.244.0.0/16,10.1.2.0/24",
        Family::V6 => "fd00:10:244::/56",
    };
    let mut cidrs: Vec<Cidr> = list(few, str::parse).unwrap();
    let mut dports: Vec<PortRange> = list("8180,9000:9100", str::parse).unwrap();
    if choice & 1 == 1 {
        let many = (0..200).map(|number| match family {
            Family::V4 => format!("172.16.{number}.128/25"),
            Family::V6 => format!("fd00:{number}:1111:2222:3333:4444:5555:6666/128"),
        });
        cidrs.extend(many.map(|cidr| cidr.parse::<Cidr>().unwrap()));
    }
    if choice & 2 == 2 {
        let many = (1..20).map(|port| PortRange {
            low: 2 * port,
            high: 2 * port,
        });
        dports.extend(many);
    }
    Values {
        cidrs,
        dports,
        on_ip: family.loopback(),
        on_port: 1,
        marks: Marks {
            received: SELECTOR,
            sent: Some(Mark { value: 2, mask: 2 }).filter(|_| choice & 4 == 4),
        },
    }
}

/// Joins rules that occur twice, with their lists split; asserts the same meaning.
fn assert_same_when_joined(script: &Script) {
    let (mut twice, mut joined) = (script.clone(), script.clone());
    for (twice, joined) in twice.chains.iter_mut().zip(&mut joined.chains) {
        let rules = twice.rules.drain(..).flat_map(split_lists);
        twice.rules = rules.flat_map(|rule| [rule.clone(), rule]).collect();
        joined.rules = merge_adjacent(twice.rules.clone());
    }
    for packet in packet::at_the_edges(script) {
        let fates = [&twice, &joined].map(|script| iptables::fate(script, &packet, SELECTOR));
        if let [Some(first), Some(second)] = fates {
            assert_eq!(first, second, "{packet:?} in {twice:?}");
        }
    }
}

fn assert_same_when_compiled(script: &Script) {
    let ruleset = compile(std::slice::from_ref(script), SELECTOR);
    let machine = Machine::new(&ruleset);
    for packet in packet::at_the_edges(script) {
        let fates = (
            iptables::fate(script, &packet, SELECTOR),
            machine.fate(&packet),
        );
        if let (Some(first), Some(second)) = fates {
            assert_eq!(first, second, "{packet:?} in {script:?}");
        }
    }
    for rule in &ruleset.rules {
        let mut message = Message::new(1, 0, &[0; 4]);
        message.nest(4, |list| {
            rule.expressions
                .iter()
                .for_each(|step| step.write(list, &mut 0));
        });
        let bytes = message.to_bytes(1);
        let written = messages(&bytes).next().unwrap();
        let (_, list) = attributes(&written.payload[4..]).next().unwrap();
        assert!(attributes(list).count() >= rule.expressions.len());
    }
}
