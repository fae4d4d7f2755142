//! Scripts as one ruleset: each rule of iptables becomes one or more rules of nf_tables.
//!
//! Both families share one table of the family `inet`: the base chains test the family, and the names
//! of the user chains end in [`Family::suffix`]. The tests themselves are in `matches`.

use crate::nftables::connections::{self, HANDSHAKE_TIMEOUT};
use crate::nftables::expression::{Expression, NFT_SOCKET_WILDCARD};
use crate::nftables::matches;
use crate::nftables::ruleset::{REDIRECTED, REDIRECTED_TAG, Ruleset};
use crate::rules::rule::{Match, PortOf, Rule, Target, Test};
use crate::rules::script::{OUTPUT, PREROUTING, Script};
use crate::selectors::{Family, Mark};

/// Most connections in `syn-seen`, for each family
const HANDSHAKES_SIZE: u32 = 262_144;

/// Compiles scripts, at most one for each family; `selector` is the mark that selects the table with the
/// AnyIP routes.
pub fn compile(scripts: &[Script], selector: Mark) -> Ruleset {
    let mut ruleset = Ruleset::without_rules();
    add_redirected(&mut ruleset, selector);
    if scripts.iter().any(Script::has_output) {
        ruleset.add_output();
    }
    for script in scripts {
        let family = script.family;
        for chain in script.user_chains() {
            ruleset.add_chain(user_chain(&chain.name, family));
        }
        add_syn_seen(&mut ruleset, family);
        let mut compiler = Compiler {
            ruleset: &mut ruleset,
            selector,
            family,
        };
        for chain in &script.chains {
            for rule in &chain.rules {
                compiler.rule(&chain.name, rule);
            }
        }
    }
    ruleset
}

/// Adds the first rules of [`REDIRECTED`], by which all packets leave it but those that the hooks of IP have
/// captured on the bridge: they have the tag and the mark. Their socket is lost, so that the rules have to see
/// them as at first, without the mark. Others pass [`PREROUTING`] later, behind the translation of Services.
fn add_redirected(ruleset: &mut Ruleset, selector: Mark) {
    let differs = |from: u32| Expression::Compare {
        negated: true,
        data: from.to_ne_bytes().into(),
    };
    let is_not_tagged = [
        Expression::Meta(libc::NFT_META_PRIORITY),
        differs(REDIRECTED_TAG),
    ];
    let is_not_marked = [
        Expression::Meta(libc::NFT_META_MARK),
        Expression::Mask(selector.mask.to_ne_bytes().into()),
        differs(selector.value),
    ];
    let no_mark = Mark {
        value: 0,
        ..selector
    };
    let accept = [Expression::Verdict(libc::NF_ACCEPT)];
    ruleset.append(REDIRECTED, &[&is_not_tagged, &accept]);
    ruleset.append(REDIRECTED, &[&is_not_marked, &accept]);
    ruleset.append(REDIRECTED, &[&[Expression::SetMark(no_mark)]]);
}

/// Adds the set for SYNs, and the chain that remembers one, or remembers it longer, and accepts the packet: the
/// first rule ends where the set is full.
fn add_syn_seen(ruleset: &mut Ruleset, family: Family) {
    let (set, chain) = (connections::syn_seen(family), remember(family));
    let enter = [
        connections::load_client_key(family),
        connections::update(&set, HANDSHAKE_TIMEOUT),
    ];
    let accept = [Expression::Verdict(libc::NF_ACCEPT)];
    ruleset.add_chain(&chain);
    ruleset.append(&chain, &[&enter, &accept]);
    ruleset.append(&chain, &[&accept]);
    let set = connections::new_set(&set, family, HANDSHAKES_SIZE);
    ruleset.named_sets.push(set);
}

/// Compiles the rules of one family.
struct Compiler<'r> {
    ruleset: &'r mut Ruleset,
    selector: Mark,
    family: Family,
}

impl Compiler<'_> {
    /// Adds a rule to its base chains, or to its user chain.
    fn rule(&mut self, chain: &str, rule: &Rule) {
        let is_family = [
            Expression::Meta(libc::NFT_META_NFPROTO),
            Expression::equals(vec![self.family.number()]),
        ];
        match chain {
            PREROUTING => {
                self.add_rule(PREROUTING, &is_family, rule);
                self.add_rule(REDIRECTED, &is_family, rule);
            }
            OUTPUT => self.add_rule(OUTPUT, &is_family, rule),
            _ => self.add_rule(&user_chain(chain, self.family), &[], rule),
        }
    }

    /// Adds a rule to a chain, with `first` in front of its own expressions.
    fn add_rule(&mut self, chain: &str, first: &[Expression], rule: &Rule) {
        for matches in alternatives(&rule.matches) {
            let tests = matches::expressions(&matches, self.family);
            let mut action = self.action(rule);
            if !action.is_empty() && matches.iter().any(excludes_wildcards) {
                let chain = add_wildcard_chain(self.ruleset, chain, &action);
                action = vec![Expression::Jump(chain)];
            }
            self.ruleset.append(chain, &[first, &tests, &action]);
        }
    }

    /// The expressions of the target.
    ///
    /// TPROXY comes before its mark: without a listener the expression ends the rule, and the packet goes
    /// to the Pod unmarked. iptables would drop it.
    fn action(&self, rule: &Rule) -> Vec<Expression> {
        match &rule.target {
            None => Vec::new(),
            Some(Target::Accept) => vec![Expression::Verdict(libc::NF_ACCEPT)],
            Some(Target::Drop) => vec![Expression::Verdict(libc::NF_DROP)],
            Some(Target::Return) => vec![Expression::Verdict(libc::NFT_RETURN)],
            Some(Target::Mark(mark)) => self.set_mark(*mark),
            Some(Target::ConnectionMark(mark)) => vec![Expression::SetConnectionMark(*mark)],
            Some(Target::Jump(chain)) => vec![Expression::Jump(user_chain(chain, self.family))],
            Some(Target::Tproxy {
                address,
                port,
                mark,
            }) => {
                let mut action = vec![Expression::Tproxy {
                    family: self.family,
                    address: *address,
                    port: *port,
                }];
                action.append(&mut self.set_mark(*mark));
                action.push(match rule.takes_syns() || rule.takes_handshakes() {
                    true => Expression::Goto(remember(self.family)),
                    false => Expression::Verdict(libc::NF_ACCEPT),
                });
                action
            }
            Some(Target::Release) => vec![
                connections::load_client_key(self.family),
                Expression::Delete(connections::syn_seen(self.family)),
                Expression::Verdict(libc::NF_ACCEPT),
            ],
        }
    }

    /// Sets the mark. A packet that it leads to the listener is tagged as if it were redirected: if
    /// br_netfilter runs the hooks of IP for it on a bridge, the chain [`REDIRECTED`] has to meet it again.
    fn set_mark(&self, mark: Mark) -> Vec<Expression> {
        let tag = REDIRECTED_TAG.to_ne_bytes();
        let mut action = vec![Expression::SetMark(mark)];
        if mark.sets(self.selector) {
            action.push(Expression::SetMeta(libc::NFT_META_PRIORITY, tag.into()));
        }
        action
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

/// The chain that remembers SYNs. No user chain has such a name.
fn remember(family: Family) -> String {
    format!("syn{}.remember", family.suffix())
}

fn user_chain(name: &str, family: Family) -> String {
    format!("{name}{}", family.suffix())
}
