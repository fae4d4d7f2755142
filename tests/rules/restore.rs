//! The bundled script, from `--print-rules` to iptables-restore: with the program's routes and listener it
//! captures what the program's own loader captures.

use std::io::{Read, Write};

use crate::lab::http_client::REQUEST;
use crate::lab::script::{Loader, ScriptFile, restore};
use crate::lab::{CIDRS, Lab, Namespace, POD, POD6};

/// What answers a client at an address: `pod` or `captured`.
fn outcome(client: &Namespace, address: &str) -> &'static str {
    let answer = client.get(address, "/");
    match answer.contains("Request received from ") {
        true => "captured",
        false if answer.ends_with("pod") => "pod",
        false => panic!("{address}: {answer}"),
    }
}

#[test]
fn the_bundled_script_captures_the_same_by_both_loaders() {
    for loader in Loader::ALL {
        let lab = Lab::new();
        for port in [80, 8180, 8181] {
            lab.pod.serve(port);
        }
        lab.node.serve(8180);
        let _daemon = loader.load_bundled(&lab, &["--cidr", CIDRS]);
        for (address, expected) in [
            (POD, "captured"),
            (POD6, "captured"),
            ("10.244.77.9:8180", "captured"),
            ("[fd00:10:244:7::9]:8180", "captured"),
            ("10.244.0.5:80", "pod"),
            ("[fd00:10:244::5]:80", "pod"),
            ("10.244.0.5:8181", "pod"),
            ("[fd00:10:244::5]:8181", "pod"),
            ("192.0.2.1:8180", "pod"),
            ("[2001:db8:1::1]:8180", "pod"),
        ] {
            assert_eq!(
                outcome(&lab.client, address),
                expected,
                "{loader:?}: {address}"
            );
        }
    }
}

/// Before Linux 5.12 the program leaves the rules of OUTPUT out.
#[test]
fn what_the_node_sends_is_captured_the_same_by_both_loaders() {
    for loader in Loader::ALL {
        let lab = Lab::new();
        for port in [80, 8180] {
            lab.pod.serve(port);
        }
        lab.node.serve(8180);
        lab.node.ip("route add 10.244.77.0/24 via 10.244.0.5
             route add fd00:10:244:7::/64 via fd00:10:244::5");
        let mut open = [POD, POD6].map(|address| lab.node.http(address));
        let mut all_stay = || {
            for connection in &mut open {
                assert_eq!(connection.request(REQUEST).text(), "pod", "{loader:?}");
            }
        };
        all_stay();
        let options = ["--cidr", CIDRS, "--from-node", "--node-mark", "0x20/0x30"];
        let _daemon = loader.load_bundled(&lab, &options);
        for (address, expected) in [
            (POD, "captured"),
            (POD6, "captured"),
            ("10.244.77.9:8180", "captured"),
            ("[fd00:10:244:7::9]:8180", "captured"),
            ("10.244.0.5:80", "pod"),
            ("[fd00:10:244::5]:80", "pod"),
            // The node's own addresses
            ("10.244.0.1:8180", "pod"),
            ("[fd00:10:244::1]:8180", "pod"),
            ("192.0.2.1:8180", "pod"),
        ] {
            let answered = outcome(&lab.node, address);
            assert_eq!(answered, expected, "{loader:?}: {address}");
        }
        for address in [POD, POD6] {
            assert_eq!(outcome(&lab.client, address), "captured", "{loader:?}");
        }
        all_stay();
    }
}

#[test]
fn a_connection_to_the_pod_survives_both_loaders() {
    for loader in Loader::ALL {
        let lab = Lab::new();
        lab.pod.serve(8180);
        let mut streams = [POD, POD6].map(|address| lab.client.connect(address).unwrap());
        let mut ask = || {
            for stream in &mut streams {
                let expected = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\npod";
                let mut answer = vec![0; expected.len()];
                stream
                    .write_all(b"GET / HTTP/1.1\r\nHost: pod\r\n\r\n")
                    .unwrap();
                stream.read_exact(&mut answer).unwrap();
                assert_eq!(answer, expected, "{loader:?}");
            }
        };
        ask();
        let _daemon = loader.load_bundled(&lab, &["--cidr", CIDRS]);
        assert_eq!(outcome(&lab.client, POD), "captured", "{loader:?}");
        (0..5).for_each(|_| ask());
    }
}

#[test]
fn forty_ports_are_captured_the_same_by_both_loaders() {
    let ports: Vec<String> = (0..40).map(|it| (9000 + 2 * it).to_string()).collect();
    for loader in Loader::ALL {
        let lab = Lab::new();
        for port in [9001, 9029, 9079] {
            lab.pod.serve(port);
        }
        let _daemon = loader.load_bundled(&lab, &["--cidr", CIDRS, "--dport", &ports.join(",")]);
        for (port, expected) in [
            (9000, "captured"),
            (9028, "captured"),
            (9030, "captured"),
            (9078, "captured"),
            (9001, "pod"),
            (9029, "pod"),
            (9079, "pod"),
        ] {
            for address in [
                format!("10.244.0.5:{port}"),
                format!("[fd00:10:244::5]:{port}"),
            ] {
                assert_eq!(
                    outcome(&lab.client, &address),
                    expected,
                    "{loader:?}: {address}"
                );
            }
        }
    }
}

#[test]
fn a_hundred_blocks_are_captured_the_same_by_both_loaders() {
    let v4 = (0..100).map(|it| format!("10.{}.0.0/28", it + 20));
    let v6 = (0..100).map(|it| format!("fd00:{it:x}::/64"));
    let cidrs = v4.chain(v6).collect::<Vec<_>>().join(",");
    for loader in Loader::ALL {
        let lab = Lab::new();
        let beside = [
            "10.20.0.16",
            "10.119.0.16",
            "fd00:0:0:1::1",
            "fd00:63:0:1::1",
        ];
        for address in beside {
            lab.node.run(&format!("ip address add {address} dev lo"));
        }
        lab.node.serve(8180);
        let _daemon = loader.load_bundled(&lab, &["--cidr", &cidrs]);
        for (address, expected) in [
            ("10.20.0.0:8180", "captured"),
            ("10.93.0.15:8180", "captured"),
            ("10.119.0.15:8180", "captured"),
            ("[fd00::1]:8180", "captured"),
            ("[fd00:32::1]:8180", "captured"),
            ("[fd00:63::1]:8180", "captured"),
            ("10.20.0.16:8180", "pod"),
            ("10.119.0.16:8180", "pod"),
            ("[fd00:0:0:1::1]:8180", "pod"),
            ("[fd00:63:0:1::1]:8180", "pod"),
        ] {
            assert_eq!(
                outcome(&lab.client, address),
                expected,
                "{loader:?}: {address}"
            );
        }
    }
}

#[test]
fn long_lists_are_printed_as_lines_that_iptables_can_read() {
    let lab = Lab::new();
    let ports: Vec<String> = (0..40).map(|it| (9000 + 2 * it).to_string()).collect();
    let blocks: Vec<String> = (20..220).map(|it| format!("10.{it}.0.0/28")).collect();
    let options = format!("--cidr {} --dport {}", blocks.join(","), ports.join(","));
    let printed = lab.node.run(&format!(
        "{} {options} --print-rules v4",
        crate::lab::PROGRAM
    ));
    let lines: Vec<&str> = printed
        .lines()
        .filter(|line| line.contains(" --dports "))
        .collect();
    let mut pairs: Vec<String> = Vec::new();
    for line in lines {
        let words: Vec<&str> = line.split(' ').collect();
        let value =
            |option: &str| words[words.iter().position(|word| *word == option).unwrap() + 1];
        assert!(
            value("-d").len() <= 1023 && value("--dports").split(',').count() <= 15,
            "{line}"
        );
        let ports: Vec<&str> = value("--dports").split(',').collect();
        let blocks = value("-d").split(',');
        pairs.extend(
            blocks.flat_map(|block| ports.iter().map(move |port| format!("{block} {port}"))),
        );
    }
    let port_of = |block: &String| {
        ports
            .iter()
            .map(move |port| format!("{block} {port}"))
            .collect::<Vec<_>>()
    };
    let mut expected: Vec<String> = blocks.iter().flat_map(port_of).collect();
    pairs.sort();
    expected.sort();
    assert_eq!(pairs, expected, "every block with every port, once");
}

/// A family: its name for `--print-rules`, the command, the captured block, and the Pod.
const FAMILIES: [(&str, &str, &str, &str); 2] = [
    ("v4", "iptables", "10.244.0.0/16", "10.244.0.5"),
    ("v6", "ip6tables", "fd00:10:244::/56", "[fd00:10:244::5]"),
];

/// iptables-save adds comments, the empty built-in chains, policies, and counters to each line.
#[test]
fn the_output_of_iptables_save_captures_the_same() {
    let variants = [
        ("nft", ""),
        ("nft", " -c"),
        ("legacy", ""),
        ("legacy", " -c"),
    ];
    for ((variant, counters), (family, command, cidr, pod)) in variants
        .iter()
        .flat_map(|variant| FAMILIES.map(|family| (*variant, family)))
    {
        let lab = Lab::new();
        lab.pod.serve(8181);
        let options = ["--cidr", cidr, "--dport", "8180,9000:9100"];
        let command = format!("{command}-{variant}");
        restore(&lab, family, &options, &format!("{command}-restore"));
        let saved = lab.node.run(&format!("{command}-save -t mangle{counters}"));
        lab.node.run(&format!("{command} -t mangle -F"));
        assert!(saved.contains(":POSTROUTING ACCEPT ["), "{saved}");
        let counted = saved.contains("\n[0:0] -A ");
        assert_eq!(counted, !counters.is_empty(), "{saved}");
        let script = ScriptFile::new(&saved);
        let _daemon = lab.start(&[&options[..], &["--rules", script.path()]].concat());
        for (port, expected) in [(8180, "captured"), (9100, "captured"), (8181, "pod")] {
            let address = format!("{pod}:{port}");
            assert_eq!(
                outcome(&lab.client, &address),
                expected,
                "{address}\n{saved}"
            );
        }
    }
}
