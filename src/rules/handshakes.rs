//! Rules for handshakes by SYN cookie, which every script gets beside its own.
//!
//! A kernel that answers a SYN by a cookie (`net.ipv4.tcp_syncookies`) keeps no socket for the handshake: the
//! listener learns of the connection from the client's next packet, which `-m socket` finds no owner for. So
//! SYNs that TPROXY takes are remembered for some seconds, and a packet of such a connection goes to TPROXY as
//! the SYN did, unless a rule has marked it because a socket owns it. It renews the time: a client that finds the
//! queue of accepted connections full retransmits. iptables has no rule that does this.

use crate::rules::rule::{Match, Rule, Target, Test};
use crate::rules::script::Script;

impl Script {
    /// Adds, for each rule by which TPROXY takes SYNs, one for the other packets of their connections: at the end
    /// of its chain, where few packets come by, or before a rule behind which none does.
    pub fn with_handshakes(mut self) -> Script {
        for chain in &mut self.chains {
            let own = std::mem::take(&mut chain.rules);
            let mut waiting: Vec<Rule> = Vec::new();
            for rule in own {
                let added = for_handshakes(&rule);
                let due = waiting.extract_if(.., |added| takes_all(&rule, added));
                chain.rules.extend(due);
                chain.rules.push(rule);
                waiting.extend(added);
            }
            chain.rules.append(&mut waiting);
        }
        self
    }
}

/// The rule for packets behind the SYN. What has the mark already needs no listener: a cheap test, which comes
/// first.
fn for_handshakes(rule: &Rule) -> Option<Rule> {
    let Some(Target::Tproxy { mark, .. }) = rule.target else {
        return None;
    };
    let mut added = rule.clone();
    added.matches.retain(|it| !it.selects_syns());
    added.matches.push(Match {
        negated: true,
        test: Test::Mark(mark),
    });
    added.matches.push(Test::Handshake.into());
    rule.takes_syns().then_some(added)
}

/// Whether every packet that passes the tests of `added` ends at `rule`.
fn takes_all(rule: &Rule, added: &Rule) -> bool {
    let ends = matches!(
        rule.target,
        Some(Target::Accept | Target::Drop | Target::Return)
    );
    ends && rule.matches.iter().all(|it| added.matches.contains(it))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::script::{Listing, PREROUTING};
    use crate::rules::template::Line;
    use crate::selectors::Family;

    /// The rules of PREROUTING, and those with the added ones.
    fn rules(lines: &[&str]) -> (Vec<Rule>, Vec<Rule>) {
        let texts = [&["*mangle"], lines, &["COMMIT"]].concat();
        let line = |(number, text): (usize, &&str)| Line {
            number,
            text: (*text).to_owned(),
        };
        let lines: Vec<Line> = texts.iter().enumerate().map(line).collect();
        let script = Listing::parse(&lines, Family::V4).unwrap().into_script();
        let of = |script: &Script| {
            let mut chains = script.chains.iter();
            let chain = chains.find(|chain| chain.name == PREROUTING).unwrap();
            chain.rules.clone()
        };
        (of(&script), of(&script.clone().with_handshakes()))
    }

    #[test]
    fn a_rule_for_handshakes_stands_at_the_end_and_before_what_takes_all() {
        let tproxy =
            "-A PREROUTING -p tcp --dport 80 --syn -j TPROXY --on-port 1 --tproxy-mark 0x1/0x1";
        let marks = "-A PREROUTING -p tcp -m socket -j MARK --set-xmark 0x1/0x1";
        for end in [
            &[][..],
            &["-A PREROUTING -j RETURN", "-A PREROUTING -p tcp -j DROP"],
            &["-A PREROUTING -p tcp -j ACCEPT"],
            &["-A PREROUTING -p tcp --dport 80 -j DROP"],
        ] {
            let (own, all) = rules(&[&[tproxy, marks], end].concat());
            assert_eq!(all.len(), own.len() + 1);
            assert_eq!((&all[..2], &all[3..]), (&own[..2], &own[2..]));
            assert_eq!(all[2].target, own[0].target);
            assert!(all[2].matches.contains(&Test::Handshake.into()));
            assert!(!all[2].matches.contains(&Test::SYN.into()));
        }
    }

    #[test]
    fn a_rule_for_handshakes_stands_behind_what_takes_others() {
        let tproxy =
            "-A PREROUTING -p tcp --dport 80 --syn -j TPROXY --on-port 1 --tproxy-mark 0x1/0x1";
        let (own, all) = rules(&[
            "-A PREROUTING -p tcp --dport 81 -j RETURN",
            tproxy,
            "-A PREROUTING -p tcp --dport 82 -j DROP",
            "-A PREROUTING -p tcp --dport 80 -j MARK --set-xmark 0x2/0x2",
        ]);
        assert_eq!(all[..own.len()], own);
        assert_eq!(all.len(), own.len() + 1);
    }

    #[test]
    fn a_rule_that_takes_every_packet_gets_none() {
        let (own, all) = rules(&[
            "-A PREROUTING -p tcp -j TPROXY --on-port 1 --tproxy-mark 0x1/0x1",
            "-A PREROUTING -p tcp ! --syn -j TPROXY --on-port 1 --tproxy-mark 0x1/0x1",
            "-A PREROUTING -p tcp --syn -j ACCEPT",
        ]);
        assert_eq!(own, all);
    }

    #[test]
    fn while_the_server_drains_the_rule_for_handshakes_stays() {
        let text = "-A PREROUTING -p tcp --syn -j TPROXY --on-port 1 --tproxy-mark 0x1/0x1";
        let (_, all) = rules(&[text]);
        let script = Script {
            family: Family::V4,
            chains: vec![crate::rules::script::Chain {
                name: PREROUTING.to_owned(),
                rules: all.clone(),
            }],
        };
        let draining = &script.draining(None).chains[0].rules;
        assert_eq!(draining[0].target, Some(Target::Release));
        assert_eq!(draining[1], all[1]);
    }
}
