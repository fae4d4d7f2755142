//! Whether the rules lead to the listener. A script may parse and still capture nothing, or take packets
//! from the Pods and lose them: its TPROXY names another socket, or a mark that no rule looks up; or OUTPUT
//! marks what the node sends, and PREROUTING does not capture it where it comes in, by lo.

use std::net::IpAddr;

use crate::rules::error::{ScriptError, SyntaxError};
use crate::rules::rule::{Match, Protocol, Rule, Target, Test};
use crate::rules::script::{ListedRule, Listing, OUTPUT, PREROUTING};
use crate::rules::template::Values;
use crate::rules::words::split;
use crate::selectors::Mark;

/// Checks that a rule leads to the listener, that every rule to it has its mark, and that OUTPUT marks what the
/// node sends, if that is captured.
///
/// # Errors
/// A TPROXY to the listener whose mark does not lead to the routing table; if none leads to the
/// listener, the first TPROXY and what it lacks, or the end of the script. A mark of OUTPUT that does not lead
/// to the listener, or the end of the script if none is set.
pub fn check(listing: &Listing, values: &Values) -> Result<(), ScriptError> {
    let all: Vec<Tproxy> = listing.rules.iter().filter_map(Tproxy::of).collect();
    for tproxy in all.iter().filter(|tproxy| tproxy.may_lead_to(values)) {
        tproxy.check_mark(values.marks.received)?;
    }
    check_prerouting(listing, values, &all)?;
    check_output(listing, values, &all)
}

/// Checks that one of the rules with TPROXY leads to the listener.
fn check_prerouting(listing: &Listing, values: &Values, all: &[Tproxy]) -> Result<(), ScriptError> {
    let reached = reached_from(listing, PREROUTING, |_| true);
    let mut first: Option<(&Tproxy, ScriptError)> = None;
    for tproxy in all {
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

/// Checks that OUTPUT marks what is captured of the node itself, and that PREROUTING then captures it. By CONNMARK
/// it marks connections whose SYN it has seen: older ones stay open, and a stop, which leaves CONNMARK out,
/// marks no new ones.
fn check_output(listing: &Listing, values: &Values, all: &[Tproxy]) -> Result<(), ScriptError> {
    let reached = reached_from(listing, OUTPUT, |_| true);
    let is_reached = |listed: &&ListedRule| reached.contains(&listed.chain.as_str());
    let rules = || listing.rules.iter().filter(is_reached);
    refuse_received_mark(rules(), values.marks.received)?;
    let Some(sent) = values.marks.sent else {
        return Ok(());
    };
    let Some(marking) = rules().find(|listed| sets(listed, sent)) else {
        let expected = "expected the two OUTPUT lines of the bundled script, with -j MARK --set-xmark ${NODE_MARK}, or no --from-node";
        return Err(SyntaxError::new("", expected).at(listing.end.number));
    };
    let is_target = |it: &ListedRule| matches!(it.rule.target, Some(Target::ConnectionMark(_)));
    let is_match = |it: &Match| matches!(it.test, Test::ConnectionMark(_));
    let has_match = |it: &ListedRule| it.rule.matches.iter().any(is_match);
    if !(rules().any(is_target) && rules().any(has_match)) {
        let expected = "expected -m connmark, and a rule with -j CONNMARK, as in the bundled script: without them the node's older connections are lost, and a stop does not release new ones";
        return refuse(marking, "MARK", expected);
    }
    let by_lo = reached_from(listing, PREROUTING, passes_lo);
    let leads = |it: &Tproxy| passes_lo(&it.listed.rule) && it.check(values, &by_lo).is_ok();
    if !all.iter().any(leads) {
        let expected =
            "expected PREROUTING to capture it where it comes in, by lo, or no --from-node";
        return refuse(marking, "MARK", expected);
    }
    Ok(())
}

/// Refuses rules of OUTPUT with the mark of received packets: the rule for the way back leads them to the Pod.
fn refuse_received_mark<'l>(
    mut rules: impl Iterator<Item = &'l ListedRule<'l>>,
    received: Mark,
) -> Result<(), ScriptError> {
    let Some(listed) = rules.find(|listed| sets(listed, received)) else {
        return Ok(());
    };
    let word = value(listed, &["--set-mark", "--set-xmark"]);
    let expected =
        "expected ${NODE_MARK} where OUTPUT leads: with this mark the node's packets go to the Pod";
    refuse(listed, word.as_deref().unwrap_or("MARK"), expected)
}

/// Whether a rule gives packets a mark.
fn sets(listed: &ListedRule, wanted: Mark) -> bool {
    matches!(listed.rule.target, Some(Target::Mark(mark)) if mark.sets(wanted))
}

/// A built-in chain, and the chains that a packet reaches from it by jumps that it `passes`.
fn reached_from<'l>(
    listing: &'l Listing,
    start: &'static str,
    passes: fn(&Rule) -> bool,
) -> Vec<&'l str> {
    let mut reached = listing.chains_by(passes, start);
    reached.push(start);
    reached
}

/// Whether a packet that comes in by lo may pass the matches for its device.
fn passes_lo(rule: &Rule) -> bool {
    rule.matches.iter().all(|it| match &it.test {
        Test::Interface { name, prefix } => {
            let is_lo = name == "lo" || *prefix && "lo".starts_with(name.as_str());
            is_lo != it.negated
        }
        _ => true,
    })
}

/// Refuses a word of a rule.
fn refuse(listed: &ListedRule, word: &str, expected: &str) -> Result<(), ScriptError> {
    Err(SyntaxError::new(word, expected).at(listed.line.number))
}

/// The word after the first of the options in a rule.
fn value(listed: &ListedRule, options: &[&str]) -> Option<String> {
    let mut words = split(&listed.line.text).unwrap_or_default().into_iter();
    words.find(|word| options.contains(&word.as_str()))?;
    words.next()
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
        match reached.contains(&chain) {
            true => Ok(()),
            false => refuse(
                self.listed,
                chain,
                "expected a chain to which PREROUTING leads",
            ),
        }
    }

    /// Refuses the value of an option, or TPROXY without the option, unless `holds`.
    fn require(
        &self,
        holds: bool,
        option: &str,
        variable: &str,
        value: &str,
    ) -> Result<(), ScriptError> {
        if holds {
            return Ok(());
        }
        let word = self::value(self.listed, &[option]);
        let expected = format!("expected {option} {variable} ({value})");
        refuse(self.listed, word.as_deref().unwrap_or("TPROXY"), &expected)
    }
}
