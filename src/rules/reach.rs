//! Whether the rules lead to the listener. A script may parse and still capture nothing, or take packets
//! from the Pods and lose them: its TPROXY names another socket, or a mark that no rule looks up.

use std::net::IpAddr;

use crate::rules::error::{ScriptError, SyntaxError, require};
use crate::rules::rule::{Protocol, Target, Test};
use crate::rules::script::{ListedRule, Listing, PREROUTING};
use crate::rules::template::Values;
use crate::rules::words::split;
use crate::selectors::Mark;

/// Checks that a rule leads to the listener, and that every rule to it has its mark.
///
/// # Errors
/// A TPROXY to the listener whose mark does not lead to the routing table; if none leads to the
/// listener, the first TPROXY and what it lacks, or the end of the script.
pub fn check(listing: &Listing, values: &Values) -> Result<(), ScriptError> {
    let all: Vec<Tproxy> = listing.rules.iter().filter_map(Tproxy::of).collect();
    for tproxy in all.iter().filter(|tproxy| tproxy.may_lead_to(values)) {
        tproxy.check_mark(values.marks.received)?;
    }
    let mut reached = listing.chains_from(PREROUTING);
    reached.push(PREROUTING);
    let mut first: Option<(&Tproxy, ScriptError)> = None;
    for tproxy in &all {
        let Err(miss) = tproxy.check(values, &reached) else {
            return Ok(());
        };
        // One of another protocol may be meant for another listener.
        let is_better = |first: &(&Tproxy, _)| tproxy.is_tcp && !first.0.is_tcp;
        if first.as_ref().is_none_or(is_better) {
            first = Some((tproxy, miss));
        }
    }
    Err(first.map_or_else(|| missing(listing), |(_, miss)| miss))
}

/// The error for a script without TPROXY.
fn missing(listing: &Listing) -> ScriptError {
    let family = listing.family;
    if let Some((line, option)) = &listing.other_family {
        let expected = format!(
            "expected -j TPROXY for {family} too, or no {family} block in --cidr: nothing of it is captured"
        );
        return SyntaxError::new(option, expected).at(line.number);
    }
    let expected = "expected a rule with -p tcp -j TPROXY --on-ip ${ON_IP} --on-port ${ON_PORT} --tproxy-mark ${MARK}";
    SyntaxError::new("", expected).at(listing.end.number)
}

/// A rule with TPROXY.
struct Tproxy<'l> {
    listed: &'l ListedRule<'l>,
    is_tcp: bool,
    address: Option<IpAddr>,
    /// Port of the socket, host order; 0 means the destination port of the packet.
    port: u16,
    mark: Mark,
}

impl<'l> Tproxy<'l> {
    fn of(listed: &'l ListedRule<'l>) -> Option<Tproxy<'l>> {
        let Some(Target::Tproxy {
            address,
            port,
            mark,
        }) = listed.rule.target
        else {
            return None;
        };
        let tcp = Test::Protocol(Protocol::Tcp).into();
        Some(Tproxy {
            listed,
            is_tcp: listed.rule.matches.contains(&tcp),
            address,
            port,
            mark,
        })
    }

    /// Whether the listener gets some packet of the rule.
    fn may_lead_to(&self, values: &Values) -> bool {
        let is_its_port = self.port == values.on_port || self.port == 0;
        self.is_tcp && self.address == Some(values.on_ip) && is_its_port
    }

    /// Checks that the mark is `wanted` afterwards, whatever it was before.
    fn check_mark(&self, wanted: Mark) -> Result<(), ScriptError> {
        self.require(
            self.mark.sets(wanted),
            "--tproxy-mark",
            "${MARK}",
            &wanted.to_string(),
        )
    }

    /// Checks that the rule leads to the listener.
    fn check(&self, values: &Values, reached: &[&str]) -> Result<(), ScriptError> {
        self.require(self.is_tcp, "-p", "tcp", "the protocol of the listener")?;
        let (ip, port) = (values.on_ip.to_string(), values.on_port.to_string());
        let (is_ip, is_port) = (
            self.address == Some(values.on_ip),
            self.port == values.on_port,
        );
        self.require(is_ip, "--on-ip", "${ON_IP}", &ip)?;
        self.require(is_port, "--on-port", "${ON_PORT}", &port)?;
        let chain = self.listed.chain.as_str();
        let expected = "expected a chain to which PREROUTING leads";
        require(reached.contains(&chain), chain, expected)
            .map_err(|error| error.at(self.listed.line.number))
    }

    /// Refuses the value of an option, or TPROXY without the option, unless `holds`.
    fn require(
        &self,
        holds: bool,
        option: &str,
        variable: &str,
        value: &str,
    ) -> Result<(), ScriptError> {
        let line = self.listed.line;
        let words = split(&line.text).unwrap_or_default();
        let option_at = words.iter().position(|word| word == option);
        let word = option_at.and_then(|at| words.get(at + 1));
        let word = word.map_or("TPROXY", String::as_str);
        let expected = format!("expected {option} {variable} ({value})");
        require(holds, word, expected).map_err(|error| error.at(line.number))
    }
}
