//! The arm64 binary, under qemu's user-mode emulation: its output equals that of the native binary.
//! scripts/test.sh also runs the unit tests and tests/http/reading.rs there.

use std::process::{Command, Output};

use crate::lab::built::binary;

/// Outputs of the emulated and the native program for these arguments.
fn both(arguments: &[&str]) -> [Output; 2] {
    let mut emulated = Command::new("qemu-aarch64-static");
    emulated.arg(binary("arm64"));
    [emulated, Command::new(env!("CARGO_BIN_EXE_tproxy-pod"))].map(|mut command| {
        command.args(arguments).output().unwrap_or_else(|error| {
            panic!("{command:?}: {error}: run the tests with scripts/test.sh")
        })
    })
}

/// Asserts equal output, on stdout or stderr, and this exit status.
fn assert_equal(arguments: &[&str], status: i32) -> String {
    let [emulated, native] = both(arguments);
    assert_eq!(
        emulated.status.code(),
        Some(status),
        "{arguments:?}: {emulated:?}"
    );
    assert_eq!(emulated, native, "{arguments:?}");
    String::from_utf8([emulated.stdout, emulated.stderr].concat()).unwrap()
}

#[test]
fn it_is_a_static_arm64_program() {
    let file = Command::new("file").arg(binary("arm64")).output().unwrap();
    let kind = String::from_utf8(file.stdout).unwrap();
    for word in ["ARM aarch64", "statically linked", "stripped"] {
        assert!(
            kind.contains(word),
            "run the tests with scripts/test.sh: {kind}"
        );
    }
}

#[test]
fn it_says_its_version_and_its_options() {
    let version = format!("tproxy-pod {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(assert_equal(&["--version"], 0), version);
    assert_eq!(assert_equal(&["--help"], 0), tproxy_pod::options::HELP);
}

#[test]
fn it_prints_the_rules_of_both_families() {
    let cidrs = "10.244.0.0/16,fd00:10:244::/56";
    for (family, on_ip) in [("v4", "--on-ip 127.0.0.1"), ("v6", "--on-ip ::1")] {
        let ports = "80,8000:8999";
        let rules = assert_equal(
            &["--cidr", cidrs, "--dport", ports, "--print-rules", family],
            0,
        );
        assert!(rules.contains(on_ip) && rules.contains(ports), "{rules}");
    }
}

#[test]
fn it_refuses_wrong_options_and_scripts() {
    for (arguments, word) in [
        (&["--cidr", "10.244.0.0/33"][..], "10.244.0.0/33"),
        (&["--dport", "0"], "--dport"),
        (&["--mark", "0x0/0x1"], "--mark"),
        (&["--table", "255"], "--table"),
        (&["--max-connections", "many"], "many"),
        (&["--port", "1", "--port", "2"], "--port"),
        (&["--what"], "--what"),
        (
            &["--rules", "/dev/null", "--print-rules", "v4"],
            "/dev/null",
        ),
    ] {
        let words = assert_equal(arguments, 2);
        assert_eq!(words.lines().count(), 1, "{words}");
        assert!(words.contains(word), "{words}");
    }
}
