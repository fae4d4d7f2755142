//! Scripts as one ruleset: each rule of iptables becomes one or more rules of nf_tables.
//!
//! Both families share one table of the family `inet`: the base chains test the family, and the names
//! of the user chains end in [`Family::suffix`]. The tests themselves are in `matches`.

use crate::nftables::expression::{Expression, NFT_SOCKET_WILDCARD};
use crate::nftables::matches;
use crate::nftables::ruleset::{REDIRECTED, REDIRECTED_TAG, Ruleset};
use crate::rules::rule::{Match, PortOf, Rule, Target, Test};
use crate::rules::script::{PREROUTING, Script};
use crate::selectors::Family;

/// Compiles scripts, at most one for each family.
pub fn compile(scripts: &[Script]) -> Ruleset {
    let mut ruleset = Ruleset::without_rules();
    for script in scripts {
        for chain in &script.chains {
            if chain.name != PREROUTING {
                ruleset.add_chain(user_chain(&chain.name, script.family));
            }
            for rule in &chain.rules {
                compile_rule(&mut ruleset, &chain.name, rule, script.family);
            }
        }
    }
    ruleset
}

/// Adds a rule to its user chain, or to both base chains.
fn compile_rule(ruleset: &mut Ruleset, chain: &str, rule: &Rule, family: Family) {
    if chain != PREROUTING {
        return add_rule(ruleset, &user_chain(chain, family), &[], rule, family);
    }
    let is_family = [
        Expression::Meta(libc::NFT_META_NFPROTO),
        Expression::equals(vec![family.number()]),
    ];
    let is_redirected = [
        Expression::Meta(libc::NFT_META_PRIORITY),
        Expression::equals(REDIRECTED_TAG.to_ne_bytes().into()),
    ];
    let is_redirected_family = [is_redirected, is_family.clone()].concat();
    add_rule(ruleset, PREROUTING, &is_family, rule, family);
    add_rule(ruleset, REDIRECTED, &is_redirected_family, rule, family);
}

/// Adds a rule to a chain, with `first` in front of its own expressions.
fn add_rule(ruleset: &mut Ruleset, chain: &str, first: &[Expression], rule: &Rule, family: Family) {
    for matches in alternatives(&rule.matches) {
        let tests = matches::expressions(&matches, family);
        let mut action = action(rule.target.as_ref(), family);
        if !action.is_empty() && matches.iter().any(excludes_wildcards) {
            let chain = add_wildcard_chain(ruleset, chain, &action);
            action = vec![Expression::Jump(chain)];
        }
        ruleset.append(chain, &[first, &tests, &action]);
    }
}

/// Whether a match ignores sockets that are bound to any address (`-m socket` without `--nowildcard`).
fn excludes_wildcards(it: &Match) -> bool {
    match it.test {
        Test::Socket { with_wildcards, .. } => !with_wildcards,
        _ => false,
    }
}

/// Adds a chain that does `action` unless the packet's socket is bound to any address.
///
/// `socket wildcard` ends its rule for a socket that is not a full one (a handshake, TIME_WAIT), and
/// iptables counts such a socket as bound to one address. So the first rule returns where the
/// expression matches, and the second rule acts on all other packets.
fn add_wildcard_chain(ruleset: &mut Ruleset, chain: &str, action: &[Expression]) -> String {
    let name = format!("{chain}.{}", ruleset.rules.len());
    let skip = [
        Expression::Socket(NFT_SOCKET_WILDCARD),
        Expression::equals(vec![1]),
        Expression::Verdict(libc::NFT_RETURN),
    ];
    ruleset.add_chain(name.clone());
    ruleset.append(&name, &[&skip]);
    ruleset.append(&name, &[action]);
    name
}

/// Lists of matches without [`PortOf::Either`], exactly one of which holds where `matches` hold: "one of
/// the two ports" is "the source port", or "the destination port and not the source port".
fn alternatives(matches: &[Match]) -> Vec<Vec<Match>> {
    let mut lists = vec![Vec::new()];
    for it in matches {
        let Test::Ports(PortOf::Either, ranges) = &it.test else {
            lists.iter_mut().for_each(|list| list.push(it.clone()));
            continue;
        };
        let port = |of, negated| Match {
            negated,
            test: Test::Ports(of, ranges.clone()),
        };
        let mut doubled = Vec::new();
        for list in lists {
            if !it.negated {
                doubled.push([list.as_slice(), &[port(PortOf::Source, false)]].concat());
            }
            let rest = [
                port(PortOf::Source, true),
                port(PortOf::Destination, it.negated),
            ];
            doubled.push([list.as_slice(), &rest].concat());
        }
        lists = doubled;
    }
    lists
}

/// The expressions of a target.
///
/// TPROXY comes before its mark: without a listener the expression ends the rule, and the packet goes
/// to the Pod unmarked. iptables would drop it.
fn action(target: Option<&Target>, family: Family) -> Vec<Expression> {
    match target {
        None => Vec::new(),
        Some(Target::Accept) => vec![Expression::Verdict(libc::NF_ACCEPT)],
        Some(Target::Drop) => vec![Expression::Verdict(libc::NF_DROP)],
        Some(Target::Return) => vec![Expression::Verdict(libc::NFT_RETURN)],
        Some(Target::Mark(mark)) => vec![Expression::SetMark(*mark)],
        Some(Target::Jump(chain)) => vec![Expression::Jump(user_chain(chain, family))],
        Some(Target::Tproxy {
            address,
            port,
            mark,
        }) => vec![
            Expression::Tproxy {
                family,
                address: *address,
                port: *port,
            },
            Expression::SetMark(*mark),
            Expression::Verdict(libc::NF_ACCEPT),
        ],
    }
}

fn user_chain(name: &str, family: Family) -> String {
    format!("{name}{}", family.suffix())
}
