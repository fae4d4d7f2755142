use super::*;

fn read(line: &str) -> Result<Command, String> {
    parse(line.split_whitespace().map(OsString::from)).map_err(|error| error.0)
}

fn options(line: &str) -> Options {
    match read(line) {
        Ok(Command::Run(options)) => options,
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn the_defaults_are_those_of_the_help_text() {
    let defaults = [
        ("-p", "1"),
        ("-c", "10.244.0.0/16"),
        ("-d", "8180"),
        ("--mark", "0x1/0x1"),
        ("--table", "100"),
        ("--max-connections", "1024"),
        ("--status", "200"),
        ("--delay", "0ms"),
        ("--log-format", "text"),
    ];
    let spelled = defaults.map(|(name, value)| format!("{name} {value}"));
    assert_eq!(options(""), options(&spelled.join(" ")));
    for (_, value) in defaults {
        assert!(HELP.contains(&format!("[{value}]")), "{value}");
    }
}

#[test]
fn values_follow_a_space_or_an_equals_sign() {
    let spaced = options("--port 7 --cidr 10.0.0.0/8,fd00::/8 --dport 80,90:99 --rules a=b");
    let joined = options("--port=7 --cidr=10.0.0.0/8,fd00::/8 --dport=80,90:99 --rules=a=b");
    assert_eq!(spaced, joined);
    assert_eq!(spaced.rules, Some("a=b".into()));
    assert!(spaced.families().eq([Family::V4, Family::V6]));
}

#[test]
fn a_wrong_value_is_refused_by_option_value_and_expectation() {
    for (line, expected) in [
        (
            "--cidr 10.244.0.0/33",
            "expected a prefix length from 0 to 32",
        ),
        (
            "--cidr 10.244.0.1/16",
            "expected no host bits: 10.244.0.0/16 is the block, 10.244.0.1/32 the single address",
        ),
        ("--dport 0", "expected a port from 1 to 65535"),
        ("--dport 70000", "expected a port from 1 to 65535"),
        (
            "--dport 9000:8000",
            "expected the lower port first, as in 8000:9000",
        ),
        ("--dport 0:8000", "expected ports from 1 to 65535"),
        ("--mark 0x2/0x1", "expected a value within its mask"),
        (
            "--mark 0/0",
            "expected a value that is not 0, which is what other packets carry",
        ),
        ("--mark 1", "expected VALUE/MASK, such as 0x1/0x1"),
        ("--node-mark 0x2/0x1", "expected a value within its mask"),
        ("--node-mark 0x2/0x2", "expected --from-node beside it"),
        (
            "--table 254",
            "expected a table other than default, main and local (253 to 255)",
        ),
        ("--port 65536", "expected a number from 1 to 65535"),
        ("--max-connections 0", "expected a number from 1 to 65535"),
        ("--print-rules v5", "expected v4 or v6"),
        ("--status 199", "expected a number from 200 to 599"),
        ("--status 600", "expected a number from 200 to 599"),
        ("--status 0200", "expected a number from 200 to 599"),
        (
            "--delay 61s",
            "expected a duration such as 250ms or 2s, at most 60s",
        ),
        (
            "--delay 250",
            "expected a duration such as 250ms or 2s, at most 60s",
        ),
        ("--log-format xml", "expected text or json"),
        (
            "--metrics :9180",
            "expected ADDRESS:PORT, such as 0.0.0.0:9180 or [::]:9180",
        ),
        (
            "--metrics 127.0.0.1:0",
            "expected ADDRESS:PORT, such as 0.0.0.0:9180 or [::]:9180",
        ),
        ("--verbose", "unknown option"),
        ("serve", "unexpected argument"),
        ("--port", "expected a value"),
    ] {
        assert_eq!(read(line), Err(format!("{line}: {expected}")));
    }
}

#[test]
fn options_that_cannot_stand_together_or_with_a_value_are_refused() {
    for (line, message) in [
        (
            "--print-rules v6",
            "--print-rules: expected a captured IPv6 block in --cidr 10.244.0.0/16",
        ),
        ("-p 1 --port 2", "--port 2: the option was given before"),
        ("--help=1", "--help 1: expected no value"),
        ("--check=1", "--check 1: expected no value"),
        ("--check --check", "--check: the option was given before"),
        ("--from-node=1", "--from-node 1: expected no value"),
        (
            "--from-node --from-node",
            "--from-node: the option was given before",
        ),
        (
            "--from-node --mark 0x6/0x6",
            "--node-mark 0x2/0x2: expected other bits than those of --mark 0x6/0x6",
        ),
        (
            "--from-node --node-mark 0x100/0x101",
            "--node-mark 0x100/0x101: expected other bits than those of --mark 0x1/0x1",
        ),
        (
            "--check --print-rules v4",
            "--check: expected no --print-rules beside it",
        ),
        ("--rules=", "--rules : expected a file"),
    ] {
        assert_eq!(read(line), Err(message.to_owned()), "{line}");
    }
}

#[test]
fn what_the_node_sends_has_a_mark_with_the_option_only() {
    assert_eq!(options("").marks.sent, None);
    let marks = options("--from-node").marks;
    assert_eq!(marks, options("--from-node --node-mark 0x2/0x2").marks);
    assert_eq!(marks.sent, Some(Mark { value: 2, mask: 2 }));
    let others = options("--mark 0x10/0x30 --node-mark 0x40/0xc0 --from-node");
    assert_eq!(others.marks.received.to_string(), "0x10/0x30");
    assert_eq!(others.marks.sent.unwrap().to_string(), "0x40/0xc0");
    assert!(HELP.contains("[0x2/0x2]"));
}

#[test]
fn echoes_logs_and_metrics_are_as_the_options_say() {
    let options = options("--status 503 --delay 2s --log-format json --metrics [::]:9180");
    assert_eq!(options.directives.status.code(), 503);
    assert_eq!(options.directives.delay, Duration::from_secs(2));
    assert_eq!(options.log_format, LogFormat::Json);
    assert_eq!(options.metrics, Some("[::]:9180".parse().unwrap()));
}

#[test]
fn a_block_that_is_given_twice_counts_once() {
    assert_eq!(options("-c 10.0.0.0/8,10.0.0.0/8").cidrs.len(), 1);
}

#[test]
fn help_and_version_need_nothing_else() {
    assert_eq!(read("-h"), Ok(Command::Help));
    assert_eq!(read("--version --nonsense"), Ok(Command::Version));
}

#[test]
fn a_check_is_for_the_options_that_stand_beside_it() {
    let checked = options("--port 7 -d 80");
    assert_eq!(read("--port 7 --check -d 80"), Ok(Command::Check(checked)));
}

#[test]
fn printing_needs_a_captured_block_of_the_family() {
    let printed = Command::PrintRules(options("-c fd00::/8"), Family::V6);
    assert_eq!(read("--print-rules v6 -c fd00::/8"), Ok(printed));
}
