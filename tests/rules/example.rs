//! The example of docs/rules.md, made from the bundled script by the page's own command line.

use tproxy_pod::rules::template::BUNDLED;

use crate::lab::script::{ScriptFile, stderr};
use crate::lab::{CIDRS, Lab, Namespace, POD, POD6, PROGRAM};

const PAGE: &str = include_str!("../../docs/rules.md");

/// Addresses in the captured blocks that the client has.
const CLIENTS: [&str; 2] = ["10.244.9.9:8180", "[fd00:10:244:9::9]:8180"];

/// The script of the page for packets that come in by a device.
fn example(device: &str) -> ScriptFile {
    let mut lines = PAGE.lines().map(str::trim_start);
    let sed = lines.find_map(|line| line.strip_prefix("$ sed ")).unwrap();
    let (sed, file) = sed.rsplit_once(" >").unwrap();
    assert_eq!(file, "my.rules");
    let sed = format!("cd {} && sed {sed}", env!("CARGO_MANIFEST_DIR"));
    let output = Namespace::new().feed("sh -e", &sed);
    assert!(output.status.success(), "{}", stderr(&output));
    let script = String::from_utf8(output.stdout).unwrap();
    assert!(script.contains(" -i eth0 "), "{script}");
    ScriptFile::new(&script.replace(" -i eth0 ", &format!(" -i {device} ")))
}

/// A lab in which the Pod can ask the client at an address in the captured blocks.
fn lab() -> Lab {
    let lab = Lab::new();
    lab.client.ip("address add 10.244.9.9/32 dev lo
         address add fd00:10:244:9::9/128 dev lo nodad");
    lab.node.ip("route add 10.244.9.9/32 via 192.0.2.2
         route add fd00:10:244:9::9/128 via 2001:db8:1::2");
    lab.pod.serve(8180);
    lab.client.serve(8180);
    lab
}

#[test]
fn its_rules_are_printed_as_the_page_shows_them() {
    let (lab, script) = (Lab::new(), example("eth0"));
    let line = format!("{PROGRAM} --rules {} --print-rules v4", script.path());
    let printed = lab.node.run(&line);
    let code = PAGE.lines().filter_map(|line| line.strip_prefix("    "));
    let after = code.skip_while(|line| !line.contains("--print-rules v4"));
    let shown: Vec<&str> = after
        .skip_while(|line| *line != "*mangle")
        .take_while(|line| *line != "COMMIT")
        .collect();
    let printed: Vec<&str> = printed
        .lines()
        .skip_while(|line| *line != "*mangle")
        .take_while(|line| *line != "COMMIT")
        .collect();
    assert_eq!(printed, shown);
}

#[test]
fn it_captures_what_comes_in_by_its_device_and_leaves_the_node_and_other_devices_alone() {
    let (lab, script) = (lab(), example("client"));
    let mut daemon = lab.start(&["--cidr", CIDRS, "--rules", script.path()]);
    for address in [POD, POD6] {
        let answer = lab.client.get(address, "/");
        assert!(answer.contains("Request received from "), "{answer}");
    }
    let others = [POD, POD6].map(|address| (&lab.node, address));
    for (asking, address) in others.into_iter().chain(CLIENTS.map(|it| (&lab.pod, it))) {
        let answer = asking.get(address, "/");
        assert!(answer.ends_with("\r\n\r\npod"), "{address}: {answer}");
    }
    assert_eq!(daemon.stop(), Some(0));
}

/// With the bundled lines of OUTPUT, what the node sends would be lost: it comes in by lo.
#[test]
fn with_the_option_for_the_node_it_is_refused_with_output_and_without() {
    let lab = lab();
    let with_output = BUNDLED.replace("-A PREROUTING ", "-A PREROUTING -i client ");
    for (script, refusal) in [
        (example("client"), "expected the two OUTPUT lines"),
        (
            ScriptFile::new(&with_output),
            "line 13: \"MARK\": expected PREROUTING to capture it where it comes in, by lo",
        ),
    ] {
        let path = script.path();
        let mut daemon = lab.spawn(&["--cidr", CIDRS, "--from-node", "--rules", path]);
        let (status, log) = (daemon.wait().code(), daemon.log());
        assert_eq!(status, Some(2), "{log}");
        assert!(log.contains(refusal), "{log}");
    }
    assert_eq!(lab.remains(), [""; 0]);
    assert!(lab.node.get(POD, "/").ends_with("pod"));
}
