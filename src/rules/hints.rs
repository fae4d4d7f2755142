//! What to write in place of an option that iptables-restore reads and this parser does not.

use crate::rules::error::SyntaxError;
use crate::rules::modules::MODULES;
use crate::rules::values::TARGETS;

/// The supported options beside those of modules, for error messages.
const OPTIONS: &str = "-A, -N, -4, -6, -p, -s, -d, -i, -m and -j; with -p tcp or -p udp: --sport, --dport; with -p tcp: --syn, --tcp-flags";

/// What to write in place of an option.
fn instead_of(option: &str) -> Option<&'static str> {
    Some(match option {
        "--append" => "-A",
        "-I" | "--insert" => "-A; put the line first",
        "--new-chain" | "--new" => "-N",
        "-D" | "--delete" | "-R" | "--replace" => "-A lines only; change that of the rule",
        "-F" | "--flush" | "-X" | "--delete-chain" | "-Z" | "--zero" => {
            "no such line: every script starts with an empty table"
        }
        "-P" | "--policy" => ":CHAIN ACCEPT",
        "-c" | "--set-counters" => "no counters, or [PACKETS:BYTES] in front of the line",
        "-t" | "--table" => "*mangle above and no -t",
        "--protocol" | "--proto" => "-p",
        "--source" | "--src" => "-s",
        "--destination" | "--dst" => "-d",
        "--in-interface" => "-i",
        "--jump" => "-j",
        "-g" | "--goto" => "-j, from which the packet returns",
        "--match" => "-m",
        "--source-port" | "--destination-port" => "--sport or --dport",
        "--source-ports" | "--destination-ports" | "--port" => "--sports, --dports or --ports",
        "--or-mark" | "--and-mark" | "--xor-mark" => "--set-xmark VALUE/MASK",
        _ => return None,
    })
}

/// The error for a word that is no supported option.
pub fn unsupported(word: &str) -> SyntaxError {
    let expected = match (instead_of(word), word.find('=')) {
        (Some(instead), _) => format!("expected {instead}"),
        (None, Some(_)) if word.starts_with('-') => "expected a blank in place of =".to_owned(),
        _ => format!("supported are {OPTIONS}; {MODULES}; {TARGETS}"),
    };
    SyntaxError::new(word, expected)
}
